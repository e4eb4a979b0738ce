//! A token bucket on the caller's clock, exact in integers: nothing is rounded, whatever the steps in
//! which time passes.

use crate::time::Time;
use core::time::Duration;

/// Parts of a token: [`Time`] counts microseconds, rates count seconds.
const PARTS: i128 = 1_000_000;

/// Tokens that come at a rate and are kept up to a burst.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    per_second: u64,
    burst: u64,
    /// In parts of a token. Below zero after something larger than the burst was let through.
    level: i128,
    /// When `level` was true.
    at: Time,
}

impl Bucket {
    /// A full bucket.
    pub(super) fn new(now: Time, per_second: u64, burst: u64) -> Bucket {
        let burst = burst.max(1);
        Bucket { per_second, burst, level: i128::from(burst) * PARTS, at: now }
    }

    /// Takes another rate and burst; what has come so far came at the old rate.
    pub(super) fn set(&mut self, now: Time, per_second: u64, burst: u64) {
        self.refill(now);
        self.per_second = per_second;
        self.burst = burst.max(1);
        self.level = self.level.min(self.full());
    }

    /// Whether `cost` may be taken now: as much is there, or the bucket is full.
    pub(super) fn has(&mut self, now: Time, cost: u64) -> bool {
        self.refill(now);
        self.level >= self.needed(cost)
    }

    /// When `cost` may be taken; `None`: never, at this rate.
    pub(super) fn ready_at(&self, cost: u64) -> Option<Time> {
        let missing = self.needed(cost) - self.level;
        if missing <= 0 {
            return Some(self.at);
        }
        if self.per_second == 0 {
            return None;
        }
        let rate = i128::from(self.per_second);
        let wait_us = u64::try_from((missing + rate - 1) / rate).unwrap_or(u64::MAX);
        Some(self.at + Duration::from_micros(wait_us))
    }

    /// Whole tokens there are, as of the last look.
    pub(super) fn available(&self) -> u64 {
        u64::try_from(self.level.max(0) / PARTS).unwrap_or(u64::MAX)
    }

    /// Time passes first: what came while the bucket was full is not owed afterwards.
    pub(super) fn take(&mut self, now: Time, cost: u64) {
        self.refill(now);
        self.level -= i128::from(cost) * PARTS;
    }

    /// Puts back what was taken and not used.
    pub(super) fn put_back(&mut self, now: Time, cost: u64) {
        self.refill(now);
        self.level = (self.level + i128::from(cost) * PARTS).min(self.full());
    }

    /// What is larger than the burst goes when the bucket is full, and is paid for afterwards.
    fn needed(&self, cost: u64) -> i128 {
        i128::from(cost.min(self.burst)) * PARTS
    }

    fn full(&self) -> i128 {
        i128::from(self.burst) * PARTS
    }

    fn refill(&mut self, now: Time) {
        let passed_us = i128::from(now.0.saturating_sub(self.at.0));
        self.level = (self.level + i128::from(self.per_second) * passed_us).min(self.full());
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_to_the_microsecond_when_a_token_is_there() {
        let mut bucket = Bucket::new(Time::ZERO, 3, 1);
        assert!(bucket.has(Time::ZERO, 1));
        bucket.take(Time::ZERO, 1);
        let at = bucket.ready_at(1).unwrap();
        assert_eq!(at, Time(333_334));
        assert!(!bucket.has(Time(at.0 - 1), 1));
        assert!(bucket.has(at, 1));
    }

    #[test]
    fn small_steps_of_time_lose_nothing() {
        let mut bucket = Bucket::new(Time::ZERO, 7, 10);
        bucket.take(Time::ZERO, 10);
        let mut taken = 0;
        for us in 0..=10_000_000 {
            if bucket.has(Time(us), 1) {
                bucket.take(Time(us), 1);
                taken += 1;
            }
        }
        assert_eq!(taken, 70);
    }

    #[test]
    fn more_than_the_burst_goes_when_full_and_is_paid_for() {
        let mut bucket = Bucket::new(Time::ZERO, 100, 10);
        assert!(bucket.has(Time::ZERO, 1_000));
        bucket.take(Time::ZERO, 1_000);
        assert_eq!(bucket.ready_at(1), Some(Time::from_millis(9_910)));
        assert_eq!(bucket.ready_at(1_000), Some(Time::from_millis(10_000)));
    }

    #[test]
    fn without_a_rate_what_is_gone_stays_gone() {
        let mut bucket = Bucket::new(Time::ZERO, 0, 5);
        bucket.take(Time::ZERO, 5);
        assert!(!bucket.has(Time(u64::MAX), 1));
        assert_eq!(bucket.ready_at(1), None);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let mut bucket = Bucket::new(Time::from_millis(1_000), 1_000, 10);
        bucket.take(Time::from_millis(1_000), 10);
        assert!(!bucket.has(Time::ZERO, 1));
        assert!(!bucket.has(Time::from_millis(1_000), 1));
        assert!(bucket.has(Time::from_millis(1_001), 1));
    }

    #[test]
    fn nothing_is_saved_up_beyond_the_burst_before_it_is_taken() {
        let mut bucket = Bucket::new(Time::ZERO, 1_000, 1);
        bucket.take(Time::from_millis(50), 1);
        assert!(!bucket.has(Time::from_millis(50), 1));
        assert!(bucket.has(Time::from_millis(51), 1));
    }
}
