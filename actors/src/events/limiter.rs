//! Keeps one loud peer from filling the log, without hiding that it is loud.
//!
//! Each (subject, event) may write a burst of lines per period. What it would have written beyond
//! that is counted, and the count goes into the first line of a later period, or is collected by
//! [`Limiter::take_expired`] if no such line comes. Memory is bounded: while as many subjects as there
//! are places have been heard of within a period, new ones share one budget for each event.

use super::Field;
use restante_protocol::time::Time;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
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

/// See the module. `S` is whatever a budget is for: a peer, say, or an address.
#[derive(Debug)]
pub struct Limiter<S> {
    /// `None` stands for every subject that came when all places were taken.
    budgets: HashMap<(Option<S>, &'static str), Budget>,
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

/// Subjects that are named one by one when what they did not get to write is told.
const NAMED_MAX: usize = 20;
/// How often [`Limiter::take_expired`] should be called.
pub const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Lines that were not written: of what, about whom (`None`: about many), and how many.
pub type Unsaid<S> = (&'static str, Option<S>, u64);

impl<S: Copy + Eq + Hash + Ord> Default for Limiter<S> {
    /// 5 lines of a kind in 10 seconds, for at most 8,192 kinds.
    fn default() -> Limiter<S> {
        Limiter::new(5, SWEEP_EVERY, 8_192)
    }
}

impl<S: Copy + Eq + Hash + Ord> Limiter<S> {
    /// Allows `burst` lines of a kind per `period` and remembers at most `capacity` kinds.
    #[must_use]
    pub fn new(burst: u32, period: Duration, capacity: usize) -> Limiter<S> {
        Limiter { budgets: HashMap::new(), burst, period, capacity }
    }

    /// Whether `event` about `subject` may be written now, and if so what it has to say about those
    /// before it that were not.
    pub fn admit(&mut self, subject: S, event: &'static str, now: Time) -> Option<Suppressed> {
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

    /// Forgets whose period is over and returns what they still had to say, as few lines: the loudest
    /// subjects by themselves, the others together.
    pub fn take_expired(&mut self, now: Time) -> Vec<Unsaid<S>> {
        let mut unsaid = Vec::new();
        self.budgets.retain(|(subject, event), budget| {
            let live = now.since(budget.period_began) < self.period;
            if !live && budget.suppressed > 0 {
                unsaid.push((*event, *subject, budget.suppressed));
            }
            live
        });
        unsaid.sort_unstable_by_key(|(event, subject, lines)| {
            (subject.is_none(), std::cmp::Reverse(*lines), *event, *subject)
        });
        let mut others: BTreeMap<&'static str, u64> = BTreeMap::new();
        let named = unsaid.iter().take(NAMED_MAX).take_while(|(_, subject, _)| subject.is_some());
        let named = named.count();
        for (event, _, lines) in unsaid.drain(named..) {
            *others.entry(event).or_default() += lines;
        }
        unsaid.extend(others.into_iter().map(|(event, lines)| (event, None, lines)));
        unsaid
    }

    /// The subject itself while there is room for it.
    fn place(&self, subject: S, event: &'static str) -> Option<S> {
        let has_place = self.budgets.len() < self.capacity;
        (has_place || self.budgets.contains_key(&(Some(subject), event))).then_some(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(10);

    #[test]
    fn a_burst_is_written_and_the_rest_is_counted_into_the_next_period() {
        let mut limiter = Limiter::<u64>::new(2, PERIOD, 8);
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
        assert_eq!(limiter.take_expired(later), [("odd_ack", Some(1), 3)]);
        assert_eq!(limiter.take_expired(later), []);
    }

    #[test]
    fn memory_is_bounded_and_strangers_share_one_budget() {
        let mut limiter = Limiter::new(1, PERIOD, 2);
        let written =
            (0..1_000_u64).filter(|peer| limiter.admit(*peer, "bad_frame", Time::ZERO).is_some());
        assert_eq!(written.count(), 3);
        assert_eq!(limiter.budgets.len(), 3);
        let unsaid = limiter.take_expired(Time::ZERO + PERIOD);
        assert_eq!(unsaid, [("bad_frame", None, 997)]);
        assert!(limiter.admit(999, "bad_frame", Time::ZERO + PERIOD).is_some());
    }

    #[test]
    fn a_thousand_loud_subjects_are_told_in_few_lines() {
        let mut limiter = Limiter::new(1, PERIOD, 2_000);
        for subject in 1..=1_000_u64 {
            for _ in 0..=subject {
                limiter.admit(subject, "bad_frame", Time::ZERO);
            }
        }
        let unsaid = limiter.take_expired(Time::ZERO + PERIOD);
        assert_eq!(unsaid.len(), NAMED_MAX + 1);
        assert_eq!(unsaid[0], ("bad_frame", Some(1_000), 1_000), "the loudest first");
        assert_eq!(unsaid.last(), Some(&("bad_frame", None, 980 * 981 / 2)));
    }
}
