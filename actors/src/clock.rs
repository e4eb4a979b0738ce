//! The seam to time: one monotonic clock for deadlines, one wall clock for people.

use restante_protocol::time::Time;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// The monotonic time since this process first asked. Follows tokio's clock, so that a paused
/// runtime simulates it.
#[must_use]
pub fn now() -> Time {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let elapsed = ORIGIN.get_or_init(Instant::now).elapsed();
    // The origin is shifted by a second so that "a moment before the start" is still a time.
    Time(1_000_000 + u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX / 2))
}

/// Milliseconds since the Unix epoch; 0 if the system's clock stands before it.
#[must_use]
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

/// The wall time of a monotonic one, by today's offset between the two.
#[must_use]
pub fn wall_of(time: Time) -> u64 {
    let (now, wall) = (now(), wall_ms());
    if time >= now {
        wall.saturating_add((time.0 - now.0) / 1_000)
    } else {
        wall.saturating_sub((now.0 - time.0) / 1_000)
    }
}
