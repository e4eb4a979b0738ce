//! A data directory looked at, and mended, while no node runs on it: what `restante journal` does.
//!
//! [`check`] reads every byte and says what is wrong, [`dump`] prints records, [`repair`] does what an
//! opening would and more, on the disk or only in thought. All of them hold the directory's lock.

pub mod check;
pub mod dump;
pub mod names;
mod overlay;
pub mod repair;

use super::checkpoint::{self, Snapshot};
use super::error::OpenError;
use super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError};
use super::history::{self, Keeps};
use super::keeper::CHECKPOINT_PATHS;
use super::recovery::refuse_newer;
use super::segment::read_header;
use super::storage::{Disk, RealDisk};
use bytes::Bytes;
use restante_protocol::id::NodeTag;
use std::io;
use std::path::Path;
use std::sync::Arc;

const LOCK_PATH: &str = "lock";

/// A data directory, locked, and who it belongs to.
pub(crate) struct Offline {
    pub(crate) disk: Arc<dyn Disk>,
    _lock: Box<dyn Send + Sync>,
    node: NodeTag,
    seed: u32,
    /// What is wrong with the lock file, if anything is.
    lock_flaw: Option<String>,
}

impl Offline {
    /// Opens the directory `dir` for reading only.
    ///
    /// # Errors
    /// When it is in use, cannot be read, or is no journal.
    pub(crate) fn read_only(dir: &Path) -> Result<Offline, OpenError> {
        Offline::on(Arc::new(RealDisk::read_only(dir)))
    }

    pub(crate) fn on(disk: Arc<dyn Disk>) -> Result<Offline, OpenError> {
        let path = disk.describe(LOCK_PATH);
        let lock = disk.lock(LOCK_PATH).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Locked { path: disk.describe("") },
            io::ErrorKind::NotFound => OpenError::Foreign {
                path: disk.describe(""),
                detail: "it has no lock file".to_owned(),
            },
            _ => OpenError::io(&path, error),
        })?;
        refuse_newer(&*disk)?;
        let bytes = read_whole(&*disk, LOCK_PATH, FILE_HEADER_BYTES as u64)
            .map_err(|error| OpenError::io(&path, error))?;
        let (header, lock_flaw) = match FileHeader::parse(FileKind::Lock, &bytes) {
            Ok(header) => (header, None),
            Err(newer @ HeaderError::Newer(_)) => return Err(newer.for_file(&path)),
            Err(HeaderError::Damaged(what)) => match header_of_a_segment(&*disk) {
                Some(header) => (header, Some(what.to_owned())),
                None => return Err(OpenError::Foreign { path, detail: what.to_owned() }),
            },
        };
        let FileHeader { node, seed, .. } = header;
        Ok(Offline { disk, _lock: lock, node, seed, lock_flaw })
    }

    fn is_ours(&self, header: &FileHeader) -> bool {
        header.node == self.node && header.seed == self.seed
    }

    /// What the copies of the checkpoint say: each sound one of ours, or what is wrong with it.
    /// Missing ones are left out.
    fn checkpoints(&self) -> Vec<(&'static str, ReadCheckpoint)> {
        let read = |path| match read_whole(&*self.disk, path, u64::MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(error.to_string())),
            Ok(bytes) => Some(match checkpoint::decode(&bytes) {
                Ok((header, snapshot, state)) if self.is_ours(&header) => Ok((snapshot, state)),
                Ok((header, ..)) => Err(format!("it was written by node {:04x}", header.node.0)),
                Err(HeaderError::Damaged(what)) => Err(what.to_owned()),
                Err(HeaderError::Newer(version)) => {
                    Err(format!("its format version {version} is newer than this program"))
                }
            }),
        };
        CHECKPOINT_PATHS.into_iter().filter_map(|path| Some((path, read(path)?))).collect()
    }

    /// The newest sound checkpoint.
    fn newest_checkpoint(&self) -> Option<(Snapshot, Bytes)> {
        let sound = self.checkpoints().into_iter().filter_map(|(_, read)| read.ok());
        sound.max_by_key(|(snapshot, _)| snapshot.position)
    }

    /// Ids of the files of a directory with this extension, ascending, and the names of files that
    /// are none.
    fn ids(&self, dir: &str, extension: &str) -> Result<(Vec<u64>, Vec<String>), OpenError> {
        let names = self.list(dir)?;
        let (mut ids, mut others) = (Vec::new(), Vec::new());
        for name in names {
            match name.split_once('.').filter(|(stem, _)| stem.len() == 12) {
                Some((stem, end)) => match u64::from_str_radix(stem, 16) {
                    Ok(id) if end == extension => ids.push(id),
                    Ok(_) => {}
                    Err(_) => others.push(format!("{dir}/{name}")),
                },
                None => others.push(format!("{dir}/{name}")),
            }
        }
        ids.sort_unstable();
        others.sort();
        Ok((ids, others))
    }

    /// The history files, by id and time, and the names of files there that are none.
    fn history(&self) -> Result<(Vec<HistoryName>, Vec<String>), OpenError> {
        let (mut notes, mut others) = (Vec::new(), Vec::new());
        for name in self.list("history")? {
            match history::parse_name(&name) {
                Some(note) => notes.push(note),
                None if name.ends_with(".tmp") => {}
                None => others.push(format!("history/{name}")),
            }
        }
        notes.sort_unstable();
        others.sort();
        Ok((notes, others))
    }

    fn list(&self, dir: &str) -> Result<Vec<String>, OpenError> {
        self.disk.list(dir).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Vec::new()),
            _ => Err(OpenError::io(&self.disk.describe(dir), error)),
        })
    }
}

/// A copy of the checkpoint, or what is wrong with it.
type ReadCheckpoint = Result<(Snapshot, Bytes), String>;
/// What the name of a history file says: the segment's id, when it became history, and what is kept.
type HistoryName = (u64, u64, Keeps);

/// Reads a file whole, or its first bytes.
fn read_whole(disk: &dyn Disk, path: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = usize::try_from(file.length()?.min(bytes_max)).unwrap_or(usize::MAX);
    let mut bytes = Vec::new();
    file.read_at(0, len, &mut bytes)?;
    Ok(bytes)
}

fn header_of_a_segment(disk: &dyn Disk) -> Option<FileHeader> {
    let names = disk.list("segments").ok()?;
    names.iter().filter(|name| name.ends_with(".seg")).find_map(|name| {
        let file = disk.open(&format!("segments/{name}")).ok()?;
        read_header(&*file).ok()?.ok()
    })
}
