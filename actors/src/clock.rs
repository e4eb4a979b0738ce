//! The seam to time: one monotonic clock for deadlines, one wall clock for people.

use restante_protocol::time::Time;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Where the two clocks were when this process first asked.
struct Origin {
    monotonic: Instant,
    wall_ms: u64,
}

fn origin() -> &'static Origin {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    ORIGIN.get_or_init(|| Origin { monotonic: Instant::now(), wall_ms: wall_ms() })
}

/// The origin is shifted by a second, so that "a moment before the start" is still a time.
const SHIFT_US: u64 = 1_000_000;

/// The monotonic time since this process first asked. Follows tokio's clock, so that a paused
/// runtime simulates it.
#[must_use]
pub fn now() -> Time {
    let elapsed = origin().monotonic.elapsed();
    Time(SHIFT_US + u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX / 2))
}

/// Milliseconds since the Unix epoch; 0 if the system's clock stands before it.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

/// The wall time of a monotonic one, by the offset at the start of the process: the same time
/// always gives the same answer, and an adjusted clock is followed by the next process.
#[must_use]
pub fn wall_of(time: Time) -> u64 {
    (origin().wall_ms + time.0 / 1_000).saturating_sub(SHIFT_US / 1_000)
}
