//! The last of the room: what is still given back when next to nothing is left to do it with.

use super::super::Options;
use super::super::format::{FileHeader, FileKind, is_cold};
use super::super::history::{HistoryNote, Keeps};
use super::super::recovery::Engine;
use super::super::segment;
use super::super::shared::{Shared, Spare};
use super::super::state::Place;
use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::super::storage::{Disk, DiskFile, RealDisk};
use super::model::World;
use super::{A, B, batch_of, small};
use restante_actors::journal::{Admission, Lane, Read, Settle};
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SEGMENT: u64 = 4 * 1024;
const DISK: u64 = 1 << 20;

fn options() -> Options {
    Options {
        checkpoint_bytes: 6 * 1024,
        history_bytes_max: 2 * 1024,
        now_ms: || 1_000,
        ..small(SEGMENT)
    }
}

fn publish(world: &mut World, peer: PeerId, count: usize) -> Option<Vec<MessageNumber>> {
    publish_large(world, peer, count, 150)
}

fn publish_large(
    world: &mut World,
    peer: PeerId,
    count: usize,
    bytes: usize,
) -> Option<Vec<MessageNumber>> {
    let body = vec![0; bytes];
    let bodies: Vec<&[u8]> = vec![&body; count];
    let (_, first) = world.engine.shared.append(batch_of(1, &[peer.0], &bodies)).ok()?;
    world.write();
    Some((first..first + count as u64).collect())
}

fn is_open(world: &World) -> bool {
    matches!(world.engine.shared.admission(), Admission::Open)
}

fn settle(world: &World, peer: PeerId, numbers: &[MessageNumber]) {
    let floor = numbers.last().copied().unwrap_or(0);
    world.engine.shared.settle(Settle::acked(peer, 5, floor, numbers.to_vec()));
}

fn open_for(world: &World, peer: PeerId) -> Vec<MessageNumber> {
    let (lane, after, through) = (Lane::Open, 0, u64::MAX);
    let read = Read { peer, lane, after, through, bytes_max: 1 << 20, messages_max: 1_000 };
    let page = world.engine.shared.next(read).expect("it reads");
    page.messages.iter().map(|message| message.number).collect()
}

/// Every segment has one message that nobody fetches: acks alone make nothing dead.
#[test]
fn on_a_full_disk_thin_segments_are_compacted_out_of_the_reserve() {
    let disk = SimDisk::new(DISK);
    let mut world = World::new(disk.clone(), options()).expect("opens");
    let (mut done, mut waiting) = (Vec::new(), Vec::new());
    for nth in 0.. {
        // Another tenant has filled the disk.
        if nth == 30 {
            disk.set_capacity(DISK - disk.free_bytes().expect("a size"));
        }
        let Some(numbers) = publish(&mut world, A, 10) else { break };
        done.extend(numbers);
        // A copy of two of these fills a segment: what an index leaves of one that was given up for it
        // is not enough.
        waiting.extend(publish_large(&mut world, B, 1, 1_476).unwrap_or_default());
        world.round();
        assert!(nth < 60, "the door never closes");
    }
    assert!(!is_open(&world));
    for numbers in done.chunks(60) {
        settle(&world, A, numbers);
        world.write();
    }
    {
        let state = world.engine.shared.state.lock();
        let log = state.segments.iter().filter(|segment| segment.first <= done[done.len() - 1]);
        assert!(log.clone().count() > 25 && log.clone().all(|segment| segment.live > 0));
    }
    for _ in 0..200 {
        world.round();
        assert!(!world.engine.shared.is_dead(), "{:?}", world.engine.shared.refusal());
        if is_open(&world) {
            break;
        }
    }
    assert!(is_open(&world), "closed for ever: {:?}", world.engine.shared.refusal());
    assert_eq!(open_for(&world, B), waiting);
    let again = World::new(world.disk.copy(), options()).expect("opens");
    assert_eq!(open_for(&again, B), waiting);
}

#[test]
fn what_is_dead_goes_though_an_index_cannot_be_written() {
    let mut world = World::new(SimDisk::new(DISK), options()).expect("opens");
    let mut done = Vec::new();
    while world.engine.shared.state.lock().segments.len() < 6 {
        done.extend(publish(&mut world, A, 5).expect("room"));
        world.engine.keeper.turn();
    }
    let dead = world.engine.shared.state.lock().segments[0].id;
    settle(&world, A, &done);
    // Sealed with the keeper looking elsewhere, and then nothing is free but the checkpoint's room.
    let is_sealed = |world: &World| {
        let state = world.engine.shared.state.lock();
        state.segments.iter().any(|segment| matches!(segment.index, Place::Sealed(_)))
    };
    while !is_sealed(&world) {
        publish(&mut world, B, 10).expect("room");
    }
    world.engine.shared.checkpoint(bytes::Bytes::from_static(&[0; 8]));
    world.write();
    {
        let mut pool = world.engine.shared.pool.lock();
        pool.spares.clear();
        pool.ready.truncate(1);
        pool.history.clear();
    }
    world.disk.set_capacity(DISK);
    let used = DISK - world.disk.free_bytes().expect("a size");
    world.disk.set_capacity(used + 300);
    world.engine.keeper.turn();
    assert!(!world.engine.shared.is_dead());
    let left = world.engine.shared.state.lock().segments.iter().any(|s| s.id == dead);
    assert!(!left, "it waits for an index");
    world.engine.keeper.turn();
    assert!(!is_sealed(&world), "and its room was enough for that");
}

/// The checkpoint behind a copy can do with other room when its turn comes: for that alone no reserve goes.
#[test]
fn a_copy_begins_where_there_is_room_for_it_and_not_for_a_checkpoint_too() {
    let disk = SimDisk::new(DISK);
    // Nothing is copied before this test says so.
    let slow = Options { cooling: Duration::MAX, ..options() };
    let mut world = World::new(disk.clone(), slow).expect("opens");
    while world.engine.shared.state.lock().segments.len() < 6 {
        let done = publish(&mut world, A, 10).expect("room");
        settle(&world, A, &done);
        publish(&mut world, B, 1).expect("room");
    }
    world.engine.shared.checkpoint(bytes::Bytes::from(vec![0; 4 * SEGMENT as usize]));
    world.write();
    world.engine.keeper.turn();
    let kept = |world: &World| {
        let pool = world.engine.shared.pool.lock();
        (pool.ready.len(), pool.spares.len())
    };
    let copies = |world: &World| {
        let state = world.engine.shared.state.lock();
        state.segments.iter().filter(|segment| is_cold(segment.id)).count()
    };
    let before = (kept(&world), copies(&world));
    assert!(before.0.0 > 2, "{before:?}");
    let used = DISK - disk.free_bytes().expect("a size");
    disk.set_capacity(used + SEGMENT + 2 * 1024);
    let Engine { keeper, shared, .. } = &mut world.engine;
    keeper.compactor.turn(shared, Instant::now(), true).expect("there is room");
    assert_eq!((kept(&world), copies(&world)), (before.0, before.1 + 1));
}

#[test]
fn a_segment_that_cannot_be_made_ready_leaves_nothing_behind() {
    let header = FileHeader {
        kind: FileKind::Segment,
        epoch: 1,
        node: NodeTag(3),
        id: 9,
        created_ms: 1,
        seed: 7,
    };
    for with_spare in [false, true] {
        let mut failed = 0;
        for step in 1.. {
            let disk = SimDisk::new(DISK);
            disk.make_dir("segments").expect("a directory");
            let spare = Spare { path: "segments/000000000005.spare".to_owned(), filled: true };
            let used = with_spare.then(|| {
                let file = disk.create(&spare.path).expect("a file");
                file.allocate(SEGMENT).expect("room");
                disk.sync_dir("segments").expect("a directory");
                (spare.clone(), file)
            });
            let before = disk.list("segments").expect("a directory");
            disk.fault_at(disk.steps() + step, Fault::Full);
            let Err((_, kept)) = segment::prepare(&disk, &header, SEGMENT, used) else {
                let left = disk.list("segments").expect("a directory");
                assert_eq!(left, ["000000000009.seg"]);
                break;
            };
            failed += 1;
            assert_eq!(disk.list("segments").expect("a directory"), before, "step {step}");
            assert_eq!(kept.map(|spare| spare.path), with_spare.then_some(spare.path));
            // Its header may be written anew now: whatever a crash leaves, it has no other name.
            for seed in 0..if with_spare { 16 } else { 0 } {
                let after = disk.after_crash(None, &mut Dice(seed));
                assert_eq!(after.list("segments").expect("a directory"), before, "step {step}");
            }
        }
        assert!(failed >= 4, "{failed} steps failed");
    }
}

#[test]
fn a_spare_segment_that_could_not_be_used_is_used_later() {
    let disk = SimDisk::new(DISK);
    let world = World::new(disk.clone(), options()).expect("opens");
    let path = "segments/0000000000ff.spare".to_owned();
    disk.create(&path).expect("a file").allocate(SEGMENT).expect("room");
    world.engine.shared.pool.lock().spares.push(Spare { path: path.clone(), filled: true });
    disk.fault_at(disk.steps() + 1, Fault::Full);
    assert!(world.engine.shared.make_ready().is_err());
    assert_eq!(world.engine.shared.pool.lock().spares.len(), 1);
    world.engine.shared.make_ready().expect("it works again");
    assert!(disk.bytes_of(&path).is_none() && world.engine.shared.pool.lock().spares.is_empty());
    let first = world.engine.shared.pool.lock().ready[0].id;
    assert!(disk.bytes_of(&Shared::segment_path(first)).is_some());
}

#[test]
fn files_that_somebody_has_removed_are_gone_and_no_more() {
    let disk = SimDisk::new(DISK);
    let options = Options { history_bytes_max: 0, spare_segments_max: 1, ..options() };
    let mut world = World::new(disk.clone(), options).expect("opens");
    let mut done = Vec::new();
    while world.engine.shared.state.lock().segments.len() < 8 {
        done.extend(publish(&mut world, A, 5).expect("room"));
        world.engine.keeper.turn();
    }
    let tidy_up = |world: &mut World| {
        for _ in 0..3 {
            world.checkpoint();
            world.engine.keeper.turn();
        }
        assert!(!world.engine.shared.is_dead(), "{:?}", world.engine.shared.refusal());
    };
    tidy_up(&mut world);
    let ids: Vec<u64> = {
        let state = world.engine.shared.state.lock();
        state.segments.iter().take(3).map(|segment| segment.id).collect()
    };
    let remove = |path: &str| disk.unlink(path).expect("it is there");
    remove(&Shared::segment_path(ids[0]));
    remove(&Shared::index_path(ids[1]));
    remove(&Shared::segment_path(ids[2]));
    remove(&Shared::index_path(ids[2]));
    let gone = HistoryNote { id: 99, first: 1, next: 2, bytes: 10, kept_ms: 0, keeps: Keeps::All };
    world.engine.shared.pool.lock().history.push(gone);
    settle(&world, A, &done);
    tidy_up(&mut world);
    assert!(world.engine.shared.state.lock().segments.iter().all(|s| !ids.contains(&s.id)));

    let spares: Vec<String> = {
        let pool = world.engine.shared.pool.lock();
        pool.spares.iter().map(|spare| spare.path.clone()).collect()
    };
    assert_eq!(spares.len(), 1);
    remove(&spares[0]);
    world.engine.shared.pool.lock().ready.clear();
    tidy_up(&mut world);
    assert_eq!(world.engine.shared.pool.lock().ready.len(), 4, "made of nothing");
}

#[test]
fn a_spare_segment_that_is_only_as_long_as_one_gets_its_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = RealDisk::new(dir.path());
    disk.make_dir("segments").expect("a directory");
    let bytes = 1 << 20;
    let room_of = |id: u64, spare: Option<(Spare, Arc<dyn DiskFile>)>| {
        let (kind, node) = (FileKind::Segment, NodeTag(3));
        let header = FileHeader { kind, epoch: 1, node, id, created_ms: 1, seed: 7 };
        segment::prepare(&disk, &header, bytes, spare).expect("it is made ready");
        let path = dir.path().join(Shared::segment_path(id));
        std::fs::metadata(path).expect("it is there").blocks()
    };
    let fresh = room_of(1, None);
    let spare = Spare { path: "segments/000000000005.spare".to_owned(), filled: true };
    let file = disk.create(&spare.path).expect("a file");
    file.truncate(bytes).expect("as long as a segment");
    assert_eq!(room_of(2, Some((spare, file))), fresh);
}
