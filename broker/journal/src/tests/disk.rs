//! The simulated disk is as bad as it says: what these tests want to come up does come up, and what was
//! synced always does.

use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::super::storage::{Disk, DiskFile};
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::sync::Arc;

fn disk() -> SimDisk {
    let disk = SimDisk::new(1 << 20);
    for dir in ["", "a", "b"] {
        disk.make_dir(dir).unwrap();
    }
    disk
}

fn write(file: &Arc<dyn DiskFile>, at: u64, bytes: &[u8]) {
    file.write_at(&[IoSlice::new(bytes)], at).unwrap();
}

/// A file with these bytes, synced, with a durable name.
fn settled(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let file = disk.create(path).unwrap();
    write(&file, 0, bytes);
    file.sync().unwrap();
    disk.sync_dir("a").unwrap();
    assert_eq!(disk.pending(), 0);
    file
}

/// What each of `paths` may hold after a crash.
fn outcomes<const N: usize>(disk: &SimDisk, paths: [&str; N]) -> BTreeSet<[Option<Vec<u8>>; N]> {
    let mut dice = Dice(1);
    let after = (0..400).map(|_| disk.after_crash(None, &mut dice));
    after.map(|after| paths.map(|path| after.bytes_of(path))).collect()
}

fn some(bytes: &[u8]) -> Option<Vec<u8>> {
    Some(bytes.to_vec())
}

#[test]
fn a_synced_file_is_gone_without_its_name_and_a_name_may_have_no_bytes() {
    let disk = disk();
    let file = disk.create("a/x").unwrap();
    write(&file, 0, b"x");
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[None], [some(b"x")]].into());
    let disk = self::disk();
    write(&disk.create("a/x").unwrap(), 0, b"x");
    disk.sync_dir("a").unwrap();
    let empty = outcomes(&disk, ["a/x"]);
    assert!(empty.contains(&[some(b"")]) && empty.contains(&[some(b"\0")]), "{empty:?}");
    assert!(empty.contains(&[some(b"x")]) && !empty.contains(&[None]), "{empty:?}");
}

#[test]
fn a_rename_may_be_undone_and_bring_back_what_it_replaced() {
    let disk = disk();
    settled(&disk, "a/x", b"old");
    let file = disk.create("a/y").unwrap();
    write(&file, 0, b"new");
    disk.rename("a/y", "a/x").unwrap();
    let before = outcomes(&disk, ["a/x"]);
    assert!(before.contains(&[some(b"old")]) && before.contains(&[some(b"new")]));
    assert!(before.contains(&[some(b"")]), "a rename may be there before the bytes: {before:?}");
    file.sync().unwrap();
    disk.sync_dir("a").unwrap();
    assert_eq!(outcomes(&disk, ["a/x", "a/y"]), [[some(b"new"), None]].into());
}

#[test]
fn a_rename_into_another_directory_leaves_one_name_or_two() {
    let disk = disk();
    settled(&disk, "a/x", b"x");
    disk.rename("a/x", "b/x").unwrap();
    let x = || some(b"x");
    let all = [[x(), None], [x(), x()], [None, x()]];
    assert_eq!(outcomes(&disk, ["a/x", "b/x"]), all.clone().into());
    let other = disk.copy();
    other.rename("b/x", "a/x").unwrap();
    disk.sync_dir("b").unwrap();
    assert_eq!(outcomes(&disk, ["a/x", "b/x"]), all[1..].iter().cloned().collect());
    disk.sync_dir("a").unwrap();
    assert_eq!(outcomes(&disk, ["a/x", "b/x"]), all[2..].iter().cloned().collect());
    // The directory that was left takes the other along.
    other.sync_dir("b").unwrap();
    assert_eq!(outcomes(&other, ["a/x", "b/x"]), [[x(), None]].into());
}

#[test]
fn a_removed_file_may_come_back_until_its_directory_is_synced() {
    let disk = disk();
    settled(&disk, "a/x", b"x");
    disk.unlink("a/x").unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[None], [some(b"x")]].into());
    disk.sync_dir("a").unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[None]].into());
}

#[test]
fn writes_and_lengths_survive_in_any_combination_but_never_older_over_newer() {
    let disk = disk();
    let file = settled(&disk, "a/x", b"....");
    write(&file, 0, b"1");
    write(&file, 3, b"2");
    let all = [b"....", b"1...", b"...2", b"1..2"].map(|bytes| [some(bytes)]);
    assert_eq!(outcomes(&disk, ["a/x"]), all.into());
    write(&file, 0, b"3");
    let newer = outcomes(&disk, ["a/x"]);
    assert!(newer.contains(&[some(b"1..2")]) && newer.contains(&[some(b"3..2")]));
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"3..2")]].into());
    file.truncate(1).unwrap();
    write(&file, 1, b"4");
    let cut = outcomes(&disk, ["a/x"]);
    let wanted: [&[u8]; 4] = [b"3..2", b"3", b"34", b"34.2"];
    wanted.iter().for_each(|bytes| assert!(cut.contains(&[some(bytes)]), "{bytes:?}: {cut:?}"));
}

#[test]
fn a_write_may_be_torn_by_sectors_and_bytes_and_harms_nothing_beside_it() {
    let disk = disk();
    let file = settled(&disk, "a/x", &[1; 2048]);
    write(&file, 512, &[2; 1024]);
    let torn = outcomes(&disk, ["a/x"]);
    let (mut first, mut second, mut bytes) = (false, false, false);
    for [content] in torn {
        let content = content.unwrap();
        assert!(content[..512] == [1; 512] && content[1536..] == [1; 512]);
        let twos = content.iter().filter(|byte| **byte == 2).count();
        first |= content[512..1536] == [[2; 512], [1; 512]].concat();
        second |= content[512..1536] == [[1; 512], [2; 512]].concat();
        bytes |= twos % 512 != 0;
    }
    assert!(first && second && bytes);
}

#[test]
fn room_that_was_allocated_is_there_after_a_sync_and_reads_as_zeroes() {
    let disk = disk();
    let file = disk.create("a/x").unwrap();
    file.allocate(4).unwrap();
    disk.sync_dir("a").unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"")], [some(b"\0\0\0\0")]].into());
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"\0\0\0\0")]].into());
    disk.set_capacity(4);
    assert!(file.allocate(5).is_err());
    write(&file, 0, b"full");
}

#[test]
fn a_sync_that_failed_is_not_made_good_by_the_next() {
    let disk = disk();
    let file = settled(&disk, "a/x", b"-");
    write(&file, 0, b"x");
    disk.fault_at(disk.steps() + 1, Fault::Failed);
    assert!(file.sync().is_err());
    assert_eq!(disk.bytes_of("a/x"), some(b"x"));
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"-")], [some(b"x")]].into());
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"-")]].into());
    // Only writing it again does.
    write(&file, 0, b"x");
    file.sync().unwrap();
    assert_eq!(outcomes(&disk, ["a/x"]), [[some(b"x")]].into());
}

#[test]
fn a_cut_is_the_disk_at_its_step() {
    let disk = disk();
    disk.watch(|| 7);
    let file = settled(&disk, "a/x", b"x");
    write(&file, 0, b"y");
    let cuts = disk.take_cuts();
    let said: Vec<&str> = cuts.iter().map(|cut| &cut.what[..]).collect();
    let steps = ["create a/x", "change a/x", "sync a/x", "sync directory a", "change a/x"];
    assert_eq!(said, steps);
    assert_eq!(cuts.iter().map(|cut| cut.pending()).collect::<Vec<_>>(), [1, 2, 2, 1, 1]);
    assert!(cuts.iter().all(|cut| cut.word == 7) && disk.take_cuts().is_empty());
}
