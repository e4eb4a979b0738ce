//! Taking a copy of a running journal.

use super::super::checkpoint::{self, Snapshot};
use super::super::format::{FILE_HEADER_BYTES, KIND_MARK, Seed, is_cold, record_bytes};
use super::super::history::HistoryNote;
use super::super::keeper::CHECKPOINT_PATHS;
use super::super::shared::{Retired, Shared};
use super::super::storage::is_full;
use super::super::survey::survey;
use super::{BACKUP_FORMAT, Copy, Entry, MANIFEST, Manifest, copy_file, sync_dir};
use restante_actors::journal::BackupTaken;
use restante_protocol::id::MessageNumber;
use restante_protocol::refusal::{Code, Refusal};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A segment to be copied.
struct Wanted {
    id: u64,
    first: MessageNumber,
    /// Where its records end, once it is sealed.
    data_end: Option<u64>,
}

/// What is to be copied.
struct Plan {
    checkpoint: Option<Vec<u8>>,
    segments: Vec<Wanted>,
    /// Where the log ends.
    next: MessageNumber,
}

/// Checkpoints that may become durable while one is looked at, one after the other.
const CHECKPOINTS_MAX: usize = 100;

/// Copies the journal into `dir`, which must not exist or be empty.
pub(crate) fn take(shared: &Shared, dir: &Path) -> Result<BackupTaken, Refusal> {
    if let Some(refusal) = shared.unavailable() {
        return Err(refusal);
    }
    let bad = |what: String| Refusal::new(Code::BadSetting, what);
    if !dir.is_absolute() {
        return Err(bad(format!("{} is no absolute path", dir.display())));
    }
    fs::create_dir_all(dir)
        .and_then(|()| Ok(fs::read_dir(dir)?.next().is_none()))
        .map_err(|error| bad(format!("{}: {error}", dir.display())))
        .and_then(|empty| match empty {
            true => Ok(()),
            false => Err(bad(format!(
                "{} is not empty; a backup needs a place of its own",
                dir.display()
            ))),
        })?;
    let taken = {
        let Some(_pin) = shared.pins.pin() else {
            return Err(Refusal::new(Code::LimitReached, "another backup is under way"));
        };
        copy_all(shared, dir)
    };
    // What has waited for the pin to go can go now.
    shared.wake_keeper();
    taken.map_err(|error| {
        let detail = format!("the backup in {} is not complete: {error}", dir.display());
        let code = match error.kind() {
            _ if is_full(&error) => Code::DiskFull,
            io::ErrorKind::TimedOut => Code::LimitReached,
            _ => Code::Internal,
        };
        Refusal::new(code, detail)
    })
}

fn copy_all(shared: &Shared, dir: &Path) -> io::Result<BackupTaken> {
    let since = Instant::now();
    let go_on = || match shared.refusal() {
        // Room that the pin holds back may be what the node needs.
        Some(refusal) => Err(io::Error::other(refusal.to_string())),
        None => within_bounds(shared, since),
    };
    for name in ["segments", "history"] {
        fs::create_dir(dir.join(name))?;
    }
    let mut files = vec![copy_whole(shared, dir, "lock", FILE_HEADER_BYTES as u64, &go_on)?];
    // Older than what follows: everything from its position on is in the segments that follow.
    let Plan { checkpoint, segments, next } = settle_on(shared, &go_on)?;
    for path in CHECKPOINT_PATHS {
        let Some(bytes) = &checkpoint else { break };
        let mut copy = Copy::create(&dir.join(path))?;
        copy.push(bytes)?;
        files.push(copy.finish(path)?);
    }
    for segment in segments {
        copy_segment(shared, dir, &segment, next, &mut files, &go_on)?;
    }
    for note in history(shared) {
        files.extend(if_there(copy_whole(shared, dir, &note, u64::MAX, &go_on))?);
    }
    for name in ["segments", "history"] {
        sync_dir(&dir.join(name))?;
    }
    let bytes = files.iter().map(|file| file.bytes).sum();
    let taken = BackupTaken { files: files.len() as u64, bytes, next };
    let crc64 = Manifest::crc_of(&files);
    let (node, epoch, taken_ms) = (shared.node.0, shared.epoch, (shared.options.now_ms)());
    let manifest =
        Manifest { restante_backup: BACKUP_FORMAT, node, epoch, taken_ms, next, files, crc64 };
    let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from)?;
    let temporary = dir.join(format!("{MANIFEST}.tmp"));
    let mut copy = Copy::create(&temporary)?;
    copy.push(&text)?;
    copy.finish(MANIFEST)?;
    fs::rename(temporary, dir.join(MANIFEST))?;
    sync_dir(dir)?;
    Ok(taken)
}

/// Whether what the pin holds back may be held back any longer.
fn within_bounds(shared: &Shared, since: Instant) -> io::Result<()> {
    let options = &shared.options;
    let ended = |why: String| Err(io::Error::new(io::ErrorKind::TimedOut, why));
    if since.elapsed() >= options.backup_duration_max {
        let seconds = options.backup_duration_max.as_secs();
        return ended(format!("given up after {seconds} seconds, so that room can be given back"));
    }
    let dead = shared.state.lock().dead as u64 * options.segment_bytes;
    let retired: u64 = shared.pool.lock().retired.iter().map(|retired| retired.file_bytes).sum();
    let (held, held_max) = (dead + retired, options.backup_held_bytes_max);
    if held > held_max {
        return ended(format!("given up: it held back {held} bytes, at most {held_max} may be"));
    }
    Ok(())
}

/// The newest checkpoint and what a restart from it needs, and where the log ends. Checkpoints go on
/// while a backup is taken, and compaction behind them: what is needed was looked up while this one was
/// the newest, or else what is newer would be taken for what this one let go.
fn settle_on(shared: &Shared, go_on: &impl Fn() -> io::Result<()>) -> io::Result<Plan> {
    let read = || checkpoint::newest(&*shared.disk, &CHECKPOINT_PATHS);
    let mut checkpoint = read()?;
    for _ in 0..CHECKPOINTS_MAX {
        go_on()?;
        let (segments, next) = wanted(shared, checkpoint.as_ref().map(|stored| &stored.snapshot));
        let since = read()?;
        let is_newest = match (&checkpoint, &since) {
            (Some(before), Some(since)) => before.bytes == since.bytes,
            (before, since) => before.is_none() && since.is_none(),
        };
        if is_newest {
            let checkpoint = checkpoint.map(|stored| stored.bytes);
            return Ok(Plan { checkpoint, segments, next });
        }
        checkpoint = since;
    }
    let why = format!("given up: {CHECKPOINTS_MAX} checkpoints came before one could be copied");
    Err(io::Error::new(io::ErrorKind::TimedOut, why))
}

/// The segments that a restart from this checkpoint needs, and where the log ends.
fn wanted(shared: &Shared, snapshot: Option<&Snapshot>) -> (Vec<Wanted>, MessageNumber) {
    let noted = snapshot.map_or(&[][..], |snapshot| &snapshot.segments);
    let newest = noted.iter().map(|note| note.id).filter(|id| !is_cold(*id)).max().unwrap_or(0);
    // A copy that the checkpoint does not name was never finished for it: what it is made of is there.
    let is_dead = |id: u64| {
        (id < newest || (is_cold(id) && newest > 0)) && noted.iter().all(|note| note.id != id)
    };
    let state = shared.state.lock();
    let segments = state.segments.iter().filter(|segment| !is_dead(segment.id));
    let mut wanted: Vec<Wanted> = segments
        .map(|segment| Wanted {
            id: segment.id,
            first: segment.first,
            data_end: segment.next.map(|_| segment.data_end),
        })
        .collect();
    // The sources of a copy that the checkpoint does not name yet: it names them instead.
    for retired in &shared.pool.lock().retired {
        let Retired { id, first, data_end, .. } = *retired;
        let is_noted = noted.iter().any(|note| note.id == id);
        if is_noted && wanted.iter().all(|wanted| wanted.id != id) {
            wanted.push(Wanted { id, first, data_end: Some(data_end) });
        }
    }
    (wanted, state.durable_next)
}

/// Copies a segment up to its end, or up to the end of the log, and its index if there is one.
fn copy_segment(
    shared: &Shared,
    dir: &Path,
    segment: &Wanted,
    next: MessageNumber,
    files: &mut Vec<Entry>,
    go_on: &impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    let path = Shared::segment_path(segment.id);
    let file = shared.disk.open(&path)?;
    let end = match segment.data_end {
        Some(end) => end,
        // It is being written to: everything below `next` is synced, what follows is left out.
        None => {
            let seed = Seed::new(shared.seed, segment.id);
            let mut end = super::super::segment::FIRST_RECORD_AT;
            survey(&file, seed, Some(segment.first), None, |passed| {
                let mark = passed.header.kind == KIND_MARK;
                let synced = passed.header.number < next || (mark && passed.header.number == next);
                if synced {
                    end = passed.at + record_bytes(passed.header.length as usize) as u64;
                }
            })?;
            end
        }
    };
    files.push(copy_file(&Arc::clone(&file), end, dir, &path, go_on)?);
    if segment.data_end.is_some() {
        let path = Shared::index_path(segment.id);
        files.extend(if_there(copy_whole(shared, dir, &path, u64::MAX, go_on))?);
    }
    Ok(())
}

fn history(shared: &Shared) -> Vec<String> {
    shared.pool.lock().history.iter().map(HistoryNote::path).collect()
}

fn copy_whole(
    shared: &Shared,
    dir: &Path,
    path: &str,
    bytes_max: u64,
    go_on: &impl Fn() -> io::Result<()>,
) -> io::Result<Entry> {
    let file = shared.disk.open(path)?;
    let len = file.length()?.min(bytes_max);
    copy_file(&file, len, dir, path, go_on)
}

/// A file that may be missing: an index that has not been written yet is built again.
fn if_there(copied: io::Result<Entry>) -> io::Result<Option<Entry>> {
    match copied {
        Ok(entry) => Ok(Some(entry)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
