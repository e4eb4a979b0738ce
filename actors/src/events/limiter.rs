//! Keeps one loud peer from filling the log, without hiding that it is loud.
//!
//! Each (subject, event) may write a burst of lines per period. What it would have written beyond
//! that is counted, and the count goes into the first line of a later period, or is collected by
//! [`Limiter::take_expired`] if no such line comes. Memory is bounded: past the capacity, new
//! subjects of an event share one budget.

use super::Field;
use restante_protocol::time::Time;
use std::collections::HashMap;
use std::time::Duration;

/// How many lines of the same kind were not written before this one; left out of the line when 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suppressed(pub u64);

impl Field for Suppressed {
    type Recorded = Option<u64>;
    fn recorded(self) -> Option<u64> {
        Some(self.0).filter(|count| *count > 0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Limiter {
    budgets: HashMap<(u64, &'static str), Budget>,
    burst: u32,
    period: Duration,
    capacity: usize,
}

#[derive(Debug)]
struct Budget {
    period_began: Time,
    written: u32,
    suppressed: u64,
}

/// Stands for every subject that came when all places were taken. Peer ids and connection numbers
/// never reach it.
const OTHERS: u64 = u64::MAX;

impl Default for Limiter {
    /// 5 lines of a kind in 10 seconds, for at most 8,192 kinds.
    fn default() -> Limiter {
        Limiter::new(5, Duration::from_secs(10), 8_192)
    }
}

impl Limiter {
    /// Allows `burst` lines of a kind per `period` and remembers at most `capacity` kinds.
    #[must_use]
    pub fn new(burst: u32, period: Duration, capacity: usize) -> Limiter {
        Limiter { budgets: HashMap::new(), burst, period, capacity }
    }

    /// Whether `event` about `subject` (a peer's id or a connection's number) may be written now,
    /// and if so what it has to say about those before it that were not.
    pub fn admit(&mut self, subject: u64, event: &'static str, now: Time) -> Option<Suppressed> {
        let subject = self.place(subject, event);
        let fresh = || Budget { period_began: now, written: 0, suppressed: 0 };
        let budget = self.budgets.entry((subject, event)).or_insert_with(fresh);
        if now.since(budget.period_began) >= self.period {
            budget.period_began = now;
            budget.written = 0;
        }
        if budget.written >= self.burst {
            budget.suppressed += 1;
            return None;
        }
        budget.written += 1;
        Some(Suppressed(std::mem::take(&mut budget.suppressed)))
    }

    /// Forgets what has been quiet for a period and returns what it still had to say: subject,
    /// event, and how many lines of it were not written. Call it about once a period.
    pub fn take_expired(&mut self, now: Time) -> Vec<(u64, &'static str, Suppressed)> {
        let mut unsaid = Vec::new();
        self.budgets.retain(|(subject, event), budget| {
            let live = now.since(budget.period_began) < self.period;
            if !live && budget.suppressed > 0 {
                unsaid.push((*subject, *event, Suppressed(budget.suppressed)));
            }
            live
        });
        unsaid.sort_unstable_by_key(|(subject, event, _)| (*subject, *event));
        unsaid
    }

    /// The subject itself while there is room for it.
    fn place(&self, subject: u64, event: &'static str) -> u64 {
        if self.budgets.len() < self.capacity || self.budgets.contains_key(&(subject, event)) {
            return subject;
        }
        OTHERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn a_burst_is_written_and_the_rest_is_counted_into_the_next_period() {
        let mut limiter = Limiter::new(2, PERIOD, 8);
        let start = Time::from_millis(1_000);
        let told: Vec<_> = (0..5).map(|_| limiter.admit(7, "peer_down", start)).collect();
        assert_eq!(told, [Some(Suppressed(0)), Some(Suppressed(0)), None, None, None]);
        assert_eq!(limiter.admit(7, "peer_down", start + PERIOD), Some(Suppressed(3)));
        assert_eq!(limiter.admit(7, "peer_down", start + PERIOD), Some(Suppressed(0)));
    }

    #[test]
    fn peers_and_events_have_budgets_of_their_own() {
        let mut limiter = Limiter::new(1, PERIOD, 8);
        assert!(limiter.admit(1, "peer_down", Time::ZERO).is_some());
        assert!(limiter.admit(1, "peer_down", Time::ZERO).is_none());
        assert!(limiter.admit(2, "peer_down", Time::ZERO).is_some());
        assert!(limiter.admit(1, "peer_up", Time::ZERO).is_some());
    }

    #[test]
    fn what_stays_unsaid_is_collected_once() {
        let mut limiter = Limiter::new(1, PERIOD, 8);
        for _ in 0..4 {
            limiter.admit(1, "odd_ack", Time::ZERO);
        }
        assert_eq!(limiter.take_expired(Time::ZERO), []);
        let later = Time::ZERO + PERIOD;
        assert_eq!(limiter.take_expired(later), [(1, "odd_ack", Suppressed(3))]);
        assert_eq!(limiter.take_expired(later), []);
    }

    #[test]
    fn memory_is_bounded_and_strangers_share_one_budget() {
        let mut limiter = Limiter::new(1, PERIOD, 2);
        let written =
            (0..1_000).filter(|peer| limiter.admit(*peer, "bad_frame", Time::ZERO).is_some());
        assert_eq!(written.count(), 3);
        assert_eq!(limiter.budgets.len(), 3);
        let unsaid = limiter.take_expired(Time::ZERO + PERIOD);
        assert_eq!(unsaid, [(OTHERS, "bad_frame", Suppressed(997))]);
        assert!(limiter.admit(999, "bad_frame", Time::ZERO + PERIOD).is_some());
    }
}
