//! Room on the disk: who may use what is left of it.
//!
//! ```text
//! free on the disk ──► publishes, until the door closes
//! ready segments  ──► all but one are the reserve: what was accepted before the door closed, settles,
//!                     operators' changes, and (given up one by one) indexes, checkpoints and the
//!                     copies that compaction makes
//! ```
//!
//! Nothing is ever written without room that was taken before: a segment's is allocated with it, a
//! copy's is allocated before the first byte of it, and the files that are written whole, indexes and
//! checkpoints, take the room of a spare or ready segment when there is no other. So acks go on with
//! nothing free at all, and what they make dead, or so thin that little has to be copied, is given
//! back. A reserve that is no longer whole keeps the door closed until it is.
//!
//! Should the log need a segment when there is none, the writer waits, and every checkpoint with it.
//! Then the last checkpoint is written again, with the room of the history or of its own second copy if
//! there is no other, and lets go what was done before its position.

use super::checkpoint;
use super::index::replace_file;
use super::keeper::{CHECKPOINT_PATHS, Keeper};
use super::shared::Shared;
use super::storage::{Disk, is_full, remove};
use restante_actors::events;
use restante_protocol::refusal::{Code, Refusal};
use std::io;
use std::sync::atomic::Ordering;

/// Room on a disk is given in blocks of this size, or of one that divides it or is larger.
const BLOCK_BYTES: u64 = 4096;

/// Used segments that a log keeps to be written again while nothing is written to it: the next one that is
/// made ready.
const SPARES_AT_REST: usize = 1;

/// What room that is kept may be given up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Index,
    Checkpoint,
    /// What compaction writes: where every segment holds something that nobody fetches, it alone makes
    /// room.
    Copy,
    /// A checkpoint behind which segments go.
    Reclaim,
}

impl Purpose {
    /// Ready segments that are left to what is more urgent. What gives back more than it takes leaves
    /// none: should the log need one in that moment, it waits for the first that comes back.
    fn leaves(self) -> usize {
        match self {
            Purpose::Index | Purpose::Checkpoint => 1,
            Purpose::Copy | Purpose::Reclaim => 0,
        }
    }
}

impl Shared {
    /// Writes a file whole, with room that is kept for that if the disk has no other.
    pub(super) fn put_file(&self, purpose: Purpose, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.with_room(purpose, || replace_file(&*self.disk, path, bytes))
    }

    /// Does what needs room, with that of spare segments and of ready ones as far as they are left for
    /// this, if the disk has no other. `attempt` leaves nothing behind where it fails.
    pub(super) fn with_room<T>(
        &self,
        purpose: Purpose,
        attempt: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match attempt() {
                Err(error) if is_full(&error) && self.give_up_one(purpose)? => {}
                other => return other,
            }
        }
    }

    /// Whether there are more used segments to be written again than a log at rest needs.
    pub(super) fn has_surplus_spares(&self) -> bool {
        self.pool.lock().spares.len() > SPARES_AT_REST
    }

    /// Gives the room of used segments back that are only there for haste, while nothing is written.
    pub(super) fn give_up_surplus_spares(&self) -> io::Result<()> {
        while self.rests.load(Ordering::Relaxed) && self.has_surplus_spares() {
            let Some(spare) = self.pool.lock().spares.pop() else { break };
            give_up(&*self.disk, &spare.path)?;
        }
        Ok(())
    }

    /// Gives the room of a segment that holds nothing back to the disk. Says whether there was one.
    fn give_up_one(&self, purpose: Purpose) -> io::Result<bool> {
        let path = {
            let mut pool = self.pool.lock();
            match pool.spares.pop() {
                Some(spare) => Some(spare.path),
                // The last one made: the log goes on in the order of their ids.
                None if pool.ready.len() > purpose.leaves() => {
                    pool.ready.pop_back().map(|ready| Shared::segment_path(ready.id))
                }
                None => None,
            }
        };
        match path {
            Some(path) => give_up(&*self.disk, &path)?,
            None => return Ok(purpose == Purpose::Reclaim && self.give_up_history()?),
        }
        Ok(true)
    }

    /// Gives the room of the oldest history back to the disk. Says whether there was any that may go.
    fn give_up_history(&self) -> io::Result<bool> {
        let Some(_leave) = self.pins.removal() else { return Ok(false) };
        let oldest = {
            let mut pool = self.pool.lock();
            let oldest = pool.history.iter().enumerate().min_by_key(|(_, n)| (n.kept_ms, n.id));
            let place = oldest.map(|(place, _)| place);
            place.map(|place| pool.history.swap_remove(place))
        };
        let Some(oldest) = oldest else { return Ok(false) };
        remove(&*self.disk, &oldest.path())?;
        self.disk.sync_dir("history")?;
        Ok(true)
    }

    /// Gives up the second copy of the checkpoint for the room to write a new one of `bytes` bytes, if
    /// that is as much and the first is sound. Says whether it did.
    pub(super) fn give_up_copy(&self, bytes: u64) -> io::Result<bool> {
        let [first, second] = CHECKPOINT_PATHS;
        let room = self.disk.open(second).and_then(|file| file.length()).unwrap_or(0);
        let is_enough = room > 0 && bytes <= room.next_multiple_of(BLOCK_BYTES);
        if !is_enough || checkpoint::newest(&*self.disk, &[first])?.is_none() {
            return Ok(false);
        }
        // The first is what it is also after a crash, before the second goes.
        self.disk.sync_dir("")?;
        remove(&*self.disk, second)?;
        self.disk.sync_dir("")?;
        Ok(true)
    }
}

/// Removes a file that holds nothing, for its room.
pub(super) fn give_up(disk: &dyn Disk, path: &str) -> io::Result<()> {
    remove(disk, path)?;
    // Some file systems give the room back once the removal is durable.
    disk.sync_dir("segments")
}

impl Keeper {
    /// Closes or opens the door as the room on the disk says.
    pub(super) fn judge_room(&mut self) {
        let used = self.measure();
        let options = &self.shared.options;
        let free = self.shared.disk.free_bytes().unwrap_or(u64::MAX);
        let starved = self.shared.pool.lock().starved;
        let (used_max, free_min) = if self.full {
            (options.bytes_resume.min(options.bytes_max), options.disk_free_bytes_resume)
        } else {
            (options.bytes_max, options.disk_free_bytes_min)
        };
        let over_quota = !starved && used > used_max;
        let reason = if starved {
            let needed = options.segment_bytes;
            Some(format!("no room for the next {needed} bytes of log; {free} bytes are free"))
        } else if over_quota {
            let needed = used - used_max;
            Some(format!(
                "the journal has {used} bytes of at most {}; {needed} must be freed",
                options.bytes_max
            ))
        } else if free < free_min {
            let needed = free_min - free;
            Some(format!("{free} bytes of disk are free; {needed} more must be"))
        } else {
            None
        };
        match (&reason, self.full) {
            (Some(reason), false) => events::disk_full(reason, used),
            (None, true) => events::disk_ok(used),
            _ => {}
        }
        self.full = reason.is_some();
        let code = if over_quota { Code::NodeQuota } else { Code::DiskFull };
        self.shared.set_full(reason.map(|detail| Refusal::new(code, detail)));
    }
}
