//! Copies of a journal, taken while it runs, and laid out again.
//!
//! ```text
//! pin ─► newest checkpoint, and where the log ends ─► copy segments up to there ─► manifest ─► unpin
//! ```
//!
//! While a copy is taken nothing is given back and nothing is written over; commits go on and are not
//! held up. What was confirmed before it began is in it; what came later is not. The manifest is
//! written last: without it a directory is no backup.
//!
//! A copy that takes too long or holds back too much ([`Options`](super::Options)), or that runs into a
//! full disk, is given up by name: a backup to a slow place must not fill the node's own.

mod restore;
mod take;

pub use restore::{RestoreError, Restored, restore};
pub(super) use take::take;

use super::storage::DiskFile;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// The format of manifests; a higher one is refused by name.
const BACKUP_FORMAT: u32 = 1;
/// Name of the manifest in a backup.
const MANIFEST: &str = "manifest.json";
/// Bytes copied at once.
const CHUNK_BYTES: usize = 1024 * 1024;
/// Bytes written before they are synced, so that commits never wait behind much of a copy.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// What is in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// See [`BACKUP_FORMAT`].
    restante_backup: u32,
    /// The node's tag.
    node: u16,
    /// The epoch it ran in.
    epoch: u32,
    /// When, milliseconds since the Unix epoch.
    taken_ms: u64,
    /// One past the last record.
    next: u64,
    files: Vec<Entry>,
    /// CRC-64/NVME of the files' lines: `path bytes crc64` each, with a line feed.
    crc64: u64,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Within the backup and within the data directory.
    path: String,
    bytes: u64,
    /// CRC-64/NVME.
    crc64: u64,
}

impl Manifest {
    fn crc_of(files: &[Entry]) -> u64 {
        let lines: String =
            files.iter().map(|e| format!("{} {} {}\n", e.path, e.bytes, e.crc64)).collect();
        crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, lines.as_bytes())
    }
}

/// Keeps the files of the log as they are while they are copied.
#[derive(Default)]
pub(super) struct Pins(Mutex<bool>);

impl Pins {
    /// Nothing is removed or written over from here on, until the guard goes. Waits for a removal
    /// that is under way: a rename or two. `None` if all is pinned already.
    pub(super) fn pin(&self) -> Option<Pin<'_>> {
        let before = std::mem::replace(&mut *self.0.lock(), true);
        // Made only if it is wanted: one that is dropped ends the pin of the backup under way.
        (!before).then(|| Pin(self))
    }

    /// Whether anything is pinned.
    pub(super) fn any(&self) -> bool {
        *self.0.lock()
    }

    /// Leave to remove or write over a file, for as long as the guard is held; `None` while pinned.
    pub(super) fn removal(&self) -> Option<MutexGuard<'_, bool>> {
        let pins = self.0.lock();
        (!*pins).then_some(pins)
    }
}

/// Ends a pin when it goes.
pub(super) struct Pin<'a>(&'a Pins);

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() = false;
    }
}

/// A file being written, summed and synced as it grows.
struct Copy {
    file: File,
    digest: crc_fast::Digest,
    bytes: u64,
    unsynced: u64,
}

impl Copy {
    fn create(path: &Path) -> io::Result<Copy> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
        Ok(Copy { file, digest, bytes: 0, unsynced: 0 })
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    fn finish(self, path: &str) -> io::Result<Entry> {
        self.file.sync_all()?;
        Ok(Entry { path: path.to_owned(), bytes: self.bytes, crc64: self.digest.finalize() })
    }
}

/// Copies the first `len` bytes of a journal's file.
fn copy_file(
    from: &Arc<dyn DiskFile>,
    len: u64,
    to: &Path,
    path: &str,
    mut go_on: impl FnMut() -> io::Result<()>,
) -> io::Result<Entry> {
    let mut copy = Copy::create(&to.join(path))?;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    while copy.bytes < len {
        go_on()?;
        chunk.clear();
        let wanted = (len - copy.bytes).min(CHUNK_BYTES as u64) as usize;
        if from.read_at(copy.bytes, wanted, &mut chunk)? < wanted {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{path} is too short"),
            ));
        }
        copy.push(&chunk)?;
    }
    copy.finish(path)
}

/// Sums a file up: its length and CRC.
fn sum_file(path: &Path) -> io::Result<(u64, u64)> {
    let mut file = File::open(path)?;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((bytes, digest.finalize())),
            read => {
                digest.update(&chunk[..read]);
                bytes += read as u64;
            }
        }
    }
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
