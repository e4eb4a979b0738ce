//! Leave to send, for a peer whose rate is limited: what the [`crate::shaper`] grants, for one drain.
//!
//! Without leave nothing is sent. Leave is a last tag and a number of bytes in flight, so that it is held
//! against what is held against the grant and the window of the receiver anyway: a peer that nothing limits
//! has one that is never reached, and pays nothing for it.

use super::*;
use crate::shaper::{Amount, Demand};

/// What may be sent, as bounds of what the core counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leave {
    /// The last tag that may be sent.
    pub(super) tag_max: u64,
    /// The most bytes that may be in flight.
    pub(super) bytes_max: u64,
    /// The next tag and the bytes in flight when it was given.
    from: (u64, u64),
}

impl Leave {
    /// To send whatever else allows.
    pub(super) const ALL: Leave = Leave { tag_max: u64::MAX, bytes_max: u64::MAX, from: (0, 0) };
    const NONE: Leave = Leave { tag_max: 0, bytes_max: 0, from: (0, 0) };

    fn is_limited(&self) -> bool {
        self.tag_max != u64::MAX
    }
}

impl<B> Delivery<B> {
    /// Whether the peer's rate is limited. If it is, nothing is sent but between
    /// [`Delivery::handle_leave`] and [`Delivery::end_leave`].
    pub fn handle_limited(&mut self, is_limited: bool) {
        self.leave = if is_limited { Leave::NONE } else { Leave::ALL };
        self.set_allowance();
    }

    /// What would be sent now if there were leave to: nothing if something else keeps it. What has expired
    /// is found on the way.
    pub fn poll_demand(&mut self, now: Time) -> Demand {
        let (live, in_flight) = (self.unacked.live(), self.unacked.bytes());
        if live >= self.allowance || self.unacked.next_tag() > self.link.grant {
            return Demand::default();
        }
        let Some(first) = self.next_bytes(now).filter(|bytes| self.fits_window(*bytes)) else {
            return Demand::default();
        };
        let first_bytes = u64::from(first);
        // No more than there is room for; less may be at hand, and what is left of a grant goes back.
        let open = self.waiting.saturating_sub(u64::from(live));
        let messages = u64::from(self.allowance - live).min(open);
        let room = self.terms.window_bytes.saturating_sub(in_flight);
        let bytes = room.min(self.waiting_bytes.saturating_sub(in_flight)).max(first_bytes);
        Demand { amount: Amount { messages: messages.max(1), bytes }, first_bytes }
    }

    /// Leave to send so much, until [`Delivery::end_leave`]. Nothing but [`Delivery::poll_transmit`] may be
    /// called between.
    pub fn handle_leave(&mut self, amount: Amount) {
        let from = (self.unacked.next_tag(), self.unacked.bytes());
        let tag_max = (from.0 - 1).saturating_add(amount.messages).min(u64::MAX - 1);
        self.leave = Leave { tag_max, bytes_max: from.1.saturating_add(amount.bytes), from };
        self.set_allowance();
    }

    /// The leave ends: what of it was used.
    pub fn end_leave(&mut self) -> Amount {
        let (tag, bytes) = self.leave.from;
        let messages = self.unacked.next_tag() - tag;
        let bytes = self.unacked.bytes().saturating_sub(bytes);
        self.leave = Leave::NONE;
        self.set_allowance();
        Amount { messages, bytes }
    }

    /// Whether a message waits for nothing but leave to be sent.
    pub(super) fn waits_for_leave(&self) -> bool {
        let suspect = || {
            let suspect = self.next_of(self.retries.sendable_suspects());
            let is_next = self.link.is_probed || !self.reads_on();
            suspect.is_some() && self.unacked.live() == 0 && is_next
        };
        self.leave.is_limited() && (self.bytes_at_hand().is_some() || suspect())
    }

    /// Bytes of the message whose turn it is.
    fn next_bytes(&mut self, now: Time) -> Option<u32> {
        loop {
            let next = self.next_by_rank(now)?;
            if self.let_expire(now, next) {
                continue;
            }
            return match next {
                Next::Retry(number) => self.retries.get(number).map(|retry| retry.bytes),
                Next::Held(key) => self.held.next_bytes(key),
                Next::Front => self.queue.front().map(|entry| entry.bytes),
            };
        }
    }
}
