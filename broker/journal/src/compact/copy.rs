//! Copying the live messages of a run of segments into one file, a slice at a time.
//!
//! What is live is asked of the state when a source's turn comes; what is settled after that is copied
//! for nothing, and known to be settled when the state changes over.

use super::super::format::{
    FileKind, RecordError, RecordHeader, SEGMENT_HEADER_BYTES, Seed, record_bytes,
};
use super::super::held::Held;
use super::super::index::{IndexError, IndexFile, SegmentIndex};
use super::super::keeper::CHECKPOINT_PATHS;
use super::super::reader::extents;
use super::super::refs::{Ref, Refs};
use super::super::room::Purpose;
use super::super::shared::Shared;
use super::super::storage::{DiskFile, is_full};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{
    MESSAGE_FIXED_BYTES, MessageRecord, RECORD_HEADER_BYTES, RecordKind,
};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes copied and synced in one slice, about: a commit waits for no more than that.
const SLICE_BYTES: usize = 1024 * 1024;
/// Numbers looked at together.
const WINDOW_NUMBERS: u32 = 2048;

/// A copy under way.
pub(super) struct Copying {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    pub(super) sources: Vec<u64>,
    pub(super) temporary: String,
    /// Length of the copy so far.
    pub(super) written: u64,
    pub(super) index: SegmentIndex,
    file: Arc<dyn DiskFile>,
    seed: Seed,
    /// Sources that have been copied wholly.
    done: usize,
    live: Option<Live>,
    /// Records on their way to the file.
    buffer: Vec<u8>,
}

/// Why a copy cannot go on.
#[derive(Debug)]
pub(super) enum Unmovable {
    /// What is written cannot be: the disk failed, or it is full.
    Io(io::Error),
    /// A record or the index of this segment cannot be read, or nothing can be opened to copy it
    /// to. Everything is where it was.
    Source(u64, String),
}

impl From<io::Error> for Unmovable {
    fn from(error: io::Error) -> Unmovable {
        Unmovable::Io(error)
    }
}

impl Copying {
    /// Creates the file, with room for `bytes`. All `sources` are sealed neighbours, in order.
    pub(super) fn begin(
        shared: &Shared,
        id: u64,
        sources: Vec<u64>,
        bytes: u64,
    ) -> Result<Copying, Unmovable> {
        let range = {
            let state = shared.state.lock();
            let mut found = state.segments.iter().filter(|s| sources.contains(&s.id));
            let first = found.next();
            first.and_then(|first| Some((first.first, found.next_back().unwrap_or(first).next?)))
        };
        let none = || Unmovable::Source(id, "there is nothing to be copied".to_owned());
        let ((first, next), first_source) = range.zip(sources.first()).ok_or_else(none)?;
        let temporary = format!("segments/{id:012x}.new");
        // So that a full disk never strikes inside a copy, and nobody else takes the room that was
        // given up for it.
        // What the copy does not use is cut off at its end, and is there for the checkpoint behind which
        // the sources go, one of its files after the other. Where there is no room for that too, nothing
        // is given up yet: the checkpoint gives up what it needs when its turn comes.
        let checkpoint_bytes = shared.checkpoint_bytes.load(Ordering::Relaxed);
        let room = bytes + checkpoint_bytes / CHECKPOINT_PATHS.len() as u64;
        let begin = || {
            let file = shared.disk.create(&temporary)?;
            match file.allocate(room) {
                Err(error) if is_full(&error) => file.allocate(bytes),
                allocated => allocated,
            }
            .map(|()| file)
        };
        let attempt = || {
            begin().inspect_err(|_| {
                let _ = shared.disk.unlink(&temporary);
            })
        };
        let file = shared.with_room(Purpose::Copy, attempt).map_err(|error| {
            if is_full(&error) {
                return Unmovable::Io(error);
            }
            Unmovable::Source(*first_source, format!("no copy of it can be begun: {error}"))
        })?;
        let mut buffer = shared.header(FileKind::Segment, id).encode().to_vec();
        buffer.resize(SEGMENT_HEADER_BYTES as usize, 0);
        Ok(Copying {
            id,
            first,
            next,
            sources,
            temporary,
            written: 0,
            index: SegmentIndex::default(),
            file,
            seed: Seed::new(shared.seed, id),
            done: 0,
            live: None,
            buffer,
        })
    }

    /// Copies and syncs about [`SLICE_BYTES`]; says whether all is copied.
    pub(super) fn slice(&mut self, shared: &Shared) -> Result<bool, Unmovable> {
        while self.buffer.len() < SLICE_BYTES && self.done < self.sources.len() {
            self.window(shared)?;
        }
        self.file.write_at(&[IoSlice::new(&self.buffer)], self.written)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        let is_done = self.done == self.sources.len();
        if is_done && self.file.length()? > self.written {
            self.file.truncate(self.written)?;
        }
        self.file.sync()?;
        Ok(is_done)
    }

    /// Takes the next numbers of the present source.
    fn window(&mut self, shared: &Shared) -> Result<(), Unmovable> {
        let source = self.sources[self.done];
        let mut live = match self.live.take() {
            Some(live) if live.is_there(shared) => live,
            _ => match Live::load(shared, source) {
                Ok(Some(live)) => {
                    self.take_parks(shared, &live)?;
                    live
                }
                // It was given back in the meantime: nothing in it is live.
                Ok(None) => {
                    self.done += 1;
                    return Ok(());
                }
                Err(why) => return Err(Unmovable::Source(source, why.to_string())),
            },
        };
        let window = live.take_window();
        self.copy(shared, &live, &window)?;
        if live.is_at_end() {
            self.done += 1;
        } else {
            self.live = Some(live);
        }
        Ok(())
    }

    /// Why messages are parked stands in later segments, which go before these do: it is taken along in
    /// the index.
    fn take_parks(&mut self, shared: &Shared, live: &Live) -> Result<(), Unmovable> {
        for LivePeer { peer, held, .. } in &live.peers {
            let parked =
                held.parked().iter().map(|number| live.first + u64::from(number)).collect();
            let parks = shared.park_records(*peer, parked).map_err(|error| {
                Unmovable::Source(live.id, format!("why messages are parked: {error}"))
            })?;
            for park in parks {
                let mut body = Vec::new();
                park.encode(&mut body);
                self.index.settles.push(RecordKind::Park, &body);
            }
        }
        Ok(())
    }

    fn copy(&mut self, shared: &Shared, live: &Live, window: &[Entry]) -> Result<(), Unmovable> {
        if window.is_empty() {
            return Ok(());
        }
        let mut refs: Vec<Ref> = window.iter().map(|entry| entry.at).collect();
        refs.dedup();
        let unreadable = |why: &dyn std::fmt::Display| Unmovable::Source(live.id, why.to_string());
        let file = shared.segment_file(live.id).map_err(|error| unreadable(&error))?;
        let seed = Seed::new(shared.seed, live.id);
        let mut rest = window;
        for extent in extents(&refs) {
            let len = (extent.to - extent.from) as usize;
            let mut bytes = Vec::with_capacity(len);
            let read = file.read_at(extent.from, len, &mut bytes);
            read.map_err(|error| unreadable(&error))?;
            for at in extent.refs {
                let from = (u64::from(at.offset) - extent.from) as usize;
                let to = from + record_bytes(at.length as usize);
                let number = live.first + u64::from(at.number);
                let same = rest.partition_point(|entry| entry.at.number <= at.number);
                let (of_this, others) = rest.split_at(same);
                rest = others;
                let taken = bytes.get(from..to);
                let taken = taken.and_then(|record| self.take(seed, number, record, of_this));
                taken.ok_or_else(|| unreadable(&format_args!("record {number} is damaged")))?;
            }
        }
        Ok(())
    }

    /// Adds one record; `None` if it is not what it should be. One whose payload is damaged is taken
    /// as it is: whoever reads it will see that, here as there.
    fn take(
        &mut self,
        seed: Seed,
        number: MessageNumber,
        record: &[u8],
        receivers: &[Entry],
    ) -> Option<()> {
        let header = match RecordHeader::check(seed, record) {
            Ok(header) | Err(RecordError::BadPayload(header)) => header,
            Err(RecordError::NotARecord) => return None,
        };
        if header.number != number || record_bytes(header.length as usize) != record.len() {
            return None;
        }
        let message = MessageRecord::parse(&record[RECORD_HEADER_BYTES..])?;
        let body_bytes = header.length - (MESSAGE_FIXED_BYTES + message.receivers.len()) as u32;
        let offset = (self.written + self.buffer.len() as u64) as u32;
        let number = (number - self.first) as u32;
        let at = Ref { number, offset, length: header.length };
        for receiver in receivers {
            self.index.refs.entry(receiver.peer).or_default().push(at, body_bytes);
        }
        let peers = message.peers().map(|peer| peer.0);
        self.index.messages.push(number, offset, message.accepted_ms, peers);
        let from = self.buffer.len();
        self.buffer.extend_from_slice(record);
        header.seal_again(self.seed, &mut self.buffer[from..]);
        Some(())
    }
}

/// A live message of one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    at: Ref,
    peer: PeerId,
}

/// What was live of a segment when it was loaded.
pub(super) struct Live {
    id: u64,
    first: MessageNumber,
    peers: Vec<LivePeer>,
    /// Numbers below this have been taken, relative to `first`.
    taken: u32,
    /// The highest number of all.
    last: u32,
}

struct LivePeer {
    peer: PeerId,
    floor: MessageNumber,
    held: Held,
    refs: Refs,
}

impl Live {
    /// What is live of the segment `id` now; `None` if there is no such segment any more.
    pub(super) fn load(shared: &Shared, id: u64) -> Result<Option<Live>, IndexError> {
        let index = match IndexFile::open(&*shared.disk, &Shared::index_path(id)) {
            Ok(index) => index,
            Err(error) => {
                let gone = shared.state.lock().segments.iter().all(|segment| segment.id != id);
                return if gone { Ok(None) } else { Err(error) };
            }
        };
        let directory = index.directory()?;
        let first = index.facts.first;
        let mut peers = Vec::new();
        {
            let state = shared.state.lock();
            if state.segment(first).is_none_or(|segment| segment.id != id) {
                return Ok(None);
            }
            for entry in &directory {
                let Some(peer) = state.peers.get(&entry.peer) else { continue };
                let Ok(place) = peer.held.binary_search_by_key(&first, |held| held.first) else {
                    continue;
                };
                let held = peer.held[place].clone();
                if !held.is_done() {
                    peers.push((*entry, peer.floor, held));
                }
            }
        }
        let peers = peers
            .into_iter()
            .map(|(entry, floor, held)| {
                Ok(LivePeer { peer: entry.peer, floor, held, refs: index.refs(&entry)? })
            })
            .collect::<Result<Vec<_>, IndexError>>()?;
        let last = peers.iter().map(|peer| (peer.held.last() - first) as u32).max().unwrap_or(0);
        Ok(Some(Live { id, first, peers, taken: 0, last }))
    }

    /// Whether the segment is still there: between two slices it may have been settled and given back.
    fn is_there(&self, shared: &Shared) -> bool {
        shared.state.lock().segment(self.first).is_some_and(|segment| segment.id == self.id)
    }

    /// Bytes of the live records, each message once.
    pub(super) fn record_bytes(mut self) -> u64 {
        let mut bytes = SEGMENT_HEADER_BYTES;
        while !self.is_at_end() {
            let mut before = None;
            for Entry { at, .. } in self.take_window() {
                if before.replace(at.number) != Some(at.number) {
                    bytes += record_bytes(at.length as usize) as u64;
                }
            }
        }
        bytes
    }

    fn is_at_end(&self) -> bool {
        self.taken > self.last
    }

    /// The live messages among the next numbers, by number and receiver.
    fn take_window(&mut self) -> Vec<Entry> {
        let from = self.taken;
        let to = from.saturating_add(WINDOW_NUMBERS);
        self.taken = to;
        let mut window = Vec::new();
        for LivePeer { peer, floor, held, refs } in &self.peers {
            let entries = refs.from(from).take_while(|entry| entry.number < to);
            let live = entries.filter(|entry| {
                let number = self.first + u64::from(entry.number);
                let open = number > *floor && !held.settled().contains(entry.number);
                open || held.parked().contains(entry.number)
            });
            window.extend(live.map(|at| Entry { at, peer: *peer }));
        }
        window.sort_unstable_by_key(|entry| (entry.at.number, entry.peer));
        window
    }
}
