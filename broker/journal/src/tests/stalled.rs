//! A writer that waits for room, and what alone can make some waits behind it: the keeper finds a way,
//! with nothing free and nobody's help, and a crash at any moment of it loses nothing.

use super::super::storage::Disk;
use super::super::storage::sim::{Dice, SimDisk, Survival};
use super::super::{Options, recovery};
use super::model::World;
use super::{A, B, batch_of, push_admin, small};
use bytes::{Bytes, BytesMut};
use restante_actors::journal::{Batch, Lane, Read, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use std::sync::Arc;

const DISK: u64 = 1 << 20;

fn options(history_bytes_max: u64) -> Options {
    Options {
        ready_segments: 2,
        checkpoint_bytes: 1 << 30,
        history_bytes_max,
        now_ms: || 1_000,
        ..small(4 * 1024)
    }
}

fn publish(world: &mut World, peer: PeerId, count: usize) -> Vec<MessageNumber> {
    let bodies = vec![&[0; 150][..]; count];
    let (_, first) = world.engine.shared.append(batch_of(1, &[peer.0], &bodies)).ok().unwrap();
    world.write();
    (first..first + count as u64).collect()
}

fn open_for(engine: &recovery::Engine, peer: PeerId) -> Vec<MessageNumber> {
    let (mut after, mut numbers) = (0, Vec::new());
    loop {
        let (lane, through, bytes_max, messages_max) = (Lane::Open, u64::MAX, 1 << 20, 1_000);
        let read = Read { peer, lane, after, through, bytes_max, messages_max };
        let page = engine.shared.next(read).unwrap();
        if page.messages.is_empty() {
            return numbers;
        }
        after = page.through;
        numbers.extend(page.messages.iter().map(|message| message.number));
    }
}

/// A log of many segments, the first covered by a checkpoint, with what A gets in all of them and what
/// B gets in some: the numbers of both.
fn filled(world: &mut World, rounds: usize, every: usize) -> [Vec<MessageNumber>; 2] {
    let [mut of_a, mut of_b] = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        of_a.extend(publish(world, A, 10));
        if round % every == 0 {
            of_b.extend(publish(world, B, 1));
        }
        world.engine.keeper.turn();
    }
    world.engine.shared.checkpoint(Bytes::from_static(b"state"));
    world.write();
    world.engine.keeper.turn();
    [of_a, of_b]
}

/// Another tenant takes what is free, but for the rest of the block that a small file has to itself.
fn fill_up(disk: &SimDisk) {
    disk.set_capacity(DISK);
    disk.set_capacity(DISK - disk.free_bytes().unwrap() + 100);
}

fn is_stalled(world: &World) -> bool {
    world.engine.shared.keeper.lock().stalled
}

/// Changes of the node's state until no segment is left for the next one, and a checkpoint behind it.
fn stall(world: &mut World) -> Vec<Bytes> {
    let mut changes = Vec::new();
    while !is_stalled(world) {
        assert!(changes.len() < 100, "there is always room");
        let mut change = Batch { bytes: BytesMut::new(), records: Vec::new() };
        let body = format!("{:>900}", changes.len()).into_bytes();
        push_admin(&mut change, &body);
        world.engine.shared.append(change).ok().unwrap();
        changes.push(Bytes::from(body));
        world.write();
    }
    world.engine.shared.checkpoint(Bytes::from_static(b"newer"));
    world.write();
    assert!(is_stalled(world), "a checkpoint makes no room by itself");
    changes
}

/// The turns of keeper and writer until the writer goes on; what is on disk after a crash in the first
/// of them is the log as it was.
fn goes_on(mut world: World, of_b: &[MessageNumber], changes: &[Bytes]) {
    let waiting = changes.len() - 1;
    world.disk.watch(|| 0);
    world.engine.keeper.turn();
    let cuts = world.disk.take_cuts();
    assert!(cuts.iter().any(|cut| cut.what.contains("checkpoint")), "none is written");
    for (seed, cut) in (1..).zip(&cuts) {
        for survival in [None, Some(0), Some(u64::MAX)] {
            let survival = Survival { mask: survival, torn: true };
            let disk = cut.after_crash(survival, &mut Dice(seed));
            // Opening it needs a segment.
            disk.set_capacity(DISK);
            let engine = recovery::open(Arc::new(disk), options(0)).unwrap();
            let what = format!("{} {survival:?}", cut.what);
            assert_eq!(engine.recovered.findings, [""; 0], "{what}");
            assert_eq!(engine.recovered.checkpoint.as_deref(), Some(&b"state"[..]), "{what}");
            assert_eq!(engine.recovered.admin, changes[..waiting], "{what}");
            assert_eq!(open_for(&engine, B), of_b, "{what}");
        }
    }
    for _ in 0..8 {
        world.write();
        world.engine.keeper.turn();
    }
    let shared = &world.engine.shared;
    assert!(!shared.is_dead(), "{:?}", shared.refusal());
    assert!(!is_stalled(&world), "it waits for ever");
    assert_eq!(open_for(&world.engine, B), of_b);
    let disk = world.disk.copy();
    disk.set_capacity(DISK);
    let engine = recovery::open(Arc::new(disk), options(0)).unwrap();
    assert_eq!(engine.recovered.findings, [""; 0]);
    assert_eq!(engine.recovered.checkpoint.as_deref(), Some(&b"newer"[..]));
    assert_eq!([open_for(&engine, A), open_for(&engine, B)], [&[][..], of_b]);
}

#[test]
fn a_log_that_has_used_up_its_segments_gets_those_that_are_done() {
    for history_bytes_max in [0, 1 << 20] {
        let mut world = World::new(SimDisk::new(DISK), options(history_bytes_max)).unwrap();
        for _ in 0..5 {
            let done = publish(&mut world, A, 10);
            world.engine.shared.settle(Settle::acked(A, 5, *done.last().unwrap(), done));
        }
        let [of_a, of_b] = filled(&mut world, 20, 15);
        assert_eq!(world.engine.shared.pool.lock().history.is_empty(), history_bytes_max == 0);
        fill_up(&world.disk);
        let floor = *of_a.last().unwrap();
        world.engine.shared.settle(Settle::acked(A, 5, floor, of_a));
        let changes = stall(&mut world);
        assert!(world.engine.shared.state.lock().dead > 2);
        goes_on(world, &of_b, &changes);
    }
}

#[test]
fn a_log_whose_last_segment_went_into_a_copy_gets_what_was_copied() {
    let mut world = World::new(SimDisk::new(DISK), options(0)).unwrap();
    let [of_a, of_b] = filled(&mut world, 20, 1);
    let floor = *of_a.last().unwrap();
    world.engine.shared.settle(Settle::acked(A, 5, floor, of_a));
    {
        let mut pool = world.engine.shared.pool.lock();
        pool.spares.clear();
        pool.ready.truncate(1);
    }
    fill_up(&world.disk);
    world.engine.keeper.eager = true;
    world.engine.keeper.compact().unwrap();
    world.engine.keeper.eager = false;
    {
        let pool = world.engine.shared.pool.lock();
        assert!(pool.ready.is_empty() && !pool.retired.is_empty());
        assert_eq!(world.engine.shared.state.lock().dead, 0);
    }
    fill_up(&world.disk);
    let changes = stall(&mut world);
    goes_on(world, &of_b, &changes);
}

#[test]
fn a_log_that_is_short_of_file_handles_waits_for_one() {
    let mut world = World::new(SimDisk::new(DISK), options(0)).unwrap();
    world.disk.open_at_most(0);
    let changes = stall(&mut world);
    world.engine.keeper.turn();
    world.write();
    let shared = &world.engine.shared;
    assert!(is_stalled(&world) && !shared.is_dead(), "{:?}", shared.refusal());
    world.disk.open_at_most(usize::MAX);
    world.write();
    assert!(!is_stalled(&world));
    let engine = recovery::open(Arc::new(world.disk.copy()), options(0)).unwrap();
    assert_eq!(engine.recovered.admin, changes, "all of them, in order");
}
