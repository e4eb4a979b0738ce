//! What is left of segments that are gone: who their messages were for, and the settles and parks that
//! stood in them. The ledger answers from it, until it is older or more than is to be kept.
//!
//! A history file is a segment's index, cut behind the settles. Its name has the segment's id and
//! when it became history, in milliseconds since the Unix epoch: `history/ID-TIME.idx`. That time counts
//! for its age, and the oldest go first.
//!
//! A parked message stays, and so does why it is parked: of a history file that goes, the parks of
//! messages that still are stay as `history/ID-TIME.parks`, outside of what is kept by time and size.
//! They are no more than there are parked messages, and looked through again when they are old.

use super::format::{FileKind, is_cold};
use super::index::{EMPTY_HISTORY_BYTES, IndexError, IndexFacts, IndexFile, SegmentIndex, Settles};
use super::rebuild::{Rebuilt, Sealed};
use super::room::Purpose;
use super::shared::Shared;
use super::state::Standing;
use super::storage::{is_full, is_shortage, remove};
use super::trouble::Spot;
use restante_actors::events;
use restante_protocol::id::MessageNumber;
use restante_protocol::record::RecordKind;
use std::io;

/// How old parks are before they are looked through for those that nobody waits for any more, in
/// milliseconds, if other history is not kept longer.
const PARKS_AGE_MS_MIN: u64 = 24 * 60 * 60 * 1000;

/// One history file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HistoryNote {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    pub(super) bytes: u64,
    /// When it became history.
    pub(super) kept_ms: u64,
    pub(super) keeps: Keeps,
}

/// What a history file has of what a segment's index said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keeps {
    /// Messages, settles and parks.
    All,
    /// Parks of messages that were parked when the rest went.
    Parks,
}

impl Keeps {
    fn extension(self) -> &'static str {
        match self {
            Keeps::All => "idx",
            Keeps::Parks => "parks",
        }
    }
}

/// What there is of the index of a segment that is going.
enum LastIndex {
    Usable(IndexFile),
    /// It may be readable another time.
    NotNow,
    Lost,
}

impl HistoryNote {
    pub(super) fn path(&self) -> String {
        path(self.id, self.kept_ms, self.keeps)
    }

    /// Whether it has all that there is to know of these numbers.
    fn stands_for(&self, first: MessageNumber, next: MessageNumber) -> bool {
        self.keeps == Keeps::All && self.first <= first && next <= self.next
    }

    /// Whether all it says is that between its numbers nobody's message began or ended. Neighbours
    /// of this kind become one file: starts without any traffic leave no more than one behind.
    fn is_empty(&self) -> bool {
        self.bytes == EMPTY_HISTORY_BYTES && self.keeps == Keeps::All && !is_cold(self.id)
    }
}

/// The name of what is left of a segment.
pub(super) fn path(id: u64, kept_ms: u64, keeps: Keeps) -> String {
    format!("history/{id:012x}-{kept_ms:012x}.{}", keeps.extension())
}

/// The id and the time in a history file's name, without its directory, and what it keeps.
pub(super) fn parse_name(name: &str) -> Option<(u64, u64, Keeps)> {
    let (stem, extension) = name.split_once('.')?;
    let keeps = [Keeps::All, Keeps::Parks].into_iter().find(|k| k.extension() == extension)?;
    let (id, kept_ms) = stem.split_once('-')?;
    let number = |hex: &str| u64::from_str_radix(hex, 16).ok().filter(|_| hex.len() == 12);
    Some((number(id)?, number(kept_ms)?, keeps))
}

impl Shared {
    /// Cuts the index of a segment that is going to what the ledger needs and moves it to the history. Says
    /// whether the segment may go: not while its index cannot be read, nor built again from it.
    pub(super) fn keep_history(&self, sealed: Sealed) -> io::Result<bool> {
        let Sealed { id, first, next, .. } = sealed;
        let from = Shared::index_path(id);
        if self.history_of(id).is_some_and(|note| note.stands_for(first, next)) {
            // It went there once, and the rest did not come after.
            return remove(&*self.disk, &from).map(|()| true);
        }
        let kept_ms = (self.options.now_ms)();
        let bytes = match self.last_index(sealed)? {
            LastIndex::Usable(index) => index.history_bytes(),
            LastIndex::NotNow => return Ok(false),
            // It answers nothing any more; what it was about is done and gone.
            LastIndex::Lost => return remove(&*self.disk, &from).map(|()| true),
        };
        let mut note = HistoryNote { id, first, next, bytes, kept_ms, keeps: Keeps::All };
        if note.is_empty()
            && let Some(gone) = self.empty_before(&mut note)
        {
            self.put_history(&note, SegmentIndex::default())?;
            gone.iter().try_for_each(|note| self.let_go(note))?;
            return remove(&*self.disk, &from).map(|()| true);
        }
        let file = self.disk.open(&from)?;
        // Whoever looks a message up tries the old name and then what is noted here: at no moment
        // neither leads to it.
        self.pool.lock().history.push(note);
        self.disk.rename(&from, &note.path()).inspect_err(|_| {
            self.pool.lock().history.retain(|other| *other != note);
        })?;
        file.truncate(bytes)?;
        Ok(true)
    }

    /// The index of a segment that is going, built again from it where it cannot be used: this is the last
    /// chance to.
    fn last_index(&self, sealed: Sealed) -> io::Result<LastIndex> {
        let path = Shared::index_path(sealed.id);
        let why = match IndexFile::open(&*self.disk, &path) {
            Ok(index) => return Ok(LastIndex::Usable(index)),
            Err(IndexError::Io(error)) if is_shortage(&error) => return Err(error),
            Err(why) => why,
        };
        let (troubles, spot) = (&self.reading.troubles, Spot::index_of(sealed.id));
        let lost = match self.read_anew(sealed, false) {
            Ok(rebuilt) if rebuilt.is_whole() => match self.put_last_index(&path, sealed, &rebuilt)
            {
                Ok(index) => {
                    events::journal_finding(&format!(
                        "{path} is built again from its segment: {why}"
                    ));
                    return Ok(LastIndex::Usable(index));
                }
                // The segment has to go: it is what makes room.
                Err(IndexError::Io(error)) if !is_full(&error) => return Err(error),
                Err(error) => error.to_string(),
            },
            Ok(_) => "its segment is damaged too".to_owned(),
            Err(error) if is_shortage(&error) => return Err(error),
            Err(error) if !troubles.is_lasting(spot, &error) => return Ok(LastIndex::NotNow),
            Err(error) => error.to_string(),
        };
        troubles.forget(spot.segment, spot.peer, std::iter::once(spot.number));
        events::journal_finding(&format!(
            "{path} cannot be used ({why}) nor built again ({lost}): what became of the messages {} to {} is forgotten",
            sealed.first,
            sealed.next.saturating_sub(1)
        ));
        Ok(LastIndex::Lost)
    }

    fn put_last_index(
        &self,
        path: &str,
        sealed: Sealed,
        rebuilt: &Rebuilt,
    ) -> Result<IndexFile, IndexError> {
        let Sealed { id, first, next, data_end } = sealed;
        let facts = IndexFacts { id, first, next, data_end };
        let bytes = rebuilt.index.encode(&self.header(FileKind::Index, id), &facts);
        self.put_file(Purpose::Reclaim, path, &bytes)?;
        self.disk.sync_dir("segments")?;
        self.forget_index(id);
        IndexFile::open(&*self.disk, path)
    }

    /// Lets an empty note begin where its neighbours do that are empty too, and says which these are.
    fn empty_before(&self, note: &mut HistoryNote) -> Option<Vec<HistoryNote>> {
        let pool = self.pool.lock();
        let empty = || pool.history.iter().filter(|other| other.is_empty());
        let reaches = |first| empty().find(|other| other.next == first && other.first < first);
        while let Some(before) = reaches(note.first) {
            note.first = before.first;
        }
        // A crash may have left some of those that were put together before.
        let range = note.first..=note.next;
        let inside =
            |other: &&HistoryNote| range.contains(&other.first) && range.contains(&other.next);
        let gone: Vec<_> = empty().filter(inside).copied().collect();
        (!gone.is_empty()).then_some(gone)
    }

    /// Removes the oldest history beyond what is to be kept; nothing while a backup is taken.
    pub(super) fn drop_old_history(&self) -> io::Result<()> {
        let now_ms = (self.options.now_ms)();
        loop {
            let Some(_leave) = self.pins.removal() else { return Ok(()) };
            let Some(oldest) = self.surplus_history(now_ms) else { return Ok(()) };
            self.keep_parks(&oldest, now_ms)?;
            self.let_go(&oldest)?;
        }
    }

    /// The oldest history file, if it is older than it is to be kept, or all are more.
    fn surplus_history(&self, now_ms: u64) -> Option<HistoryNote> {
        let pool = self.pool.lock();
        let oldest = |keeps| {
            let notes = pool.history.iter().filter(move |note| note.keeps == keeps);
            notes.min_by_key(|note| (note.kept_ms, note.id))
        };
        let counted = pool.history.iter().filter(|note| note.keeps == Keeps::All);
        let kept: u64 = counted.map(|note| note.bytes).sum();
        let age_max = self.options.history_ms_max;
        let is_older = |note: &HistoryNote, max| now_ms.saturating_sub(note.kept_ms) > max;
        let all = oldest(Keeps::All)
            .filter(|note| kept > self.options.history_bytes_max || is_older(note, age_max));
        let parks =
            || oldest(Keeps::Parks).filter(|note| is_older(note, age_max.max(PARKS_AGE_MS_MIN)));
        all.or_else(parks).copied()
    }

    /// Keeps of a history file that goes why messages are parked that still are.
    fn keep_parks(&self, gone: &HistoryNote, now_ms: u64) -> io::Result<()> {
        let opened = IndexFile::open(&*self.disk, &gone.path());
        let parks = match opened.and_then(|index| index.parks()) {
            Ok(parks) => parks,
            Err(IndexError::Io(error)) if is_shortage(&error) => return Err(error),
            // What cannot be read any more is lost to the ledger either way.
            Err(_) => return Ok(()),
        };
        let mut settles = Settles::default();
        for park in parks {
            if self.state.lock().standing(park.peer, park.number) == Standing::Parked {
                let mut body = Vec::new();
                park.encode(&mut body);
                settles.push(RecordKind::Park, &body);
            }
        }
        if settles.is_empty() {
            return Ok(());
        }
        let note = HistoryNote { kept_ms: now_ms, keeps: Keeps::Parks, ..*gone };
        self.put_history(&note, SegmentIndex { settles, ..SegmentIndex::default() })
    }

    /// Writes a history file.
    fn put_history(&self, note: &HistoryNote, index: SegmentIndex) -> io::Result<()> {
        let HistoryNote { id, first, next, .. } = *note;
        let facts = IndexFacts { id, first, next, data_end: 0 };
        let bytes = index.encode(&self.header(FileKind::Index, id), &facts);
        // What goes for it is larger.
        self.put_file(Purpose::Reclaim, &note.path(), &bytes)?;
        self.disk.sync_dir("history")?;
        self.pool.lock().history.push(HistoryNote { bytes: bytes.len() as u64, ..*note });
        Ok(())
    }

    fn let_go(&self, gone: &HistoryNote) -> io::Result<()> {
        self.pool.lock().history.retain(|note| note != gone);
        remove(&*self.disk, &gone.path())
    }

    /// The history of a segment, if there is any.
    pub(super) fn history_of(&self, id: u64) -> Option<HistoryNote> {
        let pool = self.pool.lock();
        let of_it = pool.history.iter().filter(|note| note.id == id);
        of_it.min_by_key(|note| (note.keeps, note.kept_ms)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_when() {
        for keeps in [Keeps::All, Keeps::Parks] {
            let name = path(0x8000_0000_0007, 1_700_000_000_000, keeps);
            let name = name.strip_prefix("history/").unwrap();
            assert_eq!(parse_name(name), Some((0x8000_0000_0007, 1_700_000_000_000, keeps)));
        }
        for other in ["000000000001.idx", "1-2.idx", "000000000001-00000000000g.idx", "x"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
