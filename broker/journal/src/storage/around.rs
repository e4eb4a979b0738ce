//! A file read around what cannot be read of it.
//!
//! A sector that has gone bad fails every read that touches it. Here only the blocks that fail are
//! missing: they read as zeroes, which are no record, and it is remembered where they are. What the
//! system is short of for the moment is passed on as what it is.

use super::{DiskFile, is_shortage};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Bytes of a block: the smallest sector a disk has.
const BLOCK_BYTES: u64 = 512;
/// How often a block is read before it counts as unreadable.
const TRIES: u32 = 3;

/// See the module.
pub(crate) struct Around {
    file: Arc<dyn DiskFile>,
    /// Where nothing could be read, and why.
    unreadable: Mutex<BTreeMap<u64, (u64, String)>>,
}

impl Around {
    pub(crate) fn new(file: Arc<dyn DiskFile>) -> Arc<Around> {
        Arc::new(Around { file, unreadable: Mutex::default() })
    }

    /// Bytes that could not be read, from `from` on, as offset, end and reason of the first stretch.
    pub(crate) fn unreadable(&self, from: u64) -> Option<(u64, u64, String)> {
        let unreadable = self.unreadable.lock();
        let mut blocks = unreadable.iter().filter(|(_, (end, _))| *end > from);
        let (at, (end, why)) = blocks.next()?;
        let mut last = *end;
        for (at, (end, _)) in blocks {
            if *at > last {
                break;
            }
            last = *end;
        }
        Some((*at, last, why.clone()))
    }

    /// What to say of a file of which not all could be read.
    pub(crate) fn report(&self, path: &str) -> Option<String> {
        let (from, to, why) = self.unreadable(0)?;
        let blocks = self.unreadable.lock().len();
        Some(format!(
            "{path} cannot be read everywhere: {blocks} blocks, the first at bytes {from} to {to}: {why}"
        ))
    }

    fn block(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        let before = into.len();
        let mut tries = 0;
        loop {
            let error = match self.file.read_at(offset, len, into) {
                Ok(got) => return Ok(got),
                Err(error) if is_shortage(&error) => return Err(error),
                Err(error) => error,
            };
            into.truncate(before);
            tries += 1;
            if tries == TRIES {
                let there = self.file.length()?.saturating_sub(offset).min(len as u64);
                into.resize(before + there as usize, 0);
                let end = offset + there;
                self.unreadable.lock().insert(offset, (end, error.to_string()));
                return Ok(there as usize);
            }
        }
    }
}

impl DiskFile for Around {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.file.write_at(bufs, offset)
    }

    fn read_at(&self, offset: u64, len: usize, into: &mut Vec<u8>) -> io::Result<usize> {
        let before = into.len();
        match self.file.read_at(offset, len, into) {
            Err(error) if !is_shortage(&error) => into.truncate(before),
            other => return other,
        }
        let end = offset + len as u64;
        let mut at = offset;
        while at < end {
            let to = (at + 1).next_multiple_of(BLOCK_BYTES).min(end);
            if self.block(at, (to - at) as usize, into)? < (to - at) as usize {
                break;
            }
            at = to;
        }
        Ok(into.len() - before)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
}
