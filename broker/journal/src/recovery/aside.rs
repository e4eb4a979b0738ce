//! The quarantine: what is not understood goes there, and nothing that is there is ever replaced.

use super::super::storage::Disk;
use std::io::{self, IoSlice};

/// Files of one name that are kept; more would mean that the same thing is found at every start.
const SAME_NAME_MAX: u32 = 1_000;

/// Moves the file at `path` to the quarantine under `name`, or a name like it; returns where it is.
pub(crate) fn move_aside(disk: &dyn Disk, path: &str, name: &str) -> io::Result<String> {
    let aside = free_name(disk, name, |_| Ok(false))?;
    disk.rename(path, &aside)?;
    disk.sync_dir("quarantine")?;
    disk.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir))?;
    Ok(aside)
}

/// Keeps bytes in the quarantine under `name`, or a name like it; returns where they are. The same
/// bytes are kept once: an opening that is interrupted and repeated comes by again.
pub(super) fn keep_aside(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<String> {
    let mut kept = false;
    let aside = free_name(disk, name, |path| {
        let file = disk.open(path)?;
        let mut there = Vec::new();
        if file.length()? == bytes.len() as u64 {
            file.read_at(0, bytes.len(), &mut there)?;
        }
        kept = there == bytes;
        Ok(kept)
    })?;
    if !kept {
        let file = disk.create(&aside)?;
        file.write_at(&[IoSlice::new(bytes)], 0)?;
        file.sync()?;
        disk.sync_dir("quarantine")?;
    }
    Ok(aside)
}

/// The first name that is not taken, or of which `is_it` says that it is the one.
fn free_name(
    disk: &dyn Disk,
    name: &str,
    mut is_it: impl FnMut(&str) -> io::Result<bool>,
) -> io::Result<String> {
    let taken = disk.list("quarantine")?;
    for nth in 0..SAME_NAME_MAX {
        let name = if nth == 0 { name.to_owned() } else { format!("{name}.{nth}") };
        let path = format!("quarantine/{name}");
        if !taken.contains(&name) || is_it(&path)? {
            return Ok(path);
        }
    }
    Err(io::Error::other(format!(
        "quarantine/ has {SAME_NAME_MAX} files named {name}; move them elsewhere"
    )))
}
