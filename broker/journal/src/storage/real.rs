//! The disk that is there: a directory, through `std::fs` and rustix.

use super::{Disk, DiskFile};
use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom};
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Slices handed to one vectored write; Linux takes at most 1024.
const SLICES_MAX: usize = 1024;

/// A directory of the real file system.
#[derive(Debug)]
pub(crate) struct RealDisk {
    root: PathBuf,
    /// Whether anything may be changed.
    writable: bool,
}

impl RealDisk {
    /// The disk whose paths are relative to `root`.
    pub(crate) fn new(root: impl Into<PathBuf>) -> RealDisk {
        RealDisk { root: root.into(), writable: true }
    }

    /// The same, for looking only: every change fails.
    pub(crate) fn read_only(root: impl Into<PathBuf>) -> RealDisk {
        RealDisk { root: root.into(), writable: false }
    }

    fn may_write(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.may_write()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(self.writable).open(self.path(path))?;
        Ok(Arc::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.may_write()?;
        fs::rename(self.path(from), self.path(to))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.may_write()?;
        fs::remove_file(self.path(path))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(dir))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.may_write()?;
        let path = self.path(dir);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other,
        }?;
        // The directory's own name lives in its parent.
        match path.parent().filter(|parent| *parent != Path::new("")) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.writable)
            .create(self.writable)
            .truncate(false)
            .open(self.path(path))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Box::new(file))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn describe(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
            // A file system without allocation keeps no promise about room, but works.
            Err(rustix::io::Errno::OPNOTSUPP) if self.0.metadata()?.len() < bytes => {
                self.0.set_len(bytes)
            }
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for chunk in bufs.chunks(SLICES_MAX) {
            offset += write_chunk(&self.0, chunk, offset)?;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        into.reserve_exact(len);
        let mut read = 0;
        while read < len {
            // The spare capacity may be larger than asked for; read no further than `len`.
            let wanted = len - read;
            let before = into.len();
            let at = offset + read as u64;
            let got = if into.capacity() - before == wanted {
                rustix::io::pread(&self.0, rustix::buffer::spare_capacity(into), at)
            } else {
                into.resize(before + wanted, 0);
                let got = rustix::io::pread(&self.0, &mut into[before..], at);
                into.truncate(before + got.unwrap_or(0));
                got
            };
            match got {
                Ok(0) => break,
                Ok(got) => read += got,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(read)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        // Moves the file's own position, which nothing else here uses.
        match rustix::fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(data) => Ok(Some(data)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Writes one chunk of slices whole, going on after short writes, and returns its length.
fn write_chunk(file: &File, chunk: &[IoSlice<'_>], offset: u64) -> io::Result<u64> {
    let total: usize = chunk.iter().map(|slice| slice.len()).sum();
    let mut written = 0;
    while written < total {
        let at = offset + written as u64;
        let got = if written == 0 {
            rustix::io::pwritev(file, chunk, at)
        } else {
            rustix::io::pwritev(file, &remaining(chunk, written), at)
        };
        match got {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(got) => written += got,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(total as u64)
}

/// What of `chunk` comes after its first `skip` bytes.
fn remaining<'a>(chunk: &'a [IoSlice<'a>], skip: usize) -> Vec<IoSlice<'a>> {
    let mut skip = skip;
    let mut rest = Vec::with_capacity(chunk.len());
    for slice in chunk {
        let skipped = skip.min(slice.len());
        skip -= skipped;
        if skipped < slice.len() {
            rest.push(IoSlice::new(&slice[skipped..]));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_was_written_and_a_second_lock_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path().join("a/b"));
        disk.make_dir("").unwrap();
        disk.make_dir("x").unwrap();
        disk.make_dir("x").unwrap();
        let file = disk.create("x/one").unwrap();
        file.allocate(4096).unwrap();
        let slices: Vec<Vec<u8>> = (0..2000u32).map(|n| n.to_be_bytes().to_vec()).collect();
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|s| IoSlice::new(s)).collect();
        file.write_at(&slices, 10).unwrap();
        file.sync().unwrap();
        let mut bytes = Vec::with_capacity(100);
        assert_eq!(file.read_at(10 + 4 * 1999, 100, &mut bytes).unwrap(), 4);
        assert_eq!(bytes, 1999u32.to_be_bytes());
        disk.rename("x/one", "x/two").unwrap();
        disk.sync_dir("x").unwrap();
        assert_eq!(disk.list("x").unwrap(), ["two"]);
        let guard = disk.lock("lock").unwrap();
        assert_eq!(disk.lock("lock").err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(guard);
        disk.lock("lock").unwrap();
        assert!(disk.free_bytes().unwrap() > 0);
    }

    #[test]
    fn data_is_found_behind_room_that_was_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        let file = disk.create("one").unwrap();
        file.allocate(8 << 20).unwrap();
        file.write_at(&[IoSlice::new(b"x")], 5 << 20).unwrap();
        // A file system that cannot tell may answer with any place before the data.
        let found = file.next_data(100).unwrap().unwrap();
        assert!((100..=5 << 20).contains(&found), "{found}");
        assert_eq!(file.next_data(5 << 20).unwrap(), Some(5 << 20));
        assert_eq!(file.next_data(8 << 20).unwrap(), None, "the end");
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let (a, b) = ([1u8, 2, 3], [4u8, 5]);
        let chunk = [IoSlice::new(&a), IoSlice::new(&b)];
        let flat =
            |skip| remaining(&chunk, skip).iter().flat_map(|s| s.to_vec()).collect::<Vec<u8>>();
        assert_eq!(flat(2), [3, 4, 5]);
        assert_eq!(flat(3), [4, 5]);
        assert!(flat(5).is_empty());
    }
}
