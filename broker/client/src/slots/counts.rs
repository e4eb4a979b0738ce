//! What an attachment counts: grants over its generations, acks until they are recorded.

use super::DETACHED;

/// Deliveries the reader has asked for, counted over all generations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) total: u64,
    /// Of those, taken by the reader.
    pub(super) taken: u64,
    /// As it was when the present generation was asked for.
    pub(super) taken_before: u64,
    /// What the node knows of this generation's.
    pub(super) told: u64,
}

/// Which acks are known to be recorded.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// Acks and nacks given so far.
    pub(crate) given: u64,
    /// Of those, known to be recorded or known to be lost.
    pub(crate) known: u64,
    /// Some were lost with their connection since the last flush.
    pub(crate) lost: bool,
}

#[derive(Debug)]
pub(super) struct Generations(pub(in crate::slots) u32);

impl Granted {
    /// Cumulative since the present generation was asked for, as the node counts.
    pub(super) fn of_generation(&self) -> u64 {
        self.total.saturating_sub(self.taken_before)
    }
}

impl Generations {
    /// After 2^32 attaches it starts over, past the value that means none.
    pub(super) fn draw(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(1).max(DETACHED + 1);
        self.0
    }
}
