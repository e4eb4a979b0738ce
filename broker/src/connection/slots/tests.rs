use super::super::credit::Credit;
use super::super::intake::Intake;
use super::*;
use actix::{AsyncContext, Context};
use bytes::BytesMut;
use restante_actors::directory::Directory;
use restante_actors::link::Link;
use restante_protocol::codec::{Limits, put_frame};
use restante_protocol::control::Credit as Allowed;
use restante_protocol::frame::Frame;

const SLOT: u32 = 3;

/// An attachment to a peer that does not run: its mailbox takes a few messages and is full.
struct Busy {
    slots: Slots,
    tasks: Tasks,
    addr: Addr<Peer>,
    _context: Context<Peer>,
}

impl Busy {
    fn new() -> Busy {
        let context = Context::<Peer>::new();
        let (addr, mut slots) = (context.address(), Slots::default());
        slots.offer(&Outbox::new(1, 1), SLOT, 77).unwrap();
        slots.accepted(SLOT, Offer::new(addr.clone(), 77)).unwrap();
        Busy { slots, tasks: Tasks::default(), addr, _context: context }
    }

    fn value(&mut self, tag: u64, value: &[u8]) {
        self.slots.ack_value(&AckValue { slot: SLOT, tag, value });
    }

    fn forward(&mut self) -> Result<(), Refusal> {
        self.slots.forward(&mut self.tasks)
    }

    fn unsent(&mut self) -> Unsent {
        self.slots.by_slot.get_mut(&SLOT).unwrap().take_unsent().unwrap()
    }
}

/// The tags of values, and of nacks negated.
fn tags(unsent: &Unsent) -> Vec<i64> {
    let tag = |word: &Word| match word {
        Word::Value(value) => value.tag as i64,
        Word::Nack(nack) => -(nack.tag as i64),
    };
    unsent.words.iter().map(tag).collect()
}

#[test]
fn however_often_a_tag_is_acked_in_one_read_its_peer_hears_of_it_once() {
    let outbox = Outbox::new(1, 1);
    let mut slots = Slots::default();
    slots.offer(&outbox, 3, 77).unwrap();
    let range = |first, last| TagRange { first, last };
    for frame in [&[range(5, 9)][..], &[range(1, 3), range(7, 7)], &[range(2, 5)], &[range(11, 12)]]
    {
        slots.ack(Ack { slot: 3, ranges: frame.into() });
    }
    let acked = slots.by_slot.get_mut(&3).unwrap().take_acked().unwrap();
    assert_eq!(acked.ranges[..], [range(1, 9), range(11, 12)]);
    slots.ack(Ack { slot: 3, ranges: [range(1, 2), range(4, 4)][..].into() });
    let acked = slots.by_slot.get_mut(&3).unwrap().take_acked().unwrap();
    assert_eq!(acked.ranges[..], [range(1, 2), range(4, 4)]);
}

#[test]
fn however_much_one_read_answers_a_busy_peer_nothing_of_it_is_lost() {
    let mut busy = Busy::new();
    for tag in 1..=2_000 {
        busy.value(tag, b"done");
    }
    busy.slots.grant(&Grant { slot: SLOT, messages: 4_000 });
    busy.forward().unwrap();
    let first = busy.slots.by_slot[&SLOT].words.len() as u64;
    assert!((1_900..2_000).contains(&first), "the mailbox took some: {first} are left");
    assert_eq!(busy.slots.by_slot[&SLOT].granted, None, "it has taken the grant");

    // Another read while one message waits for its turn.
    for tag in 2_001..=20_000 {
        busy.value(tag, b"done");
    }
    busy.slots.grant(&Grant { slot: SLOT, messages: 9_000 });
    busy.slots.grant(&Grant { slot: SLOT, messages: 8_000 });
    let (tag, permanent, retry_after_ms, reason) = (20_001, true, 0, "no");
    busy.slots.nack(&Nack { slot: SLOT, tag, permanent, retry_after_ms, reason });
    for tag in (30_000..50_000).step_by(2) {
        busy.slots.ack(Ack { slot: SLOT, ranges: [TagRange { first: tag, last: tag }][..].into() });
    }
    busy.forward().unwrap();
    let unsent = busy.unsent();
    let expected = (2_001 - first as i64..=20_000).chain([-20_001]);
    assert_eq!(tags(&unsent), expected.collect::<Vec<_>>());
    assert_eq!(unsent.granted.as_ref().unwrap().messages, 9_000);
    assert_eq!(unsent.acked.as_ref().unwrap().ranges.len(), 10_000);
}

/// With a detach or a flush everything goes into the mailbox at once, however full that is.
#[test]
fn what_a_busy_peer_is_told_counts_until_it_has_taken_it() {
    for way in ["leave", "flush"] {
        let mut busy = Busy::new();
        for tag in 1..=2_000 {
            let (permanent, retry_after_ms, reason) = (true, 0, "no");
            busy.slots.nack(&Nack { slot: SLOT, tag, permanent, retry_after_ms, reason });
        }
        busy.slots.ack(Ack { slot: SLOT, ranges: [TagRange { first: 1, last: 9 }][..].into() });
        busy.forward().unwrap();
        assert!(busy.slots.by_slot[&SLOT].sending, "the mailbox is full");
        let told = match way {
            "leave" => vec![busy.slots.leave(SLOT).unwrap().told],
            _ => busy.slots.tell_all(),
        };
        let entry = &busy.slots.by_slot[&SLOT];
        assert!(entry.words.is_empty() && entry.acked.is_empty(), "{way}: some still wait");
        assert!(busy.slots.kept.get() > 0, "{way}: they count until the peer has taken them");
        drop(told);
        assert_eq!(busy.slots.kept.get(), 0, "{way}");
    }
}

#[test]
fn a_grant_that_comes_before_its_peer_has_answered_waits_for_that() {
    let (context, mut slots) = (Context::<Peer>::new(), Slots::default());
    let mut tasks = Tasks::default();
    slots.offer(&Outbox::new(1, 1), SLOT, 77).unwrap();
    slots.grant(&Grant { slot: SLOT, messages: 5 });
    slots.forward(&mut tasks).unwrap();
    assert_eq!(slots.by_slot[&SLOT].granted, Some(5));
    slots.accepted(SLOT, Offer::new(context.address(), 77)).unwrap();
    slots.forward(&mut tasks).unwrap();
    assert_eq!(slots.by_slot[&SLOT].granted, None);
}

#[test]
fn who_answers_faster_than_a_busy_peer_can_take_is_told_at_a_bound() {
    let mut busy = Busy::new();
    let value = [0; 60_000];
    let mut tag = 0;
    let refusal = loop {
        tag += 1;
        busy.value(tag, &value);
        if let Err(refusal) = busy.forward() {
            break refusal;
        }
        assert!(tag as usize * value.len() < 2 * KEPT_BYTES_MAX, "never told");
    };
    assert_eq!(refusal.code, Code::Overloaded);
    let kept = busy.slots.by_slot[&SLOT].words.len();
    assert!(kept * value.len() > KEPT_BYTES_MAX - 2 * value.len());
    // What a flush carries off counts until it has got there.
    let unsent = busy.unsent();
    assert_eq!(tags(&unsent).last(), Some(&(tag as i64)), "the last one too");
    busy.value(tag + 1, &value);
    assert!(busy.forward().is_err());
    drop(unsent);
    assert!(busy.forward().is_ok());
}

#[test]
fn a_full_window_of_short_answers_fits_the_bound() {
    let mut busy = Busy::new();
    for tag in 1..=65_536 {
        busy.value(tag, &[0; 32]);
        if tag % 10_000 == 0 {
            busy.forward().unwrap();
        }
    }
    busy.forward().unwrap();
    assert!(busy.addr.connected());
}

#[test]
fn the_answers_of_one_read_arrive_as_they_were_written() {
    let mut busy = Busy::new();
    let mut bytes = BytesMut::new();
    for tag in 1..=2_000 {
        let value = AckValue { slot: SLOT, tag, value: b"v" };
        put_frame(&mut bytes, &Frame::AckValue(value)).unwrap();
    }
    put_frame(&mut bytes, &Frame::Grant(Grant { slot: SLOT, messages: 4_000 })).unwrap();
    assert!(bytes.len() < 256 * 1024, "one read");
    let (limits, directory) = (Limits::with_payload(1_000), Directory::default());
    let mut intake = Intake::new(limits, None, Credit::new(Allowed::default()));
    intake.pass(&bytes, &mut busy.slots, &directory).unwrap();
    let unsent = busy.unsent();
    assert_eq!(tags(&unsent), (1..=2_000).collect::<Vec<_>>());
    assert_eq!(unsent.granted.as_ref().unwrap().messages, 4_000);
    assert_eq!(intake.settled, 2_000);
}

#[test]
fn an_attachment_that_its_peer_ends_before_it_is_answered_is_refused() {
    let (context, mut slots) = (Context::<Peer>::new(), Slots::default());
    let outbox = Outbox::new(1, 1);
    let link = slots.offer(&outbox, SLOT, 77).unwrap();
    link.close(&Refusal::new(Code::Paused, "held"));
    let refusal = slots.accepted(SLOT, Offer::new(context.address(), 77)).unwrap_err();
    assert_eq!(refusal, Refusal::new(Code::Paused, "held"));
    assert!(!outbox.is_busy(), "nothing is said but the answer");
    assert!(outbox.listen(std::task::Waker::noop()).closed.is_empty());
    slots.offer(&outbox, SLOT, 78).unwrap();
}
