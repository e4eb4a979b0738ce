//! What is wrong with a publish is that publish's alone, unless framing itself is lost.

use bytes::BytesMut;
use core::num::NonZeroU64;
use restante_protocol::codec::{
    FrameError, Limits, Next, PublishFault, RefusedPublish, next_frame, put_message,
};
use restante_protocol::frame::{Frame, PUBLISH_FIXED_BYTES};
use restante_protocol::limits::{
    DELAY_MS_MAX, FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RECEIVERS_MAX, TTL_MS_MAX,
};
use restante_protocol::message::{Body, BodyError, Delay};
use restante_protocol::refusal::Code;

const LIMITS: Limits = Limits { payload_bytes_max: 1_000, control_bytes_max: 1_000 };

/// A publish frame from its parts, true or not.
fn raw(length: u32, flags: u8, count: u16, sequence: u64, rest: &[u8]) -> Vec<u8> {
    let (length, count, sequence) =
        (length.to_be_bytes(), count.to_be_bytes(), sequence.to_be_bytes());
    [&length[..], &[1, flags], &count, &sequence, rest].concat()
}

/// One whose length is what it should be.
fn whole(flags: u8, count: u16, rest: &[u8]) -> Vec<u8> {
    raw((PUBLISH_FIXED_BYTES - 4 + rest.len()) as u32, flags, count, 9, rest)
}

fn refused(bytes: &[u8]) -> RefusedPublish {
    match next_frame(bytes, &LIMITS) {
        Ok(Next::Refused(refused)) => refused,
        other => panic!("expected a refused publish, got {other:?}"),
    }
}

#[test]
fn faults_of_a_whole_publish_name_themselves_and_let_the_next_frame_through() {
    let one = [0, 0, 0, 0];
    for (bytes, fault, code) in [
        (whole(0, 0, &[0]), PublishFault::NoReceiver, Code::NoReceiver),
        (whole(2, 1, &one), PublishFault::UnknownFlags(2), Code::Unsupported),
        (whole(0, 1, &one), PublishFault::Body(BodyError::Truncated), Code::Malformed),
        (
            whole(0, 1, &[&one[..], &[0x80]].concat()),
            PublishFault::Body(BodyError::UnknownFlags(0x80)),
            Code::Unsupported,
        ),
        (
            whole(0, 1, &[&one[..], &[1, 0]].concat()),
            PublishFault::Body(BodyError::EmptyKey),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[1, 5, b'k']].concat()),
            PublishFault::Body(BodyError::Truncated),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[2, 0xff, 0xff]].concat()),
            PublishFault::Body(BodyError::HeadersTooLong(65_535)),
            Code::TooLarge,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 0]].concat()),
            PublishFault::Body(BodyError::NoOptions),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 17], &[0; 8]].concat()),
            PublishFault::Body(BodyError::UnknownOptions(17)),
            Code::Unsupported,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 1], &[0; 8]].concat()),
            PublishFault::Body(BodyError::BadTtl(0)),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 1], &(TTL_MS_MAX + 1).to_be_bytes()].concat()),
            PublishFault::Body(BodyError::BadTtl(TTL_MS_MAX + 1)),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 2], &(DELAY_MS_MAX + 1).to_be_bytes()].concat()),
            PublishFault::Body(BodyError::BadDelay(DELAY_MS_MAX + 1)),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 2], &[0; 8]].concat()),
            PublishFault::Body(BodyError::BadDelay(0)),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 4], &(1u64 << 48).to_be_bytes()].concat()),
            PublishFault::Body(BodyError::BadDeliverAt(1 << 48)),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 6], &1u64.to_be_bytes(), &[9; 8]].concat()),
            PublishFault::Body(BodyError::DelayedTwice),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 8, 0, 1], &[0, 0, 0, 7]].concat()),
            PublishFault::Receivers,
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 8, 0, 2], &[0, 0, 0, 7]].concat()),
            PublishFault::Body(BodyError::Truncated),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[16, 1], &[0; 7]].concat()),
            PublishFault::Body(BodyError::Truncated),
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[8], &[7; 16]].concat()),
            PublishFault::OriginalId,
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[32], &[7; 16]].concat()),
            PublishFault::OriginalId,
            Code::Malformed,
        ),
        (
            whole(0, 1, &[&one[..], &[0; 1_002]].concat()),
            PublishFault::PayloadTooLarge { bytes_min: 1_001, bytes_max: 1_000 },
            Code::TooLarge,
        ),
        (
            whole(0, 1_025, &[0; 4 * 1_025 + 1]),
            PublishFault::TooManyReceivers(RECEIVERS_MAX + 1),
            Code::TooLarge,
        ),
    ] {
        let found = refused(&bytes);
        let consumed = bytes.len();
        assert_eq!(found, RefusedPublish { sequence: 9, fault, consumed, skip: 0 });
        assert_eq!(fault.refusal().code, code);
        let followed = [&bytes[..], &[0, 0, 0, 1, 9]].concat();
        let next = next_frame(&followed[refused(&followed).consumed..], &LIMITS);
        assert_eq!(next, Ok(Next::Frame { frame: Frame::Heartbeat, consumed: 5 }));
    }
}

#[test]
fn an_oversized_publish_is_refused_by_its_first_bytes_and_skipped_unread() {
    let length = PAYLOAD_BYTES_MAX as u32;
    let frame_bytes = 4 + length as usize;
    for rest in [0, 1, 4, 5, 1_000] {
        let bytes = raw(length, 0, 1, 9, &vec![0; rest]);
        let found = refused(&bytes);
        assert_eq!((found.sequence, found.consumed), (9, bytes.len()));
        assert_eq!(found.consumed + found.skip, frame_bytes);
        assert!(matches!(found.fault, PublishFault::PayloadTooLarge { bytes_max: 1_000, .. }));
    }
    let fixed = raw(length, 0, 1, 9, &[]);
    for end in 5..PUBLISH_FIXED_BYTES {
        let next = next_frame(&fixed[..end], &LIMITS);
        assert_eq!(next, Ok(Next::Partial { bytes: PUBLISH_FIXED_BYTES }), "of {end} bytes");
    }
}

#[test]
fn a_payload_of_exactly_the_limit_is_taken_whatever_stands_before_it() {
    let (key, headers, payload) = (&[b'k'; 255][..], &[0x80][..], &[7; 1_000][..]);
    for body in [
        Body { payload, ..Body::default() },
        Body { payload, key: Some(key), headers: Some(headers), reply: true, ..Body::default() },
        Body {
            payload,
            ttl_ms: NonZeroU64::new(TTL_MS_MAX),
            delay: NonZeroU64::new(DELAY_MS_MAX).map(Delay::For),
            key: Some(key),
            ..Body::default()
        },
    ] {
        let mut out = BytesMut::new();
        let aliases: Vec<u32> = (0..RECEIVERS_MAX as u32).collect();
        put_message(&mut out, 1, 5, &aliases, &body);
        let next = next_frame(&out, &LIMITS);
        let Ok(Next::Frame { frame: Frame::Publish(publish), consumed }) = next else {
            panic!("{next:?}")
        };
        assert_eq!((consumed, publish.flags, publish.sequence), (out.len(), 1, 5));
        assert!(publish.receivers().eq(aliases));
        assert_eq!(Body::parse(publish.body), Ok(body));
    }
}

#[test]
fn lost_framing_ends_the_connection() {
    for (bytes, error) in [
        (vec![0, 0, 0, 0, 1], FrameError::Empty),
        (vec![0, 0, 0, 0, 9], FrameError::Empty),
        (vec![0, 0, 0, 1, 0x7f], FrameError::UnknownKind(0x7f)),
        (vec![0xff, 0xff, 0xff, 0xff, 0], FrameError::UnknownKind(0)),
        (vec![0, 0, 0, 11, 1], FrameError::Truncated(1)),
        (raw(12, 0, 1, 9, &[]), FrameError::Truncated(1)),
        (
            raw(FRAME_BYTES_MAX as u32 + 1, 0, 1, 9, &[]),
            FrameError::TooLong { kind: 1, bytes: FRAME_BYTES_MAX + 1, bytes_max: FRAME_BYTES_MAX },
        ),
        (vec![0, 0, 0, 2, 9, 0], FrameError::TooLong { kind: 9, bytes: 2, bytes_max: 1 }),
        (vec![0, 0, 0, 2, 2, 0], FrameError::Truncated(2)),
        (
            [&[0, 0, 0, 29, 2][..], &[0; 28]].concat(),
            FrameError::BadRun { first_sequence: 0, count: 0 },
        ),
        (
            [&[0, 0, 0, 29, 2][..], &[0xff; 28]].concat(),
            FrameError::BadRun { first_sequence: u64::MAX, count: u32::MAX },
        ),
        (
            [&[0, 0, 0, 37, 4, 2][..], &[0; 35]].concat(),
            FrameError::UnknownFlags { kind: 4, flags: 2 },
        ),
        (
            [&[0, 0, 0, 23, 5][..], &[0; 4], &[0, 1], &[0; 7], &[2], &[0; 7], &[1]].concat(),
            FrameError::BadRange { first: 2, last: 1 },
        ),
        (
            [
                &[0, 0, 0, 39, 5][..],
                &[0; 4],
                &[0, 2],
                &1u64.to_be_bytes(),
                &3u64.to_be_bytes(),
                &3u64.to_be_bytes(),
                &4u64.to_be_bytes(),
            ]
            .concat(),
            FrameError::RangesOutOfOrder { before: 3, first: 3 },
        ),
        (
            [&[0, 0, 0, 7, 5][..], &[0; 4], &[0, 1]].concat(),
            FrameError::CountMismatch { kind: 5, count: 1 },
        ),
        (
            [&[0, 0, 0, 18, 7][..], &[0; 12], &[2], &[0; 4]].concat(),
            FrameError::BadValue { kind: 7, field: "permanent", value: 2 },
        ),
        ([&[0, 0, 0, 19, 7][..], &[0; 17], &[0xff]].concat(), FrameError::NotUtf8(7)),
        (
            [&[0, 0, 0, 10, 8][..], &[0; 8], &[3]].concat(),
            FrameError::BadValue { kind: 8, field: "kind", value: 3 },
        ),
        (
            [&[0, 0, 0, 29, 3][..], &[0; 24], &[0xff, 0xff], &[0; 2]].concat(),
            FrameError::UnknownCode(0xffff),
        ),
        (vec![0, 0, 0, 2, 0x0a, 0], FrameError::Truncated(0x0a)),
    ] {
        assert_eq!(next_frame(&bytes, &LIMITS), Err(error), "{bytes:02x?}");
    }
}

#[test]
fn a_frame_over_its_limit_is_refused_by_its_first_five_bytes() {
    for kind in [2, 3, 4, 5, 6, 7, 8, 9, 0x0a, 0x10] {
        let bytes = [&(FRAME_BYTES_MAX as u32).to_be_bytes()[..], &[kind]].concat();
        let next = next_frame(&bytes, &LIMITS);
        assert!(matches!(next, Err(FrameError::TooLong { .. })), "0x{kind:02x}: {next:?}");
    }
}
