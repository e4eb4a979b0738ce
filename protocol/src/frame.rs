//! Hot frames: the fixed layouts that carry messages, confirms and acks.
//!
//! Every frame is `u32 length | u8 type | fields`, big endian; the length counts everything after
//! itself. A control frame's fields are one MessagePack value, see [`crate::control`].

use crate::id::MessageId;
use crate::name::Name;
use crate::refusal::Code;
use smallvec::SmallVec;

/// The first byte of a frame after its length.
pub mod kind {
    /// Producer → node: one message. See [`super::Publish`].
    pub const PUBLISH: u8 = 0x01;
    /// Node → producer: a run of messages is durable.
    pub const CONFIRM: u8 = 0x02;
    /// Node → producer: a message was refused, wholly or for some receivers.
    pub const REFUSE: u8 = 0x03;
    /// Node → receiver: one message.
    pub const DELIVER: u8 = 0x04;
    /// Receiver → node: messages are done, as ranges of tags.
    pub const ACK: u8 = 0x05;
    /// Receiver → node: one message is done, with a return value.
    pub const ACK_VALUE: u8 = 0x06;
    /// Receiver → node: one message is refused.
    pub const NACK: u8 = 0x07;
    /// Node → producer: the return value a publish with the reply flag awaited.
    pub const REPLY: u8 = 0x08;
    /// Either way: I am alive. No fields.
    pub const HEARTBEAT: u8 = 0x09;
    /// Receiver → node: how many messages it takes, counted since it attached.
    pub const GRANT: u8 = 0x0a;
    /// Either way: a MessagePack value.
    pub const CONTROL: u8 = 0x10;
}

/// Bytes of the length word and the type.
pub const HEADER_BYTES: usize = 5;
/// Bytes of a publish frame before its aliases, header included.
pub const PUBLISH_FIXED_BYTES: usize = HEADER_BYTES + 1 + 2 + 8;
/// Bytes of a deliver frame before its body, header included.
pub const DELIVER_FIXED_BYTES: usize = HEADER_BYTES + 1 + 2 + 4 + 8 + 4 + 16;

/// Flag bits of a publish.
pub mod publish_flags {
    /// Accept for all receivers or for none.
    pub const ALL_OR_NOTHING: u8 = 1;
    /// Bits this version does not know; they must be zero.
    pub const UNKNOWN: u8 = !ALL_OR_NOTHING;
}

/// `u8 flags | u16 receiver count | u64 sequence | u32 alias × count | body`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    /// See [`publish_flags`].
    pub flags: u8,
    /// The producer's own ascending number of this publish, from the hello's `next_sequence` on.
    pub sequence: u64,
    /// The receivers' aliases, 4 bytes each, big endian, as they stand in the frame.
    pub aliases: &'a [u8],
    /// See [`crate::message::Body`].
    pub body: &'a [u8],
}

impl Publish<'_> {
    /// The receivers' aliases in the order of the publish.
    #[inline]
    pub fn receivers(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        let (aliases, _) = self.aliases.as_chunks::<4>();
        aliases.iter().map(|alias| u32::from_be_bytes(*alias))
    }
}

/// `u64 first sequence | u32 count | u128 first id`: the run is durable; ids and sequences ascend
/// together by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// How many messages, at least 1.
    pub count: u32,
    /// Id of the first message.
    pub first_id: MessageId,
}

/// `u64 sequence | u128 id | u16 code | u16 count | u16 members | (u32 alias, u16 code) × count |
/// (u32 alias, u16 code, u8 length, name) × members | detail`
///
/// With an id of zero nothing was accepted. Otherwise the message is durable for the receivers not
/// listed, and this frame stands in the place of its confirm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Sequence of the publish; it is consumed.
    pub sequence: u64,
    /// Id under which the rest was accepted, if any was.
    pub id: Option<MessageId>,
    /// The overall reason; that of the first refusing receiver if only receivers refused.
    pub code: Code,
    /// Which receivers refused, by alias, and why.
    pub receivers: SmallVec<[(u32, Code); 4]>,
    /// Which members of groups refused, by the alias of their group and by name, and why.
    pub members: Vec<(u32, Code, Name)>,
    /// One line for people.
    pub detail: String,
}

/// `u8 flags | u16 attempt | u32 slot | u64 tag | u32 epoch | u128 id | body`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliver<'a> {
    /// Whether this message may have been sent before.
    pub redelivered: bool,
    /// 1 for the first; a lower bound after a restart of the node.
    pub attempt: u16,
    /// Which of the connection's attachments this is for.
    pub slot: u32,
    /// Dense, ascending per attachment from 1; what acks name.
    pub tag: u64,
    /// The node's journal epoch: a receiver ignores deliveries of an epoch below one it has seen.
    pub epoch: u32,
    /// The message.
    pub id: MessageId,
    /// See [`crate::message::Body`].
    pub body: &'a [u8],
}

/// A closed range of delivery tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagRange {
    /// The first tag.
    pub first: u64,
    /// The last tag, not below the first.
    pub last: u64,
}

/// `u32 slot | u16 count | (u64 first, u64 last) × count`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The attachment.
    pub slot: u32,
    /// What is done.
    pub ranges: SmallVec<[TagRange; 2]>,
}

/// `u32 slot | u64 tag | value`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckValue<'a> {
    /// The attachment.
    pub slot: u32,
    /// The delivery.
    pub tag: u64,
    /// What the receiver answers.
    pub value: &'a [u8],
}

/// `u32 slot | u64 tag | u8 permanent (0 or 1) | u32 retry after, ms (0: as the peer's schedule says) | reason`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nack<'a> {
    /// The attachment.
    pub slot: u32,
    /// The delivery.
    pub tag: u64,
    /// Never try again.
    pub permanent: bool,
    /// Earliest next try, in milliseconds from now.
    pub retry_after_ms: u32,
    /// One line for people.
    pub reason: &'a str,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyKind {
    /// The receiver acked; the value is its answer, possibly empty.
    Acked = 0,
    /// The receiver refused for good; the value is its reason.
    Refused = 1,
    /// The message ended without an answer (parked, purged, expired); the value says how.
    Ended = 2,
}

/// `u64 sequence | u8 kind | value`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// Sequence of the publish that awaited it.
    pub sequence: u64,
    /// How it ended.
    pub kind: ReplyKind,
    /// The return value or reason.
    pub value: &'a [u8],
}

/// `u32 slot | u64 messages`: the receiver takes deliveries up to this tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The attachment.
    pub slot: u32,
    /// Cumulative since the attach.
    pub messages: u64,
}

/// One frame, borrowing its variable parts from the buffer it was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Publish`].
    Publish(Publish<'a>),
    /// See [`Confirm`].
    Confirm(Confirm),
    /// See [`Refuse`].
    Refuse(Refuse),
    /// See [`Deliver`].
    Deliver(Deliver<'a>),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`AckValue`].
    AckValue(AckValue<'a>),
    /// See [`Nack`].
    Nack(Nack<'a>),
    /// See [`Reply`].
    Reply(Reply<'a>),
    /// A sign of life.
    Heartbeat,
    /// See [`Grant`].
    Grant(Grant),
    /// The MessagePack bytes of a [`crate::control::Control`].
    Control(&'a [u8]),
}
