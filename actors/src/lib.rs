//! The actix shells around Restante's pure cores, and the seams they are built against.

pub mod admin;
pub mod clock;
pub mod directory;
pub mod events;
pub mod journal;
pub mod link;
pub mod observe;
pub mod peer;
pub mod router;
pub mod supervise;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number for a link, unique in this process and above every earlier one.
#[must_use]
pub fn link_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// The addresses of a running node's actors. Cheap to clone.
#[derive(Clone)]
pub struct Handles {
    /// Who is there.
    pub directory: std::sync::Arc<directory::Directory>,
    /// Where publishes go.
    pub router: actix::Addr<router::Router>,
    /// Where questions and changes go.
    pub admin: actix::Addr<admin::Admin>,
    /// Where watches go.
    pub observer: actix::Addr<observe::Observer>,
    /// The journal's epoch: what deliver frames and welcomes carry.
    pub epoch: u32,
}

/// The bounds of a node's actors.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most bytes of publishes in hand, not yet durable; beyond it publishes are refused as overloaded.
    pub ingress_bytes_max: usize,
    /// Most peers.
    pub peers_max: usize,
    /// Most calls awaiting an answer.
    pub calls_max: usize,
    /// Bytes of bodies that all peers together may hold in memory while they cannot send them.
    pub queued_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            ingress_bytes_max: 64 * 1024 * 1024,
            peers_max: 100_000,
            calls_max: 65_536,
            queued_bytes_max: 32 * 1024 * 1024,
        }
    }
}
