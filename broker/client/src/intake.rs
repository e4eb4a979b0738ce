//! The receiving half of one connection, shared between those who receive and the driver: the
//! [`Slots`] core behind a lock, and the bells.

use crate::doorbell::Doorbell;
use crate::epochs::Epochs;
use crate::error::{AttachError, RequestError};
use crate::options::Reconnect;
use crate::slots::{DETACHED, Item, Slots, Taken};
use parking_lot::{Mutex, MutexGuard};
use restante_protocol::codec::{put_ack_value, put_nack};
use restante_protocol::frame::{AckValue, Nack};
use restante_protocol::name::Name;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

#[derive(Debug)]
pub(crate) struct Intake {
    slots: Mutex<Slots>,
    pub(crate) bell: Arc<Doorbell>,
}

/// What deliveries and their reader know of an attachment without taking its lock.
#[derive(Debug)]
pub(crate) struct Attachment {
    pub(crate) intake: Arc<Intake>,
    pub(crate) slot: u32,
    pub(crate) name: Name,
    /// Changes with each attach; a delivery of another generation can no longer be acked.
    pub(crate) generation: AtomicU32,
    /// Whether the attach made the peer.
    pub(crate) created: AtomicBool,
    /// Rung when there is something to take or to learn.
    pub(crate) reader: Arc<Doorbell>,
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
        Intake { slots: Mutex::new(Slots::new(retry, epochs)), bell }
    }

    /// The lock, for a run of inputs; [`Intake::release`] must follow.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock()
    }

    /// Gives the lock back and rings for those who have got something.
    pub(crate) fn release(mut slots: MutexGuard<'_, Slots>) {
        let rings = slots.take_rings();
        drop(slots);
        for bell in rings {
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
        let intake = self.clone();
        let (generation, created) = (AtomicU32::new(DETACHED), AtomicBool::new(false));
        let attachment =
            |slot| Arc::new(Attachment { intake, slot, name, generation, created, reader });
        let attachment = self.lock().open(grant, attachment)?;
        self.bell.ring();
        Ok(attachment)
    }

    pub(crate) fn poll_attached(&self, attachment: &Attachment) -> Option<Result<(), AttachError>> {
        self.lock().poll_attached(attachment)
    }

    pub(crate) fn leave(&self, attachment: &Attachment) {
        self.lock().leave(attachment);
        self.bell.ring();
    }

    pub(crate) fn take(
        &self,
        attachment: &Attachment,
        count: usize,
        untaken: u64,
        items: &mut VecDeque<Item>,
    ) -> Taken {
        let taken = self.lock().take(attachment, count, untaken, items);
        if untaken > 0 {
            self.bell.ring();
        }
        taken
    }

    pub(crate) fn grant(&self, attachment: &Attachment, more: u64) {
        self.lock().grant(attachment, more);
        self.bell.ring();
    }

    pub(crate) fn grant_up_to(&self, attachment: &Attachment, total: u64) {
        self.lock().grant_up_to(attachment, total);
        self.bell.ring();
    }

    pub(crate) fn ack(&self, attachment: &Attachment, generation: u32, tag: u64) -> Settled {
        if attachment.generation.load(Ordering::Acquire) != generation {
            return Settled::TooLate;
        }
        let noted = self.lock().ack(attachment, generation, tag);
        self.noted(noted)
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
        let noted = self.lock().settle(attachment, generation, |out| {
            let put = put_ack_value(out, &AckValue { slot, tag, value });
            debug_assert!(put.is_ok(), "the value's length has been checked");
        });
        self.noted(noted)
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
        let noted = self.lock().settle(attachment, generation, |out| {
            put_nack(out, &Nack { slot, tag, permanent, retry_after_ms, reason });
        });
        self.noted(noted)
    }

    fn noted(&self, noted: bool) -> Settled {
        if !noted {
            return Settled::TooLate;
        }
        self.bell.ring();
        Settled::Queued
    }

    /// A flush is about to be asked for. Returns what to tell [`Intake::end_flush`].
    pub(crate) fn begin_flush(&self) -> Result<u64, RequestError> {
        let mut slots = self.lock();
        if std::mem::take(&mut slots.flushes.lost) {
            return Err(RequestError::Disconnected);
        }
        Ok(slots.flushes.given)
    }

    /// The flush was answered: acks given before it was asked for are recorded.
    pub(crate) fn end_flush(&self, given: u64) {
        let mut slots = self.lock();
        slots.flushes.known = slots.flushes.known.max(given);
    }

    /// The caller of a flush learns by this error that acks may be lost.
    pub(crate) fn forget_lost(&self, error: &RequestError) {
        if matches!(error, RequestError::Disconnected) {
            self.lock().flushes.lost = false;
        }
    }

    /// Whether acks were given that no flush has covered.
    pub(crate) fn has_unflushed(&self) -> bool {
        let slots = self.lock();
        slots.flushes.lost || slots.flushes.given > slots.flushes.known
    }
}
