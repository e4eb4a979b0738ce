//! What is left of messages whose segments are gone: how long, how much, and what is said after that.

use super::super::Options;
use super::super::shared::Shared;
use super::super::storage::Disk;
use super::super::storage::sim::{Dice, FOR_GOOD, Ill, SimDisk, Survival};
use super::super::trouble::TRIES;
use super::model::World;
use super::{A, B, batch_of, small};
use restante_actors::journal::{Ended, LookupError, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{Outcome, ParkRecord};
use std::sync::atomic::{AtomicU64, Ordering};

const KEPT_MS: u64 = 1_000;
/// No byte of it can be read.
const WHOLE: Ill = Ill::Read(0..u64::MAX);

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

/// Where the index of a segment that goes cannot be used, its records are read once more: they are the last
/// that know what became of its messages. What cannot be read for the moment is waited for, but not for
/// good.
#[test]
fn an_index_that_cannot_be_used_when_its_segment_goes_is_built_again_first() {
    for (ill, checkpoints) in [(None, 0), (Some(Ill::Open), 9), (Some(WHOLE), 3), (Some(WHOLE), 9)]
    {
        let mut world = World::new(SimDisk::new(1 << 24), options(|| 7)).unwrap();
        let mut numbers: Vec<MessageNumber> = Vec::new();
        for _ in 0..4 {
            let first = publish_100(&mut world, &[A.0]);
            numbers.extend(first..first + 100);
            world.engine.shared.settle(Settle::acked(A, 5, first + 99, numbers.clone()));
            world.write();
            world.engine.keeper.turn();
        }
        let sealed = |world: &World| -> Vec<u64> {
            let state = world.engine.shared.state.lock();
            state
                .segments
                .iter()
                .filter(|s| s.live == 0 && s.next.is_some())
                .map(|s| s.id)
                .collect()
        };
        let ids = sealed(&world);
        assert!(ids.len() > 3, "{ids:?}");
        for id in &ids {
            let index = Shared::index_path(*id);
            match &ill {
                None => world.disk.damage(&index, |bytes| bytes[20] ^= 1),
                Some(ill) => {
                    world.disk.sicken(&index, ill.clone(), FOR_GOOD);
                    world.disk.sicken(&Shared::segment_path(*id), ill.clone(), FOR_GOOD);
                }
            }
        }
        for _ in 0..checkpoints {
            world.checkpoint();
            world.engine.keeper.turn();
        }
        let case = format!("{ill:?} for {checkpoints} checkpoints");
        // Want of file handles says nothing of a file, however long it lasts.
        let is_lost = matches!(ill, Some(Ill::Read(_))) && checkpoints > TRIES;
        assert!(is_lost || sealed(&world) == ids, "{case}: they stay");
        world.disk.heal();
        for _ in 0..3 {
            world.checkpoint();
            world.engine.keeper.turn();
        }
        assert!(!world.engine.shared.is_dead(), "{case}: {:?}", world.engine.shared.refusal());
        assert!(ids.iter().all(|id| !sealed(&world).contains(id)), "{case}: they go");
        for number in [numbers[0], numbers[150]] {
            match is_lost {
                true => assert_eq!(
                    world.engine.shared.lookup(number).unwrap_err(),
                    LookupError::AgedOut,
                    "{case}"
                ),
                false => assert!(is_acked(&world, number), "{case}: {number}"),
            }
        }
    }
}

/// The first number of that many messages without anything between them.
fn publish_100(world: &mut World, receivers: &[u32]) -> MessageNumber {
    let mut numbers = (0..10).map(|round| {
        let batch = batch_of(round * 10, receivers, &[&[0; 60][..]; 10]);
        let (_, first) = world.engine.shared.append(batch).ok().unwrap();
        world.write();
        first
    });
    let first = numbers.next().unwrap();
    assert_eq!(numbers.last(), Some(first + 90));
    first
}

/// Names of the history files on the disk.
fn history_files(world: &World) -> Vec<String> {
    let files = Disk::list(&world.disk, "history").unwrap();
    let noted = world.engine.shared.pool.lock().history.len();
    assert_eq!(files.len(), noted, "{files:?}");
    files
}

#[test]
fn why_a_message_is_parked_is_known_for_as_long_as_it_is() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000);
    let options = options(|| NOW.load(Ordering::Relaxed));
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).unwrap();
    // They fill their segments, which are therefore never copied.
    let first = publish_100(&mut world, &[B.0]);
    let park = |number: MessageNumber| {
        let (at_ms, attempts, reason) = (6, 9, format!("no such customer: {number}"));
        ParkRecord { peer: B, number, at_ms, attempts, reason }
    };
    (first..first + 100).for_each(|number| world.engine.shared.park(&park(number)));
    let is_known = |world: &World, number: MessageNumber| {
        let life = world.engine.shared.lookup(number).unwrap();
        assert_eq!(life.receivers, [(B, Some(Ended::Parked(park(number))))]);
    };
    use_up(&mut world);
    NOW.fetch_add(KEPT_MS + 1, Ordering::Relaxed);
    let others = use_up(&mut world);
    let parks = |world: &World| {
        let files = history_files(world);
        files.iter().filter(|name| name.ends_with(".parks")).count()
    };
    assert!(parks(&world) > 0, "{:?}", history_files(&world));
    for round in 0..3 {
        (first..first + 100).for_each(|number| is_known(&world, number));
        let disk = world.disk.after_crash(None, &mut Dice(round));
        world = World::new(disk, options.clone()).unwrap();
        assert!(world.engine.recovered.findings.is_empty());
    }
    // It neither brings back what else was in its file nor counts as kept history.
    NOW.fetch_add(KEPT_MS + 1, Ordering::Relaxed);
    world.engine.keeper.turn();
    assert_eq!(world.engine.shared.lookup(others[0]).unwrap_err(), LookupError::AgedOut);
    assert_eq!(history_files(&world).len(), parks(&world));
    // Half of them are done, and what is kept is no more than it has to be.
    let before = history_bytes(&world);
    let half = (first..first + 50).collect();
    world.engine.shared.settle(Settle::acked(B, 7, 0, half));
    world.write();
    NOW.fetch_add(24 * 60 * 60 * 1000 + 1, Ordering::Relaxed);
    world.engine.keeper.turn();
    (first + 50..first + 100).for_each(|number| is_known(&world, number));
    let after = history_bytes(&world);
    assert!((1..before * 2 / 3).contains(&after), "{after} of {before} bytes");
    world.engine.shared.settle(Settle::acked(B, 8, 0, (first + 50..first + 100).collect()));
    world.write();
    NOW.fetch_add(24 * 60 * 60 * 1000 + 1, Ordering::Relaxed);
    world.engine.keeper.turn();
    assert!(history_files(&world).is_empty());
}

#[test]
fn how_a_delivery_ended_is_told_as_it_was_or_not_at_all() {
    static NOW: AtomicU64 = AtomicU64::new(1_000_000);
    let options = options(|| NOW.load(Ordering::Relaxed));
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).unwrap();
    let first = publish_100(&mut world, &[A.0, B.0]);
    // Its record stands between messages of a third receiver, and goes with them.
    const C: PeerId = PeerId(3);
    let others = publish_100(&mut world, &[C.0]);
    let mut purge = Settle::acked(A, 5, first + 99, (first..first + 100).collect());
    purge.record.outcome = Outcome::Purged;
    world.engine.shared.settle(purge);
    world.write();
    let more = publish_100(&mut world, &[C.0]);
    let done = (others..others + 100).chain(more..more + 100).collect();
    world.engine.shared.settle(Settle::acked(C, 5, more + 99, done));
    use_up(&mut world);
    let how = |world: &World, number| {
        let life = world.engine.shared.lookup(number).unwrap();
        let [(A, ended), (B, None)] = &life.receivers[..] else { panic!("{life:?}") };
        ended.clone().unwrap()
    };
    let (outcome, moved_to, attempts, value) = (Outcome::Purged, PeerId::NONE, 0, None);
    let purged = Ended::Settled { outcome, at_ms: 5, moved_to, attempts, value };
    assert_eq!(how(&world, first + 7), purged);
    // Later floors of the same receiver pass over it too, and are acks.
    NOW.fetch_add(KEPT_MS + 1, Ordering::Relaxed);
    let acked = use_up(&mut world);
    assert_eq!(how(&world, first + 7), Ended::Done);
    let disk = world.disk.after_crash(None, &mut Dice(1));
    let world = World::new(disk, options).unwrap();
    assert_eq!(how(&world, first + 7), Ended::Done);
    assert!(is_acked(&world, acked[0]));
}

/// One that is damaged would else be told of at every start, and kept for good: no bound of what is kept
/// counts it.
#[test]
fn a_damaged_history_file_is_set_aside_once_and_one_that_cannot_be_read_stays() {
    let options = options(|| 7);
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).unwrap();
    let numbers = use_up(&mut world);
    let names = history_files(&world);
    let path = format!("history/{}", names[0]);
    let disk = world.disk.copy();
    let sick = disk.copy();
    sick.sicken(&path, WHOLE, 2);
    let opened = World::new(sick.clone(), options.clone()).unwrap();
    assert!(opened.engine.recovered.findings.iter().any(|said| said.contains(&path)));
    assert!(sick.bytes_of(&path).is_some(), "it may be readable another time");

    disk.damage(&path, |bytes| bytes[50] ^= 1);
    let damaged = disk.bytes_of(&path);
    let mut disk = disk;
    for opening in 0..2 {
        let opened = World::new(disk.copy(), options.clone()).unwrap();
        let said = opened.engine.recovered.findings.join("\n");
        assert_eq!(said.contains(&format!("{path} was set aside")), opening == 0, "{said}");
        assert_eq!(said.contains(&names[0]), opening == 0, "{said}");
        history_files(&opened);
        let aside = opened.disk.bytes_of(&path.replace("history/", "quarantine/"));
        assert_eq!(aside, damaged);
        assert!(is_acked(&opened, *numbers.last().unwrap()));
        disk = opened.disk.copy();
    }
}

#[test]
fn segments_without_any_traffic_leave_one_file_and_no_hole_in_what_is_known() {
    let options = options(|| 7);
    let mut world = World::new(SimDisk::new(1 << 24), options.clone()).unwrap();
    let (_, number) = world.engine.shared.append(batch_of(1, &[A.0], &[b"\0x"])).ok().unwrap();
    world.write();
    for round in 0..8 {
        world.checkpoint();
        world.engine.keeper.turn();
        let disk = world.disk.after_crash(None, &mut Dice(round));
        world = World::new(disk, options.clone()).unwrap();
    }
    // The last one may have been moved there by the opening.
    let files = history_files(&world);
    assert!((1..=2).contains(&files.len()), "{files:?}");
    world.disk.watch(|| 0);
    world.checkpoint();
    world.engine.keeper.turn();
    let cuts = world.disk.take_cuts();
    assert!(
        cuts.iter().any(|cut| cut.what.starts_with("rename history/")),
        "they were put together"
    );
    for cut in cuts {
        let survival = Survival { mask: Some(u64::MAX), torn: false };
        let disk = cut.after_crash(survival, &mut Dice(0));
        let opened = World::new(disk, options.clone()).unwrap();
        let mut world = World::new(opened.disk.copy(), options.clone()).unwrap();
        // That this is how it ended is known only where nothing between is missing.
        world.engine.shared.settle(Settle::acked(A, 5, number, Vec::new()));
        world.write();
        assert!(is_acked(&world, number), "after a crash at: {}", cut.what);
    }
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
