//! The receiving half of one connection, shared between those who receive and the driver: its
//! attachments, the deliveries that nobody has taken yet, and the acks that the node has not been
//! told yet. No I/O, no clock.
//!
//! ```text
//!   wanted ──asked──► attached ◄─► deliveries, acks, grants
//!     ▲  ▲               │  │
//!     │  └── detached ───┘  └── dropped ──► leaving ──► gone
//!     └── connection lost (what was buffered is dropped: it will be delivered again)
//! ```
//!
//! What an attachment has under way is bounded by the largest window a node may be told to use;
//! a node that sends more breaks the protocol.

use crate::acks::Acks;
use crate::doorbell::Doorbell;
use crate::epochs::{EpochCache, Epochs};
use crate::error::{AttachError, EndReason, ReceiveError, RequestError, Violation};
use crate::options::Reconnect;
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use restante_protocol::codec::{put_ack, put_ack_value, put_grant, put_nack};
use restante_protocol::control::{AttachAs, AttachResult};
use restante_protocol::frame::{AckValue, Deliver, Grant, Nack};
use restante_protocol::id::MessageId;
use restante_protocol::limits::SLOTS_MAX;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use slab::Slab;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// Most deliveries of one attachment that wait to be taken: the largest window a peer can have.
const QUEUE_MESSAGES_MAX: usize = 65_536;
/// Their bytes: the largest window in bytes, and the message that may pass it.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024 + 16 * 1024 * 1024;
/// Attachments asked for in one request.
const ATTACH_BATCH_MAX: usize = 1_024;
/// So many refusals of an attach as 'already attached' are put down to our own lost connection.
const ALREADY_ATTACHED_QUIETLY: u32 = 5;

/// No attachment has this generation.
const DETACHED: u32 = 0;

#[derive(Debug)]
pub(crate) struct Intake {
    state: Mutex<State>,
    pub(crate) bell: Arc<Doorbell>,
}

#[derive(Debug)]
pub(crate) struct State {
    slots: Slab<Slot>,
    /// Slots with acks or grants to tell.
    dirty: Vec<u32>,
    /// Ack frames with values, and nacks, encoded.
    settles: BytesMut,
    /// Some slot has something to ask for.
    asking: bool,
    /// When the next attach is due.
    retry_at: Option<Instant>,
    next_generation: u32,
    retry: Reconnect,
    epochs: Arc<Epochs>,
    epoch_cache: EpochCache,
    /// Bells to ring once the lock is free.
    rings: Vec<Arc<Doorbell>>,
    flushes: Flushes,
    ended: Option<EndReason>,
}

/// Which acks are known to be recorded.
#[derive(Debug, Default)]
struct Flushes {
    /// Acks and nacks given so far.
    given: u64,
    /// Of those, known to be recorded or known to be lost.
    known: u64,
    /// Some were lost with their connection since the last flush.
    lost: bool,
}

/// What deliveries and their reader know of an attachment without taking its lock.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) intake: Arc<Intake>,
    pub(crate) slot: u32,
    pub(crate) name: Name,
    /// Changes with each attach; a delivery of another generation can no longer be acked.
    pub(crate) generation: AtomicU32,
    /// Rung when there is something to take or to learn.
    pub(crate) reader: Arc<Doorbell>,
}

#[derive(Debug)]
struct Slot {
    attachment: Arc<Attachment>,
    phase: Phase,
    queue: VecDeque<Item>,
    queue_bytes: usize,
    last_tag: u64,
    acks: Acks,
    dirty: bool,
    grant: Option<Granted>,
    /// To be told to the reader.
    trouble: Option<Refusal>,
    told: Option<Code>,
    /// Refused attaches in a row.
    refusals: u32,
    attached_before: bool,
    told_end: bool,
}

/// Deliveries the reader has asked for, counted over all generations.
#[derive(Clone, Copy, Debug)]
struct Granted {
    total: u64,
    /// Of those, taken by the reader.
    taken: u64,
    /// As it was when the present generation was asked for.
    taken_before: u64,
    /// What the node knows of this generation's.
    told: u64,
}

#[derive(Debug)]
enum Phase {
    Wanted {
        not_before: Option<Instant>,
    },
    Asked {
        dropped: bool,
    },
    Attached,
    /// The first attach was refused; its caller takes the slot away.
    Refused(Refusal),
    /// Dropped by its owner; `asked`: the node has been told.
    Leaving {
        asked: bool,
    },
}

/// A delivery that waits to be taken.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) generation: u32,
    pub(crate) tag: u64,
    pub(crate) id: MessageId,
    pub(crate) epoch: u32,
    pub(crate) attempt: u16,
    pub(crate) redelivered: bool,
    pub(crate) body: Bytes,
}

/// What the driver asks the node for on behalf of the attachments.
#[derive(Debug, PartialEq)]
pub(crate) enum Ask {
    Attach(Vec<AttachAs>),
    Detach { slot: u32 },
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Taken {
    Items,
    Nothing,
    Trouble(ReceiveError),
    Over,
}

/// What became of an ack or nack that was given to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It goes to the node with the next write. It is recorded there when a later flush is answered.
    Queued,
    /// The connection or the attachment the delivery came by is gone; the node will deliver the
    /// message again, flagged as redelivered.
    TooLate,
}

/// How a nack ends a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Refuse<'a> {
    pub(crate) permanent: bool,
    pub(crate) retry_after_ms: u32,
    pub(crate) reason: &'a str,
}

impl Intake {
    pub(crate) fn new(bell: Arc<Doorbell>, retry: Reconnect, epochs: Arc<Epochs>) -> Intake {
        let state = State {
            slots: Slab::new(),
            dirty: Vec::new(),
            settles: BytesMut::new(),
            asking: false,
            retry_at: None,
            next_generation: DETACHED + 1,
            retry,
            epochs,
            epoch_cache: EpochCache::default(),
            rings: Vec::new(),
            flushes: Flushes::default(),
            ended: None,
        };
        Intake { state: Mutex::new(state), bell }
    }

    /// The lock, for a run of inputs; [`Intake::release`] must follow.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Gives the lock back and rings for those who have got something.
    pub(crate) fn release(mut state: MutexGuard<'_, State>) {
        if state.rings.is_empty() {
            return;
        }
        let mut rings = std::mem::take(&mut state.rings);
        drop(state);
        for bell in rings.drain(..) {
            bell.ring();
        }
    }

    /// Wants to receive as `name`.
    pub(crate) fn open(
        self: &Arc<Self>,
        name: Name,
        grant: Option<u64>,
        reader: Arc<Doorbell>,
    ) -> Result<Arc<Attachment>, AttachError> {
        let mut state = self.lock();
        if let Some(reason) = &state.ended {
            return Err(AttachError::Ended(reason.clone()));
        }
        if state.slots.len() >= SLOTS_MAX as usize {
            return Err(AttachError::TooMany { max: SLOTS_MAX });
        }
        let attachment =
            state.insert(self, name, grant, reader, Phase::Wanted { not_before: None });
        state.asking = true;
        drop(state);
        self.bell.ring();
        Ok(attachment)
    }

    /// The other side has dialled in to deliver as `name`: slot 0 is attached.
    pub(crate) fn adopt(
        self: &Arc<Self>,
        name: Name,
        grant: Option<u64>,
        reader: Arc<Doorbell>,
    ) -> Arc<Attachment> {
        let mut state = self.lock();
        let attachment = state.insert(self, name, grant, reader, Phase::Attached);
        let generation = state.draw_generation();
        attachment.generation.store(generation, Ordering::Release);
        if let Some(granted) =
            state.slots.get_mut(attachment.slot as usize).and_then(|slot| slot.grant.as_mut())
        {
            granted.told = granted.total;
        }
        attachment
    }

    /// How the first attach went; nothing while it is under way. A refused one is taken away.
    pub(crate) fn poll_attached(&self, slot: u32) -> Option<Result<(), AttachError>> {
        let mut state = self.lock();
        let ended = state.ended.clone();
        let entry = state.slots.get(slot as usize)?;
        let outcome = match &entry.phase {
            Phase::Attached => return Some(Ok(())),
            Phase::Refused(refusal) => AttachError::Refused {
                name: entry.attachment.name.clone(),
                refusal: refusal.clone(),
            },
            _ => AttachError::Ended(ended?),
        };
        state.slots.remove(slot as usize);
        Some(Err(outcome))
    }

    /// The owner of an attachment is gone. Acks given before are told to the node first.
    pub(crate) fn leave(&self, slot: u32) {
        let mut state = self.lock();
        let ended = state.ended.is_some();
        let Some(entry) = state.slots.get_mut(slot as usize) else { return };
        entry.queue.clear();
        match &mut entry.phase {
            Phase::Asked { dropped } if !ended => *dropped = true,
            Phase::Attached if !ended => {
                entry.phase = Phase::Leaving { asked: false };
                state.asking = true;
            }
            Phase::Leaving { .. } => {}
            _ => drop(state.slots.remove(slot as usize)),
        }
        drop(state);
        self.bell.ring();
    }

    /// Takes up to `count` deliveries, or what there is to learn instead. `untaken`: so many taken
    /// before were dropped unseen, as their attachment was lost.
    pub(crate) fn take(
        &self,
        slot: u32,
        count: usize,
        untaken: u64,
        items: &mut VecDeque<Item>,
    ) -> Taken {
        let mut state = self.lock();
        if untaken > 0 {
            state.give_back(slot, untaken);
        }
        let State { slots, ended, .. } = &mut *state;
        let Some(entry) = slots.get_mut(slot as usize) else { return Taken::Over };
        if let Some(refusal) = entry.trouble.take() {
            let name = entry.attachment.name.clone();
            return Taken::Trouble(ReceiveError::Detached { name, refusal });
        }
        let count = count.min(entry.queue.len());
        if count > 0 {
            for item in entry.queue.drain(..count) {
                entry.queue_bytes -= item.body.len();
                items.push_back(item);
            }
            if let Some(granted) = &mut entry.grant {
                granted.taken += count as u64;
            }
            return Taken::Items;
        }
        match ended {
            Some(_) if entry.told_end => Taken::Over,
            Some(reason) => {
                entry.told_end = true;
                Taken::Trouble(ReceiveError::Ended(reason.clone()))
            }
            None => Taken::Nothing,
        }
    }

    /// Takes `more` deliveries than granted so far. Without a grant the peer's window alone limits.
    pub(crate) fn grant(&self, slot: u32, more: u64) {
        let mut state = self.lock();
        let Some(entry) = state.slots.get_mut(slot as usize) else { return };
        let Some(granted) = &mut entry.grant else { return };
        granted.total = granted.total.saturating_add(more);
        state.mark_dirty(slot);
        drop(state);
        self.bell.ring();
    }

    pub(crate) fn ack(&self, attachment: &Attachment, generation: u32, tag: u64) -> Settled {
        if attachment.generation.load(Ordering::Acquire) != generation {
            return Settled::TooLate;
        }
        let mut state = self.lock();
        let Some(entry) = state.current(attachment, generation) else { return Settled::TooLate };
        entry.acks.insert(tag);
        state.flushes.given += 1;
        state.mark_dirty(attachment.slot);
        drop(state);
        self.bell.ring();
        Settled::Queued
    }

    /// The caller has checked the value's length.
    pub(crate) fn ack_value(
        &self,
        attachment: &Attachment,
        generation: u32,
        tag: u64,
        value: &[u8],
    ) -> Settled {
        let slot = attachment.slot;
        self.settle(attachment, generation, |out| {
            let put = put_ack_value(out, &AckValue { slot, tag, value });
            debug_assert!(put.is_ok(), "the value's length has been checked");
        })
    }

    pub(crate) fn nack(
        &self,
        attachment: &Attachment,
        generation: u32,
        tag: u64,
        refuse: &Refuse<'_>,
    ) -> Settled {
        let Refuse { permanent, retry_after_ms, reason } = *refuse;
        let slot = attachment.slot;
        self.settle(attachment, generation, |out| {
            put_nack(out, &Nack { slot, tag, permanent, retry_after_ms, reason });
        })
    }

    /// A flush is about to be asked for. Returns what to tell [`Intake::end_flush`].
    pub(crate) fn begin_flush(&self) -> Result<u64, RequestError> {
        let mut state = self.lock();
        if std::mem::take(&mut state.flushes.lost) {
            return Err(RequestError::Disconnected);
        }
        Ok(state.flushes.given)
    }

    /// The flush was answered: acks given before it was asked for are recorded.
    pub(crate) fn end_flush(&self, given: u64) {
        let mut state = self.lock();
        state.flushes.known = state.flushes.known.max(given);
    }

    /// The caller of a flush learns by this error that acks may be lost.
    pub(crate) fn forget_lost(&self, error: &RequestError) {
        if matches!(error, RequestError::Disconnected) {
            self.lock().flushes.lost = false;
        }
    }

    /// Whether acks were given that no flush has covered.
    pub(crate) fn has_unflushed(&self) -> bool {
        let state = self.lock();
        state.flushes.lost || state.flushes.given > state.flushes.known
    }

    fn settle(
        &self,
        attachment: &Attachment,
        generation: u32,
        put: impl FnOnce(&mut BytesMut),
    ) -> Settled {
        let mut state = self.lock();
        if state.current(attachment, generation).is_none() {
            return Settled::TooLate;
        }
        put(&mut state.settles);
        state.flushes.given += 1;
        drop(state);
        self.bell.ring();
        Settled::Queued
    }
}

impl State {
    fn insert(
        &mut self,
        intake: &Arc<Intake>,
        name: Name,
        grant: Option<u64>,
        reader: Arc<Doorbell>,
        phase: Phase,
    ) -> Arc<Attachment> {
        let entry = self.slots.vacant_entry();
        let attachment = Arc::new(Attachment {
            intake: intake.clone(),
            // Fewer than SLOTS_MAX.
            slot: entry.key() as u32,
            name,
            generation: AtomicU32::new(DETACHED),
            reader,
        });
        entry.insert(Slot {
            attachment: attachment.clone(),
            phase,
            queue: VecDeque::new(),
            queue_bytes: 0,
            last_tag: 0,
            acks: Acks::default(),
            dirty: false,
            grant: grant.map(|total| Granted { total, taken: 0, taken_before: 0, told: 0 }),
            trouble: None,
            told: None,
            refusals: 0,
            attached_before: false,
            told_end: false,
        });
        attachment
    }

    /// Deliveries of an earlier generation that count as not taken after all.
    fn give_back(&mut self, slot: u32, untaken: u64) {
        let granted = self.slots.get_mut(slot as usize).and_then(|slot| slot.grant.as_mut());
        if let Some(granted) = granted {
            granted.taken = granted.taken.saturating_sub(untaken);
            granted.taken_before = granted.taken_before.saturating_sub(untaken);
            self.mark_dirty(slot);
        }
    }

    fn draw_generation(&mut self) -> u32 {
        let generation = self.next_generation;
        // After 2^32 attaches it starts over, past the value that means none.
        self.next_generation = generation.wrapping_add(1).max(DETACHED + 1);
        generation
    }

    fn current(&mut self, attachment: &Attachment, generation: u32) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(attachment.slot as usize)?;
        let same = slot.attachment.generation.load(Ordering::Acquire) == generation
            && std::ptr::eq(&*slot.attachment, attachment);
        (same && matches!(slot.phase, Phase::Attached | Phase::Asked { .. })).then_some(slot)
    }

    #[inline]
    fn mark_dirty(&mut self, slot: u32) {
        if let Some(entry) = self.slots.get_mut(slot as usize)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// One delivery. `chunk` holds the frame it borrows from.
    pub(crate) fn handle_deliver(
        &mut self,
        deliver: &Deliver<'_>,
        chunk: &Bytes,
    ) -> Result<(), Violation> {
        let Deliver { slot, tag, epoch, id, attempt, redelivered, body } = *deliver;
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Err(Violation::OutOfTurn("delivery for a slot that is not attached"));
        };
        match entry.phase {
            Phase::Attached | Phase::Asked { dropped: false } => {}
            // Sent before the node knew that nobody listens any more.
            Phase::Leaving { .. } | Phase::Asked { dropped: true } | Phase::Wanted { .. } => {
                return Ok(());
            }
            Phase::Refused(_) => {
                return Err(Violation::OutOfTurn("delivery for a slot that was refused"));
            }
        }
        if tag <= entry.last_tag {
            return Err(Violation::BadTag { slot, tag, last: entry.last_tag });
        }
        entry.last_tag = tag;
        if !self.epochs.admit(&mut self.epoch_cache, id, epoch) {
            tracing::debug!(%id, epoch, "ignored a delivery of an older epoch");
            return Ok(());
        }
        if entry.queue.len() >= QUEUE_MESSAGES_MAX || entry.queue_bytes > QUEUE_BYTES_MAX {
            return Err(Violation::WindowOverrun { slot });
        }
        if entry.queue.is_empty() {
            self.rings.push(entry.attachment.reader.clone());
        }
        let generation = entry.attachment.generation.load(Ordering::Relaxed);
        let body = chunk.slice_ref(body);
        entry.queue_bytes += body.len();
        entry.queue.push_back(Item { generation, tag, id, epoch, attempt, redelivered, body });
        Ok(())
    }

    /// What should be asked of the node now.
    pub(crate) fn poll_ask(&mut self, now: Instant, asks: &mut Vec<Ask>) {
        if !self.asking && self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        self.asking = false;
        self.retry_at = None;
        let mut attach = Vec::new();
        let mut next_generation = self.next_generation;
        for (key, entry) in &mut self.slots {
            let slot = key as u32;
            match &mut entry.phase {
                Phase::Wanted { not_before: Some(at) } if *at > now => {
                    self.retry_at = Some(self.retry_at.map_or(*at, |other| other.min(*at)));
                }
                Phase::Wanted { .. } => {
                    entry.begin(next_generation);
                    next_generation = next_generation.wrapping_add(1).max(DETACHED + 1);
                    let grant = entry.grant.map(|granted| granted.told);
                    attach.push(AttachAs { slot, name: entry.attachment.name.clone(), grant });
                    if attach.len() == ATTACH_BATCH_MAX {
                        asks.push(Ask::Attach(std::mem::take(&mut attach)));
                    }
                }
                Phase::Leaving { asked: asked @ false } => {
                    *asked = true;
                    asks.push(Ask::Detach { slot });
                }
                _ => {}
            }
        }
        self.next_generation = next_generation;
        if !attach.is_empty() {
            asks.push(Ask::Attach(attach));
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The answer for one slot of an attach.
    pub(crate) fn handle_attached(&mut self, result: AttachResult, now: Instant, draw: f64) {
        let slot = result.slot;
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        let Phase::Asked { dropped } = entry.phase else { return };
        match result.refusal {
            None if dropped => {
                entry.phase = Phase::Leaving { asked: false };
                self.asking = true;
            }
            None => {
                entry.phase = Phase::Attached;
                entry.attached_before = true;
                entry.refusals = 0;
                entry.told = None;
                self.rings.push(entry.attachment.reader.clone());
                self.mark_dirty(slot);
            }
            Some(_) if dropped => drop(self.slots.remove(slot as usize)),
            Some(refusal) => self.handle_attach_refused(slot, refusal, now, draw),
        }
    }

    /// The request that asked for a slot has been answered, and the slot was not in the answer.
    pub(crate) fn handle_unanswered(
        &mut self,
        slot: u32,
        refusal: &Refusal,
        now: Instant,
        draw: f64,
    ) {
        let asked = |entry: &Slot| matches!(entry.phase, Phase::Asked { .. });
        if self.slots.get(slot as usize).is_some_and(asked) {
            let refusal = Some(refusal.clone());
            let result = AttachResult { slot, first_tag: 0, created: false, refusal };
            self.handle_attached(result, now, draw);
        }
    }

    fn handle_attach_refused(&mut self, slot: u32, refusal: Refusal, now: Instant, draw: f64) {
        let retry = self.retry;
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        entry.lose();
        if !entry.attached_before {
            entry.phase = Phase::Refused(refusal);
        } else {
            let quiet =
                refusal.code == Code::AlreadyAttached && entry.refusals < ALREADY_ATTACHED_QUIETLY;
            if !quiet && entry.told != Some(refusal.code) {
                entry.told = Some(refusal.code);
                entry.trouble = Some(refusal);
            }
            let at = now + retry.wait(entry.refusals, draw);
            entry.refusals = entry.refusals.saturating_add(1);
            entry.phase = Phase::Wanted { not_before: Some(at) };
            self.retry_at = Some(self.retry_at.map_or(at, |other| other.min(at)));
        }
        self.rings.push(entry.attachment.reader.clone());
    }

    /// The node has ended an attachment.
    pub(crate) fn handle_detached(
        &mut self,
        slot: u32,
        reason: Refusal,
        now: Instant,
        draw: f64,
    ) -> Result<(), Violation> {
        let Some(entry) = self.slots.get_mut(slot as usize) else { return Ok(()) };
        match entry.phase {
            Phase::Attached => {
                entry.told = None;
                self.handle_attach_refused(slot, reason, now, draw);
                Ok(())
            }
            // Crossed our own farewell, whose answer takes the slot away.
            Phase::Leaving { .. } => Ok(()),
            _ => Err(Violation::OutOfTurn("detach of a slot that is not attached")),
        }
    }

    /// The node has answered a detach.
    pub(crate) fn handle_left(&mut self, slot: u32) {
        let leaving = |slot: &Slot| matches!(slot.phase, Phase::Leaving { .. });
        if self.slots.get(slot as usize).is_some_and(leaving) {
            self.slots.remove(slot as usize);
        }
    }

    /// The connection is lost: everything is asked for again on the next one.
    pub(crate) fn handle_disconnect(&mut self) {
        self.flushes.lost |= self.flushes.given > self.flushes.known;
        self.flushes.known = self.flushes.given;
        self.settles.clear();
        self.dirty.clear();
        self.retry_at = None;
        self.asking = true;
        self.slots.retain(|_, entry| match entry.phase {
            Phase::Leaving { .. } | Phase::Asked { dropped: true } => false,
            Phase::Refused(_) => true,
            _ => {
                entry.lose();
                entry.phase = Phase::Wanted { not_before: None };
                true
            }
        });
    }

    /// The client is over.
    pub(crate) fn end(&mut self, reason: EndReason) {
        self.handle_disconnect();
        self.ended = Some(reason);
        for (_, entry) in &self.slots {
            self.rings.push(entry.attachment.reader.clone());
        }
    }

    /// Appends what the node has to be told.
    pub(crate) fn transmit(&mut self, out: &mut BytesMut) {
        for slot in self.dirty.drain(..) {
            let Some(entry) = self.slots.get_mut(slot as usize) else { continue };
            entry.dirty = false;
            if !entry.acks.is_empty() {
                put_ack(out, slot, entry.acks.ranges());
                entry.acks.clear();
            }
            if let (Phase::Attached, Some(granted)) = (&entry.phase, &mut entry.grant) {
                let messages = granted.of_generation();
                if messages != granted.told {
                    granted.told = messages;
                    put_grant(out, &Grant { slot, messages });
                }
            }
        }
        if !self.settles.is_empty() {
            out.unsplit(self.settles.split());
        }
    }
}

impl Slot {
    /// The attach goes out.
    fn begin(&mut self, generation: u32) {
        self.phase = Phase::Asked { dropped: false };
        self.attachment.generation.store(generation, Ordering::Release);
        self.last_tag = 0;
        if let Some(granted) = &mut self.grant {
            granted.taken_before = granted.taken;
            granted.told = granted.of_generation();
        }
    }

    /// What came by this generation is void: the node delivers it again.
    fn lose(&mut self) {
        self.attachment.generation.store(DETACHED, Ordering::Release);
        self.queue.clear();
        self.queue_bytes = 0;
        self.acks.clear();
        self.dirty = false;
    }
}

impl Granted {
    /// Cumulative since the present generation was asked for, as the node counts.
    fn of_generation(&self) -> u64 {
        self.total.saturating_sub(self.taken_before)
    }
}
