//! Crashes at every single step a disk can take, with every way the unsynced changes can survive.
//!
//! A scenario runs once, on a disk that is watched; each step of the disk is a crash point. Of each,
//! every survival is opened and compared with what had been promised by then: all subsets of up to
//! four unsynced changes, seeded samples of more, whole and torn. From some of them life goes on to a
//! second crash, or the opening itself is watched and crashed at each of its steps.
//!
//! `RESTANTE_CRASH_POINTS` sets how many crash points are tried, `RESTANTE_SEED` where the seeds
//! start; `RESTANTE_CRASH_AT=seed:step` tries one again. `tests/crash_points.sh` goes on for as long
//! as wanted.

pub(super) mod model;
pub(super) mod moves;
pub(super) mod world;

use super::super::Options;
use super::super::storage::sim::{Dice, Fault, SimDisk, Survival};
use super::small;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use world::{Point, ROOMY, Temper, World};

const POINTS_DEFAULT: u64 = 10_000;
/// Up to this many unsynced changes every subset is tried.
const EXHAUSTIVE_MAX: usize = 4;
/// Of more than those, how many are tried by chance.
const SAMPLES: usize = 6;
const ACTIONS: usize = 80;
const WORKERS: u64 = 2;
/// From every how manieth crash point on life goes on; and at every how manieth the opening is
/// crashed at each of its steps.
const SECOND_LIFE_EVERY: u64 = 4;
const OPENING_EVERY: u64 = 40;

/// How many steps are shown when a crash point is tried again.
const STEPS_SHOWN: u64 = 30;

/// What a scenario runs under: everything that matters, differently from seed to seed.
fn options(dice: &mut Dice) -> Options {
    let segment_bytes = [4, 4, 4, 8, 16][dice.below(5)] * 1024;
    Options {
        ready_segments: 2 + dice.below(2),
        spare_segments_max: dice.below(3),
        checkpoint_bytes: [4, 6, 24][dice.below(3)] * 1024,
        commit_bytes_max: [600, 1 << 20][dice.below(2)],
        cache_bytes: [0, 1 << 20][dice.below(2)],
        history_bytes_max: [600, ROOMY, ROOMY][dice.below(3)],
        bytes_max: [segment_bytes * 8, u64::MAX, u64::MAX][dice.below(3)],
        bytes_resume: segment_bytes * 7,
        now_ms: || 1_000,
        ..small(segment_bytes)
    }
}

fn temper(dice: &mut Dice) -> Temper {
    Temper { sick: dice.chance(25), tight: dice.chance(25) }
}

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// What was tried.
#[derive(Default)]
struct Tally {
    points: u64,
    openings: u64,
    refused: u64,
    poisoned: u64,
    /// How often a step of each kind was a crash point.
    steps: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.points += other.points;
        self.openings += other.openings;
        self.refused += other.refused;
        self.poisoned += other.poisoned;
        for (what, count) in other.steps {
            *self.steps.entry(what).or_default() += count;
        }
    }
}

#[test]
fn nothing_confirmed_is_lost_whatever_survives_a_crash() {
    if let Ok(at) = std::env::var("RESTANTE_CRASH_AT") {
        let (seed, step) = at.split_once(':').expect("seed:step");
        let (seed, step) = (seed.parse().unwrap(), step.parse().unwrap());
        assert_eq!(scenario(seed, u64::MAX, Some(step)).points, 1, "there is no such step");
        return;
    }
    let points = knob("RESTANTE_CRASH_POINTS", POINTS_DEFAULT);
    let first_seed = knob("RESTANTE_SEED", 1);
    let failed = AtomicBool::new(false);
    let work = |worker: u64| {
        let _guard = StopOthers(&failed);
        let (mut tally, mut seed) = (Tally::default(), first_seed + worker);
        let share = points.div_ceil(WORKERS);
        while tally.points < share && !failed.load(Ordering::Relaxed) {
            tally.add(scenario(seed, share - tally.points, None));
            seed += WORKERS;
        }
        (tally, seed)
    };
    let (mut tally, mut next_seed) = (Tally::default(), 0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|n| {
                scope.spawn({
                    let work = &work;
                    move || work(n)
                })
            })
            .collect();
        for worker in workers {
            let (more, seed) = worker.join().expect("every crash point holds");
            tally.add(more);
            next_seed = next_seed.max(seed);
        }
    });
    eprintln!("{} crash points, {} openings, {:?}", tally.points, tally.openings, tally.steps);
    eprintln!("{} appends refused, {} lives poisoned", tally.refused, tally.poisoned);
    eprintln!("next seed {next_seed}");
    if points >= POINTS_DEFAULT {
        check_reach(&tally);
    }
}

/// The scenarios came to everything that the journal does with a disk.
fn check_reach(tally: &Tally) {
    let kinds = [
        "change segments/x.seg",
        "sync segments/x.seg",
        "change segments/x.new",
        "rename segments/x.new to segments/x.seg",
        "rename segments/x.seg to segments/x.spare",
        "rename segments/x.spare to segments/x.seg",
        "rename segments/x.idx.tmp to segments/x.idx",
        "rename segments/x.idx to history/x.idx",
        "rename checkpoint.tmp to checkpoint",
        "unlink segments/x.seg",
        "unlink history/x.idx",
        "sync directory segments",
        "sync directory ",
    ];
    for kind in kinds {
        assert!(tally.steps.contains_key(kind), "no crash at: {kind}");
    }
    assert!(tally.refused > 0 && tally.poisoned > 0, "the disk was full, and failed");
}

/// A step without the ids and times in it.
fn kind_of(what: &str) -> String {
    let parts = what.split('/').map(|part| match part.split_once('.') {
        Some((id, rest)) if id.len() >= 12 && id.starts_with(|c: char| c.is_ascii_digit()) => {
            format!("x.{rest}")
        }
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Runs one scenario, and crashes it at each of its first steps; or at one only.
fn scenario(seed: u64, points_max: u64, only: Option<u64>) -> Tally {
    let mut dice = Dice(seed);
    let options = options(&mut dice);
    let temper = temper(&mut dice);
    let mut tally = Tally::default();
    let context = Context { seed, step: 0, survival: None };
    let mut world = World::watched(SimDisk::new(ROOMY), options, temper);
    for _ in 0..ACTIONS + dice.below(ACTIONS) {
        for point in world.points.drain(..) {
            if tally.points == points_max {
                break;
            }
            if only
                .is_some_and(|only| (point.cut.step..point.cut.step + STEPS_SHOWN).contains(&only))
            {
                eprintln!("step {}: {}", point.cut.step, point.cut.what);
            }
            if only.is_none_or(|only| only == point.cut.step) {
                tally.points += 1;
                *tally.steps.entry(kind_of(&point.cut.what)).or_default() += 1;
                tally.openings += crash_point(seed, &point);
            }
        }
        world.act(&mut dice);
    }
    (tally.refused, tally.poisoned) = (world.refused, world.poisoned);
    drop(context);
    tally
}

/// Everything that may be on the disk after a crash.
fn survivals(point: &Point) -> Vec<Survival> {
    let masks: Vec<Option<u64>> = match point.cut.pending() {
        few @ 0..=EXHAUSTIVE_MAX => (0..1u64 << few).map(Some).collect(),
        _ => [Some(0), Some(u64::MAX)].into_iter().chain([None; SAMPLES]).collect(),
    };
    let mut survivals = Vec::new();
    for mask in masks {
        survivals.push(Survival { mask, torn: false });
        if mask != Some(0) && point.cut.can_tear() {
            survivals.push(Survival { mask, torn: true });
        }
    }
    survivals
}

/// The machine goes down at this point; every survival of it is opened and compared.
fn crash_point(seed: u64, point: &Point) -> u64 {
    let step = point.cut.step;
    let mut context = Context { seed, step, survival: None };
    let survivals = survivals(point);
    let chosen = (seed ^ step) as usize % survivals.len();
    let mut openings = 0;
    for (nth, survival) in survivals.into_iter().enumerate() {
        context.survival = Some(survival);
        let mut dice = Dice(seed ^ (step << 20) ^ ((nth as u64) << 50));
        let disk = point.cut.after_crash(survival, &mut dice);
        if nth == chosen && (seed ^ step).is_multiple_of(OPENING_EVERY) {
            openings += crash_each_step_of_opening(point, &disk, &mut dice);
        }
        let mut world = point.opens_on(disk).expect("opens after a crash");
        openings += 1;
        if nth == chosen && step.is_multiple_of(SECOND_LIFE_EVERY) {
            second_life(&mut world, &mut dice);
            openings += 1;
        }
    }
    openings
}

/// Life goes on, and the machine goes down again.
fn second_life(world: &mut World, dice: &mut Dice) {
    let more = 1 + dice.below(40) as u64;
    world.disk.crash_at(world.disk.steps() + more);
    for _ in 0..ACTIONS {
        world.act(dice);
    }
    let again = world.disk.after_crash(None, dice);
    world.come_up(again).expect("opens after a second crash");
}

/// The machine goes down again at each step that the opening takes.
fn crash_each_step_of_opening(point: &Point, disk: &SimDisk, dice: &mut Dice) -> u64 {
    let opened = point.opens_watched_on(disk.copy()).expect("opens after a crash");
    assert!(opened.points.len() > 3, "an opening takes a few steps");
    for point in &opened.points {
        let survival = Survival { mask: None, torn: true };
        point.comes_up(survival, dice).expect("opens after a crash while opening");
    }
    1 + opened.points.len() as u64
}

/// Lets the other workers end once a check has failed.
struct StopOthers<'a>(&'a AtomicBool);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// Says where it was when a check fails.
struct Context {
    seed: u64,
    step: u64,
    survival: Option<Survival>,
}

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Context { seed, step, survival } = self;
            eprintln!("try again with RESTANTE_CRASH_AT={seed}:{step} ({survival:?})");
        }
    }
}

#[test]
fn a_failed_write_or_sync_poisons_and_a_reopen_finds_all_that_was_confirmed() {
    for seed in 1..=8u64 {
        let run = |fault: Option<(u64, Fault)>| {
            let disk = SimDisk::new(ROOMY);
            if let Some((step, fault)) = fault {
                disk.fault_at(step, fault);
            }
            let mut dice = Dice(seed);
            let mut world = World::new(disk, options(&mut dice)).ok()?;
            for _ in 0..ACTIONS {
                if world.engine.shared.is_dead() {
                    break;
                }
                world.act(&mut dice);
            }
            Some(world)
        };
        let steps = run(None).expect("opens").disk.steps();
        for step in 1..=steps {
            let fault = [Fault::Failed, Fault::Full, Fault::Short][(step % 3) as usize];
            let Some(mut world) = run(Some((step, fault))) else { continue };
            let again = world.disk.after_crash(None, &mut Dice(seed + step));
            world
                .come_up(again)
                .unwrap_or_else(|e| panic!("seed {seed} step {step} {fault:?}: {e}"));
        }
    }
}
