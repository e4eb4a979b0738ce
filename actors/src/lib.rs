//! The actix shells around Restante's pure cores, and the seams they are built against.

pub mod admin;
mod aside;
pub mod clock;
pub mod directory;
pub mod events;
#[cfg(feature = "faults")]
pub mod faults;
pub mod health;
pub mod journal;
pub mod link;
pub mod observe;
pub mod peer;
pub mod router;
pub mod shaping;
mod start;
pub mod supervise;

pub use start::{Handles, StartError, start};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A number for a link, unique in this process and above every earlier one.
#[must_use]
pub fn link_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// The bounds of a node's actors.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of publishes in hand, not yet durable; beyond it publishes are refused as overloaded.
    pub ingress_bytes_max: usize,
    /// Most peers.
    pub peers_max: usize,
    /// Producer identities that are remembered.
    pub producers_max: usize,
    /// Most calls awaiting an answer.
    pub calls_max: usize,
    /// Most of them of one connection; one more ends its oldest.
    pub calls_each_max: usize,
    /// Most delayed messages that wait for their time.
    pub delayed_max: usize,
    /// Bytes of bodies that all peers together may hold in memory while they cannot send them.
    pub queued_bytes_max: usize,
    /// Bytes that the pages of backlog in all peers' hands may have together; beyond it a peer reads
    /// in small ones.
    pub page_bytes_max: usize,
    /// Most messages waiting or parked, counted per receiver; 0: no limit.
    pub messages_max: u64,
    /// What a peer without quotas of its own may take.
    pub peer_share: restante_protocol::status::Quota,
    /// What a new peer is served with where its command is silent.
    pub peer_defaults: restante_protocol::admin::PeerSettings,
    /// How fast messages leave for all receivers together; only the ceil and its burst count.
    pub rates: restante_protocol::shaper::Rates,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            ingress_bytes_max: 64 * 1024 * 1024,
            peers_max: 100_000,
            producers_max: restante_protocol::producers::PRODUCERS_MAX_DEFAULT,
            calls_max: 65_536,
            calls_each_max: restante_protocol::limits::CALLS_MAX,
            delayed_max: 100_000,
            queued_bytes_max: 32 * 1024 * 1024,
            page_bytes_max: 16 * 1024 * 1024,
            messages_max: 0,
            peer_share: restante_protocol::status::Quota::default(),
            peer_defaults: restante_protocol::admin::PeerSettings::default(),
            rates: restante_protocol::shaper::Rates::default(),
        }
    }
}

/// What a node counts beside its peers.
#[derive(Debug, Default)]
pub struct Figures {
    /// Messages confirmed since the start.
    pub confirmed: AtomicU64,
    /// Open connections; kept by whoever accepts and dials them.
    pub connections: AtomicU64,
    /// Whether the node itself is ending all connections, so that their ends are no news.
    pub stopping: AtomicBool,
    /// When the process started, milliseconds since the Unix epoch.
    pub started_ms: u64,
}
