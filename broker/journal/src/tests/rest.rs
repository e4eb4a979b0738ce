//! A log at rest: what was only kept for haste is given back, and nothing is done again and again.

use super::super::Options;
use super::super::shared::Shared;
use super::super::storage::sim::{FOR_GOOD, Ill, SimDisk};
use super::model::World;
use super::{A, batch_of, small};
use restante_actors::journal::{Lane, Read, Settle};
use restante_protocol::id::MessageNumber;

fn world() -> World {
    let options = Options { ready_segments: 2, ..small(16 * 1024) };
    World::new(SimDisk::new(1 << 26), options).expect("opens")
}

/// Publishes until `segments` more have been sealed; returns the messages.
fn fill(world: &mut World, segments: usize) -> Vec<MessageNumber> {
    let count = |world: &World| world.engine.shared.state.lock().segments.len();
    let (until, mut numbers) = (count(world) + segments, Vec::new());
    while count(world) < until {
        let batch = batch_of(1, &[A.0], &[&[0; 200][..]; 5]);
        let (_, first) = world.engine.shared.append(batch).expect("room");
        world.write();
        numbers.extend(first..first + 5);
    }
    world.engine.keeper.turn();
    world.checkpoint();
    world.engine.keeper.turn();
    numbers
}

fn settle(world: &mut World, numbers: Vec<MessageNumber>) {
    world.checkpoint_due = false;
    let floor = numbers.last().copied().unwrap_or(0);
    world.engine.shared.settle(Settle::acked(A, 5, floor, numbers));
    world.write();
    world.engine.keeper.turn();
    world.write();
}

fn dead_and_spare(world: &World) -> (usize, usize) {
    let dead = world.engine.shared.state.lock().dead;
    (dead, world.engine.shared.pool.lock().spares.len())
}

#[test]
fn what_is_only_there_for_haste_goes_when_nothing_is_written() {
    let mut world = world();
    let done = fill(&mut world, 4);
    settle(&mut world, done);
    world.checkpoint();
    world.engine.keeper.turn();
    assert_eq!(dead_and_spare(&world), (0, 2));
    let done = fill(&mut world, 1);
    settle(&mut world, done);
    assert!(dead_and_spare(&world).0 == 1 && !world.checkpoint_due, "one waits for a second");
    world.engine.writer.rest();
    world.engine.keeper.turn();
    world.write();
    assert!(world.checkpoint_due, "there is time for it now");
    world.checkpoint();
    world.engine.keeper.turn();
    assert_eq!(dead_and_spare(&world), (0, 1));
    // It goes on.
    let done = fill(&mut world, 4);
    settle(&mut world, done);
    world.checkpoint();
    world.engine.keeper.turn();
    assert_eq!(dead_and_spare(&world), (0, 2));
}

/// Neither its index nor its records can be read, so that it stays from one checkpoint to the next: that is
/// no reason for the next one.
#[test]
fn what_a_checkpoint_could_not_let_go_asks_for_no_other_at_once() {
    let mut world = world();
    let done = fill(&mut world, 3);
    let segments: Vec<u64> = {
        let state = world.engine.shared.state.lock();
        state.segments.iter().filter(|s| s.next.is_some()).map(|s| s.id).collect()
    };
    for id in &segments {
        for path in [Shared::segment_path(*id), Shared::index_path(*id)] {
            world.disk.sicken(&path, Ill::Read(0..u64::MAX), FOR_GOOD);
        }
    }
    settle(&mut world, done);
    assert!(world.checkpoint_due && dead_and_spare(&world).0 >= 2, "they ask for one");
    world.checkpoint();
    world.engine.keeper.turn();
    world.write();
    assert!(dead_and_spare(&world).0 >= 2, "they stay");
    assert!(!world.checkpoint_due, "and ask for another at once");
    let keeper = &mut world.engine.keeper;
    assert!(keeper.look_again_after().is_none(), "whoever writes will wake it");
    world.engine.writer.rest();
    assert!(keeper.look_again_after().is_some(), "nobody else would come back to them");
    assert!(keeper.look_again_after().is_none(), "they are looked at for ever");
}

#[test]
fn what_was_read_of_an_index_goes_with_its_segment() {
    let mut world = world();
    let done = fill(&mut world, 4);
    let (mut after, shared) = (0, &world.engine.shared);
    loop {
        let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 1_000);
        let read = Read { peer: A, lane: Lane::Open, after, through, bytes_max, messages_max };
        let page = shared.next(read).expect("it reads");
        if page.messages.is_empty() {
            break;
        }
        after = page.through;
    }
    assert!(shared.cached_bytes() > 0);
    settle(&mut world, done);
    world.checkpoint();
    world.engine.keeper.turn();
    assert_eq!(dead_and_spare(&world).0, 0);
    assert_eq!(world.engine.shared.cached_bytes(), 0);
}
