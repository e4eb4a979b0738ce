//! The section of a message that travels unchanged: producer → journal record → receiver.
//!
//! A publish frame, a journal record and a deliver frame all end in the same bytes, so a node copies
//! them and never takes them apart on the way:
//!
//! ```text
//! u8   flags            bit 0: has key, bit 1: has headers, bit 2: a return value is awaited,
//!                       bit 3: handed over from another peer, bit 4: has options, bit 5: was delayed
//! u128 original id      only with bit 3, set by a node alone: the id under which the message was
//!                       first accepted, and under which it is still delivered
//! u8   options          only with bit 4, and then not 0: bit 0: has a time to live, bit 1: is delayed
//!                       for a time, bit 2: is delayed until a time, bit 3: names its receivers
//! u64  time to live     only with bit 0 of the options: milliseconds, 1 to 365 days
//! u64  delay            only with bit 1 of the options: milliseconds, 1 to 365 days
//! u64  deliver at       only with bit 2 of the options, and not with bit 1: milliseconds since the
//!                       Unix epoch, 1 to 2^48 - 1
//! u16  receivers        only with bit 3 of the options, set by a node alone: for whom a message is that
//!                       waits in the log for its time; then a u32 for each
//! u8   key length       only with bit 0; then the key's bytes, 1..=255
//! u16  headers length   only with bit 1; then a MessagePack map of string to string
//! …    payload          the rest
//! ```

use crate::id::{MessageId, PeerId};
use crate::limits::{DELAY_MS_MAX, DELIVER_AT_MS_MAX, HEADERS_BYTES_MAX, TTL_MS_MAX};
use bytes::BufMut;
use core::hash::{BuildHasher, Hasher};
use core::num::NonZeroU64;

/// Flag bits of a body.
pub mod body_flags {
    /// An ordering key follows.
    pub const KEY: u8 = 1;
    /// A header map follows.
    pub const HEADERS: u8 = 2;
    /// The producer awaits the receiver's return value.
    pub const REPLY: u8 = 4;
    /// The original id of a handed-over message follows. Producers may not set it.
    pub const ORIGINAL_ID: u8 = 8;
    /// Options follow.
    pub const OPTIONS: u8 = 16;
    /// It was delayed under its original id, and has not been sent under that before. Producers may not
    /// set it.
    pub const RELEASED: u8 = 32;
    /// Bits this version does not know; they must be zero.
    pub const UNKNOWN: u8 = !(KEY | HEADERS | REPLY | ORIGINAL_ID | OPTIONS | RELEASED);
}

/// Bits of a body's options. Each stands for a field, in this order.
pub mod option_flags {
    /// A time to live follows.
    pub const TTL: u8 = 1;
    /// A delay follows.
    pub const DELAY: u8 = 2;
    /// The time before which it is not delivered follows; excludes a delay.
    pub const DELIVER_AT: u8 = 4;
    /// The receivers of a delayed message follow. Producers may not set it.
    pub const RECEIVERS: u8 = 8;
    /// Bits this version does not know; they must be zero.
    pub const UNKNOWN: u8 = !(TTL | DELAY | DELIVER_AT | RECEIVERS);
}

/// A body taken apart, borrowing from the frame or record it came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Body<'a> {
    /// The id under which a message that was handed over, replayed or delayed was first accepted.
    pub original_id: Option<MessageId>,
    /// Whether it was delayed under that id, and has not been sent under it before.
    pub released: bool,
    /// For how many milliseconds after it was first accepted it may still be sent, at most
    /// [`TTL_MS_MAX`]. One whose time has ended is not sent any more, and its record says so.
    pub ttl_ms: Option<NonZeroU64>,
    /// When it enters its receivers' queues, if not at once.
    pub delay: Option<Delay>,
    /// Of a delayed message in the log: its receivers' peer ids, 4 bytes each, big endian.
    pub receivers: Option<&'a [u8]>,
    /// The ordering key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The encoded header map, if there is one; decode it with [`decode_headers`].
    pub headers: Option<&'a [u8]>,
    /// Whether the producer awaits a return value.
    pub reply: bool,
    /// What the message says; opaque.
    pub payload: &'a [u8],
}

/// When a delayed message enters its receivers' queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// So many milliseconds after it was accepted, at most [`DELAY_MS_MAX`]; counted on a clock that
    /// cannot be set.
    For(NonZeroU64),
    /// When the node's wall clock shows this time or a later one, in milliseconds since the Unix epoch,
    /// at most [`DELIVER_AT_MS_MAX`].
    Until(NonZeroU64),
}

impl Delay {
    /// When it is over by the wall clock, if that is not set meanwhile, of a message accepted at this
    /// time.
    #[must_use]
    pub const fn end_ms(self, accepted_ms: u64) -> u64 {
        match self {
            Delay::For(ms) => accepted_ms.saturating_add(ms.get()),
            Delay::Until(ms) => ms.get(),
        }
    }
}

/// Why bytes are not a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The bytes end inside the key or the headers.
    #[error("the message body ends before its key or headers do")]
    Truncated,
    /// A key of no bytes.
    #[error(
        "an ordering key has 1 to 255 bytes, this one is empty; leave the key flag out instead"
    )]
    EmptyKey,
    /// Flag bits of a later version.
    #[error("the body flags 0x{0:02x} have bits this version does not know")]
    UnknownFlags(u8),
    /// The options flag with no option.
    #[error("the body has options and none of them is set; leave the options flag out instead")]
    NoOptions,
    /// Option bits of a later version.
    #[error("the body's options 0x{0:02x} have bits this version does not know")]
    UnknownOptions(u8),
    /// A time to live out of its bounds.
    #[error("a time to live has 1 to {TTL_MS_MAX} ms, this one has {0}")]
    BadTtl(u64),
    /// A delay out of its bounds.
    #[error("a delay has 1 to {DELAY_MS_MAX} ms, this one has {0}")]
    BadDelay(u64),
    /// A time out of its bounds.
    #[error("a time of delivery has 1 to {DELIVER_AT_MS_MAX} ms since the Unix epoch, not {0}")]
    BadDeliverAt(u64),
    /// Delayed both for a time and until one.
    #[error("a message is delayed for a time or until one, this one is both")]
    DelayedTwice,
    /// The header map is too long.
    #[error("the header map has {0} bytes, at most 32768 are allowed")]
    HeadersTooLong(usize),
}

impl<'a> Body<'a> {
    /// Takes a body apart without copying. O(1): the payload is not looked at.
    ///
    /// # Errors
    /// The bytes are not a body.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Body<'a>, BodyError> {
        match bytes {
            // Nothing but a payload, as most have.
            [0, payload @ ..] => Ok(Body { payload, ..Body::default() }),
            _ => Body::parse_parts(bytes),
        }
    }

    fn parse_parts(bytes: &'a [u8]) -> Result<Body<'a>, BodyError> {
        let (&flags, mut rest) = bytes.split_first().ok_or(BodyError::Truncated)?;
        if flags & body_flags::UNKNOWN != 0 {
            return Err(BodyError::UnknownFlags(flags));
        }
        let reply = flags & body_flags::REPLY != 0;
        let released = flags & body_flags::RELEASED != 0;
        let mut body = Body { reply, released, ..Body::default() };
        if flags & body_flags::ORIGINAL_ID != 0 {
            let (id, after) = rest.split_first_chunk::<16>().ok_or(BodyError::Truncated)?;
            body.original_id = Some(MessageId(u128::from_be_bytes(*id)));
            rest = after;
        }
        if flags & body_flags::OPTIONS != 0 {
            rest = body.parse_options(rest)?;
        }
        if flags & body_flags::KEY != 0 {
            let (&len, after) = rest.split_first().ok_or(BodyError::Truncated)?;
            if len == 0 {
                return Err(BodyError::EmptyKey);
            }
            let (key, after) = after.split_at_checked(len as usize).ok_or(BodyError::Truncated)?;
            body.key = Some(key);
            rest = after;
        }
        if flags & body_flags::HEADERS != 0 {
            let (len, after) = rest.split_first_chunk::<2>().ok_or(BodyError::Truncated)?;
            let len = u16::from_be_bytes(*len) as usize;
            if len > HEADERS_BYTES_MAX {
                return Err(BodyError::HeadersTooLong(len));
            }
            let (headers, after) = after.split_at_checked(len).ok_or(BodyError::Truncated)?;
            body.headers = Some(headers);
            rest = after;
        }
        body.payload = rest;
        Ok(body)
    }

    /// Takes the options off the front; what follows them is returned.
    #[cold]
    fn parse_options(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], BodyError> {
        let (&options, mut rest) = bytes.split_first().ok_or(BodyError::Truncated)?;
        if options == 0 {
            return Err(BodyError::NoOptions);
        }
        if options & option_flags::UNKNOWN != 0 {
            return Err(BodyError::UnknownOptions(options));
        }
        if options & option_flags::TTL != 0 {
            self.ttl_ms = Some(take_millis(&mut rest, TTL_MS_MAX, BodyError::BadTtl)?);
        }
        if options & option_flags::DELAY != 0 {
            let ms = take_millis(&mut rest, DELAY_MS_MAX, BodyError::BadDelay)?;
            self.delay = Some(Delay::For(ms));
        }
        if options & option_flags::DELIVER_AT != 0 {
            if self.delay.is_some() {
                return Err(BodyError::DelayedTwice);
            }
            let ms = take_millis(&mut rest, DELIVER_AT_MS_MAX, BodyError::BadDeliverAt)?;
            self.delay = Some(Delay::Until(ms));
        }
        if options & option_flags::RECEIVERS != 0 {
            let (count, after) = rest.split_first_chunk::<2>().ok_or(BodyError::Truncated)?;
            let bytes = 4 * usize::from(u16::from_be_bytes(*count));
            let (receivers, after) = after.split_at_checked(bytes).ok_or(BodyError::Truncated)?;
            self.receivers = Some(receivers);
            rest = after;
        }
        Ok(rest)
    }

    /// The receivers of a delayed message in the log.
    pub fn delayed_for(&self) -> impl Iterator<Item = PeerId> + use<'a> {
        let ids = self.receivers.unwrap_or_default().chunks_exact(4);
        ids.map(|id| PeerId(u32::from_be_bytes([id[0], id[1], id[2], id[3]])))
    }

    fn options(&self) -> u8 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        flag(self.ttl_ms.is_some(), option_flags::TTL)
            | match self.delay {
                Some(Delay::For(_)) => option_flags::DELAY,
                Some(Delay::Until(_)) => option_flags::DELIVER_AT,
                None => 0,
            }
            | flag(self.receivers.is_some(), option_flags::RECEIVERS)
    }

    fn options_len(&self) -> usize {
        if self.options() == 0 {
            return 0;
        }
        let receivers = self.receivers.map_or(0, |ids| 2 + ids.len());
        1 + self.ttl_ms.map_or(0, |_| 8) + self.delay.map_or(0, |_| 8) + receivers
    }

    /// How many bytes [`Body::encode`] appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        1 + self.original_id.map_or(0, |_| 16)
            + self.options_len()
            + self.key.map_or(0, |key| 1 + key.len())
            + self.headers.map_or(0, |headers| 2 + headers.len())
            + self.payload.len()
    }

    /// Appends the body to `out`. The caller has checked the lengths against [`crate::limits`];
    /// longer keys and headers are left out rather than mangled. Receivers are at most
    /// [`crate::limits::RECEIVERS_MAX`].
    pub fn encode(&self, out: &mut impl BufMut) {
        let key = self.key.filter(|key| !key.is_empty() && key.len() <= usize::from(u8::MAX));
        let headers = self.headers.filter(|headers| headers.len() <= HEADERS_BYTES_MAX);
        let mut flags = 0;
        flags |= if key.is_some() { body_flags::KEY } else { 0 };
        flags |= if headers.is_some() { body_flags::HEADERS } else { 0 };
        flags |= if self.reply { body_flags::REPLY } else { 0 };
        flags |= if self.released { body_flags::RELEASED } else { 0 };
        flags |= if self.original_id.is_some() { body_flags::ORIGINAL_ID } else { 0 };
        let options = self.options();
        flags |= if options != 0 { body_flags::OPTIONS } else { 0 };
        out.put_u8(flags);
        if let Some(id) = self.original_id {
            out.put_u128(id.0);
        }
        if options != 0 {
            out.put_u8(options);
            let delay_ms = self.delay.map(|(Delay::For(ms) | Delay::Until(ms))| ms);
            for ms in [self.ttl_ms, delay_ms].into_iter().flatten() {
                out.put_u64(ms.get());
            }
            if let Some(receivers) = self.receivers {
                out.put_u16((receivers.len() / 4) as u16);
                out.put_slice(receivers);
            }
        }
        if let Some(key) = key {
            out.put_u8(key.len() as u8);
            out.put_slice(key);
        }
        if let Some(headers) = headers {
            out.put_u16(headers.len() as u16);
            out.put_slice(headers);
        }
        out.put_slice(self.payload);
    }

    /// What orders this message among others of the same key; `None` without a key.
    #[must_use]
    pub fn key_hash(&self) -> Option<KeyHash> {
        self.key.map(KeyHash::of)
    }
}

/// Takes a time in milliseconds off the front of `rest`, 1 to `max`.
fn take_millis(
    rest: &mut &[u8],
    max: u64,
    bad: fn(u64) -> BodyError,
) -> Result<NonZeroU64, BodyError> {
    let (ms, after) = rest.split_first_chunk::<8>().ok_or(BodyError::Truncated)?;
    *rest = after;
    let ms = u64::from_be_bytes(*ms);
    NonZeroU64::new(ms).filter(|ms| ms.get() <= max).ok_or(bad(ms))
}

/// A 64-bit digest of an ordering key. Two keys with the same digest share an order, which costs
/// parallelism once in 2^64 pairs and never correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyHash(pub NonZeroU64);

impl KeyHash {
    /// The digest of `key`. Lives in memory only; it is computed again from the body after a restart.
    #[must_use]
    pub fn of(key: &[u8]) -> KeyHash {
        let mut hasher = foldhash::fast::FixedState::default().build_hasher();
        hasher.write(key);
        KeyHash(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MIN))
    }
}

/// Decodes a header map. The order of the producer is kept.
///
/// # Errors
/// When the bytes are not a MessagePack map of strings to strings.
pub fn decode_headers(bytes: &[u8]) -> Result<Vec<(String, String)>, rmp_serde::decode::Error> {
    struct Pairs(Vec<(String, String)>);
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Pairs;
        fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.write_str("a map of strings to strings")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(Pairs(pairs))
        }
    }
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
            deserializer.deserialize_map(Visitor)
        }
    }
    rmp_serde::from_slice::<Pairs>(bytes).map(|pairs| pairs.0)
}

/// Encodes a header map as [`decode_headers`] reads it.
#[must_use]
pub fn encode_headers(pairs: &[(String, String)]) -> Vec<u8> {
    struct Pairs<'a>(&'a [(String, String)]);
    impl serde::Serialize for Pairs<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
        }
    }
    // Writing strings into a Vec cannot fail; an empty map stands in for the impossible.
    rmp_serde::to_vec(&Pairs(pairs)).unwrap_or_else(|_| vec![0x80])
}
