//! The attachments of one connection as a state machine: what is attached, what has been delivered
//! and not been taken, which acks and grants have to be told. No I/O, no clock, no lock.
//!
//! ```text
//!   wanted ──asked──► attached ◄─► deliveries, acks, grants
//!     ▲  ▲               │  │
//!     │  └── detached ───┘  └── dropped ──► leaving ──► gone
//!     └── connection lost (what was buffered is dropped: it will be delivered again)
//! ```
//!
//! Each attach has a *generation*; deliveries carry it, so that an ack which comes after the
//! attachment was lost is known as too late. What waits to be taken of an attachment is bounded by
//! the largest window a node may be told to use. There can be more of it: what a reader leaves for
//! longer than the ack timeout comes again under new tags. Past the bound it is dropped, unacked.

mod counts;
mod slot;
mod types;

use crate::doorbell::Doorbell;
use crate::epochs::{EpochCache, Epochs};
use crate::error::{AttachError, EndReason, ReceiveError, Violation};
use crate::intake::Attachment;
use crate::options::Reconnect;
use crate::wire::after;
use bytes::{Bytes, BytesMut};
pub(crate) use counts::Flushes;
use counts::Generations;
use restante_protocol::codec::{put_ack, put_grant};
use restante_protocol::control::{AttachAs, AttachResult};
use restante_protocol::frame::{Deliver, Grant};
use restante_protocol::limits::SLOTS_MAX;
use restante_protocol::refusal::{Code, Refusal};
use slab::Slab;
use slot::Slot;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use types::Phase;
pub(crate) use types::{Ask, Item, Taken};

/// Most deliveries of one attachment that wait to be taken: the largest window a peer can have.
const QUEUE_MESSAGES_MAX: usize = 65_536;
/// Their bytes: the largest window in bytes, and the message that may pass it.
const QUEUE_BYTES_MAX: usize = 256 * 1024 * 1024 + 16 * 1024 * 1024;
/// Attachments asked for in one request.
const ATTACH_BATCH_MAX: usize = 1_024;
/// So many refusals of an attach as 'already attached' are put down to our own lost connection.
const ALREADY_ATTACHED_QUIETLY: u32 = 5;

/// No attachment has this generation.
pub(crate) const DETACHED: u32 = 0;

#[derive(Debug)]
pub(crate) struct Slots {
    slots: Slab<Slot>,
    /// Slots with acks or grants to tell.
    dirty: Vec<u32>,
    /// Ack frames with values, and nacks, encoded.
    settles: BytesMut,
    /// Some slot has something to ask for.
    asking: bool,
    /// When the next attach is due.
    retry_at: Option<Instant>,
    generations: Generations,
    retry: Reconnect,
    epochs: Arc<Epochs>,
    epoch_cache: EpochCache,
    /// Bells to ring once the lock is free.
    rings: Vec<Arc<Doorbell>>,
    pub(crate) flushes: Flushes,
    ended: Option<EndReason>,
}

impl Slots {
    pub(crate) fn new(retry: Reconnect, epochs: Arc<Epochs>) -> Slots {
        Slots {
            slots: Slab::new(),
            dirty: Vec::new(),
            settles: BytesMut::new(),
            asking: false,
            retry_at: None,
            generations: Generations(DETACHED),
            retry,
            epochs,
            epoch_cache: EpochCache::default(),
            rings: Vec::new(),
            flushes: Flushes::default(),
            ended: None,
        }
    }

    /// A place for one more attachment, which is wanted from here on.
    pub(crate) fn open(
        &mut self,
        grant: Option<u64>,
        attachment: impl FnOnce(u32) -> Arc<Attachment>,
    ) -> Result<Arc<Attachment>, AttachError> {
        if let Some(reason) = &self.ended {
            return Err(AttachError::Ended(reason.clone()));
        }
        if self.slots.len() >= SLOTS_MAX as usize {
            return Err(AttachError::TooMany { max: SLOTS_MAX });
        }
        let entry = self.slots.vacant_entry();
        // Fewer than SLOTS_MAX.
        let attachment = attachment(entry.key() as u32);
        entry.insert(Slot::new(attachment.clone(), grant));
        self.asking = true;
        Ok(attachment)
    }

    /// The other side has attached this slot by dialling in.
    pub(crate) fn adopt(&mut self, slot: u32) {
        let generation = self.generations.draw();
        if let Some(entry) = self.slots.get_mut(slot as usize) {
            entry.begin(generation);
            entry.phase = Phase::Attached;
        }
        self.asking = false;
    }

    /// How the first attach went; nothing while it is under way. A refused one is taken away.
    pub(crate) fn poll_attached(
        &mut self,
        attachment: &Attachment,
    ) -> Option<Result<(), AttachError>> {
        let slot = attachment.slot;
        let entry = self.own(attachment)?;
        let name = entry.attachment.name.clone();
        let error = match &entry.phase {
            Phase::Attached => return Some(Ok(())),
            Phase::Refused(refusal) => AttachError::Refused { name, refusal: refusal.clone() },
            _ => AttachError::Ended(self.ended.clone()?),
        };
        self.slots.remove(slot as usize);
        Some(Err(error))
    }

    /// The owner of an attachment is gone. Acks given before are told to the node first.
    pub(crate) fn leave(&mut self, attachment: &Attachment) {
        let slot = attachment.slot;
        let ended = self.ended.is_some();
        let Some(entry) = self.own(attachment) else { return };
        entry.clear();
        match &mut entry.phase {
            Phase::Asked { dropped } if !ended => *dropped = true,
            Phase::Attached if !ended => {
                entry.phase = Phase::Leaving { asked: false, not_before: None };
                self.asking = true;
            }
            Phase::Leaving { .. } => {}
            _ => drop(self.slots.remove(slot as usize)),
        }
    }

    /// Takes up to `count` deliveries, or what there is to learn instead. `untaken`: so many taken
    /// before were dropped unseen, as their attachment was lost.
    pub(crate) fn take(
        &mut self,
        attachment: &Attachment,
        count: usize,
        untaken: u64,
        items: &mut VecDeque<Item>,
    ) -> Taken {
        if untaken > 0 {
            self.give_back(attachment, untaken);
        }
        let ended = self.ended.clone();
        let Some(entry) = self.own(attachment) else { return Taken::Over };
        if let Some(refusal) = entry.trouble.take() {
            let name = entry.attachment.name.clone();
            return Taken::Trouble(ReceiveError::Detached { name, refusal });
        }
        let count = count.min(entry.queue.len());
        if count > 0 {
            for item in entry.queue.drain(..count) {
                entry.queue_bytes -= item.body.len();
                entry.pinned_bytes -= item.pins as usize;
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

    /// Deliveries of an earlier generation that count as not taken after all.
    fn give_back(&mut self, attachment: &Attachment, untaken: u64) {
        if let Some(granted) = self.own(attachment).and_then(|slot| slot.grant.as_mut()) {
            granted.taken = granted.taken.saturating_sub(untaken);
            granted.taken_before = granted.taken_before.saturating_sub(untaken);
            self.mark_dirty(attachment.slot);
        }
    }

    /// Takes `more` deliveries than granted so far. Without a grant the peer's window alone limits.
    pub(crate) fn grant(&mut self, attachment: &Attachment, more: u64) {
        if let Some(granted) = self.own(attachment).and_then(|slot| slot.grant) {
            self.grant_up_to(attachment, granted.total.saturating_add(more));
        }
    }

    /// Takes this many deliveries in all. What has been granted is not taken back.
    pub(crate) fn grant_up_to(&mut self, attachment: &Attachment, total: u64) {
        if let Some(granted) = self.own(attachment).and_then(|slot| slot.grant.as_mut()) {
            granted.total = granted.total.max(total);
            self.mark_dirty(attachment.slot);
        }
    }

    /// Notes an ack; whether it was in time.
    pub(crate) fn ack(&mut self, attachment: &Attachment, generation: u32, tag: u64) -> bool {
        let given = self.flushes.given + 1;
        let Some(entry) = self.current(attachment, generation) else { return false };
        entry.acks.insert(tag);
        entry.given = given;
        self.flushes.given = given;
        self.mark_dirty(attachment.slot);
        true
    }

    /// Notes an ack with a value, or a nack, which `put` encodes; whether it was in time.
    pub(crate) fn settle(
        &mut self,
        attachment: &Attachment,
        generation: u32,
        put: impl FnOnce(&mut BytesMut),
    ) -> bool {
        let given = self.flushes.given + 1;
        let Some(entry) = self.current(attachment, generation) else { return false };
        entry.given = given;
        self.flushes.given = given;
        put(&mut self.settles);
        true
    }

    fn current(&mut self, attachment: &Attachment, generation: u32) -> Option<&mut Slot> {
        let slot = self.own(attachment)?;
        let same = slot.generation() == generation;
        (same && matches!(slot.phase, Phase::Attached | Phase::Asked { .. })).then_some(slot)
    }

    /// The slot, as long as it is this attachment's: its number may have gone to another.
    #[inline]
    fn own(&mut self, attachment: &Attachment) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(attachment.slot as usize)?;
        std::ptr::eq(&*slot.attachment, attachment).then_some(slot)
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
            // The first deliveries may overtake the answer to the attach.
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
            tracing::debug!(%id, slot, "dropped a delivery: too much waits to be taken");
            entry.drop_one();
            self.mark_dirty(slot);
            return Ok(());
        }
        if entry.queue.is_empty() {
            self.rings.push(entry.attachment.reader.clone());
        }
        let generation = entry.generation();
        let (body, pins) = entry.keep(body, chunk);
        entry.queue_bytes += body.len();
        entry.queue.push_back(Item {
            generation,
            tag,
            id,
            epoch,
            attempt,
            redelivered,
            pins,
            body,
        });
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
        for (key, entry) in &mut self.slots {
            let slot = key as u32;
            match &mut entry.phase {
                Phase::Wanted { not_before: Some(at) } if *at > now => {
                    self.retry_at = Some(earlier(self.retry_at, *at));
                }
                Phase::Wanted { .. } => {
                    entry.begin(self.generations.draw());
                    let grant = entry.grant.map(|granted| granted.told);
                    attach.push(AttachAs { slot, name: entry.attachment.name.clone(), grant });
                    if attach.len() == ATTACH_BATCH_MAX {
                        asks.push(Ask::Attach(std::mem::take(&mut attach)));
                    }
                }
                Phase::Leaving { asked: false, not_before: Some(at) } if *at > now => {
                    self.retry_at = Some(earlier(self.retry_at, *at));
                }
                Phase::Leaving { asked: asked @ false, .. } => {
                    *asked = true;
                    asks.push(Ask::Detach { slot });
                }
                _ => {}
            }
        }
        if !attach.is_empty() {
            asks.push(Ask::Attach(attach));
        }
    }

    /// When [`Slots::poll_ask`] has something to ask at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// The answer for one slot of an attach. `draw`: a random number from 0 to 1.
    pub(crate) fn handle_attached(&mut self, result: AttachResult, now: Instant, draw: f64) {
        let slot = result.slot;
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        let Phase::Asked { dropped } = entry.phase else { return };
        match result.refusal {
            None if dropped => {
                entry.phase = Phase::Leaving { asked: false, not_before: None };
                self.asking = true;
            }
            None => {
                entry.phase = Phase::Attached;
                entry.attached_before = true;
                entry.attachment.created.fetch_or(result.created, Ordering::Relaxed);
                entry.refusals = 0;
                entry.told = None;
                self.rings.push(entry.attachment.reader.clone());
                // A grant may have been raised while the attach was under way.
                self.mark_dirty(slot);
            }
            Some(_) if dropped => drop(self.slots.remove(slot as usize)),
            Some(refusal) => self.refuse(slot, refusal, now, draw),
        }
    }

    /// The request that asked for a slot has been answered; if the answer did not speak of the slot,
    /// it was refused.
    pub(crate) fn handle_answered(
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
                self.refuse(slot, reason, now, draw);
                Ok(())
            }
            // Ended again before the answer to the attach was written: not attached after all.
            Phase::Asked { dropped: false } => {
                self.refuse(slot, reason, now, draw);
                Ok(())
            }
            // Crossed our own farewell, whose answer takes the slot away.
            Phase::Leaving { .. } | Phase::Asked { dropped: true } => Ok(()),
            Phase::Wanted { .. } | Phase::Refused(_) => {
                Err(Violation::OutOfTurn("detach of a slot that is not attached"))
            }
        }
    }

    /// Not attached, or no more. The first attach fails for its caller; later ones are tried again.
    fn refuse(&mut self, slot: u32, refusal: Refusal, now: Instant, draw: f64) {
        let retry = self.retry;
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        // Acks that crossed this were too late.
        self.flushes.lost |= entry.given > self.flushes.known;
        entry.lose();
        self.rings.push(entry.attachment.reader.clone());
        if !entry.attached_before {
            entry.phase = Phase::Refused(refusal);
            return;
        }
        let quiet =
            refusal.code == Code::AlreadyAttached && entry.refusals < ALREADY_ATTACHED_QUIETLY;
        if !quiet && entry.told != Some(refusal.code) {
            entry.told = Some(refusal.code);
            entry.trouble = Some(refusal);
        }
        let at = after(now, retry.wait(entry.refusals, draw));
        entry.refusals = entry.refusals.saturating_add(1);
        entry.phase = Phase::Wanted { not_before: Some(at) };
        self.retry_at = Some(earlier(self.retry_at, at));
    }

    /// The node has answered a detach.
    pub(crate) fn handle_left(&mut self, slot: u32) {
        let leaving = |slot: &Slot| matches!(slot.phase, Phase::Leaving { .. });
        if self.slots.get(slot as usize).is_some_and(leaving) {
            self.slots.remove(slot as usize);
        }
    }

    /// The node has refused a detach: it still has the attachment, so the slot is not free, and is
    /// asked about again.
    pub(crate) fn handle_not_left(&mut self, slot: u32, now: Instant, draw: f64) {
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        if let Phase::Leaving { .. } = entry.phase {
            let at = after(now, self.retry.wait(entry.refusals, draw));
            entry.refusals = entry.refusals.saturating_add(1);
            entry.phase = Phase::Leaving { asked: false, not_before: Some(at) };
            self.retry_at = Some(earlier(self.retry_at, at));
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

    /// Whom to tell, once the lock is free, that there is something to take or to learn.
    pub(crate) fn take_rings(&mut self) -> Vec<Arc<Doorbell>> {
        std::mem::take(&mut self.rings)
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

fn earlier(known: Option<Instant>, at: Instant) -> Instant {
    known.map_or(at, |known| known.min(at))
}

#[cfg(test)]
mod tests;
