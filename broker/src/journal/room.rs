//! Room on the disk: who may use what is left of it.
//!
//! ```text
//! free on the disk ──► publishes, until the door closes
//! ready segments  ──► all but one are the reserve: what was accepted before the door closed, settles,
//!                     operators' changes, and (given up one by one) indexes and checkpoints
//! ```
//!
//! Nothing is ever written without room that was taken before: a segment's is allocated with it, and
//! the files that are written whole, indexes and checkpoints, take the room of a spare or ready segment
//! when there is no other. So acks go on with nothing free at all, and what they make dead is given
//! back. A reserve that is no longer whole keeps the door closed until it is.

use super::index::replace_file;
use super::keeper::Keeper;
use super::shared::Shared;
use super::storage::{Disk, is_full};
use restante_actors::events;
use restante_protocol::refusal::{Code, Refusal};
use std::io;

/// Ready segments that are left for the log when files need room.
const KEPT_FOR_LOG: usize = 1;

impl Shared {
    /// Writes a file whole, with the room of spare and ready segments if the disk has no other.
    pub(super) fn put_file(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        loop {
            match replace_file(&*self.disk, path, bytes) {
                Err(error) if is_full(&error) && self.give_up_one()? => {}
                other => return other,
            }
        }
    }

    /// Gives the room of a segment that holds nothing back to the disk. Says whether there was one.
    fn give_up_one(&self) -> io::Result<bool> {
        let path = {
            let mut pool = self.pool.lock();
            match pool.spares.pop() {
                Some(spare) => spare.path,
                // The last one made: the log goes on in the order of their ids.
                None if pool.ready.len() > KEPT_FOR_LOG => match pool.ready.pop_back() {
                    Some(ready) => Shared::segment_path(ready.id),
                    None => return Ok(false),
                },
                None => return Ok(false),
            }
        };
        give_up(&*self.disk, &path)?;
        Ok(true)
    }
}

/// Removes a file that holds nothing, for its room.
pub(super) fn give_up(disk: &dyn Disk, path: &str) -> io::Result<()> {
    disk.unlink(path)?;
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
