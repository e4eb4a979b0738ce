//! What is left of segments that are gone: who their messages were for, and the settles and parks that
//! stood in them. The ledger answers from it, until it is older or more than is to be kept.
//!
//! A history file is a segment's index, cut behind the settles. Its name has the segment's id and
//! when it became history, in milliseconds since the Unix epoch: `history/ID-TIME.idx`. That time counts
//! for its age, and the oldest go first.

use super::index::{IndexError, IndexFile};
use super::shared::Shared;
use super::storage::{is_shortage, remove};
use restante_protocol::id::MessageNumber;
use std::io;

/// One history file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HistoryNote {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    pub(super) bytes: u64,
    /// When it became history.
    pub(super) kept_ms: u64,
}

impl HistoryNote {
    pub(super) fn path(&self) -> String {
        path(self.id, self.kept_ms)
    }
}

/// The name of what is left of a segment.
pub(super) fn path(id: u64, kept_ms: u64) -> String {
    format!("history/{id:012x}-{kept_ms:012x}.idx")
}

/// The id and the time in a history file's name, without its directory.
pub(super) fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (id, kept_ms) = name.strip_suffix(".idx")?.split_once('-')?;
    let number = |hex: &str| u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 12);
    Some((number(id)?, number(kept_ms)?))
}

impl Shared {
    /// Cuts the index of a segment that is going to what the ledger needs and moves it to the history.
    pub(super) fn keep_history(
        &self,
        id: u64,
        first: MessageNumber,
        next: MessageNumber,
    ) -> io::Result<()> {
        let from = Shared::index_path(id);
        let bytes = match IndexFile::open(&*self.disk, &from) {
            Ok(index) if index.has_history() => index.history_bytes(),
            Err(IndexError::Io(error)) if is_shortage(&error) => return Err(error),
            // It answers nothing, or nothing any more; what it was about is done and gone.
            Ok(_) | Err(_) => return remove(&*self.disk, &from),
        };
        let note = HistoryNote { id, first, next, bytes, kept_ms: (self.options.now_ms)() };
        let file = self.disk.open(&from)?;
        // Whoever looks a message up tries the old name and then what is noted here: at no moment
        // neither leads to it.
        self.pool.lock().history.push(note);
        self.disk.rename(&from, &note.path()).inspect_err(|_| {
            self.pool.lock().history.retain(|other| *other != note);
        })?;
        file.truncate(bytes)
    }

    /// Removes the oldest history beyond what is to be kept; nothing while a backup is taken.
    pub(super) fn drop_old_history(&self) -> io::Result<()> {
        let now = (self.options.now_ms)();
        loop {
            let Some(_leave) = self.pins.removal() else { return Ok(()) };
            let gone = {
                let mut pool = self.pool.lock();
                let kept: u64 = pool.history.iter().map(|note| note.bytes).sum();
                let oldest = pool.history.iter().enumerate().min_by_key(|(_, n)| (n.kept_ms, n.id));
                let Some((place, oldest)) = oldest else { return Ok(()) };
                let age_ms = now.saturating_sub(oldest.kept_ms);
                if kept <= self.options.history_bytes_max && age_ms <= self.options.history_ms_max {
                    return Ok(());
                }
                pool.history.swap_remove(place)
            };
            remove(&*self.disk, &gone.path())?;
        }
    }

    /// Where the history of a segment is, if there is any.
    pub(super) fn history_of(&self, id: u64) -> Option<String> {
        let pool = self.pool.lock();
        pool.history.iter().find(|note| note.id == id).map(HistoryNote::path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when() {
        let name = path(0x8000_0000_0007, 1_700_000_000_000);
        let name = name.strip_prefix("history/").unwrap();
        assert_eq!(parse_name(name), Some((0x8000_0000_0007, 1_700_000_000_000)));
        for other in ["000000000001.idx", "1-2.idx", "000000000001-00000000000g.idx", "x"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
