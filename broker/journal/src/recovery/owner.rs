//! Whose journal it is: the lock file.
//!
//! It has nothing but zeroes until the first record is on disk. So one that says whose journal it is also says that
//! there is one, and a directory of which everything else is gone is not taken for a new one.

use super::super::error::OpenError;
use super::super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError};
use super::super::options::Options;
use super::super::shared::Shared;
use super::super::storage::Disk;
use super::Owner;
use std::io::{self, IoSlice};

const LOCK_PATH: &str = "lock";

pub(super) fn take_lock(disk: &dyn Disk) -> Result<Box<dyn Send + Sync>, OpenError> {
    disk.lock(LOCK_PATH).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: disk.describe("") },
        _ => OpenError::io(&disk.describe(LOCK_PATH), error),
    })
}

/// Reads who owns the journal from its lock file, or makes a new owner. Says whether it did.
pub(super) fn read(disk: &dyn Disk, options: &Options) -> Result<(Owner, bool), OpenError> {
    let path = disk.describe(LOCK_PATH);
    let io = |error| OpenError::io(&path, error);
    let file = disk.open(LOCK_PATH).map_err(io)?;
    let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
    file.read_at(0, FILE_HEADER_BYTES, &mut bytes).map_err(io)?;
    match FileHeader::parse(FileKind::Lock, &bytes) {
        Ok(header) => {
            let FileHeader { node, seed, epoch, .. } = header;
            return Ok((Owner { node, seed, epoch, has_begun: true }, false));
        }
        Err(newer @ HeaderError::Newer(_)) => return Err(newer.for_file(&path)),
        Err(_) if is_cut_short(&bytes) => {}
        Err(HeaderError::Damaged(detail)) => {
            return Err(OpenError::Foreign { path, detail: detail.to_owned() });
        }
    }
    let owner = match owner_of_segments(disk) {
        Some(owner) => owner,
        None => Owner { node: options.node, seed: options.seed, epoch: 0, has_begun: false },
    };
    // Zeroes now, so that a torn write later leaves nothing else.
    file.allocate(FILE_HEADER_BYTES as u64).map_err(io)?;
    file.sync().map_err(io)?;
    Ok((owner, owner.epoch == 0))
}

/// Notes whose journal it is, now that there is a record on disk. It is not synced: every segment says
/// the same, and an opening that does not find it writes it again.
pub(super) fn write(shared: &Shared) -> io::Result<()> {
    let file = shared.disk.open(LOCK_PATH)?;
    file.write_at(&[IoSlice::new(&shared.header(FileKind::Lock, 0).encode())], 0)
}

/// Whether these bytes of a lock file are what an interrupted first boot leaves: nothing, or the front
/// of a header, with or without zeroes behind it.
fn is_cut_short(bytes: &[u8]) -> bool {
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let known = FileHeader::front(FileKind::Lock);
    let front = written.min(known.len());
    written < FILE_HEADER_BYTES && bytes[..front] == known[..front]
}

/// Should the lock file be lost, any segment knows the owner.
fn owner_of_segments(disk: &dyn Disk) -> Option<Owner> {
    let names = disk.list("segments").ok()?;
    names.iter().filter(|name| name.ends_with(".seg")).find_map(|name| {
        let file = disk.open(&format!("segments/{name}")).ok()?;
        let FileHeader { node, seed, epoch, .. } =
            super::super::segment::read_header(&*file).ok()?.ok()?;
        Some(Owner { node, seed, epoch, has_begun: false })
    })
}
