//! Cold segments: read through only where their index cannot be used.
//!
//! Everything in one was synced before the checkpoint named it, so that what is not a record is
//! damage, never a torn tail. Its numbers ascend and are not dense: what is missing between two
//! records cannot be told from what was never there. What is left of the old index says whose it was,
//! or else the checkpoint says how much was open for whom.

use super::super::checkpoint::{PeerNote, Snapshot};
use super::super::error::OpenError;
use super::super::format::Seed;
use super::super::index::SegmentIndex;
use super::super::rebuild::{named_by, take_over};
use super::super::segment::{FIRST_RECORD_AT, Found, Walk};
use super::super::shared::Shared;
use super::super::state::Stage;
use super::super::storage::{Disk, DiskFile};
use super::super::survey::understand;
use super::Owner;
use super::aside::keep_aside;
use super::inventory::FoundSegment;
use super::scan::{Scanned, Tail};
use restante_actors::journal::{BatchRecord, Damage};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{MessageRecord, RecordKind};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Reads through the cold segments that have no usable index.
pub(super) fn scan_cold(
    disk: &dyn Disk,
    owner: Owner,
    snapshot: &Snapshot,
    cold: &[FoundSegment],
    tail: &mut Tail,
) -> io::Result<()> {
    for found in cold.iter().filter(|found| found.directory.is_none()) {
        let (mut scanned, holes) = read_through(disk, owner, found, tail)?;
        if tail.refusal.is_some() {
            return Ok(());
        }
        name_holes(disk, snapshot, found, &mut scanned.index, &holes, tail);
        tail.segments.push(scanned);
    }
    Ok(())
}

/// Says whose messages are missing. Those that the old index still names stay in the new one, and are
/// found damaged in their turn.
fn name_holes(
    disk: &dyn Disk,
    snapshot: &Snapshot,
    found: &FoundSegment,
    index: &mut SegmentIndex,
    holes: &[Range<MessageNumber>],
    tail: &mut Tail,
) {
    let file = Shared::segment_path(found.id);
    if let Some(old) = named_by(disk, found.id).ok().flatten() {
        for hole in holes {
            let receivers = take_over(index, &old, found.first, hole.clone());
            let (file, first, next) = (file.clone(), hole.start, hole.end);
            tail.damage.push(Damage { file, first, next, receivers, complete: true });
        }
        return;
    }
    let receivers: Vec<(PeerId, u64)> = snapshot
        .peers
        .iter()
        .map(|note| (note.peer, missing_of(note, found.first, index)))
        .filter(|(_, missing)| *missing > 0)
        .collect();
    let first = holes.first().map_or(found.first, |hole| hole.start);
    let next = holes.last().map_or(first, |hole| hole.end);
    if !holes.is_empty() || !receivers.is_empty() {
        tail.damage.push(Damage { file, first, next, receivers, complete: false });
    }
}

/// How much the checkpoint says is live for a peer, beyond what there is. It does not speak of shares
/// that are as they were written.
fn missing_of(note: &PeerNote, first: MessageNumber, index: &SegmentIndex) -> u64 {
    let Some(touched) = note.touched.iter().find(|touched| touched.first == first) else {
        return 0;
    };
    let live = index.refs.get(&note.peer).map_or(0, |refs| {
        let is_live = |number: u32| {
            let open = first + u64::from(number) > note.floor && !touched.settled.contains(number);
            open || touched.parked.contains(number)
        };
        refs.from(0).filter(|entry| is_live(entry.number)).count() as u64
    });
    (u64::from(touched.open) + u64::from(touched.parked.len())).saturating_sub(live)
}

fn read_through(
    disk: &dyn Disk,
    owner: Owner,
    found: &FoundSegment,
    tail: &mut Tail,
) -> io::Result<(Scanned, Vec<Range<MessageNumber>>)> {
    let seed = Seed::new(owner.seed, found.id);
    let file = found.open(disk)?;
    let readable: Arc<dyn DiskFile> = Arc::clone(&file) as Arc<dyn DiskFile>;
    let mut walk = Walk::new(readable, seed, FIRST_RECORD_AT)?;
    let mut stage = Stage::default();
    let mut next = found.first;
    let mut holes = Vec::new();
    let path = Shared::segment_path(found.id);
    while walk.at < walk.end() {
        let at = walk.at;
        let header = match walk.look()? {
            Found::Record(header) if header.number >= next => header,
            Found::BadPayload(header) if header.number >= next => {
                let number = header.number;
                tail.findings.push(format!("{path}: the payload of record {number} is damaged"));
                let message = MessageRecord::parse(walk.body(&header));
                let peers = message.map(|message| message.peers().map(|peer| (peer, 1)).collect());
                let (file, receivers) = (path.clone(), peers.unwrap_or_default());
                let (first, next, complete) = (number, number + 1, true);
                tail.damage.push(Damage { file, first, next, receivers, complete });
                header
            }
            _ => {
                let highest = found.first + u64::from(u32::MAX);
                let ahead = walk.search(next..=highest)?;
                let end = found.facts.map_or(next + 1, |facts| facts.next);
                holes.push(next..ahead.map_or(end, |header| header.number).max(next + 1));
                if ahead.is_none() {
                    walk.at = walk.end();
                }
                let name = format!("{:012x}-{at}.cut", found.id);
                let bytes = walk.bytes(at, walk.at)?;
                let aside = keep_aside(disk, &name, &bytes)?;
                tail.findings.push(format!(
                    "{path} at byte {at}: records behind {next} are damaged; {} bytes are kept as {aside}",
                    bytes.len()
                ));
                continue;
            }
        };
        let number = header.number;
        if understand(&header, walk.body(&header)) != Some(RecordKind::Message) {
            let (path, kind) = (disk.describe(&path), header.kind);
            tail.refusal = Some(OpenError::NotUnderstood { path, at, number, kind });
            break;
        }
        let record = BatchRecord {
            kind: RecordKind::Message,
            offset: 0,
            body_len: header.length,
            payload_at: u32::from(header.payload_at),
        };
        let body = walk.body(&header);
        stage.note(&record, number - found.first, at, body);
        next = number + 1;
        walk.step(&header);
    }
    if let Some(facts) = found.facts.filter(|facts| walk.at < facts.data_end && next < facts.next) {
        tail.findings.push(format!("{path} is too short: records behind {next} are missing"));
        holes.push(next..facts.next);
    }
    tail.findings.extend(file.report(&path));
    let next = holes.last().map_or(next, |hole| hole.end.max(next));
    let mut index = SegmentIndex::default();
    index.absorb(&mut stage);
    let (id, data_end, file_bytes) = (found.id, walk.end(), found.file_bytes);
    Ok((Scanned { id, next, data_end, file_bytes, index }, holes))
}
