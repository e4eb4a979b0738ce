//! What the reader keeps at hand: open files, and the parts of index files that were asked for
//! lately. Bounded in files and in bytes; everything in it can be read again.

use super::index::{DirectoryEntry, IndexError, IndexFile};
use super::refs::Refs;
use super::shared::Shared;
use super::storage::DiskFile;
use super::trouble::Troubles;
use foldhash::HashMap;
use parking_lot::Mutex;
use restante_protocol::id::PeerId;
use std::io;
use std::sync::Arc;

/// Segment files kept open, and as many index files.
const FILES_MAX: usize = 64;

/// What the reader has, and what it has trouble with.
#[derive(Default)]
pub(super) struct Reading {
    cache: Mutex<Cache>,
    pub(super) troubles: Troubles,
}

/// See the module.
#[derive(Default)]
struct Cache {
    tick: u64,
    files: HashMap<u64, (u64, Arc<dyn DiskFile>)>,
    directories: HashMap<u64, (u64, Arc<Directory>)>,
    refs: HashMap<(u64, PeerId), (u64, Arc<Refs>)>,
    bytes: usize,
}

/// An index file and who has messages in it.
struct Directory {
    file: IndexFile,
    entries: Vec<DirectoryEntry>,
}

impl Cache {
    fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Makes room by dropping the older half of what is kept, but never the newest: whoever has just
    /// loaded it comes for it next, however large it is.
    fn shrink(&mut self, bytes_max: usize) {
        let newest = self.tick;
        if self.files.len() > FILES_MAX {
            let median = median(self.files.values().map(|(tick, _)| *tick));
            self.files.retain(|_, (tick, _)| *tick > median);
        }
        if self.directories.len() > FILES_MAX {
            let median = median(self.directories.values().map(|(tick, _)| *tick));
            self.directories.retain(|_, (tick, _)| *tick > median);
            self.weigh();
        }
        if self.bytes > bytes_max {
            let ticks = self.refs.values().map(|(tick, _)| *tick);
            let median = median(ticks.chain(self.directories.values().map(|(tick, _)| *tick)));
            self.refs.retain(|_, (tick, _)| *tick > median || *tick == newest);
            self.directories.retain(|_, (tick, _)| *tick > median);
            self.weigh();
        }
    }

    fn forget_index(&mut self, id: u64) {
        self.directories.remove(&id);
        self.refs.retain(|(segment, _), _| *segment != id);
        self.weigh();
    }

    fn weigh(&mut self) {
        let refs: usize = self.refs.values().map(|(_, refs)| refs.heap_bytes()).sum();
        let directories: usize = self.directories.values().map(|(_, d)| d.heap_bytes()).sum();
        self.bytes = refs + directories;
    }
}

fn median(ticks: impl Iterator<Item = u64>) -> u64 {
    let mut ticks: Vec<u64> = ticks.collect();
    let middle = ticks.len() / 2;
    if ticks.is_empty() { 0 } else { *ticks.select_nth_unstable(middle).1 }
}

impl Directory {
    fn heap_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<DirectoryEntry>()
    }
}

impl Shared {
    /// The file of a segment, open.
    pub(super) fn segment_file(&self, id: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut cache = self.reading.cache.lock();
        let tick = cache.tick();
        if let Some((used, file)) = cache.files.get_mut(&id) {
            *used = tick;
            return Ok(Arc::clone(file));
        }
        drop(cache);
        let file = self.disk.open(&Shared::segment_path(id))?;
        let mut cache = self.reading.cache.lock();
        cache.files.insert(id, (tick, Arc::clone(&file)));
        cache.shrink(self.options.cache_bytes);
        Ok(file)
    }

    /// Lets go of a segment that is going: its file, and what was read of its index.
    pub(super) fn forget_file(&self, id: u64) {
        let mut cache = self.reading.cache.lock();
        cache.files.remove(&id);
        cache.forget_index(id);
    }

    /// Lets go of what was read of a segment's index.
    pub(super) fn forget_index(&self, id: u64) {
        self.reading.cache.lock().forget_index(id);
    }

    /// Bytes of index parts in memory.
    #[cfg(test)]
    pub(super) fn cached_bytes(&self) -> usize {
        self.reading.cache.lock().bytes
    }

    /// A peer's part of a segment's index, if it is in memory.
    pub(super) fn cached_refs(&self, id: u64, peer: PeerId) -> Option<Arc<Refs>> {
        let mut cache = self.reading.cache.lock();
        let tick = cache.tick();
        let (used, refs) = cache.refs.get_mut(&(id, peer))?;
        *used = tick;
        Some(Arc::clone(refs))
    }

    /// Loads a peer's part of a segment's index.
    pub(super) fn load_refs(&self, id: u64, peer: PeerId) -> Result<(), IndexError> {
        let directory = self.directory(id)?;
        let refs = match directory.entries.binary_search_by_key(&peer, |entry| entry.peer) {
            Ok(place) => directory.file.refs(&directory.entries[place])?,
            Err(_) => Refs::default(),
        };
        let mut cache = self.reading.cache.lock();
        cache.bytes += refs.heap_bytes();
        let tick = cache.tick();
        cache.refs.insert((id, peer), (tick, Arc::new(refs)));
        cache.shrink(self.options.cache_bytes);
        Ok(())
    }

    fn directory(&self, id: u64) -> Result<Arc<Directory>, IndexError> {
        let mut cache = self.reading.cache.lock();
        let tick = cache.tick();
        if let Some((used, directory)) = cache.directories.get_mut(&id) {
            *used = tick;
            return Ok(Arc::clone(directory));
        }
        drop(cache);
        let file = IndexFile::open(&*self.disk, &Shared::index_path(id))?;
        let directory = Arc::new(Directory { entries: file.directory()?, file });
        let mut cache = self.reading.cache.lock();
        cache.bytes += directory.heap_bytes();
        cache.directories.insert(id, (tick, Arc::clone(&directory)));
        Ok(directory)
    }
}
