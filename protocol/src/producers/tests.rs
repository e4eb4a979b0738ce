//! Repeats get the answer that was given, whatever was forgotten in between.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const ID: ProducerId = ProducerId(0xfeed);

fn open(producers: &mut Producers, id: ProducerId) -> Opened {
    let event = producers.open(id, None, |_| false).unwrap();
    producers.apply(&event).unwrap()
}

fn opened() -> (Producers, Opened) {
    let mut producers = Producers::default();
    let opened = open(&mut producers, ID);
    (producers, opened)
}

fn restarted(producers: &Producers) -> Producers {
    let mut bytes = Vec::new();
    producers.snapshot(&mut bytes);
    Producers::restore(&bytes, PRODUCERS_MAX_DEFAULT).unwrap()
}

fn run(first_sequence: u64, count: u32, first_number: u64) -> Run {
    Run { first_sequence, count, first_number, accepted_ms: 1_000 }
}

fn refused(detail: &str) -> Refused {
    let (receivers, members) = (SmallVec::new(), Box::default());
    Refused { code: Code::PeerQuota, receivers, members, detail: detail.into() }
}

/// Decides a sequence and names the decision.
fn decide(producers: &mut Producers, at: Opened, sequence: u64) -> String {
    match producers.session(at.index, at.epoch) {
        Err(error) => format!("{:?}", error.refusal().code),
        Ok(mut session) => match session.decide(sequence) {
            Decision::New => "new".to_owned(),
            Decision::Pending(accepted) => format!("pending {}", accepted.number),
            Decision::Confirmed(accepted) => match accepted.refused {
                None => format!("confirmed {}", accepted.number),
                Some(refused) => format!("confirmed {} but {}", accepted.number, refused.detail),
            },
            Decision::Refused(refused) => format!("refused {}", refused.detail),
            Decision::Evicted => "evicted".to_owned(),
            Decision::Invalid => "invalid".to_owned(),
        },
    }
}

#[test]
fn a_repeat_gets_the_answer_that_was_given() {
    let (mut producers, at) = opened();
    assert_eq!(at, Opened { index: 1, epoch: 1, next_sequence: 1 });
    for sequence in 1..=6 {
        assert_eq!(decide(&mut producers, at, sequence), "new");
    }
    assert_eq!(decide(&mut producers, at, 3), "invalid", "it is in hand");
    producers.record_run(at.index, run(1, 3, 101));
    producers.record_refusal(at.index, 4, refused("full"));
    producers.record_run(at.index, run(5, 2, 104));
    producers.record_refusal(at.index, 6, refused("partly full"));
    producers.set_durable(103);
    let answers: Vec<String> =
        (1..=7).map(|sequence| decide(&mut producers, at, sequence)).collect();
    let expected = ["confirmed 101", "confirmed 102", "confirmed 103", "refused full"];
    assert_eq!(answers[..4], expected);
    assert_eq!(answers[4..], ["pending 104", "pending 105", "new"]);
    producers.set_durable(105);
    assert_eq!(decide(&mut producers, at, 6), "confirmed 105 but partly full");
}

#[test]
fn after_a_restart_accepted_sequences_are_confirmed_and_lost_refusals_are_judged_afresh() {
    let (mut producers, at) = opened();
    (1..=4).for_each(|sequence| assert_eq!(decide(&mut producers, at, sequence), "new"));
    producers.record_run(at.index, run(1, 2, 50));
    producers.record_refusal(at.index, 3, refused("full"));
    let mut producers = restarted(&producers);
    producers.replay_run(at.index, run(4, 1, 60));
    let again = open(&mut producers, ID);
    assert_eq!(again, Opened { index: 1, epoch: 2, next_sequence: 5 });
    assert_eq!(decide(&mut producers, again, 2), "confirmed 51");
    assert_eq!(decide(&mut producers, again, 4), "confirmed 60");
    assert_eq!(decide(&mut producers, again, 3), "new");
    assert_eq!(decide(&mut producers, again, 3), "invalid", "it is in hand");
    producers.record_run(again.index, run(3, 1, 70));
    producers.set_durable(70);
    assert_eq!(decide(&mut producers, again, 3), "confirmed 70");
}

#[test]
fn a_client_that_saw_its_refusals_goes_on_above_them_after_a_restart() {
    let (mut producers, at) = opened();
    (1..=3).for_each(|sequence| assert_eq!(decide(&mut producers, at, sequence), "new"));
    producers.record_run(at.index, run(1, 1, 10));
    let checkpoint = restarted(&producers);
    producers.record_refusal(at.index, 2, refused("full"));
    producers.record_refusal(at.index, 3, refused("full"));
    let mut before_any_publish = opened().0;
    before_any_publish.replay_run(at.index, run(1, 1, 10));
    for mut producers in [checkpoint, before_any_publish] {
        let again = open(&mut producers, ID);
        assert!((2..=4).contains(&again.next_sequence));
        assert_eq!(decide(&mut producers, again, 4), "new");
        assert_eq!(decide(&mut producers, again, 1), "confirmed 10");
    }
}

#[test]
fn the_newest_hello_speaks_for_the_identity() {
    let (mut producers, old) = opened();
    assert_eq!(decide(&mut producers, old, 1), "new");
    let new = open(&mut producers, ID);
    assert_eq!((new.index, new.epoch), (old.index, 2));
    assert_eq!(decide(&mut producers, old, 2), "ProducerSuperseded");
    assert_eq!(decide(&mut producers, new, 2), "new");
}

#[test]
fn what_an_old_connection_left_in_hand_is_judged_afresh() {
    let (mut producers, old) = opened();
    producers.record_run(old.index, run(1, 1, 5));
    assert_eq!(decide(&mut producers, old, 2), "new");
    let new = open(&mut producers, ID);
    assert_eq!(decide(&mut producers, new, 2), "new");
}

#[test]
fn below_the_oldest_run_kept_a_repeat_is_evicted_by_name() {
    let (mut producers, at) = opened();
    // Numbers two apart do not join into one run.
    for sequence in 1..=RUNS_MAX as u64 + 10 {
        assert_eq!(decide(&mut producers, at, sequence), "new");
        producers.record_run(at.index, run(sequence, 1, 2 * sequence));
    }
    producers.set_durable(u64::MAX);
    for mut producers in [producers.clone(), restarted(&producers)] {
        assert_eq!(decide(&mut producers, at, 10), "evicted");
        assert_eq!(decide(&mut producers, at, 11), "confirmed 22");
    }
}

#[test]
fn a_producer_that_was_forgotten_is_told_so_and_begins_again() {
    let mut producers = Producers::new(1);
    let old = open(&mut producers, ID);
    open(&mut producers, ID);
    assert_eq!(decide(&mut producers, Opened { epoch: 2, ..old }, 1), "new");
    producers.record_run(old.index, run(1, 1, 5));
    let other = producers.open(ProducerId(7), None, |_| false).unwrap();
    assert_eq!(other.evicts, [old.index]);
    assert_eq!((other.index, other.epoch), (2, 1), "nothing has been forgotten yet");
    producers.apply(&other).unwrap();
    assert_eq!(producers.len(), 1);
    assert_eq!(decide(&mut producers, old, 2), "OutcomeEvicted");
    let back = open(&mut producers, ID);
    assert_eq!(back, Opened { index: 3, epoch: 3, next_sequence: 1 }, "no epoch, no index twice");
    assert_eq!(decide(&mut producers, back, 2), "evicted");
    assert_eq!(decide(&mut producers, back, 1), "new");
    assert_eq!(decide(&mut producers, back, 2), "new");
}

#[test]
fn a_forgotten_producer_that_says_what_it_never_sent_goes_on_there() {
    let mut producers = Producers::default();
    let event = producers.open(ID, Some(5_001), |_| false).unwrap();
    let at = producers.apply(&event).unwrap();
    assert_eq!(at.next_sequence, 5_001);
    for mut producers in [producers.clone(), restarted(&producers)] {
        assert_eq!(decide(&mut producers, at, 4_990), "evicted");
        assert_eq!(decide(&mut producers, at, 5_000), "evicted");
        assert_eq!(decide(&mut producers, at, 5_001), "new");
        assert_eq!(decide(&mut producers, at, 5_002), "new");
    }
}

#[test]
fn a_known_producer_that_says_what_it_never_sent_may_still_repeat_what_it_did() {
    let (mut producers, at) = opened();
    producers.record_run(at.index, run(1, 1, 10));
    producers.set_durable(10);
    let event = producers.open(ID, Some(6), |_| false).unwrap();
    let again = producers.apply(&event).unwrap();
    assert_eq!(again.next_sequence, 6);
    let answers: Vec<String> =
        [1, 3, 6, 5].iter().map(|sequence| decide(&mut producers, again, *sequence)).collect();
    assert_eq!(answers, ["confirmed 10", "new", "new", "new"]);
    for bad in [0, u64::MAX] {
        assert_eq!(producers.open(ID, Some(bad), |_| false).unwrap_err().code, Code::BadSequence);
    }
}

#[test]
fn a_long_gap_is_judged_afresh_in_any_number_of_pieces() {
    let (mut producers, at) = opened();
    producers.record_run(at.index, run(1, 1, 1));
    let event = producers.open(ID, Some(100_001), |_| false).unwrap();
    let at = producers.apply(&event).unwrap();
    for sequence in 2..=100_000 {
        assert_eq!(decide(&mut producers, at, sequence), "new");
    }
    producers.record_run(at.index, run(2, 49_999, 2));
    producers.record_refusal(at.index, 60_000, refused("no"));
    for sequence in [50_001, 59_999, 60_001, 100_000] {
        assert_eq!(decide(&mut producers, at, sequence), "invalid", "{sequence} is in hand");
    }
    assert_eq!(decide(&mut producers, at, 50_000), "pending 50000");
    assert_eq!(decide(&mut producers, at, 60_000), "refused no");
    producers.record_run(at.index, run(50_001, 9_999, 60_000));
    producers.record_run(at.index, run(60_001, 40_000, 70_000));
    assert_eq!(decide(&mut producers, at, 100_000), "pending 109999");
}

#[test]
fn the_least_recently_used_producers_make_room() {
    let mut producers = Producers::new(2 * EVICTIONS);
    let all: Vec<Opened> =
        (0..2 * EVICTIONS).map(|id| open(&mut producers, ProducerId(id as u128))).collect();
    for used in &all[..EVICTIONS] {
        producers.session(used.index, used.epoch).map(|_| ()).unwrap();
    }
    let event = producers.open(ID, None, |_| false).unwrap();
    let idle: Vec<u32> = all[EVICTIONS..].iter().map(|opened| opened.index).collect();
    assert_eq!(event.evicts, idle);
    let mut replayed = restarted(&producers);
    producers.apply(&event).unwrap();
    replayed.apply(&event).unwrap();
    assert_eq!((producers.len(), replayed.len()), (EVICTIONS + 1, EVICTIONS + 1));
    assert_eq!(
        producers.apply(&event),
        Err(StateError::OutOfOrder { what: "producer", id: event.index })
    );
}

#[test]
fn a_flood_of_equal_refusals_is_one_and_of_different_ones_is_bounded() {
    let (mut producers, at) = opened();
    for sequence in 1..=100_000 {
        decide(&mut producers, at, sequence);
        producers.record_refusal(at.index, sequence, refused("full"));
    }
    assert!(producers.refusal_bytes < 1_000);
    assert_eq!(decide(&mut producers, at, 1), "refused full");
    let (receivers, detail) = (SmallVec::new(), "x".repeat(1_000));
    for sequence in 100_001..=200_000 {
        decide(&mut producers, at, sequence);
        let detail = format!("{sequence} {detail}").into();
        let (receivers, members) = (receivers.clone(), Box::default());
        let refused = Refused { code: Code::PeerQuota, receivers, members, detail };
        producers.record_refusal(at.index, sequence, refused);
    }
    assert!(producers.refusal_bytes <= REFUSALS_MAX * 1_200);
    assert_eq!(decide(&mut producers, at, 150_000), "new", "forgotten, so judged afresh");
    assert!(decide(&mut producers, at, 200_000).starts_with("refused 200000"));
}

#[test]
fn outcomes_of_all_producers_together_are_bounded() {
    let mut producers = Producers::default();
    let mut number = 0;
    let all: Vec<Opened> = (0..40).map(|id| open(&mut producers, ProducerId(id))).collect();
    for at in &all {
        for sequence in 1..=RUNS_MAX as u64 {
            number += 2;
            producers.record_run(at.index, run(sequence, 1, number));
        }
        assert!(producers.runs_total <= RUNS_TOTAL_MAX);
        assert_eq!(producers.runs_total, producers.by_index.values().map(Producer::runs).sum());
    }
    let (first, last) = (all[0], all[39]);
    let newest = RUNS_MAX as u64;
    assert_eq!(decide(&mut producers, first, 1), "evicted");
    assert_ne!(decide(&mut producers, first, newest), "evicted");
    assert_ne!(decide(&mut producers, last, 1), "evicted");
}

#[test]
fn impossible_sequences_are_invalid_and_harm_nothing() {
    let (mut producers, at) = opened();
    for sequence in [0, u64::MAX, SEQUENCE_MAX + 1] {
        assert_eq!(decide(&mut producers, at, sequence), "invalid");
        producers.record_refusal(at.index, sequence, refused("no"));
        producers.record_run(at.index, run(sequence, 1, 1));
    }
    assert_eq!(decide(&mut producers, at, 1), "new");
    assert_eq!(decide(&mut producers, at, SEQUENCE_MAX), "new");
    producers.record_run(at.index, run(SEQUENCE_MAX, 1, 1));
    assert_eq!(decide(&mut producers, at, SEQUENCE_MAX), "pending 1");
    assert_eq!(decide(&mut restarted(&producers), at, SEQUENCE_MAX), "confirmed 1");
}

/// What a client may do, and what may happen to it.
#[derive(Clone, Debug)]
enum Step {
    /// Publishes the next few, all accepted (true) or refused.
    Publish(u8, bool),
    /// Repeats one sequence, so far back.
    Repeat(u8),
    /// Everything appended so far is on disk.
    Sync,
    /// A checkpoint, then a crash: refusals are lost, so is what was not synced.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u8..5, any::<bool>()).prop_map(|(count, good)| Step::Publish(count, good)),
        4 => (0u8..30).prop_map(Step::Repeat),
        2 => Just(Step::Sync),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// Against a map of everything that ever happened: an accepted sequence keeps its number, a
    /// refused one is refused again or judged afresh, nothing is accepted twice.
    #[test]
    fn no_sequence_is_accepted_twice(steps in steps()) {
        let (mut producers, mut at) = opened();
        let mut accepted: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut next, mut number, mut durable) = (1u64, 1u64, 0u64);
        for step in steps {
            match step {
                Step::Publish(count, good) => {
                    for _ in 0..count {
                        prop_assert_eq!(decide(&mut producers, at, next), "new");
                        if good {
                            producers.record_run(at.index, run(next, 1, number));
                            accepted.insert(next, number);
                            number += 1;
                        } else {
                            producers.record_refusal(at.index, next, refused("no"));
                        }
                        next += 1;
                    }
                }
                Step::Repeat(back) => {
                    let sequence = next.saturating_sub(u64::from(back));
                    if sequence == 0 || sequence == next {
                        continue;
                    }
                    let answer = decide(&mut producers, at, sequence);
                    match accepted.get(&sequence) {
                        Some(number) if *number <= durable => {
                            prop_assert_eq!(answer, format!("confirmed {number}"));
                        }
                        Some(number) => prop_assert_eq!(answer, format!("pending {number}")),
                        None if answer == "new" => {
                            producers.record_run(at.index, run(sequence, 1, number));
                            accepted.insert(sequence, number);
                            number += 1;
                        }
                        None => prop_assert_eq!(answer, "refused no"),
                    }
                }
                Step::Sync => {
                    durable = number - 1;
                    producers.set_durable(durable);
                }
                Step::Crash => {
                    accepted.retain(|_, number| *number <= durable);
                    let mut survivor = Producers::default();
                    let event = ProducerOpened { index: 1, id: ID, epoch: at.epoch, unused_from: 1, evicts: vec![] };
                    survivor.apply(&event).unwrap();
                    for (sequence, number) in &accepted {
                        survivor.replay_run(1, run(*sequence, 1, *number));
                    }
                    producers = restarted(&survivor);
                    at = open(&mut producers, ID);
                    next = accepted.keys().next_back().map_or(1, |last| last + 1);
                    prop_assert_eq!(at.next_sequence, next);
                    number = durable + 1;
                }
            }
        }
    }

    #[test]
    fn damaged_snapshots_are_refused_or_read_but_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let (mut producers, at) = opened();
        open(&mut producers, ProducerId(2));
        for sequence in 1..20 {
            producers.record_run(at.index, run(2 * sequence, 1, 3 * sequence));
        }
        let mut bytes = Vec::new();
        producers.snapshot(&mut bytes);
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(mut producers) = Producers::restore(&bytes, 10) {
            decide(&mut producers, at, 5);
            producers.record_run(at.index, run(5, 1, 9));
        }
    }
}

#[test]
fn no_part_of_a_snapshot_is_a_snapshot() {
    let (mut producers, at) = opened();
    producers.record_run(at.index, run(1, 5, 9));
    let mut bytes = Vec::new();
    producers.snapshot(&mut bytes);
    for end in 0..bytes.len() {
        assert!(Producers::restore(&bytes[..end], 10).is_err(), "of {end} bytes");
    }
    bytes.push(0);
    assert!(Producers::restore(&bytes, 10).is_err());
}
