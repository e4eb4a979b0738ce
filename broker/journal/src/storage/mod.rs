//! The journal's only door to a disk.
//!
//! Small and low on purpose: the real journal code meets a simulated disk behind the same trait, with
//! crashes between any two calls. Paths are relative to the data directory and use `/`.
//!
//! What is assumed of the medium: after [`DiskFile::sync`] the file's bytes and length survive a
//! crash; after [`Disk::sync_dir`] so do the names in that directory. A write that is torn harms
//! nothing beside the bytes it writes, and a rename never leaves a file without a name. Nothing else
//! is: an unsynced write may be kept wholly, in part, or not at all, a later one without an earlier
//! one, a name without the bytes, and a rename may be undone. What a failed sync should have written
//! is written by no later one, though it can be read for as long as the machine is up.

pub(super) mod around;
#[cfg(feature = "faults")]
pub(crate) mod faulty;
#[cfg(any(test, feature = "faults"))]
pub(crate) mod over;
mod real;
#[cfg(any(test, feature = "sim"))]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "most of what it can do serves the tests in here")
)]
pub(crate) mod sim;

pub(crate) use real::RealDisk;

use std::io::{self, IoSlice};
use std::sync::Arc;

/// A directory with files in it.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Creates a file for reading and writing; an older one of that name is emptied.
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Gives a file another name; an older file of that name is replaced in one step.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn unlink(&self, path: &str) -> io::Result<()>;
    /// Names of the files directly in a directory, without its sub-directories, in no order.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Creates a directory if it does not exist, and makes its name durable. The empty path is the data
    /// directory itself.
    fn make_dir(&self, dir: &str) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Takes the exclusive lock that `path` stands for, creating the file if need be;
    /// [`io::ErrorKind::WouldBlock`] when another process has it. Dropping the guard releases it.
    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>>;
    /// Bytes that can still be allocated.
    fn free_bytes(&self) -> io::Result<u64>;
    /// The path as people know it.
    fn describe(&self, path: &str) -> String;
}

/// An open file.
pub(crate) trait DiskFile: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reserves room for `bytes` bytes and makes the file that long; new bytes read as zeroes.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    /// Writes all of `bufs`, one after the other, from `offset` on. After an error any part of it may
    /// have been written.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Appends up to `len` bytes from `offset` on to `into` and says how many; fewer only at the end
    /// of the file.
    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize>;
    /// The first offset from `offset` on at which there may be anything but zeroes; `None` when there
    /// is nothing of the kind up to the end of the file. A storage that cannot tell answers `offset`.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok((offset < self.length()?).then_some(offset))
    }
    /// Makes everything written so far durable. Never called again after it has failed once.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// Removes a file, or finds that it has gone already.
pub(super) fn remove(disk: &dyn Disk, path: &str) -> io::Result<()> {
    match disk.unlink(path) {
        Err(error) if is_missing(&error) => Ok(()),
        removed => removed,
    }
}

/// Whether an error says that there is no room left.
#[must_use]
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error says that something is not there.
pub(super) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Whether an error is one of the moment and says nothing of the file: too many are open, memory is
/// short.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let of_process = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::NOBUFS];
    error.kind() == io::ErrorKind::OutOfMemory
        || error
            .raw_os_error()
            .is_some_and(|raw| of_process.iter().any(|errno| errno.raw_os_error() == raw))
}
