//! Mending a data directory: what an opening does, and every index held against its segment first.
//!
//! Nothing is deleted that might be data: what is bad moves to `quarantine/`. In thought, the same
//! code runs on an [`Overlay`], so that what is said is what would be done.

use super::super::error::OpenError;
use super::super::intake::Item;
use super::super::options::Options;
use super::super::recovery::{self, move_aside};
use super::super::storage::{Disk, RealDisk};
use super::Offline;
use super::check::{self, Problem, Report};
use super::overlay::Overlay;
use std::path::Path;
use std::sync::Arc;

/// What was done, or would be.
#[derive(Debug, Default)]
pub struct Repair {
    /// What was wrong before.
    pub before: Report,
    /// What an opening found, line by line.
    pub findings: Vec<String>,
    /// Every change of a file in a dry run, in order; empty otherwise.
    pub changes: Vec<String>,
}

/// Mends the journal in `dir`, or, with `dry`, says what that would do.
///
/// # Errors
/// As an opening: when it is in use, of a newer version, or cannot be mended.
pub fn repair(dir: &Path, dry: bool, options: Options) -> Result<Repair, OpenError> {
    repair_on(
        match dry {
            true => Arc::new(RealDisk::read_only(dir)),
            false => Arc::new(RealDisk::new(dir)),
        },
        dry,
        options,
    )
}

/// See [`repair`].
pub(crate) fn repair_on(
    real: Arc<dyn Disk>,
    dry: bool,
    options: Options,
) -> Result<Repair, OpenError> {
    // What is old goes when a node runs, by what it is configured to keep: mending deletes nothing.
    let options = Options { history_bytes_max: u64::MAX, history_ms_max: u64::MAX, ..options };
    let mut offline = Offline::on(Arc::clone(&real))?;
    let before = check::run(&offline)?;
    let overlay = dry.then(|| Arc::new(Overlay::new(Arc::clone(&real))));
    if let Some(overlay) = &overlay {
        offline.disk = Arc::clone(overlay) as Arc<dyn Disk>;
    }
    let mut repair = Repair { before, ..Repair::default() };
    // What cannot be opened is left as it is: the opening says what is missing.
    if repair.before.usable {
        repair.findings = set_indexes_aside(&offline, &repair.before)?;
    }
    let disk = Arc::clone(&offline.disk);
    // In thought the lock stays with us; on the disk the opening takes it itself.
    let _still_locked = dry.then_some(offline);
    repair.findings.extend(open_and_close(disk, options)?);
    repair.changes = overlay.map_or_else(Vec::new, |overlay| overlay.done());
    Ok(repair)
}

/// Moves indexes that are wrong out of the way, so that they are built anew.
fn set_indexes_aside(offline: &Offline, before: &Report) -> Result<Vec<String>, OpenError> {
    let disk = &*offline.disk;
    let indexes = before.problems.iter().filter(|problem| problem.path.ends_with(".idx"));
    let set_aside = |Problem { path, what, .. }: &Problem| {
        let name = path.strip_prefix("segments/")?;
        let moved = move_aside(disk, path, name);
        let said = moved.map(|aside| format!("{path}: {what}; it was set aside as {aside}"));
        Some(said.map_err(|error| OpenError::io(&disk.describe(path), error)))
    };
    indexes.filter_map(set_aside).collect()
}

/// Opens the journal as a node does, writes what the keeper owes, and closes it in order. Returns
/// what the opening found.
fn open_and_close(disk: Arc<dyn Disk>, options: Options) -> Result<Vec<String>, OpenError> {
    let path = disk.describe("");
    let mut engine = recovery::open(disk, options)?;
    engine.keeper.turn();
    engine.writer.turn(&mut vec![Item::Close]);
    engine.keeper.turn();
    match engine.shared.unavailable() {
        Some(refusal) => Err(OpenError::Damaged { path, detail: refusal.detail }),
        None => Ok(engine.recovered.findings),
    }
}
