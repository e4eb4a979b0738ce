//! When messages are due.
//!
//! In a closed loop a message is due as soon as one before it is confirmed. In an open loop message
//! `k` of the run is due at `k / rate`, whether or not the node keeps up, and its latency is counted
//! from then: a node that stalls for a second is charged for everything that waited behind the stall
//! (the omission that is called coordinated elsewhere).
//!
//! The runtime's timers tick in milliseconds, so a thread of its own keeps the beat and releases what
//! is due. The wait for the beat is part of the latency, too. Producers take turns by [`RUN`]
//! messages, so that at high rates one write carries several.

use futures_util::task::AtomicWaker;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;
use std::thread;
use std::time::{Duration, Instant};

/// Shortest time between two beats.
const BEAT: Duration = Duration::from_micros(100);
/// Messages in a row that are one producer's.
const RUN: u64 = 16;

/// The open loop's schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Messages per second, over all producers; more than zero.
    pub(super) rate: f64,
    pub(super) producers: u16,
    /// Messages of the whole run.
    pub(super) messages: u64,
}

impl Schedule {
    /// When message `number` of a producer is due, ns since the run began.
    #[inline]
    pub(super) fn due_ns(&self, producer: u16, number: u64) -> u64 {
        let turn = number / RUN * u64::from(self.producers) + u64::from(producer);
        let place = turn * RUN + number % RUN;
        (place as f64 * 1e9 / self.rate) as u64
    }

    /// How many messages of a producer are due when `released` of the run are.
    #[inline]
    fn due(&self, producer: u16, released: u64) -> u64 {
        let round = RUN * u64::from(self.producers);
        let begun = (released % round).saturating_sub(RUN * u64::from(producer));
        released / round * RUN + begun.min(RUN)
    }

    /// Messages of the run that are due.
    fn released(&self, elapsed: Duration) -> u64 {
        ((elapsed.as_secs_f64() * self.rate) as u64 + 1).min(self.messages)
    }
}

/// Tells producers when something is due.
#[derive(Debug)]
pub(super) struct Beat {
    pub(super) schedule: Schedule,
    released: AtomicU64,
    /// By producer.
    sleeping: Vec<AtomicWaker>,
}

impl Beat {
    /// Starts the beat. It ends with the schedule, or when nobody else holds on to it.
    pub(super) fn start(schedule: Schedule, origin: Instant) -> Arc<Beat> {
        let sleeping = (0..schedule.producers).map(|_| AtomicWaker::new()).collect();
        let beat = Arc::new(Beat { schedule, released: AtomicU64::new(0), sleeping });
        let kept = Arc::clone(&beat);
        thread::spawn(move || kept.run(origin));
        beat
    }

    fn run(self: Arc<Beat>, origin: Instant) {
        let mut released = 0;
        while released < self.schedule.messages && Arc::strong_count(&self) > 1 {
            let due = Duration::from_secs_f64(released as f64 / self.schedule.rate);
            thread::sleep(due.saturating_sub(origin.elapsed()).max(BEAT));
            let before = std::mem::replace(&mut released, self.schedule.released(origin.elapsed()));
            self.released.store(released, Ordering::Release);
            for (producer, sleeping) in (0..).zip(&self.sleeping) {
                if self.schedule.due(producer, before) < self.schedule.due(producer, released) {
                    sleeping.wake();
                }
            }
        }
    }

    /// How many messages of a producer are due; it is woken when there are more.
    pub(super) fn poll_due(&self, producer: u16, cx: &Context<'_>) -> u64 {
        if let Some(sleeping) = self.sleeping.get(usize::from(producer)) {
            sleeping.register(cx.waker());
        }
        self.schedule.due(producer, self.released.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn producers_take_turns_and_none_is_early_or_late() {
        let schedule = Schedule { rate: 1_000.0, producers: 3, messages: 150 };
        assert_eq!(schedule.due_ns(0, 0), 0);
        assert_eq!(schedule.due_ns(1, 0), 16_000_000);
        assert_eq!(schedule.due_ns(2, 17), (5 * 16 + 1) * 1_000_000);
        for ms in 0..200 {
            let now = Duration::from_millis(ms) + Duration::from_nanos(10);
            let released = schedule.released(now);
            let due: u64 = (0..3).map(|producer| schedule.due(producer, released)).sum();
            assert_eq!(due, released);
            for producer in 0..if released < 150 { 3 } else { 0 } {
                let next = schedule.due(producer, released);
                assert!(u128::from(schedule.due_ns(producer, next)) > now.as_nanos());
                let sent = next.checked_sub(1).map(|last| schedule.due_ns(producer, last));
                assert!(sent.is_none_or(|sent| u128::from(sent) <= now.as_nanos()));
            }
        }
    }
}
