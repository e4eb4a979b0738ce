//! Whatever comes: no panic, nothing read beyond the buffer, no room asked for beyond the limits; and
//! every frame that is taken is written back as the same bytes.

use crate::samples::{self, Sample};
use bytes::BytesMut;
use core::num::NonZeroU64;
use proptest::prelude::*;
use restante_protocol::codec::{
    Limits, Next, next_frame, parse_control, put_frame, request_number,
};
use restante_protocol::frame::{
    Ack, AckValue, Confirm, Deliver, Frame, Grant, Nack, Publish, Refuse, Reply, ReplyKind,
    TagRange,
};
use restante_protocol::id::MessageId;
use restante_protocol::limits::{DELAY_MS_MAX, PAYLOAD_BYTES_MAX, TTL_MS_MAX};
use restante_protocol::message::{Body, Delay, decode_headers};
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;

const LIMITS: Limits = Limits { payload_bytes_max: 500, control_bytes_max: 2_000 };
/// The largest frame within these limits, roughly.
const WANTED_MAX: usize = 150 * 1024;

/// Reads a buffer to its end or first error, looking into everything.
fn read_all(buffer: &[u8]) {
    let mut at = 0;
    loop {
        match next_frame(&buffer[at..], &LIMITS) {
            Err(error) => {
                assert!(!error.refusal().detail.is_empty());
                return;
            }
            Ok(Next::Partial { bytes }) => {
                assert!(bytes > buffer.len() - at, "asks for more than there is");
                assert!(bytes <= WANTED_MAX, "asks for {bytes} bytes");
                return;
            }
            Ok(Next::Refused(refused)) => {
                assert!(!refused.fault.refusal().detail.is_empty());
                if refused.skip > 0 {
                    assert_eq!(refused.consumed, buffer.len() - at);
                    return;
                }
                at += refused.consumed;
            }
            Ok(Next::Frame { frame, consumed }) => {
                look_into(&frame);
                let mut again = BytesMut::new();
                put_frame(&mut again, &frame).unwrap();
                // An ack of nothing says nothing and is not written.
                if !matches!(&frame, Frame::Ack(ack) if ack.ranges.is_empty()) {
                    assert_eq!(again, buffer[at..at + consumed]);
                }
                at += consumed;
            }
        }
    }
}

fn look_into(frame: &Frame<'_>) {
    match frame {
        Frame::Publish(publish) => {
            let body = Body::parse(publish.body).expect("the codec has looked");
            assert_eq!(publish.receivers().len() * 4, publish.aliases.len());
            if let Some(headers) = body.headers {
                let _ = decode_headers(headers);
            }
        }
        Frame::Deliver(deliver) => {
            let _ = Body::parse(deliver.body);
        }
        Frame::Control(body) => {
            let _ = request_number(body);
            let _ = parse_control(body);
        }
        _ => {}
    }
}

/// A small generator of its own, so that the cases are the same everywhere and for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

#[test]
fn no_bytes_do_harm() {
    let mut random = Random(0x5eed_0001);
    for case in 0..60_000 {
        let mut bytes: Vec<u8> = (0..random.below(120)).map(|_| random.next() as u8).collect();
        // Mostly with a length and a type that let it further in.
        if case % 4 > 0 && bytes.len() > 5 {
            let length = (bytes.len() - 4 - random.below(3)) as u32;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            bytes[4] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16][random.below(11)];
        }
        read_all(&bytes);
        if let Some(control) = bytes.get(5..) {
            let _ = parse_control(control);
            let _ = decode_headers(control);
            let _ = Body::parse(control);
        }
    }
}

#[test]
fn no_damaged_frame_does_harm() {
    let samples = samples::all();
    let mut random = Random(0x5eed_0002);
    for _ in 0..60_000 {
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(3) {
            bytes.extend(&samples[random.below(samples.len())].bytes);
        }
        for _ in 0..1 + random.below(4) {
            damage(&mut bytes, &mut random);
        }
        read_all(&bytes);
    }
}

fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len());
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes.insert(at, random.next() as u8),
        2 if !bytes.is_empty() => drop(bytes.remove(at)),
        3 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        4 if !bytes.is_empty() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
        _ => {
            let end = (at + random.below(8)).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
    }
}

#[test]
fn a_frame_cut_short_is_waited_for() {
    let limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
    for Sample { name, bytes } in samples::all() {
        for end in 0..bytes.len() {
            let next = next_frame(&bytes[..end], &limits);
            let Ok(Next::Partial { bytes: wanted }) = next else {
                panic!("{name} cut to {end} bytes gave {next:?}");
            };
            assert!(wanted > end && wanted <= bytes.len(), "{name}: waits for {wanted} with {end}");
        }
    }
}

#[test]
fn one_pass_takes_all_frames_of_a_buffer() {
    let limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
    let samples = samples::all();
    let buffer: Vec<u8> = samples.iter().flat_map(|sample| sample.bytes.clone()).collect();
    let mut at = 0;
    for sample in &samples {
        let Ok(Next::Frame { consumed, .. }) = next_frame(&buffer[at..], &limits) else {
            panic!("{} was not found", sample.name)
        };
        assert_eq!(consumed, sample.bytes.len(), "{}", sample.name);
        at += consumed;
    }
    assert_eq!(next_frame(&buffer[at..], &limits), Ok(Next::Partial { bytes: 5 }));
}

fn id() -> impl Strategy<Value = MessageId> {
    (1u128..).prop_map(MessageId)
}

fn code() -> impl Strategy<Value = Code> {
    prop::sample::select(Code::ALL)
}

fn name() -> impl Strategy<Value = Name> {
    "[a-zA-Z0-9][a-zA-Z0-9._@:+-]{0,127}".prop_map(|text| text.parse().unwrap())
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..max)
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let key = prop::option::of(prop::collection::vec(any::<u8>(), 1..=255));
    let ttl = prop::option::of(1..=TTL_MS_MAX);
    let delay = prop::option::of((any::<bool>(), 1..=DELAY_MS_MAX));
    (ttl, delay, key, prop::option::of(bytes(300)), any::<bool>(), bytes(400)).prop_map(
        |(ttl, delay, key, headers, reply, payload)| {
            let ttl_ms = ttl.and_then(NonZeroU64::new);
            let delay = delay.and_then(|(is_date, ms)| {
                NonZeroU64::new(ms).map(if is_date { Delay::Until } else { Delay::For })
            });
            let mut out = Vec::new();
            let (key, headers, payload) = (key.as_deref(), headers.as_deref(), &payload[..]);
            let body = Body { ttl_ms, delay, key, headers, reply, payload, ..Body::default() };
            body.encode(&mut out);
            assert_eq!(out.len(), body.encoded_len());
            assert_eq!(Body::parse(&out), Ok(body));
            out
        },
    )
}

fn there_and_back(frame: &Frame<'_>) {
    let mut out = BytesMut::from(&b"before"[..]);
    put_frame(&mut out, frame).unwrap();
    out.extend_from_slice(b"after");
    let consumed = out.len() - 6 - 5;
    let next = next_frame(&out[6..], &LIMITS);
    assert_eq!(next, Ok(Next::Frame { frame: frame.clone(), consumed }));
}

proptest! {
    #[test]
    fn publishes_survive(
        flags in 0u8..2,
        sequence: u64,
        aliases in prop::collection::vec(any::<u32>(), 1..20),
        body in body(),
    ) {
        let aliases: Vec<u8> = aliases.iter().flat_map(|alias| alias.to_be_bytes()).collect();
        there_and_back(&Frame::Publish(Publish { flags, sequence, aliases: &aliases, body: &body }));
    }

    #[test]
    fn deliveries_survive(
        redelivered: bool, attempt: u16, slot: u32, tag: u64, epoch: u32, id in id(), body in body(),
    ) {
        let body = &body[..];
        there_and_back(&Frame::Deliver(Deliver { redelivered, attempt, slot, tag, epoch, id, body }));
    }

    #[test]
    fn confirms_and_grants_survive(
        first_sequence in 0..u64::MAX - u64::from(u32::MAX), count in 1u32.., first_id in id(), slot: u32,
    ) {
        there_and_back(&Frame::Confirm(Confirm { first_sequence, count, first_id }));
        there_and_back(&Frame::Grant(Grant { slot, messages: first_sequence }));
    }

    #[test]
    fn refusals_survive(
        sequence: u64,
        id in prop::option::of(id()),
        code in code(),
        receivers in prop::collection::vec((any::<u32>(), code()), 0..20),
        members in prop::collection::vec((any::<u32>(), code(), name()), 0..20),
        detail in ".{0,250}",
    ) {
        let receivers = receivers.into();
        let refuse = Refuse { sequence, id, code, receivers, members, detail };
        there_and_back(&Frame::Refuse(refuse));
    }

    #[test]
    fn acks_survive(
        slot: u32, tag: u64, ends in prop::collection::btree_set(any::<u64>(), 2..100),
        value in bytes(300),
    ) {
        let ends: Vec<u64> = ends.into_iter().collect();
        let range = |pair: &[u64]| TagRange { first: pair[0], last: pair[1] };
        let ranges = ends.chunks_exact(2).map(range).collect();
        there_and_back(&Frame::Ack(Ack { slot, ranges }));
        there_and_back(&Frame::AckValue(AckValue { slot, tag, value: &value }));
    }

    #[test]
    fn nacks_and_replies_survive(
        slot: u32, tag: u64, permanent: bool, retry_after_ms: u32, reason in ".{0,250}", kind in 0u8..3,
    ) {
        there_and_back(&Frame::Nack(Nack { slot, tag, permanent, retry_after_ms, reason: &reason }));
        let kind = [ReplyKind::Acked, ReplyKind::Refused, ReplyKind::Ended][usize::from(kind)];
        there_and_back(&Frame::Reply(Reply { sequence: tag, kind, value: reason.as_bytes() }));
    }
}

#[test]
fn reasons_too_long_are_cut_and_ranges_too_many_are_split() {
    let reason = "ä".repeat(2_000);
    let mut out = BytesMut::new();
    let nack = Nack { slot: 1, tag: 2, permanent: false, retry_after_ms: 0, reason: &reason };
    put_frame(&mut out, &Frame::Nack(nack)).unwrap();
    let Ok(Next::Frame { frame: Frame::Nack(nack), .. }) = next_frame(&out, &LIMITS) else {
        panic!("a nack")
    };
    assert_eq!(nack.reason, "ä".repeat(512));

    let ranges: Vec<TagRange> =
        (0..5_000).map(|i| TagRange { first: 2 * i, last: 2 * i }).collect();
    out.clear();
    put_frame(&mut out, &Frame::Ack(Ack { slot: 1, ranges: ranges.clone().into() })).unwrap();
    let (mut at, mut read) = (0, Vec::new());
    while let Ok(Next::Frame { frame: Frame::Ack(ack), consumed }) = next_frame(&out[at..], &LIMITS)
    {
        at += consumed;
        read.extend(ack.ranges);
    }
    assert_eq!(read, ranges);
}
