//! How fast a job may go: so many messages a second on the caller's clock, in small lots, so that a
//! lot costs one commit and not one a message.

use crate::time::Time;
use core::ops::RangeInclusive;
use core::time::Duration;

/// Messages a second that can be asked for.
pub const RATE: RangeInclusive<u32> = 1..=1_000_000;
/// Lots a second; a lot is one message at least.
const LOTS: u64 = 10;
/// What one message costs, in millionths of a message.
const MESSAGE: u64 = 1_000_000;

/// Never more than `rate × t` and one lot within any time t; what was not used is not saved up.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: u64,
    /// Millionths of messages that may go now.
    saved: u64,
    at: Time,
}

impl Pace {
    /// A pace of `rate` messages a second, with its first lot due at once.
    #[must_use]
    pub fn new(rate: u32, now: Time) -> Pace {
        let rate = u64::from(rate.max(1));
        Pace { rate, saved: lot(rate), at: now }
    }

    /// How many messages may go now.
    pub fn allowance(&mut self, now: Time) -> usize {
        let passed = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.at = self.at.max(now);
        self.saved =
            self.saved.saturating_add(passed.saturating_mul(self.rate)).min(lot(self.rate));
        usize::try_from(self.saved / MESSAGE).unwrap_or(usize::MAX)
    }

    /// So many have gone.
    pub fn take(&mut self, messages: usize) {
        self.saved = self.saved.saturating_sub(messages as u64 * MESSAGE);
    }

    /// How long until a whole lot may go.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::from_micros((lot(self.rate) - self.saved).div_ceil(self.rate))
    }
}

/// What goes at once, in millionths of messages.
fn lot(rate: u64) -> u64 {
    (rate / LOTS).max(1) * MESSAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes for `seconds` as a job does; returns how many went.
    fn gone(rate: u32, seconds: u64) -> u64 {
        let end = Time::from_millis(5_000 + seconds * 1_000);
        let mut now = Time::from_millis(5_000);
        let mut pace = Pace::new(rate, now);
        let mut gone = 0;
        while now < end {
            let lot = pace.allowance(now);
            pace.take(lot);
            gone += lot as u64;
            now = now + pace.wait().max(Duration::from_micros(1));
        }
        gone
    }

    #[test]
    fn a_rate_is_kept_to_the_lot() {
        for rate in [1, 3, 7, 50, 999, 50_000, *RATE.end()] {
            let (gone, exact) = (gone(rate, 60), u64::from(rate) * 60);
            let lot = (u64::from(rate) / LOTS).max(1);
            assert!(gone >= exact - lot && gone <= exact + lot, "{rate}/s: {gone} in a minute");
        }
    }

    #[test]
    fn time_that_went_by_unused_is_not_made_up_for() {
        let start = Time::from_millis(1);
        let mut pace = Pace::new(50, start);
        assert_eq!(pace.allowance(start), 5);
        pace.take(5);
        assert_eq!(pace.allowance(start), 0);
        assert_eq!(pace.wait(), Duration::from_millis(100));
        assert_eq!(pace.allowance(start + Duration::from_secs(86_400)), 5);
        // A clock that stands still or is asked about the past gives nothing more.
        pace.take(5);
        assert_eq!(pace.allowance(start), 0);
    }
}
