//! Bytes that change behind the journal's back: either nothing is missing, or it is said what is.

use super::super::recovery;
use super::super::storage::sim::{Dice, SimDisk};
use super::super::{OpenError, Options};
use super::model::World;
use super::small;
use restante_actors::journal::{Lane, Read, ReadError};
use restante_protocol::id::{MessageNumber, PeerId};
use std::collections::BTreeMap;
use std::sync::Arc;

fn options() -> Options {
    Options { ready_segments: 2, checkpoint_bytes: 1 << 30, ..small(4 * 1024) }
}

/// A log of a few segments, at rest: everything synced, and marked so.
fn at_rest(seed: u64, marked: bool) -> (SimDisk, BTreeMap<MessageNumber, Vec<u8>>) {
    let disk = SimDisk::new(1 << 20);
    let mut world = World::new(disk.clone(), options()).unwrap();
    let mut dice = Dice(seed);
    for _ in 0..24 {
        world.append_some(&mut dice);
        world.write();
        if dice.chance(30) {
            world.engine.keeper.turn();
        }
    }
    if marked {
        world.engine.writer.mark();
    }
    let bodies = world.messages.iter().map(|(n, message)| (*n, message.body.clone())).collect();
    drop(world);
    (disk.copy(), bodies)
}

/// What can be read, and whether anything was said about damage.
struct Outcome {
    read: BTreeMap<MessageNumber, Vec<u8>>,
    said: Vec<String>,
}

fn outcome(disk: &SimDisk) -> Result<Outcome, OpenError> {
    let engine = recovery::open(Arc::new(disk.clone()), options())?;
    let mut said = engine.recovered.findings.clone();
    let mut read = BTreeMap::new();
    for peer in 1..=super::model::PEERS {
        let mut after = 0;
        loop {
            let peer = PeerId(peer);
            let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 1_000);
            let request = Read { peer, lane: Lane::Open, after, through, bytes_max, messages_max };
            match engine.shared.next(request) {
                Ok(page) if page.messages.is_empty() => break,
                Ok(page) => {
                    after = page.through;
                    read.extend(page.messages.into_iter().map(|m| (m.number, m.body.to_vec())));
                }
                Err(ReadError::Damaged { number, detail }) => {
                    said.push(format!("{number}: {detail}"));
                    assert!(number > after, "reading can go on");
                    after = number;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    Ok(Outcome { read, said })
}

/// Whatever is read is what was written, and what is missing has been named.
fn check(disk: &SimDisk, written: &BTreeMap<MessageNumber, Vec<u8>>, what: &str) {
    let outcome = match outcome(disk) {
        Ok(outcome) => outcome,
        // Refused by name.
        Err(OpenError::Damaged { .. } | OpenError::Newer { .. } | OpenError::Foreign { .. }) => {
            return;
        }
        Err(other) => panic!("{what}: {other}"),
    };
    for (number, body) in &outcome.read {
        assert_eq!(Some(body), written.get(number), "{what}: body of {number}");
    }
    let missing: Vec<_> = written.keys().filter(|n| !outcome.read.contains_key(n)).collect();
    assert!(
        missing.is_empty() || !outcome.said.is_empty(),
        "{what}: {missing:?} are missing without a word"
    );
    // An exact prefix, or a hole that is named as damage.
    let first_missing = missing.first().copied();
    let last_read = outcome.read.keys().next_back();
    let hole = first_missing.is_some() && first_missing < last_read;
    assert!(
        !hole || outcome.said.iter().any(|said| is_damage(said)),
        "{what}: a hole is not damage? {:?}",
        outcome.said
    );
}

fn is_damage(said: &str) -> bool {
    ["damaged", "checksum", "missing", "no record", "set aside"].iter().any(|w| said.contains(w))
}

fn segments(disk: &SimDisk) -> Vec<String> {
    let mut names = super::super::storage::Disk::list(disk, "segments").unwrap();
    names.retain(|name| name.ends_with(".seg"));
    names.sort();
    names.iter().map(|name| format!("segments/{name}")).collect()
}

#[test]
fn a_flipped_bit_is_never_passed_over_in_silence() {
    let (disk, written) = at_rest(3, true);
    let clean = outcome(&disk.copy()).unwrap();
    assert_eq!(clean.read, written);
    assert!(clean.said.is_empty(), "{:?}", clean.said);
    let mut tried = 0;
    for path in segments(&disk) {
        let len = disk.bytes_of(&path).unwrap().len();
        for at in 0..len {
            let copy = disk.copy();
            copy.damage(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            check(&copy, &written, &format!("{path} byte {at}"));
            tried += 1;
        }
    }
    assert!(tried > 8_000, "{tried} bytes");
}

#[test]
fn a_log_that_says_it_was_synced_loses_nothing_in_silence_when_cut() {
    let (disk, written) = at_rest(5, true);
    for path in segments(&disk) {
        let len = disk.bytes_of(&path).unwrap().len();
        for to in 0..len {
            let copy = disk.copy();
            copy.damage(&path, |bytes| bytes.truncate(to));
            let Ok(outcome) = outcome(&copy) else { continue };
            for (number, body) in &outcome.read {
                assert_eq!(Some(body), written.get(number), "{path} cut to {to}: {number}");
            }
            // A cut of the last segment takes the words 'this was synced' with it: what is left is
            // a prefix, and nothing on the disk can tell more.
            let missing: Vec<_> =
                written.keys().filter(|n| !outcome.read.contains_key(n)).collect();
            let last_read = outcome.read.keys().next_back().copied();
            let hole = missing.first().is_some_and(|first| Some(**first) < last_read);
            assert!(!hole || outcome.said.iter().any(|said| is_damage(said)), "{path} cut to {to}");
        }
    }
}

#[test]
fn indexes_and_checkpoints_that_lie_are_noticed() {
    let (disk, written) = at_rest(7, true);
    let mut names = super::super::storage::Disk::list(&disk, "segments").unwrap();
    names.retain(|name| name.ends_with(".idx"));
    assert!(!names.is_empty());
    for name in names {
        let path = format!("segments/{name}");
        for at in 0..disk.bytes_of(&path).unwrap().len() {
            let copy = disk.copy();
            copy.damage(&path, |bytes| bytes[at] ^= 0x20);
            check(&copy, &written, &format!("{path} byte {at}"));
        }
    }
}

#[test]
fn a_tail_of_garbage_or_zeroes_is_cut_and_kept_aside() {
    let (disk, written) = at_rest(9, false);
    let last = segments(&disk).pop().unwrap();
    for seed in 0..200 {
        let copy = disk.copy();
        let mut dice = Dice(seed);
        copy.damage(&last, |bytes| {
            let from = 512.max(bytes.len() / 2);
            for byte in &mut bytes[from..] {
                *byte = if seed % 4 == 0 { 0 } else { dice.roll() as u8 };
            }
        });
        check(&copy, &written, &format!("garbage {seed}"));
    }
}
