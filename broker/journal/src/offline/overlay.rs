//! A disk on which everything can be tried and nothing happens: reads go through to the disk below,
//! changes stay in memory and are written down as what would have been done. Below no more than one
//! file is open, however many there are: a log of weeks has more than a process may have open.

use super::super::storage::{Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// See the module. Holds in memory what is written, which for a repair is indexes and a few headers.
pub(super) struct Overlay {
    below: Arc<Below>,
    names: Mutex<Names>,
}

/// The disk that is looked at, with the file that was read last.
struct Below {
    disk: Arc<dyn Disk>,
    last: Mutex<Option<(String, Arc<dyn DiskFile>)>>,
}

impl Below {
    /// A file of the disk, open: the same as before if it is the same, as whoever reads a file mostly
    /// reads on in it.
    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut last = self.last.lock();
        if let Some((name, file)) = &*last
            && name == path
        {
            return Ok(Arc::clone(file));
        }
        // Closed before another is opened.
        *last = None;
        let file = self.disk.open(path)?;
        *last = Some((path.to_owned(), Arc::clone(&file)));
        Ok(file)
    }
}

#[derive(Default)]
struct Names {
    /// Files that were opened or created here, by the name that they have here.
    files: BTreeMap<String, Arc<dyn DiskFile>>,
    /// Names that are gone.
    gone: BTreeSet<String>,
    done: Vec<String>,
}

impl Overlay {
    pub(super) fn new(below: Arc<dyn Disk>) -> Overlay {
        let below = Arc::new(Below { disk: below, last: Mutex::default() });
        Overlay { below, names: Mutex::default() }
    }

    /// What would have been done, in order.
    pub(super) fn done(&self) -> Vec<String> {
        self.names.lock().done.clone()
    }

    fn find(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut names = self.names.lock();
        if let Some(file) = names.files.get(path) {
            return Ok(Arc::clone(file));
        }
        if names.gone.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let length = self.below.open(path)?.length()?;
        let file = self.file(FileState {
            below: Some((path.to_owned(), length)),
            length,
            writes: Vec::new(),
        });
        names.files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn file(&self, state: FileState) -> Arc<dyn DiskFile> {
        Arc::new(OverlayFile { disk: Arc::clone(&self.below), state: Mutex::new(state) })
    }
}

impl Disk for Overlay {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.file(FileState { below: None, length: 0, writes: Vec::new() });
        let mut names = self.names.lock();
        names.files.insert(path.to_owned(), Arc::clone(&file));
        names.gone.remove(path);
        names.done.push(format!("write {path}"));
        Ok(file)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.find(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let file = self.find(from)?;
        let mut names = self.names.lock();
        names.files.remove(from);
        names.gone.insert(from.to_owned());
        names.gone.remove(to);
        names.files.insert(to.to_owned(), file);
        names.done.push(format!("rename {from} to {to}"));
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.find(path)?;
        let mut names = self.names.lock();
        names.files.remove(path);
        names.gone.insert(path.to_owned());
        names.done.push(format!("remove {path}"));
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let names = self.names.lock();
        let path =
            |name: &str| if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") };
        let mut inside: BTreeSet<String> = match self.below.disk.list(dir) {
            Ok(below) => {
                below.into_iter().filter(|name| !names.gone.contains(&path(name))).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        inside.extend(names.files.keys().filter_map(|full| {
            let (parent, name) = full.rsplit_once('/').unwrap_or(("", full));
            (parent == dir).then(|| name.to_owned())
        }));
        Ok(inside.into_iter().collect())
    }

    fn make_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &str) -> io::Result<Box<dyn Send + Sync>> {
        // Whoever made this overlay holds the lock of the disk below.
        Ok(Box::new(()))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.below.disk.free_bytes()
    }

    fn describe(&self, path: &str) -> String {
        self.below.disk.describe(path)
    }
}

struct OverlayFile {
    disk: Arc<Below>,
    state: Mutex<FileState>,
}

struct FileState {
    /// The name of the file below, and how much of it shows.
    below: Option<(String, u64)>,
    length: u64,
    /// In order.
    writes: Vec<(u64, Vec<u8>)>,
}

impl DiskFile for OverlayFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.state.lock().length)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.length = state.length.max(bytes);
        Ok(())
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let mut state = self.state.lock();
        state.length = state.length.max(offset + data.len() as u64);
        state.writes.push((offset, data));
        Ok(())
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        let state = self.state.lock();
        let to = state.length.min(offset.saturating_add(len as u64));
        let len = to.saturating_sub(offset) as usize;
        let mut bytes = Vec::with_capacity(len);
        if let Some((below, shown)) = &state.below {
            let wanted = shown.min(&to).saturating_sub(offset) as usize;
            if wanted > 0 {
                self.disk.open(below)?.read_at(offset, wanted, &mut bytes)?;
            }
        }
        bytes.resize(len, 0);
        for (at, data) in &state.writes {
            let end = at + data.len() as u64;
            let (from, until) = ((*at).max(offset), end.min(to));
            if from < until {
                let target = (from - offset) as usize..(until - offset) as usize;
                bytes[target].copy_from_slice(&data[(from - at) as usize..(until - at) as usize]);
            }
        }
        into.extend_from_slice(&bytes);
        Ok(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.length = len;
        if let Some((_, shown)) = &mut state.below {
            *shown = (*shown).min(len);
        }
        for (at, data) in &mut state.writes {
            data.truncate(len.saturating_sub(*at) as usize);
        }
        Ok(())
    }
}
