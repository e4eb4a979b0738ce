//! Damage to the log itself: told with whose messages are concerned, remembered, and the rest served.

use super::super::checkpoint;
use super::super::format::{FILE_HEADER_BYTES, FileHeader, FileKind};
use super::super::storage::Disk;
use super::super::storage::sim::SimDisk;
use super::rig::{CAPACITY, Rig};
use super::{A, B};
use bytes::Bytes;
use restante_actors::journal::{Damage, LookupError, Settle};
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use std::collections::BTreeSet;

/// Flips a bit in the head of the record with this number in the last segment.
fn break_record(rig: &Rig, disk: &SimDisk, number: MessageNumber) -> String {
    let path = rig.segments().pop().unwrap();
    disk.damage(&path, |bytes| {
        let at = bytes.windows(8).position(|w| w == number.to_be_bytes()).expect("its number");
        bytes[at] ^= 1;
    });
    path
}

fn damage_of(rig: &Rig) -> &[Damage] {
    &rig.engine.recovered.damage
}

/// The receivers of a message of the rig, by its number.
fn expected(number: MessageNumber) -> Vec<PeerId> {
    [&[A][..], &[B], &[A, B]][(number % 3) as usize].to_vec()
}

#[test]
fn a_record_lost_from_the_tail_is_told_remembered_and_the_rest_served() {
    let rig = Rig::with_history(true);
    let disk = rig.crashed();
    let number = rig.engine.shared.next_number() - 3;
    let path = break_record(&rig, &disk, number);
    let mut opened = Rig::open(&disk).unwrap();
    let told = [Damage {
        file: path,
        first: number,
        next: number + 1,
        receivers: vec![],
        complete: false,
    }];
    assert_eq!(damage_of(&opened), told);
    for peer in [A, B] {
        let mut was = rig.lane(peer);
        if expected(number).contains(&peer) {
            was.bodies.remove(&number).expect("it was open");
        }
        assert_eq!(opened.lane(peer), was, "{peer:?}");
    }
    let lookup = |rig: &Rig, number| rig.engine.shared.lookup(number).map(drop);
    assert_eq!(lookup(&opened, number), Err(LookupError::Damaged));
    assert_eq!(lookup(&opened, number + 1), Ok(()));
    // Remembered by the checkpoint, when nothing finds the damage any more.
    opened.checkpoint(b"later");
    let again = Rig::open(&opened.crashed()).unwrap();
    assert_eq!(damage_of(&again), []);
    assert_eq!(lookup(&again, number), Err(LookupError::Damaged));
}

#[test]
fn a_damaged_payload_is_told_with_its_receivers_and_found_when_its_turn_comes() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let number = rig.engine.shared.next_number() - 3;
    let path = rig.segments().pop().unwrap();
    let text = format!("message {number:>90}");
    disk.damage(&path, |bytes| {
        let at = bytes.windows(text.len()).position(|w| w == text.as_bytes()).expect("its text");
        bytes[at + 20] ^= 1;
    });
    let opened = Rig::open(&disk).unwrap();
    let receivers: Vec<_> = expected(number).into_iter().map(|peer| (peer, 1)).collect();
    let told = [Damage { file: path, first: number, next: number + 1, receivers, complete: true }];
    assert_eq!(damage_of(&opened), told);
    for peer in [A, B] {
        let damaged: Vec<_> = opened.lane(peer).damaged.into_iter().map(|(n, _)| n).collect();
        let concerned = expected(number).contains(&peer);
        assert_eq!(damaged, if concerned { vec![number] } else { vec![] }, "{peer:?}");
    }
}

#[test]
fn a_missing_segment_is_told_with_whose_messages_were_in_it() {
    let rig = Rig::with_history(false);
    let disk = rig.crashed();
    let path = rig.segments().remove(1);
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments[1].first, state.segments[2].first)
    };
    let was: Vec<_> =
        [A, B].map(|peer| (peer, rig.lane(peer).bodies.range(first..next).count() as u64)).to_vec();
    disk.unlink(&path).unwrap();
    let opened = Rig::open(&disk).unwrap();
    let told = Damage { file: path.clone(), first, next, receivers: was, complete: true };
    assert_eq!(damage_of(&opened), [told]);
    assert_eq!(opened.engine.shared.lookup(first).map(drop), Err(LookupError::Damaged));
    for peer in [A, B] {
        let mut was = rig.lane(peer);
        was.bodies.retain(|number, _| !(first..next).contains(number));
        assert_eq!(opened.lane(peer), was);
    }
    drop(opened);
    // Without its index too, what the checkpoint knows is told as the least.
    disk.unlink(&path.replace(".seg", ".idx")).unwrap();
    let opened = Rig::open(&disk).unwrap();
    let damage = &damage_of(&opened)[0];
    assert_eq!((damage.first, damage.next, damage.complete), (first, next, false));
}

#[test]
fn a_segment_missing_behind_the_checkpoint_is_told() {
    let mut rig = Rig::with_history(false);
    rig.append(60);
    rig.engine.writer.mark();
    let disk = rig.crashed();
    let paths = rig.segments();
    let path = &paths[paths.len() - 2];
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments[paths.len() - 2].first, state.segments[paths.len() - 1].first)
    };
    disk.unlink(path).unwrap();
    let opened = Rig::open(&disk).unwrap();
    let damage = &damage_of(&opened)[0];
    assert_eq!((damage.first, damage.next, damage.complete), (first, next, false));
    assert!(opened.said().contains(&format!("records {first} to {} are missing", next - 1)));
    assert_eq!(opened.engine.shared.lookup(first).map(drop), Err(LookupError::Damaged));
}

/// Writes a checkpoint later than it was taken, with what is known by then.
fn late_checkpoint(rig: &mut Rig, meanwhile: impl FnOnce(&mut Rig)) {
    rig.engine.shared.checkpoint(Bytes::from_static(b"early"));
    let mut items = Vec::new();
    rig.engine.shared.take_work(&mut items);
    rig.engine.writer.turn(&mut items);
    let job = rig.engine.shared.keeper.lock().checkpoint.take();
    meanwhile(rig);
    // As compaction does, while the checkpoint waits to be written.
    rig.engine.shared.state.lock().moves += 1;
    rig.engine.shared.keeper.lock().checkpoint = job;
    rig.engine.keeper.turn();
}

/// A checkpoint that was written later than it was taken knows how far a segment behind its position went.
#[test]
fn a_last_segment_that_is_missing_is_told_with_all_its_numbers() {
    let mut rig = Rig::with_history(false);
    let settle = |rig: &Rig| {
        let numbers = rig.lane(A).bodies.into_keys().collect();
        rig.engine.shared.settle(Settle::acked(A, 5, 0, numbers));
    };
    settle(&rig);
    late_checkpoint(&mut rig, |rig| rig.append(60));
    let disk = rig.crashed();
    let path = rig.segments().pop().unwrap();
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments.last().unwrap().first, state.durable_next)
    };
    assert!(first + 1 < next, "{first} to {next}");
    disk.unlink(&path).unwrap();
    let opened = Rig::open(&disk).unwrap();
    let told: Vec<_> = damage_of(&opened).iter().map(|one| (one.first, one.next)).collect();
    assert_eq!(told, [(first, next)]);
    assert_eq!(opened.engine.shared.lookup(next - 1).map(drop), Err(LookupError::Damaged));
}

/// Of the segment that was being written to when it was taken it knows how much was open in it by then,
/// and does not take for that what has come since.
#[test]
fn a_segment_that_goes_beyond_a_late_checkpoint_is_told_with_what_was_open_in_it() {
    let mut rig = Rig::with_history(false);
    let last = |rig: &Rig| {
        let state = rig.engine.shared.state.lock();
        state.segments.last().map(|segment| (segment.first, segment.live)).unwrap()
    };
    let (first, live) = last(&rig);
    assert!(live > 2, "{live}");
    let acked = rig.lane(A).bodies.into_keys().next_back().unwrap();
    assert!(acked >= first);
    late_checkpoint(&mut rig, |rig| {
        rig.engine.shared.settle(Settle::acked(A, 5, 0, vec![acked]));
        rig.append(2);
    });
    assert_eq!(last(&rig).0, first, "it is still the same");
    let noted = |disk: &SimDisk| {
        let bytes = disk.bytes_of("checkpoint").unwrap();
        let (_, snapshot, _) = checkpoint::decode(&bytes).expect("it is sound");
        snapshot.segments.last().copied().unwrap()
    };
    let disk = rig.crashed();
    assert_eq!((noted(&disk).first, noted(&disk).live), (first, live - 1));
    assert_eq!(Rig::open(&disk.copy()).unwrap().engine.recovered.damage, [], "none is missing");
    disk.unlink(&rig.segments().pop().unwrap()).unwrap();
    let said = Rig::open(&disk).unwrap().said();
    let least = format!("at least {} deliveries from record {first} on are lost", live - 1);
    assert!(said.contains(&least), "{said}");
}

/// What is set aside needs room, and an opening that makes some looks at everything once more.
#[test]
fn what_was_set_aside_before_there_was_room_for_more_is_told_all_the_same() {
    let rig = Rig::with_history(true);
    let disk = rig.crashed();
    let foreign = rig.segments()[1].clone();
    disk.damage(&foreign, |bytes| {
        let header = FileHeader::parse(FileKind::Segment, bytes).unwrap();
        let other = FileHeader { node: NodeTag(9), ..header }.encode();
        bytes[..FILE_HEADER_BYTES].copy_from_slice(&other);
    });
    break_record(&rig, &disk, rig.engine.shared.next_number() - 3);
    let said = |disk: &SimDisk| -> BTreeSet<String> {
        let findings = Rig::open(disk).unwrap().engine.recovered.findings;
        // What could not be finished has taken a name in the quarantine.
        let what = |finding: String| finding.split(" as quarantine").next().unwrap().to_owned();
        findings.into_iter().map(what).collect()
    };
    let roomy = said(&disk.copy());
    assert!(roomy.contains(&format!("{foreign} was set aside")), "{roomy:?}");
    disk.set_capacity(CAPACITY - disk.free_bytes().unwrap());
    assert_eq!(said(&disk), roomy);
}
