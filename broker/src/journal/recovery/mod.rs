//! Opening a journal: first boot and restart are the same path.
//!
//! ```text
//! lock ─► checkpoint ─► inventory of segments ─► scan of the tail ─► replay ─► counts ─► new segment, epoch
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
mod restore;
mod scan;

use super::checkpoint::Snapshot;
use super::error::OpenError;
use super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, HeaderError};
use super::keeper::Keeper;
use super::options::Options;
use super::shared::{Parts, Pool, Shared};
use super::state::Segment;
use super::storage::{Disk, is_full};
use super::writer::Writer;
pub(super) use aside::move_aside;
use checkpoints::Checkpoints;
use inventory::Inventory;
use restante_actors::journal::{Completion, Recovered};
use restante_protocol::id::{MessageNumber, NodeTag};
use restante_protocol::record::RecordKind;
use std::io::{self, IoSlice};
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

const LOCK_PATH: &str = "lock";

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
}

/// Opens the journal on `disk`, creating it if there is none.
pub(super) fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Engine, OpenError> {
    options.check()?;
    let io = |path: &str| {
        let path = disk.describe(path);
        move |error| OpenError::io(&path, error)
    };
    disk.make_dir("").map_err(io(""))?;
    let lock = take_lock(&*disk)?;
    let (mut owner, created) = read_owner(&*disk, &options)?;
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
        None => (Snapshot { position: 1, next_segment: 1, ..Snapshot::default() }, None),
    };
    let now_ms = (options.now_ms)();
    let mut inventory = Inventory::take(&*disk, &mut owner, &snapshot, now_ms)?;
    let first = inventory.segments.first().map_or(1, |segment| segment.first);
    // A cold segment is made only of what a checkpoint covers.
    checkpoints.check(&*disk, first, inventory.had_cold)?;
    let mut tail = loop {
        match scan::scan(&disk, owner, &snapshot, &mut inventory) {
            // What is set aside needs room. Reading again comes to the same result.
            Err(error)
                if is_full(&error)
                    && inventory.give_up_spare(&*disk).map_err(io("segments"))? =>
            {
                inventory = Inventory::take(&*disk, &mut owner, &snapshot, now_ms)?;
            }
            scanned => break scanned.map_err(io("segments"))?,
        }
    };
    checkpoints.check(&*disk, first, !tail.gaps.is_empty())?;
    inventory.findings.extend(checkpoints.mend(&*disk).map_err(io(""))?);
    cold::scan_cold(&*disk, owner, &snapshot, &inventory.cold, &mut tail)
        .map_err(io("segments"))?;
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
    let next_number = tail.next.max(snapshot.position);
    let restored =
        restore::restore(&*disk, owner.seed, &snapshot, &mut inventory, tail.segments, tail.replay)
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
    let keeper = Keeper::new(Arc::clone(&shared), covered);
    Ok(Engine { shared, writer, keeper, completions, recovered })
}

fn take_lock(disk: &dyn Disk) -> Result<Box<dyn Send + Sync>, OpenError> {
    disk.lock(LOCK_PATH).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: disk.describe("") },
        _ => OpenError::io(&disk.describe(LOCK_PATH), error),
    })
}

/// Reads who owns the journal from its lock file, or makes a new owner. Says whether it did.
fn read_owner(disk: &dyn Disk, options: &Options) -> Result<(Owner, bool), OpenError> {
    let path = disk.describe(LOCK_PATH);
    let io = |error| OpenError::io(&path, error);
    let file = disk.open(LOCK_PATH).map_err(io)?;
    let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
    file.read_at(0, FILE_HEADER_BYTES, &mut bytes).map_err(io)?;
    match FileHeader::parse(FileKind::Lock, &bytes) {
        Ok(header) => {
            let FileHeader { node, seed, epoch, .. } = header;
            return Ok((Owner { node, seed, epoch }, false));
        }
        Err(newer @ HeaderError::Newer(_)) => return Err(newer.for_file(&path)),
        Err(_) if is_cut_short(&bytes) => {}
        Err(HeaderError::Damaged(detail)) => {
            return Err(OpenError::Foreign { path, detail: detail.to_owned() });
        }
    }
    let owner = match owner_of_segments(disk) {
        Some(owner) => owner,
        None => Owner { node: options.node, seed: options.seed, epoch: 0 },
    };
    let header = FileHeader {
        kind: FileKind::Lock,
        epoch: owner.epoch,
        node: owner.node,
        id: 0,
        created_ms: (options.now_ms)(),
        seed: owner.seed,
    };
    file.write_at(&[IoSlice::new(&header.encode())], 0).map_err(io)?;
    file.sync().map_err(io)?;
    disk.sync_dir("").map_err(io)?;
    Ok((owner, owner.epoch == 0))
}

/// Whether these bytes of a lock file are what an interrupted first boot leaves: nothing, or the front
/// of a header, with or without zeroes behind it.
fn is_cut_short(bytes: &[u8]) -> bool {
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let known = FileHeader::front(FileKind::Lock);
    let front = written.min(known.len());
    written < FILE_HEADER_BYTES && bytes[..front] == known[..front]
}

/// Should the lock file be lost, any segment knows the owner.
fn owner_of_segments(disk: &dyn Disk) -> Option<Owner> {
    let names = disk.list("segments").ok()?;
    names.iter().filter(|name| name.ends_with(".seg")).find_map(|name| {
        let file = disk.open(&format!("segments/{name}")).ok()?;
        let FileHeader { node, seed, epoch, .. } =
            super::segment::read_header(&*file).ok()?.ok()?;
        Some(Owner { node, seed, epoch })
    })
}
