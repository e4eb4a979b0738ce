//! A disk that can crash: every change is kept apart from what has been synced, and a crash keeps any
//! part of the rest.
//!
//! Each change counts as a step. A crash is planned for one of them: that step is still issued, then
//! every call fails until [`SimDisk::after_crash`] makes the disk that the machine comes up with. Of
//! the unsynced changes it keeps those a mask names, or a random choice; a kept write may be torn, by
//! sectors in any order or at a byte. A rename or a new name that was not synced may be undone.

use super::{Disk, DiskFile};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const SECTOR_BYTES: usize = 512;

/// A small reproducible source of choices (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    /// Whether something of this chance in a hundred happens.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }
}

/// What a step does instead of succeeding. The disk goes on afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error; nothing is done.
    Failed,
    /// No room; nothing is done.
    Full,
    /// A write stops half-way, for want of room.
    Short,
    /// A sync fails, and what it was for is taken for written from then on though it is not: as Linux
    /// does it.
    Lost,
}

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    dirs: BTreeSet<String>,
    next_file: u64,
    steps: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fault: Option<(u64, Fault)>,
    fills_at: Option<u64>,
    capacity: u64,
    locked: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct Content {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Clone)]
enum NameChange {
    Create(String, u64),
    Rename(String, String),
    Unlink(String),
}

impl SimDisk {
    /// An empty disk with room for `capacity` bytes.
    #[must_use]
    pub fn new(capacity: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner {
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            dirs: BTreeSet::new(),
            next_file: 1,
            steps: 0,
            crash_at: None,
            crashed: false,
            fault: None,
            fills_at: None,
            capacity,
            locked: Arc::default(),
        })))
    }

    /// Plans a crash at the step with this number, counted from the first.
    pub fn crash_at(&self, step: u64) {
        self.0.lock().crash_at = Some(step);
    }

    /// Plans a fault for the step with this number.
    pub fn fault_at(&self, step: u64, fault: Fault) {
        self.0.lock().fault = Some((step, fault));
    }

    /// From the step with this number on nothing is free: what is in use then is the disk's size.
    pub fn fill_at(&self, step: u64) {
        self.0.lock().fills_at = Some(step);
    }

    /// Gives the disk another size.
    pub fn set_capacity(&self, capacity: u64) {
        self.0.lock().capacity = capacity;
    }

    /// Steps so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// Whether the planned crash has happened.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// Changes that are not synced.
    #[must_use]
    pub fn pending(&self) -> usize {
        let inner = self.0.lock();
        inner.pending_names.len()
            + inner.files.values().map(|file| file.pending.len()).sum::<usize>()
    }

    /// The disk after a crash now. Bit `n` of `mask` keeps the n-th unsynced change; without a mask
    /// each is kept or not by chance. The last bit stands for all changes from there on. Kept writes may
    /// be torn.
    #[must_use]
    pub fn after_crash(&self, mask: Option<u64>, dice: &mut Dice) -> SimDisk {
        let inner = self.0.lock();
        let mut place = 0u32;
        let mut kept = |dice: &mut Dice| {
            let keep = mask.map_or_else(|| dice.chance(60), |mask| mask >> place.min(63) & 1 == 1);
            place += 1;
            keep
        };
        let mut names = inner.durable_names.clone();
        for change in &inner.pending_names {
            if kept(dice) {
                change.apply(&mut names);
            }
        }
        let mut files = BTreeMap::new();
        for (id, file) in &inner.files {
            let mut bytes = file.durable.clone();
            for change in &file.pending {
                if kept(dice) {
                    change.apply_torn(&mut bytes, dice);
                }
            }
            if names.values().any(|named| named == id) {
                files.insert(
                    *id,
                    Content { current: bytes.clone(), durable: bytes, pending: Vec::new() },
                );
            }
        }
        let disk = SimDisk::new(inner.capacity);
        {
            let mut fresh = disk.0.lock();
            fresh.files = files;
            fresh.durable_names = names.clone();
            fresh.names = names;
            fresh.dirs = inner.dirs.clone();
            fresh.next_file = inner.next_file;
        }
        disk
    }

    /// Changes a file behind everybody's back.
    pub fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.0.lock();
        let Some(id) = inner.names.get(path).copied() else { return };
        if let Some(file) = inner.files.get_mut(&id) {
            change(&mut file.current);
            file.durable = file.current.clone();
            file.pending.clear();
        }
    }

    /// A copy of a file, if there is one.
    #[must_use]
    pub fn bytes_of(&self, path: &str) -> Option<Vec<u8>> {
        let inner = self.0.lock();
        inner.files.get(inner.names.get(path)?).map(|file| file.current.clone())
    }

    /// A disk of its own with the same contents, everything synced.
    #[must_use]
    pub fn copy(&self) -> SimDisk {
        self.after_crash(Some(u64::MAX), &mut Dice(0))
    }
}

impl Inner {
    /// Counts a step; fails if the machine is down or this step is to fail. A crash lets the step
    /// itself be issued: `Ok(true)`.
    fn step(&mut self) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("the machine is down"));
        }
        self.steps += 1;
        if self.fills_at == Some(self.steps) {
            self.capacity = self.used();
        }
        if self.crash_at == Some(self.steps) {
            self.crashed = true;
            return Ok(true);
        }
        match self.fault {
            Some((at, Fault::Failed)) if at == self.steps => Err(io::Error::other("planned fault")),
            Some((at, Fault::Full)) if at == self.steps => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(false),
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|id| self.files.get(id))
            .map(|f| f.current.len() as u64)
            .sum()
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let down = self.step()?;
        change.apply(&mut self.names);
        self.pending_names.push(change);
        after(down)
    }
}

/// A step during which the machine went down has no answer.
fn after(down: bool) -> io::Result<()> {
    if down { Err(io::Error::other("the machine went down")) } else { Ok(()) }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create(name, id) => drop(names.insert(name.clone(), *id)),
            NameChange::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
            NameChange::Unlink(name) => drop(names.remove(name)),
        }
    }

    fn concerns(&self, dir: &str) -> bool {
        match self {
            NameChange::Create(name, _) | NameChange::Unlink(name) => dir_of(name) == dir,
            NameChange::Rename(from, to) => dir_of(from) == dir || dir_of(to) == dir,
        }
    }
}

fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => write_into(bytes, *at as usize, data),
            Change::Length(len) => bytes.resize(*len as usize, 0),
        }
    }

    fn apply_torn(&self, bytes: &mut Vec<u8>, dice: &mut Dice) {
        let Change::Write(at, data) = self else { return self.apply(bytes) };
        match dice.below(4) {
            0 => write_into(bytes, *at as usize, &data[..dice.below(data.len() + 1)]),
            1 => {
                let mut from = 0;
                while from < data.len() {
                    // Up to the next boundary of the medium's sectors.
                    let place = *at as usize + from;
                    let to = (from + SECTOR_BYTES - place % SECTOR_BYTES).min(data.len());
                    if dice.chance(60) {
                        write_into(bytes, place, &data[from..to]);
                    }
                    from = to;
                }
            }
            _ => self.apply(bytes),
        }
    }
}

fn write_into(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Disk for SimDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        let id = inner.next_file;
        inner.next_file += 1;
        inner.files.insert(id, Content::default());
        inner.change_names(NameChange::Create(path.to_owned(), id))?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.0.lock();
        let id = *inner.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change_names(NameChange::Rename(from.to_owned(), to.to_owned()))
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        inner.change_names(NameChange::Unlink(path.to_owned()))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let inner = self.0.lock();
        let inside = inner.names.keys().filter(|name| dir_of(name) == dir);
        Ok(inside.filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect())
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.0.lock().dirs.insert(dir.to_owned());
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        after(inner.step()?)?;
        let Inner { pending_names, durable_names, .. } = &mut *inner;
        pending_names.retain(|change| {
            let concerned = change.concerns(dir);
            if concerned {
                change.apply(durable_names);
            }
            !concerned
        });
        Ok(())
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        let exists = self.0.lock().names.contains_key(path);
        if !exists {
            self.create(path)?;
        }
        let locked = Arc::clone(&self.0.lock().locked);
        if locked.swap(true, Ordering::AcqRel) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Unlock(locked)))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.0.lock();
        Ok(inner.capacity.saturating_sub(inner.used()))
    }

    fn describe(&self, path: &str) -> String {
        format!("sim:{path}")
    }
}

struct Unlock(Arc<AtomicBool>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct SimFile {
    disk: SimDisk,
    id: u64,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let down = inner.step()?;
        let used = inner.used();
        let capacity = inner.capacity;
        let short = matches!(inner.fault, Some((at, Fault::Short)) if at == inner.steps);
        let Some(file) = inner.files.get_mut(&self.id) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let length = file.current.len() as u64;
        let grown = match &change {
            Change::Write(at, data) => (at + data.len() as u64).saturating_sub(length),
            Change::Length(len) => len.saturating_sub(length),
        };
        if grown > 0 && used + grown > capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let change = match change {
            Change::Write(at, mut data) if short => {
                data.truncate(data.len() / 2);
                Change::Write(at, data)
            }
            change => change,
        };
        change.apply(&mut file.current);
        file.pending.push(change);
        if short {
            return Err(io::ErrorKind::StorageFull.into());
        }
        after(down)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let inner = self.disk.0.lock();
        Ok(inner.files.get(&self.id).map_or(0, |file| file.current.len() as u64))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let length = self.length()?;
        self.change(Change::Length(bytes.max(length)))
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.change(Change::Write(offset, data))
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        let inner = self.disk.0.lock();
        if inner.crashed {
            return Err(io::Error::other("the machine is down"));
        }
        let bytes = inner.files.get(&self.id).map_or(&[][..], |file| &file.current);
        let from = bytes.len().min(offset as usize);
        let to = bytes.len().min(from + len);
        into.extend_from_slice(&bytes[from..to]);
        Ok(to - from)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        after(inner.step()?)?;
        let lost = inner.fault == Some((inner.steps, Fault::Lost));
        if let Some(file) = inner.files.get_mut(&self.id) {
            if lost {
                file.pending.clear();
                return Err(io::Error::other("planned fault"));
            }
            // Nothing but what was pending differs between the two.
            for change in std::mem::take(&mut file.pending) {
                change.apply(&mut file.durable);
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }
}
