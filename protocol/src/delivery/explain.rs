//! Where a message is, and the one thing it waits for.
//!
//! What holds the whole peer is named before what holds one message: without a link it does not
//! matter whose turn it is.

use super::*;

impl<B> Delivery<B> {
    /// Where a message is that the journal calls open for this peer; `None` if it is not open here.
    #[must_use]
    pub fn whereabouts(&self, now: Time, number: MessageNumber) -> Option<Whereabouts> {
        if let Some(retry) = self.retries.get(number) {
            return Some(retry.whereabouts(now));
        }
        if let Some(slot) = self.slot(number) {
            return Some(Whereabouts::Unacked { attempts: 1, since: slot.sent_at });
        }
        let queued = self.queue.find(number).is_some()
            || self.held.find(number).is_some()
            || self.queue.is_unread(number);
        queued.then_some(Whereabouts::Queued { attempts: 0 })
    }

    /// What keeps a message from being done that is open here. Takes time with what is in flight: for
    /// people who ask, not for every message.
    #[must_use]
    pub fn explain(&self, now: Time, number: MessageNumber) -> Option<Blocked> {
        let by = |by| Blocked { by, behind: None, until: None, why: String::new() };
        let whereabouts = self.whereabouts(now, number)?;
        if let Whereabouts::Unacked { since, .. } = whereabouts {
            return Some(Blocked { until: Some(since + self.terms.ack_timeout), ..by(Stall::Ack) });
        }
        if self.paused {
            return Some(Blocked { why: self.paused_why(), ..by(Stall::Paused) });
        }
        if !self.link.is_up() {
            let (until, why) = (self.backoff.next_attempt, self.unreachable_why());
            return Some(Blocked { until, why, ..by(Stall::Link) });
        }
        if let Whereabouts::Retrying { next_attempt, reason, .. } = whereabouts {
            let until = Some(next_attempt);
            return Some(Blocked { until, why: reason, ..by(Stall::Refusals) });
        }
        if let Some((behind, accepted_ms)) = self.behind(number) {
            let until = self.retries.get(behind).and_then(Retry::due);
            let behind = Some((behind, accepted_ms));
            return Some(Blocked { behind, until, ..by(Stall::Keys) });
        }
        // It waits, so something does.
        let stall = self.stall().unwrap_or(Stall::Journal);
        let alone = self.unacked.iter().next().filter(|_| stall == Stall::Suspect);
        let behind = alone.map(|(_, slot)| (slot.number, slot.accepted_ms));
        let until = match stall {
            Stall::Refusals => self.retries.next_due(),
            Stall::Journal => self.load_retry_at,
            _ => None,
        };
        Some(Blocked { behind, until, ..by(stall) })
    }

    /// The earlier message of its key that has to go before this one, and when it was accepted.
    fn behind(&self, number: MessageNumber) -> Option<(MessageNumber, u64)> {
        let is_strict = self.terms.order == Order::Strict;
        let (key, is_retry) = match (self.retries.get(number), self.held.find(number)) {
            (Some(retry), _) => (retry.key, true),
            (None, Some(entry)) => (entry.key, false),
            (None, None) => (self.queue.find(number)?.key, false),
        };
        let waits = match self.terms.order {
            Order::None => false,
            Order::Sent => !is_retry && key.is_some(),
            Order::Strict => true,
        };
        if !waits {
            return None;
        }
        let mut in_flight = self.unacked.iter().map(|(_, slot)| slot).filter(|_| is_strict);
        let sent = in_flight.find(|slot| slot.key == key);
        let sent = sent.map(|slot| (slot.number, slot.accepted_ms));
        let again = || {
            let first = self.retries.first_waiting(key)?;
            Some((first, self.retries.get(first)?.accepted_ms))
        };
        let held = || self.held.first_of(key).map(|entry| (entry.number, entry.accepted_ms));
        sent.or_else(again).or_else(held).filter(|(behind, _)| *behind != number)
    }

    fn slot(&self, number: MessageNumber) -> Option<&Slot> {
        self.unacked.iter().map(|(_, slot)| slot).find(|slot| slot.number == number)
    }

    /// Whether the window has no room in bytes for the message whose turn it is.
    fn is_next_too_large(&self) -> bool {
        self.bytes_at_hand().is_some_and(|bytes| !self.fits_window(bytes))
    }

    /// Bytes of the message whose turn it is, if it is here and not under suspicion.
    pub(super) fn bytes_at_hand(&self) -> Option<u32> {
        if self.link.is_probed && self.next_of(self.retries.sendable_suspects()).is_some() {
            // It goes next, and alone.
            return None;
        }
        let retry =
            self.next_of(self.retries.sendable()).and_then(|number| self.retries.get(number));
        match retry {
            Some(retry) => Some(retry.bytes),
            None if self.retries.refused() >= REFUSED_MAX => None,
            None => self.first_fresh_bytes(),
        }
    }

    /// Bytes of the message that is sent next for the first time, if its key lets it.
    fn first_fresh_bytes(&self) -> Option<u32> {
        let mut released = self.held.released();
        if let Some(key) = released.find(|key| !self.is_key_blocked(*key)) {
            return self.held.next_bytes(key);
        }
        let front = self.queue.front()?;
        let waits = self.is_key_blocked(front.key) || self.held.contains_key(front.key);
        (!waits || self.terms.order == Order::None).then_some(front.bytes)
    }

    /// What keeps the next message from being sent, if one waits.
    pub(super) fn stall(&self) -> Option<Stall> {
        let live = u64::from(self.unacked.live());
        let is_ramping = self.link.ramp.is_some_and(|r| r.window() < self.terms.window_messages);
        let waits = self.waiting > live;
        match () {
            () if !waits => None,
            () if self.paused => Some(Stall::Paused),
            () if !self.link.is_up() => Some(Stall::Link),
            () if self.unacked.next_tag() > self.link.grant => Some(Stall::Grant),
            () if self.link.is_alone => Some(Stall::Suspect),
            () if live >= u64::from(self.allowance) && is_ramping => Some(Stall::Ramp),
            () if live >= u64::from(self.allowance) => Some(Stall::Window),
            () if self.is_next_too_large() => Some(Stall::Window),
            () if self.waits_for_leave() => Some(Stall::Rate),
            () if self.retries.refused() >= REFUSED_MAX => Some(Stall::Refusals),
            () if self.loading.is_some() || self.load_retry_at.is_some() => Some(Stall::Journal),
            () if self.retries.sendable_suspects().next().is_some() => Some(Stall::Suspect),
            () if self.queue.front().is_some() && self.held.is_empty() => Some(Stall::Window),
            () if !self.held.is_empty() => Some(Stall::Keys),
            () if self.retries.refused() > 0 => Some(Stall::Refusals),
            () => Some(Stall::Journal),
        }
    }
}
