//! Where a queue is going: when it will be empty, or full, if it goes on as in the last minutes.
//!
//! What came and went is counted with weights that halve every [`HALF_LIFE`], and so is the time over
//! which it did: their quotient is a rate, from the second look on. A forecast is no promise; it is
//! made to be looked at, and to wake somebody while there is still time.

use crate::status::Quota;
use crate::time::Time;
use core::time::Duration;

/// What lies this far back weighs half as much as what happens now.
pub const HALF_LIFE: Duration = Duration::from_secs(60);
/// A forecast that is further away says nothing.
pub const FORECAST_MAX: Duration = Duration::from_secs(365 * 86_400);

/// What a queue has seen and holds, as somebody else counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages that came, since some beginning, and bytes of their bodies.
    pub came: [u64; 2],
    /// Messages that wait, and their bytes.
    pub waiting: [u64; 2],
    /// Messages that count against its quota besides, and their bytes: those set aside.
    pub kept: [u64; 2],
}

impl Totals {
    /// What counts against its quota.
    fn used(&self, what: usize) -> u64 {
        self.waiting[what].saturating_add(self.kept[what])
    }
}

/// The flow through one queue.
#[derive(Clone, Debug)]
pub struct Flow {
    last: (Time, Totals),
    /// Seconds; messages and bytes that came, that went, and whose room was given back; weighed.
    seconds: f64,
    came: [f64; 2],
    went: [f64; 2],
    freed: [f64; 2],
}

/// Where a queue is going.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Messages a second that come, and go.
    pub rates: [f64; 2],
    /// After what time nothing waits any more, if more goes than comes.
    pub drained: Option<Duration>,
    /// After what time its quota is used up, if more comes than goes.
    pub full: Option<Duration>,
    /// Over how long it was looked at; what is long ago counts for less.
    pub over: Duration,
}

/// Whether a queue is soon full, as somebody is to be told: once when it begins, once when it is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alarm {
    is_raised: bool,
}

impl Alarm {
    /// A queue that is full before this is soon full,
    pub const SOON: Duration = Duration::from_secs(60 * 60);
    /// and one that is not before this is so no more.
    pub const LATER: Duration = Duration::from_secs(2 * 60 * 60);
    /// What is looked at for less is a burst.
    pub const OVER_MIN: Duration = Duration::from_secs(30);

    /// Whether the alarm is raised now or over now; `None` where nothing has changed.
    pub fn judge(&mut self, forecast: &Forecast) -> Option<bool> {
        let is_full_by = |limit| forecast.full.is_some_and(|full| full < limit);
        let raised = match self.is_raised {
            true => is_full_by(Alarm::LATER),
            false => is_full_by(Alarm::SOON) && forecast.over >= Alarm::OVER_MIN,
        };
        (core::mem::replace(&mut self.is_raised, raised) != raised).then_some(raised)
    }
}

impl Flow {
    /// Begins to look at a queue.
    #[must_use]
    pub fn new(now: Time, totals: Totals) -> Flow {
        Flow { last: (now, totals), seconds: 0.0, came: [0.0; 2], went: [0.0; 2], freed: [0.0; 2] }
    }

    /// Looks again. What was counted may have begun anew: that counts as nothing.
    pub fn observe(&mut self, now: Time, totals: Totals) {
        let (before, last) = core::mem::replace(&mut self.last, (now, totals));
        let seconds = now.since(before).as_secs_f64();
        let fades = (-seconds / HALF_LIFE.as_secs_f64()).exp2();
        self.seconds = self.seconds * fades + seconds;
        for what in 0..2 {
            let came = totals.came[what].saturating_sub(last.came[what]);
            let waited = last.waiting[what].saturating_add(came);
            let went = waited.saturating_sub(totals.waiting[what]);
            let freed = last.used(what).saturating_add(came).saturating_sub(totals.used(what));
            self.came[what] = self.came[what] * fades + came as f64;
            self.went[what] = self.went[what] * fades + went as f64;
            self.freed[what] = self.freed[what] * fades + freed as f64;
        }
    }

    /// What follows if it goes on so; `None` before it has been looked at twice. Of a quota 0 stands for
    /// none.
    #[must_use]
    pub fn forecast(&self, quota: Quota) -> Option<Forecast> {
        if self.seconds <= 0.0 {
            return None;
        }
        let (_, totals) = self.last;
        let waiting = totals.waiting[0];
        let shrinks = (self.went[0] - self.came[0]) / self.seconds;
        let drained = (waiting > 0).then(|| after(waiting as f64, shrinks)).flatten();
        let full =
            [quota.messages, quota.bytes].into_iter().enumerate().filter_map(|(what, max)| {
                let grows = (self.came[what] - self.freed[what]) / self.seconds;
                (max > 0)
                    .then(|| after(max.saturating_sub(totals.used(what)) as f64, grows))
                    .flatten()
            });
        let rates = [self.came[0], self.went[0]].map(|messages| messages / self.seconds);
        let over = Duration::from_secs_f64(self.seconds);
        Some(Forecast { rates, drained, full: full.min(), over })
    }
}

/// How long `amount` takes at a rate a second; not what would take for ever.
fn after(amount: f64, rate: f64) -> Option<Duration> {
    let seconds = amount / rate;
    (rate > 0.0 && seconds < FORECAST_MAX.as_secs_f64()).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Quota = Quota { messages: 0, bytes: 0 };

    fn at(second: u64) -> Time {
        Time::from_millis(1_000 * second)
    }

    /// A queue that so many come to, and go from, a second, each of ten bytes.
    fn runs(waiting: u64, came: u64, went: u64, seconds: u64) -> Flow {
        let totals = |second: u64| {
            let waits = waiting + came * second - went * second;
            let came = came * second;
            Totals { came: [came, 10 * came], waiting: [waits, 10 * waits], kept: [0, 0] }
        };
        let mut flow = Flow::new(at(0), totals(0));
        for second in 1..=seconds {
            flow.observe(at(second), totals(second));
        }
        flow
    }

    fn near(duration: Option<Duration>, seconds: f64) -> bool {
        duration.is_some_and(|found| (found.as_secs_f64() - seconds).abs() < 0.01 * seconds)
    }

    #[test]
    fn a_queue_that_shrinks_is_empty_when_what_waits_is_gone() {
        let forecast = runs(10_000, 10, 30, 2).forecast(NONE).unwrap();
        assert!(near(forecast.drained, 9_960.0 / 20.0) && forecast.full.is_none(), "{forecast:?}");
        assert!(forecast.rates.iter().zip([10.0, 30.0]).all(|(is, was)| (is - was).abs() < 0.01));
    }

    #[test]
    fn a_queue_that_grows_is_full_when_the_first_of_its_quotas_is() {
        let flow = runs(100, 7, 2, 100);
        // It holds 600 messages and 6,000 bytes by now.
        let full = |messages, bytes| flow.forecast(Quota { messages, bytes }).unwrap().full;
        assert!(near(full(1_600, 0), 200.0) && near(full(1_600, 7_000), 20.0));
        assert_eq!(full(0, 0), None);
        assert_eq!(full(100, 0), Some(Duration::ZERO), "it is");
        assert_eq!(flow.forecast(NONE).unwrap().drained, None);
    }

    #[test]
    fn what_is_set_aside_takes_room_and_does_not_drain() {
        let mut flow = runs(100, 0, 0, 1);
        let totals = Totals { came: [10, 100], waiting: [100, 1_000], kept: [10, 100] };
        flow.observe(at(2), totals);
        let forecast = flow.forecast(Quota { messages: 200, bytes: 0 }).unwrap();
        // Ten came and ten went, to be set aside, in the second of two seconds.
        assert_eq!(forecast.rates[0], forecast.rates[1]);
        assert!(forecast.drained.is_none() && near(forecast.full, 18.0), "{forecast:?}");
    }

    #[test]
    fn what_happens_now_outweighs_what_was_and_a_fresh_count_is_no_flood() {
        let mut flow = runs(1_000_000, 0, 100, 600);
        assert!(flow.forecast(NONE).unwrap().drained.is_some());
        // The receiver has gone, and three times the half-life passes.
        let waits = 1_000_000 - 60_000;
        let totals = Totals { came: [0, 0], waiting: [waits, 10 * waits], kept: [0, 0] };
        for second in 601..780 {
            flow.observe(at(second), totals);
        }
        let slow = flow.forecast(NONE).unwrap();
        assert!(slow.rates[1] < 100.0 / 7.0, "{slow:?}");
        let mut flow = Flow::new(at(0), Totals { came: [500, 0], ..Totals::default() });
        flow.observe(at(1), Totals::default());
        assert_eq!(flow.forecast(NONE).unwrap().rates, [0.0, 0.0]);
        assert!(Flow::new(at(0), Totals::default()).forecast(NONE).is_none());
    }

    #[test]
    fn an_alarm_is_raised_once_for_what_lasts_and_over_once_it_is_far_away() {
        let (hour, minute) = (Duration::from_secs(3_600), Duration::from_secs(60));
        let mut alarm = Alarm::default();
        let mut judge = |full: Option<Duration>, over| {
            alarm.judge(&Forecast { full, over, ..Forecast::default() })
        };
        assert_eq!(judge(Some(minute), Duration::from_secs(10)), None, "a burst");
        assert_eq!(judge(Some(2 * hour), minute), None);
        assert_eq!(judge(Some(minute), minute), Some(true));
        assert_eq!(judge(Some(minute), minute), None);
        // It comes and goes around the hour.
        assert_eq!(judge(Some(hour + minute), minute), None);
        assert_eq!(judge(Some(2 * hour), minute), Some(false));
        assert_eq!(judge(None, minute), None);
        assert_eq!(judge(Some(Duration::ZERO), minute), Some(true));
        assert_eq!(judge(None, minute), Some(false));
    }
}
