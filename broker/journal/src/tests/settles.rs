//! Settles that are too long for one checksum.

use super::super::intake::Item;
use super::super::storage::sim::SimDisk;
use super::model::World;
use super::{A, batch_of, small};
use bytes::Bytes;
use restante_actors::journal::{Ended, Lane, Read, Settle};
use restante_protocol::id::PeerId;
use restante_protocol::record::{Outcome, RecordKind, SettleDetail, SettleRecord};

const SEGMENT: u64 = 1 << 20;

#[test]
fn a_long_settle_becomes_records_that_one_checksum_covers() {
    let world = World::new(SimDisk::new(1 << 24), small(SEGMENT)).expect("opens");
    let numbers: Vec<u64> = (1..=300_000).step_by(3).collect();
    world.engine.shared.settle(Settle::acked(A, 5, 0, numbers.clone()));
    let mut items = Vec::new();
    world.engine.shared.take_work(&mut items);
    let mut settled = Vec::new();
    for item in &items {
        let Item::Records { batch, .. } = item else { continue };
        for record in batch.records.iter().filter(|record| record.kind == RecordKind::Settle) {
            assert_eq!(record.payload_at, record.body_len, "all of it is under the header's");
            let from = record.offset as usize + restante_protocol::record::RECORD_HEADER_BYTES;
            let body = &batch.bytes[from..from + record.body_len as usize];
            settled.extend(SettleRecord::parse(body).expect("a settle").above);
        }
    }
    assert_eq!(settled, numbers);
}

#[test]
fn an_expired_message_does_not_answer_for_those_that_its_floor_passes() {
    let disk = SimDisk::new(1 << 24);
    let mut world = World::new(disk.clone(), small(SEGMENT)).expect("opens");
    let (_, first) =
        world.engine.shared.append(batch_of(1, &[A.0], &[&b"\0"[..]; 2])).expect("room");
    world.write();
    // The ack of the first one was lost with the process that had it.
    let mut settle = Settle::acked(A, 5, first + 1, vec![first + 1]);
    settle.record.outcome = Outcome::Expired;
    settle.record.above = vec![first + 1];
    world.engine.shared.settle(settle);
    world.write();
    let reopened = World::new(disk.copy(), small(SEGMENT)).expect("opens");
    let how = |number| {
        let life = reopened.engine.shared.lookup(number).expect("it is known");
        life.receivers[0].1.clone().expect("it has ended")
    };
    assert_eq!(how(first), Ended::Done);
    assert!(matches!(how(first + 1), Ended::Settled { outcome: Outcome::Expired, .. }));
}

#[test]
fn what_a_long_settle_says_of_each_message_is_found_again() {
    let disk = SimDisk::new(1 << 24);
    let mut world = World::new(disk.clone(), small(SEGMENT)).expect("opens");
    let bodies = [&b"\0"[..]; 200];
    let (_, first) = world.engine.shared.append(batch_of(1, &[A.0], &bodies)).expect("room");
    world.write();
    // Some below the floor and some above it, and one in five without anything worth a word; in no
    // order, as calls end.
    let numbers: Vec<u64> = (first..first + 200).collect();
    let floor = first + 120;
    let mut settle = Settle::acked(A, 5, floor, numbers.clone());
    settle.record.outcome = Outcome::Moved;
    settle.record.moved_to = PeerId(9);
    let value = |number: u64| [number as u8; 1024].to_vec();
    let attempts = |number: u64| 2 + (number % 50) as u16;
    let has_detail = |number: &u64| !number.is_multiple_of(5);
    let detail =
        |number: u64| SettleDetail { number, attempts: attempts(number), value: value(number) };
    let detailed = numbers.iter().rev().copied().filter(has_detail);
    settle.record.details = detailed.map(detail).collect();
    world.engine.shared.settle(settle);
    world.write();
    let reopened = World::new(disk.copy(), small(SEGMENT)).expect("opens");
    for world in [&world, &reopened] {
        for number in &numbers {
            let life = world.engine.shared.lookup(*number).expect("it is known");
            let (attempts, value) = match has_detail(number) {
                true => (attempts(*number), Some(Bytes::from(value(*number)))),
                false => (0, None),
            };
            let (outcome, at_ms, moved_to) = (Outcome::Moved, 5, PeerId(9));
            let ended = Ended::Settled { outcome, at_ms, moved_to, attempts, value };
            assert_eq!(life.receivers, [(A, Some(ended))], "{number}");
        }
    }
}

/// One return value can be so long that its settle is not covered by the header's checksum.
#[test]
fn a_settle_that_is_damaged_behind_its_first_checksum_is_not_replayed() {
    let disk = SimDisk::new(1 << 24);
    let mut world = World::new(disk.clone(), small(SEGMENT)).expect("opens");
    let (_, number) = world.engine.shared.append(batch_of(1, &[A.0], &[b"\0open"])).expect("room");
    world.write();
    let mut settle = Settle::acked(A, 5, 0, vec![number]);
    let value = vec![0xa5; restante_protocol::limits::RETURN_BYTES_MAX];
    settle.record.details = vec![SettleDetail { number, attempts: 1, value }];
    world.engine.shared.settle(settle);
    world.write();
    // So that it is known to have been synced.
    world.engine.shared.append(batch_of(2, &[A.0], &[b"\0next"])).expect("room");
    world.write();
    world.engine.writer.mark();

    let open = |world: &World| {
        let (peer, lane, after, through) = (A, Lane::Open, 0, u64::MAX);
        let read = Read { peer, lane, after, through, bytes_max: 1 << 20, messages_max: 9 };
        let page = world.engine.shared.next(read).expect("it reads");
        page.messages.iter().map(|message| message.body.to_vec()).collect::<Vec<_>>()
    };
    let sound = World::new(disk.copy(), small(SEGMENT)).expect("opens");
    assert_eq!(open(&sound), [b"\0next"]);

    let damaged = disk.copy();
    let id = world.engine.shared.state.lock().segments[0].id;
    damaged.damage(&super::super::shared::Shared::segment_path(id), |bytes| {
        let last = bytes.iter().rposition(|byte| *byte == 0xa5).expect("the value");
        bytes[last] ^= 1;
    });
    let world = World::new(damaged, small(SEGMENT)).expect("opens");
    assert_eq!(open(&world), [&b"\0open"[..], b"\0next"], "delivered again, as it must be");
    let recovered = &world.engine.recovered;
    let said = recovered.findings.join("\n");
    assert!(said.contains(&format!("records {} to {}", number + 1, number + 1)), "{said}");
    assert_eq!((recovered.damage[0].first, recovered.damage[0].next), (number + 1, number + 2));
}
