//! Who is there: names to seats, shared by every arbiter.
//!
//! A seat is what outlives the incarnations of a peer's actor: its identity, its counters, what it
//! last reported, and which message it has in hand. It is looked up here when a connection declares
//! an alias or attaches, never per message.

use crate::peer::{Peer, Taken};
use actix::Addr;
use dashmap::DashMap;
use parking_lot::Mutex;
use restante_protocol::delivery::types::Snapshot;
use restante_protocol::forecast::{Forecast, Totals};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::name::Name;
use restante_protocol::status::{Health, Quota};
use restante_protocol::time::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// The durable place of one peer in the running node.
pub struct Seat {
    /// Its identity.
    pub id: PeerId,
    /// Its name.
    pub name: Name,
    /// Its mailbox, the same through every restart of the actor.
    pub addr: Addr<Peer>,
    /// The counters and marks that are read from elsewhere.
    pub marks: Arc<Marks>,
}

/// What a peer's actor leaves outside itself, so that it survives a crash and can be read by others.
#[derive(Default)]
pub struct Marks {
    /// Open messages the peer knows of; those still on their way to it are not counted.
    pub waiting: AtomicU64,
    /// Bytes of their bodies.
    pub waiting_bytes: AtomicU64,
    /// Messages handed over since the node started that `waiting` takes account of, whatever has
    /// become of them since.
    pub counted: AtomicU64,
    /// Bytes of their bodies.
    pub counted_bytes: AtomicU64,
    /// Parked messages.
    pub parked: AtomicU64,
    /// Bytes of their bodies.
    pub parked_bytes: AtomicU64,
    /// Messages acked since the node started.
    pub acked: AtomicU64,
    /// What it may take, as the router was told last: messages and bytes, 0 for no limit.
    quota: [AtomicU64; 2],
    /// Where its queue is going, while anything is in it.
    pub forecast: Mutex<Option<Forecast>>,
    /// Rebuilds of the actor since the node started.
    pub restarts: AtomicU64,
    /// The message being handled, 0 for none: what a supervisor blames a panic on.
    pub in_hand: AtomicU64,
    /// When the message in hand was accepted; with its number it makes the id.
    pub in_hand_ms: AtomicU64,
    /// Messages that killed the actor too often, and when they were accepted: the rebuilt actor
    /// parks them.
    pub condemned: Mutex<Vec<(MessageNumber, u64)>>,
    /// Set once the peer is removed: aliases that point here are stale.
    pub removed: AtomicBool,
    /// The last snapshot the peer published; `None` before the first. While the actor is held back,
    /// its supervisor's word.
    pub observed: Mutex<Option<Snapshot>>,
    /// Whether the actor is held back after crashes, and answers nothing until it is rebuilt.
    pub held: AtomicBool,
    /// The connection attempt that waits for its turn among those of all peers; 0 for none.
    dial_waiting: AtomicU64,
}

/// What is said of a peer whose connection attempt waits for its turn.
const WAITS_TO_DIAL: &str =
    "its connection attempt waits for its turn (dials_max, dials_per_second)";

/// Says it behind what else is the matter.
fn waits_to_dial(why: &str) -> String {
    if why.is_empty() { WAITS_TO_DIAL.to_owned() } else { format!("{why}; {WAITS_TO_DIAL}") }
}

impl Marks {
    /// Publishes how much waits, as the peer's core counts it after having been handed `taken`.
    pub fn set_waiting(&self, messages: u64, bytes: u64, taken: Taken) {
        self.waiting.store(messages, Relaxed);
        self.waiting_bytes.store(bytes, Relaxed);
        self.counted.store(taken.messages, Relaxed);
        self.counted_bytes.store(taken.bytes, Relaxed);
    }

    /// What the peer may take from now on.
    pub fn set_quota(&self, quota: Quota) {
        self.quota[0].store(quota.messages, Relaxed);
        self.quota[1].store(quota.bytes, Relaxed);
    }

    /// What the peer may take.
    #[must_use]
    pub fn quota(&self) -> Quota {
        Quota { messages: self.quota[0].load(Relaxed), bytes: self.quota[1].load(Relaxed) }
    }

    /// What has come to its queue and what is in it.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let load =
            |messages: &AtomicU64, bytes: &AtomicU64| [messages.load(Relaxed), bytes.load(Relaxed)];
        Totals {
            came: load(&self.counted, &self.counted_bytes),
            waiting: load(&self.waiting, &self.waiting_bytes),
            kept: load(&self.parked, &self.parked_bytes),
        }
    }

    /// Marks a message as being handled.
    pub fn take_in_hand(&self, number: MessageNumber, accepted_ms: u64) {
        self.in_hand.store(number, Relaxed);
        self.in_hand_ms.store(accepted_ms, Relaxed);
    }

    /// The actor is held back after so many crashes, until its next attempt.
    pub fn hold(&self, now: Time, until: Time, crashes: usize, panic: &str) {
        self.held.store(true, Relaxed);
        let mut observed = self.observed.lock();
        let before = observed.take().unwrap_or_default();
        let since = if before.health == Health::Crashing { before.since } else { now };
        *observed = Some(Snapshot {
            health: Health::Crashing,
            since,
            why: format!("its actor crashed {crashes} times within a minute: {panic}"),
            waiting: self.waiting.load(Relaxed),
            waiting_bytes: self.waiting_bytes.load(Relaxed),
            unacked: 0,
            next_attempt: Some(until),
            ..before
        });
    }

    /// These messages, each of which puts itself in hand; behind the last nothing is.
    pub(crate) fn then_put_down<T>(
        &self,
        messages: impl Iterator<Item = T>,
    ) -> impl Iterator<Item = T> {
        messages.chain(std::iter::from_fn(|| {
            self.put_down();
            None
        }))
    }

    /// The connection attempt of this number waits for its turn.
    pub fn waits_to_dial(&self, link: u64) {
        self.dial_waiting.store(link, Relaxed);
    }

    /// The connection attempt of this number waits no more; a newer one may.
    pub fn dials(&self, link: u64) {
        // Another number there is another attempt's.
        let _ = self.dial_waiting.compare_exchange(link, 0, Relaxed, Relaxed);
    }

    /// Whether a connection attempt waits for its turn.
    #[must_use]
    pub fn is_waiting_to_dial(&self) -> bool {
        self.dial_waiting.load(Relaxed) != 0
    }

    /// Adds to what a peer's core knew what only the dialler knows. An attempt that waits for its turn is
    /// one that was due: there is no time for the next.
    pub fn complete(&self, snapshot: &mut Snapshot) {
        if matches!(snapshot.health, Health::Unreachable | Health::Failed)
            && self.is_waiting_to_dial()
        {
            snapshot.why = waits_to_dial(&snapshot.why);
            snapshot.next_attempt = None;
        }
    }

    /// Why there is no link, for whoever waits for one.
    #[must_use]
    pub fn why_no_link(&self, why: &str) -> String {
        if self.is_waiting_to_dial() { waits_to_dial(why) } else { why.to_owned() }
    }

    /// Nothing is being handled any more.
    pub fn put_down(&self) {
        self.in_hand.store(0, Relaxed);
    }
}

/// Names and ids of the peers that are there, and of the groups.
#[derive(Default)]
pub struct Directory {
    by_name: DashMap<Name, Arc<Seat>, foldhash::fast::RandomState>,
    by_id: DashMap<PeerId, Arc<Seat>, foldhash::fast::RandomState>,
    groups: DashMap<Name, PeerId, foldhash::fast::RandomState>,
}

impl Directory {
    /// The peer of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Arc<Seat>> {
        self.by_name.get(name).map(|seat| Arc::clone(&seat))
    }

    /// Who is meant by a name in the place of a receiver: a peer or a group.
    #[must_use]
    pub fn receiver(&self, name: &str) -> Option<PeerId> {
        let group = || self.groups.get(name).map(|id| *id);
        self.by_name.get(name).map(|seat| seat.id).or_else(group)
    }

    /// A group is there from now on.
    pub fn insert_group(&self, name: Name, id: PeerId) {
        self.groups.insert(name, id);
    }

    /// This group is gone.
    pub fn remove_group(&self, name: &str, id: PeerId) {
        // A new group may already have the old name.
        self.groups.remove_if(name, |_, other| *other == id);
    }

    /// The peer with this id.
    #[must_use]
    pub fn seat(&self, id: PeerId) -> Option<Arc<Seat>> {
        self.by_id.get(&id).map(|seat| Arc::clone(&seat))
    }

    /// Seats a peer.
    pub fn insert(&self, seat: Arc<Seat>) {
        self.by_id.insert(seat.id, Arc::clone(&seat));
        self.by_name.insert(seat.name.clone(), seat);
    }

    /// Unseats a peer; its marks say so to whoever still holds them.
    pub fn remove(&self, id: PeerId) -> Option<Arc<Seat>> {
        let (_, seat) = self.by_id.remove(&id)?;
        seat.marks.removed.store(true, Relaxed);
        // A new peer may already sit under the old name.
        self.by_name.remove_if(&seat.name, |_, other| other.id == id);
        Some(seat)
    }

    /// Every seat, in no order.
    #[must_use]
    pub fn seats(&self) -> Vec<Arc<Seat>> {
        self.by_id.iter().map(|seat| Arc::clone(&seat)).collect()
    }

    /// How many peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_hand_is_put_down() {
        let marks = Marks::default();
        marks.take_in_hand(9, 1_000);
        assert_eq!(marks.in_hand.load(Relaxed), 9);
        marks.put_down();
        assert_eq!(marks.in_hand.load(Relaxed), 0);
    }
}
