//! Delayed messages whose time has come: from the log into their receivers' queues.
//!
//! ```text
//! due ─► read by number ─► one batch: a note of what is copied, the copies under their ids
//!                                        │ durable
//!                                        ├─► the originals are settled: moved
//!                                        └─► hand-off, as for any message
//! ```
//!
//! One lot after the other, so that a restart only has to ask about the last: what stands in its note and
//! is still open has been copied if the copies are there, and is settled then; nothing enters a queue
//! twice. A receiver that has been removed since is answered for by its removal: its heir gets the message,
//! or it lies with what else was parked, or the copy is settled as purged.

use super::Router;
use super::batch::Outcome;
use super::delay::{At, Due, NOTE_BYTES};
use super::disposal::copy_room;
use super::jobs::is_copy;
use crate::clock;
use crate::events;
use crate::journal::{Journal, Lane, Page, Read, ReadError, Settle, Stored};
use crate::peer::EnqueuedMessage;
use actix::prelude::*;
use futures_util::future::join_all;
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use restante_protocol::job::Copies;
use restante_protocol::message::{Body, Delay};
use restante_protocol::record::{
    Outcome as End, ParkRecord, RECORD_HEADER_BYTES, RecordKind, SettleDetail, SettleRecord,
    put_message_record, put_record,
};
use restante_protocol::refusal::Refusal;
use restante_protocol::registry::Destination;
use restante_protocol::state::StateEvent;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Messages, their bytes and deliveries released in one turn.
const RELEASE_MESSAGES: usize = 1_024;
const RELEASE_BYTES: u64 = 1024 * 1024;
const RELEASE_DELIVERIES: usize = 16 * 1_024;
/// Messages and bytes of a page when those of an earlier process are read.
const PAGE_MESSAGES: usize = 1_024;
const PAGE_BYTES: usize = 1024 * 1024;
/// Most bytes of the note that stands before the copies: a number for each, nine bytes, and the rest.
const NOTE_BYTES_MAX: usize = 16 * 1024;
/// Reads under way: there is one reader, and every peer's next page waits behind them.
const READS_AT_ONCE: usize = 32;
/// How long to wait after the journal could not be read or written.
const RETRY: Duration = Duration::from_secs(1);

/// Copies of delayed messages on their way to disk.
pub(super) struct Released {
    /// Number of the first copy; the others follow.
    first: MessageNumber,
    originals: Vec<MessageNumber>,
    /// Copies that their receivers' removal purges.
    purged: BTreeMap<PeerId, Vec<MessageNumber>>,
    /// Removed peers they were for. Until the copies are durable, nothing else says that there is
    /// something of theirs.
    left: Vec<PeerId>,
}

/// What becomes of a delayed message for one of its receivers.
#[derive(Clone, Copy)]
enum Fate {
    /// It enters this peer's queue.
    Queued(PeerId),
    /// It lies with what else a removed peer has left.
    Left(PeerId),
    /// It is purged, as what else the peer had.
    Purged(PeerId),
}

/// A message that is about to be released.
struct Going {
    due: Due,
    stored: Stored,
    fates: SmallVec<[Fate; 4]>,
}

impl Router {
    /// Begins: settles what the process before has copied and not settled, reads what it has left, and
    /// then releases what is due.
    pub(super) fn begin_delays(&mut self, ctx: &mut Context<Self>) {
        let Some(copies) = self.state.released.clone() else {
            return self.read_delayed(0, ctx);
        };
        let (journal, node) = (Arc::clone(&self.journal), self.shared.node);
        let found = async move { copied(&*journal, node, &copies).await }.into_actor(self);
        ctx.spawn(found.map(|found, router, ctx| match found {
            Ok(moved) => {
                router.settle_delayed(moved);
                router.read_delayed(0, ctx);
            }
            Err(_) => drop(ctx.run_later(RETRY, Router::begin_delays)),
        }));
    }

    fn read_delayed(&mut self, after: MessageNumber, ctx: &mut Context<Self>) {
        let left = self.journal.backlog(PeerId::DELAYED);
        let through = left.newest.min(self.shared.maybe_sent);
        if after >= through || left.messages == 0 {
            self.delays.have_been_read(left.newest.min(self.shared.maybe_sent));
            if self.delays.len() > 0 {
                events::delayed_waiting(self.delays.len() as u64);
            }
            return self.arm_delays(ctx);
        }
        let (bytes_max, messages_max) = (PAGE_BYTES, PAGE_MESSAGES);
        let (peer, lane) = (PeerId::DELAYED, Lane::Open);
        let read = Read { peer, lane, after, through, bytes_max, messages_max };
        let page = self.journal.next(read).into_actor(self);
        ctx.spawn(page.map(move |page, router, ctx| router.delayed_page(after, page, ctx)));
    }

    fn delayed_page(
        &mut self,
        after: MessageNumber,
        page: Result<Page, ReadError>,
        ctx: &mut Context<Self>,
    ) {
        let page = match page {
            Ok(page) => page,
            Err(ReadError::Damaged { number, detail }) => {
                self.set_delayed_aside(number, &detail);
                Page { through: number, ..Page::default() }
            }
            Err(ReadError::Unavailable(_)) => {
                ctx.run_later(RETRY, move |router, ctx| router.read_delayed(after, ctx));
                return;
            }
        };
        for Stored { number, accepted_ms, body } in &page.messages {
            let read = Body::parse(body).unwrap_or_default();
            let at = match read.delay {
                Some(Delay::For(ms)) => {
                    let delay = Duration::from_millis(ms.get());
                    At::Time(self.shared.anchors.lock().end_of_life(*number, *accepted_ms, delay))
                }
                Some(Delay::Until(ms)) => At::Wall(ms.get()),
                None => {
                    self.set_delayed_aside(*number, "it does not say until when");
                    continue;
                }
            };
            let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
            self.delays.insert(Due { at, number: *number, bytes });
            self.hold(read.delayed_for(), bytes);
            self.shared.kept.fetch_add(read.delayed_for().count() as i64, Relaxed);
        }
        self.read_delayed(page.through, ctx);
    }

    /// A delayed message that is damaged on disk is parked where it is and named. Nobody knows for whom
    /// it was any more: until the next start it counts as delayed.
    fn set_delayed_aside(&mut self, number: MessageNumber, why: &str) {
        let finding = format!("message {number}, which was delayed, is set aside: {why}");
        events::journal_finding(&finding);
        self.delays.close(number);
        let (peer, at_ms, attempts) = (PeerId::DELAYED, clock::wall_ms(), 0);
        self.journal.park(ParkRecord { peer, number, at_ms, attempts, reason: why.to_owned() });
    }

    /// Arms one timer for the next whose time comes.
    pub(super) fn arm_delays(&mut self, ctx: &mut Context<Self>) {
        if !self.delays.are_read() || self.delays.is_releasing {
            return;
        }
        let now = clock::now();
        let Some(look) = self.delays.next_look(now, clock::wall_ms()) else { return };
        let look = look.max(self.delays.not_before);
        if let Some((armed, handle)) = self.delays.timer {
            if armed <= look {
                return;
            }
            ctx.cancel_future(handle);
        }
        let handle = ctx.run_later(look.since(now), |router, ctx| {
            router.delays.timer = None;
            router.release(ctx);
        });
        self.delays.timer = Some((look, handle));
    }

    /// Reads the next whose time has come, to append them for their receivers.
    fn release(&mut self, ctx: &mut Context<Self>) {
        if self.delays.is_releasing {
            return;
        }
        if self.door().is_some() {
            self.delays.not_before = clock::now() + RETRY;
            return self.arm_delays(ctx);
        }
        let now = (clock::now(), clock::wall_ms());
        let due = self.delays.take_due(now, RELEASE_MESSAGES, RELEASE_BYTES);
        if due.is_empty() {
            return self.arm_delays(ctx);
        }
        self.delays.is_releasing = true;
        let journal = Arc::clone(&self.journal);
        let read = async move { read_each(&*journal, due).await }.into_actor(self);
        ctx.spawn(read.map(|found, router, ctx| {
            if !router.append_due(found) {
                router.delays.is_releasing = false;
                router.arm_delays(ctx);
            }
        }));
    }

    /// Appends what was read; whether anything is on its way to disk now.
    fn append_due(&mut self, found: Vec<(Due, Result<Option<Stored>, ReadError>)>) -> bool {
        self.append_building();
        let mut left = self.caps.batch_bytes_max.saturating_sub(NOTE_BYTES_MAX);
        let (mut going, mut deliveries) = (Vec::with_capacity(found.len()), 0);
        let mut found = found.into_iter();
        // Where one has to wait, those behind it do too: they may be for the same receivers.
        let waits = loop {
            let Some((due, stored)) = found.next() else { break None };
            let stored = match stored {
                Ok(Some(stored)) => stored,
                // Settled by now.
                Ok(None) => {
                    self.delays.close(due.number);
                    continue;
                }
                Err(ReadError::Damaged { detail, .. }) => {
                    self.set_delayed_aside(due.number, &detail);
                    continue;
                }
                Err(ReadError::Unavailable(_)) => {
                    self.release_later(due);
                    break None;
                }
            };
            // A node that stops leaves them to its next start.
            let bytes = copy_room(&stored);
            let is_full = bytes > left || deliveries >= RELEASE_DELIVERIES;
            if self.draining || (is_full && !going.is_empty()) {
                break Some(due);
            }
            if bytes + NOTE_BYTES > self.caps.record_bytes_max {
                let (number, max) = (due.number, self.caps.record_bytes_max);
                events::journal_finding(&format!(
                    "message {number} stays delayed until the next start: a copy has {bytes} bytes, a record takes {max}"
                ));
                continue;
            }
            let Some(fates) = self.fates_of(&stored) else {
                self.release_later(due);
                break None;
            };
            left = left.saturating_sub(bytes);
            deliveries += fates.len();
            going.push(Going { due, stored, fates });
        };
        waits
            .into_iter()
            .chain(found.map(|(due, _)| due))
            .for_each(|due| self.delays.put_back(due));
        !going.is_empty() && self.append_going(going)
    }

    /// Not now, though it is due.
    fn release_later(&mut self, due: Due) {
        self.delays.put_back(due);
        self.delays.not_before = clock::now() + RETRY;
    }

    /// What becomes of a message for each of its receivers as they are now; `None` if that is not to be
    /// said yet.
    fn fates_of(&mut self, stored: &Stored) -> Option<SmallVec<[Fate; 4]>> {
        // A removed peer's heir may be among the receivers itself; those are named once already.
        self.publishes += 1;
        let mut fates = SmallVec::new();
        let read = Body::parse(&stored.body).unwrap_or_default();
        for peer in read.delayed_for() {
            let registry = &self.state.registry;
            let to = match (registry.get(peer), registry.destination(peer)) {
                (Some(_), _) => peer,
                (None, Some(Destination::Peer(heir))) => heir,
                (None, Some(Destination::Purge)) => {
                    fates.push(Fate::Purged(peer));
                    continue;
                }
                // What a removed peer has left must not change while it is counted.
                (None, Some(Destination::Park) | None) if self.delays.is_retiring(peer) => {
                    return None;
                }
                // Of one that is not remembered nobody can say what was to be done: it is kept.
                (None, Some(Destination::Park) | None) => {
                    fates.push(Fate::Left(peer));
                    continue;
                }
            };
            // One whose record is on its way to disk has no slot yet.
            let slot = self.slots.get_mut(to)?;
            if slot.named_by != self.publishes {
                slot.named_by = self.publishes;
                fates.push(Fate::Queued(to));
            }
        }
        Some(fates)
    }

    /// Appends a note of what is copied, and the copies; whether the journal took them.
    fn append_going(&mut self, going: Vec<Going>) -> bool {
        let accepted_ms = self.accepted_now();
        // The note stands first in the batch. Nobody else takes a number in this turn.
        let first = self.journal.next_number() + 1;
        let originals: Vec<MessageNumber> = going.iter().map(|going| going.due.number).collect();
        let copies = Copies { first, accepted_ms, originals: originals.clone() };
        let note = StateEvent::Released(copies);
        let encoded = match note.encode() {
            Ok(encoded) => encoded,
            Err(why) => {
                events::journal_finding(&format!("a note of delayed messages: {why}"));
                going.into_iter().for_each(|going| self.release_later(going.due));
                return false;
            }
        };
        self.building.accepted_ms = accepted_ms;
        let placed = put_record(&mut self.building.bytes, &encoded);
        self.building.place(RecordKind::Admin, placed);
        let mut purged = BTreeMap::<PeerId, Vec<MessageNumber>>::new();
        for (going, copy) in going.iter().zip(first..) {
            self.copy_for_receivers(going);
            for fate in &going.fates {
                if let Fate::Purged(peer) = fate {
                    purged.entry(*peer).or_default().push(copy);
                }
            }
        }
        let Some(begins) = self.append_building() else {
            // They are where they were.
            going.into_iter().for_each(|going| self.release_later(going.due));
            return false;
        };
        debug_assert_eq!(begins, first - 1, "the note stands before its copies");
        if let Err(why) = self.state.apply(&note) {
            events::journal_finding(&format!("a note of delayed messages: {why}"));
        }
        // From now on the copies count, and the originals do not.
        let mut left = Vec::new();
        for Going { due, stored, .. } in going {
            let read = Body::parse(&stored.body).unwrap_or_default();
            for peer in read.delayed_for() {
                match self.slots.get_mut(peer) {
                    Some(slot) => slot.let_go(u64::from(due.bytes)),
                    None => left.push(peer),
                }
            }
            self.shared.kept.fetch_sub(read.delayed_for().count() as i64, Relaxed);
        }
        let released = Released { first, originals, purged, left };
        self.once_durable(Outcome::Released(Box::new(released)));
        true
    }

    /// Writes a delayed message anew, without its delay and under its id.
    fn copy_for_receivers(&mut self, going: &Going) {
        let Going { stored, fates, .. } = going;
        let read = Body::parse(&stored.body).unwrap_or_default();
        let id = self.id(stored.accepted_ms, stored.number);
        let body =
            Body { original_id: Some(id), released: true, delay: None, receivers: None, ..read };
        let mut bytes = Vec::with_capacity(body.encoded_len());
        body.encode(&mut bytes);
        let peers: SmallVec<[PeerId; 4]> = fates
            .iter()
            .map(|(Fate::Queued(peer) | Fate::Left(peer) | Fate::Purged(peer))| *peer)
            .collect();
        let building = &mut self.building;
        let index = building.next_index();
        let ms = building.accepted_ms;
        let placed = put_message_record(&mut building.bytes, ms, 0, 0, &peers, &bytes);
        let body_end = placed.offset + RECORD_HEADER_BYTES + placed.body_bytes;
        building.place(RecordKind::Message, placed);
        // A batch stays below 4 GiB by far, so its offsets fit.
        let (body_at, body_len) = ((body_end - bytes.len()) as u32, bytes.len() as u32);
        let (key, has_options) = (body.key_hash(), body.ttl_ms.is_some());
        let message = EnqueuedMessage { index, body_at, body_len, key, has_options };
        for fate in fates {
            match fate {
                Fate::Queued(peer) => {
                    building.deliveries += 1;
                    if self.slots.get_mut(*peer).is_some_and(|slot| slot.gather(message)) {
                        building.touched.push(*peer);
                    }
                }
                Fate::Left(_) => building.deliveries += 1,
                Fate::Purged(_) => {}
            }
        }
    }

    /// Copies are durable.
    pub(super) fn copies_released(&mut self, released: Released, ctx: &mut Context<Self>) {
        let Released { first, originals, purged, left } = released;
        self.let_go(left.into_iter(), 0);
        self.settle_delayed(originals.into_iter().zip(first..).collect());
        for (peer, copies) in purged {
            let removed = self.state.registry.removed(peer);
            let (label, by) = removed.map_or_else(
                || (self.state.registry.label(peer), String::new()),
                |removed| (removed.label(), removed.by.clone()),
            );
            let why = "they had been delayed";
            events::messages_purged(&label, copies.len() as u64, Some(why), &by);
            self.settle_released(peer, End::Purged, 0, copies, Vec::new());
        }
        self.delays.is_releasing = false;
        self.arm_delays(ctx);
    }

    /// Settles delayed messages that have been copied: numbers, and those of the copies, which go into
    /// the ledger, so that a trace can follow the message.
    fn settle_delayed(&mut self, mut moved: Vec<(MessageNumber, MessageNumber)>) {
        moved.sort_unstable();
        let mut details = Vec::with_capacity(moved.len());
        for (number, copy) in moved {
            self.delays.close(number);
            let value = copy.to_be_bytes().to_vec();
            details.push(SettleDetail { number, attempts: 0, value });
        }
        let numbers = details.iter().map(|detail| detail.number).collect();
        self.settle_released(PeerId::DELAYED, End::Moved, self.delays.floor(), numbers, details);
    }

    fn settle_released(
        &self,
        peer: PeerId,
        outcome: End,
        floor: MessageNumber,
        numbers: Vec<MessageNumber>,
        details: Vec<SettleDetail>,
    ) {
        if numbers.is_empty() {
            return;
        }
        let above = numbers.iter().copied().filter(|number| *number > floor).collect();
        let (at_ms, moved_to) = (clock::wall_ms(), PeerId::NONE);
        let record = SettleRecord { peer, at_ms, outcome, moved_to, floor, above, details };
        self.journal.settle(Settle { record, numbers });
    }
}

/// Of one message, if it is open.
fn only(number: MessageNumber) -> Read {
    Read {
        peer: PeerId::DELAYED,
        lane: Lane::Open,
        after: number - 1,
        through: number,
        bytes_max: 1,
        messages_max: 1,
    }
}

/// Reads delayed messages by their numbers.
async fn read_each(
    journal: &dyn Journal,
    due: Vec<Due>,
) -> Vec<(Due, Result<Option<Stored>, ReadError>)> {
    let mut found = Vec::with_capacity(due.len());
    for some in due.chunks(READS_AT_ONCE) {
        let pages = join_all(some.iter().map(|due| journal.next(only(due.number)))).await;
        let pages = pages.into_iter().map(|page| page.map(|page| page.messages.into_iter().next()));
        found.extend(some.iter().copied().zip(pages));
    }
    found
}

/// Which of the messages that a note speaks of are still open and have been copied, and their copies: the
/// end of a log may have been cut off behind the note.
async fn copied(
    journal: &dyn Journal,
    node: NodeTag,
    copies: &Copies,
) -> Result<Vec<(MessageNumber, MessageNumber)>, Refusal> {
    let mut moved = Vec::new();
    for (number, copy) in copies.originals.iter().copied().zip(copies.first..) {
        match journal.next(only(number)).await {
            Ok(page) => {
                for stored in page.messages {
                    if is_copy(journal, node, &stored, copy, copies.accepted_ms).await? {
                        moved.push((number, copy));
                    }
                }
            }
            // It is set aside when its turn to be read comes.
            Err(ReadError::Damaged { .. }) => {}
            Err(ReadError::Unavailable(why)) => return Err(why),
        }
    }
    Ok(moved)
}
