//! A compacted message is a message like any other; and room is given back whoever stays away.

use super::super::format::{SEGMENT_HEADER_BYTES, is_cold, record_bytes};
use super::super::recovery::Engine;
use super::super::shared::Shared;
use super::super::storage::Disk;
use super::super::storage::sim::{Dice, Fault, Ill, SimDisk};
use super::super::{OpenError, Options};
use super::model::World;
use super::strange::change_record;
use super::{A, B, batch_of, small};
use restante_actors::journal::{Ended, Lane, Read, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{MESSAGE_FIXED_BYTES, Outcome, ParkRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SEGMENT: u64 = 16 * 1024;

fn options() -> Options {
    Options { ready_segments: 2, spare_segments_max: 2, ..small(SEGMENT) }
}

fn world() -> World {
    World::new(SimDisk::new(1 << 26), options()).unwrap()
}

/// Appends messages to one peer and waits until they are durable; returns their numbers.
fn publish(world: &mut World, peer: u32, count: usize, body: &[u8]) -> Vec<MessageNumber> {
    let bodies = vec![body; count];
    let batch = batch_of(1, &[peer], &bodies);
    let (_, first) = world.engine.shared.append(batch).ok().unwrap();
    world.write();
    (first..first + count as u64).collect()
}

fn settle(world: &World, peer: PeerId, numbers: &[MessageNumber]) {
    let floor = numbers.last().copied().unwrap_or(0);
    world.engine.shared.settle(Settle::acked(peer, 5, floor, numbers.to_vec()));
}

fn lane(world: &World, peer: PeerId, lane: Lane) -> Vec<(MessageNumber, Vec<u8>)> {
    let (mut after, mut all) = (0, Vec::new());
    loop {
        let (through, bytes_max, messages_max) = (u64::MAX, 2_000, 7);
        let read = Read { peer, lane, after, through, bytes_max, messages_max };
        let page = world.engine.shared.next(read).unwrap();
        after = page.through;
        if page.messages.is_empty() {
            return all;
        }
        all.extend(page.messages.into_iter().map(|m| (m.number, m.body.to_vec())));
    }
}

/// Has the keeper do all it can, checkpoints included.
fn tidy_up(world: &mut World) {
    for _ in 0..4 {
        world.checkpoint();
        world.engine.keeper.turn();
        world.compact();
    }
}

fn cold_segments(world: &World) -> usize {
    let state = world.engine.shared.state.lock();
    state.segments.iter().filter(|segment| is_cold(segment.id)).count()
}

/// Many messages for A, all acked, with some for B between them that are not.
fn mixed(world: &mut World, rounds: u64) -> Vec<(MessageNumber, Vec<u8>)> {
    let mut waiting = Vec::new();
    for round in 0..rounds {
        let done = publish(world, A.0, 10, &[0; 100]);
        settle(world, A, &done);
        let body = [&[0][..], &round.to_be_bytes(), &[7; 91]].concat();
        let open = publish(world, B.0, 1, &body);
        waiting.push((open[0], body));
    }
    waiting
}

#[test]
fn a_compacted_message_is_read_traced_parked_and_settled_like_any_other() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    tidy_up(&mut world);
    assert!(cold_segments(&world) > 0, "nothing was compacted");
    assert_eq!(lane(&world, B, Lane::Open), waiting);

    let numbers: Vec<_> = waiting.iter().map(|(number, _)| *number).collect();
    let reason = "no".to_owned();
    let park = ParkRecord { peer: B, number: numbers[3], at_ms: 6, attempts: 9, reason };
    world.engine.shared.park(&park);
    let (settled, floor) = (vec![numbers[0], numbers[1], numbers[9]], numbers[1]);
    world.engine.shared.settle(Settle::acked(B, 5, floor, settled));
    world.write();

    let left: Vec<_> = waiting
        .iter()
        .filter(|(number, _)| ![0, 1, 3, 9].iter().any(|place| numbers[*place] == *number))
        .cloned()
        .collect();
    for round in 0..3 {
        assert_eq!(lane(&world, B, Lane::Open), left, "round {round}");
        assert_eq!(lane(&world, B, Lane::Parked), [waiting[3].clone()], "round {round}");
        let backlog = world.engine.shared.state.lock().backlog(B);
        assert_eq!((backlog.messages, backlog.parked), (196, 1));
        let life = |number| world.engine.shared.lookup(number).unwrap();
        let of_open = life(numbers[5]);
        assert_eq!(of_open.body.as_deref(), Some(&waiting[5].1[..]));
        assert_eq!(of_open.receivers, [(B, None)]);
        assert_eq!(life(numbers[3]).receivers, [(B, Some(Ended::Parked(park.clone())))]);
        let ended = &life(numbers[9]).receivers[0].1;
        assert!(matches!(ended, Some(Ended::Settled { at_ms: 5, .. })), "{ended:?}");
        // A's messages went with the sources: their history answers. Between the two is a settle.
        let of_a = life(numbers[5] - 2);
        let acked = Ended::Settled {
            outcome: Outcome::Acked,
            at_ms: 5,
            moved_to: PeerId::NONE,
            attempts: 1,
            value: None,
        };
        assert_eq!((of_a.body, of_a.receivers), (None, vec![(A, Some(acked))]));
        match round {
            0 => tidy_up(&mut world),
            _ => {
                let disk = world.disk.after_crash(None, &mut Dice(round));
                reopen(&mut world, disk);
            }
        }
    }
}

/// One refused message holds the floor of its peer for an hour, and everything later is done: what
/// stands for that must not become a bit for each number of the log.
#[test]
fn one_message_that_waits_for_its_retry_costs_nothing_for_what_is_done_behind_it() {
    const BETWEEN: u64 = 50_000_000;
    let mut world = world();
    let refused = publish(&mut world, A.0, 1, &[0; 100])[0];
    let floor = refused - 1;
    let mut done = Vec::new();
    let mut waiting = Vec::new();
    let mut acked = |world: &mut World| {
        let numbers = publish(world, A.0, 10, &[0; 100]);
        world.engine.shared.settle(Settle::acked(A, 5, floor, numbers.clone()));
        done.push(numbers[3]);
    };
    for round in 0..60 {
        acked(&mut world);
        if round % 20 == 0 {
            waiting.push(publish(&mut world, B.0, 1, &[7; 91])[0]);
        }
        if round == 30 {
            // As if that many records had been written, and their segments were gone.
            world.engine.shared.intake.lock().next_number += BETWEEN;
        }
    }
    let since = Instant::now();
    tidy_up(&mut world);
    eprintln!("compacted in {:?}", since.elapsed());
    assert!(cold_segments(&world) > 1, "nothing was compacted");
    let bytes = world.disk.bytes_of("checkpoint").unwrap().len();
    assert!(bytes < 4_000, "a checkpoint of {bytes} bytes");
    for round in 0..2 {
        let numbers = |peer| lane(&world, peer, Lane::Open).into_iter().map(|(number, _)| number);
        assert!(numbers(A).eq([refused]) && numbers(B).eq(waiting.iter().copied()));
        // What was done is done, and said again it changes nothing.
        world.engine.shared.settle(Settle::acked(A, 5, floor, done.clone()));
        let backlog = world.engine.shared.state.lock().backlog(A);
        assert_eq!((backlog.messages, backlog.floor), (1, floor));
        if round == 0 {
            let disk = world.disk.after_crash(Some(u64::MAX), &mut Dice(1));
            reopen(&mut world, disk);
        }
    }
}

/// What many receivers have refused lies between what they have acked: a bit for each number between is
/// cheap for one of them, and not for all.
#[test]
fn messages_of_many_receivers_that_wait_for_their_retry_cost_a_bounded_amount() {
    const RECEIVERS: u32 = 40;
    const BETWEEN: u64 = 4_000_000;
    let mut world = world();
    let publish_to = |world: &mut World, receivers: &[u32]| {
        let batch = batch_of(1, receivers, &[&[0; 100]]);
        let (_, number) = world.engine.shared.append(batch).ok().unwrap();
        world.write();
        number
    };
    let receivers: Vec<u32> = (10..10 + RECEIVERS).collect();
    let refused = publish_to(&mut world, &receivers);
    for round in 0..60 {
        let done = publish_to(&mut world, &receivers);
        for receiver in &receivers {
            let settle = Settle::acked(PeerId(*receiver), 5, refused - 1, vec![done]);
            world.engine.shared.settle(settle);
        }
        if round % 10 == 0 {
            // Somebody else's keep the segments.
            publish(&mut world, B.0, 1, &[7; 91]);
        }
        if round == 30 {
            world.engine.shared.intake.lock().next_number += BETWEEN;
        }
    }
    tidy_up(&mut world);
    assert!(cold_segments(&world) > 0, "nothing was compacted");
    let bytes = world.disk.bytes_of("checkpoint").unwrap().len();
    assert!(bytes < 1 << 20, "a checkpoint of {bytes} bytes");
    for receiver in receivers {
        let waits = lane(&world, PeerId(receiver), Lane::Open);
        assert!(waits.iter().map(|(number, _)| *number).eq([refused]), "{waits:?}");
    }
}

fn reopen(world: &mut World, disk: SimDisk) {
    *world = World::new(disk, options()).unwrap();
    assert!(world.engine.recovered.findings.is_empty(), "{:?}", world.engine.recovered.findings);
}

#[test]
fn every_message_is_known_while_its_segment_becomes_history() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    let (shared, looks) = (Arc::clone(&world.engine.shared), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&looks);
    world.disk.after_rename(move |name| {
        if !name.starts_with("history/") {
            return;
        }
        for (of_b, _) in &waiting {
            assert_eq!(shared.lookup(*of_b).unwrap().receivers, [(B, None)]);
            let of_a = shared.lookup(of_b - 2).unwrap().receivers;
            assert!(matches!(of_a[..], [(A, Some(Ended::Settled { at_ms: 5, .. }))]), "{of_a:?}");
        }
        counted.fetch_add(1, Ordering::Relaxed);
    });
    tidy_up(&mut world);
    assert!(looks.load(Ordering::Relaxed) > 1, "sources became history");
}

#[test]
fn a_crash_between_copy_and_removal_leaves_every_message_once() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    world.checkpoint();
    world.compact();
    assert!(cold_segments(&world) > 0);
    let retired = world.engine.shared.pool.lock().retired.len();
    assert!(retired > 1, "{retired} sources wait for a checkpoint");

    // Before the checkpoint that names the copy: the sources count.
    let disk = world.disk.after_crash(Some(u64::MAX), &mut Dice(1));
    let mut before = World::new(disk, options()).unwrap();
    assert_eq!(cold_segments(&before), 0);
    assert_eq!(lane(&before, B, Lane::Open), waiting);
    tidy_up(&mut before);
    assert_eq!(lane(&before, B, Lane::Open), waiting);

    // The checkpoint is durable, the removals are not: the copy counts.
    let steps = world.disk.steps();
    for crash_at in 1.. {
        let disk = world.disk.copy();
        let mut again = World::new(disk, options()).unwrap();
        tidy_up(&mut again);
        assert!(cold_segments(&again) > 0);
        again.disk.crash_at(again.disk.steps() + crash_at);
        again.checkpoint();
        again.engine.keeper.turn();
        let over = !again.disk.has_crashed();
        for mask in [Some(0), Some(u64::MAX), None] {
            let disk = again.disk.after_crash(mask, &mut Dice(crash_at));
            let found = World::new(disk, options()).unwrap();
            assert_eq!(lane(&found, B, Lane::Open), waiting, "step {crash_at}, mask {mask:?}");
            let names = found.engine.recovered.findings.clone();
            assert!(names.is_empty(), "{names:?}");
        }
        if over {
            break;
        }
        assert!(steps + crash_at < 1_000_000);
    }
}

/// A checkpoint names the segments there were when it was taken, and may be written after one has
/// taken the place of several.
#[test]
fn a_checkpoint_that_is_older_than_a_copy_does_not_let_it_go() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    world.checkpoint();
    world.engine.keeper.turn();
    world.engine.shared.checkpoint(bytes::Bytes::from_static(&[0; 8]));
    world.write();
    world.engine.keeper.eager = true;
    world.engine.keeper.compact().unwrap();
    world.engine.keeper.eager = false;
    let copies = cold_segments(&world);
    assert!(copies > 0 && world.engine.shared.keeper.lock().checkpoint.is_some());
    world.engine.keeper.turn();
    assert!(world.engine.shared.keeper.lock().checkpoint.is_none(), "it is written");
    assert_eq!(cold_segments(&world), copies);
    assert_eq!(lane(&world, B, Lane::Open), waiting);
    let disk = world.disk.after_crash(None, &mut Dice(1));
    reopen(&mut world, disk);
    assert_eq!(lane(&world, B, Lane::Open), waiting);
}

#[test]
fn the_room_of_consumed_messages_comes_back_whoever_stays_away() {
    for away in [1, 2, 5, 10, 11] {
        let mut world = world();
        let mut most = 0.0f64;
        for round in 0..600u32 {
            let peer = 1 + round % 11;
            let done = publish(&mut world, peer, 10, &[0; 100]);
            if peer > away {
                settle(&world, PeerId(peer), &done);
            }
            if round % 5 == 4 {
                world.engine.keeper.turn();
                if world.checkpoint_due {
                    world.checkpoint();
                    world.engine.keeper.turn();
                }
            }
            if round > 100 {
                let live: u64 = (1..=11u32)
                    .map(|peer| world.engine.shared.state.lock().backlog(PeerId(peer)).messages)
                    .sum();
                let live_bytes = live * 160;
                let history: u64 =
                    world.engine.shared.pool.lock().history.iter().map(|note| note.bytes).sum();
                let used =
                    world.engine.shared.disk_bytes.load(std::sync::atomic::Ordering::Relaxed);
                let over = (used - history) as f64 - 2.0 * live_bytes as f64;
                most = most.max(over / SEGMENT as f64);
            }
        }
        assert!(most < 8.0, "{away} of 11 away: {most:.1} segments beyond twice what is live");
    }
}

#[test]
fn with_one_of_eleven_away_the_disk_holds_little_more_than_waits_for_it() {
    let options = Options { spare_segments_max: 1, ..options() };
    let options = Options { segment_bytes: 64 * 1024, checkpoint_bytes: 128 * 1024, ..options };
    let mut world = World::new(SimDisk::new(1 << 28), options).unwrap();
    let (mut waiting, mut published, mut copied) = (0u64, 0u64, 0u64);
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..11 * 600 {
        let peer = 1 + round % 11;
        let done = publish(&mut world, peer, 6, &[7; 1_000]);
        published += 6 * 1_060;
        match peer {
            1 => waiting += 6 * 1_060,
            _ => settle(&world, PeerId(peer), &done),
        }
        if round % 5 == 4 {
            world.engine.keeper.turn();
            if world.checkpoint_due {
                world.checkpoint();
                world.engine.keeper.turn();
            }
        }
        let state = world.engine.shared.state.lock();
        for segment in state.segments.iter().filter(|segment| is_cold(segment.id)) {
            if seen.insert(segment.id) {
                copied += segment.file_bytes + segment.index_bytes;
            }
        }
    }
    assert_eq!(lane(&world, A, Lane::Open).len(), 3_600);
    let used = world.engine.shared.disk_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let history: u64 = world.engine.shared.pool.lock().history.iter().map(|note| note.bytes).sum();
    let (used, waiting) = ((used - history) as f64, waiting as f64);
    let copied = copied as f64 / published as f64;
    eprintln!("disk {:.3} of what waits, {copied:.3} of what was published copied", used / waiting);
    assert!(used <= 1.25 * waiting, "{:.2} of what waits", used / waiting);
    assert!(copied < 0.23, "{copied:.2} of what was published was copied");
}

#[test]
fn a_cold_segment_without_its_index_is_read_through_and_damage_in_it_is_named() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    tidy_up(&mut world);
    let disk = world.disk.copy();
    let state = world.engine.shared.state.lock();
    let cold: Vec<u64> = state.segments.iter().map(|s| s.id).filter(|id| is_cold(*id)).collect();
    let last = state.segments.last().map(|segment| Shared::segment_path(segment.id)).unwrap();
    drop(state);
    assert!(!cold.is_empty());
    for id in &cold {
        disk.unlink(&Shared::index_path(*id)).unwrap();
    }
    reopen(&mut world, disk.copy());
    assert_eq!(lane(&world, B, Lane::Open), waiting);
    assert_eq!(cold_segments(&world), cold.len());

    let strange = disk.copy();
    strange.damage(&Shared::segment_path(cold[0]), |bytes| {
        change_record(bytes, cold[0], SEGMENT_HEADER_BYTES as usize, |header, _| header.kind = 9);
    });
    let refused = World::new(strange, options()).err();
    assert!(matches!(refused, Some(OpenError::NotUnderstood { kind: 9, .. })), "{refused:?}");

    // The second record's checksum.
    let at = SEGMENT_HEADER_BYTES as usize + record_bytes(MESSAGE_FIXED_BYTES + 4 + 100) + 4;
    disk.damage(&Shared::segment_path(cold[0]), |bytes| bytes[at] ^= 1);
    // What is set aside of it takes the room of a spare segment: there is no other, not even behind the
    // last record.
    disk.damage(&last, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes.truncate(end + 8);
    });
    disk.set_capacity((1 << 26) - disk.free_bytes().unwrap());
    let world = World::new(disk, options()).unwrap();
    let findings = &world.engine.recovered.findings;
    assert!(findings.iter().any(|said| said.contains("damaged")), "{findings:?}");
    let read = lane(&world, B, Lane::Open);
    let lost: Vec<_> = waiting.iter().filter(|message| !read.contains(message)).collect();
    assert_eq!((read.len(), lost.len()), (waiting.len() - 1, 1));
}

#[test]
fn what_was_settled_out_of_order_stays_settled_when_its_segments_become_one() {
    let mut world = world();
    let waiting = mixed(&mut world, 200);
    let numbers: Vec<_> = waiting.iter().map(|(number, _)| *number).collect();
    // Whole segments of B's are done, above its floor.
    let done = &numbers[60..140];
    world.engine.shared.settle(Settle::acked(B, 5, 0, done.to_vec()));
    tidy_up(&mut world);
    assert!(cold_segments(&world) > 0);
    for round in 0..2 {
        for number in done {
            let ended = world.engine.shared.lookup(*number).unwrap().receivers.remove(0).1;
            assert!(matches!(ended, Some(Ended::Settled { at_ms: 5, .. })), "{number}: {ended:?}");
        }
        // Again, as a replay of the log would: nothing is counted twice.
        world.engine.shared.settle(Settle::acked(B, 6, 0, done.to_vec()));
        world.write();
        assert_eq!(world.engine.shared.state.lock().backlog(B).messages, 120, "round {round}");
        let disk = world.disk.after_crash(None, &mut Dice(round));
        reopen(&mut world, disk);
    }
}

#[test]
fn a_segment_that_is_settled_and_given_back_while_it_is_copied_stops_nothing() {
    // Nothing is copied before this test says so, and then in more than one slice.
    let slow = Options { cooling: Duration::MAX, ..small(4 << 20) };
    let mut world = World::new(SimDisk::new(1 << 28), slow).unwrap();
    let body = [&[0][..], &[3; 400]].concat();
    let mut open = Vec::new();
    while world.engine.shared.state.lock().segments.len() < 3 {
        let done = publish(&mut world, A.0, 60, &body);
        settle(&world, A, &done);
        open.extend(publish(&mut world, B.0, 40, &body));
    }
    world.checkpoint();
    world.engine.keeper.turn();
    let Engine { keeper, shared, .. } = &mut world.engine;
    assert!(
        keeper.compactor.turn(shared, Instant::now(), true).unwrap().is_some(),
        "nothing is being copied"
    );
    assert!(keeper.compactor.is_at_work(), "one slice was enough: the test needs more");
    let before: Vec<_> = shared.state.lock().segments.iter().map(|s| s.id).collect();
    settle(&world, B, &open);
    world.checkpoint();
    world.engine.keeper.turn();
    let Engine { keeper, shared, .. } = &mut world.engine;
    let after: Vec<_> = shared.state.lock().segments.iter().map(|s| s.id).collect();
    assert!(!after.contains(&before[0]), "{before:x?} became {after:x?}");
    while keeper.compactor.turn(shared, Instant::now(), true).unwrap().is_some() {}
    assert!(!shared.is_dead());
    assert_eq!(lane(&world, B, Lane::Open), []);
}

#[test]
fn what_a_receiver_is_working_through_is_left_to_it() {
    let cooling = Duration::from_secs(1);
    let mut world = World::new(SimDisk::new(1 << 26), Options { cooling, ..options() }).unwrap();
    let open: Vec<_> = (0..100).flat_map(|_| publish(&mut world, B.0, 10, &[5; 200])).collect();
    let segments = world.engine.shared.state.lock().segments.len();
    assert!(segments > 8);
    world.checkpoint();
    world.engine.keeper.turn();
    let (mut now, mut looked) = (Instant::now(), 0);
    for part in open.chunks(50) {
        settle(&world, B, part);
        world.write();
        let Engine { keeper, shared, .. } = &mut world.engine;
        now += cooling;
        looked += usize::from(keeper.compactor.turn(shared, now, false).unwrap().is_some());
        assert!(!keeper.compactor.is_at_work(), "a segment that is being consumed is copied");
    }
    assert!(looked > 0, "nothing was ever thin enough to be looked at");
    assert_eq!(cold_segments(&world), 0);
}

/// Milliseconds of a clock that goes on when a test says so.
static NOW_MS: AtomicU64 = AtomicU64::new(1_000);

#[test]
fn a_segment_that_cannot_be_opened_stays_as_it_is_until_it_is_tried_again() {
    let options = Options { now_ms: || NOW_MS.load(Ordering::Relaxed), ..options() };
    let mut world = World::new(SimDisk::new(1 << 26), options).unwrap();
    let waiting = mixed(&mut world, 200);
    world.checkpoint();
    world.engine.keeper.turn();
    let id = world.engine.shared.state.lock().segments[3].id;
    let is_there = |world: &World| {
        world.engine.shared.state.lock().segments.iter().any(|segment| segment.id == id)
    };
    let path = Shared::segment_path(id);
    let bytes = world.disk.bytes_of(&path).unwrap();
    world.disk.unlink(&path).unwrap();
    tidy_up(&mut world);
    let shared = &world.engine.shared;
    assert!(!shared.is_dead(), "{:?}", shared.refusal());
    assert!(cold_segments(&world) > 0, "the others are compacted");
    assert!(is_there(&world), "it is left alone");

    let file = world.disk.create(&path).unwrap();
    file.write_at(&[std::io::IoSlice::new(&bytes)], 0).unwrap();
    file.sync().unwrap();
    NOW_MS.fetch_add(60_000, Ordering::Relaxed);
    tidy_up(&mut world);
    assert!(is_there(&world), "for a while");
    NOW_MS.fetch_add(60 * 60_000, Ordering::Relaxed);
    tidy_up(&mut world);
    assert!(!is_there(&world), "it has healed");
    assert_eq!(lane(&world, B, Lane::Open), waiting);
}

/// Not even the name of the copy has room: a full disk is no reason to leave its source alone.
#[test]
fn a_copy_that_cannot_be_created_for_want_of_room_takes_that_of_the_reserve() {
    let segments = |fault: bool| {
        let mut world = world();
        let waiting = mixed(&mut world, 200);
        world.checkpoint();
        world.engine.keeper.turn();
        world.engine.keeper.eager = true;
        if fault {
            world.disk.fault_at(world.disk.steps() + 1, Fault::Full);
        }
        world.engine.keeper.compact().unwrap();
        assert_eq!(lane(&world, B, Lane::Open), waiting);
        let state = world.engine.shared.state.lock();
        state.segments.iter().map(|segment| (segment.first, segment.live)).collect::<Vec<_>>()
    };
    assert_eq!(segments(true), segments(false));
}

/// As [`NOW_MS`]: the tests run side by side.
static CLOCK_MS: AtomicU64 = AtomicU64::new(1_000);

#[test]
fn a_segment_that_cannot_be_read_stays_as_it_is_until_it_is_tried_again() {
    let segment: fn(u64) -> String = Shared::segment_path;
    let cases = [
        (segment, Ill::Read(SEGMENT_HEADER_BYTES..SEGMENT)),
        (segment, Ill::Open),
        (Shared::index_path, Ill::Read(0..SEGMENT)),
    ];
    for (path, ill) in cases {
        let options = Options { now_ms: || CLOCK_MS.load(Ordering::Relaxed), ..options() };
        let mut world = World::new(SimDisk::new(1 << 26), options).unwrap();
        let waiting = mixed(&mut world, 200);
        world.checkpoint();
        world.engine.keeper.turn();
        let id = world.engine.shared.state.lock().segments[3].id;
        world.disk.sicken(&path(id), ill.clone(), 1);
        for minutes in [0, 1] {
            CLOCK_MS.fetch_add(minutes * 60_000, Ordering::Relaxed);
            tidy_up(&mut world);
            let shared = &world.engine.shared;
            assert!(!shared.is_dead(), "{ill:?}: {:?}", shared.refusal());
            assert!(cold_segments(&world) > 0, "{ill:?}: the others are compacted");
            let stays = shared.state.lock().segments.iter().any(|segment| segment.id == id);
            assert!(stays, "{ill:?}: it is left alone, after {minutes} minutes too");
            assert_eq!(lane(&world, B, Lane::Open), waiting);
        }
        CLOCK_MS.fetch_add(60 * 60_000, Ordering::Relaxed);
        tidy_up(&mut world);
        let state = world.engine.shared.state.lock();
        assert!(state.segments.iter().all(|segment| segment.id != id), "{ill:?}: it has healed");
        drop(state);
        assert_eq!(lane(&world, B, Lane::Open), waiting);
    }
}
