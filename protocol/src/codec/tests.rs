//! Every frame there and back; every way to be wrong.

use super::*;
use crate::control::Control;
use bytes::BytesMut;

fn bytes_of(frame: &Frame<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    put_frame(&mut out, frame).unwrap();
    out
}

fn examples() -> Vec<Frame<'static>> {
    let id = MessageId(0x0192_0000_0001_00aa_0000_0000_0000_0007);
    vec![
        Frame::Publish(Publish {
            flags: publish_flags::ALL_OR_NOTHING,
            sequence: 7,
            aliases: &[0, 0, 0, 1, 0, 0, 0, 2],
            body: &[0, b'h', b'i'],
        }),
        Frame::Confirm(Confirm { first_sequence: 7, count: 3, first_id: id }),
        Frame::Refuse(Refuse {
            sequence: 9,
            id: Some(id),
            code: Code::PeerQuota,
            receivers: SmallVec::from_slice(&[(1, Code::PeerQuota), (2, Code::StaleAlias)]),
            detail: "full".to_owned(),
        }),
        Frame::Refuse(Refuse {
            sequence: 10,
            id: None,
            code: Code::DiskFull,
            receivers: SmallVec::new(),
            detail: String::new(),
        }),
        Frame::Deliver(Deliver {
            redelivered: true,
            attempt: 2,
            slot: 3,
            tag: 4,
            epoch: 5,
            id,
            body: &[1, 1, b'k', b'x'],
        }),
        Frame::Ack(Ack {
            slot: 3,
            ranges: SmallVec::from_slice(&[
                TagRange { first: 1, last: 4 },
                TagRange { first: 6, last: 6 },
                TagRange { first: 9, last: u64::MAX },
            ]),
        }),
        Frame::AckValue(AckValue { slot: 3, tag: 5, value: b"42" }),
        Frame::Nack(Nack {
            slot: 3,
            tag: 7,
            permanent: false,
            retry_after_ms: 1_500,
            reason: "später",
        }),
        Frame::Reply(Reply { sequence: 7, kind: ReplyKind::Refused, value: b"no" }),
        Frame::Heartbeat,
        Frame::Grant(Grant { slot: 3, messages: 100 }),
        Frame::Control(&[0x80]),
    ]
}

#[test]
fn every_frame_survives_the_way_there_and_back() {
    for frame in examples() {
        let bytes = bytes_of(&frame);
        let consumed = bytes.len();
        assert_eq!(next_frame(&bytes, &Limits::default()), Ok(Next::Frame { frame, consumed }));
    }
}

#[test]
fn one_pass_takes_many_frames_from_one_buffer() {
    let mut buffer = BytesMut::new();
    for frame in examples() {
        put_frame(&mut buffer, &frame).unwrap();
    }
    let (mut at, mut seen) = (0, Vec::new());
    while let Next::Frame { frame, consumed } =
        next_frame(&buffer[at..], &Limits::default()).unwrap()
    {
        seen.push(frame);
        at += consumed;
    }
    assert_eq!(at, buffer.len());
    assert_eq!(seen, examples());
}

#[test]
fn a_frame_cut_short_at_any_byte_is_only_waited_for() {
    for frame in examples() {
        let bytes = bytes_of(&frame);
        for end in 0..bytes.len() {
            let next = next_frame(&bytes[..end], &Limits::default());
            let Ok(Next::Partial { bytes: wanted }) = next else {
                panic!("{frame:?} cut to {end} bytes gave {next:?}");
            };
            assert!(wanted > end && wanted <= bytes.len(), "waits for {wanted} with {end}");
        }
    }
}

#[test]
fn a_control_frame_holds_exactly_one_value() {
    let control = Control::Alias { alias: 7, name: "billing".parse().unwrap() };
    let mut out = BytesMut::new();
    put_control(&mut out, &control).unwrap();
    let body = &out[HEADER_BYTES..];
    assert_eq!(parse_control(body).unwrap(), control);
    let trailing = [body, &[0xc0]].concat();
    assert!(matches!(parse_control(&trailing), Err(FrameError::Control(_))));
    assert!(matches!(parse_control(&body[..body.len() - 1]), Err(FrameError::Control(_))));
}
