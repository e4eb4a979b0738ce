//! Reading messages back: the next ones of a peer, by coalesced reads in the order of the log, each
//! checked against its checksums.
//!
//! The state says which messages, under its lock and without touching the disk; the disk is read
//! after that. A segment that is given back meanwhile can only have held what is done.

use super::format::{RecordError, RecordHeader, Seed, record_bytes};
use super::refs::Ref;
use super::shared::Shared;
use super::state::{Budget, Pick, Picked};
use bytes::Bytes;
use restante_actors::journal::{Life, LookupError, Page, Read, ReadError, Stored};
use restante_protocol::id::MessageNumber;
use restante_protocol::record::{MESSAGE_FIXED_BYTES, MessageRecord, RECORD_HEADER_BYTES};
use restante_protocol::refusal::{Code, Refusal};
use std::ops::Range;
use std::sync::mpsc::Receiver;
use tokio::sync::oneshot::Sender;

/// Two messages at most this far apart are read at once with what lies between.
const GAP_BYTES_MAX: u64 = 4 * 1024;
/// Longest single read, unless one record is longer.
const EXTENT_BYTES_MAX: u64 = 1024 * 1024;

/// How often a search begins anew because what it had found was moved meanwhile.
const MOVES_MAX: u32 = 8;

/// A question to the reader.
pub(super) enum Request {
    /// See [`restante_actors::journal::Journal::next`].
    Next(Read, Sender<Result<Page, ReadError>>),
    /// See [`restante_actors::journal::Journal::lookup`].
    Lookup(MessageNumber, Sender<Result<Life, LookupError>>),
    /// No more questions.
    Close,
}

/// The thread: answers questions one after the other.
pub(super) fn run(shared: &Shared, requests: &Receiver<Request>) {
    while let Ok(request) = requests.recv() {
        // An answer no one waits for any more is dropped.
        match request {
            Request::Next(read, answer) => drop(answer.send(shared.next(read))),
            Request::Lookup(number, answer) => drop(answer.send(shared.lookup(number))),
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
        let mut budget = Budget { messages: read.messages_max.max(1), bytes: read.bytes_max };
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
                    self.load(id, &read, after)?;
                    continue;
                }
                Pick::Found(picked) => picked,
            };
            let before = page.messages.len();
            if let Err(error) = self.read_picked(&picked, &mut page) {
                if self.has_segment(&picked) || moved == MOVES_MAX {
                    return Self::read_error(error, page);
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

    /// Loads the part of an index that a search needs.
    fn load(&self, id: u64, read: &Read, after: MessageNumber) -> Result<(), ReadError> {
        let Err(error) = self.load_refs(id, read.peer) else { return Ok(()) };
        let Err(again) = self.rebuild_index(id, &error.to_string()) else { return Ok(()) };
        self.give_up_segment(id);
        let state = self.state.lock();
        // Given back in the meantime: the search will not come to it again.
        let Some(segment) = state.segments.iter().find(|segment| segment.id == id) else {
            return Ok(());
        };
        let through = segment.next.map_or(after, |next| next - 1);
        let detail = format!("the index of segment {id:x}: {error}; building it again: {again}");
        Err(ReadError::Damaged { number: segment.first.max(after + 1), detail, through })
    }

    /// Whether messages that were picked are still where they were.
    fn has_segment(&self, picked: &Picked) -> bool {
        let state = self.state.lock();
        state.segment(picked.first).is_some_and(|segment| segment.id == picked.segment)
    }

    /// What a failed read means: what was read before it is still good.
    fn read_error(error: BadRecord, mut page: Page) -> Result<Page, ReadError> {
        if page.messages.is_empty() {
            let BadRecord { number, detail } = error;
            return Err(ReadError::Damaged { number, detail, through: number });
        }
        page.through = error.number - 1;
        Ok(page)
    }

    /// Reads the picked messages of one segment into the page.
    fn read_picked(&self, picked: &Picked, page: &mut Page) -> Result<(), BadRecord> {
        let Some(first) = picked.refs.first() else { return Ok(()) };
        let bad = |entry: &Ref, detail: String| BadRecord {
            number: picked.first + u64::from(entry.number),
            detail,
        };
        let file =
            self.segment_file(picked.segment).map_err(|error| bad(first, error.to_string()))?;
        let seed = Seed::new(self.seed, picked.segment);
        let extents = extents(&picked.refs);
        let total: u64 = extents.iter().map(|extent| extent.to - extent.from).sum();
        let wanted: u64 =
            picked.refs.iter().map(|entry| record_bytes(entry.length as usize) as u64).sum();
        let mut bytes = Vec::with_capacity(total as usize);
        for extent in &extents {
            let len = (extent.to - extent.from) as usize;
            let read = file.read_at(extent.from, len, &mut bytes);
            let got = read.map_err(|error| bad(first, error.to_string()))?;
            // A record that is cut off will be named when it is looked at.
            bytes.resize(bytes.len() + len - got, 0);
        }
        // Slices keep all that was read alive: worth it only where most of it is wanted.
        let shared = (wanted * 4 >= total * 3).then(|| Bytes::from(std::mem::take(&mut bytes)));
        let view = shared.as_deref().unwrap_or(&bytes);
        page.messages.reserve(picked.refs.len());
        let mut at = 0;
        for extent in &extents {
            for entry in extent.refs {
                let number = picked.first + u64::from(entry.number);
                let from = at + (u64::from(entry.offset) - extent.from) as usize;
                let (accepted_ms, body) =
                    check(seed, view, from, number).map_err(|detail| bad(entry, detail))?;
                let body = match &shared {
                    Some(shared) => shared.slice(body),
                    None => Bytes::copy_from_slice(&view[body]),
                };
                page.messages.push(Stored { number, accepted_ms, body });
            }
            at += (extent.to - extent.from) as usize;
        }
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

/// A record that cannot be delivered.
struct BadRecord {
    number: MessageNumber,
    detail: String,
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
