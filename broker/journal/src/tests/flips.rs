//! The last 64 KiB of a log, byte by byte: each changed in turn, and the log cut at each. What is read
//! is exactly what was written, up to a point; or what is not there is named.
//!
//! `RESTANTE_FLIPS=all` tries every pattern at every byte; else the patterns take turns.

use super::super::format::{RecordHeader, SEGMENT_HEADER_BYTES, record_bytes};
use super::super::recovery;
use super::super::storage::Disk;
use super::super::storage::sim::{Dice, SimDisk};
use super::super::{OpenError, Options};
use super::crash::model::{Fate, Model, PEERS};
use super::crash::world::{ROOMY, World};
use super::small;
use restante_actors::journal::{Lane, Read, ReadError};
use restante_protocol::id::{MessageNumber, PeerId};
use std::collections::BTreeMap;
use std::sync::Arc;

const LAST_BYTES: usize = 64 * 1024;
const WORKERS: usize = 2;
/// What is done to a byte.
const PATTERNS: [fn(u8, usize) -> u8; 4] =
    [|byte, at| byte ^ 1 << (at % 8), |byte, _| !byte, |_, _| 0, |_, _| 0xff];

fn options() -> Options {
    Options { checkpoint_bytes: 1 << 30, now_ms: || 1_000, ..small(16 * 1024) }
}

/// A log of a little more than that, at rest: everything in it confirmed, and marked so.
struct Log {
    disk: SimDisk,
    model: Arc<Model>,
    /// Its last bytes, in the order of the log: file and place.
    last: Vec<(String, usize)>,
}

fn at_rest() -> Log {
    let disk = SimDisk::new(ROOMY);
    let mut world = World::new(disk.clone(), options()).unwrap();
    let mut dice = Dice(11);
    while world.engine.shared.state.lock().segments.len() < 6 {
        world.append_some(&mut dice);
        if dice.chance(20) {
            world.settle(&mut dice);
            world.park(&mut dice);
        }
        world.write();
        if dice.chance(10) {
            world.keep();
        }
    }
    world.flush();
    world.mark();
    let mut last = Vec::new();
    for path in segments(&disk) {
        let data = data_end(&disk.bytes_of(&path).unwrap());
        last.extend((0..data).map(|at| (path.clone(), at)));
    }
    let last = last.split_off(last.len() - LAST_BYTES);
    Log { disk: disk.copy(), model: Arc::clone(&world.model), last }
}

/// Segments with log in them, in its order.
fn segments(disk: &SimDisk) -> Vec<String> {
    let mut names = disk.list("segments").unwrap();
    names.retain(|name| name.ends_with(".seg"));
    names.sort();
    let paths = names.iter().map(|name| format!("segments/{name}"));
    paths.filter(|path| !records(&disk.bytes_of(path).unwrap()).is_empty()).collect()
}

/// Number and end of each record of a segment; a mark has the number of what comes next.
fn records(bytes: &[u8]) -> Vec<(MessageNumber, usize)> {
    let mut records = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES as usize;
    while let Some(header) = RecordHeader::peek(&bytes[at..]).filter(|header| header.number > 0) {
        at += record_bytes(header.length as usize);
        records.push((header.number, at));
    }
    records
}

fn data_end(bytes: &[u8]) -> usize {
    records(bytes).last().map_or(0, |(_, end)| *end)
}

/// What can be read of each peer's lanes, and what was said.
struct Found {
    lanes: BTreeMap<(u32, bool), BTreeMap<MessageNumber, Vec<u8>>>,
    said: Vec<String>,
}

/// Opens and reads everything; `None` if the journal refuses to open, by name.
fn found(disk: SimDisk, what: &str) -> Option<Found> {
    let engine = match recovery::open(Arc::new(disk), options()) {
        Ok(engine) => engine,
        Err(OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::Foreign { .. }) => {
            return None;
        }
        Err(other) => panic!("{what}: {other}"),
    };
    let mut found = Found { lanes: BTreeMap::new(), said: engine.recovered.findings.clone() };
    for (peer, lane) in (1..=PEERS).flat_map(|peer| [(peer, Lane::Open), (peer, Lane::Parked)]) {
        let messages = found.lanes.entry((peer, lane == Lane::Parked)).or_default();
        let mut after = 0;
        loop {
            let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 10_000);
            let peer = PeerId(peer);
            let read = Read { peer, lane, after, through, bytes_max, messages_max };
            match engine.shared.next(read) {
                Ok(page) if page.messages.is_empty() => break,
                Ok(page) => {
                    after = page.through;
                    messages.extend(page.messages.iter().map(|m| (m.number, m.body.to_vec())));
                }
                Err(ReadError::Damaged { number, detail }) => {
                    assert!(number > after, "{what}: reading can go on");
                    found.said.push(format!("{number}: {detail}"));
                    after = number;
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
    Some(found)
}

/// Nothing false is read; what is missing lies behind `end`, or something was said.
fn check(found: &Found, model: &Model, end: MessageNumber, what: &str) {
    let loud = !found.said.is_empty();
    for ((peer, parked), read) in &found.lanes {
        for (number, body) in read {
            let message = model.messages.get(number);
            let message = message.unwrap_or_else(|| panic!("{what}: {number} was never sent"));
            assert_eq!(body[..], message.body[..], "{what}: body of {number}");
            let fate = message.fates[*peer as usize];
            let fate = fate.unwrap_or_else(|| panic!("{what}: {number} is not for {peer}"));
            let lies_right = match fate {
                Fate::Open => !parked,
                Fate::Parked(said) => *parked || said.record >= end || loud,
                Fate::Settled(said) => !parked && (said.record >= end || loud),
                Fate::ParkedThenSettled { settled, .. } => settled.record >= end || loud,
            };
            assert!(lies_right, "{what}: {number} for {peer} was {fate:?}: {:?}", found.said);
        }
    }
    for (number, message) in model.messages.range(..end) {
        for peer in 1..=PEERS {
            let there = |parked| found.lanes[&(peer, parked)].contains_key(number);
            let wanted = match message.fates[peer as usize] {
                Some(Fate::Open) => there(false),
                Some(Fate::Parked(_)) => there(true) || there(false),
                _ => true,
            };
            assert!(wanted || loud, "{what}: {number} for {peer} is gone without a word");
        }
    }
}

/// Calls `work` for each of `count` cases, on a few threads.
fn shared_out(count: usize, work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let work = &work;
            scope.spawn(move || (worker..count).step_by(WORKERS).for_each(work));
        }
    });
}

#[test]
fn every_changed_byte_of_the_last_64_kib_is_noticed_or_harmless() {
    let log = at_rest();
    let clean = found(log.disk.copy(), "untouched").unwrap();
    assert_eq!(clean.said, Vec::<String>::new());
    check(&clean, &log.model, MessageNumber::MAX, "untouched");
    let all = std::env::var("RESTANTE_FLIPS").is_ok_and(|value| value == "all");
    shared_out(log.last.len(), |case| {
        let (path, at) = &log.last[case];
        for (nth, pattern) in PATTERNS.iter().enumerate() {
            let copy = log.disk.copy();
            let mut changed = false;
            copy.damage(path, |bytes| {
                let byte = pattern(bytes[*at], *at);
                changed = std::mem::replace(&mut bytes[*at], byte) != byte;
            });
            if changed && (all || nth == case % PATTERNS.len()) {
                let what = format!("{path} byte {at} pattern {nth}");
                if let Some(found) = found(copy, &what) {
                    check(&found, &log.model, MessageNumber::MAX, &what);
                }
            }
        }
    });
}

#[test]
fn a_log_cut_anywhere_in_its_last_64_kib_is_an_exact_prefix_or_named() {
    let log = at_rest();
    let segments = segments(&log.disk);
    let newest = segments.last().unwrap();
    let records: BTreeMap<String, Vec<(MessageNumber, usize)>> = segments
        .iter()
        .map(|path| (path.clone(), records(&log.disk.bytes_of(path).unwrap())))
        .collect();
    shared_out(log.last.len(), |case| {
        let (path, to) = &log.last[case];
        let copy = log.disk.copy();
        copy.damage(path, |bytes| bytes.truncate(*to));
        let what = format!("{path} cut to {to}");
        let Some(found) = found(copy, &what) else { return };
        // Nothing on the disk tells of a cut of the newest segment: what is left is a prefix. One
        // of an older segment is seen by the next.
        let lost = records[path].iter().find(|(_, end)| end > to).map(|(number, _)| *number);
        let end = match lost {
            Some(number) if path == newest => number,
            _ => MessageNumber::MAX,
        };
        check(&found, &log.model, end, &what);
    });
}
