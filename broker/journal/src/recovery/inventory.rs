//! What lies in the data directory: which segments hold log, which are spare, which do not belong.

use super::super::checkpoint::{PeerNote, Snapshot};
use super::super::error::OpenError;
use super::super::format::{COLD_BIT, FLAG_FIRST, HeaderError, Seed, is_cold, record_bytes};
use super::super::history::{self, HistoryNote, Keeps};
use super::super::index::{DirectoryEntry, IndexError, IndexFacts, IndexFile};
use super::super::options::Options;
use super::super::room;
use super::super::segment::{FIRST_RECORD_AT, Found, Walk, read_header};
use super::super::shared::{Pool, Shared, Spare};
use super::super::storage::around::Around;
use super::super::storage::{Disk, DiskFile, is_missing, is_shortage, remove};
use super::Owner;
use super::aside::move_aside;
use super::scan::Emptied;
use restante_actors::events;
use restante_actors::journal::Damage;
use restante_protocol::id::{MessageNumber, NUMBER_BITS, PeerId};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;

/// See the module.
pub(super) struct Inventory {
    /// Segments with log in them, in its order.
    pub(super) segments: Vec<FoundSegment>,
    /// Cold segments that count.
    pub(super) cold: Vec<FoundSegment>,
    /// Whether there was a cold segment, whether it counts or not.
    pub(super) had_cold: bool,
    /// Segments nothing was ever written to, and used ones that are to be written again.
    spares: Vec<(u64, String)>,
    history: Vec<HistoryNote>,
    next_segment: u64,
    /// Whether a segment has been searched through and there was no record in it.
    searched: bool,
    pub(super) findings: Vec<String>,
    /// Segments that should be there and are not.
    pub(super) damage: Vec<Damage>,
}

/// A segment with log in it. Its files are not kept open: there may be more of them than a process may
/// have.
pub(super) struct FoundSegment {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    /// What the checkpoint says is live in it.
    pub(super) noted_live: u64,
    /// Its first record is damaged or torn, `first` is a guess, and every number below this is known
    /// to have been synced.
    pub(super) headless: Option<MessageNumber>,
    /// The directory of its index file, if there is one that can be used.
    pub(super) directory: Option<Vec<DirectoryEntry>>,
    /// What the index file says about the segment, also where the rest of the file is damaged.
    pub(super) facts: Option<IndexFacts>,
    pub(super) index_bytes: u64,
    pub(super) file_bytes: u64,
}

/// What is there of a segment's index.
#[derive(Default)]
struct FoundIndex {
    /// See [`FoundSegment::directory`].
    directory: Option<Vec<DirectoryEntry>>,
    /// See [`FoundSegment::facts`].
    facts: Option<IndexFacts>,
    /// Its length, if it can be used.
    bytes: u64,
}

impl FoundSegment {
    /// The segment's file; what of it cannot be read reads as zeroes.
    pub(super) fn open(&self, disk: &dyn Disk) -> io::Result<Arc<Around>> {
        disk.open(&Shared::segment_path(self.id)).map(Around::new)
    }
}

impl Inventory {
    pub(super) fn take(
        disk: &dyn Disk,
        owner: &mut Owner,
        snapshot: &Snapshot,
        now_ms: u64,
    ) -> Result<Inventory, OpenError> {
        let mut inventory = Inventory {
            segments: Vec::new(),
            cold: Vec::new(),
            had_cold: false,
            spares: Vec::new(),
            history: Vec::new(),
            next_segment: snapshot.next_segment,
            searched: false,
            findings: Vec::new(),
            damage: Vec::new(),
        };
        let io = |error| OpenError::io(&disk.describe("segments"), error);
        let (mut segments, mut indexes) = (BTreeMap::new(), BTreeMap::new());
        for name in disk.list("segments").map_err(io)? {
            match classify(&name) {
                Some((id, "seg")) => drop(segments.insert(id, name)),
                Some((id, "idx")) => drop(indexes.insert(id, name)),
                Some((id, "spare")) => inventory.spares.push((id, format!("segments/{name}"))),
                // Never finished, so nothing is in it.
                Some((_, "new" | "tmp")) => {
                    disk.unlink(&format!("segments/{name}")).map_err(io)?;
                }
                _ => inventory.findings.push(format!("segments/{name} is not a journal's file")),
            }
        }
        let highest = segments.keys().chain(indexes.keys()).copied();
        let highest = highest.chain(inventory.spares.iter().map(|(id, _)| *id));
        let highest = highest.map(|id| id & !COLD_BIT).max();
        inventory.next_segment = inventory.next_segment.max(highest.map_or(1, |id| id + 1));
        inventory.had_cold = segments.keys().any(|id| is_cold(*id));
        let noted: HashSet<u64> = snapshot.segments.iter().map(|note| note.id).collect();
        let newest_noted = noted.iter().copied().filter(|id| !is_cold(*id)).max().unwrap_or(0);
        // A cold segment counts when the checkpoint names it; see the module `compact`. What a
        // checkpoint let go is newer than its copy.
        let is_dead = |id: u64| !noted.contains(&id) && !is_cold(id) && id < newest_noted;
        let is_unfinished = |id: u64| !noted.contains(&id) && is_cold(id) && !noted.is_empty();
        for id in segments.keys().chain(indexes.keys()).copied().filter(|id| is_unfinished(*id)) {
            inventory.drop_unfinished(disk, id).map_err(io)?;
        }
        segments.retain(|id, _| !is_unfinished(*id));
        indexes.retain(|id, _| !is_unfinished(*id));
        for id in segments.into_keys() {
            if is_dead(id) {
                // The checkpoint let it go, and the crash came first.
                inventory.spares.push((id, Shared::segment_path(id)));
                continue;
            }
            inventory.take_segment(disk, owner, snapshot, id)?;
        }
        let left_behind = indexes.into_keys().filter(|id| is_dead(*id));
        inventory.take_history(disk, left_behind, now_ms)?;
        inventory.name_missing(disk, snapshot);
        Ok(inventory)
    }

    fn take_segment(
        &mut self,
        disk: &dyn Disk,
        owner: &mut Owner,
        snapshot: &Snapshot,
        id: u64,
    ) -> Result<(), OpenError> {
        let path = Shared::segment_path(id);
        let io = |error| OpenError::io(&disk.describe(&path), error);
        let file = Around::new(disk.open(&path).map_err(io)?);
        match read_header(&*file).map_err(io)? {
            Ok(header) if header.node != owner.node || header.seed != owner.seed => {
                let why = format!("it was written by node {:04x}", header.node.0);
                return self.quarantine(disk, id, &why).map_err(io);
            }
            Ok(header) if header.id != id => {
                let why = format!("it is segment {:x} under another's name", header.id);
                return self.quarantine(disk, id, &why).map_err(io);
            }
            Ok(header) => owner.epoch = owner.epoch.max(header.epoch),
            Err(newer @ HeaderError::Newer(_)) => {
                return Err(newer.for_file(&disk.describe(&path)));
            }
            // Its records carry checksums of their own and are read all the same.
            Err(HeaderError::Damaged(what)) => self.findings.push(format!("{path}: {what}")),
        }
        let FoundIndex { directory, facts, bytes: index_bytes } = self.take_index(disk, id)?;
        let noted = snapshot.segments.iter().find(|note| note.id == id);
        let known = noted.map(|note| note.first).or(facts.map(|facts| facts.first));
        let head = match known {
            Some(first) => Some((first, None)),
            None => self.first_number(&file, owner, id).map_err(io)?,
        };
        self.findings.extend(file.report(&path));
        let Some((first, headless)) = head else {
            if file.unreadable(0).is_some() {
                return self.quarantine(disk, id, "no record in it can be read").map_err(io);
            }
            self.spares.push((id, path));
            return Ok(());
        };
        let file_bytes = file.length().map_err(io)?;
        let noted_live = noted.map_or(0, |note| note.live);
        let found = FoundSegment {
            id,
            first,
            noted_live,
            headless,
            directory,
            facts,
            index_bytes,
            file_bytes,
        };
        if is_cold(id) {
            self.cold.push(found)
        } else {
            self.segments.push(found)
        }
        Ok(())
    }

    /// Removes a copy that was never finished: the checkpoint still names what it was made of.
    fn drop_unfinished(&mut self, disk: &dyn Disk, id: u64) -> io::Result<()> {
        for path in [Shared::segment_path(id), Shared::index_path(id)] {
            match disk.unlink(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the index of a segment says, as far as it can be used.
    fn take_index(&mut self, disk: &dyn Disk, id: u64) -> Result<FoundIndex, OpenError> {
        let path = Shared::index_path(id);
        let (facts, what) = match IndexFile::open(disk, &path) {
            Ok(index) if index.facts.id != id => {
                (None, format!("it is that of segment {:x}", index.facts.id))
            }
            // The directory is what an opening reads; the other parts are read when asked for.
            Ok(index) => match index.directory() {
                Ok(directory) => {
                    let (facts, bytes) = (Some(index.facts), index.bytes());
                    return Ok(FoundIndex { directory: Some(directory), facts, bytes });
                }
                Err(IndexError::Io(error)) if is_shortage(&error) => {
                    return Err(OpenError::io(&disk.describe(&path), error));
                }
                Err(error) => (Some(index.facts), error.to_string()),
            },
            Err(IndexError::Io(error)) if is_missing(&error) => return Ok(FoundIndex::default()),
            Err(IndexError::Io(error)) if is_shortage(&error) => {
                return Err(OpenError::io(&disk.describe(&path), error));
            }
            Err(IndexError::Header(newer @ HeaderError::Newer(_))) => {
                return Err(newer.for_file(&disk.describe(&path)));
            }
            Err(error) => (None, error.to_string()),
        };
        self.findings.push(format!("{path} is built again from its segment: {what}"));
        Ok(FoundIndex { facts, ..FoundIndex::default() })
    }

    /// The number of a segment's first record, and what [`FoundSegment::headless`] says; `None` when
    /// there is no record in it. Segments are written one after the other, so behind one that was searched
    /// through in vain there is nothing to be found.
    fn first_number(
        &mut self,
        file: &Arc<Around>,
        owner: &Owner,
        id: u64,
    ) -> io::Result<Option<(MessageNumber, Option<MessageNumber>)>> {
        let file: Arc<dyn DiskFile> = Arc::clone(file) as Arc<dyn DiskFile>;
        let mut walk = Walk::new(file, Seed::new(owner.seed, id), FIRST_RECORD_AT)?;
        if let Found::Record(header) | Found::BadPayload(header) = walk.look()? {
            return Ok(Some((header.number, None)));
        }
        if self.searched {
            return Ok(None);
        }
        let mut head = None;
        while let Some(header) = walk.search(1..=(1 << NUMBER_BITS))? {
            let synced = if header.flags & FLAG_FIRST != 0 { header.number } else { 0 };
            let (first, known) = head.unwrap_or((header.number, 0));
            head = Some((first, synced.max(known)));
            walk.at += record_bytes(header.length as usize) as u64 - 1;
        }
        self.searched = head.is_none();
        Ok(head.map(|(first, synced)| (first, Some(synced))))
    }

    fn quarantine(&mut self, disk: &dyn Disk, id: u64, why: &str) -> io::Result<()> {
        let path = Shared::segment_path(id);
        let aside = move_aside(disk, &path, &format!("{id:012x}.seg"))?;
        self.findings.push(format!("{path} was set aside as {aside}: {why}"));
        Ok(())
    }

    /// Takes note of the history, and moves there what a crash left behind.
    fn take_history(
        &mut self,
        disk: &dyn Disk,
        left_behind: impl Iterator<Item = u64>,
        now_ms: u64,
    ) -> Result<(), OpenError> {
        let io = |error| OpenError::io(&disk.describe("history"), error);
        let mut left_behind: BTreeSet<u64> = left_behind.collect();
        for name in disk.list("history").map_err(io)? {
            let path = format!("history/{name}");
            if name.ends_with(".tmp") {
                // Never finished; what it was made of is still there.
                disk.unlink(&path).map_err(io)?;
                continue;
            }
            let Some((id, kept_ms, keeps)) = history::parse_name(&name) else {
                self.findings.push(format!("{path} is not a journal's file"));
                continue;
            };
            let is_noted = self.note_history(disk, &path, kept_ms, keeps).map_err(io)?;
            if is_noted && keeps == Keeps::All && left_behind.remove(&id) {
                // It went there before, and may stand for more segments than its own.
                disk.sync_dir("history").map_err(io)?;
                remove(disk, &Shared::index_path(id)).map_err(io)?;
            }
        }
        for id in left_behind {
            let path = history::path(id, now_ms, Keeps::All);
            disk.rename(&Shared::index_path(id), &path).map_err(io)?;
            self.note_history(disk, &path, now_ms, Keeps::All).map_err(io)?;
        }
        Ok(())
    }

    /// Takes note of a history file; says whether it can be used.
    fn note_history(
        &mut self,
        disk: &dyn Disk,
        path: &str,
        kept_ms: u64,
        keeps: Keeps,
    ) -> io::Result<bool> {
        let index = match IndexFile::open(disk, path) {
            Ok(index) => index,
            Err(IndexError::Io(error)) if is_shortage(&error) => return Err(error),
            // It may be readable another time.
            Err(error @ IndexError::Io(_)) => {
                self.findings.push(format!("{path}: {error}"));
                return Ok(false);
            }
            Err(error) => {
                let moved = move_aside(disk, path, path.trim_start_matches("history/"));
                self.findings.push(match moved {
                    Ok(aside) => format!("{path} was set aside as {aside}: {error}"),
                    Err(shortage) if is_shortage(&shortage) => return Err(shortage),
                    // It stays until there is room, or the other cause is gone: nothing else needs it.
                    Err(why) => format!("{path}: {error}; it is not set aside: {why}"),
                });
                return Ok(false);
            }
        };
        let bytes = index.history_bytes();
        disk.open(path)?.truncate(bytes)?;
        let IndexFacts { id, first, next, .. } = index.facts;
        self.history.push(HistoryNote { id, first, next, bytes, kept_ms, keeps });
        self.next_segment = self.next_segment.max((id & !COLD_BIT) + 1);
        Ok(true)
    }

    /// Names the segments that the checkpoint knows and that are not there. Their indexes, which are
    /// files of their own, may still say what was in them; else the checkpoint says something.
    fn name_missing(&mut self, disk: &dyn Disk, snapshot: &Snapshot) {
        for (place, note) in snapshot.segments.iter().enumerate() {
            let mut found = self.segments.iter().chain(&self.cold);
            if found.any(|segment| segment.id == note.id) {
                continue;
            }
            let file = Shared::segment_path(note.id);
            let least = if snapshot.is_least(place) { "at least " } else { "" };
            self.findings.push(format!(
                "{file} is missing: {least}{} deliveries from record {} on are lost",
                note.live, note.first
            ));
            let index = IndexFile::open(disk, &Shared::index_path(note.id)).ok();
            let messages = index.as_ref().and_then(|index| index.messages().ok());
            let following = snapshot.segments.get(place + 1).map(|next| next.first);
            let next = index.as_ref().map(|index| index.facts.next).or(following);
            let (first, next) = (note.first, next.unwrap_or(snapshot.synced).max(note.first));
            let (receivers, complete) = match messages {
                Some(messages) => (messages.receivers(first, first, next), true),
                None => (open_in(snapshot, first), false),
            };
            self.damage.push(Damage { file, first, next, receivers, complete });
        }
    }

    /// Gives the room of a spare segment back to the disk, but not that of the last: it will be
    /// written to. Says whether there was one.
    pub(super) fn give_up_spare(&mut self, disk: &dyn Disk) -> io::Result<bool> {
        if self.spares.len() < 2 {
            return Ok(false);
        }
        let Some((_, path)) = self.spares.pop() else { return Ok(false) };
        room::give_up(disk, &path)?;
        Ok(true)
    }

    /// Takes over what an earlier look has found.
    pub(super) fn found_before(&mut self, mut findings: Vec<String>) {
        self.findings.retain(|finding| !findings.contains(finding));
        findings.append(&mut self.findings);
        self.findings = findings;
    }

    /// Forgets a segment in which the scan found nothing; it can be written again, unless something
    /// should have been in it.
    pub(super) fn take_out(&mut self, disk: &dyn Disk, empty: &Emptied) -> io::Result<()> {
        let id = empty.id;
        self.segments.retain(|segment| segment.id != id);
        match &empty.why_kept {
            Some(why) => self.quarantine(disk, id, why)?,
            None => self.spares.push((id, Shared::segment_path(id))),
        }
        Ok(())
    }

    /// Whether there is nothing here of a journal that was ever written to.
    pub(super) fn is_bare(&self) -> bool {
        self.segments.is_empty() && !self.had_cold
    }

    /// Whether there is history of segments that are gone.
    pub(super) fn has_history(&self) -> bool {
        !self.history.is_empty()
    }

    /// Turns what is not log into spare segments, as many as may be kept.
    pub(super) fn into_pool(self, disk: &dyn Disk, options: &Options) -> io::Result<Pool> {
        let mut pool =
            Pool { next_segment: self.next_segment, history: self.history, ..Pool::default() };
        let spares_max = options.ready_segments + options.spare_segments_max + 1;
        for (id, path) in self.spares {
            let length = match disk.open(&path).and_then(|file| file.length()) {
                Ok(length) => length,
                Err(error) if is_shortage(&error) => return Err(error),
                Err(error) => {
                    // There is nothing in it.
                    events::journal_finding(&format!("{path} is not written again: {error}"));
                    continue;
                }
            };
            let full = length == options.segment_bytes;
            if !full || pool.spares.len() >= spares_max {
                disk.unlink(&path)?;
                continue;
            }
            let spare = format!("segments/{id:012x}.spare");
            if path != spare {
                disk.rename(&path, &spare)?;
            }
            // It may have been made ready and never been written.
            pool.spares.push(Spare { path: spare, filled: false });
        }
        // Before a spare's header may be written anew, its old name must be gone for good.
        disk.sync_dir("segments")?;
        disk.sync_dir("history")?;
        Ok(pool)
    }
}

/// What a checkpoint says is open in a segment, of the peers it speaks about.
pub(super) fn open_in(snapshot: &Snapshot, first: MessageNumber) -> Vec<(PeerId, u64)> {
    let open = |peer: &PeerNote| {
        let touched = peer.touched.iter().find(|touched| touched.first == first)?;
        let open = u64::from(touched.open) + u64::from(touched.parked.len());
        (open > 0).then_some((peer.peer, open))
    };
    snapshot.peers.iter().filter_map(open).collect()
}

/// A file's id and extension.
fn classify(name: &str) -> Option<(u64, &str)> {
    let (stem, extension) = name.split_once('.')?;
    let id = u64::from_str_radix(stem, 16).ok().filter(|_| stem.len() == 12)?;
    Some((id, if extension.ends_with(".tmp") { "tmp" } else { extension }))
}
