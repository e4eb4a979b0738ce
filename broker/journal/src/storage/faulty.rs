//! Planted faults under a running node, for the tests of whole nodes. Compiled only with the feature
//! `faults`, which release builds do not have.
//!
//! The file that [`CONTROL`] names says, before each step, how the disk is now; a test writes it
//! while the node runs. No file, or an empty one: well.

use super::{Disk, DiskFile};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

/// Path of the file with the present fault.
pub(crate) const CONTROL: &str = "RESTANTE_FAULT_DISK";

/// What the control file may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// `sync`: a sync fails, and what it was for is not known to be on disk.
    Sync,
    /// `write`: a write fails; half of it has been done.
    Write,
    /// `full`: a write in the middle of a file finds no room.
    Full,
    /// `no-sync`: a sync says that it is done and has done nothing.
    NoSync,
    /// `twice`: a sync is done twice. A file system that is shut down while it syncs may say that it is
    /// done when it is not; the second time it says that it is down.
    Twice,
    /// `read`: a read fails.
    Read,
    /// `open`: no file can be opened, because too many are.
    Open,
}

/// The disk, with faults if the environment asks for them.
pub(crate) fn planted(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
    match std::env::var_os(CONTROL) {
        Some(control) => Arc::new(FaultyDisk { disk, control: Arc::new(control.into()) }),
        None => disk,
    }
}

struct FaultyDisk {
    disk: Arc<dyn Disk>,
    control: Arc<PathBuf>,
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    control: Arc<PathBuf>,
}

fn fault(control: &PathBuf) -> Option<Fault> {
    match std::fs::read_to_string(control).ok()?.trim() {
        "sync" => Some(Fault::Sync),
        "write" => Some(Fault::Write),
        "full" => Some(Fault::Full),
        "no-sync" => Some(Fault::NoSync),
        "twice" => Some(Fault::Twice),
        "read" => Some(Fault::Read),
        "open" => Some(Fault::Open),
        _ => None,
    }
}

/// Errno 5, as a dying disk says it.
fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn sync(control: &PathBuf, really: impl Fn() -> io::Result<()>) -> io::Result<()> {
    match fault(control) {
        Some(Fault::Sync) => Err(io_error()),
        Some(Fault::NoSync) => Ok(()),
        Some(Fault::Twice) => really().and_then(|()| really()),
        _ => really(),
    }
}

impl FaultyDisk {
    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, control: Arc::clone(&self.control) })
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.disk.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        if fault(&self.control) == Some(Fault::Open) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
        }
        self.disk.open(path).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.disk.unlink(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.make_dir(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        sync(&self.control, || self.disk.sync_dir(dir))
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        self.disk.lock(path)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }

    fn describe(&self, path: &str) -> String {
        self.disk.describe(path)
    }
}

impl DiskFile for FaultyFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let error = match fault(&self.control) {
            Some(Fault::Write) => io_error(),
            Some(Fault::Full) => io::ErrorKind::StorageFull.into(),
            _ => return self.file.write_at(bufs, offset),
        };
        let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.file.write_at(&[IoSlice::new(&whole[..whole.len() / 2])], offset)?;
        Err(error)
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        if fault(&self.control) == Some(Fault::Read) {
            return Err(io_error());
        }
        self.file.read_at(offset, len, into)
    }

    fn sync(&self) -> io::Result<()> {
        sync(&self.control, || self.file.sync())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}
