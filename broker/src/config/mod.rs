//! What an operator can set, and where each setting came from.
//!
//! Four sources, later ones win: the defaults, a TOML file, `RESTANTE_*` in the environment, flags.
//!
//! ```text
//! values.rs   one row per value: key, type, default, unit, bounds, meaning
//!    ▲
//! setting.rs  how one value is read from text or TOML and written back
//!    ▲
//! sources.rs  file, environment and flags, each assignment through the same row
//!    ▲
//! Effective   the configuration, checked as a whole, with the origin of every value
//! ```
//!
//! A key that no row has is an error in the file and on the command line. In the environment it is
//! only reported: orchestrators put variables of their own there, named after the service.

mod error;
mod sample;
mod setting;
mod sources;
mod values;

pub use error::{ConfigError, Origin};
pub use sample::sample;
pub use setting::{LogFilter, LogFormat};
pub use sources::{Effective, Flag, Sources};
pub use values::{Config, VALUES, Value};

impl Config {
    /// Whether only programs on this machine can reach the node, which then needs no logins.
    #[must_use]
    pub fn loopback_only(&self) -> bool {
        self.tcp.ip().is_loopback()
    }

    /// Whether a receiver that attaches under an unknown name thereby becomes a peer: on an open
    /// loopback node, where nobody else can have meant another name.
    #[must_use]
    pub fn creates_peer_on_attach(&self) -> bool {
        self.loopback_only()
    }

    /// What must hold between values; each alone was checked against its bounds when it was set.
    fn check_together(&self) -> Result<(), (&'static str, String)> {
        if !self.loopback_only() && !self.allow_open_listener {
            return Err((
                "tcp",
                format!(
                    "{} can be reached from other machines and this node has neither logins nor TLS; \
                     listen on 127.0.0.1 or [::1], or set allow_open_listener = true \
                     (--allow-open-listener) if the network itself is closed",
                    self.tcp
                ),
            ));
        }
        if self.silence_ms_max < 2 * self.heartbeat_ms {
            return Err((
                "silence_ms_max",
                format!(
                    "{} must be at least twice heartbeat_ms ({}), or one late heartbeat ends a \
                     healthy connection",
                    self.silence_ms_max, self.heartbeat_ms
                ),
            ));
        }
        let message = self.payload_bytes_max + PUBLISH_OVERHEAD_BYTES;
        for (key, bytes) in [
            ("credit_bytes", self.credit_bytes),
            ("journal_segment_bytes", self.journal_segment_bytes),
            ("journal_append_bytes_max", self.journal_append_bytes_max),
        ] {
            if bytes < message {
                return Err((
                    key,
                    format!(
                        "{bytes} must hold one message of payload_bytes_max and its headers: at \
                         least {message}"
                    ),
                ));
            }
        }
        let peer = &self.peer_defaults;
        let journal_max =
            if self.journal_bytes_max == 0 { u64::MAX } else { self.journal_bytes_max };
        for (low_key, low, high_key, high) in [
            ("journal_bytes_resume", self.journal_bytes_resume, "journal_bytes_max", journal_max),
            (
                "disk_free_bytes_min",
                self.disk_free_bytes_min,
                "disk_free_bytes_resume",
                self.disk_free_bytes_resume,
            ),
            (
                "peer_defaults.backoff_ms_min",
                peer.backoff_ms_min,
                "peer_defaults.backoff_ms_max",
                peer.backoff_ms_max,
            ),
            (
                "peer_defaults.window_messages_min",
                u64::from(peer.window_messages_min),
                "peer_defaults.window_messages",
                u64::from(peer.window_messages),
            ),
        ] {
            if low > high {
                return Err((low_key, format!("{low} must not be above {high_key} ({high})")));
            }
        }
        Ok(())
    }
}

/// Room beside a payload for key, headers, receivers and record header, in bytes.
const PUBLISH_OVERHEAD_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests;
