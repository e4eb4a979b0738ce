//! A receiver ignores deliveries of a journal epoch below one it has seen: they come from a node
//! that has lost its journal to another and does not know it yet.

use parking_lot::Mutex;
use restante_protocol::id::MessageId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// The highest epoch seen of each journal. Shared by the connections of one receiver.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    /// By node tag and partition, as they stand in message ids; at most 2^16 nodes are told apart.
    seen: Mutex<HashMap<u32, u32>>,
    /// How often one has risen.
    risen: AtomicU64,
}

/// What one connection remembers, so that a run of deliveries costs no look-up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EpochCache {
    journal: u32,
    epoch: u32,
    risen: u64,
}

/// Most journals that are told apart; more can only be an attack on memory.
const JOURNALS_MAX: usize = 65_536;

impl Epochs {
    /// Whether a delivery is of the newest epoch seen; a newer one becomes that.
    #[inline]
    pub(crate) fn admit(&self, cache: &mut EpochCache, id: MessageId, epoch: u32) -> bool {
        // The 32 bits above the message number: node tag and partition.
        let journal = (id.0 >> 48) as u32;
        let risen = self.risen.load(Ordering::Acquire);
        if (cache.journal, cache.epoch, cache.risen) == (journal, epoch, risen) {
            return true;
        }
        self.admit_first(cache, journal, epoch)
    }

    fn admit_first(&self, cache: &mut EpochCache, journal: u32, epoch: u32) -> bool {
        let mut seen = self.seen.lock();
        let full = seen.len() >= JOURNALS_MAX;
        match seen.get_mut(&journal) {
            Some(known) if epoch < *known => return false,
            Some(known) if epoch > *known => {
                *known = epoch;
                self.risen.fetch_add(1, Ordering::Release);
            }
            Some(_) => {}
            None if full => {}
            None => {
                seen.insert(journal, epoch);
            }
        }
        *cache = EpochCache { journal, epoch, risen: self.risen.load(Ordering::Acquire) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::id::NodeTag;

    #[test]
    fn an_older_epoch_of_the_same_journal_is_not_admitted() {
        let epochs = Epochs::default();
        let (mut one, mut other) = (EpochCache::default(), EpochCache::default());
        let id = |node, number| MessageId::new(1, NodeTag(node), 0, number);
        assert!(epochs.admit(&mut one, id(7, 1), 3));
        assert!(epochs.admit(&mut one, id(7, 2), 3));
        assert!(epochs.admit(&mut other, id(7, 3), 4), "the journal's new owner");
        assert!(!epochs.admit(&mut one, id(7, 4), 3), "its old one, on another connection");
        assert!(epochs.admit(&mut one, id(8, 1), 1), "another journal counts by itself");
        assert!(!epochs.admit(&mut other, id(7, 5), 3));
        assert!(epochs.admit(&mut other, id(7, 6), 4));
    }
}
