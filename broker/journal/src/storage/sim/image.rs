//! What is on a simulated medium and on its way there, and what of it a crash leaves.

use super::{Dice, SimDisk};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const SECTOR_BYTES: usize = 512;

/// What of the changes that are not synced a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survival {
    /// Bit `n` keeps the n-th change; `None`: each by chance.
    pub(crate) mask: Option<u64>,
    /// Whether kept writes may be torn.
    pub(crate) torn: bool,
}

/// Everything on the medium and on its way there.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) files: BTreeMap<u64, Content>,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable_names: BTreeMap<String, u64>,
    pub(super) pending_names: Vec<NameChange>,
    pub(super) dirs: BTreeSet<String>,
    pub(super) next_file: u64,
    pub(super) capacity: u64,
}

#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) current: Arc<Vec<u8>>,
    pub(super) durable: Arc<Vec<u8>>,
    pub(super) pending: Vec<Pending>,
}

#[derive(Clone)]
pub(super) struct Pending {
    pub(super) change: Change,
    /// A sync of it has failed: no later one writes it.
    pub(super) stuck: bool,
}

#[derive(Clone)]
pub(super) enum Change {
    Write(u64, Arc<[u8]>),
    Length(u64),
}

#[derive(Clone)]
pub(super) enum NameChange {
    Create(String, u64),
    /// Within one directory. The file takes its new name, whatever has become of the old one.
    Rename(String, String, u64),
    /// The first half of a rename into another directory: the file has both names.
    Link(String, u64),
    /// The second half, which never comes without the first.
    Leave(String, u64),
    Unlink(String),
}

impl Image {
    pub(super) fn pending(&self) -> usize {
        let in_files: usize = self.files.values().map(|file| file.pending.len()).sum();
        self.pending_names.len() + in_files
    }

    pub(super) fn after_crash(&self, survival: Survival, dice: &mut Dice) -> SimDisk {
        let mut place = 0u32;
        let mut kept = |dice: &mut Dice| {
            let keep = match survival.mask {
                Some(mask) => mask >> place.min(63) & 1 == 1,
                None => dice.chance(60),
            };
            place += 1;
            keep
        };
        let mut names = self.durable_names.clone();
        for change in &self.pending_names {
            if kept(dice) {
                change.apply(&mut names);
            }
        }
        let stale: Vec<Arc<Vec<u8>>> =
            self.files.values().map(|file| Arc::clone(&file.durable)).collect();
        let mut files = BTreeMap::new();
        for (id, file) in &self.files {
            let mut bytes = Arc::clone(&file.durable);
            for pending in &file.pending {
                if kept(dice) {
                    let bytes = Arc::make_mut(&mut bytes);
                    match survival.torn {
                        true => pending.change.apply_torn(bytes, &stale, dice),
                        false => pending.change.apply(bytes),
                    }
                }
            }
            if names.values().any(|named| named == id) {
                let durable = Arc::clone(&bytes);
                files.insert(*id, Content { current: bytes, durable, pending: Vec::new() });
            }
        }
        SimDisk::of(Image {
            files,
            durable_names: names.clone(),
            names,
            pending_names: Vec::new(),
            dirs: self.dirs.clone(),
            next_file: self.next_file,
            capacity: self.capacity,
        })
    }

    pub(super) fn used(&self) -> u64 {
        let named = self.names.values().filter_map(|id| self.files.get(id));
        named.map(|file| file.current.len() as u64).sum()
    }

    pub(super) fn name_of(&self, id: u64) -> &str {
        self.names.iter().find(|(_, named)| **named == id).map_or("a file without a name", |n| n.0)
    }
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<String, u64>) {
        match self {
            NameChange::Create(name, id) | NameChange::Link(name, id) => {
                names.insert(name.clone(), *id);
            }
            NameChange::Rename(from, to, id) => {
                if names.get(from) == Some(id) {
                    names.remove(from);
                }
                names.insert(to.clone(), *id);
            }
            NameChange::Leave(name, id) => {
                if names.iter().any(|(other, named)| named == id && other != name) {
                    names.remove(name);
                }
            }
            NameChange::Unlink(name) => drop(names.remove(name)),
        }
    }

    /// Whether a sync of `dir` makes this durable. One of the directory that a file has left has to
    /// make it durable where it went to as well.
    pub(super) fn concerns(&self, dir: &str, left: &BTreeSet<u64>) -> bool {
        match self {
            NameChange::Create(name, _) | NameChange::Unlink(name) => dir_of(name) == dir,
            NameChange::Rename(from, ..) | NameChange::Leave(from, _) => dir_of(from) == dir,
            NameChange::Link(to, id) => dir_of(to) == dir || left.contains(id),
        }
    }
}

pub(super) fn dir_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Change {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(at, data) => write_into(bytes, *at as usize, data),
            Change::Length(len) => bytes.resize(*len as usize, 0),
        }
    }

    fn apply_torn(&self, bytes: &mut Vec<u8>, stale: &[Arc<Vec<u8>>], dice: &mut Dice) {
        let Change::Write(at, data) = self else { return self.apply(bytes) };
        let (at, end) = (*at as usize, *at as usize + data.len());
        let how = dice.below(4);
        if how < 2 && end > bytes.len() && dice.chance(50) {
            // The new length is there before the bytes are.
            let left = &stale[dice.below(stale.len())];
            let from = bytes.len();
            bytes.resize(end, 0);
            if dice.chance(30) {
                let len = left.len().min(end - from);
                bytes[from..from + len].copy_from_slice(&left[..len]);
            }
        }
        match how {
            0 => write_into(bytes, at, &data[..dice.below(data.len() + 1)]),
            1 => {
                let mut from = 0;
                while from < data.len() {
                    // Up to the next boundary of the medium's sectors.
                    let place = at + from;
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
