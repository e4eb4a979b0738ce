//! The index of one segment: peer by peer where its messages are, every message with its receivers,
//! and the settles and parks written there. In memory while the segment is active and until its file
//! is written; afterwards a checksummed file beside the segment, read piece by piece.
//!
//! ```text
//! file header 48 | fixed part 64 | messages | settle directory | settles, peer by peer
//!                                | directory | refs, peer by peer
//! fixed part: u64 first | u64 next | u64 end of the segment's records | u32 length and u32 CRC-32C of
//!             messages, settle directory and directory | u32 length of the settles | u32 CRC-32C
//! settle directory, 24 bytes a peer: u32 peer | u64 highest number its records cover | u32 offset,
//!             u32 length and u32 CRC-32C of its records among the settles
//! ```
//!
//! The highest number lets a search go past files that cannot hold its answer, however many there are.
//!
//! When the segment is reclaimed, the file is cut after the settles and lives on as its history: what
//! the ledger answers from.

use super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError, be_u32, be_u64, crc32c};
use super::refs::{EMPTY_RUN_BYTES, Messages, Refs};
use super::state::Stage;
use super::storage::{Disk, DiskFile};
use foldhash::HashMap;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{ParkRecord, RecordKind, SettleRecord};
use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

/// Bytes of the part after the file header.
const FIXED_BYTES: usize = 64;
/// Bytes of a directory entry.
const ENTRY_BYTES: usize = 32;
/// Bytes of a settle directory entry.
const SETTLE_ENTRY_BYTES: usize = 24;
/// Bytes of the history of a segment in which there was neither a message nor a settle.
pub(super) const EMPTY_HISTORY_BYTES: u64 = PARTS_FROM + EMPTY_RUN_BYTES as u64;

/// What is known of one segment's contents.
#[derive(Debug, Default)]
pub(super) struct SegmentIndex {
    pub(super) refs: HashMap<PeerId, Refs>,
    pub(super) messages: Messages,
    pub(super) settles: Settles,
}

/// Settle and park records as they stand in the log: `u8 kind | u32 length | body` each.
#[derive(Clone, Debug, Default)]
pub(super) struct Settles {
    bytes: Vec<u8>,
}

/// A settle or a park.
#[derive(Debug)]
pub(super) enum SettleOrPark {
    Settle(SettleRecord),
    Park(ParkRecord),
}

impl Settles {
    pub(super) fn push(&mut self, kind: RecordKind, body: &[u8]) {
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(body);
    }

    pub(super) fn absorb(&mut self, tail: &mut Settles) {
        self.bytes.append(&mut tail.bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The records of one peer, in the order of the log.
    pub(super) fn of(&self, peer: PeerId) -> impl Iterator<Item = SettleOrPark> + '_ {
        let of_peer = self.raw().filter(move |raw| raw.peer == peer.0);
        of_peer.filter_map(|raw| raw.parse())
    }

    /// A copy of the records of one peer, not taken apart.
    pub(super) fn only(&self, peer: PeerId) -> Settles {
        let of_peer = self.raw().filter(|raw| raw.peer == peer.0);
        Settles { bytes: of_peer.flat_map(|raw| raw.whole.iter().copied()).collect() }
    }

    fn raw(&self) -> impl Iterator<Item = Raw<'_>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (head, after) = rest.split_at_checked(SETTLE_HEAD_BYTES)?;
            let (body, after) = after.split_at_checked(be_u32(&head[1..]) as usize)?;
            let whole = &rest[..SETTLE_HEAD_BYTES + body.len()];
            rest = after;
            // Both kinds of record begin with the peer.
            Some(Raw { kind: head[0], peer: be_u32(body), body, whole })
        })
    }

    /// The settle directory and the settles of an index file.
    fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let mut peers: BTreeMap<u32, (MessageNumber, Vec<u8>)> = BTreeMap::new();
        for raw in self.raw() {
            let (highest, bytes) = peers.entry(raw.peer).or_default();
            *highest = (*highest).max(raw.parse().map_or(MessageNumber::MAX, |one| one.highest()));
            bytes.extend_from_slice(raw.whole);
        }
        let (mut directory, mut settles) = (Vec::new(), Vec::new());
        for (peer, (highest, bytes)) in peers {
            directory.extend_from_slice(&peer.to_be_bytes());
            directory.extend_from_slice(&highest.to_be_bytes());
            directory.extend_from_slice(&(settles.len() as u32).to_be_bytes());
            directory.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            directory.extend_from_slice(&crc32c(&bytes).to_be_bytes());
            settles.extend_from_slice(&bytes);
        }
        (directory, settles)
    }
}

/// Bytes before the body of a settle or park.
const SETTLE_HEAD_BYTES: usize = 5;

/// A settle or park as it stands in the bytes.
struct Raw<'a> {
    kind: u8,
    peer: u32,
    body: &'a [u8],
    whole: &'a [u8],
}

impl Raw<'_> {
    fn parse(&self) -> Option<SettleOrPark> {
        if self.kind == RecordKind::Settle as u8 {
            SettleRecord::parse(self.body).map(SettleOrPark::Settle)
        } else {
            ParkRecord::parse(self.body).map(SettleOrPark::Park)
        }
    }
}

impl SettleOrPark {
    /// The highest number it is about.
    fn highest(&self) -> MessageNumber {
        match self {
            SettleOrPark::Settle(settle) => {
                settle.above.iter().copied().fold(settle.floor, MessageNumber::max)
            }
            SettleOrPark::Park(park) => park.number,
        }
    }
}

/// Where a peer's part of an index file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryEntry {
    pub(super) peer: PeerId,
    pub(super) count: u32,
    pub(super) body_bytes: u64,
    /// The peer's newest message in the segment, relative to its first number.
    pub(super) last: u32,
    at: u32,
    length: u32,
    crc: u32,
}

/// What an index file says about its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexFacts {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    /// One past the segment's last number.
    pub(super) next: MessageNumber,
    /// Where the segment's records end.
    pub(super) data_end: u64,
}

/// An index or history file that has been opened: facts checked, parts read when asked for.
pub(super) struct IndexFile {
    file: Arc<dyn DiskFile>,
    pub(super) facts: IndexFacts,
    parts: Parts,
}

#[derive(Clone, Copy, Debug)]
struct Parts {
    messages: u32,
    messages_crc: u32,
    settle_directory: u32,
    settle_directory_crc: u32,
    settles: u32,
    directory: u32,
    directory_crc: u32,
}

const PARTS_FROM: u64 = (FILE_HEADER_BYTES + FIXED_BYTES) as u64;

impl SegmentIndex {
    /// Takes over what was staged behind it, whoever it is for.
    pub(super) fn absorb(&mut self, stage: &mut Stage) {
        for (peer, tail) in &mut stage.refs {
            self.refs.entry(*peer).or_default().absorb(tail);
        }
        stage.touched.clear();
        self.messages.absorb(&mut stage.messages);
        self.settles.absorb(&mut stage.settles);
    }

    /// The bytes of the index file.
    pub(super) fn encode(&self, header: &FileHeader, facts: &IndexFacts) -> Vec<u8> {
        let mut messages = Vec::new();
        self.messages.encode(&mut messages);
        let mut peers: Vec<(&PeerId, &Refs)> = self.refs.iter().collect();
        peers.sort_unstable_by_key(|(peer, _)| **peer);
        let (mut directory, mut blocks) = (Vec::new(), Vec::new());
        for (peer, refs) in peers {
            let at = blocks.len();
            refs.encode(&mut blocks);
            directory.extend_from_slice(&peer.0.to_be_bytes());
            directory.extend_from_slice(&refs.count().to_be_bytes());
            directory.extend_from_slice(&refs.body_bytes.to_be_bytes());
            directory.extend_from_slice(&refs.last().to_be_bytes());
            directory.extend_from_slice(&(at as u32).to_be_bytes());
            directory.extend_from_slice(&((blocks.len() - at) as u32).to_be_bytes());
            directory.extend_from_slice(&crc32c(&blocks[at..]).to_be_bytes());
        }
        let (settle_directory, settles) = self.settles.encode();
        let mut fixed = Vec::with_capacity(FIXED_BYTES);
        for value in [facts.first, facts.next, facts.data_end] {
            fixed.extend_from_slice(&value.to_be_bytes());
        }
        for part in [&messages, &settle_directory, &directory] {
            fixed.extend_from_slice(&(part.len() as u32).to_be_bytes());
            fixed.extend_from_slice(&crc32c(part).to_be_bytes());
        }
        fixed.extend_from_slice(&(settles.len() as u32).to_be_bytes());
        fixed.resize(FIXED_BYTES - 4, 0);
        fixed.extend_from_slice(&crc32c(&fixed).to_be_bytes());
        let head = header.encode();
        [&head[..], &fixed, &messages, &settle_directory, &settles, &directory, &blocks].concat()
    }
}

impl IndexFile {
    /// Opens the index file at `path` and checks its fixed part.
    pub(super) fn open(disk: &dyn Disk, path: &str) -> Result<IndexFile, IndexError> {
        let file = disk.open(path)?;
        let head = read_exactly(&*file, 0, FILE_HEADER_BYTES + FIXED_BYTES)?;
        let header = FileHeader::parse(FileKind::Index, &head).map_err(IndexError::Header)?;
        let fixed = &head[FILE_HEADER_BYTES..];
        if crc32c(&fixed[..FIXED_BYTES - 4]) != be_u32(&fixed[FIXED_BYTES - 4..]) {
            return Err(IndexError::Damaged("its fixed part"));
        }
        let facts = IndexFacts {
            id: header.id,
            first: be_u64(fixed),
            next: be_u64(&fixed[8..]),
            data_end: be_u64(&fixed[16..]),
        };
        let parts = Parts {
            messages: be_u32(&fixed[24..]),
            messages_crc: be_u32(&fixed[28..]),
            settle_directory: be_u32(&fixed[32..]),
            settle_directory_crc: be_u32(&fixed[36..]),
            directory: be_u32(&fixed[40..]),
            directory_crc: be_u32(&fixed[44..]),
            settles: be_u32(&fixed[48..]),
        };
        Ok(IndexFile { file, facts, parts })
    }

    fn part(&self, at: u64, len: u32, crc: u32, name: &'static str) -> Result<Vec<u8>, IndexError> {
        let bytes = read_exactly(&*self.file, at, len as usize)?;
        if crc32c(&bytes) == crc { Ok(bytes) } else { Err(IndexError::Damaged(name)) }
    }

    /// Every message of the segment.
    pub(super) fn messages(&self) -> Result<Messages, IndexError> {
        let bytes =
            self.part(PARTS_FROM, self.parts.messages, self.parts.messages_crc, "its messages")?;
        Messages::decode(&bytes).ok_or(IndexError::Damaged("its messages"))
    }

    /// A peer's settles and parks, in the order of the log; none if they are all about messages below
    /// `number`.
    pub(super) fn settles_of(
        &self,
        peer: PeerId,
        number: MessageNumber,
    ) -> Result<Vec<SettleOrPark>, IndexError> {
        let directory = self.settle_directory()?;
        let mut entries = directory.chunks_exact(SETTLE_ENTRY_BYTES);
        let entry = entries.find(|entry| be_u32(entry) == peer.0 && be_u64(&entry[4..]) >= number);
        let Some(entry) = entry else { return Ok(Vec::new()) };
        Ok(self.settles_at(entry)?.of(peer).collect())
    }

    /// The parks of every peer, but for those whose part is damaged.
    pub(super) fn parks(&self) -> Result<Vec<ParkRecord>, IndexError> {
        let mut parks = Vec::new();
        for entry in self.settle_directory()?.chunks_exact(SETTLE_ENTRY_BYTES) {
            let settles = match self.settles_at(entry) {
                Ok(settles) => settles,
                Err(error @ IndexError::Io(_)) => return Err(error),
                Err(_) => continue,
            };
            parks.extend(settles.raw().filter_map(|raw| match raw.parse()? {
                SettleOrPark::Park(park) => Some(park),
                SettleOrPark::Settle(_) => None,
            }));
        }
        Ok(parks)
    }

    fn settle_directory(&self) -> Result<Vec<u8>, IndexError> {
        let at = PARTS_FROM + u64::from(self.parts.messages);
        let (len, crc) = (self.parts.settle_directory, self.parts.settle_directory_crc);
        self.part(at, len, crc, "its settle directory")
    }

    /// The records that this entry of the settle directory is about.
    fn settles_at(&self, entry: &[u8]) -> Result<Settles, IndexError> {
        let Parts { messages, settle_directory, .. } = self.parts;
        let at = PARTS_FROM + u64::from(messages) + u64::from(settle_directory);
        let at = at + u64::from(be_u32(&entry[12..]));
        let bytes = self.part(at, be_u32(&entry[16..]), be_u32(&entry[20..]), "its settles")?;
        Ok(Settles { bytes })
    }

    /// Who has messages in the segment, by peer.
    pub(super) fn directory(&self) -> Result<Vec<DirectoryEntry>, IndexError> {
        let at = self.history_bytes();
        let bytes =
            self.part(at, self.parts.directory, self.parts.directory_crc, "its directory")?;
        let entry = |bytes: &[u8]| DirectoryEntry {
            peer: PeerId(be_u32(bytes)),
            count: be_u32(&bytes[4..]),
            body_bytes: be_u64(&bytes[8..]),
            last: be_u32(&bytes[16..]),
            at: be_u32(&bytes[20..]),
            length: be_u32(&bytes[24..]),
            crc: be_u32(&bytes[28..]),
        };
        Ok(bytes.chunks_exact(ENTRY_BYTES).map(entry).collect())
    }

    /// The messages of the peer this entry of the directory is about.
    pub(super) fn refs(&self, entry: &DirectoryEntry) -> Result<Refs, IndexError> {
        let blocks = self.history_bytes() + u64::from(self.parts.directory);
        let at = blocks + u64::from(entry.at);
        let bytes = self.part(at, entry.length, entry.crc, "a peer's messages")?;
        Refs::decode(&bytes).ok_or(IndexError::Damaged("a peer's messages"))
    }

    /// Length of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.file.length().unwrap_or(0)
    }

    /// Checks the settles of every peer.
    pub(super) fn check_settles(&self) -> Result<(), IndexError> {
        let directory = self.settle_directory()?;
        let mut entries = directory.chunks_exact(SETTLE_ENTRY_BYTES);
        entries.try_for_each(|entry| self.settles_at(entry).map(drop))
    }

    /// Length to which the file is cut when it becomes history.
    pub(super) fn history_bytes(&self) -> u64 {
        let Parts { messages, settle_directory, settles, .. } = self.parts;
        PARTS_FROM + u64::from(messages) + u64::from(settle_directory) + u64::from(settles)
    }
}

/// Why an index cannot be used. It can be built again from its segment.
#[derive(Debug)]
pub(super) enum IndexError {
    /// It cannot be read, which may pass; a file that is not there is here too.
    Io(io::Error),
    Header(HeaderError),
    Damaged(&'static str),
    /// It ends before its last byte.
    Short,
}

impl From<io::Error> for IndexError {
    fn from(error: io::Error) -> IndexError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => IndexError::Short,
            _ => IndexError::Io(error),
        }
    }
}

impl std::fmt::Display for IndexError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IndexError::Io(error) => error.fmt(f),
            IndexError::Header(HeaderError::Newer(version)) => {
                write!(f, "its format version {version} is newer than this program")
            }
            IndexError::Header(HeaderError::Damaged(what)) => f.write_str(what),
            IndexError::Damaged(what) => write!(f, "{what} do not match the checksum"),
            IndexError::Short => f.write_str("it is cut short"),
        }
    }
}

/// Reads exactly `len` bytes; [`io::ErrorKind::UnexpectedEof`] from a file that ends before.
pub(super) fn read_exactly(file: &dyn DiskFile, at: u64, len: usize) -> io::Result<Vec<u8>> {
    // The length may come from a damaged file: never allocate beyond what the file can hold.
    if at.saturating_add(len as u64) > file.length()? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = Vec::with_capacity(len);
    if file.read_at(at, len, &mut bytes)? < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Writes a whole file under a temporary name, syncs it, and gives it its name. The caller syncs the
/// directory.
pub(super) fn replace_file(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{path}.tmp");
    let write = || {
        let file = disk.create(&temporary)?;
        file.write_at(&[IoSlice::new(bytes)], 0)?;
        file.sync()?;
        disk.rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // What is left of it would hold room that may be the very thing that is missing.
        let _ = disk.unlink(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::super::storage::sim::SimDisk;
    use super::*;
    use restante_actors::journal::Settle;
    use restante_protocol::id::NodeTag;

    #[test]
    fn a_search_reads_only_the_settles_that_may_be_about_its_message() {
        let mut index = SegmentIndex::default();
        let mut push = |peer: u32, floor: u64, numbers: &[u64]| {
            let mut body = Vec::new();
            Settle::acked(PeerId(peer), 5, floor, numbers.to_vec()).record.encode(&mut body);
            index.settles.push(RecordKind::Settle, &body);
        };
        push(2, 10, &[9, 10, 14]);
        push(1, 40, &[40]);
        push(2, 12, &[11, 12]);
        let header = FileHeader {
            kind: FileKind::Index,
            epoch: 1,
            node: NodeTag(3),
            id: 1,
            created_ms: 5,
            seed: 1,
        };
        let facts = IndexFacts { id: 1, first: 1, next: 100, data_end: 4096 };
        let disk = SimDisk::new(1 << 20);
        disk.make_dir("").unwrap();
        replace_file(&disk, "x", &index.encode(&header, &facts)).unwrap();
        let floors = |file: &IndexFile, peer, number| -> Vec<u64> {
            let all = file.settles_of(PeerId(peer), number).unwrap();
            let floor = |one: SettleOrPark| match one {
                SettleOrPark::Settle(settle) => settle.floor,
                SettleOrPark::Park(_) => 0,
            };
            all.into_iter().map(floor).collect()
        };
        let file = IndexFile::open(&disk, "x").unwrap();
        assert_eq!(floors(&file, 2, 14), [10, 12]);
        assert_eq!(floors(&file, 1, 7), [40]);
        assert!(floors(&file, 2, 15).is_empty() && floors(&file, 3, 1).is_empty());
        // With its settles damaged, only those who need them notice.
        let end = file.history_bytes() as usize;
        disk.damage("x", |bytes| bytes[end - 1] ^= 1);
        let file = IndexFile::open(&disk, "x").unwrap();
        assert!(file.settles_of(PeerId(2), 14).is_err());
        assert!(floors(&file, 2, 15).is_empty());
        assert_eq!(floors(&file, 1, 7), [40]);
    }
}
