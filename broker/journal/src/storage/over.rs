//! A disk laid over another, for tests: it does beside or instead of the one below what an [`Over`]
//! says, and hands on the rest.

use super::{Disk, DiskFile};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// What is otherwise than on the disk below. Whatever is left out is as it is there.
pub(crate) trait Over: Send + Sync + Sized + 'static {
    /// What lies over a file that is being created, or is about to be opened; `None`: nothing.
    ///
    /// # Errors
    /// It cannot be opened.
    fn of_file(&self, path: &str, created: bool) -> io::Result<Option<Self>>;

    /// See [`DiskFile::write_at`].
    fn write_at(&self, below: &dyn DiskFile, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        below.write_at(bufs, offset)
    }

    /// See [`DiskFile::read_at`].
    fn read_at(
        &self,
        below: &dyn DiskFile,
        offset: u64,
        len: usize,
        into: &mut Vec<u8>,
    ) -> io::Result<usize> {
        below.read_at(offset, len, into)
    }

    /// See [`DiskFile::sync`] and [`Disk::sync_dir`].
    fn sync(&self, below: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        below()
    }
}

/// See the module.
pub(crate) struct OverDisk<O> {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) over: O,
}

struct OverFile<O> {
    file: Arc<dyn DiskFile>,
    over: O,
}

fn lay<O: Over>(file: Arc<dyn DiskFile>, over: Option<O>) -> Arc<dyn DiskFile> {
    match over {
        Some(over) => Arc::new(OverFile { file, over }),
        None => file,
    }
}

impl<O: Over> Disk for OverDisk<O> {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let over = self.over.of_file(path, true)?;
        self.disk.create(path).map(|file| lay(file, over))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let over = self.over.of_file(path, false)?;
        self.disk.open(path).map(|file| lay(file, over))
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
        self.over.sync(&|| self.disk.sync_dir(dir))
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

impl<O: Over> DiskFile for OverFile<O> {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.over.write_at(&*self.file, bufs, offset)
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        self.over.read_at(&*self.file, offset, len, into)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.over.sync(&|| self.file.sync())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}
