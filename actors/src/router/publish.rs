//! The hot path: from the publishes of one socket read to records of the batch being built.
//!
//! Per message: one look at the producer's next sequence, one vector look-up per receiver, one copy
//! of the body. Nothing is allocated, locked, logged or sent for a message of its own.

use super::batch::{CallSlot, Outcome};
use super::calls::Call;
use super::delay::DELAYED_BYTES;
use super::messages::{ProducerSession, PublishBatch, PublishItem, Receiver};
use super::repeats::OldRepeat;
use super::slots::Over;
use super::{BUILDING_BYTES_MAX, Router};
use crate::clock;
use crate::journal::Admission;
use crate::link::SharedProducer;
use crate::peer::EnqueuedMessage;
use actix::prelude::*;
use restante_protocol::frame::{Refuse, publish_flags};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::message::{Body, body_flags, option_flags};
use restante_protocol::name::Name;
use restante_protocol::producers::{Accepted, Decision, Refused, SessionError};
use restante_protocol::record::{
    MESSAGE_FIXED_BYTES, RECORD_HEADER_BYTES, RecordKind, put_message_record,
};
use restante_protocol::refusal::{Code, Refusal};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl Handler<PublishBatch> for Router {
    type Result = ();

    fn handle(&mut self, batch: PublishBatch, ctx: &mut Context<Self>) {
        let mut known = match self.known(&batch) {
            Ok(known) => known,
            Err(why @ SessionError::Superseded { .. }) => {
                let why = why.refusal();
                return batch.items.iter().for_each(|item| refuse(&batch.from, item, &why));
            }
            // They stay undecided, and are repeated after another hello.
            Err(why @ (SessionError::Forgotten | SessionError::Fenced)) => {
                return batch.from.abandon(&why.refusal());
            }
        };
        let closed = self.door();
        let fences = self.fences;
        let mut receivers = &batch.receivers[..];
        let mut old = Vec::new();
        for (at, item) in batch.items.iter().enumerate() {
            let (mine, others) = receivers.split_at(usize::from(item.receivers));
            receivers = others;
            match known.last() {
                Some((place, _)) if *place == at => {
                    let known = known.pop().map(|(_, known)| known);
                    old.extend(known.and_then(|known| self.repeat(&batch, item, mine, known)));
                }
                _ => self.publish(&batch, item, mine, closed.as_ref()),
            }
            if self.building.bytes.len() >= BUILDING_BYTES_MAX {
                self.append_building();
            }
            if self.fences != fences && self.is_fenced(batch.producer) {
                break;
            }
        }
        if !old.is_empty() {
            let to = Arc::clone(&batch.from);
            self.building.outcomes.push(Outcome::LookUp { to, repeats: old });
        }
        self.flush_soon(ctx);
    }
}

/// What is remembered of a publish that is not new.
enum Known {
    Accepted { id: MessageId, refused: Option<Refused>, may_lack: bool },
    Refused(Refused),
    No(Refusal),
}

/// What the receivers of one publish come to.
#[derive(Default)]
pub(super) struct Split {
    pub(super) accepted: SmallVec<[PeerId; 16]>,
    refused: SmallVec<[(u32, Code); 4]>,
    /// The refusing receivers' places in the publish.
    places: SmallVec<[u16; 4]>,
    /// Members of groups that refuse.
    members: Vec<RefusedMember>,
    detail: String,
}

/// A member of a group that refuses.
struct RefusedMember {
    /// The group's place in the publish.
    place: u16,
    /// The group's alias.
    alias: u32,
    name: Name,
    code: Code,
}

impl Router {
    /// Why nothing at all can be accepted now, if so. Asked once per batch.
    pub(super) fn door(&mut self) -> Option<Refusal> {
        if self.draining {
            return Some(Refusal::new(Code::ShuttingDown, "the node is stopping"));
        }
        if self.in_hand_bytes + self.building.bytes.len() > self.limits.ingress_bytes_max {
            let max = self.limits.ingress_bytes_max;
            let detail = format!("{max} bytes of publishes are waiting for the disk already");
            return Some(Refusal::new(Code::Overloaded, detail));
        }
        if self.limits.messages_max > 0 {
            let kept = u64::try_from(self.shared.kept.load(Relaxed)).unwrap_or(0);
            let kept = kept + self.building.deliveries;
            self.messages_left = self.limits.messages_max.saturating_sub(kept);
        }
        match self.journal.admission() {
            Admission::Open => None,
            Admission::Closed(why) => Some(why),
        }
    }

    /// Whether nothing of this session is taken any more, because something before it was not.
    fn is_fenced(&mut self, producer: ProducerSession) -> bool {
        self.state.producers.session(producer.index, producer.epoch).is_err()
    }

    /// Whether the node's quota has no room for this many messages. If it has, it has less from now on.
    fn over_node_quota(&mut self, count: u64) -> Option<Refusal> {
        if let Some(left) = self.messages_left.checked_sub(count) {
            self.messages_left = left;
            return None;
        }
        let max = self.limits.messages_max;
        let (kept, needed) = (max - self.messages_left, count - self.messages_left);
        let detail =
            format!("{kept} messages are kept, the quota is {max}; {needed} must go first");
        Some(Refusal::new(Code::NodeQuota, detail))
    }

    /// The publishes of a batch that have been decided before, by place, the first one last. Empty in the
    /// common case.
    fn known(&mut self, batch: &PublishBatch) -> Result<Vec<(usize, Known)>, SessionError> {
        let ProducerSession { index, epoch } = batch.producer;
        let (node, partition) = (self.shared.node, self.shared.partition);
        let id = |accepted: &Accepted<'_>| {
            MessageId::new(accepted.accepted_ms, node, partition, accepted.number)
        };
        let mut session = self.state.producers.session(index, epoch)?;
        let mut known = Vec::new();
        for (at, item) in batch.items.iter().enumerate() {
            let answer = match session.decide(item.sequence) {
                Decision::New => continue,
                Decision::Pending(accepted) | Decision::Confirmed(accepted) => {
                    let refused = accepted.refused.cloned();
                    Known::Accepted { id: id(&accepted), refused, may_lack: accepted.may_lack }
                }
                Decision::Refused(refused) => Known::Refused(refused.clone()),
                Decision::Evicted => Known::No(Refusal::new(
                    Code::OutcomeEvicted,
                    format!("the outcome of sequence {} is no longer remembered", item.sequence),
                )),
                Decision::Invalid => Known::No(Refusal::new(
                    Code::BadSequence,
                    format!("sequence {} is zero, too high, or used twice", item.sequence),
                )),
            };
            known.push((at, answer));
        }
        known.reverse();
        Ok(known)
    }

    fn publish(
        &mut self,
        batch: &PublishBatch,
        item: &PublishItem,
        receivers: &[Receiver],
        closed: Option<&Refusal>,
    ) {
        let producer = batch.producer;
        let frame_bytes = u64::from(item.frame_len);
        if let Some(why) = item.refusal.as_deref().or(closed) {
            return self.refuse_all(batch, item, why);
        }
        let at = item.body_at as usize;
        let body = &batch.chunk[at..at + item.body_len as usize];
        let flags = body.first().copied().unwrap_or(0);
        if let Some(why) = forbidden(flags, receivers).or_else(|| self.too_many_calls(flags)) {
            return self.refuse_all(batch, item, &why);
        }
        let delay = match flags & body_flags::OPTIONS != 0 && is_delayed(body) {
            false => None,
            true => match self.delay_of(flags, body) {
                Ok(delay) => delay,
                Err(why) => return self.refuse_all(batch, item, &why),
            },
        };
        let split = self.split(receivers, body.len() as u64);
        let all_or_nothing = item.flags & publish_flags::ALL_OR_NOTHING != 0;
        if split.accepted.is_empty() || (all_or_nothing && !split.is_whole()) {
            return self.refuse_split(batch, item, split, all_or_nothing);
        }
        if let Some(why) = self.over_node_quota(split.accepted.len() as u64) {
            return self.refuse_all(batch, item, &why);
        }

        let more = if delay.is_some() { DELAYED_BYTES } else { 0 };
        let bytes = record_room(split.accepted.len(), body.len() + more);
        if bytes > self.caps.record_bytes_max {
            let max = self.caps.record_bytes_max;
            let detail = format!("a record of {bytes} bytes, a segment of the log takes {max}");
            return self.refuse_all(batch, item, &Refusal::new(Code::TooLarge, detail));
        }
        if self.building.bytes.len() + bytes > self.caps.batch_bytes_max {
            self.append_building();
            if self.is_fenced(producer) {
                return;
            }
        }
        let index = match delay {
            None => self.accept(batch, item, body, flags, &split.accepted),
            Some(at) => self.accept_delayed(batch, item, body, at, &split.accepted),
        };
        if split.is_whole() {
            let (to, sequence) = (&batch.from, item.sequence);
            self.building.confirm(to, producer.index, sequence, index, frame_bytes);
            return;
        }
        self.building.outcomes.push(Outcome::Partial {
            to: Arc::clone(&batch.from),
            producer: producer.index,
            places: split.all_places(),
            refuse: Box::new(split.into_refuse(item.sequence, None)),
            index,
            bytes: frame_bytes,
        });
    }

    /// Why one more call may not await its answer, if it may not.
    fn too_many_calls(&mut self, flags: u8) -> Option<Refusal> {
        let is_call = flags & body_flags::REPLY != 0;
        if !is_call || self.calls.has_room(self.building.calls.len(), clock::now) {
            return None;
        }
        let detail = format!("{} calls await their answers already", self.calls.max());
        Some(Refusal::new(Code::Overloaded, detail))
    }

    /// Writes the record and notes it for its receivers; returns its index in the batch.
    fn accept(
        &mut self,
        batch: &PublishBatch,
        item: &PublishItem,
        body: &[u8],
        flags: u8,
        peers: &[PeerId],
    ) -> u32 {
        let key = (flags & body_flags::KEY != 0)
            .then(|| Body::parse(body).ok().and_then(|body| body.key_hash()))
            .flatten();
        if self.building.accepted_ms == 0 {
            self.building.accepted_ms = self.accepted_now();
        }
        let building = &mut self.building;
        let index = building.next_index();
        let placed = put_message_record(
            &mut building.bytes,
            building.accepted_ms,
            batch.producer.index,
            item.sequence,
            peers,
            body,
        );
        let body_end = placed.offset + RECORD_HEADER_BYTES + placed.body_bytes;
        building.place(RecordKind::Message, placed);
        if flags & body_flags::REPLY != 0 {
            let (from, sequence) = (Arc::clone(&batch.from), item.sequence);
            // A call has exactly one receiver.
            let peer = peers.first().copied().unwrap_or(PeerId::NONE);
            building.calls.push(CallSlot { index, call: Call { from, sequence, peer } });
        }
        // A batch stays below 4 GiB by far, so its offsets fit.
        let body_at = (body_end - body.len()) as u32;
        building.deliveries += peers.len() as u64;
        let has_options = flags & body_flags::OPTIONS != 0;
        let message = EnqueuedMessage { index, body_at, body_len: item.body_len, key, has_options };
        for peer in peers {
            let Some(slot) = self.slots.get_mut(*peer) else { continue };
            if slot.gather(message) {
                building.touched.push(*peer);
            }
        }
        index
    }

    /// Sorts the receivers of a publish into those that can take it and those that cannot. A
    /// receiver named twice counts once.
    fn split(&mut self, receivers: &[Receiver], bytes: u64) -> Split {
        self.publishes += 1;
        let this = self.publishes;
        let mut split = Split::default();
        for (receiver, place) in receivers.iter().zip(0u16..) {
            let Some(slot) = self.slots.get_mut(receiver.peer) else {
                let others = receivers.len() - 1 - usize::from(place);
                if self.split_group(&mut split, *receiver, place, others, bytes) {
                    continue;
                }
                let (code, words) = gone(*receiver);
                split.refuse(place, *receiver, code);
                split.explain(|| words.to_owned());
                continue;
            };
            if slot.named_by == this {
                continue;
            }
            slot.named_by = this;
            match slot.over_quota(bytes) {
                None => split.accepted.push(receiver.peer),
                Some(over) => {
                    split.refuse(place, *receiver, over.code());
                    split.explain(|| {
                        format!("{}: {over}", self.state.registry.label(receiver.peer))
                    });
                }
            }
        }
        split
    }

    /// A sequence that has been decided before gets its recorded outcome again. Riding along with
    /// what is on its way, it comes no earlier than the original. One of which nobody remembers who
    /// refused it comes back: that has to be looked up.
    fn repeat(
        &mut self,
        batch: &PublishBatch,
        item: &PublishItem,
        receivers: &[Receiver],
        known: Known,
    ) -> Option<OldRepeat> {
        let (sequence, bytes) = (item.sequence, u64::from(item.frame_len));
        match known {
            Known::Accepted { id, refused: None, may_lack }
                if may_lack || id.number() <= self.shared.maybe_sent =>
            {
                return Some(OldRepeat { sequence, id, receivers: receivers.into(), bytes });
            }
            Known::Accepted { id, refused, .. } => {
                let again = |refused: Refused| {
                    let mut refuse = refuse_again(sequence, &refused, receivers);
                    refuse.id = Some(id);
                    Box::new(refuse)
                };
                let (to, refused) = (Arc::clone(&batch.from), refused.map(again));
                let repeat = Outcome::Repeat { to, sequence, id, refused, bytes };
                self.building.outcomes.push(repeat);
            }
            Known::Refused(refused) => {
                batch.from.refuse(&refuse_again(sequence, &refused, receivers), bytes);
            }
            Known::No(why) => refuse(&batch.from, item, &why),
        }
        None
    }

    fn refuse_all(&mut self, batch: &PublishBatch, item: &PublishItem, why: &Refusal) {
        let refused = Refused {
            code: why.code,
            receivers: SmallVec::new(),
            members: Box::default(),
            detail: why.detail.as_str().into(),
        };
        self.state.producers.record_refusal(batch.producer.index, item.sequence, refused);
        refuse(&batch.from, item, why);
    }

    fn refuse_split(
        &mut self,
        batch: &PublishBatch,
        item: &PublishItem,
        split: Split,
        all_or_nothing: bool,
    ) {
        let partly = all_or_nothing && !split.accepted.is_empty();
        let places = split.all_places();
        let refuse = split.into_refuse(item.sequence, partly.then_some(Code::AllOrNothing));
        let refused = refused_by_place(&refuse, &places);
        self.state.producers.record_refusal(batch.producer.index, item.sequence, refused);
        batch.from.refuse(&refuse, u64::from(item.frame_len));
    }
}

/// A refusal as it is remembered: its receivers by their places, since a repeat may have other
/// aliases for them.
pub(super) fn refused_by_place(refuse: &Refuse, places: &[u16]) -> Refused {
    let mut places = places.iter().copied();
    let codes = refuse.receivers.iter().map(|(_, code)| *code);
    // In this order: a receiver that has no code takes no place.
    let receivers = codes.zip(&mut places).map(|(code, place)| (place, code)).collect();
    let members = refuse.members.iter().zip(&mut places);
    let members = members.map(|((_, code, name), place)| (place, *code, name.clone())).collect();
    Refused { code: refuse.code, receivers, members, detail: refuse.detail.as_str().into() }
}

/// The same refusal, to a repeat.
fn refuse_again(sequence: u64, refused: &Refused, receivers: &[Receiver]) -> Refuse {
    let alias = |place: u16| receivers.get(usize::from(place)).map_or(0, |found| found.alias);
    let receivers = refused.receivers.iter().map(|(place, code)| (alias(*place), *code)).collect();
    let members = refused.members.iter();
    let members = members.map(|(place, code, name)| (alias(*place), *code, name.clone())).collect();
    let (code, detail) = (refused.code, refused.detail.to_string());
    Refuse { sequence, id: None, code, receivers, members, detail }
}

impl Split {
    /// Whether nobody refuses.
    fn is_whole(&self) -> bool {
        self.refused.is_empty() && self.members.is_empty()
    }

    /// The places of those that refuse: of receivers, then of members' groups.
    fn all_places(&self) -> SmallVec<[u16; 4]> {
        let members = self.members.iter().map(|member| member.place);
        self.places.iter().copied().chain(members).collect()
    }

    /// The refusal; `code` is that of the first that refuses if it is not given.
    fn into_refuse(self, sequence: u64, code: Option<Code>) -> Refuse {
        let receiver = self.refused.first().map(|(_, code)| *code);
        let first = receiver.or_else(|| self.members.first().map(|member| member.code));
        let code = code.or(first).unwrap_or(Code::NoReceiver);
        let members = self.members.into_iter();
        let members = members.map(|member| (member.alias, member.code, member.name)).collect();
        Refuse { sequence, id: None, code, receivers: self.refused, members, detail: self.detail }
    }

    pub(super) fn refuse_member(&mut self, place: u16, group: Receiver, name: Name, code: Code) {
        self.members.push(RefusedMember { place, alias: group.alias, name, code });
    }

    pub(super) fn refuse(&mut self, place: u16, receiver: Receiver, code: Code) {
        self.refused.push((receiver.alias, code));
        self.places.push(place);
    }

    /// The first refusal that has more to say than its code is told in words.
    pub(super) fn explain(&mut self, words: impl FnOnce() -> String) {
        if self.detail.is_empty() {
            self.detail = words();
        }
    }
}

impl std::fmt::Display for Over {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Over::Messages { waiting, max } => {
                write!(f, "{waiting} messages wait for it, its quota is {max}; 1 must go first")
            }
            Over::Draining => f.write_str("it is being drained and takes nothing new"),
            Over::Bytes { waiting, more, max } => {
                let needed = (waiting + more).saturating_sub(*max);
                write!(f, "{waiting} bytes wait for it, its quota is {max}; {needed} must go first")
            }
        }
    }
}

/// Bytes that a message's record takes in a batch.
pub(super) fn record_room(receivers: usize, body: usize) -> usize {
    RECORD_HEADER_BYTES + MESSAGE_FIXED_BYTES + 4 * receivers + body
}

/// An alias without a peer never had one; one whose peer has no slot had one that was removed.
fn gone(receiver: Receiver) -> (Code, &'static str) {
    if receiver.peer == PeerId::NONE {
        (Code::UnknownReceiver, "no peer has this name")
    } else {
        (
            Code::StaleAlias,
            "the alias was never declared here, or what it named has been removed since",
        )
    }
}

/// Of a body with options and no original id, whether one of them is a delay.
fn is_delayed(body: &[u8]) -> bool {
    let options = body.get(1).copied().unwrap_or(0);
    options & (option_flags::DELAY | option_flags::DELIVER_AT) != 0
}

/// What a producer may not ask for.
fn forbidden(flags: u8, receivers: &[Receiver]) -> Option<Refusal> {
    if receivers.is_empty() {
        return Some(Refusal::new(Code::NoReceiver, "the publish names no receiver"));
    }
    if flags & (body_flags::ORIGINAL_ID | body_flags::RELEASED) != 0 {
        let detail = "only a node marks a message as handed over";
        return Some(Refusal::new(Code::Unsupported, detail));
    }
    if flags & body_flags::REPLY != 0 {
        if receivers.len() != 1 {
            let detail = format!("a call names exactly one receiver, this one {}", receivers.len());
            return Some(Refusal::new(Code::Unsupported, detail));
        }
        if receivers[0].peer.is_group() {
            return Some(Refusal::new(Code::IsGroup, "a call names one receiver, and no group"));
        }
    }
    None
}

fn refuse(to: &SharedProducer, item: &PublishItem, why: &Refusal) {
    let refuse = Refuse {
        sequence: item.sequence,
        id: None,
        code: why.code,
        receivers: SmallVec::new(),
        members: Vec::new(),
        detail: why.detail.clone(),
    };
    to.refuse(&refuse, u64::from(item.frame_len));
}
