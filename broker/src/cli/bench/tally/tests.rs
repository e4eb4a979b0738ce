//! Every way a message can go, counted.

use super::*;
use restante_protocol::id::MessageId;
use smallvec::smallvec;

const MS: u64 = 1_000_000;

/// One producer whose sequences start at 100; three receivers, two for each message.
fn tally(messages: u64) -> Tally {
    let mut tally = Tally::new(3, 2, &[100]).unwrap();
    tally.window = 0..u64::MAX;
    for number in 0..messages {
        tally.published(0, number);
    }
    tally
}

fn confirm(tally: &mut Tally, first_sequence: u64, count: u32) -> Result<u32, NotOpen> {
    let confirm = Confirm { first_sequence, count, first_id: MessageId(1) };
    tally.confirmed(0, &confirm, 2 * MS)
}

fn deliver(tally: &mut Tally, number: u64, receiver: u32) {
    let stamp = Stamp { producer: 0, number, intended_ns: number };
    tally.delivered(stamp, receiver, false, 5 * MS);
}

#[test]
fn a_delivery_counts_when_both_ack_and_confirm_are_there() {
    let mut tally = tally(1);
    deliver(&mut tally, 0, 0);
    assert_eq!((tally.counts.delivered, tally.counts.owed), (0, 0));
    assert_eq!(confirm(&mut tally, 100, 1), Ok(1));
    assert_eq!((tally.counts.delivered, tally.counts.missing()), (1, 1));
    deliver(&mut tally, 0, 1);
    assert_eq!((tally.counts.delivered, tally.counts.missing()), (2, 0));
    assert_eq!(tally.counts.unconfirmed(), 0);
    assert_eq!(tally.sent[0].open.len(), 0, "what is done is forgotten");
    assert_eq!((tally.confirm.len(), tally.confirm.max()), (1, 2_000));
    assert_eq!((tally.deliver.len(), tally.deliver.min()), (2, 5_000));
}

#[test]
fn receivers_take_turns_and_others_are_foreign() {
    let mut tally = tally(3);
    assert_eq!(confirm(&mut tally, 100, 3), Ok(3));
    for (number, receivers) in [(0, [0, 1]), (1, [2, 0]), (2, [1, 2])] {
        assert_eq!(tally.first_receiver(0, number), receivers[0]);
        for receiver in receivers {
            deliver(&mut tally, number, receiver);
        }
    }
    assert_eq!((tally.counts.delivered, tally.counts.foreign), (6, 0));
    deliver(&mut tally, 2, 0);
    deliver(&mut tally, 3, 0);
    tally.delivered(Stamp { producer: 9, number: 0, intended_ns: 0 }, 0, false, 0);
    assert_eq!((tally.counts.delivered, tally.counts.foreign), (6, 3));
}

#[test]
fn repeats_are_duplicates_before_and_after_the_message_is_done() {
    let mut tally = tally(1);
    for _ in 0..2 {
        deliver(&mut tally, 0, 0);
    }
    assert_eq!(confirm(&mut tally, 100, 1), Ok(1));
    for _ in 0..2 {
        deliver(&mut tally, 0, 1);
    }
    assert_eq!((tally.counts.delivered, tally.counts.duplicates), (2, 2));
}

#[test]
fn confirms_out_of_turn_are_found() {
    let mut tally = tally(2);
    assert_eq!(confirm(&mut tally, 99, 1), Err(NotOpen { sequence: 99 }));
    assert_eq!(confirm(&mut tally, 101, 1), Ok(1));
    assert_eq!(confirm(&mut tally, 101, 1), Err(NotOpen { sequence: 101 }));
    assert_eq!(confirm(&mut tally, 100, 1), Ok(1));
    assert_eq!(confirm(&mut tally, 102, 1), Err(NotOpen { sequence: 102 }));
}

#[test]
fn what_was_refused_is_not_owed() {
    let mut tally = tally(2);
    let refuse = |sequence, id, receivers| Refuse {
        sequence,
        id,
        code: Code::PeerQuota,
        receivers,
        members: Vec::new(),
        detail: "full".to_owned(),
    };
    // Message 1 goes to the receivers 2 and 0; 0 has no room.
    let partly = refuse(101, Some(MessageId(7)), smallvec![(0, Code::PeerQuota)]);
    assert_eq!(tally.refused(0, &partly, 0), Ok(()));
    assert_eq!((tally.counts.confirmed, tally.counts.owed), (1, 1));
    assert_eq!(tally.refused(0, &refuse(100, None, smallvec![]), 0), Ok(()));
    assert_eq!((tally.counts.refused, tally.counts.owed), (1, 1));
    deliver(&mut tally, 1, 2);
    assert_eq!((tally.counts.missing(), tally.sent[0].open.len()), (0, 0));
    deliver(&mut tally, 1, 0);
    assert_eq!(tally.counts.duplicates, 1, "a refused receiver is not to get it");
    assert_eq!(tally.refusal, Some((Code::PeerQuota, "full".to_owned())));
}
