//! Reading messages back: the next ones of a peer, by coalesced reads in the order of the log, each
//! checked against its checksums.
//!
//! The state says which messages, under its lock and without touching the disk; the disk is read
//! after that. A segment that is given back meanwhile can only have held what is done.

use super::format::{RecordError, RecordHeader, Seed, record_bytes};
use super::refs::Ref;
use super::shared::Shared;
use super::state::{Budget, Pick, Picked};
use super::storage::{DiskFile, is_missing};
use super::trouble::Spot;
use bytes::Bytes;
use restante_actors::journal::{Page, Read, ReadError, Stored};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{MESSAGE_FIXED_BYTES, MessageRecord, RECORD_HEADER_BYTES};
use restante_protocol::refusal::{Code, Refusal};
use std::io;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use tokio::sync::oneshot::Sender;

/// Two messages at most this far apart are read at once with what lies between.
const GAP_BYTES_MAX: u64 = 4 * 1024;
/// Longest single read, unless one record is longer.
const EXTENT_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes of bodies in a page, unless one message is longer. All of a page stays in memory until its last message
/// has been sent, and one of this size is read faster than it is asked for.
const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// How often a search begins anew because what it had found was moved meanwhile.
const MOVES_MAX: u32 = 8;

/// A question to the reader.
pub(super) enum Request {
    /// See [`restante_actors::journal::Journal::next`].
    Next(Read, Sender<Result<Page, ReadError>>),
    /// No more questions.
    Close,
}

/// The thread: answers questions one after the other, until there are no answers any more.
pub(super) fn run(shared: &Shared, requests: &Receiver<Request>) {
    while let Ok(request) = requests.recv() {
        if shared.has_ended_answers() {
            return;
        }
        match request {
            // Nobody waits for it any more.
            Request::Next(_, answer) if answer.is_closed() => {}
            Request::Next(read, answer) => drop(answer.send(shared.next(read))),
            Request::Close => return,
        }
    }
}

/// Records that lie close together.
pub(super) struct Extent<'a> {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) refs: &'a [Ref],
}

impl Shared {
    /// See [`restante_actors::journal::Journal::next`].
    pub(super) fn next(&self, read: Read) -> Result<Page, ReadError> {
        if let Some(refusal) = self.unavailable() {
            return Err(ReadError::Unavailable(refusal));
        }
        let mut page = Page::default();
        let bytes = read.bytes_max.min(PAGE_BYTES_MAX);
        let mut budget = Budget { messages: read.messages_max.max(1), bytes };
        let mut after = read.after;
        let mut moved = 0;
        loop {
            let (pick, durable) = {
                let state = self.state.lock();
                let loaded = |id| self.cached_refs(id, read.peer);
                (state.pick(&read, after, budget, loaded), state.durable_next - 1)
            };
            let picked = match pick {
                Pick::Nothing => {
                    page.through = read.through.min(durable);
                    return Ok(page);
                }
                Pick::Load(id) => {
                    match self.load(id, read.peer) {
                        Ok(()) => continue,
                        // What was read before is good, and said first.
                        Err(_) if !page.messages.is_empty() => return Ok(page),
                        Err(refusal) => return Err(ReadError::Unavailable(refusal)),
                    }
                }
                Pick::Found(picked) => picked,
            };
            let before = page.messages.len();
            if let Err(unread) = self.read_picked(&picked, read.peer, &mut page) {
                if self.has_segment(&picked) || moved == MOVES_MAX {
                    return unread.end(page);
                }
                // Given back or compacted since it was picked: what is left of it is elsewhere.
                moved += 1;
                if let Some(stored) = page.messages[before..].last() {
                    after = stored.number;
                    page.through = after;
                    budget.messages = (budget.messages - (page.messages.len() - before)).max(1);
                }
                continue;
            }
            after = picked.through;
            page.through = after;
            let read_now = &page.messages[before..];
            let bytes: usize = read_now.iter().map(|stored| stored.body.len()).sum();
            budget.messages -= read_now.len().min(budget.messages);
            budget.bytes = budget.bytes.saturating_sub(bytes);
            if budget.messages == 0 || (budget.bytes == 0 && !page.messages.is_empty()) {
                return Ok(page);
            }
        }
    }

    /// Loads the part of an index that a search needs. What cannot be loaded now is asked for again: of
    /// a stretch of the log nobody knows which messages in it are the peer's, so it is never passed over.
    fn load(&self, id: u64, peer: PeerId) -> Result<(), Refusal> {
        let Err(error) = self.load_refs(id, peer) else {
            self.reading.troubles.forget(id, peer, std::iter::once(0));
            return Ok(());
        };
        let why = error.to_string();
        self.rebuild_index(id, Some(peer), error).map_err(|again| {
            let detail = format!("the index of segment {id:x}: {why}; building it again: {again}");
            Refusal::new(Code::Damaged, detail)
        })
    }

    /// Whether messages that were picked are still where they were.
    fn has_segment(&self, picked: &Picked) -> bool {
        let state = self.state.lock();
        state.segment(picked.first).is_some_and(|segment| segment.id == picked.segment)
    }

    /// Reads the picked messages of one segment into the page, as far as they can be read.
    fn read_picked(&self, picked: &Picked, peer: PeerId, page: &mut Page) -> Result<(), Unread> {
        let Some(first) = picked.refs.first() else { return Ok(()) };
        let failed = |entry: &Ref, error: &io::Error| {
            let number = picked.first + u64::from(entry.number);
            let spot = Spot { segment: picked.segment, peer, number };
            (number, self.reading.troubles.is_lasting(spot, error), error.to_string())
        };
        let file = self.segment_file(picked.segment).map_err(|error| {
            // A file that cannot be opened says nothing of what is in it, unless it is not there.
            let (number, _, detail) = failed(first, &error);
            Unread { number, is_damage: is_missing(&error), detail }
        })?;
        let seed = Seed::new(self.seed, picked.segment);
        let source = Source { file: &*file, seed, first: picked.first };
        let (before, extents) = (page.messages.len(), extents(&picked.refs));
        let mut read = 0;
        while read < extents.len() {
            let (whole, error) = source.read(&extents[read..], page)?;
            read += whole;
            if error.is_none() {
                break;
            }
            // Only what lies in the bad place is missing: record by record.
            for entry in extents[read].refs {
                let alone = Extent::of(std::slice::from_ref(entry));
                if let (_, Some(error)) = source.read(&[alone], page)? {
                    let (number, is_damage, detail) = failed(entry, &error);
                    return Err(Unread { number, is_damage, detail });
                }
            }
            read += 1;
        }
        let numbers = page.messages[before..].iter().map(|stored| stored.number);
        self.reading.troubles.forget(picked.segment, peer, numbers);
        Ok(())
    }

    /// One message's body, for the ledger.
    pub(super) fn read_body(
        &self,
        segment: u64,
        number: MessageNumber,
        offset: u64,
    ) -> Option<Bytes> {
        let file = self.segment_file(segment).ok()?;
        let mut head = Vec::with_capacity(RECORD_HEADER_BYTES);
        file.read_at(offset, RECORD_HEADER_BYTES, &mut head).ok()?;
        let len = record_bytes(RecordHeader::peek(&head)?.length as usize);
        if len > record_bytes(self.caps.record_bytes_max) {
            return None;
        }
        let mut bytes = Vec::with_capacity(len);
        file.read_at(offset, len, &mut bytes).ok()?;
        let (_, body) = check(Seed::new(self.seed, segment), &bytes, 0, number).ok()?;
        Some(Bytes::from(bytes).slice(body))
    }

    /// Why nothing can be read, if so.
    pub(super) fn unavailable(&self) -> Option<Refusal> {
        self.is_dead().then(|| {
            self.refusal()
                .unwrap_or_else(|| Refusal::new(Code::JournalPoisoned, "an earlier write failed"))
        })
    }
}

/// A record that was not read. Everything of the peer before it was.
struct Unread {
    number: MessageNumber,
    /// Whether it is damaged, rather than out of reach for now.
    is_damage: bool,
    detail: String,
}

impl Unread {
    /// What was read before it is still good.
    fn end(self, mut page: Page) -> Result<Page, ReadError> {
        let Unread { number, is_damage, detail } = self;
        if !page.messages.is_empty() {
            page.through = number - 1;
            return Ok(page);
        }
        Err(match is_damage {
            true => ReadError::Damaged { number, detail },
            false => ReadError::Unavailable(Refusal::new(Code::Damaged, detail)),
        })
    }
}

/// A segment whose records are read.
struct Source<'a> {
    file: &'a dyn DiskFile,
    seed: Seed,
    first: MessageNumber,
}

impl Source<'_> {
    /// Reads extents into the page, up to the first that the disk does not give; how many, and why
    /// not all.
    fn read(
        &self,
        extents: &[Extent<'_>],
        page: &mut Page,
    ) -> Result<(usize, Option<io::Error>), Unread> {
        let total: u64 = extents.iter().map(|extent| extent.to - extent.from).sum();
        let mut bytes = Vec::with_capacity(total as usize);
        let (mut whole, mut error) = (0, None);
        for extent in extents {
            let (before, len) = (bytes.len(), (extent.to - extent.from) as usize);
            if let Err(failed) = self.file.read_at(extent.from, len, &mut bytes) {
                bytes.truncate(before);
                error = Some(failed);
                break;
            }
            // A record that is cut off will be named when it is looked at.
            bytes.resize(before + len, 0);
            whole += 1;
        }
        let extents = &extents[..whole];
        let refs = extents.iter().flat_map(|extent| extent.refs);
        let wanted: usize = refs.map(|entry| record_bytes(entry.length as usize)).sum();
        // Slices keep all that was read alive: worth it only where most of it is wanted.
        let shared =
            (wanted * 4 >= bytes.len() * 3).then(|| Bytes::from(std::mem::take(&mut bytes)));
        let view = shared.as_deref().unwrap_or(&bytes);
        page.messages.reserve(extents.iter().map(|extent| extent.refs.len()).sum());
        let mut at = 0;
        for extent in extents {
            for entry in extent.refs {
                let number = self.first + u64::from(entry.number);
                let from = at + (u64::from(entry.offset) - extent.from) as usize;
                let (accepted_ms, body) = check(self.seed, view, from, number)
                    .map_err(|detail| Unread { number, is_damage: true, detail })?;
                let body = match &shared {
                    Some(shared) => shared.slice(body),
                    None => Bytes::copy_from_slice(&view[body]),
                };
                page.messages.push(Stored { number, accepted_ms, body });
            }
            at += (extent.to - extent.from) as usize;
        }
        Ok((whole, error))
    }
}

impl<'a> Extent<'a> {
    /// One message and nothing else.
    fn of(entry: &'a [Ref]) -> Extent<'a> {
        let from = entry.first().map_or(0, |entry| u64::from(entry.offset));
        let len = entry.first().map_or(0, |entry| record_bytes(entry.length as usize));
        Extent { from, to: from + len as u64, refs: entry }
    }
}

/// Groups messages that lie close together.
pub(super) fn extents(refs: &[Ref]) -> Vec<Extent<'_>> {
    let mut extents: Vec<Extent<'_>> = Vec::new();
    let mut begin = 0;
    for (at, entry) in refs.iter().enumerate() {
        let from = u64::from(entry.offset);
        let to = from + record_bytes(entry.length as usize) as u64;
        match extents.last_mut() {
            Some(extent)
                if from <= extent.to + GAP_BYTES_MAX && to - extent.from <= EXTENT_BYTES_MAX =>
            {
                extent.to = to;
                extent.refs = &refs[begin..=at];
            }
            _ => {
                begin = at;
                extents.push(Extent { from, to, refs: &refs[at..=at] });
            }
        }
    }
    extents
}

/// Checks the record at `from`; returns when it was accepted and where its message body is.
fn check(
    seed: Seed,
    bytes: &[u8],
    from: usize,
    number: MessageNumber,
) -> Result<(u64, Range<usize>), String> {
    let record = bytes.get(from..).unwrap_or_default();
    let header = match RecordHeader::check(seed, record) {
        Ok(header) => header,
        Err(RecordError::NotARecord) => return Err("no record where one should be".to_owned()),
        Err(RecordError::BadPayload(_)) => {
            return Err("the payload does not match its checksum".to_owned());
        }
    };
    if header.number != number {
        return Err(format!("record {} where {number} should be", header.number));
    }
    let to = from + record_bytes(header.length as usize);
    let body = from + RECORD_HEADER_BYTES;
    let message = MessageRecord::parse(&bytes[body..to]).ok_or("not a message")?;
    let at = body + MESSAGE_FIXED_BYTES + message.receivers.len();
    Ok((message.accepted_ms, at..to))
}
