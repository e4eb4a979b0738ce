//! The attachments of a connection: what its receivers say, on the way to their peers.
//!
//! Acks of one read become one message per slot, however many frames they came in. A peer whose
//! mailbox is full gets one message that waits for its turn there; what is said meanwhile collects
//! here. Nothing of it is ever dropped: a nack or a value that was lost would have its message
//! delivered again, and a flush would be answered untruly. Once more waits than [`KEPT_BYTES_MAX`],
//! the connection ends, which both sides hear of.
//!
//! ```text
//! Offered ──accepted──► Open ──detach──► Leaving ──► (gone)
//!    └─────refused────────┴── closed by its peer ──────▲
//! ```
//!
//! A link that its peer has taken and closed again before the attach was answered has been refused.
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
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of acks, values and nacks of a connection that may wait for peers that are busy, beside
/// those of the read that is being dealt with: room for a short answer to each message of the
/// largest window.
const KEPT_BYTES_MAX: usize = 8 * 1024 * 1024;

type Ranges = SmallVec<[TagRange; 2]>;

/// See the module.
#[derive(Default)]
pub(super) struct Slots {
    by_slot: HashMap<u32, Slot, foldhash::fast::RandomState>,
    /// Slots that have something to forward.
    touched: Vec<u32>,
    /// Bytes that wait for peers that are busy.
    kept: Rc<Cell<usize>>,
}

struct Slot {
    link: Arc<OutboxLink>,
    state: State,
    /// Ascending and disjoint, unless it says `unordered`.
    acked: Ranges,
    unordered: bool,
    words: VecDeque<Word>,
    word_bytes: usize,
    /// The highest grant that has not been sent on. Apart from the words, and kept while the peer
    /// has not answered yet: a receiver says it once.
    granted: Option<u64>,
    /// What is counted of all that.
    kept: Kept,
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

/// What is said about one delivery.
enum Word {
    Value(AckedValue),
    Nack(Nacked),
}

/// A share of what waits for peers that are busy; dropping it takes it out of the sum.
pub(super) struct Kept {
    sum: Rc<Cell<usize>>,
    bytes: usize,
}

impl Kept {
    fn none(sum: &Rc<Cell<usize>>) -> Kept {
        Kept { sum: Rc::clone(sum), bytes: 0 }
    }

    fn set(&mut self, bytes: usize) {
        self.sum.set(self.sum.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.set(0);
    }
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
    let down = LinkDown { number, why: why.to_owned() };
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
        let kept = Kept::none(&self.kept);
        self.by_slot.insert(slot, Slot::new(Arc::clone(&link), State::Offered, kept));
        Ok(link)
    }

    /// The link of a dialled connection, which its peer has taken already.
    pub(super) fn insert_dialled(&mut self, link: Arc<OutboxLink>, peer: Addr<Peer>) {
        let kept = Kept::none(&self.kept);
        self.by_slot.insert(0, Slot::new(link, State::Open(peer), kept));
    }

    /// The peer has taken the link. The receiver is told before deliveries are let through by
    /// [`Slots::open`]. What it has been granted meanwhile is sent on with the next
    /// [`Slots::forward`].
    ///
    /// # Errors
    /// The peer has closed it again, and the slot is free.
    pub(super) fn accepted(&mut self, slot: u32, offer: Offer) -> Result<(), Refusal> {
        let (number, peer) = (offer.number, offer.keep());
        let Some(entry) = self.entry(slot).filter(|entry| entry.link.number() == number) else {
            debug_assert!(false, "a slot that was offered stays until its peer has answered");
            return Err(Refusal::new(Code::NotFound, "the attachment has ended"));
        };
        if let Some(why) = entry.link.refused().cloned() {
            self.by_slot.remove(&slot);
            return Err(why);
        }
        entry.state = State::Open(peer);
        Ok(())
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

    /// The receiver leaves a slot: its peer is told what the receiver has said, and that it has left.
    ///
    /// # Errors
    /// It is not attached, or not any more, or not yet.
    pub(super) fn leave(&mut self, slot: u32) -> Result<Left, Refusal> {
        let Some(entry) = self.by_slot.get_mut(&slot) else {
            let detail = format!("slot {slot} of this connection is not attached");
            return Err(Refusal::new(Code::NotFound, detail));
        };
        let State::Open(peer) = &entry.state else {
            let detail = format!("slot {slot} is still being attached or detached");
            return Err(Refusal::new(Code::OutOfTurn, detail));
        };
        let (peer, number) = (peer.clone(), entry.link.number());
        entry.link.shut();
        let told = entry.unsent_to(peer.clone()).tell();
        link_down(&peer, number, "the receiver detached");
        entry.state = State::Leaving(peer);
        Ok(Left { told, number })
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
        for range in ack.ranges {
            if let Some(last) = entry.acked.last_mut()
                && last.last.checked_add(1) == Some(range.first)
            {
                last.last = range.last;
                continue;
            }
            entry.unordered |= entry.acked.last().is_some_and(|last| range.first <= last.last);
            entry.acked.push(range);
        }
        deliveries
    }

    pub(super) fn ack_value(&mut self, ack: &AckValue<'_>) {
        let Some(entry) = self.entry(ack.slot) else { return };
        let number = entry.link.number();
        let value = Bytes::copy_from_slice(ack.value);
        entry.say(Word::Value(AckedValue { number, tag: ack.tag, value }));
    }

    pub(super) fn nack(&mut self, nack: &Nack<'_>) {
        let Some(entry) = self.entry(nack.slot) else { return };
        entry.say(Word::Nack(Nacked {
            number: entry.link.number(),
            tag: nack.tag,
            permanent: nack.permanent,
            retry_after_ms: nack.retry_after_ms,
            reason: nack.reason.to_owned(),
        }));
    }

    pub(super) fn grant(&mut self, grant: &Grant) {
        let Some(entry) = self.entry(grant.slot) else { return };
        // Cumulative: the highest says all that the others said.
        entry.granted = entry.granted.max(Some(grant.messages));
    }

    /// Sends on what has been said, as far as the peers take it now.
    ///
    /// # Errors
    /// More waits for peers that are busy than may, and the connection is to end. Nothing has been
    /// dropped.
    pub(super) fn forward(&mut self, tasks: &mut Tasks) -> Result<(), Refusal> {
        while let Some(slot) = self.touched.pop() {
            if let Some(entry) = self.by_slot.get_mut(&slot) {
                entry.touched = false;
                entry.forward(slot, tasks);
            }
        }
        if self.kept.get() > KEPT_BYTES_MAX {
            let detail = format!(
                "answers came faster than their peers took them: more than {KEPT_BYTES_MAX} bytes \
                 of them wait"
            );
            return Err(Refusal::new(Code::Overloaded, detail));
        }
        Ok(())
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

    /// Tells every peer what it has not been told, for a flush, which waits until they have taken it.
    pub(super) fn tell_all(&mut self) -> Vec<Told> {
        let entries = self.by_slot.values_mut();
        entries.filter_map(Slot::take_unsent).map(Unsent::tell).collect()
    }

    /// Tells every peer that the connection has ended, and before that what it had not been told.
    pub(super) fn end(&mut self, why: &str) {
        for (_, mut entry) in self.by_slot.drain() {
            entry.link.shut();
            if let Some(unsent) = entry.take_unsent() {
                link_down(&unsent.tell().peer, entry.link.number(), why);
            }
        }
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
struct Unsent {
    peer: Addr<Peer>,
    acked: Option<Acked>,
    words: VecDeque<Word>,
    granted: Option<Granted>,
    kept: Kept,
}

/// A peer in whose mailbox all is that has been said to it. That counts until this is dropped.
pub(super) struct Told {
    pub(super) peer: Addr<Peer>,
    _kept: Kept,
}

/// A receiver has left its slot.
pub(super) struct Left {
    pub(super) told: Told,
    /// The number of its link.
    pub(super) number: u64,
}

impl Unsent {
    /// Puts all of it into the peer's mailbox, in order and at once: a fresh address always has a place
    /// there, so that nothing said later comes before it, not even that the link is gone.
    fn tell(self) -> Told {
        let Unsent { peer, acked, words, granted, kept } = self;
        // A peer that is gone has settled what it took.
        granted.map(|granted| peer.clone().try_send(granted));
        acked.map(|acked| peer.clone().try_send(acked));
        for word in words {
            let _ = match word {
                Word::Value(value) => peer.clone().try_send(value).is_ok(),
                Word::Nack(nack) => peer.clone().try_send(nack).is_ok(),
            };
        }
        Told { peer, _kept: kept }
    }
}

impl Slot {
    fn new(link: Arc<OutboxLink>, state: State, kept: Kept) -> Slot {
        Slot {
            link,
            state,
            acked: Ranges::new(),
            unordered: false,
            words: VecDeque::new(),
            word_bytes: 0,
            granted: None,
            kept,
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

    fn say(&mut self, word: Word) {
        self.word_bytes += word.bytes();
        self.words.push_back(word);
    }

    fn take_acked(&mut self) -> Option<Acked> {
        let number = self.link.number();
        let mut ranges = std::mem::take(&mut self.acked);
        if std::mem::take(&mut self.unordered) {
            merge(&mut ranges);
        }
        (!ranges.is_empty()).then_some(Acked { number, ranges })
    }

    fn take_granted(&mut self) -> Option<Granted> {
        let messages = self.granted.take()?;
        Some(Granted { number: self.link.number(), messages })
    }

    /// Sends until the peer's mailbox is full; what was refused then waits there for its turn.
    fn forward(&mut self, slot: u32, tasks: &mut Tasks) {
        if self.peer().is_none() {
            // Nothing has been delivered yet, so that there is nothing to answer.
            (self.acked, self.words, self.word_bytes) = Default::default();
            return;
        }
        let number = self.link.number();
        if let Some(granted) = (!self.sending).then(|| self.take_granted()).flatten() {
            self.sending = !self.send(granted, slot, number, tasks);
        }
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
            };
            self.sending = !sent;
        }
        self.kept.set(self.word_bytes + self.acked.len() * size_of::<TagRange>());
    }

    fn take_unsent(&mut self) -> Option<Unsent> {
        let peer = self.peer()?.clone();
        Some(self.unsent_to(peer))
    }

    fn unsent_to(&mut self, peer: Addr<Peer>) -> Unsent {
        let (acked, granted) = (self.take_acked(), self.take_granted());
        let words = std::mem::take(&mut self.words);
        let none = Kept::none(&self.kept.sum);
        let mut kept = std::mem::replace(&mut self.kept, none);
        let ranges = acked.as_ref().map_or(0, |acked| acked.ranges.len());
        kept.set(std::mem::take(&mut self.word_bytes) + ranges * size_of::<TagRange>());
        Unsent { peer, acked, words, granted, kept }
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
                // A fresh address has a place for it now, so that no later flush overtakes it.
                let request = peer.clone().send(message);
                tasks.spawn(async move {
                    // A peer that has gone meanwhile needs no acks.
                    let _ = request.await;
                    Done::Sent { slot, number }
                });
                false
            }
        }
    }
}

impl Word {
    fn bytes(&self) -> usize {
        size_of::<Word>()
            + match self {
                Word::Value(value) => value.value.len(),
                Word::Nack(nack) => nack.reason.len(),
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
mod tests;
