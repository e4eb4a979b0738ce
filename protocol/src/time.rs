//! Time as a value: the cores are told what time it is and never ask.

use core::time::Duration;
use serde::{Deserialize, Serialize};

/// A point on the node's monotonic clock, in microseconds since an origin the shell chose.
///
/// Deadlines, timeouts and rates are computed on this clock alone; it never jumps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Time = Time(0);

    /// The time `ms` milliseconds after the origin.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Time {
        Time(ms.saturating_mul(1_000))
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Time {
    type Output = Time;

    /// Saturates instead of wrapping: a deadline too far to represent is never.
    fn add(self, duration: Duration) -> Time {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(us))
    }
}

/// Milliseconds since the Unix epoch, for what people read: ids, logs, the ledger.
///
/// It may jump with the system's clock and is never used to compute a deadline.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallMillis(pub u64);

/// In the proleptic Gregorian calendar and UTC, as RFC 3339 writes it: `2026-11-23T23:14:05.123Z`.
impl core::fmt::Display for WallMillis {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (seconds, ms) = (self.0 / 1_000, self.0 % 1_000);
        let (day, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil(day);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
    }
}

/// Why a text is no time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a time like 2026-11-23 or 2026-11-23T23:14:05Z, got {0:?}")]
pub struct WallError(String);

/// What [`WallMillis`] prints, with or without the time of the day or the parts of a second.
impl core::str::FromStr for WallMillis {
    type Err = WallError;

    fn from_str(text: &str) -> Result<WallMillis, WallError> {
        let (date, time) = match text.split_once('T') {
            Some((date, time)) => (date, time.strip_suffix('Z')),
            None => (text, Some("00:00:00")),
        };
        let numbers = |text: &str, between: char| -> Option<[u64; 3]> {
            let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            let mut parts =
                text.split(between).map(|part| digits(part).then(|| part.parse().ok())?);
            let three = [parts.next()??, parts.next()??, parts.next()??];
            parts.next().is_none().then_some(three)
        };
        let read = || {
            let (seconds, ms) = match time?.split_once('.') {
                Some((seconds, ms)) if ms.len() == 3 => (seconds, ms.parse::<u16>().ok()?),
                Some(_) => return None,
                None => (time?, 0),
            };
            let [year, month, day] = numbers(date, '-')?;
            let [hour, minute, second] = numbers(seconds, ':')?;
            let in_range = (1970..=9999).contains(&year) && hour < 24 && minute < 60 && second < 60;
            // Not every day of a month that is written exists.
            let days = in_range.then(|| days_since_epoch(year, month, day))??;
            let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
            Some(WallMillis(seconds * 1_000 + u64::from(ms)))
        };
        read().ok_or_else(|| WallError(text.to_owned()))
    }
}

/// The inverse of [`civil`]; `None` for a day that no month has.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years of 365 days and months of 28 come to too few, by less than a day a year and 3 a month.
    let least = (year - 1970) * 365 + month.checked_sub(1)?.min(11) * 28;
    let most = least + (year - 1970) / 4 + 1 + 31 + 33;
    (least..most).find(|days| civil(*days) == (year, month, day))
}

/// Year, month and day of a day since the epoch. Counts from 1 March of year 0, so that leap days
/// end years, in eras of 400 years, which all have 146,097 days.
fn civil(days_since_epoch: u64) -> (u64, u64, u64) {
    const DAYS_FROM_0000_03_01: u64 = 719_468;
    let days = days_since_epoch + DAYS_FROM_0000_03_01;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::WallMillis;

    #[test]
    fn wall_time_prints_as_the_calendar_says() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_763_939_645_123, "2025-11-23T23:14:05.123Z"),
        ] {
            assert_eq!(WallMillis(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(WallMillis(ms)));
        }
        assert_eq!("2000-02-29".parse(), Ok(WallMillis(951_782_400_000)));
        assert_eq!("2000-02-29T00:00:01Z".parse(), Ok(WallMillis(951_782_401_000)));
        for text in [
            "",
            "2000",
            "2001-02-29",
            "2000-13-01",
            "2000-00-10",
            "2000-01-00",
            "1969-12-31",
            "2000-01-01T24:00:00Z",
            "2000-01-01T00:00:00",
            "2000-01-01T00:00Z",
            "2000-+1-01",
            "2000-01-01T00:00:00.1Z",
        ] {
            assert!(text.parse::<WallMillis>().is_err(), "{text}");
        }
    }
}
