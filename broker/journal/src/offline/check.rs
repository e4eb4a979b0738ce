//! Reading every byte of a data directory and saying what is wrong with it. Nothing is changed.

use super::super::checkpoint::Snapshot;
use super::super::error::OpenError;
use super::super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError, Seed, is_cold};
use super::super::history;
use super::super::index::{IndexError, IndexFile};
use super::super::segment::read_header;
use super::super::shared::Shared;
use super::super::survey::{Flaw, FlawKind, Survey, survey};
use super::{Offline, read_whole};
use restante_protocol::id::{MessageNumber, PeerId};
use std::io;
use std::path::Path;

/// What a directory was found to be.
#[derive(Debug, Default)]
pub struct Report {
    /// Whose journal it is.
    pub node: u16,
    /// Every file with what it holds.
    pub files: Vec<File>,
    /// Everything that is not as it should be.
    pub problems: Vec<Problem>,
    /// One past the last record.
    pub next: MessageNumber,
    /// Whether a node could be started from it.
    pub usable: bool,
}

/// One file.
#[derive(Debug, Default)]
pub struct File {
    /// Its path within the directory.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Where its records end, if it has any.
    pub end: u64,
    /// Numbers of its first and last record.
    pub numbers: Option<(MessageNumber, MessageNumber)>,
    /// Records in it.
    pub records: u64,
    /// Messages among them.
    pub messages: u64,
    /// What it is, in a word.
    pub verdict: Verdict,
}

/// What a file is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// As it was written.
    #[default]
    Sound,
    /// Made ready and not used yet.
    Ready,
    /// Used, and let go by the checkpoint.
    Dead,
    /// Ends in a commit that was never confirmed; the next start cuts it.
    Torn,
    /// Not as it was written.
    Damaged,
    /// Another journal's.
    Foreign,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Verdict::Sound => "sound",
            Verdict::Ready => "ready",
            Verdict::Dead => "dead",
            Verdict::Torn => "torn",
            Verdict::Damaged => "damaged",
            Verdict::Foreign => "foreign",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Default)]
pub struct Problem {
    /// In which file.
    pub path: String,
    /// Where in it.
    pub at: Option<u64>,
    /// The numbers of the records concerned: first and last.
    pub numbers: Option<(MessageNumber, MessageNumber)>,
    /// What it is.
    pub what: String,
    /// Messages that are damaged, by receiver, as far as anything tells.
    pub receivers: Vec<(PeerId, u64)>,
    /// Whether `receivers` is all there is to tell. If not, there may be more.
    pub complete: bool,
}

/// Reads and checks everything in `dir`.
///
/// # Errors
/// When it cannot be looked at: in use, unreadable, of a newer version, or no journal at all.
pub fn check(dir: &Path) -> Result<Report, OpenError> {
    run(&Offline::read_only(dir)?)
}

pub(crate) fn run(offline: &Offline) -> Result<Report, OpenError> {
    let mut check = Check {
        offline,
        report: Report { node: offline.node.0, ..Report::default() },
        snapshot: None,
        before: None,
        gaps: false,
        refused: false,
    };
    if let Some(flaw) = &offline.lock_flaw {
        check.problem("lock", None, format!("{flaw}; the segments know whose they are"));
    }
    check.checkpoints();
    check.segments()?;
    check.history()?;
    Ok(check.report)
}

struct Check<'a> {
    offline: &'a Offline,
    report: Report,
    snapshot: Option<Snapshot>,
    /// The last segment so far that has records: its place in the report and one past its last number.
    before: Option<(usize, MessageNumber)>,
    gaps: bool,
    /// Whether there is a record that an opening reads and does not understand.
    refused: bool,
}

impl Check<'_> {
    fn problem(&mut self, path: &str, at: Option<u64>, what: String) {
        let (path, numbers, receivers, complete) = (path.to_owned(), None, Vec::new(), true);
        self.report.problems.push(Problem { path, at, numbers, what, receivers, complete });
    }

    fn checkpoints(&mut self) {
        for (path, read) in self.offline.checkpoints() {
            let bytes = read_whole(&*self.offline.disk, path, u64::MAX);
            let bytes = bytes.map_or(0, |bytes| bytes.len() as u64);
            let mut file = File { path: path.to_owned(), bytes, ..File::default() };
            match read {
                Ok((snapshot, _)) => {
                    let newest = self.snapshot.as_ref().map_or(0, |newest| newest.position);
                    if snapshot.position > newest {
                        self.snapshot = Some(snapshot);
                    }
                }
                Err(what) => {
                    file.verdict = Verdict::Damaged;
                    self.problem(path, None, what);
                }
            }
            self.report.files.push(file);
        }
    }

    fn segments(&mut self) -> Result<(), OpenError> {
        let (ids, others) = self.offline.ids("segments", "seg")?;
        for other in others {
            self.problem(&other, None, "it is not a journal's file".to_owned());
        }
        let noted = self.snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.segments);
        let newest = noted.iter().map(|note| note.id).filter(|id| !is_cold(*id)).max().unwrap_or(0);
        let dead: Vec<u64> = ids
            .iter()
            .copied()
            .filter(|id| *id < newest || (is_cold(*id) && newest > 0))
            .filter(|id| noted.iter().all(|note| note.id != *id))
            .collect();
        let least = |place| match &self.snapshot {
            Some(snapshot) if snapshot.is_least(place) => "at least ",
            _ => "",
        };
        let missing: Vec<_> = (0..)
            .zip(noted)
            .filter(|(_, note)| !ids.contains(&note.id))
            .map(|(place, note)| (*note, least(place)))
            .collect();
        for (note, least) in &missing {
            let what = format!(
                "it is missing; {least}{} deliveries from record {} on were open in it",
                note.live, note.first
            );
            let receivers = self.touched(note.first);
            let problem = Problem {
                path: Shared::segment_path(note.id),
                what,
                receivers,
                ..Problem::default()
            };
            self.report.problems.push(problem);
        }
        for id in ids {
            if dead.contains(&id) {
                let path = Shared::segment_path(id);
                self.report.files.push(File { path, verdict: Verdict::Dead, ..File::default() });
                continue;
            }
            self.segment(id)?;
        }
        self.report.next = self.before.map_or(1, |(_, next)| next);
        let first = self.report.files.iter().find_map(|file| Some(file.numbers?.0)).unwrap_or(1);
        let is_known = self.snapshot.is_some() || (first <= 1 && !self.gaps);
        self.report.usable = is_known && !self.refused;
        if !is_known {
            let what = "there is no sound checkpoint, and the log does not go back to its beginning: \
                        a node does not start from this; restore a backup";
            self.problem("checkpoint", None, what.to_owned());
        }
        Ok(())
    }

    /// What the checkpoint says is open in a segment, of the peers it speaks about.
    fn touched(&self, first: MessageNumber) -> Vec<(PeerId, u64)> {
        let peers = self.snapshot.iter().flat_map(|snapshot| &snapshot.peers);
        let open = peers.flat_map(|peer| {
            let touched = peer.touched.iter().filter(|touched| touched.first == first);
            touched.map(|touched| {
                (peer.peer, u64::from(touched.open) + u64::from(touched.parked.len()))
            })
        });
        open.filter(|(_, open)| *open > 0).collect()
    }

    fn segment(&mut self, id: u64) -> Result<(), OpenError> {
        let path = Shared::segment_path(id);
        let disk = &*self.offline.disk;
        let io = |error| OpenError::io(&disk.describe(&path), error);
        let file = disk.open(&path).map_err(io)?;
        let bytes = file.length().map_err(io)?;
        let mut line = File { path: path.clone(), bytes, ..File::default() };
        let header = read_header(&*file).map_err(io)?;
        let foreign = match header {
            Err(newer @ HeaderError::Newer(_)) => return Err(newer.for_file(&disk.describe(&path))),
            Err(HeaderError::Damaged(what)) => {
                line.verdict = Verdict::Damaged;
                self.problem(&path, Some(0), what.to_owned());
                None
            }
            Ok(header) if !self.offline.is_ours(&header) => {
                Some(format!("it was written by node {:04x}", header.node.0))
            }
            Ok(header) if header.id != id => {
                Some(format!("it is segment {:x} under another's name", header.id))
            }
            Ok(_) => None,
        };
        if let Some(what) = foreign {
            line.verdict = Verdict::Foreign;
            self.problem(&path, None, what);
            self.report.files.push(line);
            return Ok(());
        }
        let index = self.index(id)?;
        let noted = self
            .snapshot
            .as_ref()
            .and_then(|snapshot| Some(snapshot.segments.iter().find(|note| note.id == id)?.first));
        let facts = index.as_ref().map(|index| index.facts);
        let first = facts.map(|facts| facts.first).or(noted);
        let seed = Seed::new(self.offline.seed, id);
        let found = survey(&file, seed, first, facts.map(|facts| facts.data_end), |_| {});
        let found = found.map_err(io)?;
        self.judge(id, line, found, index)
    }

    /// Opens a segment's index and checks its parts; `None` if there is none or it is damaged.
    fn index(&mut self, id: u64) -> Result<Option<IndexFile>, OpenError> {
        let path = Shared::index_path(id);
        match IndexFile::open(&*self.offline.disk, &path) {
            Ok(index) => match check_parts(&index) {
                Ok(()) if index.facts.id == id => return Ok(Some(index)),
                Ok(()) => {
                    let what = format!("it is the index of segment {:x}", index.facts.id);
                    self.problem(&path, None, what);
                }
                Err(error) => self.problem(&path, None, error.to_string()),
            },
            Err(IndexError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(IndexError::Header(newer @ HeaderError::Newer(_))) => {
                return Err(newer.for_file(&self.offline.disk.describe(&path)));
            }
            Err(error) => self.problem(&path, None, error.to_string()),
        }
        Ok(None)
    }

    fn judge(
        &mut self,
        id: u64,
        mut line: File,
        found: Survey,
        index: Option<IndexFile>,
    ) -> Result<(), OpenError> {
        let path = line.path.clone();
        let (position, synced) =
            self.snapshot.as_ref().map_or((1, 1), |known| (known.position, known.synced));
        if found.records == 0 && found.flaws.is_empty() && index.is_none() {
            let noted = found.first > 0;
            line.verdict = if noted { Verdict::Damaged } else { Verdict::Ready };
            if noted {
                self.problem(&path, None, "no record can be found in it".to_owned());
            }
            self.report.files.push(line);
            return Ok(());
        }
        if !is_cold(id) {
            self.join(found.first, position);
        }
        let messages = match &index {
            Some(index) => index.messages().unwrap_or_default(),
            None => found.index.messages.clone(),
        };
        for Flaw { at, what } in &found.flaws {
            let (what, numbers, complete) = match what {
                FlawKind::Hole { first, .. }
                    if index.is_none() && *first >= found.synced.max(synced) =>
                {
                    line.verdict = Verdict::Torn;
                    continue;
                }
                FlawKind::Hole { to, first, next } => {
                    let next = index.as_ref().map_or(*next, |index| match next == first {
                        true => index.facts.next,
                        false => *next,
                    });
                    let last = next.max(first + 1) - 1;
                    let what = format!("{} bytes are no records", to - at);
                    (what, (*first, last), index.is_some())
                }
                FlawKind::BadPayload(number) => {
                    ("a payload does not match its checksum".to_owned(), (*number, *number), true)
                }
                FlawKind::Strange { number, kind } => {
                    // An opening reads what the checkpoint does not cover, and what has no index.
                    let covered = index.as_ref().is_some_and(|index| index.facts.next <= position);
                    self.refused |= !covered;
                    let what = format!(
                        "a record of kind {kind} is sound and not understood: a newer version wrote it"
                    );
                    (what, (*number, *number), true)
                }
                FlawKind::Misplaced { number } => {
                    ("a record does not belong in this place".to_owned(), (*number, *number), true)
                }
            };
            line.verdict = Verdict::Damaged;
            let receivers = messages.receivers(found.first, numbers.0, numbers.1 + 1);
            let (path, at, numbers) = (path.clone(), Some(*at), Some(numbers));
            self.report.problems.push(Problem { path, at, numbers, what, receivers, complete });
        }
        if let Some(index) = index.filter(|_| line.verdict == Verdict::Sound) {
            match is_cold(id) {
                true => self.compare_cold(&found, &index),
                false => self.compare(&found, &index),
            }
        }
        line.numbers = (found.next > found.first).then(|| (found.first, found.next - 1));
        (line.records, line.messages, line.end) = (found.records, found.messages, found.data_end);
        if !is_cold(id) {
            self.before = Some((self.report.files.len(), found.next.max(found.first)));
        }
        self.report.files.push(line);
        Ok(())
    }

    /// Whether a segment that begins with `first` goes on where the one before ended.
    fn join(&mut self, first: MessageNumber, position: MessageNumber) {
        let (place, next) = match self.before {
            Some((place, next)) => (Some(place), next),
            None => (None, position),
        };
        let from = next.max(position);
        if first <= from {
            return;
        }
        self.gaps = true;
        let path = place
            .map_or_else(|| "segments".to_owned(), |place| self.report.files[place].path.clone());
        let what = "the records that follow it are missing".to_owned();
        let numbers = Some((from, first - 1));
        self.report.problems.push(Problem { path, numbers, what, ..Problem::default() });
    }

    /// Holds a sound index against the segment it is about.
    fn compare(&mut self, found: &Survey, index: &IndexFile) {
        let path = Shared::index_path(index.facts.id);
        let stored = read_whole(&*self.offline.disk, &path, u64::MAX).unwrap_or_default();
        let Ok(header) = FileHeader::parse(FileKind::Index, &stored) else { return };
        let built = found.index.encode(&header, &index.facts);
        if built[FILE_HEADER_BYTES..] != stored[FILE_HEADER_BYTES..]
            || found.next != index.facts.next
        {
            self.problem(&path, None, "it does not agree with its segment".to_owned());
        }
    }

    /// Holds the sound index of a copy against it: it has every message, and each only for those for
    /// whom it was still live.
    fn compare_cold(&mut self, found: &Survey, index: &IndexFile) {
        let agrees = || -> Result<bool, IndexError> {
            let stored = index.messages()?;
            let mut agrees =
                stored.between(0, u32::MAX).eq(found.index.messages.between(0, u32::MAX));
            for entry in index.directory()? {
                let refs = index.refs(&entry)?;
                let all = found.index.refs.get(&entry.peer);
                let mut all = all.into_iter().flat_map(|all| all.from(0));
                agrees &= refs.count() == entry.count
                    && refs.from(0).all(|one| all.any(|other| other == one));
            }
            Ok(agrees)
        };
        if !agrees().unwrap_or(false) {
            let path = Shared::index_path(index.facts.id);
            self.problem(&path, None, "it does not agree with its segment".to_owned());
        }
    }

    fn history(&mut self) -> Result<(), OpenError> {
        let (notes, others) = self.offline.history()?;
        for other in others {
            self.problem(&other, None, "it is not a journal's file".to_owned());
        }
        for (id, kept_ms, keeps) in notes {
            let path = history::path(id, kept_ms, keeps);
            let mut line = File { path: path.clone(), ..File::default() };
            let opened = IndexFile::open(&*self.offline.disk, &path);
            match opened
                .and_then(|index| index.messages().and(index.check_settles()).map(|()| index))
            {
                Ok(index) => {
                    line.bytes = index.bytes();
                    line.numbers = Some((index.facts.first, index.facts.next.max(1) - 1));
                }
                Err(error) => {
                    line.verdict = Verdict::Damaged;
                    self.problem(&path, None, error.to_string());
                }
            }
            self.report.files.push(line);
        }
        Ok(())
    }
}

/// Checks every part of an index against its checksum.
pub(super) fn check_parts(index: &IndexFile) -> Result<(), IndexError> {
    index.messages()?;
    index.check_settles()?;
    index.directory()?.iter().try_for_each(|entry| index.refs(entry).map(drop))
}
