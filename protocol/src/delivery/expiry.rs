//! Messages whose time to live has ended: what is sent no more.
//!
//! A message expires when its turn comes: where it would be sent, or looked at for its key. So it is
//! never one in flight, none of a peer without a link, and it costs no timer. What was refused is
//! looked at when its time has ended, for its key's sake; and what was stepped over, where so much was
//! that all keys wait for it. An expired message leaves the core by
//! [`Delivery::poll_expired`], with a record of its own in the ledger.

use super::*;
use core::num::NonZeroU32;

/// Units of an [`Expiry`], in microseconds: a twentieth of a second.
const TICK_US: u64 = 50_000;

/// When a message's time to live ends, on the node's clock: rounded up, and packed, so that an entry of
/// the send queue is no larger for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expiry(NonZeroU32);

impl Expiry {
    /// The end of a life at this time, or a moment later. `None` if it is further away than a process
    /// lives (6.8 years): the next one will see.
    #[must_use]
    pub fn at(time: Time) -> Option<Expiry> {
        let ticks = u32::try_from(time.0.div_ceil(TICK_US).max(1)).ok()?;
        NonZeroU32::new(ticks).map(Expiry)
    }

    /// When that is.
    #[must_use]
    pub const fn time(self) -> Time {
        Time(self.0.get() as u64 * TICK_US)
    }

    pub(super) fn has_passed(self, now: Time) -> bool {
        self.time() <= now
    }
}

/// How long a message in flight has left from when it was sent, in the three bytes that a slot has for
/// it: enough for as long as any refusal waits. One that has longer counts as having no end: its next
/// try reads it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left([u8; 3]);

impl Left {
    #[inline]
    pub(super) fn of(expires: Option<Expiry>, sent_at: Time) -> Left {
        match expires {
            None => Left::default(),
            Some(expires) => Left::until(expires, sent_at),
        }
    }

    #[cold]
    fn until(expires: Expiry, sent_at: Time) -> Left {
        let left_us = expires.time().0.saturating_sub(sent_at.0);
        match u32::try_from(left_us.div_ceil(TICK_US).max(1)) {
            Ok(ticks) if ticks < 1 << 24 => {
                let [_, bytes @ ..] = ticks.to_be_bytes();
                Left(bytes)
            }
            _ => Left::default(),
        }
    }

    pub(super) fn expiry(self, sent_at: Time) -> Option<Expiry> {
        let Left([a, b, c]) = self;
        match u32::from_be_bytes([0, a, b, c]) {
            0 => None,
            ticks => Expiry::at(Time(sent_at.0 + u64::from(ticks) * TICK_US)),
        }
    }
}

/// A message whose time to live has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Which.
    pub number: MessageNumber,
    /// When it was accepted; with the number it makes the id.
    pub accepted_ms: u64,
    /// How often it was sent.
    pub attempts: u16,
    /// Bytes of its body.
    pub bytes: u32,
}

impl<B> Delivery<B> {
    /// The next message that has expired.
    #[inline]
    pub fn poll_expired(&mut self) -> Option<Expired> {
        self.expired.pop_front()
    }

    /// Lets a message go that was to be sent next, if its time has ended.
    pub(super) fn let_expire(&mut self, now: Time, next: Next) -> bool {
        let expires = match next {
            Next::Retry(number) => self.retries.get(number).and_then(|retry| retry.expires),
            Next::Held(key) => self.held.first_of(key).and_then(|entry| entry.expires),
            Next::Front => self.queue.front().and_then(|entry| entry.expires),
        };
        if !expires.is_some_and(|expires| expires.has_passed(now)) {
            return false;
        }
        let gone = match next {
            Next::Retry(number) => {
                self.queue.done_ahead(number);
                self.retries.remove(number).map(|retry| (number, Out::of_retry(&retry)))
            }
            Next::Held(key) => self.held.pop(key).map(|entry| (entry.number, Out::of(&entry))),
            Next::Front => self.queue.pop().map(|entry| (entry.number, Out::of(&entry))),
        };
        let Some((number, out)) = gone else { return false };
        let key = out.key;
        self.note_expired(number, out);
        self.unblock(key);
        true
    }

    /// When what was stepped over is to be looked at, because nothing more can be.
    pub(super) fn held_due(&self) -> Option<Time> {
        let end = self.held.first_end().filter(|_| self.steps_over_no_more());
        end.map(Expiry::time)
    }

    /// Lets go of all that was stepped over and has expired since, if nothing more can be stepped over.
    pub(super) fn let_held_expire(&mut self, now: Time) {
        if !self.steps_over_no_more() {
            return;
        }
        while self.held.first_end().is_some_and(|end| end.has_passed(now)) {
            let Some(entry) = self.held.pop_first_end() else { return };
            self.note_expired(entry.number, Out::of(&entry));
        }
    }

    fn note_expired(&mut self, number: MessageNumber, out: Out) {
        let Out { accepted_ms, attempts, bytes, .. } = out;
        self.count_out(bytes);
        self.expired.push_back(Expired { number, accepted_ms, attempts, bytes });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_never_early_and_at_most_a_twentieth_of_a_second_late() {
        for us in [0, 1, 49_999, 50_000, 50_001, 1_234_567_890, u64::from(u32::MAX) * TICK_US] {
            let end = Expiry::at(Time(us)).unwrap().time().0;
            assert!(end >= us && end - us <= TICK_US, "{us}: {end}");
        }
        assert_eq!(Expiry::at(Time(u64::from(u32::MAX) * TICK_US + 1)), None);
    }

    #[test]
    fn what_is_left_of_one_in_flight_is_never_less_and_hardly_more() {
        for (end_ms, sent_ms) in [(1_000, 0), (1_049, 1_000), (90_000_000, 17), (10, 900)] {
            let (end, sent) = (Expiry::at(Time::from_millis(end_ms)), Time::from_millis(sent_ms));
            let left = Left::of(end, sent).expiry(sent).unwrap().time();
            let exact = end.unwrap().time().max(sent);
            assert!(left >= exact && left.since(exact) <= Duration::from_micros(2 * TICK_US));
        }
        // Longer than any refusal waits: 7 days, or 24 hours where the receiver says how long.
        let (day, sent) = (24 * 60 * 60 * 1_000, Time::from_millis(5));
        assert!(Left::of(Expiry::at(Time::from_millis(9 * day)), sent).expiry(sent).is_some());
        assert_eq!(Left::of(Expiry::at(Time::from_millis(10 * day)), sent), Left::default());
        assert_eq!(Left::of(None, sent).expiry(sent), None);
    }

    #[test]
    fn nothing_that_there_is_many_of_grew_by_it() {
        assert_eq!(size_of::<Entry<[usize; 4]>>(), 64);
        assert_eq!(size_of::<Slot>(), 40);
        assert_eq!(size_of::<Option<Expiry>>(), 4);
    }
}
