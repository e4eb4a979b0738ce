//! What is written to disk is read back, and nothing else is.

use super::*;
use crate::limits::REASON_BYTES_MAX;
use proptest::prelude::*;

fn settles() -> impl Strategy<Value = SettleRecord> {
    let outcome = (1u8..=4).prop_map(|number| Outcome::from_number(number).unwrap());
    let steps = prop::collection::vec(prop_oneof![1u64..200, 1u64..1 << 40], 0..40);
    let value = prop::collection::vec(any::<u8>(), 0..20);
    let details = prop::collection::vec((any::<u64>(), any::<u16>(), value), 0..5);
    (any::<u32>(), any::<u64>(), outcome, any::<u32>(), 0u64..1 << 48, steps, details).prop_map(
        |(peer, at_ms, outcome, moved_to, floor, steps, details)| SettleRecord {
            peer: PeerId(peer),
            at_ms,
            outcome,
            moved_to: PeerId(moved_to),
            floor,
            above: steps
                .iter()
                .scan(floor, |last, step| {
                    *last += step;
                    Some(*last)
                })
                .collect(),
            details: details
                .into_iter()
                .map(|(number, attempts, value)| SettleDetail { number, attempts, value })
                .collect(),
        },
    )
}

proptest! {
    #[test]
    fn settles_survive(record in settles()) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        prop_assert_eq!(SettleRecord::parse(&bytes), Some(record));
    }

    #[test]
    fn parks_survive(
        peer: u32, number: u64, at_ms: u64, attempts: u16, reason in ".{0,250}",
    ) {
        let record = ParkRecord { peer: PeerId(peer), number, at_ms, attempts, reason };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        prop_assert_eq!(ParkRecord::parse(&bytes), Some(record));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = SettleRecord::parse(&bytes);
        let _ = ParkRecord::parse(&bytes);
        let _ = MessageRecord::parse(&bytes);
    }
}

#[test]
fn a_message_record_is_read_where_it_was_placed() {
    let mut out = BytesMut::from(&b"before"[..]);
    let mut body = Vec::new();
    Body { key: Some(b"k1"), payload: b"payload", ..Body::default() }.encode(&mut body);
    let placed = put_message_record(&mut out, 11, 12, 13, &[PeerId(1), PeerId(70_000)], &body);
    assert_eq!(placed.offset, 6);
    let stored = &out[placed.offset + RECORD_HEADER_BYTES..];
    assert_eq!(stored.len(), placed.body_bytes);
    assert_eq!(&stored[placed.payload_at..], b"payload");
    let record = MessageRecord::parse(stored).unwrap();
    assert_eq!((record.accepted_ms, record.producer, record.sequence), (11, 12, 13));
    assert_eq!(record.peers().collect::<Vec<_>>(), [PeerId(1), PeerId(70_000)]);
    assert_eq!(record.body, body);
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let reason = "ä".repeat(REASON_BYTES_MAX);
    let record = ParkRecord { peer: PeerId(1), number: 2, at_ms: 3, attempts: 4, reason };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let read = ParkRecord::parse(&bytes).unwrap();
    assert_eq!(read.reason, "ä".repeat(REASON_BYTES_MAX / 2));
}

fn example() -> SettleRecord {
    SettleRecord {
        peer: PeerId(7),
        at_ms: 1_700_000_000_123,
        outcome: Outcome::Moved,
        moved_to: PeerId(9),
        floor: 1 << 40,
        above: vec![3, (1 << 40) + 1, (1 << 40) + 300, u64::MAX],
        details: vec![SettleDetail { number: 300, attempts: 3, value: b"yes".to_vec() }],
    }
}

#[test]
fn a_settle_reads_as_it_was_written_and_no_prefix_of_it_does() {
    let mut bytes = Vec::new();
    example().encode(&mut bytes);
    assert_eq!(SettleRecord::parse(&bytes), Some(example()));
    for len in 0..bytes.len() {
        assert_eq!(SettleRecord::parse(&bytes[..len]), None, "of {len} bytes");
    }
    bytes.push(0);
    assert_eq!(SettleRecord::parse(&bytes), None);
}

#[test]
fn a_count_beyond_the_bytes_is_refused_before_it_is_allocated() {
    let mut bytes = Vec::new();
    example().encode(&mut bytes);
    bytes[25..29].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(SettleRecord::parse(&bytes), None);
}

#[test]
fn a_park_reads_as_it_was_written() {
    let park = ParkRecord {
        peer: PeerId(7),
        number: 1 << 47,
        at_ms: 5,
        attempts: 400,
        reason: "it says no".to_owned(),
    };
    let mut bytes = Vec::new();
    park.encode(&mut bytes);
    assert_eq!(ParkRecord::parse(&bytes), Some(park));
    assert_eq!(ParkRecord::parse(&bytes[..21]), None);
    bytes[22] = 0xff;
    assert_eq!(ParkRecord::parse(&bytes), None, "a reason is UTF-8");
}

#[test]
fn a_varint_of_more_than_64_bits_is_refused() {
    for value in [0, 127, 128, u64::from(u32::MAX), u64::MAX] {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        assert_eq!(take_varint(&mut &bytes[..]), Some(value));
    }
    assert_eq!(take_varint(&mut &[0xffu8; 9][..]), None);
    assert_eq!(
        take_varint(&mut &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2][..]),
        None
    );
}
