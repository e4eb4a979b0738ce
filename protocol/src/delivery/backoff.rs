//! When an unreachable peer is dialled next: exponential, jittered, capped; one timer per peer.
//!
//! The wait is drawn evenly from `min ..= min(cap, min · 2^n)`, n being the number of tries in a row
//! that proved nothing, so that a thousand peers lost at once do not come back at once. A connection
//! alone resets nothing, or a receiver that accepts and closes would be dialled for ever at `min`.

use crate::time::Time;
use core::time::Duration;

/// The dial timer of one peer.
#[derive(Debug)]
pub(super) struct Backoff {
    min_us: u64,
    max_us: u64,
    /// Tries in a row that proved nothing: failed dials and links lost before any progress.
    tries: u32,
    /// When the next dial is due, while one is.
    pub(super) next_attempt: Option<Time>,
    random: SplitMix64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Backoff {
        let mut backoff = Backoff {
            min_us: 0,
            max_us: 0,
            tries: 0,
            next_attempt: None,
            random: SplitMix64(seed),
        };
        backoff.set_bounds(Time::ZERO, min, max);
        backoff
    }

    /// Takes new bounds; a wait that has begun is cut to them, not drawn again.
    pub(super) fn set_bounds(&mut self, now: Time, min: Duration, max: Duration) {
        self.max_us = u64::try_from(max.as_micros()).unwrap_or(u64::MAX).max(1);
        self.min_us = u64::try_from(min.as_micros()).unwrap_or(u64::MAX).clamp(1, self.max_us);
        let longest = Time(now.0.saturating_add(self.max_us));
        self.next_attempt = self.next_attempt.map(|at| at.min(longest));
    }

    /// One more try proved nothing.
    pub(super) fn fail(&mut self) {
        self.tries = self.tries.saturating_add(1);
    }

    /// Draws the next wait.
    pub(super) fn schedule(&mut self, now: Time) -> Time {
        let doubled = match self.min_us.checked_mul(1 << self.tries.clamp(1, 32)) {
            Some(us) => us.min(self.max_us),
            None => self.max_us,
        };
        let wait = self.min_us + self.random.below(doubled - self.min_us + 1);
        let at = now + Duration::from_micros(wait);
        self.next_attempt = Some(at);
        at
    }

    /// The peer has proved itself: the next wait is short again.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }

    /// Tries in a row that proved nothing.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }
}

/// Sebastiano Vigna's SplitMix64: eight bytes of state, good enough to spread dials.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly from `0..bound`, by multiplication; the bias of under 2⁻³⁰ harms no timer.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_the_minimum_and_the_doubling_cap() {
        for seed in 0..200 {
            let mut backoff =
                Backoff::new(Duration::from_millis(250), Duration::from_secs(60), seed);
            for try_number in 1..20_u32 {
                let now = Time(seed * 1_000_003);
                backoff.fail();
                let wait = backoff.schedule(now).since(now);
                let cap = Duration::from_millis(250 << try_number).min(Duration::from_secs(60));
                assert!(
                    wait >= Duration::from_millis(250) && wait <= cap,
                    "{try_number}: {wait:?}"
                );
            }
        }
    }

    #[test]
    fn a_thousand_peers_spread_over_the_cap() {
        let mut in_tenth = [0_u32; 10];
        for seed in 0..1_000 {
            let mut backoff =
                Backoff::new(Duration::from_millis(250), Duration::from_secs(60), seed);
            (0..12).for_each(|_| backoff.fail());
            let wait = backoff.schedule(Time::ZERO);
            in_tenth[(wait.0 / 6_000_001) as usize] += 1;
        }
        assert!(in_tenth.iter().all(|n| (60..=150).contains(n)), "{in_tenth:?}");
    }

    #[test]
    fn proof_makes_the_next_wait_short_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(60), 7);
        (0..20).for_each(|_| backoff.fail());
        assert_eq!(backoff.tries(), 20);
        backoff.reset();
        assert!(backoff.schedule(Time::ZERO) <= Time::from_millis(20));
    }

    #[test]
    fn absurd_bounds_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::ZERO, 1);
        assert_eq!(backoff.schedule(Time::ZERO), Time(1));
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX, 1);
        assert_eq!(backoff.schedule(Time(5)), Time(u64::MAX));
    }
}
