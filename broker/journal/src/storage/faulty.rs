//! Planted faults under a running node, for the tests of whole nodes. Compiled only with the feature
//! `faults`, which release builds do not have.
//!
//! The file that [`CONTROL`] names says, before each step, how the disk is now; a test writes it
//! while the node runs. No file, or an empty one: well.

use super::over::{Over, OverDisk};
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
        Some(control) => Arc::new(OverDisk { disk, over: Planted(Arc::new(control.into())) }),
        None => disk,
    }
}

/// The path of the control file.
#[derive(Clone)]
struct Planted(Arc<PathBuf>);

impl Planted {
    fn fault(&self) -> Option<Fault> {
        match std::fs::read_to_string(&*self.0).ok()?.trim() {
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
}

/// Errno 5, as a dying disk says it.
fn io_error() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

impl Over for Planted {
    fn of_file(&self, _path: &str, created: bool) -> io::Result<Option<Self>> {
        if !created && self.fault() == Some(Fault::Open) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error()));
        }
        Ok(Some(self.clone()))
    }

    fn write_at(&self, below: &dyn DiskFile, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let error = match self.fault() {
            Some(Fault::Write) => io_error(),
            Some(Fault::Full) => io::ErrorKind::StorageFull.into(),
            _ => return below.write_at(bufs, offset),
        };
        let whole: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        below.write_at(&[IoSlice::new(&whole[..whole.len() / 2])], offset)?;
        Err(error)
    }

    fn read_at(
        &self,
        below: &dyn DiskFile,
        offset: u64,
        len: usize,
        into: &mut Vec<u8>,
    ) -> io::Result<usize> {
        if self.fault() == Some(Fault::Read) {
            return Err(io_error());
        }
        below.read_at(offset, len, into)
    }

    fn sync(&self, below: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        match self.fault() {
            Some(Fault::Sync) => Err(io_error()),
            Some(Fault::NoSync) => Ok(()),
            Some(Fault::Twice) => below().and_then(|()| below()),
            _ => below(),
        }
    }
}
