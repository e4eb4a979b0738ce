//! Reads that fail. One that fails is tried again, by whoever asked and after a pause: what a disk, a
//! cable or a system that is short of something does for a moment must not cost a message. Only what
//! fails again and again for the same reader in the same place is taken for damage, and what is
//! damaged is set aside by its name, never passed over.

use super::shared::Shared;
use super::storage::is_shortage;
use foldhash::HashMap;
use parking_lot::Mutex;
use restante_actors::events;
use restante_protocol::id::{MessageNumber, PeerId};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// How often a read fails before what was to be read counts as damaged. A peer doubles its pause each
/// time, so that this takes half a minute.
pub(super) const TRIES: u32 = 7;
/// Places that are remembered; beyond it all are forgotten, and tried anew.
const SPOTS_MAX: usize = 4_096;

/// Where a read fails, and for whom: how long one peer has tried says nothing of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Spot {
    pub(super) segment: u64,
    pub(super) peer: PeerId,
    /// A message, or 0: the index.
    pub(super) number: MessageNumber,
}

impl Spot {
    /// A segment's index as the keeper needs it, which waits for it from checkpoint to checkpoint.
    pub(super) fn index_of(segment: u64) -> Spot {
        Spot { segment, peer: PeerId::NONE, number: 0 }
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Troubles {
    any: AtomicBool,
    spots: Mutex<HashMap<Spot, u32>>,
    /// By segment, how often something in it could not be read.
    segments: Mutex<HashMap<u64, u64>>,
}

impl Troubles {
    /// A read has failed. The log learns of a segment's failures whenever their number has doubled.
    pub(super) fn note(&self, segment: u64, error: &io::Error) {
        let failures = {
            let mut segments = self.segments.lock();
            if segments.len() >= SPOTS_MAX {
                segments.clear();
            }
            let failures = segments.entry(segment).or_default();
            *failures += 1;
            *failures
        };
        if failures.is_power_of_two() {
            let file = Shared::segment_path(segment);
            events::journal_finding(&format!(
                "{file} or its index could not be read, {failures} times so far ({error}); it is tried again"
            ));
        }
    }

    /// [Notes](Troubles::note) that a read has failed. Says whether it has done so often enough that there is
    /// nothing to wait for.
    pub(super) fn is_lasting(&self, spot: Spot, error: &io::Error) -> bool {
        self.note(spot.segment, error);
        if is_shortage(error) {
            return false;
        }
        let mut spots = self.spots.lock();
        if spots.len() >= SPOTS_MAX {
            spots.clear();
        }
        self.any.store(true, Ordering::Relaxed);
        let tries = spots.entry(spot).or_default();
        *tries += 1;
        *tries >= TRIES
    }

    /// Whether a read has failed often enough already.
    pub(super) fn has_lasted(&self, spot: Spot) -> bool {
        self.spots.lock().get(&spot).is_some_and(|tries| tries + 1 >= TRIES)
    }

    /// These can be read, after all.
    pub(super) fn forget(
        &self,
        segment: u64,
        peer: PeerId,
        numbers: impl Iterator<Item = MessageNumber>,
    ) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut spots = self.spots.lock();
        for number in numbers {
            spots.remove(&Spot { segment, peer, number });
        }
        self.any.store(!spots.is_empty(), Ordering::Relaxed);
    }
}
