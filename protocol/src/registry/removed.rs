//! Peers that have been removed: remembered as `name#id`, with what is to become of their messages.

use super::{Peer, Registry};
use crate::id::PeerId;
use crate::time::WallMillis;
use serde::{Deserialize, Serialize};
use std::ops::Bound;

/// A peer that has been removed, addressable as `name#id`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Its record as it was; the version is that of the removal.
    pub peer: Peer,
    /// What is to become of the messages that waited for it.
    pub disposition: Disposition,
    /// When it was removed, which is when what stays stored was parked.
    pub at: WallMillis,
    /// Who removed it: agent and address.
    pub by: String,
}

impl Removed {
    /// `name#id`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}#{}", self.peer.name, self.peer.id.0)
    }
}

/// What is to become of a removed peer's messages, and whether it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// They stay stored under `name#id`. Nothing to do.
    Park,
    /// They are deleted, each with a ledger record.
    Purge {
        /// Whether all have been.
        done: bool,
    },
    /// They go to another peer.
    HandTo {
        /// Which; it may have been removed since, see [`Registry::destination`].
        to: PeerId,
        /// Whether all have gone.
        done: bool,
    },
}

impl Disposition {
    /// Whether nothing is left to do.
    #[must_use]
    pub const fn is_done(self) -> bool {
        match self {
            Disposition::Park => true,
            Disposition::Purge { done } | Disposition::HandTo { done, .. } => done,
        }
    }

    /// Who is to get the messages, if somebody is.
    #[must_use]
    pub const fn heir(self) -> Option<PeerId> {
        match self {
            Disposition::HandTo { to, .. } => Some(to),
            Disposition::Park | Disposition::Purge { .. } => None,
        }
    }
}

/// Where messages of a removed peer go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To this peer, which is there.
    Peer(PeerId),
    /// Nowhere: they stay parked.
    Park,
    /// Nowhere: they are deleted.
    Purge,
}

impl Registry {
    /// The removed peer with this id, if it is remembered.
    #[must_use]
    pub fn removed(&self, id: PeerId) -> Option<&Removed> {
        self.durable.removed.get(&id)
    }

    /// The removed peers, by id.
    pub fn removed_peers(&self) -> impl ExactSizeIterator<Item = &Removed> {
        self.durable.removed.values()
    }

    /// Removed peers whose messages have still to be purged or handed over: what a boot goes on with.
    pub fn unfinished(&self) -> impl Iterator<Item = &Removed> {
        self.removed_peers().filter(|removed| !removed.disposition.is_done())
    }

    /// Removed peers above `after`, by id, with whose messages nothing is left to be done: those that
    /// may be forgotten once nothing is stored for them. Whoever is still to be handed another's
    /// messages is not among them.
    #[must_use]
    pub fn at_rest(&self, after: PeerId, most: usize) -> Vec<PeerId> {
        let heirs: Vec<PeerId> = self.unfinished().filter_map(|r| r.disposition.heir()).collect();
        let above = (Bound::Excluded(after), Bound::Unbounded);
        let at_rest = self
            .durable
            .removed
            .range(above)
            .filter(|(id, removed)| removed.disposition.is_done() && !heirs.contains(id))
            .filter(|(id, _)| !self.durable.jobs.need(**id));
        at_rest.map(|(id, _)| *id).take(most).collect()
    }

    /// Whether no further removed peer can be remembered.
    #[must_use]
    pub fn is_memory_full(&self) -> bool {
        self.durable.removed.len() >= self.peers_max
    }

    /// Where messages of a removed peer go at this moment; `None` for one that is not removed.
    ///
    /// A peer they were to be handed to may have been removed since: then they share the fate of its
    /// own messages. This ends because a peer is handed only to one that is there at that time.
    #[must_use]
    pub fn destination(&self, id: PeerId) -> Option<Destination> {
        self.fate(id).map(|(destination, _)| destination)
    }

    /// Since when what a removed peer has left stays where it is, parked; `None` if it goes
    /// elsewhere, or is still being dealt with. Of one whose heir was removed in its turn it is the
    /// time of that, until the heir is forgotten; from then on that of its own removal, the earlier.
    #[must_use]
    pub fn parked_since(&self, id: PeerId) -> Option<WallMillis> {
        let is_done = self.removed(id)?.disposition.is_done();
        match self.fate(id)? {
            (Destination::Park, since) if is_done => Some(since),
            _ => None,
        }
    }

    /// Where the messages of a removed peer go, and when the removal was that decided it.
    fn fate(&self, id: PeerId) -> Option<(Destination, WallMillis)> {
        let mut removed = self.removed(id)?;
        loop {
            let destination = match removed.disposition {
                Disposition::Park => Destination::Park,
                Disposition::Purge { .. } => Destination::Purge,
                Disposition::HandTo { to, .. } => match (self.get(to), self.removed(to)) {
                    (Some(peer), _) => Destination::Peer(peer.id),
                    (None, Some(next)) => {
                        removed = next;
                        continue;
                    }
                    // Forgotten: nothing says what to do with them, so they are kept.
                    (None, None) => Destination::Park,
                },
            };
            return Some((destination, removed.at));
        }
    }
}
