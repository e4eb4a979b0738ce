//! Indexes that are damaged or gone: built again from their segments, whenever it is noticed.

use super::super::storage::Disk;
use super::rig::Rig;
use super::{A, B};
use restante_actors::journal::Settle;

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
        for at in (0..len).step_by(3).filter(|at| !(8..12).contains(at)) {
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
