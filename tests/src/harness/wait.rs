//! Bounded waiting.

use std::time::{Duration, Instant};

/// Wait between two looks at a condition.
const LOOK_WAIT: Duration = Duration::from_millis(5);

/// Looks until there is something to see, at most for `limit`.
///
/// # Panics
/// When the limit is reached, with what was waited for.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(LOOK_WAIT).await;
    }
}

/// Runs a future to its end, at most for `limit`.
///
/// # Panics
/// When the limit is reached, with what was waited for.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}
