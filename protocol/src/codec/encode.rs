//! Frames to bytes. Every function appends one whole frame (an ack of very many ranges: several).
//!
//! The fixed part is built on the stack and appended in one piece after one reservation, so that a
//! message costs two copies and no growth check in between. What the sender may have too much of
//! (reasons, ack ranges) is cut or split here to what the other side must accept.

use super::error::FrameError;
use super::{KIND_BYTES, LENGTH_BYTES};
use crate::frame::{
    Ack, AckValue, Confirm, DELIVER_FIXED_BYTES, Deliver, Frame, Grant, HEADER_BYTES, Nack,
    PUBLISH_FIXED_BYTES, Publish, Refuse, Reply, TagRange, kind,
};
use crate::limits::{ACK_RANGES_MAX, CONTROL_BYTES_MAX, RECEIVERS_MAX, RETURN_BYTES_MAX};
use crate::message::Body;
use crate::refusal::cut_reason;
use bytes::{BufMut, BytesMut};

/// A stack buffer filled from the front.
struct Fixed<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Fixed<N> {
    /// Starts with the length word and the type of a frame of `N + variable` bytes.
    ///
    /// A length over `u32` saturates: the other side refuses it, nothing is mistaken for a frame.
    #[inline]
    fn new(kind: u8, variable: usize) -> Fixed<N> {
        let length = u32::try_from(N - LENGTH_BYTES + variable).unwrap_or(u32::MAX);
        Fixed { bytes: [0; N], at: 0 }.with(length.to_be_bytes()).with([kind])
    }

    #[inline]
    fn with<const M: usize>(mut self, field: [u8; M]) -> Fixed<N> {
        self.bytes[self.at..self.at + M].copy_from_slice(&field);
        self.at += M;
        self
    }

    #[inline]
    fn put(self, out: &mut BytesMut, variable: usize) {
        debug_assert_eq!(self.at, N, "every fixed byte is written");
        out.reserve(N + variable);
        out.put_slice(&self.bytes);
    }
}

/// Appends a publish whose aliases and body are bytes already.
#[inline]
pub fn put_publish(out: &mut BytesMut, publish: &Publish<'_>) {
    let variable = publish.aliases.len() + publish.body.len();
    put_publish_fixed(out, publish.flags, publish.aliases.len() / 4, publish.sequence, variable);
    out.put_slice(publish.aliases);
    out.put_slice(publish.body);
}

/// Appends a publish, encoding its aliases and body in place.
///
/// The caller has checked the payload against the welcome's `payload_bytes_max`, the key and headers
/// against [`crate::limits`], and names 1 to [`RECEIVERS_MAX`] receivers: the node refuses others.
#[inline]
pub fn put_message(out: &mut BytesMut, flags: u8, sequence: u64, aliases: &[u32], body: &Body<'_>) {
    let start = out.len();
    put_publish_fixed(out, flags, aliases.len(), sequence, 4 * aliases.len() + body.encoded_len());
    for alias in aliases {
        out.put_u32(*alias);
    }
    body.encode(out);
    // A key or header map that is over its limit was left out, so the length is only known now.
    let length = u32::try_from(out.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
    out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
}

#[inline]
fn put_publish_fixed(
    out: &mut BytesMut,
    flags: u8,
    receivers: usize,
    sequence: u64,
    variable: usize,
) {
    let receivers = u16::try_from(receivers).unwrap_or(u16::MAX);
    Fixed::<PUBLISH_FIXED_BYTES>::new(kind::PUBLISH, variable)
        .with([flags])
        .with(receivers.to_be_bytes())
        .with(sequence.to_be_bytes())
        .put(out, variable);
}

/// Appends a confirm.
#[inline]
pub fn put_confirm(out: &mut BytesMut, confirm: &Confirm) {
    Fixed::<{ HEADER_BYTES + 28 }>::new(kind::CONFIRM, 0)
        .with(confirm.first_sequence.to_be_bytes())
        .with(confirm.count.to_be_bytes())
        .with(confirm.first_id.0.to_be_bytes())
        .put(out, 0);
}

/// Appends a refusal. The detail is cut to [`crate::limits::REASON_BYTES_MAX`] at a character's boundary;
/// of receivers and members there are at most [`RECEIVERS_MAX`] each.
pub fn put_refuse(out: &mut BytesMut, refuse: &Refuse) {
    let receivers = &refuse.receivers[..refuse.receivers.len().min(RECEIVERS_MAX)];
    let members = &refuse.members[..refuse.members.len().min(RECEIVERS_MAX)];
    let detail = cut_reason(&refuse.detail);
    let names: usize = members.iter().map(|(.., name)| 7 + name.as_str().len()).sum();
    let variable = 6 * receivers.len() + names + detail.len();
    // At most RECEIVERS_MAX each, which fits.
    let (count, named) = (receivers.len() as u16, members.len() as u16);
    Fixed::<{ HEADER_BYTES + 30 }>::new(kind::REFUSE, variable)
        .with(refuse.sequence.to_be_bytes())
        .with(refuse.id.unwrap_or_default().0.to_be_bytes())
        .with(refuse.code.number().to_be_bytes())
        .with(count.to_be_bytes())
        .with(named.to_be_bytes())
        .put(out, variable);
    for (alias, code) in receivers {
        out.put_u32(*alias);
        out.put_u16(code.number());
    }
    for (alias, code, name) in members {
        out.put_u32(*alias);
        out.put_u16(code.number());
        // A name is at most NAME_BYTES_MAX long, which fits.
        out.put_u8(name.as_str().len() as u8);
        out.put_slice(name.as_str().as_bytes());
    }
    out.put_slice(detail.as_bytes());
}

/// Appends a delivery.
#[inline]
pub fn put_deliver(out: &mut BytesMut, deliver: &Deliver<'_>) {
    Fixed::<DELIVER_FIXED_BYTES>::new(kind::DELIVER, deliver.body.len())
        .with([u8::from(deliver.redelivered)])
        .with(deliver.attempt.to_be_bytes())
        .with(deliver.slot.to_be_bytes())
        .with(deliver.tag.to_be_bytes())
        .with(deliver.epoch.to_be_bytes())
        .with(deliver.id.0.to_be_bytes())
        .put(out, deliver.body.len());
    out.put_slice(deliver.body);
}

/// Appends an ack of ascending ranges; of more than [`ACK_RANGES_MAX`], several. Of none, nothing.
#[inline]
pub fn put_ack(out: &mut BytesMut, slot: u32, ranges: &[TagRange]) {
    for ranges in ranges.chunks(ACK_RANGES_MAX) {
        let variable = 16 * ranges.len();
        // At most ACK_RANGES_MAX, which fits.
        let count = ranges.len() as u16;
        Fixed::<{ HEADER_BYTES + 6 }>::new(kind::ACK, variable)
            .with(slot.to_be_bytes())
            .with(count.to_be_bytes())
            .put(out, variable);
        for range in ranges {
            out.put_u64(range.first);
            out.put_u64(range.last);
        }
    }
}

/// Appends an ack with a return value.
///
/// # Errors
/// Nothing was appended: the value is over [`RETURN_BYTES_MAX`].
pub fn put_ack_value(out: &mut BytesMut, ack: &AckValue<'_>) -> Result<(), FrameError> {
    check(kind::ACK_VALUE, ack.value.len(), RETURN_BYTES_MAX)?;
    Fixed::<{ HEADER_BYTES + 12 }>::new(kind::ACK_VALUE, ack.value.len())
        .with(ack.slot.to_be_bytes())
        .with(ack.tag.to_be_bytes())
        .put(out, ack.value.len());
    out.put_slice(ack.value);
    Ok(())
}

/// Appends a nack. The reason is cut to [`crate::limits::REASON_BYTES_MAX`] at a character's boundary.
pub fn put_nack(out: &mut BytesMut, nack: &Nack<'_>) {
    let reason = cut_reason(nack.reason);
    Fixed::<{ HEADER_BYTES + 17 }>::new(kind::NACK, reason.len())
        .with(nack.slot.to_be_bytes())
        .with(nack.tag.to_be_bytes())
        .with([u8::from(nack.permanent)])
        .with(nack.retry_after_ms.to_be_bytes())
        .put(out, reason.len());
    out.put_slice(reason.as_bytes());
}

/// Appends the end of a call.
///
/// # Errors
/// Nothing was appended: the value is over [`RETURN_BYTES_MAX`].
pub fn put_reply(out: &mut BytesMut, reply: &Reply<'_>) -> Result<(), FrameError> {
    check(kind::REPLY, reply.value.len(), RETURN_BYTES_MAX)?;
    Fixed::<{ HEADER_BYTES + 9 }>::new(kind::REPLY, reply.value.len())
        .with(reply.sequence.to_be_bytes())
        .with([reply.kind as u8])
        .put(out, reply.value.len());
    out.put_slice(reply.value);
    Ok(())
}

/// Appends a sign of life.
pub fn put_heartbeat(out: &mut BytesMut) {
    Fixed::<HEADER_BYTES>::new(kind::HEARTBEAT, 0).put(out, 0);
}

/// Appends a grant.
pub fn put_grant(out: &mut BytesMut, grant: &Grant) {
    Fixed::<{ HEADER_BYTES + 12 }>::new(kind::GRANT, 0)
        .with(grant.slot.to_be_bytes())
        .with(grant.messages.to_be_bytes())
        .put(out, 0);
}

/// Appends any frame: for those who relay, test and inspect. The hot path calls the others.
///
/// # Errors
/// Nothing was appended: a variable part is over its limit.
pub fn put_frame(out: &mut BytesMut, frame: &Frame<'_>) -> Result<(), FrameError> {
    match frame {
        Frame::Publish(publish) => put_publish(out, publish),
        Frame::Confirm(confirm) => put_confirm(out, confirm),
        Frame::Refuse(refuse) => put_refuse(out, refuse),
        Frame::Deliver(deliver) => put_deliver(out, deliver),
        Frame::Ack(Ack { slot, ranges }) => put_ack(out, *slot, ranges),
        Frame::AckValue(ack) => put_ack_value(out, ack)?,
        Frame::Nack(nack) => put_nack(out, nack),
        Frame::Reply(reply) => put_reply(out, reply)?,
        Frame::Heartbeat => put_heartbeat(out),
        Frame::Grant(grant) => put_grant(out, grant),
        Frame::Control(body) => {
            check(kind::CONTROL, body.len(), CONTROL_BYTES_MAX)?;
            Fixed::<HEADER_BYTES>::new(kind::CONTROL, body.len()).put(out, body.len());
            out.put_slice(body);
        }
    }
    Ok(())
}

fn check(kind: u8, bytes: usize, bytes_max: usize) -> Result<(), FrameError> {
    if bytes > bytes_max {
        return Err(FrameError::TooLong { kind, bytes, bytes_max });
    }
    Ok(())
}

const _: () = assert!(RECEIVERS_MAX <= u16::MAX as usize);
const _: () = assert!(ACK_RANGES_MAX <= u16::MAX as usize);
const _: () = assert!(KIND_BYTES == 1);
