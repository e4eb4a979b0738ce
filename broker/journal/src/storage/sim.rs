//! A disk that can crash: every change is kept apart from what has been synced, and a crash keeps any
//! part of the rest.
//!
//! Each change counts as a step. A crash is planned for one of them: that step is still issued, then
//! every call fails until [`SimDisk::after_crash`] makes the disk that the machine comes up with. Or
//! the disk is watched ([`SimDisk::watch`]): then each step leaves a [`Cut`], from which the same can
//! be made later, as often as wanted.
//!
//! It is as bad as the seam allows, and no better than the file systems there are:
//!
//! - A sync of a file makes its bytes and length durable, not its name; a sync of a directory makes the
//!   names in it durable, not what is in the files.
//! - Of what is not synced any subset survives, names before data and later before earlier. What is
//!   kept of one file is applied in the order it was written: a page cache may write a page at any
//!   moment, but never an older state of it after a newer one.
//! - A kept write may be torn: cut at a byte, or with sectors missing. It harms nothing beside it.
//! - Where a torn write makes a file longer, the length may be there without the bytes: zeroes, or
//!   what some other file left on the medium. Room that was allocated reads as zeroes.
//! - A rename within a directory is done or undone. One into another directory may leave both names,
//!   never none.
//! - Reads fail where, when and as often as a test says ([`SimDisk::sicken`], [`SimDisk::fail_turns`]),
//!   and so do openings.
//! - A sync that fails says nothing: what it should have written may be there or not, and the next sync,
//!   though it succeeds, does not write it either.

mod image;
mod sickness;

pub(crate) use image::Survival;

use super::{Disk, DiskFile};
use image::{Change, Content, Image, NameChange, Pending, dir_of};
use parking_lot::Mutex;
use sickness::{Sickness, Sicknesses};
use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A small reproducible source of choices (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// The next 64 bits.
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    /// Whether something of this chance in a hundred happens.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.roll() % 100 < percent
    }
}

/// What a step does instead of succeeding. The disk goes on afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
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

/// What can be wrong with a file although its bytes are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ill {
    /// Reads that touch these bytes fail.
    Read(Range<u64>),
    /// It cannot be opened: too many files are.
    Open,
}

/// How often, where it does not pass.
pub(crate) const FOR_GOOD: u64 = u64::MAX;

/// See the module. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

/// The disk at one step, as a crash at that step finds it.
#[derive(Clone)]
pub(crate) struct Cut {
    /// Which step it was.
    pub(crate) step: u64,
    /// What the step did.
    pub(crate) what: String,
    /// What the watcher said at that moment.
    pub(crate) word: usize,
    image: Image,
}

type Watcher = Box<dyn Fn() -> usize + Send>;
type AfterRename = Arc<dyn Fn(&str) + Send + Sync>;

struct Inner {
    image: Image,
    steps: u64,
    crash_at: Option<u64>,
    crashed: bool,
    fault: Option<(u64, Fault)>,
    fills_at: Option<u64>,
    locked: Arc<AtomicBool>,
    watcher: Option<Watcher>,
    after_rename: Option<AfterRename>,
    cuts: Vec<Cut>,
    sick: Sicknesses,
    /// Shared by all files that are open.
    handles: Arc<()>,
    handles_max: usize,
}

impl SimDisk {
    /// An empty disk with room for `capacity` bytes.
    #[must_use]
    pub(crate) fn new(capacity: u64) -> SimDisk {
        SimDisk::of(Image { next_file: 1, capacity, ..Image::default() })
    }

    fn of(image: Image) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(Inner {
            image,
            steps: 0,
            crash_at: None,
            crashed: false,
            fault: None,
            fills_at: None,
            locked: Arc::default(),
            watcher: None,
            after_rename: None,
            cuts: Vec::new(),
            sick: Sicknesses::default(),
            handles: Arc::default(),
            handles_max: usize::MAX,
        })))
    }

    /// Plans a crash at the step with this number, counted from the first.
    pub(crate) fn crash_at(&self, step: u64) {
        self.0.lock().crash_at = Some(step);
    }

    /// Plans a fault for the step with this number.
    pub(crate) fn fault_at(&self, step: u64, fault: Fault) {
        self.0.lock().fault = Some((step, fault));
    }

    /// The next `times` reads or openings of a file fail.
    pub(crate) fn sicken(&self, path: &str, ill: Ill, times: u64) {
        let path = path.to_owned();
        self.0.lock().sick.add(match ill {
            Ill::Read(bytes) => Sickness::Bytes { path, bytes, times },
            Ill::Open => Sickness::Opening { path, times },
        });
    }

    /// The reads and openings with these numbers fail, whatever they are of; see [`SimDisk::turns`].
    pub(crate) fn fail_turns(&self, turns: Range<u64>) {
        self.0.lock().sick.add(Sickness::Turns(turns));
    }

    /// Reads and openings so far.
    #[must_use]
    pub(crate) fn turns(&self) -> u64 {
        self.0.lock().sick.turns
    }

    /// No more than this many files can be open at once.
    pub(crate) fn open_at_most(&self, files: usize) {
        self.0.lock().handles_max = files;
    }

    /// Everything can be read and opened again.
    pub(crate) fn heal(&self) {
        self.0.lock().sick.heal();
    }

    /// From the step with this number on nothing is free: what is in use then is the disk's size.
    pub(crate) fn fill_at(&self, step: u64) {
        self.0.lock().fills_at = Some(step);
    }

    /// From now on every step leaves a cut with what `watcher` says at that moment; `watcher` must not
    /// touch the disk.
    pub(crate) fn watch(&self, watcher: impl Fn() -> usize + Send + 'static) {
        self.0.lock().watcher = Some(Box::new(watcher));
    }

    /// From now on `look` is told the new name after every rename, and may look at the disk as any
    /// other thread could at that moment.
    pub(crate) fn after_rename(&self, look: impl Fn(&str) + Send + Sync + 'static) {
        self.0.lock().after_rename = Some(Arc::new(look));
    }

    /// The cuts since the last call.
    #[must_use]
    pub(crate) fn take_cuts(&self) -> Vec<Cut> {
        std::mem::take(&mut self.0.lock().cuts)
    }

    /// Gives the disk another size.
    pub(crate) fn set_capacity(&self, capacity: u64) {
        self.0.lock().image.capacity = capacity;
    }

    /// Steps so far.
    #[must_use]
    pub(crate) fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// Whether the planned crash has happened.
    #[must_use]
    pub(crate) fn has_crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// Changes that are not synced.
    #[must_use]
    pub(crate) fn pending(&self) -> usize {
        self.0.lock().image.pending()
    }

    /// The disk after a crash now. Bit `n` of `mask` keeps the n-th unsynced change; without a mask
    /// each is kept or not by chance. The last bit stands for all changes from there on. Kept writes may
    /// be torn.
    #[must_use]
    pub(crate) fn after_crash(&self, mask: Option<u64>, dice: &mut Dice) -> SimDisk {
        self.0.lock().image.after_crash(Survival { mask, torn: true }, dice)
    }

    /// Changes a file behind everybody's back.
    pub(crate) fn damage(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let image = &mut self.0.lock().image;
        let Some(id) = image.names.get(path).copied() else { return };
        if let Some(file) = image.files.get_mut(&id) {
            change(Arc::make_mut(&mut file.current));
            file.durable = Arc::clone(&file.current);
            file.pending.clear();
        }
    }

    /// A copy of a file, if there is one.
    #[must_use]
    pub(crate) fn bytes_of(&self, path: &str) -> Option<Vec<u8>> {
        let image = &self.0.lock().image;
        image.files.get(image.names.get(path)?).map(|file| file.current.to_vec())
    }

    /// A disk of its own with the same contents, everything synced.
    #[must_use]
    pub(crate) fn copy(&self) -> SimDisk {
        let all = Survival { mask: Some(u64::MAX), torn: false };
        self.0.lock().image.after_crash(all, &mut Dice(0))
    }
}

impl SimDisk {
    fn handle(&self, inner: &Inner, id: u64) -> io::Result<Arc<dyn DiskFile>> {
        if Arc::strong_count(&inner.handles) > inner.handles_max {
            return Err(sickness::too_many_files());
        }
        Ok(Arc::new(SimFile { disk: self.clone(), id, _handle: Arc::clone(&inner.handles) }))
    }
}

impl Cut {
    /// Changes that are not synced.
    #[must_use]
    pub(crate) fn pending(&self) -> usize {
        self.image.pending()
    }

    /// Whether a write is among them.
    #[must_use]
    pub(crate) fn can_tear(&self) -> bool {
        let mut pending = self.image.files.values().flat_map(|file| &file.pending);
        pending.any(|pending| matches!(pending.change, Change::Write(..)))
    }

    /// The disk that the machine comes up with.
    #[must_use]
    pub(crate) fn after_crash(&self, survival: Survival, dice: &mut Dice) -> SimDisk {
        self.image.after_crash(survival, dice)
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
            self.image.capacity = self.image.used();
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

    /// Leaves a cut, if anybody watches: what was issued is there, what was synced is so.
    fn cut(&mut self, what: impl FnOnce(&Image) -> String) {
        if let Some(watcher) = &self.watcher {
            let (word, image) = (watcher(), self.image.clone());
            self.cuts.push(Cut { step: self.steps, what: what(&image), word, image });
        }
    }

    fn change_names(&mut self, changes: Vec<NameChange>, what: String) -> io::Result<()> {
        let down = self.step()?;
        for change in changes {
            change.apply(&mut self.image.names);
            self.image.pending_names.push(change);
        }
        self.cut(|_| what);
        after(down)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let id = *self.image.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.dir_exists(to)?;
        if self.image.names.get(to) == Some(&id) {
            // Two names of one file: POSIX does nothing.
            return Ok(());
        }
        let changes = match dir_of(from) == dir_of(to) {
            true => vec![NameChange::Rename(from.to_owned(), to.to_owned(), id)],
            false => {
                vec![NameChange::Link(to.to_owned(), id), NameChange::Leave(from.to_owned(), id)]
            }
        };
        self.change_names(changes, format!("rename {from} to {to}"))
    }

    fn dir_exists(&self, path: &str) -> io::Result<()> {
        match self.image.dirs.contains(dir_of(path)) {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// A step during which the machine went down has no answer.
fn after(down: bool) -> io::Result<()> {
    if down { Err(io::Error::other("the machine went down")) } else { Ok(()) }
}

impl Disk for SimDisk {
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        inner.dir_exists(path)?;
        if let Some(id) = inner.image.names.get(path).copied() {
            // The same file, emptied: its name is as durable as it was.
            drop(inner);
            let file = self.handle(&self.0.lock(), id)?;
            file.truncate(0)?;
            return Ok(file);
        }
        let id = inner.image.next_file;
        inner.image.next_file += 1;
        inner.image.files.insert(id, Content::default());
        let change = NameChange::Create(path.to_owned(), id);
        inner.change_names(vec![change], format!("create {path}"))?;
        self.handle(&inner, id)
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        let id = *inner.image.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        inner.sick.open(path)?;
        self.handle(&inner, id)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.lock().rename(from, to)?;
        let after = self.0.lock().after_rename.clone();
        after.inspect(|after| after(to));
        Ok(())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.image.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = NameChange::Unlink(path.to_owned());
        inner.change_names(vec![change], format!("unlink {path}"))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let image = &self.0.lock().image;
        let inside = image.names.keys().filter(|name| dir_of(name) == dir);
        Ok(inside.filter_map(|name| name.rsplit('/').next()).map(str::to_owned).collect())
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        if !inner.image.dirs.contains(dir) {
            let down = inner.step()?;
            inner.cut(|_| format!("make directory {dir}"));
            after(down)?;
            inner.image.dirs.insert(dir.to_owned());
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut inner = self.0.lock();
        let down = inner.step()?;
        inner.cut(|_| format!("sync directory {dir}"));
        after(down)?;
        let Image { pending_names, durable_names, .. } = &mut inner.image;
        let left = pending_names.iter().filter_map(|change| match change {
            NameChange::Leave(from, id) if dir_of(from) == dir => Some(*id),
            _ => None,
        });
        let left: BTreeSet<u64> = left.collect();
        pending_names.retain(|change| {
            let concerned = change.concerns(dir, &left);
            if concerned {
                change.apply(durable_names);
            }
            !concerned
        });
        Ok(())
    }

    fn lock(&self, path: &str) -> io::Result<Box<dyn Send + Sync>> {
        let exists = self.0.lock().image.names.contains_key(path);
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
        let image = &self.0.lock().image;
        Ok(image.capacity.saturating_sub(image.used()))
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
    /// Counts as open until it goes.
    _handle: Arc<()>,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let down = inner.step()?;
        let (used, capacity) = (inner.image.used(), inner.image.capacity);
        let short = matches!(inner.fault, Some((at, Fault::Short)) if at == inner.steps);
        let Some(file) = inner.image.files.get_mut(&self.id) else {
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
            Change::Write(at, data) if short => Change::Write(at, data[..data.len() / 2].into()),
            change => change,
        };
        change.apply(Arc::make_mut(&mut file.current));
        file.pending.push(Pending { change, stuck: false });
        inner.cut(|image| format!("change {}", image.name_of(self.id)));
        if short {
            return Err(io::ErrorKind::StorageFull.into());
        }
        after(down)
    }
}

impl DiskFile for SimFile {
    fn length(&self) -> io::Result<u64> {
        let image = &self.disk.0.lock().image;
        Ok(image.files.get(&self.id).map_or(0, |file| file.current.len() as u64))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let length = self.length()?;
        self.change(Change::Length(bytes.max(length)))
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.change(Change::Write(offset, data.into()))
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut inner = self.disk.0.lock();
        if inner.crashed {
            return Err(io::Error::other("the machine is down"));
        }
        let Inner { image, sick, .. } = &mut *inner;
        sick.read(|| image.name_of(self.id), offset..offset.saturating_add(len as u64))?;
        let bytes = inner.image.files.get(&self.id).map_or(&[][..], |file| &file.current);
        let from = bytes.len().min(offset as usize);
        let to = bytes.len().min(from + len);
        into.extend_from_slice(&bytes[from..to]);
        Ok(to - from)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let was_down = inner.crashed;
        let stepped = inner.step();
        if let (Err(_), false, Some(file)) =
            (&stepped, was_down, inner.image.files.get_mut(&self.id))
        {
            file.pending.iter_mut().for_each(|pending| pending.stuck = true);
        }
        let down = stepped?;
        inner.cut(|image| format!("sync {}", image.name_of(self.id)));
        after(down)?;
        let lost = inner.fault == Some((inner.steps, Fault::Lost));
        if let Some(file) = inner.image.files.get_mut(&self.id) {
            if lost {
                file.pending.clear();
                return Err(io::Error::other("planned fault"));
            }
            for pending in std::mem::take(&mut file.pending) {
                if !pending.stuck {
                    pending.change.apply(Arc::make_mut(&mut file.durable));
                }
            }
        }
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(len))
    }
}
