//! A directory looked at and mended from outside: what is wrong is found, by name and by receiver.

use super::super::Options;
use super::super::error::OpenError;
use super::super::format::{FILE_HEADER_BYTES, FileHeader, FileKind, crc32c, write_version};
use super::super::offline::Offline;
use super::super::offline::check::{Report, Verdict, run};
use super::super::offline::repair::repair_on;
use super::super::storage::Disk;
use super::super::storage::sim::SimDisk;
use super::rig::{Rig, contents, names, options};
use super::{A, B};
use restante_protocol::id::NodeTag;
use std::sync::Arc;

fn check(disk: &SimDisk) -> Result<Report, OpenError> {
    run(&Offline::on(Arc::new(disk.clone()))?)
}

fn said(report: &Report) -> String {
    let lines = report.problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what));
    lines.collect::<Vec<_>>().join("\n")
}

fn verdict(report: &Report, path: &str) -> Verdict {
    report.files.iter().find(|file| file.path == path).expect(path).verdict
}

#[test]
fn a_sound_directory_has_no_problems_and_every_record_is_counted() {
    for reclaimed in [false, true] {
        let rig = Rig::with_history(reclaimed);
        let disk = rig.crashed();
        let before = names(&disk);
        let report = check(&disk).unwrap();
        assert_eq!(said(&report), "");
        assert!(report.usable);
        assert_eq!(report.next, rig.engine.shared.next_number());
        let messages: u64 = report.files.iter().map(|file| file.messages).sum();
        if !reclaimed {
            assert_eq!(messages, 130);
        }
        assert_eq!(names(&disk), before, "nothing was changed");
        drop(rig);
    }
}

#[test]
fn every_flipped_byte_of_every_file_is_found() {
    let disk = Rig::with_history(true).crashed();
    let (mut flipped, mut missed) = (0, Vec::new());
    for path in names(&disk) {
        let path = path.trim_start_matches('/');
        let report = check(&disk).unwrap();
        let skip = match report.files.iter().find(|file| file.path == path) {
            Some(file) => matches!(file.verdict, Verdict::Ready | Verdict::Dead),
            None => path.ends_with(".spare"),
        };
        if skip {
            continue;
        }
        let len = disk.bytes_of(path).unwrap().len();
        let step = if path.ends_with(".seg") { 11 } else { 5 };
        for at in (0..len).step_by(step) {
            let damaged = disk.copy();
            damaged.damage(path, |bytes| bytes[at] ^= 0x21);
            flipped += 1;
            if check(&damaged).is_ok_and(|report| report.problems.is_empty()) {
                missed.push((path.to_owned(), at));
            }
        }
    }
    assert!(flipped > 2_000, "{flipped}");
    // What nobody reads: the rest of a segment's first sector, and what lies behind its last record;
    // nor can anything tell that the mark at the very end was one.
    const MARK_BYTES: u64 = 24;
    let report = check(&disk).unwrap();
    missed.retain(|(path, at)| {
        let file = report.files.iter().find(|file| file.path == *path);
        let unread =
            |end: u64| (FILE_HEADER_BYTES..512).contains(at) || *at as u64 + MARK_BYTES >= end;
        !(path.ends_with(".seg") && file.is_some_and(|file| unread(file.end)))
    });
    assert_eq!(missed, []);
}

#[test]
fn a_damaged_record_is_named_with_its_receivers() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let path = &rig.segments()[0];
    // A message to both in the first segment, whose index says whose it is.
    let at = find(&disk, path, "message", 2);
    disk.damage(path, |bytes| bytes[at - 60] ^= 1);
    let report = check(&disk).unwrap();
    assert_eq!(verdict(&report, path), Verdict::Damaged);
    let problem = &report.problems[0];
    let number = problem.numbers.expect("its number").0;
    let expected: &[_] = [&[(A, 1)][..], &[(B, 1)], &[(A, 1), (B, 1)]][(number % 3) as usize];
    assert_eq!(problem.receivers, expected);
    assert!(problem.complete);
}

/// Where the n-th `word` is in a file.
fn find(disk: &SimDisk, path: &str, word: &str, nth: usize) -> usize {
    let bytes = disk.bytes_of(path).unwrap();
    let places = bytes.windows(word.len()).enumerate().filter(|(_, w)| *w == word.as_bytes());
    places.map(|(at, _)| at).nth(nth).expect("it is there")
}

#[test]
fn missing_and_foreign_segments_and_indexes_of_others_are_found() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let paths = rig.segments();
    let (first, second) = (&paths[0], &paths[1]);

    let gone = disk.copy();
    gone.unlink(first).unwrap();
    let report = check(&gone).unwrap();
    assert!(
        said(&report).contains(first) && said(&report).contains("missing"),
        "{}",
        said(&report)
    );

    let foreign = disk.copy();
    foreign.damage(first, |bytes| {
        let header = FileHeader::parse(FileKind::Segment, bytes).unwrap();
        let other = FileHeader { node: NodeTag(9), ..header }.encode();
        bytes[..FILE_HEADER_BYTES].copy_from_slice(&other);
    });
    let report = check(&foreign).unwrap();
    assert_eq!(verdict(&report, first), Verdict::Foreign);
    assert!(said(&report).contains("node 0009"), "{}", said(&report));

    let twice = disk.copy();
    let bytes = twice.bytes_of(second).unwrap();
    twice.damage(first, |first| *first = bytes);
    let report = check(&twice).unwrap();
    assert_eq!(verdict(&report, first), Verdict::Foreign);
    assert!(said(&report).contains("under another's name"), "{}", said(&report));

    let swapped = disk.copy();
    let (index, other) = (first.replace(".seg", ".idx"), second.replace(".seg", ".idx"));
    let bytes = swapped.bytes_of(&other).unwrap();
    swapped.damage(&index, |index| *index = bytes);
    assert!(said(&check(&swapped).unwrap()).contains("it is the index of segment"));
}

#[test]
fn an_index_that_lies_is_found_and_built_again() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let path = rig.segments()[0].replace(".seg", ".idx");
    // One message less for a peer, and all checksums right.
    let good = disk.bytes_of(&path).unwrap();
    disk.damage(&path, |bytes| {
        let part = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let (messages, settles, directory) = (part(72), part(80) + part(96), part(88));
        let from = 112 + messages + settles;
        bytes[from + 7] -= 1;
        let crc = crc32c(&bytes[from..from + directory]);
        bytes[92..96].copy_from_slice(&crc.to_be_bytes());
        let crc = crc32c(&bytes[48..108]);
        bytes[108..112].copy_from_slice(&crc.to_be_bytes());
    });
    let report = check(&disk).unwrap();
    assert!(said(&report).contains("does not agree with its segment"), "{}", said(&report));

    let lying = disk.bytes_of(&path);
    let before = names(&disk);
    let dry = repair_on(Arc::new(disk.clone()), true, options()).unwrap();
    assert!(dry.changes.iter().any(|change| change.contains("quarantine/")), "{:?}", dry.changes);
    assert_eq!((names(&disk), disk.bytes_of(&path)), (before, lying.clone()), "a dry run");

    let done = repair_on(Arc::new(disk.clone()), false, options()).unwrap();
    assert!(done.findings.iter().any(|line| line.contains("set aside")), "{:?}", done.findings);
    let aside = path.replace("segments", "quarantine");
    assert_eq!(disk.bytes_of(&aside), lying, "it is kept");
    let built = disk.bytes_of(&path).unwrap();
    assert_eq!(built[FILE_HEADER_BYTES..], good[FILE_HEADER_BYTES..], "as it was");
    assert_eq!(said(&check(&disk).unwrap()), "");
    assert_eq!(Rig::open(&disk).unwrap().lanes(), rig.lanes());
}

#[test]
fn a_repair_leaves_what_the_ledger_knows_to_the_node() {
    let disk = Rig::with_history(true).crashed();
    let history = || Disk::list(&disk, "history").unwrap();
    let before = history();
    assert!(!before.is_empty());
    let options = Options { history_bytes_max: 0, history_ms_max: 0, ..options() };
    repair_on(Arc::new(disk.clone()), false, options).unwrap();
    assert!(before.iter().all(|name| history().contains(name)), "{before:?}: {:?}", history());
}

#[test]
fn a_dry_run_says_what_a_repair_then_does() {
    let rig = Rig::with_history(true);
    let disk = rig.crashed();
    let paths = rig.segments();
    disk.damage("checkpoint", |bytes| bytes[55] ^= 1);
    let at = find(&disk, &paths[paths.len() - 2], "message", 3);
    disk.damage(&paths[paths.len() - 2], |bytes| bytes[at - 60] ^= 1);
    let before = contents(&disk);
    let dry = repair_on(Arc::new(disk.clone()), true, options()).unwrap();
    assert_eq!(contents(&disk), before, "a dry run changes nothing");
    let real = repair_on(Arc::new(disk.clone()), false, options()).unwrap();
    assert_eq!(dry.findings, real.findings);
    assert!(real.changes.is_empty() && !dry.changes.is_empty());
    let after = contents(&disk);
    for change in &dry.changes {
        if let Some((_, to)) = change.split_once(" to ").filter(|(_, to)| to.contains("quarantine"))
        {
            assert!(after.contains_key(to), "{change}");
        }
    }
}

/// A log of weeks has more files than a process may have open.
#[test]
fn a_dry_run_has_few_files_open_however_many_there_are() {
    let disk = Rig::with_history(true).crashed();
    assert!(names(&disk).len() > 12, "{:?}", names(&disk));
    let dry = || repair_on(Arc::new(disk.clone()), true, options()).unwrap();
    let all = dry();
    disk.open_at_most(6);
    let few = dry();
    assert_eq!((few.findings, few.changes), (all.findings, all.changes));
}

#[test]
fn what_is_no_journal_or_in_use_or_newer_is_refused() {
    assert!(matches!(check(&SimDisk::new(1 << 20)), Err(OpenError::Foreign { .. })));
    let rig = Rig::with_history(false);
    assert!(matches!(check(&rig.disk), Err(OpenError::Locked { .. })));
}

#[test]
fn a_file_of_a_newer_version_is_refused_by_all_and_nothing_is_changed() {
    let rig = Rig::with_history(true);
    let segment = rig.segments()[1].clone();
    let index = segment.replace(".seg", ".idx");
    let history = format!("history/{}", Disk::list(&rig.disk, "history").unwrap()[0]);
    for path in ["lock", "checkpoint", "checkpoint.copy", &segment, &index, &history] {
        let newer = rig.crashed();
        newer.damage(path, |bytes| write_version(bytes, 2));
        // What an opening would remove, set aside or move, the newer file apart.
        newer.create("segments/0000000000ff.new").unwrap();
        newer.create("segments/800000000001.seg").unwrap();
        newer.damage(&rig.segments()[0].replace(".seg", ".idx"), |bytes| bytes[60] ^= 1);
        newer.damage(&rig.segments()[2], |bytes| {
            let header = FileHeader::parse(FileKind::Segment, bytes).unwrap();
            let other = FileHeader { node: NodeTag(9), ..header }.encode();
            bytes[..FILE_HEADER_BYTES].copy_from_slice(&other);
        });
        let before = contents(&newer);
        let refused = [
            check(&newer).map(drop),
            repair_on(Arc::new(newer.clone()), false, options()).map(drop),
            Rig::open(&newer).map(drop),
        ];
        for refused in refused {
            let Err(OpenError::Newer { version: 2, path: named, .. }) = refused else {
                panic!("{path}: {:?}", refused.err());
            };
            assert!(named.contains(path), "{named}");
        }
        assert_eq!(contents(&newer), before, "{path}");
    }
}
