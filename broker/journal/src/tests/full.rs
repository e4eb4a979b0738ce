//! A disk without room, from any step on: whatever makes room goes on, and nothing is poisoned.
//!
//! `RESTANTE_SEED` sets where the seeds start; a failure prints the seed and the step to try again.

use super::super::OpenError;
use super::super::storage::Disk;
use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::model::World;
use super::{batch_of, push_admin, small};
use crate::Options;
use bytes::BytesMut;
use restante_actors::journal::{Admission, Batch, End};
use restante_protocol::refusal::Code;

const SEGMENT_BYTES: u64 = 4 * 1024;
const ACTIONS: usize = 150;
const SEEDS: u64 = 12;
/// Of a scenario's steps, every how manieth is one at which the disk fills up.
const STRIDE: u64 = 5;
/// Rounds in which a node has settled what it had and got its room back.
const ROUNDS_MAX: usize = 200;

fn options() -> Options {
    Options {
        checkpoint_bytes: 6 * 1024,
        history_bytes_max: 2 * 1024,
        now_ms: || 1_000,
        ..small(SEGMENT_BYTES)
    }
}

fn first_seed() -> u64 {
    std::env::var("RESTANTE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn is_open(world: &World) -> bool {
    matches!(world.engine.shared.admission(), Admission::Open)
}

fn assert_well(world: &World, seed: u64, step: u64) {
    let shared = &world.engine.shared;
    assert!(!shared.is_dead(), "seed {seed}, full at step {step}: {:?}", shared.refusal());
}

#[test]
fn whenever_the_disk_fills_up_acks_go_on_until_there_is_room_again() {
    let (mut filled, mut refused, mut opened) = (0, 0, 0);
    for seed in first_seed()..first_seed() + SEEDS {
        let scenario = |disk: &SimDisk, step| {
            let mut world = World::new(disk.clone(), options())?;
            let mut dice = Dice(seed);
            for _ in 0..ACTIONS {
                world.act(&mut dice);
                if std::mem::take(&mut world.checkpoint_due) {
                    world.checkpoint();
                }
                assert_well(&world, seed, step);
            }
            Ok::<_, OpenError>(world)
        };
        let healthy = SimDisk::new(1 << 20);
        scenario(&healthy, 0).expect("opens on a healthy disk");
        for step in (1 + seed % STRIDE..=healthy.steps()).step_by(STRIDE as usize) {
            let disk = SimDisk::new(1 << 20);
            disk.fill_at(step);
            let mut world = match scenario(&disk, step) {
                Ok(world) => world,
                Err(OpenError::Full { .. }) => continue,
                // The owner's few bytes at first boot.
                Err(error) if step < 12 => {
                    assert!(error.to_string().contains("no storage space"), "{error}");
                    continue;
                }
                Err(error) => panic!("seed {seed} step {step}: {error}"),
            };
            filled += 1;
            world.round();
            refused += u32::from(!is_open(&world));
            world.read_all();
            opened += u32::from(make_room(&mut world, seed, step));
            world.read_all();
            if step % 3 == 0 {
                let again = world.disk.copy();
                match world.reopen(again) {
                    Ok(()) => {}
                    // It filled up during the first boot, before there was a reserve to open with.
                    Err(OpenError::Full { .. }) if step <= first_boot_steps() => {}
                    Err(error) => panic!("seed {seed} step {step}: {error}"),
                }
            }
        }
    }
    eprintln!("{filled} disks were filled, {refused} doors closed by it, {opened} open again");
    assert!(refused > 100 && opened > 100, "{refused} and {opened} of {filled}");
}

/// Steps of a disk until a first boot has made its reserve.
fn first_boot_steps() -> u64 {
    let disk = SimDisk::new(1 << 20);
    World::new(disk.clone(), options()).expect("opens on a healthy disk").round();
    disk.steps()
}

/// Settles everything, on a disk with nothing free: the door has to open by that alone, if what is
/// there is enough for a whole reserve. Says whether it was.
fn make_room(world: &mut World, seed: u64, step: u64) -> bool {
    let names = world.disk.list("segments").expect("a directory");
    let segments = names.iter().filter(|name| !name.ends_with(".idx")).count();
    let enough = segments > options().ready_segments + 3;
    for _ in 0..ROUNDS_MAX {
        world.settle_all();
        world.round();
        assert_well(world, seed, step);
        // A last one may stay until there is more that is worth a checkpoint.
        if is_open(world) && world.engine.shared.state.lock().dead < 2 {
            return true;
        }
    }
    assert!(
        !enough,
        "seed {seed} step {step}: closed for ever: {:?}",
        world.engine.shared.refusal()
    );
    false
}

#[test]
fn a_full_disk_is_opened_after_a_crash() {
    let mut opened = 0;
    for seed in first_seed()..first_seed() + 4 * SEEDS {
        let disk = SimDisk::new(1 << 20);
        disk.fill_at(60 + seed % 97);
        let Ok(mut world) = World::new(disk.clone(), options()) else { continue };
        let mut dice = Dice(seed);
        for _ in 0..ACTIONS {
            world.act(&mut dice);
        }
        let came_up = disk.after_crash(None, &mut Dice(seed));
        match world.reopen(came_up) {
            // The disk was full before there was a segment to spare.
            Err(OpenError::Full { .. }) => continue,
            reopened => reopened.unwrap_or_else(|error| panic!("seed {seed}: {error}")),
        }
        opened += u64::from(make_room(&mut world, seed, 0));
    }
    assert!(opened > SEEDS, "{opened}");
}

#[test]
fn a_full_disk_refuses_messages_by_name_and_takes_changes_of_the_nodes_state() {
    let disk = SimDisk::new(1 << 20);
    let mut world = World::new(disk.clone(), options()).expect("opens");
    world.round();
    disk.set_capacity(0);
    let message = || batch_of(1, &[1], &[&[7; 1_000]]);
    let mut taken = 0;
    while world.engine.shared.append(message()).is_ok() {
        taken += 1;
        assert!(taken < 100, "the door never closes");
        world.round();
    }
    let (_, refusal) = world.engine.shared.append(message()).unwrap_err();
    assert_eq!(refusal.code, Code::DiskFull);
    assert!(refusal.detail.contains("4096 bytes"), "says how much is needed: {refusal}");
    let mut change = Batch { bytes: BytesMut::new(), records: Vec::new() };
    push_admin(&mut change, b"a peer is removed");
    world.engine.shared.append(change).expect("a change is taken");
    world.round();
    assert_well(&world, 0, 0);

    // Room comes back, and nobody has to say so.
    disk.set_capacity(1 << 20);
    world.engine.keeper.turn();
    assert!(is_open(&world));
    world.engine.shared.append(message()).expect("taken again");
}

/// The keeper has been slower than the writer, and every segment is used up: what has been accepted
/// waits, and is written when there is room.
#[test]
fn a_log_without_a_segment_left_waits_for_one() {
    let disk = SimDisk::new(1 << 20);
    let mut world = World::new(disk.clone(), options()).expect("opens");
    world.round();
    disk.set_capacity(0);
    let mut tickets = Vec::new();
    for sequence in 1..=30 {
        let batch = batch_of(sequence, &[1], &[&[7; 1_000]]);
        tickets.push(world.engine.shared.append(batch).expect("nobody has looked at the disk").0);
    }
    let durable = |world: &mut World| {
        let mut ends = Vec::new();
        while let Ok(completion) = world.engine.completions.try_recv() {
            match completion.end {
                End::Durable(_) => ends.push(completion.ticket),
                End::CheckpointDue => {}
                other => panic!("{other:?}"),
            }
        }
        ends
    };
    let mut items = Vec::new();
    world.engine.shared.take_work(&mut items);
    world.engine.writer.turn(&mut items);
    let first = durable(&mut world);
    assert!(!first.is_empty() && first.len() < tickets.len(), "{} were written", first.len());
    world.engine.keeper.turn();
    assert!(!is_open(&world));
    world.engine.writer.turn(&mut items);
    assert!(durable(&mut world).is_empty());
    assert_well(&world, 0, 0);

    disk.set_capacity(1 << 20);
    world.engine.writer.turn(&mut items);
    let rest = durable(&mut world);
    assert_eq!([first, rest].concat(), tickets, "all of them, in order");
}

#[test]
fn a_keeper_that_fails_tells_the_router_though_nothing_waits() {
    let disk = SimDisk::new(1 << 20);
    let mut world = World::new(disk.clone(), options()).expect("opens");
    disk.fault_at(disk.steps() + 1, Fault::Failed);
    world.engine.keeper.turn();
    assert!(world.engine.shared.is_dead());
    let told = world.engine.completions.try_recv().expect("a word");
    assert!(matches!(told.end, End::Poisoned(_)), "{told:?}");
}
