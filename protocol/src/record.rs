//! What the journal holds, as values and bytes: the bodies of its records. How records are framed,
//! checksummed and laid out in files is the journal's own affair.
//!
//! A message record is written once, by the router, straight into the buffer that goes to disk and
//! from there to the receivers, with room for the journal's header in front of each record.

use crate::id::{MessageNumber, PeerId};
use crate::message::Body;
use crate::refusal::cut_reason;
use bytes::{BufMut, BytesMut};

/// Bytes left free before each record body for the journal's own header.
pub const RECORD_HEADER_BYTES: usize = 24;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// An accepted message: [`MessageRecord`].
    Message = 1,
    /// Messages of one peer are done: [`SettleRecord`].
    Settle = 2,
    /// A message of one peer is parked: [`ParkRecord`].
    Park = 3,
    /// A change of admin state: MessagePack, the journal does not look inside.
    Admin = 4,
    /// A process opened the journal: the new epoch.
    Epoch = 5,
    /// The log was closed in order here.
    Close = 6,
    /// Reserved for clusters: a message stored in another partition.
    Reference = 7,
}

impl RecordKind {
    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<RecordKind> {
        match number {
            1 => Some(RecordKind::Message),
            2 => Some(RecordKind::Settle),
            3 => Some(RecordKind::Park),
            4 => Some(RecordKind::Admin),
            5 => Some(RecordKind::Epoch),
            6 => Some(RecordKind::Close),
            7 => Some(RecordKind::Reference),
            _ => None,
        }
    }
}

/// Where a record lies in the buffer it was appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Offset of the header room; the body begins [`RECORD_HEADER_BYTES`] later.
    pub offset: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
    /// Where the payload begins within the body; the body's end if it has none.
    pub payload_at: usize,
}

/// Appends header room and a record body as it is: for admin records.
pub fn put_record(out: &mut BytesMut, body: &[u8]) -> Placed {
    let offset = out.len();
    out.reserve(RECORD_HEADER_BYTES + body.len());
    out.put_slice(&[0; RECORD_HEADER_BYTES]);
    out.put_slice(body);
    Placed { offset, body_bytes: body.len(), payload_at: body.len() }
}

/// Appends header room and a message record with one reservation; called once a message.
///
/// `peers` are at most [`crate::limits::RECEIVERS_MAX`], as the codec saw to.
#[inline(always)]
pub fn put_message_record(
    out: &mut BytesMut,
    accepted_ms: u64,
    producer: u32,
    sequence: u64,
    peers: &[PeerId],
    body: &[u8],
) -> Placed {
    debug_assert!(peers.len() <= crate::limits::RECEIVERS_MAX);
    let offset = out.len();
    let body_at = MESSAGE_FIXED_BYTES + 4 * peers.len();
    let payload_bytes = Body::parse(body).map_or(0, |parts| parts.payload.len());
    out.reserve(RECORD_HEADER_BYTES + body_at + body.len());
    let mut fixed = [0; RECORD_HEADER_BYTES + MESSAGE_FIXED_BYTES];
    let fields = &mut fixed[RECORD_HEADER_BYTES..];
    fields[0..8].copy_from_slice(&accepted_ms.to_be_bytes());
    fields[8..12].copy_from_slice(&producer.to_be_bytes());
    fields[12..20].copy_from_slice(&sequence.to_be_bytes());
    fields[20..22].copy_from_slice(&(peers.len() as u16).to_be_bytes());
    out.put_slice(&fixed);
    for peer in peers {
        out.put_u32(peer.0);
    }
    out.put_slice(body);
    let body_bytes = body_at + body.len();
    Placed { offset, body_bytes, payload_at: body_bytes - payload_bytes }
}

/// The fixed part of a message record's body, before its receivers and the message body:
/// `u64 accepted ms | u32 producer | u64 sequence | u16 receiver count | u16 zero | u32 peer × count | body`,
/// big endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRecord<'a> {
    /// Milliseconds since the Unix epoch; part of the message's id.
    pub accepted_ms: u64,
    /// The producer's interned number (see the router's producer table), 0 for none.
    pub producer: u32,
    /// The producer's sequence number.
    pub sequence: u64,
    /// The receivers' peer ids, 4 bytes each, big endian.
    pub receivers: &'a [u8],
    /// See [`crate::message::Body`].
    pub body: &'a [u8],
}

/// Bytes of a message record's body before its receivers.
pub const MESSAGE_FIXED_BYTES: usize = 8 + 4 + 8 + 2 + 2;

impl<'a> MessageRecord<'a> {
    /// Takes a record body apart without copying; `None` when the bytes are not one.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<MessageRecord<'a>> {
        let (ms, rest) = bytes.split_first_chunk::<8>()?;
        let (producer, rest) = rest.split_first_chunk::<4>()?;
        let (sequence, rest) = rest.split_first_chunk::<8>()?;
        let (count, rest) = rest.split_first_chunk::<2>()?;
        let (_zero, rest) = rest.split_first_chunk::<2>()?;
        let (receivers, body) = rest.split_at_checked(4 * u16::from_be_bytes(*count) as usize)?;
        Some(MessageRecord {
            accepted_ms: u64::from_be_bytes(*ms),
            producer: u32::from_be_bytes(*producer),
            sequence: u64::from_be_bytes(*sequence),
            receivers,
            body,
        })
    }

    /// The receivers in the order of the publish.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = PeerId> + 'a {
        self.receivers
            .chunks_exact(4)
            .map(|id| PeerId(u32::from_be_bytes([id[0], id[1], id[2], id[3]])))
    }
}

/// How a message ended for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The receiver acked it.
    Acked = 1,
    /// An operator deleted it.
    Purged = 2,
    /// Its time to live ended.
    Expired = 3,
    /// It was handed to another peer; `SettleRecord::moved_to` says which.
    Moved = 4,
}

impl Outcome {
    /// The outcome with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Outcome> {
        match number {
            1 => Some(Outcome::Acked),
            2 => Some(Outcome::Purged),
            3 => Some(Outcome::Expired),
            4 => Some(Outcome::Moved),
            _ => None,
        }
    }
}

/// Messages of one peer that are done. Everything of the peer up to and including `floor` is then
/// settled or parked; `above` lists what else is, out of order.
///
/// As bytes, big endian, numbers as LEB128 varints where it says so:
/// `u32 peer | u64 at ms | u8 outcome | u32 moved to | u64 floor | u32 above count | u32 detail count |
/// varint (number, minus the one before) × above | (varint number, u16 attempts, u32 length, value) × detail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleRecord {
    /// Whose messages.
    pub peer: PeerId,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How they ended.
    pub outcome: Outcome,
    /// With [`Outcome::Moved`]: to whom; else [`PeerId::NONE`].
    pub moved_to: PeerId,
    /// Nothing of this peer at or below this number is open any more.
    pub floor: MessageNumber,
    /// Numbers above the floor that this record settles, ascending; and parked ones that it settles,
    /// wherever they lie.
    pub above: Vec<MessageNumber>,
    /// Messages that took more than one attempt, or brought a return value back.
    pub details: Vec<SettleDetail>,
}

/// What is worth keeping about one settled message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettleDetail {
    /// Which.
    pub number: MessageNumber,
    /// How often it was sent.
    pub attempts: u16,
    /// What the receiver returned, at most [`crate::limits::RETURN_BYTES_MAX`].
    pub value: Vec<u8>,
}

/// A message of one peer that is set aside for an operator. It stays stored.
///
/// As bytes, big endian: `u32 peer | u64 number | u64 at ms | u16 attempts | reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkRecord {
    /// Whose message.
    pub peer: PeerId,
    /// Which.
    pub number: MessageNumber,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How often it was sent.
    pub attempts: u16,
    /// Why, at most [`crate::limits::REASON_BYTES_MAX`].
    pub reason: String,
}

impl SettleRecord {
    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.peer.0.to_be_bytes());
        out.extend_from_slice(&self.at_ms.to_be_bytes());
        out.push(self.outcome as u8);
        out.extend_from_slice(&self.moved_to.0.to_be_bytes());
        out.extend_from_slice(&self.floor.to_be_bytes());
        out.extend_from_slice(&(self.above.len() as u32).to_be_bytes());
        out.extend_from_slice(&(self.details.len() as u32).to_be_bytes());
        let mut before = 0;
        for number in &self.above {
            put_varint(out, number.wrapping_sub(before));
            before = *number;
        }
        for detail in &self.details {
            put_varint(out, detail.number);
            out.extend_from_slice(&detail.attempts.to_be_bytes());
            out.extend_from_slice(&(detail.value.len() as u32).to_be_bytes());
            out.extend_from_slice(&detail.value);
        }
    }

    /// Reads what [`SettleRecord::encode`] wrote; `None` when the bytes are not that. Allocates no
    /// more than a small multiple of `bytes`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<SettleRecord> {
        let mut rest = bytes;
        let peer = PeerId(take_u32(&mut rest)?);
        let at_ms = take_u64(&mut rest)?;
        let (&outcome, after) = rest.split_first()?;
        rest = after;
        let moved_to = PeerId(take_u32(&mut rest)?);
        let floor = take_u64(&mut rest)?;
        let above_count = take_u32(&mut rest)? as usize;
        let detail_count = take_u32(&mut rest)? as usize;
        if above_count > rest.len() || detail_count > rest.len() / DETAIL_BYTES_MIN {
            return None;
        }
        let mut above = Vec::with_capacity(above_count);
        let mut before = 0u64;
        for _ in 0..above_count {
            before = before.checked_add(take_varint(&mut rest)?)?;
            above.push(before);
        }
        let mut details = Vec::with_capacity(detail_count);
        for _ in 0..detail_count {
            let number = take_varint(&mut rest)?;
            let (attempts, after) = rest.split_first_chunk::<2>()?;
            rest = after;
            let len = take_u32(&mut rest)? as usize;
            let (value, after) = rest.split_at_checked(len)?;
            rest = after;
            let attempts = u16::from_be_bytes(*attempts);
            details.push(SettleDetail { number, attempts, value: value.to_vec() });
        }
        let outcome = Outcome::from_number(outcome)?;
        rest.is_empty().then_some(SettleRecord {
            peer,
            at_ms,
            outcome,
            moved_to,
            floor,
            above,
            details,
        })
    }
}

/// Bytes of the shortest detail: a number, attempts, an empty value.
const DETAIL_BYTES_MIN: usize = 1 + 2 + 4;

impl ParkRecord {
    /// Appends the record's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.peer.0.to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.at_ms.to_be_bytes());
        out.extend_from_slice(&self.attempts.to_be_bytes());
        out.extend_from_slice(cut_reason(&self.reason).as_bytes());
    }

    /// Reads what [`ParkRecord::encode`] wrote; `None` when the bytes are not that.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<ParkRecord> {
        let mut rest = bytes;
        let peer = PeerId(take_u32(&mut rest)?);
        let number = take_u64(&mut rest)?;
        let at_ms = take_u64(&mut rest)?;
        let (attempts, reason) = rest.split_first_chunk::<2>()?;
        let attempts = u16::from_be_bytes(*attempts);
        let reason = core::str::from_utf8(reason).ok()?.to_owned();
        Some(ParkRecord { peer, number, at_ms, attempts, reason })
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_be_bytes(*head))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (head, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    Some(u64::from_be_bytes(*head))
}

/// Appends `value` as a LEB128 varint: seven bits a byte, the lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes a LEB128 varint off the front of `rest`; `None` when it ends early or is over 64 bits.
pub fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for place in 0..10 {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u64::from(byte & 0x7f);
        if place == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
