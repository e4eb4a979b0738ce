//! The bounds of every setting of a peer, and the check against them.

use super::{ClassChoice, PeerPatch, PeerSettings};
use crate::refusal::{Code, Refusal};
use core::fmt::Display;
use core::ops::RangeInclusive;

/// [`PeerSettings::window_messages`], in messages.
pub const WINDOW_MESSAGES: RangeInclusive<u32> = 1..=65_536;
/// [`PeerSettings::window_messages_min`], in messages; 0 is a window that does not shrink.
pub const WINDOW_MESSAGES_MIN: RangeInclusive<u32> = 0..=65_536;
/// [`PeerSettings::window_bytes`], in bytes: 64 KiB to 256 MiB.
pub const WINDOW_BYTES: RangeInclusive<u64> = 64 * 1024..=256 * 1024 * 1024;
/// [`PeerSettings::ack_timeout_ms`], in milliseconds: 100 ms to 1 h.
pub const ACK_TIMEOUT_MS: RangeInclusive<u64> = 100..=3_600_000;
/// [`PeerSettings::backoff_ms_min`], in milliseconds: 10 ms to 1 h.
pub const BACKOFF_MS_MIN: RangeInclusive<u64> = 10..=3_600_000;
/// [`PeerSettings::backoff_ms_max`], in milliseconds: 100 ms to 24 h.
pub const BACKOFF_MS_MAX: RangeInclusive<u64> = 100..=86_400_000;
/// One entry of [`PeerSettings::retry_schedule_ms`], in milliseconds: up to 7 days.
pub const RETRY_MS: RangeInclusive<u64> = 0..=604_800_000;
/// Entries of [`PeerSettings::retry_schedule_ms`]; with none, the first refusal parks.
pub const RETRIES: RangeInclusive<usize> = 0..=32;
/// [`PeerSettings::quota_messages`], in messages; 0 is the node's share for one peer.
pub const QUOTA_MESSAGES: RangeInclusive<u64> = 0..=1 << 48;
/// [`PeerSettings::quota_bytes`], in bytes; 0 is the node's share for one peer.
pub const QUOTA_BYTES: RangeInclusive<u64> = 0..=1 << 60;

impl PeerSettings {
    /// Holds every value against its bounds.
    ///
    /// # Errors
    /// [`Code::BadSetting`], naming the first bad value, its bounds and their unit.
    pub fn check(&self) -> Result<(), Refusal> {
        within("window_messages", self.window_messages, &WINDOW_MESSAGES, "messages")?;
        let window_min = self.window_messages_min;
        within("window_messages_min", window_min, &WINDOW_MESSAGES_MIN, "messages")?;
        if window_min > self.window_messages {
            let detail = format!(
                "window_messages_min is {window_min}, expected at most window_messages, which is {}",
                self.window_messages
            );
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        within("window_bytes", self.window_bytes, &WINDOW_BYTES, "bytes")?;
        within("ack_timeout_ms", self.ack_timeout_ms, &ACK_TIMEOUT_MS, "ms")?;
        within("backoff_ms_min", self.backoff_ms_min, &BACKOFF_MS_MIN, "ms")?;
        within("backoff_ms_max", self.backoff_ms_max, &BACKOFF_MS_MAX, "ms")?;
        if self.backoff_ms_min > self.backoff_ms_max {
            let detail = format!(
                "backoff_ms_min is {} ms, expected at most backoff_ms_max, which is {} ms",
                self.backoff_ms_min, self.backoff_ms_max
            );
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        let retries = self.retry_schedule_ms.len();
        within("the number of entries in retry_schedule_ms", retries, &RETRIES, "entries")?;
        for retry_ms in &self.retry_schedule_ms {
            within("an entry of retry_schedule_ms", *retry_ms, &RETRY_MS, "ms")?;
        }
        within("quota_messages", self.quota_messages, &QUOTA_MESSAGES, "messages")?;
        within("quota_bytes", self.quota_bytes, &QUOTA_BYTES, "bytes")?;
        self.rates.check()
    }
}

impl PeerPatch {
    /// `settings` with what the patch sets.
    #[must_use]
    pub fn applied_to(&self, settings: &PeerSettings) -> PeerSettings {
        PeerSettings {
            window_messages: self.window_messages.unwrap_or(settings.window_messages),
            window_messages_min: self.window_messages_min.unwrap_or(settings.window_messages_min),
            window_bytes: self.window_bytes.unwrap_or(settings.window_bytes),
            ack_timeout_ms: self.ack_timeout_ms.unwrap_or(settings.ack_timeout_ms),
            backoff_ms_min: self.backoff_ms_min.unwrap_or(settings.backoff_ms_min),
            backoff_ms_max: self.backoff_ms_max.unwrap_or(settings.backoff_ms_max),
            retry_schedule_ms: self
                .retry_schedule_ms
                .as_ref()
                .unwrap_or(&settings.retry_schedule_ms)
                .clone(),
            order: self.order.unwrap_or(settings.order),
            quota_messages: self.quota_messages.unwrap_or(settings.quota_messages),
            quota_bytes: self.quota_bytes.unwrap_or(settings.quota_bytes),
            rates: match &self.rates {
                None => settings.rates,
                Some(patch) => patch.applied_to(&settings.rates),
            },
            class: match &self.class {
                None => settings.class.clone(),
                Some(ClassChoice::None) => None,
                Some(ClassChoice::Of(name)) => Some(name.clone()),
            },
        }
    }
}

fn within<T: PartialOrd + Display>(
    name: &str,
    value: T,
    bounds: &RangeInclusive<T>,
    unit: &str,
) -> Result<(), Refusal> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let (low, high) = (bounds.start(), bounds.end());
    let detail = format!("{name} is {value}, expected {low} to {high} {unit}");
    Err(Refusal::new(Code::BadSetting, detail))
}
