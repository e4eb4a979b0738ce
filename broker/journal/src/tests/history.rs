//! What is left of messages whose segments are gone: how long, how much, and what is said after that.

use super::super::Options;
use super::super::storage::sim::{Dice, SimDisk};
use super::model::World;
use super::{A, batch_of, small};
use restante_actors::journal::{Ended, LookupError, Settle};
use restante_protocol::id::MessageNumber;
use std::sync::atomic::{AtomicU64, Ordering};

const KEPT_MS: u64 = 1_000;

fn options(now_ms: fn() -> u64) -> Options {
    Options { history_ms_max: KEPT_MS, now_ms, ready_segments: 2, ..small(8 * 1024) }
}

/// Publishes and settles enough to fill a few segments, and lets them go; returns the messages.
fn use_up(world: &mut World) -> Vec<MessageNumber> {
    let mut numbers = Vec::new();
    for round in 0..40 {
        let batch = batch_of(round * 10, &[A.0], &[&[0; 60][..]; 10]);
        let (_, first) = world.engine.shared.append(batch).ok().unwrap();
        world.write();
        let settled: Vec<_> = (first..first + 10).collect();
        world.engine.shared.settle(Settle::acked(A, 5, first + 9, settled.clone()));
        numbers.extend(settled);
    }
    for _ in 0..3 {
        world.checkpoint();
        world.engine.keeper.turn();
    }
    numbers
}

fn is_acked(world: &World, number: MessageNumber) -> bool {
    let life = world.engine.shared.lookup(number).unwrap();
    matches!(life.receivers[..], [(A, Some(Ended::Settled { at_ms: 5, .. }))])
}

fn history_bytes(world: &World) -> u64 {
    world.engine.shared.pool.lock().history.iter().map(|note| note.bytes).sum()
}

#[test]
fn history_goes_when_it_is_old_and_a_restart_makes_it_no_younger() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000);
    let options = options(|| NOW.load(Ordering::Relaxed));
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).unwrap();
    let older = use_up(&mut world);
    NOW.fetch_add(KEPT_MS / 2, Ordering::Relaxed);
    let newer = use_up(&mut world);
    let disk = world.disk.after_crash(None, &mut Dice(1));
    let mut world = World::new(disk, options).unwrap();
    world.engine.keeper.turn();
    assert!(is_acked(&world, older[0]) && is_acked(&world, newer[100]));
    NOW.fetch_add(KEPT_MS / 2 + 1, Ordering::Relaxed);
    world.engine.keeper.turn();
    assert_eq!(world.engine.shared.lookup(older[0]).unwrap_err(), LookupError::AgedOut);
    assert!(is_acked(&world, newer[100]));
    NOW.fetch_add(KEPT_MS, Ordering::Relaxed);
    world.engine.keeper.turn();
    assert_eq!(world.engine.shared.lookup(newer[100]).unwrap_err(), LookupError::AgedOut);
    assert_eq!(history_bytes(&world), 0);
}

#[test]
fn history_is_kept_up_to_its_size_the_newest_last() {
    let options = Options { history_bytes_max: 4_000, ..options(|| 7) };
    let mut world = World::new(SimDisk::new(1 << 24), options).unwrap();
    let mut numbers = Vec::new();
    for _ in 0..4 {
        numbers.extend(use_up(&mut world));
        assert!(history_bytes(&world) <= 4_000, "{} bytes", history_bytes(&world));
    }
    assert!(history_bytes(&world) > 1_000);
    assert_eq!(world.engine.shared.lookup(numbers[0]).unwrap_err(), LookupError::AgedOut);
    // A stretch of the log that is still known, and nothing is unknown that ever was.
    let known = numbers.iter().filter(|number| {
        let life = world.engine.shared.lookup(**number);
        assert_ne!(life.as_ref().err(), Some(&LookupError::Unknown), "{number}");
        life.is_ok()
    });
    assert!(known.count() > 40);
}

#[test]
fn a_lone_commit_prepares_the_room_of_those_that_follow() {
    let options = Options { ready_segments: 2, ..small(4 << 20) };
    let mut world = World::new(SimDisk::new(1 << 26), options).unwrap();
    let id = world.engine.shared.state.lock().segments.last().unwrap().id;
    let path = super::super::shared::Shared::segment_path(id);
    world.disk.damage(&path, |bytes| bytes[4096..].fill(0xaa));
    let append = |world: &mut World, len: usize| {
        let body = vec![0x55; len];
        world.engine.shared.append(batch_of(1, &[A.0], &[&body])).ok().unwrap();
        world.write();
        let bytes = world.disk.bytes_of(&path).unwrap();
        bytes.iter().rposition(|byte| *byte != 0xaa).unwrap()
    };
    let filled = append(&mut world, 4_000);
    assert!(filled > 256 * 1024, "{filled}");
    // Nothing more while there is room that has been written, and nothing behind a large commit.
    assert_eq!(append(&mut world, 4_000), filled);
    let large = append(&mut world, 600 * 1024);
    assert!((600 * 1024..620 * 1024).contains(&large), "{large}");
    assert!(append(&mut world, 100) > large + 255 * 1024);
}
