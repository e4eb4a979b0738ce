//! Choosing what to send next.
//!
//! Retries go first, in order of number; then what was held for a key that is free again; then the
//! send queue. A message under suspicion goes alone, see [`super::suspects`]. What comes first but
//! does not fit the window makes the rest wait: large messages are not starved by small ones.

use super::*;

/// The message whose turn it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// One that is sent again.
    Retry(MessageNumber),
    /// The first that was stepped over for this key.
    Held(Option<KeyHash>),
    /// The front of the send queue.
    Front,
}

impl<B> Delivery<B> {
    /// The next message to be sent, if the link, the window, the receiver's grant and the order of
    /// keys allow one. Its body leaves the core with it.
    #[inline]
    pub fn poll_transmit(&mut self, now: Time) -> Option<Transmit<B>> {
        if self.unacked.live() >= self.allowance || self.unacked.next_tag() > self.tag_max {
            return None;
        }
        let is_straight = self.retries.is_empty() && self.held.is_empty();
        if !is_straight || self.terms.order == Order::Strict {
            return self.transmit_by_rank(now);
        }
        let front = self.queue.front()?;
        if front.expires.is_some() {
            return self.transmit_by_rank(now);
        }
        if !self.fits(front.bytes) {
            return None;
        }
        self.send_front(now)
    }

    #[inline]
    fn send_front(&mut self, now: Time) -> Option<Transmit<B>> {
        let entry = self.queue.pop()?;
        Some(self.send(now, entry, Line::Straight))
    }

    /// Whether the window has room in bytes, and there is leave to send them. One message always fits a
    /// window.
    #[inline]
    fn fits(&self, bytes: u32) -> bool {
        let in_flight = self.unacked.bytes();
        in_flight + u64::from(bytes) <= self.bytes_max
            || (self.unacked.live() == 0 && u64::from(bytes) <= self.leave.bytes_max)
    }

    /// The same of the window alone.
    pub(super) fn fits_window(&self, bytes: u32) -> bool {
        let in_flight = self.unacked.bytes();
        in_flight + u64::from(bytes) <= self.terms.window_bytes || self.unacked.live() == 0
    }

    /// A first attempt.
    #[inline]
    fn send(&mut self, now: Time, entry: Entry<B>, line: Line) -> Transmit<B> {
        let Entry { number, accepted_ms, bytes, key, expires, body } = entry;
        let (tag, left) = (self.unacked.next_tag(), Left::of(expires, now));
        let slot = Slot { number, sent_at: now, accepted_ms, key, bytes, line, left };
        self.unacked.push(slot, self.terms.window_messages);
        let redelivered = number <= self.maybe_sent;
        Transmit { tag, number, accepted_ms, attempt: 1, redelivered, body }
    }

    /// See the module. What has expired by the time its turn comes goes without being sent.
    fn transmit_by_rank(&mut self, now: Time) -> Option<Transmit<B>> {
        loop {
            let next = self.next_by_rank(now)?;
            if self.let_expire(now, next) {
                continue;
            }
            return match next {
                Next::Retry(number) => self.resend(now, number),
                Next::Held(key) => self.send_held(now, key),
                Next::Front => {
                    let bytes = self.queue.front()?.bytes;
                    if self.fits(bytes) { self.send_front(now) } else { None }
                }
            };
        }
    }

    /// Whose turn it is.
    pub(super) fn next_by_rank(&mut self, now: Time) -> Option<Next> {
        let suspect = self.next_of(self.retries.sendable_suspects());
        let is_idle = self.unacked.live() == 0;
        if let Some(number) = suspect
            && self.link.is_probed
        {
            return is_idle.then_some(Next::Retry(number));
        }
        if let Some(number) = self.next_of(self.retries.sendable()) {
            return Some(Next::Retry(number));
        }
        if self.retries.refused() < REFUSED_MAX {
            if let Some(key) = self.next_released() {
                return Some(Next::Held(key));
            }
            if self.step_to_free_key(now) {
                return Some(Next::Front);
            }
        }
        suspect.filter(|_| is_idle && !self.reads_on()).map(Next::Retry)
    }

    pub(super) fn next_of(
        &self,
        mut retries: impl Iterator<Item = MessageNumber>,
    ) -> Option<MessageNumber> {
        retries.find(|number| !self.is_retry_blocked(*number))
    }

    /// Only strict order makes retries wait for each other.
    fn is_retry_blocked(&self, number: MessageNumber) -> bool {
        let Some(retry) = self.retries.get(number) else { return true };
        self.terms.order == Order::Strict
            && (self.unacked.is_key_busy(retry.key)
                || self.retries.first_waiting(retry.key) != Some(number))
    }

    /// Sends a retry that is ready.
    fn resend(&mut self, now: Time, number: MessageNumber) -> Option<Transmit<B>> {
        let retry = self.retries.get(number)?;
        let (accepted_ms, key, bytes) = (retry.accepted_ms, retry.key, retry.bytes);
        let is_suspect = retry.losses > 0;
        let attempt = retry.attempts.saturating_add(1);
        if !self.fits(bytes) {
            return None;
        }
        let tag = self.unacked.next_tag();
        let state = self.retries.set(number, State::Unacked { tag, since: now })?;
        let State::Ready(body) = state else {
            debug_assert!(false, "only what is ready is sent again");
            self.retries.set(number, state);
            return None;
        };
        self.retries.update(number, |retry| retry.attempts = attempt);
        // What is left of a retry stands with the retry.
        let (line, left) = (Line::Retry, Left::default());
        let slot = Slot { number, sent_at: now, accepted_ms, key, bytes, line, left };
        self.unacked.push(slot, self.terms.window_messages);
        if is_suspect {
            self.link.is_alone = true;
            self.set_allowance();
        }
        self.unblock(key);
        Some(Transmit { tag, number, accepted_ms, attempt, redelivered: true, body })
    }

    /// The key whose held message goes next.
    fn next_released(&mut self) -> Option<Option<KeyHash>> {
        while let Some(key) = self.held.first_released() {
            if !self.is_key_blocked(key) {
                return Some(key);
            }
            self.held.unrelease_first();
        }
        None
    }

    /// Sends a message for the first time that had been stepped over: out of line, as its number is
    /// lower than others in flight.
    fn send_held(&mut self, now: Time, key: Option<KeyHash>) -> Option<Transmit<B>> {
        if !self.fits(self.held.next_bytes(key)?) {
            return None;
        }
        let entry = self.held.pop(key)?;
        let tag = self.unacked.next_tag();
        let state = State::Unacked { tag, since: now };
        let (expires, fresh) = (entry.expires, Retry::of(entry.accepted_ms, key, entry.bytes));
        self.retries.insert(entry.number, Retry { attempts: 1, expires, state, ..fresh });
        Some(self.send(now, entry, Line::Retry))
    }

    /// Whether as much has been stepped over as may be.
    pub(super) fn steps_over_no_more(&self) -> bool {
        self.held.len() >= SKIPPED_MAX || self.held.bytes() >= self.queue.bytes_max()
    }

    /// Steps over messages of busy keys. Whether a free one is in front then.
    fn step_to_free_key(&mut self, now: Time) -> bool {
        while let Some(entry) = self.queue.front() {
            let key = entry.key;
            // What has expired is not stepped over.
            if entry.expires.is_some() && self.let_expire(now, Next::Front) {
                continue;
            }
            let must_wait = self.is_key_blocked(key) || self.held.contains_key(key);
            if !must_wait || self.terms.order == Order::None {
                return true;
            }
            if self.steps_over_no_more() {
                return false;
            }
            let Some(entry) = self.queue.pop() else { return false };
            self.held.push(entry);
        }
        false
    }
}
