//! The journal on the simulated disk and without threads, for whoever simulates a whole node.
//!
//! All of it is the code that ships, but for the threads: the writer and the keeper take their turns when
//! they are told to, on the clock of the simulation, and questions are answered by whoever asks.

use super::recovery::{self, Engine};
use super::storage::Disk;
use super::storage::sim::{Dice, Fault, SimDisk};
use super::{OpenError, Options};
use bytes::Bytes;
use restante_actors::journal::{
    Backlog, Batch, Completion, Life, LookupError, Page, Read, ReadError, Recovered, Settle, Ticket,
};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::ParkRecord;
use restante_protocol::refusal::Refusal;
use std::sync::Arc;

/// The keeper looks around at least once in so many turns of the writer: a copy goes on in slices.
const KEEPER_EVERY: u64 = 16;

/// A disk that can crash, with all a crash may do to what is not synced. Clones are the same disk.
#[derive(Clone)]
pub struct Medium(SimDisk);

impl Medium {
    /// An empty disk with room for `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> Medium {
        Medium(SimDisk::new(capacity))
    }

    /// The machine goes down with the `steps`-th change or sync from now on, 1 being the next.
    pub fn crash_at(&self, steps: u64) {
        self.0.crash_at(self.0.steps() + steps);
    }

    /// The `steps`-th change or sync from now on fails, 1 being the next.
    pub fn fail_at(&self, steps: u64) {
        self.0.fault_at(self.0.steps() + steps, Fault::Failed);
    }

    /// The disk that the machine comes up with after it went down: of what was not synced any part is
    /// there, as `seed` draws it.
    #[must_use]
    pub fn after_crash(&self, seed: u64) -> Medium {
        Medium(self.0.after_crash(None, &mut Dice(seed)))
    }
}

/// See the module.
pub struct Simulated {
    engine: Engine,
    writes: u64,
}

impl Simulated {
    /// Opens the journal that is on a disk, or a new one.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(medium: &Medium, options: Options) -> Result<Simulated, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(medium.0.clone());
        Ok(Simulated { engine: recovery::open(disk, options)?, writes: 0 })
    }

    /// What the log said when it was opened.
    #[must_use]
    pub fn recovered(&self) -> &Recovered {
        &self.engine.recovered
    }

    /// As [`Journal::next_number`](restante_actors::journal::Journal::next_number).
    #[must_use]
    pub fn next_number(&self) -> MessageNumber {
        self.engine.shared.next_number()
    }

    /// As [`Journal::append`](restante_actors::journal::Journal::append).
    ///
    /// # Errors
    /// Nothing was queued, and the batch is given back.
    pub fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)> {
        self.engine.shared.append(batch)
    }

    /// As [`Journal::settle`](restante_actors::journal::Journal::settle).
    pub fn settle(&self, settle: Settle) {
        self.engine.shared.settle(settle);
    }

    /// As [`Journal::park`](restante_actors::journal::Journal::park).
    pub fn park(&self, park: &ParkRecord) {
        self.engine.shared.park(park);
    }

    /// As [`Journal::checkpoint`](restante_actors::journal::Journal::checkpoint).
    pub fn checkpoint(&self, state: Bytes) {
        self.engine.shared.checkpoint(state);
    }

    /// As [`Journal::next`](restante_actors::journal::Journal::next) for the open lane, at once.
    ///
    /// # Errors
    /// Nothing could be read.
    pub fn next(&self, read: Read) -> Result<Page, ReadError> {
        self.engine.shared.next(read)
    }

    /// As [`Journal::backlog`](restante_actors::journal::Journal::backlog).
    #[must_use]
    pub fn backlog(&self, peer: PeerId) -> Backlog {
        self.engine.shared.state.lock().backlog(peer)
    }

    /// As [`Journal::lookup`](restante_actors::journal::Journal::lookup), at once.
    ///
    /// # Errors
    /// Nothing is known of the message, and why.
    pub fn lookup(&self, number: MessageNumber) -> Result<Life, LookupError> {
        self.engine.shared.lookup(number)
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.engine.shared.disk_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether it is poisoned.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.engine.shared.is_dead()
    }

    /// The writer's turn with all that is queued, and the keeper's if it was asked for.
    pub fn write(&mut self) {
        let mut items = Vec::new();
        self.engine.shared.take_work(&mut items);
        self.engine.writer.turn(&mut items);
        self.writes += 1;
        let is_asked = std::mem::take(&mut self.engine.shared.keeper.lock().wake);
        if is_asked || self.writes.is_multiple_of(KEEPER_EVERY) {
            self.engine.keeper.turn();
        }
    }

    /// There has been nothing to write for a while.
    pub fn rest(&mut self) {
        self.engine.writer.mark();
        self.engine.writer.rest();
    }

    /// Ends in order: what is queued is written, and nothing is taken any more.
    pub fn close(&mut self) {
        self.engine.shared.close();
        self.write();
        self.engine.keeper.turn();
    }

    /// Ends without a word, as a process does that is killed. Another may open the journal.
    pub fn abandon(self) {
        self.engine.shared.unlock();
    }

    /// The next thing it has to say.
    pub fn completion(&mut self) -> Option<Completion> {
        self.engine.completions.try_recv().ok()
    }
}
