//! How a peer actor comes to life.

use super::oldest::Oldest;
use super::{Peer, Taken};
use crate::clock;
use crate::directory::{Directory, Marks, Seat};
use crate::health::{Health, PeerReport};
use crate::journal::Journal;
use crate::link::Dialer;
use crate::router::Router;
use crate::shaping::Shaping;
use crate::supervise::{Supervision, Turn};
use actix::prelude::*;
use bytes::Bytes;
use parking_lot::Mutex;
use restante_protocol::admin::{PeerSettings, PeerUrl};
use restante_protocol::anchors::Anchors;
use restante_protocol::delivery::types::Start;
use restante_protocol::delivery::{Delivery, Expiry};
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use restante_protocol::message::Body;
use restante_protocol::name::Name;
use restante_protocol::time::Time;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// What an operator said of the peer.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Its identity.
    pub id: PeerId,
    /// Its name.
    pub name: Name,
    /// Where it is reached.
    pub url: PeerUrl,
    /// How it is served.
    pub settings: PeerSettings,
    /// Whether an operator holds it.
    pub paused: bool,
    /// Version of its record.
    pub version: u64,
}

impl PeerConfig {
    /// Whether the node opens the connection.
    #[must_use]
    pub fn dials(&self) -> bool {
        !matches!(self.url, PeerUrl::Attach)
    }
}

/// What all peers of a node share.
pub struct Shared {
    /// Where messages are kept.
    pub journal: Arc<dyn Journal>,
    /// How receivers are reached.
    pub dialer: Arc<dyn Dialer>,
    /// Who is there.
    pub directory: Arc<Directory>,
    /// Who is told.
    pub health: Addr<Health>,
    /// Who answers callers; set once the router has started.
    pub router: OnceLock<Addr<Router>>,
    /// Part of every message id.
    pub node: NodeTag,
    /// Part of every message id.
    pub partition: u16,
    /// What had been appended when the process started: up to here anything may have been sent.
    pub maybe_sent: MessageNumber,
    /// The memory that waiting bodies may take.
    pub queued_bytes: Budget,
    /// The memory that pages of backlog may take.
    pub page_bytes: Budget,
    /// Where the two clocks stood when, for messages that live for a time.
    pub anchors: Mutex<Anchors>,
    /// Messages appended and not settled, parked ones and what removed peers have left included,
    /// counted per receiver: against the node's quota.
    pub kept: AtomicI64,
    /// Where those whose rate is limited ask for leave to send.
    pub shaping: Arc<Shaping>,
}

impl Shared {
    /// A core as the journal says it should be, at boot and after a crash alike.
    pub(super) fn new_core(
        &self,
        config: &PeerConfig,
        now: Time,
        knows_since: Option<&'static str>,
    ) -> Delivery<Bytes> {
        let backlog = self.journal.backlog(config.id);
        let start = Start {
            floor: backlog.floor,
            newest: backlog.newest,
            messages: backlog.messages,
            bytes: backlog.bytes,
            // After a crash of the actor alone, everything it had may have been sent.
            maybe_sent: self.maybe_sent.max(backlog.newest),
            paused: config.paused,
            dials: config.dials(),
            knows_since,
        };
        let mut core = Delivery::new(now, &config.settings, start, rand::random());
        core.handle_limited(self.shaping.limits(&config.settings));
        core
    }

    /// When a message's time to live ends, if it has one. A copy's began when the message was first
    /// accepted.
    pub(super) fn expiry(
        &self,
        number: MessageNumber,
        accepted_ms: u64,
        body: &Body<'_>,
    ) -> Option<Expiry> {
        let ttl = Duration::from_millis(body.ttl_ms?.get());
        let (number, accepted_ms) = match body.original_id {
            Some(id) => (id.number(), id.accepted_ms()),
            None => (number, accepted_ms),
        };
        Expiry::at(self.anchors.lock().end_of_life(number, accepted_ms, ttl))
    }
}

/// A number of bytes that many share.
pub struct Budget {
    left: AtomicUsize,
}

impl Budget {
    /// A budget of this many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Budget {
        Budget { left: AtomicUsize::new(bytes) }
    }

    /// Takes bytes, all or none.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// Gives bytes back.
    pub fn give(&self, bytes: usize) {
        self.left.fetch_add(bytes, Relaxed);
    }
}

/// Starts a peer's actor under supervision on the current arbiter and seats it. `knows_since` is for a
/// peer that is older than its actor; see [`Start::knows_since`].
pub fn spawn(
    config: PeerConfig,
    shared: &Arc<Shared>,
    knows_since: Option<&'static str>,
) -> Arc<Seat> {
    let marks = Arc::new(Marks::default());
    let backlog = shared.journal.backlog(config.id);
    marks.set_waiting(backlog.messages, backlog.bytes, Taken::default());
    marks.parked.store(backlog.parked, Relaxed);
    marks.parked_bytes.store(backlog.parked_bytes, Relaxed);
    let kept = (backlog.messages + backlog.parked) as i64;
    shared.kept.fetch_add(kept, Relaxed);
    let ctx = Context::<Peer>::new();
    let addr = ctx.address();
    let seat = Arc::new(Seat {
        id: config.id,
        name: config.name.clone(),
        addr,
        marks: Arc::clone(&marks),
    });
    let now = clock::now();
    let core = shared.new_core(&config, now, knows_since);
    shared.shaping.set(now, config.id, seat.addr.clone().recipient(), &config.settings);
    let tell = {
        let (health, config) = (shared.health.clone(), config.clone());
        let shaping = Arc::clone(&shared.shaping);
        move |turn| {
            if matches!(turn, Turn::Crashed(_)) {
                shaping.crashed(clock::now(), config.id);
            }
            let _ = health.try_send(PeerReport::turn(&config, turn));
        }
    };
    let peer = Peer {
        is_limited: shared.shaping.limits(&config.settings),
        config,
        shared: Arc::clone(shared),
        marks: Arc::clone(&marks),
        core,
        link: None,
        dialling: None,
        calls: HashSet::new(),
        values: Vec::new(),
        condemned: Vec::new(),
        dirty: false,
        timer: None,
        observed_at: Time::ZERO,
        observed_stale: false,
        oldest: Oldest::Unknown,
        budgeted: 0,
        page_budget: 0,
        reading: false,
        taken: Taken::default(),
        kept,
        outgoing: Vec::new(),
        settled: Vec::new(),
        careful_until: Time::ZERO,
    };
    shared.directory.insert(Arc::clone(&seat));
    actix_rt::spawn(Supervision::new(ctx.into_future(peer), marks, tell));
    seat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_taken_whole_or_not_at_all() {
        let budget = Budget::new(100);
        assert!(budget.take(60));
        assert!(!budget.take(41), "only 40 are left");
        assert!(budget.take(40));
        budget.give(60);
        assert!(budget.take(60));
    }
}
