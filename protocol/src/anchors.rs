//! When on the node's monotonic clock a message was accepted, of which the log has the wall clock's time.
//!
//! Wall clocks are set: forwards by hours, or back. What is promised for a time must not end early or
//! live on for that. So it is noted where the two clocks stood whenever one has moved against the other
//! ([`Anchors::note`]), and a message's time is read by the anchor in force when it was accepted. Of the
//! time before the process began only the wall clock tells; a message it puts into the future counts as
//! accepted when the process began.

use crate::id::MessageNumber;
use crate::time::Time;
use core::time::Duration;

/// How far the clocks may drift apart before it is noted: a time is as exact as that.
const DRIFT_MS: u64 = 200;
/// Anchors kept; beyond that the one is forgotten that differs least from the one before it, by which its
/// messages then count.
pub const ANCHORS_MAX: usize = 256;

/// Where both clocks stood, for messages from a number on.
#[derive(Clone, Copy, Debug)]
struct Anchor {
    from: MessageNumber,
    wall_ms: u64,
    time: Time,
}

impl Anchor {
    /// By how many milliseconds the clocks have moved against each other since an earlier anchor.
    fn step_from(&self, earlier: &Anchor) -> u64 {
        let expected = earlier.wall_ms.saturating_add(millis(self.time.since(earlier.time)));
        expected.abs_diff(self.wall_ms)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Anchors {
    /// The first is of the beginning.
    all: Vec<Anchor>,
}

impl Anchors {
    /// The process begins; its first message will have this number or a later one.
    #[must_use]
    pub fn new(from: MessageNumber, wall_ms: u64, time: Time) -> Anchors {
        Anchors { all: vec![Anchor { from, wall_ms, time }] }
    }

    /// Whether the clocks have moved against each other since the last anchor.
    #[must_use]
    pub fn are_off(&self, wall_ms: u64, time: Time) -> bool {
        Anchor { from: 0, wall_ms, time }.step_from(&self.all[self.all.len() - 1]) > DRIFT_MS
    }

    /// From this message on, the clocks stand so.
    pub fn note(&mut self, from: MessageNumber, wall_ms: u64, time: Time) {
        if self.all.len() >= ANCHORS_MAX {
            let steps = self.all.windows(2).map(|pair| pair[1].step_from(&pair[0]));
            let least = steps.enumerate().min_by_key(|(_, step)| *step);
            self.all.remove(least.map_or(1, |(place, _)| place + 1));
        }
        self.all.push(Anchor { from, wall_ms, time });
    }

    /// When a life of `ttl` ends that began when this message was accepted. [`Time::ZERO`] if that was
    /// before the clock's origin.
    #[must_use]
    pub fn end_of_life(&self, number: MessageNumber, accepted_ms: u64, ttl: Duration) -> Time {
        let place = self.all.partition_point(|anchor| anchor.from <= number);
        let anchor = self.all[place.saturating_sub(1)];
        let (ahead, behind) = (
            Duration::from_millis(accepted_ms.saturating_sub(anchor.wall_ms)),
            Duration::from_millis(anchor.wall_ms.saturating_sub(accepted_ms)),
        );
        // Of an earlier process, and in the future: the clock has been set back in between.
        let ahead = if place == 0 { Duration::ZERO } else { ahead };
        let lived = u64::try_from(behind.as_micros()).unwrap_or(u64::MAX);
        Time((anchor.time + ahead + ttl).0.saturating_sub(lived))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR_MS: u64 = 3_600_000;
    /// The wall clock when the process began.
    const BEGAN_MS: u64 = 1_764_000_000_000;
    const BEGAN: Time = Time::from_millis(1_000);

    fn began() -> Anchors {
        Anchors::new(100, BEGAN_MS, BEGAN)
    }

    #[test]
    fn what_was_accepted_before_has_lived_as_long_as_the_wall_clock_says() {
        let anchors = began();
        let end = |accepted_ms| anchors.end_of_life(7, accepted_ms, MINUTE);
        assert_eq!(end(BEGAN_MS - 20_000), BEGAN + Duration::from_secs(40));
        assert_eq!(end(BEGAN_MS - HOUR_MS), Time::ZERO);
        // The clock has been set back while the node was down.
        assert_eq!(end(BEGAN_MS + HOUR_MS), BEGAN + MINUTE);
    }

    #[test]
    fn a_clock_that_is_set_neither_ends_a_life_nor_prolongs_it() {
        for set in [HOUR_MS as i64, -(HOUR_MS as i64)] {
            let mut anchors = began();
            let wall = |time: Time| BEGAN_MS + time.since(BEGAN).as_millis() as u64;
            let early = BEGAN + Duration::from_secs(10);
            assert!(!anchors.are_off(wall(early), early));
            // Set after a quarter of a minute; the next message is accepted five seconds later.
            let late = BEGAN + Duration::from_secs(20);
            let late_ms = wall(late).saturating_add_signed(set);
            assert!(anchors.are_off(late_ms, late));
            anchors.note(120, late_ms, late);
            assert!(!anchors.are_off(late_ms + 5_000, late + Duration::from_secs(5)));
            assert_eq!(anchors.end_of_life(119, wall(early), MINUTE), early + MINUTE);
            assert_eq!(anchors.end_of_life(120, late_ms, MINUTE), late + MINUTE);
            let last = anchors.end_of_life(130, late_ms + 5_000, MINUTE);
            assert_eq!(last, late + Duration::from_secs(65));
        }
    }

    #[test]
    fn however_often_it_is_set_few_anchors_are_kept_and_the_first_is_among_them() {
        let mut anchors = began();
        for n in 0..10 * ANCHORS_MAX as u64 {
            anchors.note(200 + n, BEGAN_MS + n * HOUR_MS, BEGAN + Duration::from_secs(n));
        }
        assert_eq!(anchors.all.len(), ANCHORS_MAX);
        assert_eq!(anchors.end_of_life(150, BEGAN_MS, MINUTE), BEGAN + MINUTE);
    }

    #[test]
    fn small_steps_do_not_make_a_large_one_forgotten() {
        // It began two hours ahead, and was set right a minute later.
        let mut anchors = Anchors::new(100, BEGAN_MS + 2 * HOUR_MS, BEGAN);
        let right = |seconds: u64| BEGAN_MS + 1_000 * seconds;
        let time = |seconds: u64| BEGAN + Duration::from_secs(seconds);
        anchors.note(120, right(60), time(60));
        for n in 1..2 * ANCHORS_MAX as u64 {
            let jitter = if n % 2 == 0 { 0 } else { 300 };
            anchors.note(120 + n, right(60 + n) + jitter, time(60 + n));
        }
        assert_eq!(anchors.all.len(), ANCHORS_MAX);
        let end = anchors.end_of_life(120, right(60), MINUTE);
        assert!(end >= time(119) && end <= time(121), "{end:?}");
    }
}
