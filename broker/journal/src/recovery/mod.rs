//! Opening a journal: first boot and restart are the same path.
//!
//! ```text
//! lock ─► versions ─► checkpoint ─► inventory of segments ─► scan of the tail ─► replay ─► counts ─► new segment, epoch
//! ```
//!
//! The tail is what the checkpoint does not cover. Where its records end in something that is not
//! one, evidence decides: a record that says 'everything before me is synced', further on or in a
//! later segment, makes it damage, which is named, set aside and passed over; without such evidence
//! it is a commit that never was confirmed, and is cut.
//!
//! A segment that is found is never appended to: it is cut at its end and sealed. Opening again after
//! a crash at any point in here comes to the same result.

mod aside;
mod checkpoints;
mod cold;
mod inventory;
mod newer;
mod owner;
mod restore;
mod scan;

use super::checkpoint::Snapshot;
use super::error::OpenError;
use super::keeper::Keeper;
use super::options::Options;
use super::shared::{Parts, Pool, Shared};
use super::state::Segment;
use super::storage::{Disk, is_full};
use super::writer::Writer;
pub(super) use aside::move_aside;
use checkpoints::Checkpoints;
use inventory::Inventory;
pub(super) use newer::refuse_newer;
use restante_actors::journal::{Completion, Recovered};
use restante_protocol::id::{MessageNumber, NodeTag};
use restante_protocol::record::RecordKind;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

/// An open journal whose threads have not been started.
pub(super) struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
    pub(super) keeper: Keeper,
    pub(super) completions: UnboundedReceiver<Completion>,
    pub(super) recovered: Recovered,
}

/// Who the journal belongs to: in the header of every file.
#[derive(Clone, Copy, Debug)]
struct Owner {
    node: NodeTag,
    seed: u32,
    /// The highest epoch seen so far.
    epoch: u32,
    /// Whether the lock file says whose it is, which it does once the journal has been written to.
    has_begun: bool,
}

/// Opens the journal on `disk`, creating it if there is none.
pub(super) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Engine, OpenError> {
    options.check()?;
    let io = |path: &str| {
        let path = disk.describe(path);
        move |error| OpenError::io(&path, error)
    };
    disk.make_dir("").map_err(io(""))?;
    let lock = owner::take_lock(&*disk)?;
    refuse_newer(&*disk)?;
    let (mut owner, created) = owner::read(&*disk, &options)?;
    for dir in ["segments", "history", "quarantine"] {
        disk.make_dir(dir).map_err(io(dir))?;
    }
    let (checkpoints, newest) = Checkpoints::read(&*disk, &mut owner)?;
    if newest.is_some() {
        // The process that wrote it may have died before its name was durable. What the checkpoint
        // lets go is about to be given up: an older one must not come back after that.
        disk.sync_dir("").map_err(io(""))?;
    }
    let (snapshot, application) = match newest {
        Some((snapshot, application)) => (snapshot, Some(application)),
        // Nothing can have been reclaimed or compacted yet.
        None => (Snapshot { position: 1, synced: 1, next_segment: 1, ..Snapshot::default() }, None),
    };
    let now_ms = (options.now_ms)();
    let mut inventory = Inventory::take(&*disk, &mut owner, &snapshot, now_ms)?;
    let first = inventory.segments.first().map_or(1, |segment| segment.first);
    // A cold segment is made only of what a checkpoint covers.
    checkpoints.check(&*disk, first, inventory.had_cold)?;
    let had_more = owner.has_begun || inventory.has_history() || checkpoints.is_any_bad();
    if inventory.is_bare() && !checkpoints.is_any_sound() && had_more {
        let path = disk.describe("segments");
        let detail =
            "the journal has been written to, and of it neither a segment nor a checkpoint is left";
        return Err(OpenError::Damaged { path, detail: detail.to_owned() });
    }
    let tail = loop {
        match read_log(&disk, owner, &snapshot, &mut inventory) {
            // What is set aside needs room. Reading again comes to the same result.
            Err(error)
                if is_full(&error)
                    && inventory.give_up_spare(&*disk).map_err(io("segments"))? =>
            {
                // What was set aside or cut the first time is not found again.
                let said = std::mem::take(&mut inventory.findings);
                inventory = Inventory::take(&*disk, &mut owner, &snapshot, now_ms)?;
                inventory.found_before(said);
            }
            scanned => break scanned.map_err(io("segments"))?,
        }
    };
    if let Some(refusal) = tail.refusal {
        return Err(refusal);
    }
    checkpoints.check(&*disk, first, !tail.gaps.is_empty())?;
    inventory.findings.extend(checkpoints.mend(&*disk).map_err(io(""))?);
    let epoch = owner.epoch.max(tail.epoch) + 1;
    let mut findings = std::mem::take(&mut inventory.findings);
    findings.extend(tail.findings);
    let mut recovered = Recovered {
        epoch,
        node: owner.node,
        checkpoint: application,
        admin: tail.admin,
        published: tail.published,
        clean: tail.clean || created,
        findings,
        damage: tail.damage,
    };
    let next_number = tail.next.max(snapshot.synced);
    let restored = restore::restore(
        &*disk,
        owner.seed,
        &snapshot,
        &mut inventory,
        tail.segments,
        tail.replay,
        &recovered.damage,
    )
    .map_err(io("segments"))?;
    let mut state = restored.state;
    recovered.findings.extend(restored.findings);
    recovered.damage.extend(restored.damage);
    state.durable_next = next_number;
    state.lost.clone_from(&snapshot.lost);
    for damage in &recovered.damage {
        state.lose(damage.first, damage.next);
    }
    let pool = inventory.into_pool(&*disk, &options).map_err(io("segments"))?;
    let owner = Owner { epoch, ..owner };
    start(disk, options, owner, lock, Found { state, pool, recovered, covered: snapshot.position })
}

/// What an opening has found.
struct Found {
    state: super::state::State,
    pool: Pool,
    recovered: Recovered,
    /// Where the newest checkpoint was taken.
    covered: MessageNumber,
}

/// Reads what has to be read of the log and of cold segments. When it fails, what it has found is left with
/// the inventory.
fn read_log(
    disk: &Arc<dyn Disk>,
    owner: Owner,
    snapshot: &Snapshot,
    inventory: &mut Inventory,
) -> io::Result<scan::Tail> {
    let mut tail = scan::scan(disk, owner, snapshot, inventory)?;
    if tail.refusal.is_some() {
        return Ok(tail);
    }
    if let Err(error) = cold::scan_cold(&**disk, owner, snapshot, &inventory.cold, &mut tail) {
        inventory.findings.append(&mut tail.findings);
        return Err(error);
    }
    Ok(tail)
}

/// Makes the first segment of this opening and writes its epoch.
fn start(
    disk: Arc<dyn Disk>,
    options: Options,
    owner: Owner,
    lock: Box<dyn Send + Sync>,
    found: Found,
) -> Result<Engine, OpenError> {
    let Found { state, pool, recovered, covered } = found;
    let root = disk.describe("");
    let needed_bytes = options.segment_bytes;
    let (sender, completions) = tokio::sync::mpsc::unbounded_channel();
    let next_number = state.durable_next;
    let parts = Parts {
        disk,
        lock,
        node: owner.node,
        epoch: owner.epoch,
        seed: owner.seed,
        state,
        pool,
        next_number: next_number + 1,
        disk_bytes: 0,
        completions: sender,
    };
    let shared = Arc::new(Shared::new(options, parts));
    let failed = |error: io::Error| match is_full(&error) {
        true => OpenError::Full { path: root.clone(), needed_bytes },
        false => OpenError::io(&root, error),
    };
    let active = shared.take_ready().map_err(failed)?;
    shared.state.lock().segments.push(Segment::active(&active, next_number));
    let mut writer = Writer::new(Arc::clone(&shared), active, next_number);
    writer.write_own(RecordKind::Epoch, &owner.epoch.to_be_bytes()).map_err(failed)?;
    if !owner.has_begun {
        owner::write(&shared).map_err(failed)?;
    }
    let keeper = Keeper::new(Arc::clone(&shared), covered);
    Ok(Engine { shared, writer, keeper, completions, recovered })
}
