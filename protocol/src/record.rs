//! What the journal holds, as values and bytes: the bodies of its records. How records are framed,
//! checksummed and laid out in files is the journal's own affair.
//!
//! A message record is written once, by the router, straight into the buffer that goes to disk and
//! from there to the receivers, with room for the journal's header in front of each record.

use crate::id::{MessageNumber, PeerId};

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

/// Messages of one peer that are done. Everything of the peer up to and including `floor` is then
/// settled or parked; `above` lists what else is, out of order.
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
    /// Numbers above the floor that this record settles, ascending.
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
