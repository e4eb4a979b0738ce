//! The attachments of a connection: what its receivers say, on the way to their peers.
//!
//! Acks of one read become one message per slot, however many frames they came in. A peer whose
//! mailbox is full gets one message that waits for its turn there; what is said meanwhile collects
//! here up to a bound, and is dropped beyond it: an ack that is lost only redelivers.
//!
//! ```text
//! Offered ──accepted──► Open ──detach──► Leaving ──► (gone)
//!    └─────refused────────┴── closed by its peer ──────▲
//! ```
//!
//! Whatever way a connection ends, also by a panic of its task, each peer hears of it: dropping a
//! slot sends [`LinkDown`].

use super::outbox::{Congested, Outbox, OutboxLink};
use super::tasks::{Done, Tasks};
use actix::Addr;
use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Handler, Message};
use bytes::Bytes;
use restante_actors::peer::{Acked, AckedValue, Granted, LinkDown, Nacked, Peer, Writable};
use restante_protocol::frame::{Ack, AckValue, Grant, Nack, TagRange};
use restante_protocol::limits::SLOTS_MAX;
use restante_protocol::refusal::{Code, Refusal};
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Ack ranges that may wait for a peer that is busy.
const RANGES_MAX: usize = 4_096;
/// Values, nacks and grants that may wait for a peer that is busy, and the bytes of their texts.
const WORDS_MAX: usize = 1_024;
const WORD_BYTES_MAX: usize = 1024 * 1024;

type Ranges = SmallVec<[TagRange; 2]>;

/// See the module.
#[derive(Default)]
pub(super) struct Slots {
    by_slot: HashMap<u32, Slot, foldhash::fast::RandomState>,
    /// Slots that have something to forward.
    touched: Vec<u32>,
    /// Acks that were dropped because a peer was too busy to take them.
    dropped: u64,
}

struct Slot {
    link: Arc<OutboxLink>,
    state: State,
    /// Ascending and disjoint, unless it says `unordered`.
    acked: Ranges,
    unordered: bool,
    words: VecDeque<Word>,
    word_bytes: usize,
    /// A message waits for its turn in the peer's mailbox.
    sending: bool,
    touched: bool,
}

enum State {
    /// The peer has been asked and has not answered.
    Offered,
    Open(Addr<Peer>),
    /// Detached by the receiver: nothing more is delivered, what was acked before still counts.
    Leaving(Addr<Peer>),
}

/// What is said about one delivery, or about all to come.
pub(super) enum Word {
    Value(AckedValue),
    Nack(Nacked),
    Grant(Granted),
}

/// A link that has been offered to its peer and not been taken over by a slot. Dropping it takes the
/// offer back.
pub(super) struct Offer {
    pub(super) peer: Addr<Peer>,
    pub(super) number: u64,
    /// Whether [`Offer::keep`] has been called.
    kept: bool,
}

impl Offer {
    pub(super) fn new(peer: Addr<Peer>, number: u64) -> Offer {
        Offer { peer, number, kept: false }
    }

    /// The link is a slot's now, or the peer has refused it.
    pub(super) fn keep(mut self) -> Addr<Peer> {
        self.kept = true;
        self.peer.clone()
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if !self.kept {
            link_down(&self.peer, self.number, "the connection ended while it attached");
        }
    }
}

/// Tells a peer that a link is gone. Not to be lost, so it goes through a fresh address, which always
/// has a place in the mailbox; at most one per link.
pub(super) fn link_down(peer: &Addr<Peer>, number: u64, why: &str) {
    let down = LinkDown { number, connected: true, why: why.to_owned() };
    // A peer that is gone need not hear of it.
    let _ = peer.clone().try_send(down);
}

impl Slots {
    /// Reserves a slot for a receiver that wants to attach.
    ///
    /// # Errors
    /// The number is taken or out of bounds.
    pub(super) fn offer(
        &mut self,
        outbox: &Arc<Outbox>,
        slot: u32,
        number: u64,
    ) -> Result<Arc<OutboxLink>, Refusal> {
        if slot >= SLOTS_MAX {
            let detail = format!("slot {slot} is not below {SLOTS_MAX}");
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        if self.by_slot.contains_key(&slot) {
            let detail = format!("slot {slot} of this connection is attached already");
            return Err(Refusal::new(Code::AlreadyAttached, detail));
        }
        let link = OutboxLink::attached(outbox, slot, number);
        self.by_slot.insert(slot, Slot::new(Arc::clone(&link), State::Offered));
        Ok(link)
    }

    /// The link of a dialled connection, which its peer has taken already.
    pub(super) fn insert_dialled(&mut self, link: Arc<OutboxLink>, peer: Addr<Peer>) {
        self.by_slot.insert(0, Slot::new(link, State::Open(peer)));
    }

    /// The peer has taken the link. The receiver is told before deliveries are let through by
    /// [`Slots::open`].
    pub(super) fn accepted(&mut self, slot: u32, offer: Offer) {
        match self.by_slot.get_mut(&slot) {
            Some(entry) if entry.link.number() == offer.number => {
                entry.state = State::Open(offer.keep());
            }
            // Closed by its peer before the answer was seen.
            _ => drop(offer.keep()),
        }
    }

    /// The peer has refused the link.
    pub(super) fn refused(&mut self, slot: u32, number: u64) {
        self.remove(slot, number);
    }

    /// Lets deliveries through.
    pub(super) fn open(&mut self, slot: u32) {
        let Some(Slot { link, state: State::Open(peer), .. }) = self.by_slot.get(&slot) else {
            return;
        };
        if link.open() {
            writable(link, peer);
        }
    }

    /// The receiver leaves a slot. Its peer and the number of the link, or why not.
    pub(super) fn leave(&mut self, slot: u32) -> Result<(Addr<Peer>, u64), Refusal> {
        let entry = self.by_slot.get_mut(&slot);
        let Some(Slot { link, state, .. }) = entry else {
            let detail = format!("slot {slot} of this connection is not attached");
            return Err(Refusal::new(Code::NotFound, detail));
        };
        let State::Open(peer) = state else {
            let detail = format!("slot {slot} is still being attached or detached");
            return Err(Refusal::new(Code::OutOfTurn, detail));
        };
        let peer = peer.clone();
        link.shut();
        *state = State::Leaving(peer.clone());
        Ok((peer, link.number()))
    }

    /// A link has ended otherwise than by this connection, or has been left for good.
    pub(super) fn remove(&mut self, slot: u32, number: u64) {
        if self.by_slot.get(&slot).is_some_and(|entry| entry.link.number() == number) {
            self.by_slot.remove(&slot);
        }
    }

    /// There is room again for links that found none.
    pub(super) fn writable(&mut self, congested: &[Congested]) {
        for Congested { slot, number } in congested {
            if let Some(Slot { link, state: State::Open(peer), .. }) = self.by_slot.get(slot)
                && link.number() == *number
            {
                writable(link, peer);
            }
        }
    }

    /// Deliveries that an ack names. Acks for a slot that is not attached are ignored: its peer may
    /// have closed it while they were on their way.
    #[inline]
    pub(super) fn ack(&mut self, ack: Ack) -> u64 {
        let Some(entry) = self.entry(ack.slot) else { return 0 };
        let deliveries = ack.ranges.iter().fold(0, |sum: u64, range| {
            sum.saturating_add(range.last - range.first).saturating_add(1)
        });
        if entry.acked.is_empty() {
            entry.acked = ack.ranges;
            return deliveries;
        }
        let mut dropped = 0;
        for range in ack.ranges {
            if let Some(last) = entry.acked.last_mut()
                && last.last.checked_add(1) == Some(range.first)
            {
                last.last = range.last;
                continue;
            }
            entry.unordered |= entry.acked.last().is_some_and(|last| range.first <= last.last);
            if entry.acked.len() < RANGES_MAX {
                entry.acked.push(range);
            } else {
                dropped += 1;
            }
        }
        self.dropped += dropped;
        deliveries
    }

    pub(super) fn ack_value(&mut self, ack: &AckValue<'_>) {
        let Some(entry) = self.entry(ack.slot) else { return };
        let number = entry.link.number();
        let value = Bytes::copy_from_slice(ack.value);
        let kept = entry.say(Word::Value(AckedValue { number, tag: ack.tag, value }));
        self.dropped += u64::from(!kept);
    }

    pub(super) fn nack(&mut self, nack: &Nack<'_>) {
        let Some(entry) = self.entry(nack.slot) else { return };
        let kept = entry.say(Word::Nack(Nacked {
            number: entry.link.number(),
            tag: nack.tag,
            permanent: nack.permanent,
            retry_after_ms: nack.retry_after_ms,
            reason: nack.reason.to_owned(),
        }));
        self.dropped += u64::from(!kept);
    }

    pub(super) fn grant(&mut self, grant: &Grant) {
        let Some(entry) = self.entry(grant.slot) else { return };
        let granted = Granted { number: entry.link.number(), messages: grant.messages };
        // Cumulative: the newest says all that the ones before it said.
        if let Some(Word::Grant(last)) = entry.words.back_mut() {
            last.messages = last.messages.max(granted.messages);
        } else {
            let kept = entry.say(Word::Grant(granted));
            self.dropped += u64::from(!kept);
        }
    }

    /// Sends on what has been said, as far as the peers take it now.
    pub(super) fn forward(&mut self, tasks: &mut Tasks) {
        while let Some(slot) = self.touched.pop() {
            if let Some(entry) = self.by_slot.get_mut(&slot) {
                entry.touched = false;
                entry.forward(slot, tasks);
            }
        }
    }

    /// The message that waited for a peer has been taken.
    pub(super) fn sent(&mut self, slot: u32, number: u64, tasks: &mut Tasks) {
        if let Some(entry) = self.by_slot.get_mut(&slot)
            && entry.link.number() == number
        {
            entry.sending = false;
            entry.forward(slot, tasks);
        }
    }

    /// Everything said so far, with whom it is for: for a flush, which waits until the peers have
    /// taken it.
    pub(super) fn take_unsent(&mut self) -> Vec<Unsent> {
        let entries = self.by_slot.values_mut();
        entries.filter_map(Slot::take_unsent).collect()
    }

    /// Tells every peer that the connection has ended.
    pub(super) fn end(&mut self, why: &str) {
        for (_, entry) in self.by_slot.drain() {
            entry.link.shut();
            if let State::Open(peer) | State::Leaving(peer) = &entry.state {
                link_down(peer, entry.link.number(), why);
            }
        }
    }

    /// How many acks, values, nacks and grants have been dropped so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    #[inline]
    fn entry(&mut self, slot: u32) -> Option<&mut Slot> {
        let entry = self.by_slot.get_mut(&slot)?;
        if !entry.touched {
            entry.touched = true;
            self.touched.push(slot);
        }
        Some(entry)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        self.end("the connection's task ended");
    }
}

/// What one peer has not been told yet.
pub(super) struct Unsent {
    pub(super) peer: Addr<Peer>,
    pub(super) acked: Option<Acked>,
    pub(super) words: VecDeque<Word>,
}

impl Slot {
    fn new(link: Arc<OutboxLink>, state: State) -> Slot {
        Slot {
            link,
            state,
            acked: Ranges::new(),
            unordered: false,
            words: VecDeque::new(),
            word_bytes: 0,
            sending: false,
            touched: false,
        }
    }

    fn peer(&self) -> Option<&Addr<Peer>> {
        match &self.state {
            State::Offered => None,
            State::Open(peer) | State::Leaving(peer) => Some(peer),
        }
    }

    /// Keeps a word to be forwarded; `false` if there are too many already.
    fn say(&mut self, word: Word) -> bool {
        let bytes = word.bytes();
        let kept = self.words.len() < WORDS_MAX && self.word_bytes + bytes <= WORD_BYTES_MAX;
        if kept {
            self.word_bytes += bytes;
            self.words.push_back(word);
        }
        kept
    }

    fn take_acked(&mut self) -> Option<Acked> {
        let number = self.link.number();
        let mut ranges = std::mem::take(&mut self.acked);
        if std::mem::take(&mut self.unordered) {
            merge(&mut ranges);
        }
        (!ranges.is_empty()).then_some(Acked { number, ranges })
    }

    /// Sends until the peer's mailbox is full; what was refused then waits there for its turn.
    fn forward(&mut self, slot: u32, tasks: &mut Tasks) {
        let number = self.link.number();
        if let Some(acked) = (!self.sending).then(|| self.take_acked()).flatten() {
            self.sending = !self.send(acked, slot, number, tasks);
        }
        while !self.sending
            && let Some(word) = self.words.pop_front()
        {
            self.word_bytes -= word.bytes();
            let sent = match word {
                Word::Value(value) => self.send(value, slot, number, tasks),
                Word::Nack(nack) => self.send(nack, slot, number, tasks),
                Word::Grant(grant) => self.send(grant, slot, number, tasks),
            };
            self.sending = !sent;
        }
    }

    /// `false`: the message waits for a place in the mailbox, [`Done::Sent`] follows.
    fn send<M>(&self, message: M, slot: u32, number: u64, tasks: &mut Tasks) -> bool
    where
        M: Message<Result = ()> + Send + 'static,
        Peer: Handler<M>,
        <Peer as Actor>::Context: ToEnvelope<Peer, M>,
    {
        let Some(peer) = self.peer() else { return true };
        match peer.try_send(message) {
            // Whoever is gone has taken its link along; there is nobody to tell.
            Ok(()) | Err(SendError::Closed(_)) => true,
            Err(SendError::Full(message)) => {
                let request = peer.send(message);
                tasks.spawn(async move {
                    // A peer that has gone meanwhile needs no acks.
                    let _ = request.await;
                    Done::Sent { slot, number }
                });
                false
            }
        }
    }

    fn take_unsent(&mut self) -> Option<Unsent> {
        let acked = self.take_acked();
        let words = std::mem::take(&mut self.words);
        self.word_bytes = 0;
        let peer = self.peer()?.clone();
        Some(Unsent { peer, acked, words })
    }
}

impl Word {
    fn bytes(&self) -> usize {
        match self {
            Word::Value(value) => value.value.len(),
            Word::Nack(nack) => nack.reason.len(),
            Word::Grant(_) => 0,
        }
    }
}

/// What several frames have acked as ascending, disjoint ranges: no tag is named twice to a peer,
/// which looks at each.
fn merge(ranges: &mut Ranges) {
    ranges.sort_unstable_by_key(|range| range.first);
    ranges.dedup_by(|next, range| {
        let joins = next.first <= range.last.saturating_add(1);
        if joins {
            range.last = range.last.max(next.last);
        }
        joins
    });
}

fn writable(link: &OutboxLink, peer: &Addr<Peer>) {
    link.note_writable();
    // As with LinkDown: not to be lost, at most one per link.
    let _ = peer.clone().try_send(Writable { number: link.number() });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_often_a_tag_is_acked_in_one_read_its_peer_hears_of_it_once() {
        let outbox = Outbox::new(1, 1);
        let mut slots = Slots::default();
        slots.offer(&outbox, 3, 77).unwrap();
        let range = |first, last| TagRange { first, last };
        for frame in
            [&[range(5, 9)][..], &[range(1, 3), range(7, 7)], &[range(2, 5)], &[range(11, 12)]]
        {
            slots.ack(Ack { slot: 3, ranges: frame.into() });
        }
        let acked = slots.by_slot.get_mut(&3).unwrap().take_acked().unwrap();
        assert_eq!(acked.ranges[..], [range(1, 9), range(11, 12)]);
        slots.ack(Ack { slot: 3, ranges: [range(1, 2), range(4, 4)][..].into() });
        let acked = slots.by_slot.get_mut(&3).unwrap().take_acked().unwrap();
        assert_eq!(acked.ranges[..], [range(1, 2), range(4, 4)]);
    }
}
