//! The checkpoint: what the journal knew, and what the application handed over, as of one position.
//! A restart reads it and replays the log from there.
//!
//! The bytes are taken by the writer once everything before the position is synced. Settles that came
//! later may be in it already: replaying them changes nothing, because floors only rise and sets only
//! grow. So the journal's part may also be taken much later than the application's, as long as the
//! segments stay from which the latter is brought up to date.
//!
//! ```text
//! file header 48 (id = position) | u64 length of the journal's part | u32 its CRC
//! | u64 length of the application's state | u32 its CRC | u32 CRC of these 24 bytes
//! | the journal's part, varints | the application's state
//! ```

use super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError, be_u32, be_u64, crc32c};
use super::held::Held;
use super::numbers::NumberSet;
use super::state::{Place, Segment, State};
use super::storage::{Disk, is_shortage};
use bytes::Bytes;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{put_varint, take_varint};
use std::io;

const FIXED_BYTES: usize = 28;
/// Bytes of these before their own checksum.
const SUMMED_BYTES: usize = FIXED_BYTES - 4;

/// The journal's part of a checkpoint.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// The number of the first record that is to be replayed.
    pub(super) position: MessageNumber,
    /// Every lower number is synced: what is said of peers may reach up to here. It is above the position
    /// where this was taken later than that.
    pub(super) synced: MessageNumber,
    /// An id above those of all segments there have been.
    pub(super) next_segment: u64,
    /// Segments that must be there.
    pub(super) segments: Vec<SegmentNote>,
    pub(super) peers: Vec<PeerNote>,
    /// Stretches of numbers whose records are damaged: first, and one past the last.
    pub(super) lost: Vec<(MessageNumber, MessageNumber)>,
}

/// One segment as a checkpoint knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentNote {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) live: u64,
}

/// One peer as a checkpoint knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerNote {
    pub(super) peer: PeerId,
    pub(super) floor: MessageNumber,
    pub(super) newest: MessageNumber,
    /// Segments above the floor in which all is done: first number, the peer's last.
    pub(super) done: Vec<(MessageNumber, MessageNumber)>,
    /// Segments in which something is done. Those not named are as they were written.
    pub(super) touched: Vec<TouchedNote>,
}

/// A peer's share of a segment as a checkpoint knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TouchedNote {
    pub(super) first: MessageNumber,
    pub(super) open: u32,
    pub(super) bytes: u64,
    pub(super) parked_bytes: u64,
    pub(super) settled: NumberSet,
    pub(super) parked: NumberSet,
}

/// Where the log was when a snapshot was taken, for one that is taken again of the same position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Straddled {
    /// The segment that was being written to.
    id: u64,
    /// Deliveries that had been in it.
    total: u64,
}

impl Straddled {
    /// The segment that is being written to now.
    pub(super) fn of(state: &State) -> Straddled {
        let last = state.segments.last();
        last.map_or_else(Straddled::default, |last| Straddled { id: last.id, total: last.total })
    }

    /// What of a segment that goes beyond the position is live from before it, at least: what has come
    /// since then does not count yet, and may be what is live.
    fn live_of(self, segment: &Segment) -> u64 {
        match segment.id == self.id {
            true => segment.live.saturating_sub(segment.total.saturating_sub(self.total)),
            false => 0,
        }
    }
}

impl Snapshot {
    /// What `state` says, for a log that is replayed from `position` on, which has been come to where
    /// `straddled` says; everything before it is durable. Segments that end before it and have nothing live
    /// are left out: they may go once this snapshot is durable.
    pub(super) fn of(
        state: &State,
        position: MessageNumber,
        straddled: Straddled,
        next_segment: u64,
    ) -> Snapshot {
        let is_replayed = |segment: &Segment| segment.next.is_none_or(|next| next > position);
        let note = |segment: &Segment| {
            let is_later = is_replayed(segment) && state.durable_next > position;
            let live = if is_later { straddled.live_of(segment) } else { segment.live };
            SegmentNote { id: segment.id, first: segment.first, live }
        };
        let named = state.segments.iter().filter(|s| s.live > 0 || is_replayed(s));
        let segments = named.map(note).collect();
        let touched = |held: &&Held| held.is_touched();
        let note = |held: &Held| TouchedNote {
            first: held.first,
            open: held.open,
            bytes: held.bytes(),
            parked_bytes: held.parked_bytes(),
            settled: held.settled().clone(),
            parked: held.parked().clone(),
        };
        let mut peers: Vec<PeerNote> = state
            .peers
            .iter()
            .map(|(id, peer)| PeerNote {
                peer: *id,
                floor: peer.floor,
                newest: peer.newest,
                done: peer.done.clone(),
                touched: peer.held.iter().filter(touched).map(note).collect(),
            })
            .collect();
        peers.sort_unstable_by_key(|peer| peer.peer);
        let lost = state.lost.clone();
        let synced = state.durable_next.max(position);
        Snapshot { position, synced, next_segment, segments, peers, lost }
    }

    /// Whether what is noted as live of the segment at `place` is the least: of what has come into it
    /// behind the position nothing is noted.
    pub(super) fn is_least(&self, place: usize) -> bool {
        self.segments.get(place + 1).is_none_or(|following| following.first > self.position)
    }

    /// Names those segments too whose index could not be written yet, though nothing of them is live:
    /// their history is made of it.
    pub(super) fn keep_unindexed(&mut self, state: &State) {
        let sealed = state.segments.iter().filter(|s| s.next.is_some_and(|n| n <= self.position));
        for segment in sealed.filter(|segment| !matches!(segment.index, Place::File)) {
            let (id, first) = (segment.id, segment.first);
            let place = self.segments.partition_point(|note| note.first < first);
            if self.segments.get(place).is_none_or(|note| note.id != id) {
                self.segments.insert(place, SegmentNote { id, first, live: 0 });
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.synced);
        put_varint(&mut out, self.next_segment);
        put_varint(&mut out, self.segments.len() as u64);
        for segment in &self.segments {
            for value in [segment.id, segment.first, segment.live] {
                put_varint(&mut out, value);
            }
        }
        put_varint(&mut out, self.peers.len() as u64);
        for peer in &self.peers {
            for value in [u64::from(peer.peer.0), peer.floor, peer.newest] {
                put_varint(&mut out, value);
            }
            put_varint(&mut out, peer.done.len() as u64);
            for (first, last) in &peer.done {
                put_varint(&mut out, *first);
                put_varint(&mut out, *last);
            }
            put_varint(&mut out, peer.touched.len() as u64);
            for touched in &peer.touched {
                let TouchedNote { first, open, bytes, parked_bytes, .. } = *touched;
                for value in [first, u64::from(open), bytes, parked_bytes] {
                    put_varint(&mut out, value);
                }
                touched.settled.encode(&mut out);
                touched.parked.encode(&mut out);
            }
        }
        put_varint(&mut out, self.lost.len() as u64);
        for (first, next) in &self.lost {
            put_varint(&mut out, *first);
            put_varint(&mut out, *next);
        }
        out
    }

    fn decode(position: MessageNumber, bytes: &[u8]) -> Option<Snapshot> {
        let rest = &mut &bytes[..];
        let (synced, next_segment) = (take_varint(rest)?, take_varint(rest)?);
        let mut snapshot = Snapshot { position, synced, next_segment, ..Snapshot::default() };
        for _ in 0..take_varint(rest)? {
            let (id, first) = (take_varint(rest)?, take_varint(rest)?);
            snapshot.segments.push(SegmentNote { id, first, live: take_varint(rest)? });
        }
        for _ in 0..take_varint(rest)? {
            snapshot.peers.push(decode_peer(rest)?);
        }
        for _ in 0..take_varint(rest)? {
            snapshot.lost.push((take_varint(rest)?, take_varint(rest)?));
        }
        rest.is_empty().then_some(snapshot)
    }
}

fn decode_peer(rest: &mut &[u8]) -> Option<PeerNote> {
    let mut peer = PeerNote {
        peer: PeerId(u32::try_from(take_varint(rest)?).ok()?),
        floor: take_varint(rest)?,
        newest: take_varint(rest)?,
        ..PeerNote::default()
    };
    for _ in 0..take_varint(rest)? {
        peer.done.push((take_varint(rest)?, take_varint(rest)?));
    }
    for _ in 0..take_varint(rest)? {
        peer.touched.push(TouchedNote {
            first: take_varint(rest)?,
            open: u32::try_from(take_varint(rest)?).ok()?,
            bytes: take_varint(rest)?,
            parked_bytes: take_varint(rest)?,
            settled: NumberSet::decode(rest)?,
            parked: NumberSet::decode(rest)?,
        });
    }
    Some(peer)
}

/// The bytes of a checkpoint file.
pub(super) fn encode(header: &FileHeader, snapshot: &Snapshot, application: &[u8]) -> Vec<u8> {
    let journal = snapshot.encode();
    let mut out =
        Vec::with_capacity(FILE_HEADER_BYTES + FIXED_BYTES + journal.len() + application.len());
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&(journal.len() as u64).to_be_bytes());
    out.extend_from_slice(&crc32c(&journal).to_be_bytes());
    out.extend_from_slice(&(application.len() as u64).to_be_bytes());
    out.extend_from_slice(&crc32c(application).to_be_bytes());
    let crc = crc32c(&out[FILE_HEADER_BYTES..]);
    out.extend_from_slice(&crc.to_be_bytes());
    out.extend_from_slice(&journal);
    out.extend_from_slice(application);
    out
}

/// A checkpoint as it lies on the disk.
pub(super) struct Stored {
    pub(super) bytes: Vec<u8>,
    pub(super) snapshot: Snapshot,
    pub(super) application: Bytes,
}

/// The newest of those at `paths` that are sound, the first of two that were taken at one position.
///
/// # Errors
/// Want of file handles or memory: there may be one.
pub(super) fn newest(disk: &dyn Disk, paths: &[&str]) -> io::Result<Option<Stored>> {
    let mut newest: Option<Stored> = None;
    for path in paths {
        let bytes = match read_whole(disk, path) {
            Err(error) if is_shortage(&error) => return Err(error),
            read => read.unwrap_or_default(),
        };
        let Ok((_, snapshot, application)) = decode(&bytes) else { continue };
        if newest.as_ref().is_none_or(|newest| newest.snapshot.position < snapshot.position) {
            newest = Some(Stored { bytes, snapshot, application });
        }
    }
    Ok(newest)
}

/// All bytes of a file.
pub(super) fn read_whole(disk: &dyn Disk, path: &str) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = file.length()?;
    let mut bytes = Vec::new();
    file.read_at(0, usize::try_from(len).unwrap_or(usize::MAX), &mut bytes)?;
    Ok(bytes)
}

/// Reads a checkpoint file whole.
pub(super) fn decode(bytes: &[u8]) -> Result<(FileHeader, Snapshot, Bytes), HeaderError> {
    let damaged = HeaderError::Damaged;
    let header = FileHeader::parse(FileKind::Checkpoint, bytes)?;
    let rest = &bytes[FILE_HEADER_BYTES..];
    let (fixed, rest) =
        rest.split_at_checked(FIXED_BYTES).ok_or(damaged("it ends within its lengths"))?;
    if crc32c(&fixed[..SUMMED_BYTES]) != be_u32(&fixed[SUMMED_BYTES..]) {
        return Err(damaged("its lengths do not match their checksum"));
    }
    let (journal, application) = usize::try_from(be_u64(fixed))
        .ok()
        .and_then(|len| rest.split_at_checked(len))
        .filter(|(_, application)| application.len() as u64 == be_u64(&fixed[12..]))
        .ok_or(damaged("it does not have the length it says"))?;
    if crc32c(journal) != be_u32(&fixed[8..]) {
        return Err(damaged("the journal's part does not match its checksum"));
    }
    if crc32c(application) != be_u32(&fixed[20..]) {
        return Err(damaged("the application's state does not match its checksum"));
    }
    let snapshot = Snapshot::decode(header.id, journal)
        .ok_or(damaged("the journal's part cannot be understood"))?;
    Ok((header, snapshot, Bytes::copy_from_slice(application)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::id::NodeTag;

    const HEADER: FileHeader = FileHeader {
        kind: FileKind::Checkpoint,
        epoch: 1,
        node: NodeTag(3),
        id: 1_000,
        created_ms: 5,
        seed: 1,
    };

    #[test]
    fn a_checkpoint_reads_as_written_and_no_byte_of_it_can_change() {
        let mut settled = NumberSet::default();
        settled.insert(7);
        settled.insert(70_000);
        let snapshot = Snapshot {
            position: 1_000,
            synced: 1_010,
            next_segment: 12,
            segments: vec![SegmentNote { id: 3, first: 400, live: 9 }],
            peers: vec![PeerNote {
                peer: PeerId(5),
                floor: 300,
                newest: 990,
                done: vec![(400, 450)],
                touched: vec![TouchedNote {
                    first: 500,
                    open: 3,
                    bytes: 300,
                    parked_bytes: 70,
                    settled,
                    parked: NumberSet::default(),
                }],
            }],
            lost: vec![(20, 22)],
        };
        let bytes = encode(&HEADER, &snapshot, b"state");
        let (back, read, state) = decode(&bytes).unwrap();
        assert_eq!((back, read, &state[..]), (HEADER, snapshot, &b"state"[..]));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped).is_err(), "byte {at}");
            assert!(decode(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_journal_s_part_of_more_than_32_bits_is_not_taken_for_a_short_one() {
        let mut bytes = encode(&HEADER, &Snapshot::default(), b"state");
        assert!(decode(&bytes).is_ok());
        let len = be_u64(&bytes[FILE_HEADER_BYTES..]) | 1 << 32;
        bytes[FILE_HEADER_BYTES..][..8].copy_from_slice(&len.to_be_bytes());
        let crc = crc32c(&bytes[FILE_HEADER_BYTES..][..SUMMED_BYTES]);
        bytes[FILE_HEADER_BYTES + SUMMED_BYTES..][..4].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(
            decode(&bytes),
            Err(HeaderError::Damaged("it does not have the length it says"))
        );
    }
}
