//! Frames as text that a stranger's decoder can be compared with: JSON, bytes as hexadecimal digits.

use restante_protocol::codec::{Limits, Next, next_frame, parse_control};
use restante_protocol::frame::{Ack, Frame, ReplyKind};
use restante_protocol::limits::PAYLOAD_BYTES_MAX;
use serde_json::{Value, json};

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).expect("hexadecimal digits only") as u8)
        .collect();
    assert_eq!(digits.len() % 2, 0, "whole bytes");
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// What one whole frame says.
pub(crate) fn describe(bytes: &[u8]) -> Value {
    let limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
    match next_frame(bytes, &limits) {
        Ok(Next::Frame { frame, consumed }) => {
            assert_eq!(consumed, bytes.len(), "one frame and nothing else");
            frame_as_json(&frame)
        }
        other => panic!("not a frame: {other:?}"),
    }
}

fn frame_as_json(frame: &Frame<'_>) -> Value {
    match frame {
        Frame::Publish(publish) => json!({ "publish": {
            "flags": publish.flags,
            "sequence": publish.sequence,
            "aliases": publish.receivers().collect::<Vec<u32>>(),
            "body": hex(publish.body),
        }}),
        Frame::Confirm(confirm) => json!({ "confirm": {
            "first_sequence": confirm.first_sequence,
            "count": confirm.count,
            "first_id": confirm.first_id.to_string(),
        }}),
        Frame::Refuse(refuse) => json!({ "refuse": {
            "sequence": refuse.sequence,
            "id": refuse.id.map(|id| id.to_string()),
            "code": refuse.code.number(),
            "receivers": refuse.receivers.iter()
                .map(|(alias, code)| json!([alias, code.number()]))
                .collect::<Vec<Value>>(),
            "members": refuse.members.iter()
                .map(|(alias, code, name)| json!([alias, code.number(), name]))
                .collect::<Vec<Value>>(),
            "detail": refuse.detail,
        }}),
        Frame::Deliver(deliver) => json!({ "deliver": {
            "redelivered": deliver.redelivered,
            "attempt": deliver.attempt,
            "slot": deliver.slot,
            "tag": deliver.tag,
            "epoch": deliver.epoch,
            "id": deliver.id.to_string(),
            "body": hex(deliver.body),
        }}),
        Frame::Ack(Ack { slot, ranges }) => json!({ "ack": {
            "slot": slot,
            "ranges": ranges.iter()
                .map(|range| json!([range.first, range.last]))
                .collect::<Vec<Value>>(),
        }}),
        Frame::AckValue(ack) => json!({ "ack_value": {
            "slot": ack.slot, "tag": ack.tag, "value": hex(ack.value),
        }}),
        Frame::Nack(nack) => json!({ "nack": {
            "slot": nack.slot,
            "tag": nack.tag,
            "permanent": nack.permanent,
            "retry_after_ms": nack.retry_after_ms,
            "reason": nack.reason,
        }}),
        Frame::Reply(reply) => json!({ "reply": {
            "sequence": reply.sequence,
            "kind": match reply.kind {
                ReplyKind::Acked => "acked",
                ReplyKind::Refused => "refused",
                ReplyKind::Ended => "ended",
            },
            "value": hex(reply.value),
        }}),
        Frame::Heartbeat => json!({ "heartbeat": null }),
        Frame::Grant(grant) => json!({ "grant": {
            "slot": grant.slot, "messages": grant.messages,
        }}),
        Frame::Control(body) => {
            let control = parse_control(body).expect("a control value");
            json!({ "control": serde_json::to_value(&control).expect("a value in JSON") })
        }
    }
}
