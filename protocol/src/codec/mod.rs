//! Bytes to frames and back.
//!
//! Constraints: a read buffer with many frames is taken apart in one pass that copies nothing (ack
//! ranges and refusals aside, which are small); every length is checked against [`Limits`] as soon as
//! the frame's first bytes are there, so that a reader never makes room for what it would refuse; no
//! input panics.
//!
//! Two kinds of wrong are kept apart. A [`FrameError`] means that the other side does not speak this
//! protocol: say goodbye with its refusal and close. A [`Next::Refused`] publish is whole as a frame
//! but not to be taken: answer it by a refuse frame with its sequence and go on; what of it has not
//! been read yet is skipped, never buffered.
//!
//! ```text
//! loop {
//!     match next_frame(&buffer[at..], &limits)? {
//!         Next::Frame { frame, consumed } => { handle(frame); at += consumed }
//!         Next::Refused(publish)          => { refuse(publish.sequence, publish.fault.refusal());
//!                                              at += publish.consumed; skip = publish.skip }
//!         Next::Partial { bytes }         => { read until `bytes` are there, counted from `at` }
//!     }
//! }
//! ```

mod control;
mod encode;
mod error;

pub use control::{parse_control, put_control, request_number};
pub use encode::{
    put_ack, put_ack_value, put_confirm, put_deliver, put_frame, put_grant, put_heartbeat,
    put_message, put_nack, put_publish, put_refuse, put_reply,
};
pub use error::{FrameError, PublishFault};

use crate::frame::{
    Ack, AckValue, Confirm, DELIVER_FIXED_BYTES, Deliver, Frame, Grant, HEADER_BYTES, Nack,
    PUBLISH_FIXED_BYTES, Publish, Refuse, Reply, ReplyKind, TagRange, kind, publish_flags,
};
use crate::id::MessageId;
use crate::limits::{
    ACK_RANGES_MAX, CONTROL_BYTES_MAX, FRAME_BYTES_MAX, HEADERS_BYTES_MAX, KEY_BYTES_MAX,
    NAME_BYTES_MAX, PAYLOAD_BYTES_DEFAULT, PAYLOAD_BYTES_MAX, REASON_BYTES_MAX, RECEIVERS_MAX,
    RETURN_BYTES_MAX,
};
use crate::message::Body;
use crate::name::Name;
use crate::refusal::Code;
use smallvec::SmallVec;

/// Bytes of the length word, which it does not count.
const LENGTH_BYTES: usize = 4;
/// Bytes of the type, which the length word counts.
const KIND_BYTES: usize = HEADER_BYTES - LENGTH_BYTES;
/// The most a body has in front of its payload: flags, original id, options, key and headers with their
/// lengths.
const BODY_HEAD_BYTES_MAX: usize = 1 + 16 + (1 + 8 + 8) + 1 + KEY_BYTES_MAX + 2 + HEADERS_BYTES_MAX;

/// What a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of a publish or a deliver frame, in bytes; at most [`PAYLOAD_BYTES_MAX`].
    pub payload_bytes_max: usize,
    /// Largest body of a control frame, in bytes; at most [`CONTROL_BYTES_MAX`].
    pub control_bytes_max: usize,
}

impl Limits {
    /// For a connection that has not introduced itself yet: room for a hello or a welcome.
    pub const BEFORE_HELLO: Limits = Limits { payload_bytes_max: 0, control_bytes_max: 4 * 1024 };

    /// For a node that takes payloads up to this size.
    #[must_use]
    pub const fn with_payload(bytes_max: usize) -> Limits {
        let payload_bytes_max =
            if bytes_max < PAYLOAD_BYTES_MAX { bytes_max } else { PAYLOAD_BYTES_MAX };
        Limits { payload_bytes_max, control_bytes_max: CONTROL_BYTES_MAX }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits::with_payload(PAYLOAD_BYTES_DEFAULT)
    }
}

/// What stands at the front of a read buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// A whole frame.
    Frame {
        /// The frame.
        frame: Frame<'a>,
        /// Its bytes in the buffer.
        consumed: usize,
    },
    /// A publish that must be answered by a refusal; the connection goes on.
    Refused(RefusedPublish),
    /// The beginning of a frame.
    Partial {
        /// Nothing can be said before this many bytes are in the buffer. Never more than a frame
        /// within the limits has.
        bytes: usize,
    },
}

/// A publish frame that is not to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedPublish {
    /// Its sequence, which it consumes.
    pub sequence: u64,
    /// Why.
    pub fault: PublishFault,
    /// Its bytes in the buffer.
    pub consumed: usize,
    /// Its bytes that have not been read yet: the reader drops this many as they come.
    pub skip: usize,
}

/// The publish at the front of `buf`, if one that is to be taken stands there whole, and its bytes.
/// What else stands there is for [`next_frame`] to say. Publishes come in runs, and most of what a node
/// reads is nothing else.
#[inline(always)]
pub fn next_whole_publish<'a>(buf: &'a [u8], limits: &Limits) -> Option<(Publish<'a>, usize)> {
    let [a, b, c, d, kind::PUBLISH] = *buf.first_chunk::<HEADER_BYTES>()? else { return None };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    match next_publish(buf, length, limits) {
        Ok(Next::Frame { frame: Frame::Publish(publish), consumed }) => Some((publish, consumed)),
        _ => None,
    }
}

/// Takes the frame at the front of `buf` apart.
///
/// # Errors
/// The other side does not speak this protocol; nothing behind this point can be trusted.
#[inline]
pub fn next_frame<'a>(buf: &'a [u8], limits: &Limits) -> Result<Next<'a>, FrameError> {
    let Some(&[a, b, c, d, kind]) = buf.first_chunk::<HEADER_BYTES>() else {
        return Ok(Next::Partial { bytes: HEADER_BYTES });
    };
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if kind == kind::PUBLISH {
        return next_publish(buf, length, limits);
    }
    next_other(buf, kind, length, limits)
}

/// Any frame but a publish.
#[inline]
fn next_other<'a>(
    buf: &'a [u8],
    kind: u8,
    length: usize,
    limits: &Limits,
) -> Result<Next<'a>, FrameError> {
    check_length(kind, length, limits)?;
    let consumed = LENGTH_BYTES + length;
    let Some(fields) = buf.get(HEADER_BYTES..consumed) else {
        return Ok(Next::Partial { bytes: consumed });
    };
    let frame = match kind {
        kind::DELIVER => deliver(fields)?,
        kind::ACK => ack(fields)?,
        kind::CONFIRM => confirm(fields)?,
        _ => rare(kind, fields)?,
    };
    Ok(Next::Frame { frame, consumed })
}

/// The parts of the fixed layout, in the order they stand.
struct Fields<'a> {
    kind: u8,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (chunk, rest) =
            self.rest.split_first_chunk::<N>().ok_or(FrameError::Truncated(self.kind))?;
        self.rest = rest;
        Ok(*chunk)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, FrameError> {
        self.take::<1>().map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self) -> Result<u16, FrameError> {
        self.take().map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, FrameError> {
        self.take().map(u32::from_be_bytes)
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, FrameError> {
        self.take().map(u64::from_be_bytes)
    }

    #[inline]
    fn id(&mut self) -> Result<MessageId, FrameError> {
        self.take().map(u128::from_be_bytes).map(MessageId)
    }

    fn code(&mut self) -> Result<Code, FrameError> {
        let number = self.u16()?;
        Code::from_number(number).ok_or(FrameError::UnknownCode(number))
    }

    /// A name behind its length in a byte.
    fn name(&mut self) -> Result<Name, FrameError> {
        let length = usize::from(self.u8()?);
        let (name, rest) =
            self.rest.split_at_checked(length).ok_or(FrameError::Truncated(self.kind))?;
        self.rest = rest;
        let name = core::str::from_utf8(name).map_err(|_| FrameError::NotUtf8(self.kind))?;
        name.parse().map_err(|error| FrameError::BadName { kind: self.kind, error })
    }

    fn text(&self) -> Result<&'a str, FrameError> {
        core::str::from_utf8(self.rest).map_err(|_| FrameError::NotUtf8(self.kind))
    }

    #[inline]
    fn end(&self) -> Result<(), FrameError> {
        if self.rest.is_empty() { Ok(()) } else { Err(FrameError::Trailing(self.kind)) }
    }
}

/// Refuses a frame by its first five bytes, before any room is made for it.
#[inline]
fn check_length(kind: u8, length: usize, limits: &Limits) -> Result<(), FrameError> {
    let bytes_max = KIND_BYTES
        + match kind {
            kind::DELIVER => {
                DELIVER_FIXED_BYTES - HEADER_BYTES + BODY_HEAD_BYTES_MAX + limits.payload_bytes_max
            }
            kind::ACK => 4 + 2 + 16 * ACK_RANGES_MAX,
            kind::CONFIRM => 8 + 4 + 16,
            kind::REFUSE => {
                8 + 16 + 2 + 2 + 2 + (6 + 7 + NAME_BYTES_MAX) * RECEIVERS_MAX + REASON_BYTES_MAX
            }
            kind::ACK_VALUE => 4 + 8 + RETURN_BYTES_MAX,
            kind::NACK => 4 + 8 + 1 + 4 + REASON_BYTES_MAX,
            kind::REPLY => 8 + 1 + RETURN_BYTES_MAX,
            kind::HEARTBEAT => 0,
            kind::GRANT => 4 + 8,
            kind::CONTROL => limits.control_bytes_max,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
    if length == 0 {
        return Err(FrameError::Empty);
    }
    if length > bytes_max {
        return Err(FrameError::TooLong { kind, bytes: length, bytes_max });
    }
    Ok(())
}

#[inline(always)]
fn next_publish<'a>(buf: &'a [u8], length: usize, limits: &Limits) -> Result<Next<'a>, FrameError> {
    if length < PUBLISH_FIXED_BYTES - LENGTH_BYTES {
        return Err(if length == 0 {
            FrameError::Empty
        } else {
            FrameError::Truncated(kind::PUBLISH)
        });
    }
    if length > FRAME_BYTES_MAX {
        let (kind, bytes_max) = (kind::PUBLISH, FRAME_BYTES_MAX);
        return Err(FrameError::TooLong { kind, bytes: length, bytes_max });
    }
    let Some((fixed, _)) = buf.split_first_chunk::<PUBLISH_FIXED_BYTES>() else {
        return Ok(Next::Partial { bytes: PUBLISH_FIXED_BYTES });
    };
    let [_, _, _, _, _, flags, c0, c1, s0, s1, s2, s3, s4, s5, s6, s7] = *fixed;
    let sequence = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let count = usize::from(u16::from_be_bytes([c0, c1]));
    let frame_bytes = LENGTH_BYTES + length;
    let body_at = PUBLISH_FIXED_BYTES + 4 * count;
    if body_at > frame_bytes {
        return Err(FrameError::Truncated(kind::PUBLISH));
    }
    let refused = |fault| {
        let consumed = frame_bytes.min(buf.len());
        let skip = frame_bytes - consumed;
        Ok(Next::Refused(RefusedPublish { sequence, fault, consumed, skip }))
    };
    if let Some(fault) = fixed_fault(flags, count, frame_bytes - body_at, limits) {
        return refused(fault);
    }
    if buf.len() < frame_bytes {
        return Ok(Next::Partial { bytes: frame_bytes });
    }
    let (aliases, body) = (&buf[PUBLISH_FIXED_BYTES..body_at], &buf[body_at..frame_bytes]);
    match Body::parse(body) {
        Ok(parts) if parts.payload.len() > limits.payload_bytes_max => {
            refused(too_large(parts.payload.len(), limits))
        }
        Ok(parts) if parts.original_id.is_some() || parts.released => {
            refused(PublishFault::OriginalId)
        }
        Ok(parts) if parts.receivers.is_some() => refused(PublishFault::Receivers),
        Ok(_) => {
            let frame = Frame::Publish(Publish { flags, sequence, aliases, body });
            Ok(Next::Frame { frame, consumed: frame_bytes })
        }
        Err(error) => refused(PublishFault::Body(error)),
    }
}

/// What can be held against a publish by its fixed part and length alone.
#[inline]
fn fixed_fault(
    flags: u8,
    count: usize,
    body_bytes: usize,
    limits: &Limits,
) -> Option<PublishFault> {
    let payload_bytes_min = body_bytes.saturating_sub(BODY_HEAD_BYTES_MAX);
    if flags & publish_flags::UNKNOWN != 0 {
        Some(PublishFault::UnknownFlags(flags))
    } else if count == 0 {
        Some(PublishFault::NoReceiver)
    } else if count > RECEIVERS_MAX {
        Some(PublishFault::TooManyReceivers(count))
    } else if payload_bytes_min > limits.payload_bytes_max {
        Some(too_large(payload_bytes_min, limits))
    } else {
        None
    }
}

fn too_large(bytes_min: usize, limits: &Limits) -> PublishFault {
    PublishFault::PayloadTooLarge { bytes_min, bytes_max: limits.payload_bytes_max }
}

#[inline]
fn deliver(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut fields = Fields { kind: kind::DELIVER, rest };
    let flags = fields.u8()?;
    if flags > 1 {
        return Err(FrameError::UnknownFlags { kind: kind::DELIVER, flags });
    }
    Ok(Frame::Deliver(Deliver {
        redelivered: flags == 1,
        attempt: fields.u16()?,
        slot: fields.u32()?,
        tag: fields.u64()?,
        epoch: fields.u32()?,
        id: fields.id()?,
        body: fields.rest,
    }))
}

#[inline]
fn ack(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut fields = Fields { kind: kind::ACK, rest };
    let slot = fields.u32()?;
    let count = usize::from(fields.u16()?);
    if fields.rest.len() != 16 * count {
        return Err(FrameError::CountMismatch { kind: kind::ACK, count });
    }
    if count > ACK_RANGES_MAX {
        return Err(FrameError::TooMany { kind: kind::ACK, count, count_max: ACK_RANGES_MAX });
    }
    let mut ranges: SmallVec<[TagRange; 2]> = SmallVec::with_capacity(count);
    for _ in 0..count {
        let (first, last) = (fields.u64()?, fields.u64()?);
        if first > last {
            return Err(FrameError::BadRange { first, last });
        }
        if let Some(before) = ranges.last().map(|range| range.last).filter(|last| *last >= first) {
            return Err(FrameError::RangesOutOfOrder { before, first });
        }
        ranges.push(TagRange { first, last });
    }
    Ok(Frame::Ack(Ack { slot, ranges }))
}

#[inline]
fn confirm(rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut fields = Fields { kind: kind::CONFIRM, rest };
    let (first_sequence, count, first_id) = (fields.u64()?, fields.u32()?, fields.id()?);
    fields.end()?;
    if count == 0 || first_sequence.checked_add(u64::from(count)).is_none() {
        return Err(FrameError::BadRun { first_sequence, count });
    }
    Ok(Frame::Confirm(Confirm { first_sequence, count, first_id }))
}

#[inline(never)]
fn rare(kind: u8, rest: &[u8]) -> Result<Frame<'_>, FrameError> {
    let mut fields = Fields { kind, rest };
    Ok(match kind {
        kind::REFUSE => Frame::Refuse(refuse(fields)?),
        kind::ACK_VALUE => {
            let (slot, tag) = (fields.u32()?, fields.u64()?);
            Frame::AckValue(AckValue { slot, tag, value: fields.rest })
        }
        kind::NACK => Frame::Nack(nack(fields)?),
        kind::REPLY => {
            let sequence = fields.u64()?;
            let kind = match fields.u8()? {
                0 => ReplyKind::Acked,
                1 => ReplyKind::Refused,
                2 => ReplyKind::Ended,
                value => return Err(FrameError::BadValue { kind, field: "kind", value }),
            };
            Frame::Reply(Reply { sequence, kind, value: fields.rest })
        }
        kind::HEARTBEAT => {
            fields.end()?;
            Frame::Heartbeat
        }
        kind::GRANT => {
            let grant = Grant { slot: fields.u32()?, messages: fields.u64()? };
            fields.end()?;
            Frame::Grant(grant)
        }
        kind::CONTROL => Frame::Control(fields.rest),
        unknown => return Err(FrameError::UnknownKind(unknown)),
    })
}

fn refuse(mut fields: Fields<'_>) -> Result<Refuse, FrameError> {
    let (sequence, id, code) = (fields.u64()?, fields.id()?, fields.code()?);
    let (count, named) = (usize::from(fields.u16()?), usize::from(fields.u16()?));
    if count > RECEIVERS_MAX || named > RECEIVERS_MAX {
        let (kind, count_max) = (kind::REFUSE, RECEIVERS_MAX);
        return Err(FrameError::TooMany { kind, count: count.max(named), count_max });
    }
    let mut receivers = SmallVec::new();
    for _ in 0..count {
        receivers.push((fields.u32()?, fields.code()?));
    }
    let mut members = Vec::new();
    for _ in 0..named {
        members.push((fields.u32()?, fields.code()?, fields.name()?));
    }
    let detail = fields.text()?;
    if detail.len() > REASON_BYTES_MAX {
        let (kind, bytes_max) = (kind::REFUSE, REASON_BYTES_MAX);
        return Err(FrameError::TooLong { kind, bytes: detail.len(), bytes_max });
    }
    let id = Some(id).filter(|id| id.0 != 0);
    Ok(Refuse { sequence, id, code, receivers, members, detail: detail.to_owned() })
}

fn nack(mut fields: Fields<'_>) -> Result<Nack<'_>, FrameError> {
    let (slot, tag) = (fields.u32()?, fields.u64()?);
    let permanent = match fields.u8()? {
        0 => false,
        1 => true,
        value => {
            return Err(FrameError::BadValue { kind: kind::NACK, field: "permanent", value });
        }
    };
    Ok(Nack { slot, tag, permanent, retry_after_ms: fields.u32()?, reason: fields.text()? })
}
