//! Signs of life: when to send one, and when to take the other side for dead.
//!
//! One timer per connection. Reads and writes only note the time; the timer looks at the notes when
//! it fires, so a busy connection never moves it.

use std::time::Duration;
use tokio::time::Instant;

/// This much of a frame is a sign of life before the frame is whole; less is not, so that a side that
/// drips bytes of a frame it never ends is silent.
const PROGRESS_BYTES: u64 = 4 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Pulse {
    heartbeat: Duration,
    silence: Duration,
    read_at: Instant,
    /// Bytes that had been read at the last sign of life.
    read_bytes: u64,
    wrote_at: Instant,
    /// Since when bytes wait that the other side does not take.
    stalled_at: Option<Instant>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing yet.
    Nothing,
    /// This side has been quiet for long enough to say that it lives.
    Heartbeat,
    /// The other side has said nothing for too long.
    Silent,
    /// The other side has taken nothing for too long.
    Stalled,
}

impl Pulse {
    pub(super) fn new(heartbeat: Duration, silence: Duration, now: Instant) -> Pulse {
        Pulse { heartbeat, silence, read_at: now, read_bytes: 0, wrote_at: now, stalled_at: None }
    }

    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Bytes were read, `total` by now; `framed` says whether whole frames were among them.
    pub(super) fn read(&mut self, now: Instant, framed: bool, total: u64) {
        if framed || total >= self.read_bytes + PROGRESS_BYTES {
            self.read_at = now;
            self.read_bytes = total;
        }
    }

    /// Some bytes went out; `waiting` says whether others could not.
    pub(super) fn wrote(&mut self, now: Instant, waiting: bool) {
        self.wrote_at = now;
        self.stalled_at = waiting.then_some(now);
    }

    /// The socket takes nothing at present.
    pub(super) fn blocked(&mut self, now: Instant) {
        self.stalled_at.get_or_insert(now);
    }

    /// What is due at `now`. After a [`Beat::Heartbeat`] the caller writes one, which is noted.
    pub(super) fn due(&self, now: Instant) -> Beat {
        if now >= self.read_at + self.silence {
            Beat::Silent
        } else if self.stalled_at.is_some_and(|at| now >= at + self.silence) {
            Beat::Stalled
        } else if self.stalled_at.is_none() && now >= self.wrote_at + self.heartbeat {
            Beat::Heartbeat
        } else {
            Beat::Nothing
        }
    }

    /// When to look again.
    pub(super) fn next(&self) -> Instant {
        let silent = self.read_at + self.silence;
        let write = match self.stalled_at {
            Some(at) => at + self.silence,
            None => self.wrote_at + self.heartbeat,
        };
        silent.min(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEARTBEAT: Duration = Duration::from_secs(10);
    const SILENCE: Duration = Duration::from_secs(30);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_quiet_side_sends_heartbeats() {
        let start = Instant::now();
        let mut pulse = Pulse::new(HEARTBEAT, SILENCE, start);
        assert_eq!(pulse.next(), start + HEARTBEAT);
        assert_eq!(pulse.due(start + 9 * SECOND), Beat::Nothing);
        assert_eq!(pulse.due(start + HEARTBEAT), Beat::Heartbeat);
        pulse.wrote(start + HEARTBEAT, false);
        assert_eq!(pulse.due(start + HEARTBEAT), Beat::Nothing);
        assert_eq!(pulse.next(), start + 2 * HEARTBEAT);
    }

    #[test]
    fn a_silent_other_side_is_dead() {
        let start = Instant::now();
        let mut pulse = Pulse::new(HEARTBEAT, SILENCE, start);
        pulse.read(start + SECOND, true, 5);
        pulse.wrote(start + 29 * SECOND, false);
        assert_eq!(pulse.next(), start + 31 * SECOND);
        assert_eq!(pulse.due(start + 30 * SECOND), Beat::Nothing);
        assert_eq!(pulse.due(start + 31 * SECOND), Beat::Silent);
    }

    #[test]
    fn dripping_is_silence_and_progress_is_not() {
        let start = Instant::now();
        let mut pulse = Pulse::new(HEARTBEAT, SILENCE, start);
        for second in 1..30 {
            pulse.read(start + second * SECOND, false, u64::from(second));
        }
        pulse.wrote(start + 29 * SECOND, false);
        assert_eq!(pulse.due(start + 30 * SECOND), Beat::Silent);
        pulse.read(start + 30 * SECOND, false, PROGRESS_BYTES);
        assert_eq!(pulse.due(start + 30 * SECOND), Beat::Nothing);
    }

    #[test]
    fn a_side_that_takes_nothing_is_given_up_though_it_talks() {
        let start = Instant::now();
        let mut pulse = Pulse::new(HEARTBEAT, SILENCE, start);
        pulse.blocked(start + SECOND);
        pulse.blocked(start + 5 * SECOND);
        pulse.read(start + 25 * SECOND, true, 5);
        assert_eq!(pulse.due(start + 30 * SECOND), Beat::Nothing, "no heartbeat behind a stall");
        assert_eq!(pulse.due(start + 31 * SECOND), Beat::Stalled);
        pulse.wrote(start + 30 * SECOND, true);
        assert_eq!(pulse.due(start + 31 * SECOND), Beat::Nothing, "any progress counts");
        pulse.wrote(start + 32 * SECOND, false);
        assert_eq!(pulse.due(start + 42 * SECOND), Beat::Heartbeat);
    }
}
