//! How far the window is open after an outage, and where lateness shrinks it.
//!
//! One message goes out as a probe. From its answer on the window doubles per round of answers until
//! half the configured one (slow start), and then grows by a sixteenth per round, so that a receiver
//! that has just come back is not met by everything at once. It takes some 25 rounds to 2,048
//! messages, and the steady state pays nothing for it.
//!
//! Where the window may shrink (`window_messages_min`), a round of late messages halves what was in flight,
//! if others are answered meanwhile, and from there it grows by a sixteenth of what it is per round: so it
//! settles at any size, where a step of the configured window would go past that of a slow receiver each
//! time. A receiver that is merely slow is not given more than it gets done within the ack timeout.

/// Steps per window.
const STEPS: u32 = 16;

/// A window that opens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ramp {
    window: u32,
    /// Answers that have not made up a round yet.
    answers: u32,
    /// Whether it doubles at first.
    is_slow_start: bool,
}

impl Ramp {
    /// One message.
    pub(super) const PROBE: Ramp = Ramp { window: 1, answers: 0, is_slow_start: true };

    /// Half of what the window was, but no less than `min`.
    pub(super) fn halved(window: u32, min: u32) -> Ramp {
        Ramp { window: (window / 2).max(min), answers: 0, is_slow_start: false }
    }

    /// Most messages in flight now.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Some deliveries were answered. `None` once the configured window is open.
    pub(super) fn grow(mut self, answered: u32, configured: u32) -> Option<Ramp> {
        let slow_until = if self.is_slow_start { configured / 2 } else { 0 };
        let whole = if self.is_slow_start { configured } else { self.window };
        let step = (whole / STEPS).max(1);
        if self.window < slow_until {
            self.window = self.window.saturating_add(answered).min(slow_until.max(1));
        } else {
            self.answers = self.answers.saturating_add(answered);
            while self.answers >= self.window && self.window < configured {
                self.answers -= self.window;
                self.window = self.window.saturating_add(step);
            }
        }
        (self.window < configured).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_slowly_then_evenly_and_ends() {
        let mut ramp = Some(Ramp::PROBE);
        let mut windows = Vec::new();
        while let Some(open) = ramp {
            windows.push(open.window());
            ramp = open.grow(open.window(), 256);
        }
        assert_eq!(windows, [1, 2, 4, 8, 16, 32, 64, 128, 144, 160, 176, 192, 208, 224, 240]);
    }

    #[test]
    fn a_window_that_was_halved_grows_by_sixteenths_of_itself() {
        assert_eq!(Ramp::halved(256, 64).window(), 128);
        assert_eq!(Ramp::halved(100, 64).window(), 64);
        let mut ramp = Some(Ramp::halved(256, 8));
        let mut windows = Vec::new();
        while let Some(open) = ramp {
            windows.push(open.window());
            ramp = open.grow(open.window(), 256);
        }
        assert_eq!(windows, [128, 136, 144, 153, 162, 172, 182, 193, 205, 217, 230, 244]);
    }

    #[test]
    fn a_small_window_of_a_large_one_grows_by_one() {
        let ramp = Ramp::halved(20, 1).grow(10, 2_048).unwrap();
        assert_eq!(ramp.window(), 11);
    }

    #[test]
    fn a_window_of_one_is_open_at_once() {
        assert!(Ramp::PROBE.grow(1, 1).is_none());
        assert!(Ramp::PROBE.grow(0, 1).is_none());
    }

    #[test]
    fn no_answers_open_nothing() {
        assert_eq!(Ramp::PROBE.grow(0, 100).unwrap().window(), 1);
    }
}
