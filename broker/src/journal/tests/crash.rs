//! Crashes at every step a disk can take, with every way the unsynced changes can survive.
//!
//! `RESTANTE_CRASH_POINTS` sets how many crash points are tried, `RESTANTE_SEED` where the seeds
//! start; a failure prints the seed, the step and the mask to try again.

use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::model::World;
use super::small;
use crate::journal::Options;

const POINTS_DEFAULT: u64 = 2_000;
/// Up to this many unsynced changes every subset is tried.
const EXHAUSTIVE_MAX: usize = 4;
const SAMPLES: usize = 4;
const ACTIONS: usize = 60;
/// Of a scenario's steps, every how manieth is a crash point.
const STRIDE: u64 = 7;

fn options() -> Options {
    Options {
        ready_segments: 2,
        spare_segments_max: 1,
        checkpoint_bytes: 6 * 1024,
        now_ms: || 1_000,
        ..small(4 * 1024)
    }
}

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs one scenario until it is over or the machine goes down.
fn run(disk: &SimDisk, dice: &mut Dice) -> Option<World> {
    let mut world = World::new(disk.clone(), options()).ok()?;
    act(&mut world, dice);
    Some(world)
}

fn act(world: &mut World, dice: &mut Dice) {
    for _ in 0..ACTIONS + dice.below(2 * ACTIONS) {
        if world.disk.has_crashed() {
            return;
        }
        // The state is not looked at with the disk down; everything else may be interrupted.
        let before = dice.clone();
        if dice.below(22) == 21 && !world.checkpoint_due {
            world.read_all();
            continue;
        }
        *dice = before;
        world.act(dice);
    }
}

/// Everything that may be on the disk after a crash, as masks of kept changes; `None`: by chance.
fn survivals(pending: usize) -> Vec<Option<u64>> {
    if pending <= EXHAUSTIVE_MAX {
        (0..1u64 << pending).map(Some).collect()
    } else {
        [Some(0), Some(u64::MAX)].into_iter().chain((0..SAMPLES).map(|_| None)).collect()
    }
}

#[test]
fn nothing_confirmed_is_lost_whatever_survives_a_crash() {
    let points = knob("RESTANTE_CRASH_POINTS", POINTS_DEFAULT);
    let (mut seed, mut done, mut opened) = (knob("RESTANTE_SEED", 1), 0u64, 0u64);
    while done < points {
        let disk = SimDisk::new(1 << 20);
        run(&disk, &mut Dice(seed)).expect("opens on a healthy disk").read_all();
        let steps = disk.steps();
        // A few steps of many scenarios rather than all of a few; the rest come with other seeds.
        for step in (1 + seed % STRIDE..=steps).step_by(STRIDE as usize) {
            opened += crash_point(seed, step);
            done += 1;
            if done == points {
                break;
            }
        }
        seed += 1;
    }
    eprintln!("{done} crash points, {opened} openings, seeds up to {seed}");
}

/// One scenario that goes down at one step; every survival of it is opened, used, and crashed again.
fn crash_point(seed: u64, step: u64) -> u64 {
    let run_until = || {
        let disk = SimDisk::new(1 << 20);
        disk.crash_at(step);
        let world = run(&disk, &mut Dice(seed));
        (disk, world)
    };
    let (first, _) = run_until();
    assert!(first.has_crashed(), "seed {seed} reaches step {step}");
    let mut opened = 0;
    for (nth, mask) in survivals(first.pending()).into_iter().enumerate() {
        let context = Context { seed, step, nth, mask };
        let (disk, world) = run_until();
        let mut dice = Dice(seed ^ (step << 20) ^ ((nth as u64) << 50));
        let Some(mut world) = world else {
            // Down before it was ever open: it must open now.
            World::new(disk.after_crash(mask, &mut dice), options()).expect("first boot again");
            opened += 1;
            continue;
        };
        world.reopen(disk.after_crash(mask, &mut dice)).expect("opens after a crash");
        opened += 1;
        // Life goes on, and the machine goes down again.
        let more = 1 + dice.below(40) as u64;
        world.disk.crash_at(world.disk.steps() + more);
        act(&mut world, &mut dice);
        let again = world.disk.after_crash(None, &mut dice);
        world.reopen(again).expect("opens after a second crash");
        world.read_all();
        opened += 1;
        std::mem::forget(context);
    }
    opened
}

/// Prints where it was when a check fails; forgotten when all is well.
struct Context {
    seed: u64,
    step: u64,
    nth: usize,
    mask: Option<u64>,
}

impl Drop for Context {
    fn drop(&mut self) {
        let Context { seed, step, nth, mask } = self;
        eprintln!("at seed {seed}, step {step}, survival {nth} (mask {mask:?})");
    }
}

#[test]
fn a_crash_during_recovery_changes_nothing() {
    for seed in 1..=12u64 {
        let scenario = || {
            let disk = SimDisk::new(1 << 20);
            let mut world = run(&disk, &mut Dice(seed)).expect("opens on a healthy disk");
            // All messages are certain, so that an opening's own record cannot take the number of one
            // that never was.
            world.write();
            world
        };
        let came_up = scenario().disk.after_crash(None, &mut Dice(seed));
        for step in 1.. {
            let interrupted = came_up.copy();
            interrupted.crash_at(step);
            let opened = World::new(interrupted.clone(), options());
            if !interrupted.has_crashed() {
                assert!(step > 3, "an opening takes a few steps");
                break;
            }
            assert!(opened.is_err(), "an opening that was interrupted is not open");
            for nth in 0..4 {
                let mut dice = Dice(seed * 1_000 + step * 10 + nth);
                let again = interrupted.after_crash(None, &mut dice);
                let reopened = scenario().reopen(again);
                reopened.unwrap_or_else(|error| panic!("seed {seed} step {step}: {error}"));
            }
        }
    }
}

#[test]
fn a_failed_write_or_sync_poisons_and_a_reopen_finds_all_that_was_confirmed() {
    for seed in 1..=8u64 {
        let disk = SimDisk::new(1 << 20);
        let steps = run(&disk, &mut Dice(seed)).map(|_| disk.steps()).expect("opens");
        for step in 1..=steps {
            let fault = [Fault::Failed, Fault::Full, Fault::Short][(step % 3) as usize];
            let disk = SimDisk::new(1 << 20);
            disk.fault_at(step, fault);
            let Ok(mut world) = World::new(disk.clone(), options()) else { continue };
            let mut dice = Dice(seed);
            for _ in 0..ACTIONS {
                if world.engine.shared.is_dead() {
                    break;
                }
                world.act(&mut dice);
            }
            // Half of the time the machine stays up: everything written is there.
            let mask = (step % 2 == 0).then_some(u64::MAX);
            let again = disk.after_crash(mask, &mut Dice(seed + step));
            world
                .reopen(again)
                .unwrap_or_else(|e| panic!("seed {seed} step {step} {fault:?}: {e}"));
        }
    }
}
