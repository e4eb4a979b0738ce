//! Syncs that fail: what the system shows afterwards is not what the medium has.

use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::model::World;
use super::small;
use crate::Options;

const ACTIONS: usize = 60;
const SEEDS: u64 = 10;

fn options() -> Options {
    Options { checkpoint_bytes: 6 * 1024, now_ms: || 1_000, ..small(4 * 1024) }
}

/// The sync of a commit fails, the process opens the journal again on what it can read, and then the
/// power goes. Whatever the second opening has taken for durable is.
#[test]
fn what_is_found_after_a_failed_sync_is_synced_before_it_is_believed() {
    let mut failed = 0;
    for seed in 1..=SEEDS {
        for step in 20..180 {
            let disk = SimDisk::new(1 << 20);
            disk.fault_at(step, Fault::Lost);
            let Ok(mut world) = World::new(disk.clone(), options()) else { continue };
            let mut dice = Dice(seed);
            for _ in 0..ACTIONS {
                if world.engine.shared.is_dead() {
                    break;
                }
                world.act(&mut dice);
                if std::mem::take(&mut world.checkpoint_due) {
                    world.checkpoint();
                }
            }
            if !world.engine.shared.is_dead() {
                continue;
            }
            failed += 1;
            world.engine.shared.unlock();
            world.reopen(disk.clone()).unwrap_or_else(|e| panic!("seed {seed} step {step}: {e}"));
            let powered_off = disk.after_crash(Some(0), &mut Dice(seed));
            world
                .reopen(powered_off)
                .unwrap_or_else(|e| panic!("seed {seed} step {step}, without power: {e}"));
        }
    }
    eprintln!("{failed} syncs failed");
    assert!(failed > 100, "{failed}");
}
