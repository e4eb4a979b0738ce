//! Reads and openings that fail: what passes costs nothing, what stays costs what lies in the bad
//! place, by its number, and nothing is passed over that nobody can name.

use super::super::format::is_cold;
use super::super::index::IndexFile;
use super::super::shared::Shared;
use super::super::storage::sim::{FOR_GOOD, Ill, SimDisk};
use super::super::trouble::TRIES;
use super::rig::{Lane1, Rig};
use super::{A, B};
use restante_actors::journal::{Ended, Lane, LookupError, Read, ReadError, Settle};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::ParkRecord;

const WHOLE: std::ops::Range<u64> = 0..u64::MAX;

/// A history whose indexes are in files and whose cache is empty, as after a restart.
fn restarted() -> (Rig, SimDisk, [Lane1; 2]) {
    let rig = Rig::with_history(true);
    let lanes = rig.lanes();
    let disk = rig.crashed();
    // What recovery read through gets its index file, and a checkpoint that covers it.
    let mut first = Rig::open(&disk).unwrap();
    first.write();
    first.checkpoint(b"state");
    let rig = Rig::open(&disk.copy()).unwrap();
    let disk = rig.disk.clone();
    (rig, disk, lanes)
}

/// Reads all of a peer's as the peer does, coming back as often as it is told to; how often that was.
/// After `heal_after` times the disk is well.
fn patiently(rig: &Rig, peer: PeerId, heal_after: u32) -> (Lane1, u32) {
    let (mut lane, mut after, mut told) = (Lane1::default(), 0, 0);
    loop {
        let (through, bytes_max, messages_max) = (u64::MAX, 1 << 20, 7);
        let read = Read { peer, lane: Lane::Open, after, through, bytes_max, messages_max };
        match rig.engine.shared.next(read) {
            Ok(page) if page.messages.is_empty() => return (lane, told),
            Ok(page) => {
                assert!(page.through > after);
                after = page.through;
                lane.bodies.extend(page.messages.into_iter().map(|m| (m.number, m.body.to_vec())));
            }
            Err(ReadError::Damaged { number, detail }) => {
                assert!(number > after, "reading goes on");
                lane.damaged.push((number, detail));
                after = number;
            }
            Err(ReadError::Unavailable(_)) => {
                told += 1;
                if told == heal_after {
                    rig.disk.heal();
                }
                assert!(told < 500, "nothing is stopped for good");
            }
        }
    }
}

/// All of it and nothing else, without a word about damage.
fn same(read: &Lane1, lane: &Lane1, what: &str) {
    let numbers = |lane: &Lane1| lane.bodies.keys().copied().collect::<Vec<_>>();
    assert_eq!(read.damaged, [], "{what}");
    assert_eq!(numbers(read), numbers(lane), "{what}");
    assert!(read == lane, "{what}");
}

/// Where the record of a message is: its segment's path and its first byte.
fn place_of(rig: &Rig, disk: &SimDisk, number: MessageNumber) -> (String, u64) {
    let state = rig.engine.shared.state.lock();
    let place = state.segments.partition_point(|segment| segment.first <= number) - 1;
    drop(state);
    let path = rig.segments().remove(place);
    let bytes = disk.bytes_of(&path).unwrap();
    let at = bytes.windows(8).position(|w| w == number.to_be_bytes()).expect("its number");
    (path, at as u64 - 16)
}

#[test]
fn no_read_and_no_opening_that_fails_for_a_moment_costs_a_message() {
    let (rig, disk, lanes) = restarted();
    let from = disk.turns();
    assert_eq!(rig.lanes(), lanes);
    let turns = disk.turns() - from;
    drop(rig);
    assert!(turns > 20, "{turns}");
    for length in [1, 3] {
        for nth in 1..=turns {
            let disk = disk.copy();
            let rig = Rig::open(&disk).unwrap();
            let at = disk.turns() + nth;
            disk.fail_turns(at..at + length);
            for (peer, lane) in [A, B].into_iter().zip(&lanes) {
                let (read, _) = patiently(&rig, peer, u32::MAX);
                same(&read, lane, &format!("{peer:?}, {length} from {nth} on"));
                assert_eq!(rig.backlog(peer).messages, lane.bodies.len() as u64);
            }
            assert_eq!(rig.engine.shared.state.lock().lost, []);
        }
    }
}

#[test]
fn while_too_many_files_are_open_nothing_is_given_up_however_long_it_takes() {
    let (rig, disk, lanes) = restarted();
    let paths = rig.segments();
    for path in &paths[..paths.len() - 1] {
        disk.sicken(path, Ill::Open, FOR_GOOD);
        disk.sicken(&path.replace(".seg", ".idx"), Ill::Open, FOR_GOOD);
    }
    let (read, told) = patiently(&rig, A, 10 * TRIES);
    same(&read, &lanes[0], "once files can be opened");
    assert_eq!(told, 10 * TRIES);
    assert!(rig.lanes() == lanes);
    assert!(rig.engine.shared.state.lock().lost.is_empty());
}

#[test]
fn a_bad_sector_costs_the_message_in_it_and_only_once_it_lasts() {
    let (rig, disk, mut lanes) = restarted();
    // With others of both before and behind it, close enough to be read at once.
    let number = *lanes[0].bodies.keys().nth(5).unwrap();
    let (path, at) = place_of(&rig, &disk, number);
    disk.sicken(&path, Ill::Read(at + 30..at + 31), FOR_GOOD);
    let body = lanes[0].bodies.remove(&number).unwrap();
    let (read, told) = patiently(&rig, A, u32::MAX);
    assert_eq!(read.bodies, lanes[0].bodies);
    let damaged: Vec<_> = read.damaged.iter().map(|(number, _)| *number).collect();
    // The first time it was not said: what came before it was.
    assert_eq!((damaged, told), (vec![number], TRIES - 2));
    // For another receiver it counts anew, and it is still there for it.
    disk.heal();
    if let Some(of_b) = lanes[1].bodies.get(&number) {
        assert_eq!(*of_b, body);
    }
    let (read, told) = patiently(&rig, B, u32::MAX);
    same(&read, &lanes[1], "for the other");
    assert_eq!(told, 0);
}

#[test]
fn an_index_that_cannot_be_read_is_built_again_from_its_segment() {
    let (rig, disk, lanes) = restarted();
    for path in rig.segments() {
        disk.sicken(&path.replace(".seg", ".idx"), Ill::Read(WHOLE), FOR_GOOD);
    }
    for (peer, lane) in [A, B].into_iter().zip(&lanes) {
        let (read, told) = patiently(&rig, peer, u32::MAX);
        same(&read, lane, "built again");
        assert_eq!(told, 0);
        assert_eq!(rig.backlog(peer).messages, lane.bodies.len() as u64);
    }
    let lookup = rig.engine.shared.lookup(*lanes[0].bodies.keys().next().unwrap());
    assert!(lookup.unwrap().body.is_some());
}

#[test]
fn a_stretch_of_which_nobody_can_tell_the_numbers_is_waited_for() {
    let (rig, disk, lanes) = restarted();
    let path = rig.segments().remove(1);
    let index = path.replace(".seg", ".idx");
    // All of its index is damaged behind the fixed part, and of the segment there is one bad sector.
    disk.damage(&index, |bytes| bytes[112..].iter_mut().for_each(|byte| *byte ^= 1));
    disk.sicken(&path, Ill::Read(1024..1536), FOR_GOOD);
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments[1].first, state.segments[1].next.unwrap())
    };
    let (read, told) = patiently(&rig, A, 10 * TRIES);
    assert!(lanes[0].bodies.range(first..next).count() > 5);
    same(&read, &lanes[0], "when it can be read");
    assert_eq!(told, 10 * TRIES);
    assert_eq!(rig.backlog(A).messages, lanes[0].bodies.len() as u64);
    assert!(rig.engine.shared.state.lock().lost.is_empty());
}

#[test]
fn where_the_index_names_what_a_bad_sector_took_the_rest_is_served_in_time() {
    let (rig, disk, lanes) = restarted();
    let number = *lanes[0].bodies.keys().nth(8).unwrap();
    let (path, at) = place_of(&rig, &disk, number);
    // The last peer's part of the index is damaged, its messages are sound.
    disk.damage(&path.replace(".seg", ".idx"), |bytes| *bytes.last_mut().unwrap() ^= 1);
    disk.sicken(&path, Ill::Read(at..at + 1), FOR_GOOD);
    let (read, told) = patiently(&rig, B, u32::MAX);
    assert!(told >= TRIES - 1, "{told}");
    // A block's worth of records around it is out of reach, and each is named.
    let named: Vec<_> = read.damaged.iter().map(|(number, _)| *number).collect();
    let mut all: Vec<_> = read.bodies.keys().copied().chain(named.iter().copied()).collect();
    all.sort_unstable();
    assert_eq!(all, lanes[1].bodies.keys().copied().collect::<Vec<_>>());
    assert!(named.len() < lanes[1].bodies.len() / 2, "{named:?}");
    assert_eq!(rig.backlog(B).messages, lanes[1].bodies.len() as u64, "they wait to be set aside");
}

#[test]
fn a_segment_that_is_gone_with_its_index_sound_is_named_message_by_message() {
    use super::super::storage::Disk;
    let (rig, disk, lanes) = restarted();
    let path = rig.segments().remove(1);
    let (first, next) = {
        let state = rig.engine.shared.state.lock();
        (state.segments[1].first, state.segments[1].next.unwrap())
    };
    disk.unlink(&path).unwrap();
    let (read, told) = patiently(&rig, A, u32::MAX);
    let gone: Vec<_> = lanes[0].bodies.range(first..next).map(|(number, _)| *number).collect();
    let named: Vec<_> = read.damaged.iter().map(|(number, _)| *number).collect();
    assert_eq!((named, told), (gone, 0));
}

#[test]
fn a_look_up_says_that_it_cannot_be_answered_now() {
    let (rig, disk, lanes) = restarted();
    let number = *lanes[0].bodies.keys().next().unwrap();
    let (path, _) = place_of(&rig, &disk, number);
    let index = path.replace(".seg", ".idx");
    disk.sicken(&index, Ill::Open, FOR_GOOD);
    let lookup = rig.engine.shared.lookup(number).map(drop);
    assert_eq!(lookup, Err(LookupError::Unavailable));
    disk.heal();
    assert_eq!(rig.engine.shared.lookup(number).map(drop), Ok(()));
}

/// A receiver waits longer each time before it asks again, and a look-up does not: how often one was asked
/// for says nothing of what can be read.
#[test]
fn look_ups_take_nothing_for_damaged_however_many_there_are() {
    let (mut rig, disk, lanes) = restarted();
    let number = *lanes[0].bodies.keys().nth(8).unwrap();
    let path = rig.segments().pop().unwrap();
    rig.engine.shared.settle(Settle::acked(A, 5, 0, vec![number]));
    rig.write();
    rig.append(90);
    let lanes = rig.lanes();
    let in_it = {
        let state = rig.engine.shared.state.lock();
        let place = state.segments.iter().position(|s| Shared::segment_path(s.id) == path);
        let of_it = &state.segments[place.unwrap()];
        of_it.first + 10..of_it.next.unwrap()
    };
    let index = path.replace(".seg", ".idx");
    let settles_end = IndexFile::open(&disk, &index).unwrap().history_bytes() as usize;
    disk.damage(&index, |bytes| bytes[settles_end - 1] ^= 1);
    let (of_it, at) = place_of(&rig, &disk, in_it.start);
    assert_eq!(of_it, path);
    disk.sicken(&path, Ill::Read(at..at + 1), FOR_GOOD);
    for _ in 0..3 * TRIES {
        assert!(rig.engine.shared.lookup(number).is_ok());
        assert_eq!(rig.engine.shared.state.lock().lost, []);
    }
    disk.heal();
    let life = rig.engine.shared.lookup(number).unwrap();
    assert!(
        life.receivers.iter().any(|(peer, ended)| {
            *peer == A && matches!(ended, Some(Ended::Settled { at_ms: 5, .. }))
        }),
        "{life:?}"
    );
    assert!(rig.lanes() == lanes);
}

/// Every third of what B has open.
fn parked_of(rig: &Rig) -> Vec<MessageNumber> {
    let open = rig.lane(B).bodies.into_keys();
    open.step_by(3).collect()
}

#[test]
fn compaction_waits_where_it_cannot_read_and_loses_nothing() {
    // A few of each segment left for each of the two, so that it is worth copying.
    let thin = || {
        let mut rig = Rig::new();
        rig.append(150);
        for peer in [A, B] {
            let all = rig.lane(peer).bodies.into_keys().enumerate();
            let done = all.filter(|(nth, _)| nth % 9 != 0).map(|(_, number)| number).collect();
            rig.engine.shared.settle(Settle::acked(peer, 5, 0, done));
        }
        for number in parked_of(&rig) {
            let (at_ms, attempts, reason) = (6, 9, "no".to_owned());
            rig.engine.shared.park(&ParkRecord { peer: B, number, at_ms, attempts, reason });
        }
        rig.write();
        // The index in which that stands is in a file.
        rig.append(60);
        rig.write();
        rig.checkpoint(b"thin");
        rig
    };
    let compacted = |rig: &mut Rig| {
        rig.engine.keeper.eager = true;
        rig.write();
        rig.checkpoint(b"done");
        rig.segments().len()
    };
    // Why something is parked is known from the copy alone, once the history of its source is gone.
    let keeps_parks = |rig: &Rig, what: &str| {
        let state = rig.engine.shared.state.lock();
        for cold in state.segments.iter().filter(|segment| is_cold(segment.id)) {
            let index = IndexFile::open(&rig.disk, &Shared::index_path(cold.id)).unwrap();
            let kept: Vec<_> = index.parks().unwrap().iter().map(|park| park.number).collect();
            let held = state.peers[&B].held.iter().find(|held| held.first == cold.first);
            for number in held.into_iter().flat_map(|held| held.parked().iter()) {
                let number = cold.first + u64::from(number);
                assert!(kept.contains(&number), "{what}: why {number} is parked is lost");
            }
        }
    };
    let mut well = thin();
    let (lanes, before, from) = (well.lanes(), well.segments().len(), well.disk.turns());
    let after = compacted(&mut well);
    let turns = well.disk.turns() - from;
    assert!(after < before && turns > 10, "{before} to {after} in {turns}");
    keeps_parks(&well, "well");
    for length in [1, FOR_GOOD / 2] {
        for nth in 1..=turns {
            let mut rig = thin();
            let at = rig.disk.turns() + nth;
            rig.disk.fail_turns(at..at + length);
            compacted(&mut rig);
            let what = format!("{length} from {nth} on");
            assert!(!rig.engine.shared.is_dead(), "{what}: {:?}", rig.engine.shared.refusal());
            rig.disk.heal();
            assert!(rig.lanes() == lanes, "{what}");
            keeps_parks(&rig, &what);
            let reopened = Rig::open(&rig.crashed()).unwrap();
            assert!(reopened.lanes() == lanes, "{what}, opened again");
        }
    }
}
