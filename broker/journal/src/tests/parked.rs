//! Parked messages keep their room, and their bytes are told for the quotas.

use super::super::Options;
use super::super::storage::sim::SimDisk;
use super::model::World;
use super::{A, B, batch_of, small};
use restante_actors::journal::{Backlog, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::ParkRecord;

fn options() -> Options {
    Options { ready_segments: 2, ..small(16 * 1024) }
}

fn publish(world: &mut World, peer: PeerId, count: usize) -> Vec<MessageNumber> {
    let bodies: Vec<&[u8]> = vec![&[0; 101]; count];
    let (_, first) = world.engine.shared.append(batch_of(1, &[peer.0], &bodies)).expect("room");
    world.write();
    (first..first + count as u64).collect()
}

fn backlog(world: &World) -> Backlog {
    world.engine.shared.state.lock().backlog(B)
}

fn counts(world: &World) -> (u64, u64, u64, u64) {
    let Backlog { messages, bytes, parked, parked_bytes, .. } = backlog(world);
    (messages, bytes, parked, parked_bytes)
}

fn checkpoint(world: &mut World) {
    world.engine.keeper.turn();
    world.checkpoint();
    world.engine.keeper.turn();
}

#[test]
fn the_bytes_of_parked_messages_are_counted_for_as_long_as_they_are_kept() {
    let mut world = World::new(SimDisk::new(1 << 24), options()).expect("opens");
    let mut numbers = Vec::new();
    for _ in 0..100 {
        let done = publish(&mut world, A, 10);
        let floor = done[9];
        world.engine.shared.settle(Settle::acked(A, 5, floor, done));
        numbers.extend(publish(&mut world, B, 1));
    }
    let parked: Vec<_> = numbers.iter().copied().step_by(4).collect();
    for number in &parked {
        let (number, reason) = (*number, "no".to_owned());
        world.engine.shared.park(&ParkRecord { peer: B, number, at_ms: 6, attempts: 9, reason });
    }
    // Some of them below the floor, and some not.
    let open = |number: &&MessageNumber| !parked.contains(number);
    let acked: Vec<_> = numbers.iter().filter(open).take(30).copied().collect();
    let floor = acked[29];
    world.engine.shared.settle(Settle::acked(B, 5, floor, acked));
    world.write();
    let expected = (45, 45 * 101, 25, 25 * 101);
    assert_eq!(counts(&world), expected);

    let disk = world.disk.copy();
    let mut world = World::new(disk, options()).expect("opens");
    assert_eq!(counts(&world), expected, "replayed");
    checkpoint(&mut world);
    let disk = world.disk.copy();
    let mut world = World::new(disk, options()).expect("opens");
    assert_eq!(counts(&world), expected, "from a checkpoint");
    let before = world.engine.shared.state.lock().segments.len();
    for _ in 0..4 {
        checkpoint(&mut world);
        world.compact();
    }
    assert!(world.engine.shared.state.lock().segments.len() < before, "some became one");
    assert_eq!(counts(&world), expected, "compacted");
    checkpoint(&mut world);
    let disk = world.disk.copy();
    let world = World::new(disk, options()).expect("opens");
    assert_eq!(counts(&world), expected, "from a checkpoint again");

    world.engine.shared.settle(Settle::acked(B, 7, 0, parked[..20].to_vec()));
    assert_eq!(counts(&world), (45, 45 * 101, 5, 5 * 101));
    world.engine.shared.settle(Settle::acked(B, 7, 0, parked[20..].to_vec()));
    assert_eq!(counts(&world), (45, 45 * 101, 0, 0));
}
