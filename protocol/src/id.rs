//! Identities: of messages, peers, producers and nodes.

use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A message's place in its partition's journal: dense, ascending, never reused. 48 bits are used.
pub type MessageNumber = u64;

/// Bits of a [`MessageId`] that hold the message number.
pub const NUMBER_BITS: u32 = 48;
const NUMBER_MASK: u128 = (1 << NUMBER_BITS) - 1;

/// The 128-bit name of a message, minted by the node that accepted it.
///
/// From the most significant bit: milliseconds since the Unix epoch (48), node tag (16), partition
/// (16), message number (48). Ids therefore sort by time of acceptance, do not collide between
/// nodes or across restarts (the number is durable and dense), and lead to their record. Printed as
/// 26 characters of Crockford base32, which sort as the ids do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageId(pub u128);

impl MessageId {
    /// The id of message `number`, accepted at `accepted_ms` by the node with this tag.
    #[must_use]
    pub const fn new(
        accepted_ms: u64,
        node: NodeTag,
        partition: u16,
        number: MessageNumber,
    ) -> Self {
        let ms = (accepted_ms as u128 & NUMBER_MASK) << 80;
        let node = (node.0 as u128) << 64;
        let partition = (partition as u128) << 48;
        MessageId(ms | node | partition | (number as u128 & NUMBER_MASK))
    }

    /// When the message was accepted, in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn accepted_ms(self) -> u64 {
        (self.0 >> 80) as u64
    }

    /// The tag of the node that accepted the message.
    #[must_use]
    pub const fn node(self) -> NodeTag {
        NodeTag((self.0 >> 64) as u16)
    }

    /// The journal partition the message was accepted into.
    #[must_use]
    pub const fn partition(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The message's number in that partition.
    #[must_use]
    pub const fn number(self) -> MessageNumber {
        (self.0 & NUMBER_MASK) as u64
    }

    /// The id `offset` messages later in the same batch: same time, node and partition.
    #[must_use]
    pub const fn plus(self, offset: u64) -> Self {
        MessageId(self.0 + offset as u128)
    }
}

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ID_CHARS: usize = 26;

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; ID_CHARS];
        let mut rest = self.0;
        for slot in text.iter_mut().rev() {
            *slot = CROCKFORD[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(core::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a message id: expected 26 characters of 0-9 and A-Z without I, L, O and U, as `pub` prints it"
)]
pub struct MessageIdError;

impl FromStr for MessageId {
    type Err = MessageIdError;

    /// Reads what [`MessageId`] prints; lower case is accepted.
    fn from_str(text: &str) -> Result<Self, MessageIdError> {
        if text.len() != ID_CHARS {
            return Err(MessageIdError);
        }
        let mut value: u128 = 0;
        for (place, byte) in text.bytes().enumerate() {
            let digit = CROCKFORD
                .iter()
                .position(|c| *c == byte.to_ascii_uppercase())
                .ok_or(MessageIdError)? as u128;
            if place == 0 && digit > 7 {
                return Err(MessageIdError);
            }
            value = (value << 5) | digit;
        }
        Ok(MessageId(value))
    }
}

/// In text formats the printed word, in MessagePack 16 bytes, big endian.
impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0.to_be_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for MessageId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        } else {
            let bytes = serde_bytes::ByteArray::<16>::deserialize(deserializer)?;
            Ok(MessageId(u128::from_be_bytes(bytes.into_array())))
        }
    }
}

/// The durable identity of a peer. Never reused, also after its name is removed and added again.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PeerId(pub u32);

impl PeerId {
    /// No peer: what an alias stands for whose name is unknown. Real ids start at 1.
    pub const NONE: PeerId = PeerId(0);
    /// The highest that a peer is given. Those above name groups, in the place of a receiver.
    pub const LAST_PEER: PeerId = PeerId((1 << 31) - 1);
    /// The highest that a group is given. The one at the very top stands for nothing at all.
    pub const LAST_GROUP: PeerId = PeerId(u32::MAX - 2);
    /// The node itself, as receiver of messages that wait for their time. Neither peer nor group has it.
    pub const DELAYED: PeerId = PeerId(u32::MAX - 1);

    /// Whether it is a group's.
    #[must_use]
    pub const fn is_group(self) -> bool {
        self.0 > Self::LAST_PEER.0 && self.0 <= Self::LAST_GROUP.0
    }
}

/// The random 128-bit name a producer keeps and sends in its hello; sequences, order and
/// deduplication belong to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ProducerId(pub u128);

impl fmt::Debug for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for ProducerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a text is not a producer identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a producer identity: expected 32 hexadecimal digits")]
pub struct ProducerIdError;

impl FromStr for ProducerId {
    type Err = ProducerIdError;

    fn from_str(text: &str) -> Result<Self, ProducerIdError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ProducerIdError);
        }
        u128::from_str_radix(text, 16).map(ProducerId).map_err(|_| ProducerIdError)
    }
}

/// In text formats the printed word, in MessagePack 16 bytes, big endian.
impl Serialize for ProducerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0.to_be_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for ProducerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(D::Error::custom)
        } else {
            let bytes = serde_bytes::ByteArray::<16>::deserialize(deserializer)?;
            Ok(ProducerId(u128::from_be_bytes(bytes.into_array())))
        }
    }
}

/// A random 16-bit tag drawn when a node's journal is created and kept in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeTag(pub u16);
