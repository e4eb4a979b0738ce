//! Indexes that are damaged or gone: built again from their segments, whenever it is noticed.

use super::super::storage::Disk;
use super::super::storage::sim::SimDisk;
use super::rig::Rig;
use super::{A, B};
use restante_actors::journal::{LookupError, Settle};
use restante_protocol::id::MessageNumber;

fn indexes(rig: &Rig) -> Vec<String> {
    let mut paths: Vec<String> =
        rig.segments().iter().map(|path| path.replace(".seg", ".idx")).collect();
    paths.pop();
    paths
}

#[test]
fn no_byte_of_an_index_can_keep_a_message_from_its_receiver() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let lanes = rig.lanes();
    let lives: Vec<_> =
        (1..=40).map(|number| format!("{:?}", rig.engine.shared.lookup(number))).collect();
    for path in indexes(&rig) {
        let len = disk.bytes_of(&path).unwrap().len();
        for at in (0..len).step_by(3) {
            let damaged = disk.copy();
            damaged.damage(&path, |bytes| bytes[at] ^= 0x40);
            let reopened =
                Rig::open(&damaged).unwrap_or_else(|error| panic!("{path} {at}: {error}"));
            for (number, life) in (1..).zip(&lives) {
                assert_eq!(
                    format!("{:?}", reopened.engine.shared.lookup(number)),
                    *life,
                    "{path} {at}"
                );
            }
            assert_eq!(reopened.lanes(), lanes, "{path} byte {at}");
        }
    }
}

#[test]
fn an_index_that_is_built_again_is_written_and_read_back() {
    let rig = Rig::with_history(true);
    let disk = rig.crashed();
    let path = indexes(&rig).pop().unwrap();
    let good = disk.bytes_of(&path).unwrap();
    for gone in [false, true] {
        let damaged = disk.copy();
        match gone {
            true => damaged.unlink(&path).unwrap(),
            false => damaged.damage(&path, |bytes| *bytes.last_mut().unwrap() ^= 1),
        }
        let mut reopened = Rig::open(&damaged).unwrap();
        assert!(!reopened.said().contains("damaged"), "nothing is lost: {}", reopened.said());
        assert_eq!(reopened.lanes(), rig.lanes());
        reopened.write();
        let written = damaged.bytes_of(&path).unwrap();
        assert_eq!(written[48..], good[48..], "as it was");
        assert_eq!(reopened.lanes(), rig.lanes());
    }
}

#[test]
fn settles_are_counted_right_when_the_index_they_need_is_damaged() {
    let mut rig = Rig::with_history(false);
    // Something of every share is settled behind the checkpoint, so that recovery has to count.
    for peer in [A, B] {
        let numbers: Vec<_> = rig.lane(peer).bodies.into_keys().step_by(3).collect();
        rig.engine.shared.settle(Settle::acked(peer, 5, 0, numbers));
    }
    rig.write();
    rig.engine.writer.mark();
    let disk = rig.crashed();
    for path in indexes(&rig) {
        let damaged = disk.copy();
        damaged.damage(&path, |bytes| *bytes.last_mut().unwrap() ^= 1);
        let reopened = Rig::open(&damaged).unwrap();
        for peer in [A, B] {
            let (is, was) = (reopened.backlog(peer), rig.backlog(peer));
            assert_eq!((is.messages, is.floor), (was.messages, was.floor), "{path}");
        }
        assert_eq!(reopened.lanes(), rig.lanes(), "{path}");
    }
}

/// Damages the head of a message's record in its segment, and of the segment's index one part for each
/// place given: from the front, or, where negative, from the end.
fn damage_both(rig: &Rig, disk: &SimDisk, number: MessageNumber, index_at: &[i64]) -> String {
    let state = rig.engine.shared.state.lock();
    let place = state.segments.partition_point(|segment| segment.first <= number) - 1;
    drop(state);
    let path = rig.segments().remove(place);
    disk.damage(&path, |bytes| {
        let at = bytes.windows(8).position(|w| w == number.to_be_bytes()).expect("its number");
        bytes[at] ^= 1;
    });
    disk.damage(&path.replace(".seg", ".idx"), |bytes| {
        for at in index_at {
            let at = if *at < 0 { bytes.len() as i64 + at } else { *at };
            bytes[at as usize] ^= 1;
        }
    });
    path
}

/// A byte of the messages, and the last one of the last peer's.
const MESSAGES_AND_REFS: [i64; 2] = [130, -1];
/// In the rig's third segment, for both.
const FOR_BOTH: MessageNumber = 62;

#[test]
fn what_neither_index_nor_segment_knows_leaves_the_counts_and_is_remembered() {
    let rig = Rig::with_history(false);
    let mut was = rig.lanes();
    // The second time found by an opening, which has to count because of what is settled.
    let again = rig.crashed();
    let fresh = Rig::open(&rig.crashed()).unwrap();
    damage_both(&fresh, &fresh.disk, FOR_BOTH, &MESSAGES_AND_REFS);
    was.iter_mut().for_each(|lane| drop(lane.bodies.remove(&FOR_BOTH).expect("for both")));
    // B first: its part of the index is the damaged one.
    assert_eq!([fresh.lane(B), fresh.lane(A)], [was[1].clone(), was[0].clone()]);
    for (peer, lane) in [A, B].into_iter().zip(&was) {
        assert_eq!(fresh.backlog(peer).messages, lane.bodies.len() as u64, "{peer:?}");
    }
    let lookup = fresh.engine.shared.lookup(FOR_BOTH).map(drop);
    assert_eq!(lookup, Err(LookupError::Damaged));
    let live: u64 = fresh.engine.shared.state.lock().segments.iter().map(|s| s.live).sum();
    assert_eq!(live, was.iter().map(|lane| lane.bodies.len() as u64).sum::<u64>());

    let mut settled = Rig::open(&again).unwrap();
    for peer in [A, B] {
        let numbers: Vec<_> = settled.lane(peer).bodies.into_keys().step_by(5).collect();
        settled.engine.shared.settle(Settle::acked(peer, 5, 0, numbers));
    }
    settled.write();
    settled.engine.writer.mark();
    let mut was = settled.lanes();
    let disk = settled.crashed();
    let path = damage_both(&settled, &disk, FOR_BOTH, &MESSAGES_AND_REFS);
    was.iter_mut().for_each(|lane| drop(lane.bodies.remove(&FOR_BOTH)));
    let opened = Rig::open(&disk).unwrap();
    assert!(opened.said().contains("is built again"), "{}", opened.said());
    let [damage] = &opened.engine.recovered.damage[..] else {
        panic!("{:?}", opened.engine.recovered.damage)
    };
    assert_eq!((&damage.file, damage.first, damage.next), (&path, FOR_BOTH, FOR_BOTH + 1));
    assert_eq!((&damage.receivers[..], damage.complete), (&[(A, 1), (B, 1)][..], false));
    assert_eq!(opened.lanes(), was);
    for (peer, lane) in [A, B].into_iter().zip(&was) {
        assert_eq!(opened.backlog(peer).messages, lane.bodies.len() as u64, "{peer:?}");
    }
}

#[test]
fn what_the_old_index_still_names_is_found_damaged_by_name_in_its_turn() {
    let rig = Rig::with_history(false);
    let was = rig.lanes();
    let fresh = Rig::open(&rig.crashed()).unwrap();
    damage_both(&fresh, &fresh.disk, FOR_BOTH, &[-1]);
    for (peer, mut lane) in [B, A].into_iter().zip([was[1].clone(), was[0].clone()]) {
        lane.bodies.remove(&FOR_BOTH).expect("for both");
        let now = fresh.lane(peer);
        assert_eq!(now.bodies, lane.bodies, "{peer:?}");
        let damaged: Vec<_> = now.damaged.iter().map(|(number, _)| *number).collect();
        assert_eq!(damaged, [FOR_BOTH], "{peer:?}");
        // Until it is parked it waits like any other.
        assert_eq!(fresh.backlog(peer).messages, lane.bodies.len() as u64 + 1);
    }
}
