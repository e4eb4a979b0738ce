//! Opening what cannot all be read: whatever is there is served, and what is not is named.

use super::super::OpenError;
use super::super::storage::Disk;
use super::super::storage::sim::{FOR_GOOD, Ill, SimDisk};
use super::rig::{Rig, names};
use super::{A, B};
use restante_actors::journal::LookupError;
use restante_protocol::id::MessageNumber;
use std::collections::BTreeSet;
use std::ops::Range;

/// All that was open before is open now, and nothing is said to be lost.
fn is_whole(opened: &Rig, was: &Rig, what: &str) {
    assert!(opened.lanes() == was.lanes(), "{what}: {}", opened.said());
    assert_eq!(opened.engine.recovered.damage, [], "{what}");
}

/// What is missing is named, and what is there is as it was. Numbers that are missing.
fn misses_only_what_it_names(opened: &Rig, was: &Rig, what: &str) -> BTreeSet<MessageNumber> {
    let mut missing = BTreeSet::new();
    for (now, was) in opened.lanes().iter().zip(was.lanes()) {
        for (number, body) in &was.bodies {
            match now.bodies.get(number) {
                Some(there) => assert_eq!(there, body, "{what}: {number}"),
                None if now.damaged.iter().any(|(damaged, _)| damaged == number) => {}
                None => drop(missing.insert(*number)),
            }
        }
    }
    let damage = &opened.engine.recovered.damage;
    for number in &missing {
        let named = damage.iter().any(|one| (one.first..one.next).contains(number));
        assert!(named, "{what}: {number} is missing without a word: {damage:?}");
    }
    missing
}

/// The sector in which the record of a message begins in a segment.
fn sector_of(disk: &SimDisk, path: &str, number: MessageNumber) -> Range<u64> {
    let from = place_in(disk, path, number) / 512 * 512;
    from..from + 512
}

/// The byte at which the record of a message begins in a segment.
fn place_in(disk: &SimDisk, path: &str, number: MessageNumber) -> u64 {
    let bytes = disk.bytes_of(path).unwrap();
    let at = bytes[512..].windows(8).position(|w| w == number.to_be_bytes()).expect("its number");
    at as u64 + 512 - 16
}

fn index_of(path: &str) -> String {
    path.replace(".seg", ".idx")
}

#[test]
fn an_index_that_is_cut_short_anywhere_keeps_nobody_from_starting() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    for path in rig.segments() {
        let path = index_of(&path);
        for to in 0..disk.bytes_of(&path).map_or(0, |bytes| bytes.len()) {
            let copy = disk.copy();
            copy.damage(&path, |bytes| bytes.truncate(to));
            let opened = Rig::open(&copy).unwrap_or_else(|error| panic!("{path} {to}: {error}"));
            is_whole(&opened, &rig, &format!("{path} cut to {to}"));
        }
    }
}

#[test]
fn an_index_that_cannot_be_read_keeps_nobody_from_starting() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    for path in rig.segments() {
        let path = index_of(&path);
        for at in (0..disk.bytes_of(&path).map_or(0, |bytes| bytes.len() as u64)).step_by(8) {
            let copy = disk.copy();
            copy.sicken(&path, Ill::Read(at..at + 1), FOR_GOOD);
            let opened = Rig::open(&copy).unwrap_or_else(|error| panic!("{path} {at}: {error}"));
            is_whole(&opened, &rig, &format!("{path} from {at} on"));
        }
    }
}

#[test]
fn whatever_read_or_opening_fails_once_the_next_start_at_the_latest_has_everything() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let turns = {
        let copy = disk.copy();
        drop(Rig::open(&copy).unwrap());
        copy.turns()
    };
    assert!(turns > 40, "{turns}");
    let mut refused = 0;
    for length in [1, 3] {
        for nth in 1..=turns {
            let what = format!("{length} from {nth} on");
            let copy = disk.copy();
            copy.fail_turns(nth..nth + length);
            match Rig::open(&copy) {
                Ok(opened) => {
                    copy.heal();
                    is_whole(&opened, &rig, &what);
                }
                Err(OpenError::Io { .. }) => refused += 1,
                Err(error) => panic!("{what}: {error}"),
            }
            copy.heal();
            let opened = Rig::open(&copy).unwrap_or_else(|error| panic!("{what}: {error}"));
            is_whole(&opened, &rig, &what);
        }
    }
    // Files that could not be opened; reads are tried again.
    assert!(refused < 2 * turns * 2 / 3, "{refused} of {}", 2 * turns);
}

#[test]
fn a_segments_header_that_cannot_be_read_costs_nothing() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    for path in rig.segments() {
        let copy = disk.copy();
        copy.sicken(&path, Ill::Read(0..512), FOR_GOOD);
        let opened = Rig::open(&copy).unwrap();
        is_whole(&opened, &rig, &path);
        assert!(opened.said().contains("cannot be read"), "{}", opened.said());
    }
}

#[test]
fn a_bad_sector_in_the_tail_costs_what_is_in_it_by_name() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let last = rig.engine.shared.next_number() - 1;
    let path = rig.segments().pop().unwrap();
    for number in last - 8..last - 5 {
        let copy = disk.copy();
        copy.sicken(&path, Ill::Read(sector_of(&disk, &path, number)), FOR_GOOD);
        let opened = Rig::open(&copy).unwrap();
        let missing = misses_only_what_it_names(&opened, &rig, "a sector");
        assert!(missing.contains(&number) && missing.len() <= 5, "{number}: {missing:?}");
        assert!(opened.said().contains("cannot be read everywhere"), "{}", opened.said());
    }
}

#[test]
fn numbers_that_may_lie_in_an_unreadable_end_are_not_used_again() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let last = rig.engine.shared.next_number() - 1;
    let path = rig.segments().pop().unwrap();
    let at = sector_of(&disk, &path, last).start;
    disk.sicken(&path, Ill::Read(at..u64::MAX), FOR_GOOD);
    let bytes = disk.bytes_of(&path).unwrap();
    let mut opened = Rig::open(&disk).unwrap();
    let missing = misses_only_what_it_names(&opened, &rig, "the end");
    assert!(missing.contains(&last) && missing.len() <= 5, "{missing:?}");
    assert_eq!(disk.bytes_of(&path).unwrap(), bytes, "it may be readable another time");
    assert!(opened.engine.shared.next_number() > last + 1);
    let lookup = opened.engine.shared.lookup(last).map(drop);
    assert_eq!(lookup, Err(LookupError::Damaged));
    // Again before a checkpoint: as unreadable as before, or well.
    let again = opened.crashed();
    let well = Rig::open(&again.copy()).unwrap();
    assert_eq!(misses_only_what_it_names(&well, &rig, "well again"), BTreeSet::new());
    again.sicken(&path, Ill::Read(at..u64::MAX), FOR_GOOD);
    let again = Rig::open(&again).unwrap();
    let fewer = misses_only_what_it_names(&again, &rig, "again");
    // Where a receiver can be read by now, it is set aside by its number.
    assert!(fewer.contains(&last) && fewer.is_subset(&missing), "{fewer:?} of {missing:?}");
    // After one nothing asks for it any more.
    disk.heal();
    opened.append(3);
    opened.checkpoint(b"later");
    let after = Rig::open(&opened.crashed()).unwrap();
    assert!(after.lanes() == opened.lanes());
    assert_eq!(after.engine.shared.lookup(last).map(drop), Err(LookupError::Damaged));
}

#[test]
fn neighbours_whose_first_records_are_bad_are_both_read() {
    let mut rig = Rig::new();
    rig.append(120);
    rig.engine.writer.mark();
    let disk = rig.crashed();
    let paths = rig.segments();
    assert!(paths.len() > 4);
    for path in &paths[..paths.len() - 1] {
        disk.unlink(&index_of(path)).unwrap();
    }
    for path in &paths[1..3] {
        disk.damage(path, |bytes| bytes[512] ^= 1);
    }
    let opened = Rig::open(&disk).unwrap();
    let missing = misses_only_what_it_names(&opened, &rig, "both");
    assert_eq!(missing.len(), 2, "{missing:?}");
}

#[test]
fn what_a_segment_without_an_index_has_lost_at_its_end_is_told() {
    let rig = Rig::with_history(false);
    let path = rig.segments().remove(1);
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments[1].first, state.segments[2].first)
    };
    for keep in [0, 1, 6, 20] {
        let disk = rig.crashed();
        disk.unlink(&index_of(&path)).unwrap();
        let from = match keep {
            0 => 512,
            keep => place_in(&disk, &path, first + keep) as usize,
        };
        disk.damage(&path, |bytes| bytes[from..].fill(0));
        let before = disk.bytes_of(&path).unwrap();
        let opened = Rig::open(&disk).unwrap();
        let missing = misses_only_what_it_names(&opened, &rig, &format!("{keep} are left"));
        let gone: BTreeSet<_> = rig
            .lanes()
            .iter()
            .flat_map(|lane| lane.bodies.clone())
            .map(|(n, _)| n)
            .filter(|n| (first + keep..next).contains(n))
            .collect();
        assert_eq!(missing, gone, "{keep} are left");
        let [damage] = &opened.engine.recovered.damage[..] else {
            panic!("{:?}", opened.engine.recovered.damage)
        };
        assert_eq!((&damage.file, damage.first, damage.next), (&path, first + keep, next));
        if keep == 0 {
            let mut kept = names(&disk).into_iter().filter(|name| name.starts_with("quarantine/"));
            assert!(kept.any(|name| disk.bytes_of(&name).unwrap() == before), "it is kept aside");
            assert_eq!(disk.bytes_of(&path), None);
        }
    }
}

#[test]
fn a_journal_of_which_nothing_is_left_is_not_taken_for_a_new_one() {
    for with_history in [true, false] {
        let rig = Rig::with_history(true);
        let disk = rig.crashed();
        for name in names(&disk) {
            let name = name.trim_start_matches('/');
            let kept = name == "lock" || (with_history && name.starts_with("history/"));
            if !kept {
                disk.unlink(name).unwrap();
            }
        }
        let before = names(&disk);
        match Rig::open(&disk) {
            Err(OpenError::Damaged { detail, .. }) => {
                assert!(detail.contains("is left"), "{detail}")
            }
            other => panic!("{:?}", other.map(|_| "opened")),
        }
        assert_eq!(names(&disk), before);
    }
    // A lock file that is lost does not matter where segments say whose they are.
    let rig = Rig::with_history(true);
    let disk = rig.crashed();
    disk.unlink("lock").unwrap();
    let opened = Rig::open(&disk).unwrap();
    is_whole(&opened, &rig, "a lost lock");
    assert_eq!(disk.bytes_of("lock").unwrap()[..5], *b"RSTNT");
    // Nothing was written yet: a first start that did not come far.
    let disk = SimDisk::new(4 << 20);
    disk.crash_at(4);
    assert!(Rig::open(&disk).is_err());
    drop(Rig::open(&disk.copy()).unwrap());
}

#[test]
fn a_backlog_of_many_segments_opens_with_few_files() {
    let mut rig = Rig::new();
    rig.append(2_000);
    rig.checkpoint(b"state");
    rig.append(30);
    let disk = rig.crashed();
    assert!(rig.segments().len() > 60, "{}", rig.segments().len());
    disk.open_at_most(12);
    let opened = Rig::open(&disk).unwrap();
    // A reader keeps some at hand, however many there are.
    disk.open_at_most(200);
    is_whole(&opened, &rig, "few files");
    for peer in [A, B] {
        assert_eq!(opened.backlog(peer).messages, rig.backlog(peer).messages);
    }
}
