//! Cold segments: read through only where their index cannot be used.
//!
//! Everything in one was synced before the checkpoint named it, so that what is not a record is
//! damage, never a torn tail. Its numbers ascend and are not dense: what is missing between two
//! records cannot be told from what was never there, and is named by its place.

use super::super::format::Seed;
use super::super::index::SegmentIndex;
use super::super::segment::{FIRST_RECORD_AT, Found, Walk};
use super::super::shared::Shared;
use super::super::state::Stage;
use super::super::storage::Disk;
use super::Owner;
use super::aside::keep_aside;
use super::inventory::FoundSegment;
use super::scan::Scanned;
use restante_actors::journal::BatchRecord;
use restante_protocol::record::RecordKind;
use std::io;
use std::sync::Arc;

/// Reads through the cold segments that have no usable index.
pub(super) fn scan_cold(
    disk: &dyn Disk,
    owner: Owner,
    cold: &[FoundSegment],
    findings: &mut Vec<String>,
) -> io::Result<Vec<Scanned>> {
    let unindexed = cold.iter().filter(|found| found.index.is_none());
    unindexed.map(|found| read_through(disk, owner, found, findings)).collect()
}

fn read_through(
    disk: &dyn Disk,
    owner: Owner,
    found: &FoundSegment,
    findings: &mut Vec<String>,
) -> io::Result<Scanned> {
    let seed = Seed::new(owner.seed, found.id);
    let mut walk = Walk::new(Arc::clone(&found.file), seed, FIRST_RECORD_AT)?;
    let mut stage = Stage::default();
    let mut next = found.first;
    let path = Shared::segment_path(found.id);
    while walk.at < walk.end() {
        let at = walk.at;
        let header = match walk.look()? {
            Found::Record(header) if header.number >= next => header,
            Found::BadPayload(header) if header.number >= next => {
                findings
                    .push(format!("{path}: the payload of record {} is damaged", header.number));
                header
            }
            _ => {
                let highest = found.first + u64::from(u32::MAX);
                let ahead = walk.search(next..=highest)?.map(|_| walk.at);
                walk.at = ahead.unwrap_or(walk.end());
                let name = format!("{:012x}-{at}.cut", found.id);
                let bytes = walk.bytes(at, walk.at)?;
                let aside = keep_aside(disk, &name, &bytes)?;
                findings.push(format!(
                    "{path} at byte {at}: records behind {next} are damaged; {} bytes are kept as {aside}",
                    bytes.len()
                ));
                continue;
            }
        };
        let record = BatchRecord {
            kind: RecordKind::Message,
            offset: 0,
            body_len: header.length,
            payload_at: u32::from(header.payload_at),
        };
        let body = walk.body(&header);
        stage.note(&record, header.number - found.first, at, body);
        next = header.number + 1;
        walk.step(&header);
    }
    let mut index = SegmentIndex::default();
    index.absorb(&mut stage);
    let (id, data_end, file_bytes) = (found.id, walk.end(), found.file_bytes);
    Ok(Scanned { id, next, data_end, file_bytes, index })
}
