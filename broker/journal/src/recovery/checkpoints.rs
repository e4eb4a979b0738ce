//! Finding a checkpoint to start from: there are two copies, and one that is sound is enough.
//!
//! Both are written before anything goes that only they make dispensable, so that either of them and
//! the log behind it are the whole truth, whichever is newer.

use super::super::checkpoint::{self, Snapshot, read_whole};
use super::super::error::OpenError;
use super::super::format::HeaderError;
use super::super::index::replace_file;
use super::super::keeper::CHECKPOINT_PATHS;
use super::super::storage::{Disk, is_full, is_missing, is_shortage, remove};
use super::Owner;
use super::aside::move_aside;
use bytes::Bytes;
use restante_protocol::id::MessageNumber;
use std::io;

/// What the copies said, and the newest sound one.
type Read = (Checkpoints, Option<(Snapshot, Bytes)>);

/// What the copies of the checkpoint said.
pub(super) struct Checkpoints {
    /// Position of the newest that is sound.
    position: Option<MessageNumber>,
    /// Its bytes, for mending the others.
    sound: Vec<u8>,
    /// Those that are there and are not.
    bad: Vec<Bad>,
    /// Those that are missing or older than the newest.
    stale: Vec<&'static str>,
}

struct Bad {
    path: &'static str,
    detail: String,
    foreign: bool,
}

impl Checkpoints {
    /// Reads all copies and changes nothing. Returns what the newest sound one says, too.
    pub(super) fn read(disk: &dyn Disk, owner: &mut Owner) -> Result<Read, OpenError> {
        let mut all = Checkpoints {
            position: None,
            sound: Vec::new(),
            bad: Vec::new(),
            stale: CHECKPOINT_PATHS.to_vec(),
        };
        let (mut newest, mut read) = (None, Vec::new());
        for path in CHECKPOINT_PATHS {
            let bytes = match read_whole(disk, path) {
                Ok(bytes) => bytes,
                Err(error) if is_missing(&error) => continue,
                Err(error) if is_shortage(&error) => {
                    return Err(OpenError::io(&disk.describe(path), error));
                }
                Err(error) => {
                    all.bad.push(Bad { path, detail: error.to_string(), foreign: false });
                    continue;
                }
            };
            match checkpoint::decode(&bytes) {
                Ok((header, ..)) if header.node != owner.node || header.seed != owner.seed => {
                    let detail = format!("it was written by node {:04x}", header.node.0);
                    all.bad.push(Bad { path, detail, foreign: true });
                }
                Ok((header, snapshot, application)) => {
                    owner.epoch = owner.epoch.max(header.epoch);
                    if all.position.is_none_or(|position| snapshot.position > position) {
                        all.position = Some(snapshot.position);
                        all.sound.clone_from(&bytes);
                        newest = Some((snapshot, application));
                    }
                    read.push((path, bytes));
                }
                Err(newer @ HeaderError::Newer(_)) => {
                    return Err(newer.for_file(&disk.describe(path)));
                }
                Err(HeaderError::Damaged(detail)) => {
                    all.bad.push(Bad { path, detail: detail.to_owned(), foreign: false });
                }
            }
        }
        let is_newest = |path| read.iter().any(|(of, bytes)| *of == path && *bytes == all.sound);
        all.stale.retain(|path| !is_newest(*path) && all.bad.iter().all(|bad| bad.path != *path));
        Ok((all, newest))
    }

    /// Whether nothing says what was known: neither is there a copy that is sound, nor does the log
    /// that is there (`first` is its first number, `gaps` whether some of it is missing) go back to
    /// its beginning.
    pub(super) fn check(&self, disk: &dyn Disk, first: u64, gaps: bool) -> Result<(), OpenError> {
        if self.position.is_some() || (first <= 1 && !gaps) {
            return Ok(());
        }
        let path = disk.describe(self.bad.first().map_or(CHECKPOINT_PATHS[0], |bad| bad.path));
        if let Some(bad) = self.bad.iter().find(|bad| bad.foreign) {
            return Err(OpenError::Foreign { path, detail: bad.detail.clone() });
        }
        let detail = match self.bad.first() {
            Some(bad) => format!(
                "{}; there is no other copy, and the log before record {first} is gone",
                bad.detail
            ),
            None if gaps => "it is missing, and so is some of the log".to_owned(),
            None => format!("it is missing, and the log before record {first} is gone"),
        };
        Err(OpenError::Damaged { path, detail })
    }

    /// Whether there is one to start from.
    pub(super) fn is_any_sound(&self) -> bool {
        self.position.is_some()
    }

    /// Whether there is one that is not sound.
    pub(super) fn is_any_bad(&self) -> bool {
        !self.bad.is_empty()
    }

    /// Sets bad copies aside and writes good ones in their place, and in that of older ones: what is
    /// written over after this is what only the newest lets go. Says what it did.
    pub(super) fn mend(&self, disk: &dyn Disk) -> io::Result<Vec<String>> {
        let mut findings = Vec::new();
        for Bad { path, detail, .. } in &self.bad {
            let aside = move_aside(disk, path, path)?;
            let instead = match self.position {
                Some(position) => {
                    findings.extend(self.renew(disk, path)?);
                    format!("the copy taken at record {position} is used")
                }
                None => "all of the log is read instead".to_owned(),
            };
            findings.push(format!("{path}: {detail}; {instead}; it was set aside as {aside}"));
        }
        let stale = if self.is_any_sound() { &self.stale[..] } else { &[] };
        for path in stale {
            findings.extend(self.renew(disk, path)?);
        }
        if !self.bad.is_empty() || !stale.is_empty() {
            disk.sync_dir("")?;
        }
        Ok(findings)
    }

    /// Puts the newest in the place of another. Without room for it there is none: one is enough, and
    /// an older one must not come back.
    fn renew(&self, disk: &dyn Disk, path: &str) -> io::Result<Option<String>> {
        let renewed = match replace_file(disk, path, &self.sound) {
            Err(error) if is_full(&error) => {
                remove(disk, path)?;
                replace_file(disk, path, &self.sound)
            }
            renewed => renewed,
        };
        match renewed {
            Ok(()) => Ok(None),
            Err(error) if is_full(&error) => Ok(Some(format!(
                "{path} is not there for want of room, until the next one: {error}"
            ))),
            Err(error) => Err(error),
        }
    }
}
