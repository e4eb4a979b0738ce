//! Draining peers: nothing new is accepted for them, and it is told once nothing waits any more.
//!
//! That the door is shut is the slot's (slots.rs): a draining peer has room for no message. Here it is
//! only noticed that the last one has gone. The peer alone cannot say: what a full mailbox kept from it
//! is still to come.

use super::Router;
use super::delay::Delays;
use super::slots::Slots;
use crate::events;
use restante_protocol::id::PeerId;
use restante_protocol::registry::{Peer as PeerRecord, Registry};
use restante_protocol::status::Taking;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::time::Duration;

/// How often draining peers are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// So many of them at a time; the next look goes on from there.
const LOOKED_AT: usize = 1_024;

/// Peers of which it is still to be told that they are drained.
#[derive(Default)]
pub(super) struct Drains {
    untold: BTreeSet<PeerId>,
    looked_at: PeerId,
}

impl Drains {
    pub(super) fn begin(&mut self, peer: PeerId) {
        self.untold.insert(peer);
    }

    pub(super) fn end(&mut self, peer: PeerId) {
        self.untold.remove(&peer);
    }

    /// The next that are to be looked at.
    fn next(&mut self) -> Vec<PeerId> {
        let above = (Bound::Excluded(self.looked_at), Bound::Unbounded);
        let next: Vec<PeerId> = self.untold.range(above).take(LOOKED_AT).copied().collect();
        self.looked_at =
            next.last().copied().filter(|_| next.len() == LOOKED_AT).unwrap_or_default();
        next
    }
}

/// A look at draining peers, of one moment.
pub(super) struct Look<'a> {
    slots: &'a Slots,
    registry: &'a Registry,
    delays: &'a Delays,
    /// Peers that more is coming for by itself, once somebody has asked.
    given_to: Option<BTreeSet<PeerId>>,
}

impl<'a> Look<'a> {
    pub(super) fn new(slots: &'a Slots, registry: &'a Registry, delays: &'a Delays) -> Look<'a> {
        Look { slots, registry, delays, given_to: None }
    }

    /// How many delayed messages wait for their time that were accepted for this peer.
    pub(super) fn delayed(&self, id: PeerId) -> u64 {
        self.slots.get(id).map_or_else(|| self.delays.left_by(id), |slot| slot.delayed())
    }

    /// Whether this peer is given new messages.
    pub(super) fn taking(&mut self, record: &PeerRecord) -> Taking {
        match record.draining {
            false => Taking::Open,
            true if self.is_drained(record.id) => Taking::Drained,
            true => Taking::Draining,
        }
    }

    /// Whether nothing waits for a draining peer, in its queue or for its time, and no replay or
    /// hand-over that began before brings more.
    fn is_drained(&mut self, id: PeerId) -> bool {
        let Look { slots, registry, delays, given_to } = self;
        let given_to_now = || {
            let mut given_to = registry.given_to();
            given_to.extend(delays.heirs(registry));
            given_to
        };
        delays.are_read()
            && slots.get(id).is_some_and(|slot| slot.is_delivered())
            && !given_to.get_or_insert_with(given_to_now).contains(&id)
    }
}

impl Router {
    /// Tells of those of which nothing waits any more.
    pub(super) fn look_at_drains(&mut self) {
        let mut look = Look::new(&self.slots, &self.state.registry, &self.delays);
        for id in self.drains.next() {
            let Some(record) = self.state.registry.get(id) else {
                self.drains.end(id);
                continue;
            };
            if look.is_drained(id) {
                let parked = self.journal.backlog(id).parked;
                events::peer_drained(record.name.as_str(), record.version, parked);
                self.drains.end(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_draining_peer_is_looked_at_in_turn() {
        let mut drains = Drains::default();
        let all: Vec<PeerId> = (1..=2 * LOOKED_AT as u32 + 5).map(PeerId).collect();
        all.iter().for_each(|id| drains.begin(*id));
        let round: Vec<PeerId> = (0..3).flat_map(|_| drains.next()).collect();
        assert_eq!(round, all);
        drains.end(PeerId(1));
        assert_eq!(drains.next()[..], all[1..=LOOKED_AT]);
    }
}
