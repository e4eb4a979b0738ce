//! Checkpoints that are damaged, foreign or gone: one of the two copies is enough, and so is the log
//! where it goes back to its beginning.

use super::super::OpenError;
use super::super::checkpoint::{self, Snapshot};
use super::super::format::write_version;
use super::super::shared::Shared;
use super::super::storage::Disk;
use super::super::storage::sim::SimDisk;
use super::model::World;
use super::rig::{Rig, names};
use super::{A, B, batch_of, small};
use restante_actors::journal::Settle;

const COPIES: [&str; 2] = ["checkpoint", "checkpoint.copy"];

/// Opens, and holds what is found against what was there before.
fn reopened(before: &Rig, disk: &SimDisk) -> Rig {
    let rig = Rig::open(disk).expect("opens");
    assert_eq!(rig.lanes(), before.lanes());
    let recovered = &rig.engine.recovered;
    match &recovered.checkpoint {
        Some(state) => assert_eq!(
            (&state[..], &recovered.admin[..]),
            (&b"state"[..], &["after"].map(Into::into)[..])
        ),
        None => assert_eq!(recovered.admin, ["before", "after"].map(bytes::Bytes::from)),
    }
    rig
}

#[test]
fn either_copy_of_the_checkpoint_is_enough_and_mends_the_other() {
    let before = Rig::with_history(true);
    let disk = before.crashed();
    let len = disk.bytes_of(COPIES[0]).unwrap().len();
    assert_eq!(disk.bytes_of(COPIES[0]), disk.bytes_of(COPIES[1]));
    for copy in COPIES {
        for at in (0..len).step_by(7) {
            let damaged = disk.copy();
            damaged.damage(copy, |bytes| bytes[at] ^= 0x11);
            let said = reopened(&before, &damaged).said();
            assert!(said.contains(copy) && said.contains("set aside"), "byte {at}: {said}");
            assert_eq!(damaged.bytes_of(COPIES[0]), damaged.bytes_of(COPIES[1]), "mended");
            assert!(damaged.bytes_of(&format!("quarantine/{copy}")).is_some(), "kept");
        }
        for to in [0, 1, 47, 60, len - 1] {
            let cut = disk.copy();
            cut.damage(copy, |bytes| bytes.truncate(to));
            reopened(&before, &cut);
            assert_eq!(cut.bytes_of(COPIES[0]), cut.bytes_of(COPIES[1]), "mended");
        }
        let gone = disk.copy();
        gone.unlink(copy).unwrap();
        assert_eq!(reopened(&before, &gone).said(), "");
    }
}

/// The crash came between the two copies; or one was lost since. What the newer lets go is written over
/// after the opening, so that the older one must not be what is left.
#[test]
fn a_copy_that_is_older_or_missing_is_brought_up_to_date_before_anything_is_written_over() {
    let mut before = Rig::with_history(true);
    let older = before.disk.bytes_of(COPIES[0]).unwrap();
    let numbers: Vec<_> = before.lane(A).bodies.into_keys().collect();
    let floor = *numbers.last().unwrap();
    before.engine.shared.settle(Settle::acked(A, 5, floor, numbers));
    before.admin(b"before");
    before.checkpoint(b"state");
    before.admin(b"after");
    let disk = before.crashed();
    let newer = disk.bytes_of(COPIES[0]).unwrap();
    assert_ne!(newer, older);
    for (copy, other) in [(COPIES[0], COPIES[1]), (COPIES[1], COPIES[0])] {
        for is_there in [true, false] {
            let stale = disk.copy();
            match is_there {
                true => stale.damage(copy, |bytes| bytes.clone_from(&older)),
                false => stale.unlink(copy).unwrap(),
            }
            let one = stale.copy();
            let rig = reopened(&before, &one);
            assert_eq!(rig.said(), "", "{copy}");
            assert!(COPIES.iter().all(|copy| one.bytes_of(copy).as_ref() == Some(&newer)));
            drop(rig);
            one.damage(other, |bytes| bytes[60] ^= 1);
            assert!(reopened(&before, &one).said().contains("set aside"), "{other}");

            // Without room for it the older one goes, and the opening goes on.
            let full = stale;
            full.set_capacity(0);
            assert!(reopened(&before, &full).said().contains("for want of room"), "{copy}");
            assert_eq!(full.bytes_of(copy), None);
        }
    }
}

#[test]
fn without_a_checkpoint_a_log_that_is_not_whole_is_refused_and_left_alone() {
    let disk = Rig::with_history(true).crashed();
    for both in [true, false] {
        let damaged = disk.copy();
        for copy in COPIES {
            match both {
                true => damaged.damage(copy, |bytes| bytes[50] ^= 1),
                false => damaged.unlink(copy).unwrap(),
            }
        }
        let before = names(&damaged);
        match Rig::open(&damaged) {
            Err(OpenError::Damaged { path, detail }) => {
                assert!(
                    path.contains("checkpoint") && detail.contains("log before record"),
                    "{detail}"
                );
            }
            other => panic!("{:?}", other.err()),
        }
        assert_eq!(names(&damaged), before, "nothing was moved");
    }
}

#[test]
fn a_whole_log_needs_no_checkpoint() {
    let before = Rig::with_history(false);
    let disk = before.crashed();
    for copy in COPIES {
        disk.damage(copy, |bytes| bytes[60] ^= 1);
    }
    let rig = reopened(&before, &disk.copy());
    assert!(rig.engine.recovered.checkpoint.is_none());
    assert!(COPIES.iter().all(|copy| rig.said().contains(copy)), "{}", rig.said());
    // With a segment of it gone, nothing can tell what was in there.
    disk.unlink(&before.segments()[1]).unwrap();
    match Rig::open(&disk) {
        Err(OpenError::Damaged { .. }) => {}
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_checkpoint_of_another_journal_or_a_newer_program_is_not_believed() {
    let before = Rig::with_history(true);
    let disk = before.crashed();
    let mut stranger = disk.bytes_of(COPIES[0]).unwrap();
    // Another node's, and sound.
    stranger[16..18].copy_from_slice(&[0, 9]);
    let crc = super::super::format::crc32c(&stranger[..44]);
    stranger[44..48].copy_from_slice(&crc.to_be_bytes());
    for copy in COPIES {
        let foreign = disk.copy();
        foreign.damage(copy, |bytes| bytes.clone_from(&stranger));
        let said = reopened(&before, &foreign).said();
        assert!(said.contains("node 0009"), "{said}");
        assert_eq!(foreign.bytes_of(&format!("quarantine/{copy}")), Some(stranger.clone()));

        let newer = disk.copy();
        newer.damage(copy, |bytes| write_version(bytes, 2));
        match Rig::open(&newer) {
            Err(OpenError::Newer { version: 2, path, .. }) => assert!(path.contains(copy)),
            other => panic!("{:?}", other.err()),
        }
    }
    let foreign = disk.copy();
    COPIES.iter().for_each(|copy| foreign.damage(copy, |bytes| bytes.clone_from(&stranger)));
    assert!(matches!(Rig::open(&foreign), Err(OpenError::Foreign { .. })));
}

#[test]
fn a_checkpoint_that_lies_about_what_is_open_is_named_and_counted_anew() {
    let mut rig = Rig::with_history(false);
    let numbers: Vec<_> = rig.lane(A).bodies.into_keys().step_by(3).collect();
    rig.engine.shared.settle(Settle::acked(A, 5, 0, numbers));
    rig.checkpoint(b"state");
    rig.append(3);
    let disk = rig.crashed();
    let was = [A, B].map(|peer| rig.backlog(peer));
    let honest = disk.bytes_of(COPIES[0]).unwrap();
    assert_eq!(Rig::open(&disk.copy()).unwrap().said(), "");
    let lies: [fn(&mut Snapshot); 3] = [
        |snapshot| snapshot.segments[1].live += 3,
        |snapshot| snapshot.peers[0].touched[1].open += 5,
        // Both alike, and more than there ever was.
        |snapshot| {
            snapshot.segments[1].live += 1_000;
            snapshot.peers[0].touched[1].open += 1_000;
        },
    ];
    for (place, lie) in lies.into_iter().enumerate() {
        let (header, mut snapshot, application) = checkpoint::decode(&honest).expect("it is sound");
        lie(&mut snapshot);
        let lying = disk.copy();
        for copy in COPIES {
            let bytes = checkpoint::encode(&header, &snapshot, &application);
            lying.damage(copy, |file| *file = bytes);
        }
        let opened = Rig::open(&lying).unwrap();
        let said = opened.said();
        assert!(said.contains("the checkpoint says"), "lie {place}: {said}");
        assert_eq!([A, B].map(|peer| opened.backlog(peer).messages), was.map(|b| b.messages));
        assert_eq!(opened.lanes(), rig.lanes(), "lie {place}");
        let live = |rig: &Rig| -> Vec<u64> {
            rig.engine.shared.state.lock().segments.iter().map(|segment| segment.live).collect()
        };
        assert_eq!(live(&opened)[..3], live(&rig)[..3], "lie {place}");
    }
}

/// A checkpoint that was written later than it was taken says of its receivers what is known by then:
/// a log that ends before that has lost something, and its numbers are not given out again.
#[test]
fn a_log_that_ends_before_what_the_checkpoint_knows_of_is_damaged_and_not_torn() {
    let mut world = World::new(SimDisk::new(1 << 24), small(64 * 1024)).expect("opens");
    let publish = |world: &mut World| {
        let batch = batch_of(1, &[A.0], &[b"\0x"]);
        let (_, number) = world.engine.shared.append(batch).ok().unwrap();
        world.write();
        number
    };
    publish(&mut world);
    world.checkpoint();
    let number = publish(&mut world);
    world.engine.shared.settle(Settle::acked(A, 5, number, Vec::new()));
    // As compaction does, while the checkpoint waits to be written.
    world.engine.shared.state.lock().moves += 1;
    world.engine.keeper.turn();
    let (_, stored, _) = checkpoint::decode(&world.disk.bytes_of("checkpoint").expect("written"))
        .expect("it is sound");
    assert!(stored.position <= number && number < stored.synced, "{stored:?}");
    let segment = world.engine.shared.state.lock().segments.last().map(|segment| segment.id);
    let disk = world.disk.copy();
    disk.damage(&Shared::segment_path(segment.expect("there is one")), |bytes| {
        let at = bytes.windows(2).rposition(|two| two == b"\0x").expect("it is there");
        bytes[at + 1] ^= 1;
    });
    let mut reopened = World::new(disk, small(64 * 1024)).expect("opens");
    let damage = &reopened.engine.recovered.damage;
    assert!(matches!(&damage[..], [one] if one.first == number), "{damage:?}");
    assert!(publish(&mut reopened) > number, "its number is not another's");
    assert_eq!(reopened.engine.shared.state.lock().backlog(A).messages, 1);
}
