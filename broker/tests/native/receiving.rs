//! Receiving over a real socket: several attachments, acks, flushes, backpressure.

use crate::wire::{Bench, Wire, publish};
use bytes::BytesMut;
use restante_protocol::control::{AttachAs, Reply, Request};
use restante_protocol::limits::SLOTS_MAX;
use restante_protocol::refusal::Code;

fn refusal(wire: &mut Wire, slot: u32, name: &str) -> Option<Code> {
    let receivers = vec![AttachAs { slot, name: name.parse().unwrap(), grant: None }];
    match wire.ask(Request::Attach { receivers }) {
        Ok(Reply::Attached(results)) => results[0].refusal.as_ref().map(|refusal| refusal.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_connection_receives_for_many() {
    let bench = Bench::new();
    let mut receiver = bench.guest();
    let results = receiver.attach(&["a", "b", "c"]);
    assert!(results.iter().all(|result| result.created && result.first_tag == 1));
    let mut producer = bench.producer(1, &["a", "b", "c"]);
    producer.publish(1, &[0, 1, 2], b"all");
    producer.publish(2, &[1], b"one");
    producer.confirmed(2);
    let mut heard = receiver.lines(4);
    heard.sort();
    assert_eq!(heard, ["deliver 0 1 all", "deliver 1 1 all", "deliver 1 2 one", "deliver 2 1 all"]);
}

#[test]
fn what_cannot_be_attached_is_told_by_name() {
    let bench = Bench::new();
    let mut first = bench.receiver(&["a"]);
    let mut second = bench.guest();
    assert_eq!(refusal(&mut second, 0, "a"), Some(Code::AlreadyAttached));
    assert_eq!(refusal(&mut second, 0, "b"), None);
    assert_eq!(refusal(&mut second, 0, "c"), Some(Code::AlreadyAttached), "the slot is taken");
    assert_eq!(refusal(&mut second, SLOTS_MAX, "c"), Some(Code::TooLarge));
    assert!(first.ask(Request::Detach { slot: 0 }).is_ok());
    assert_eq!(refusal(&mut second, 7, "a"), None, "free again");
    let gone = first.ask(Request::Detach { slot: 0 }).unwrap_err();
    assert_eq!(gone.code, Code::NotFound);
}

#[test]
fn what_was_not_acked_is_delivered_to_the_next() {
    let bench = Bench::new();
    let mut producer = bench.producer(1, &["a"]);
    let mut first = bench.receiver(&["a"]);
    for sequence in 1..=4 {
        producer.publish(sequence, &[0], format!("m{sequence}").as_bytes());
    }
    producer.confirmed(4);
    first.lines(4);
    first.ack(0, 2, 3);
    assert!(first.ask(Request::Flush).is_ok());
    drop(first);
    let mut second = attach_until_free(&bench, "a");
    let tag = again(&mut second, "m1");
    second.ack(0, tag, tag);
    again(&mut second, "m4");
}

/// Hears a delivery of this payload, flagged; its tag.
fn again(wire: &mut Wire, payload: &str) -> u64 {
    let heard = wire.line();
    let words: Vec<_> = heard.split(' ').collect();
    assert!(words[0] == "deliver" && words[3..] == [payload, "again"], "{heard}");
    words[2].parse().unwrap()
}

/// The node sees the end of a connection a moment after it came.
fn attach_until_free(bench: &Bench, name: &str) -> Wire {
    for _ in 0..1_000 {
        let mut wire = bench.guest();
        if refusal(&mut wire, 0, name).is_none() {
            return wire;
        }
    }
    panic!("{name} never became free");
}

#[test]
fn a_flush_is_answered_once_the_acks_before_it_are_kept() {
    let mut bench = Bench::new();
    let mut receiver = bench.receiver(&["a", "b"]);
    let mut producer = bench.producer(1, &["a", "b"]);
    for sequence in 1..=3 {
        producer.publish(sequence, &[0, 1], format!("m{sequence}").as_bytes());
    }
    producer.confirmed(3);
    receiver.lines(6);
    receiver.ack(0, 1, 3);
    receiver.ack(1, 1, 2);
    assert_eq!(receiver.ask(Request::Flush), Ok(Reply::Done));
    bench.restart();
    let mut receiver = bench.receiver(&["a", "b"]);
    again(&mut receiver, "m3");
    let (others, done) = receiver.ask_amid(Request::Flush);
    assert_eq!((others.len(), done), (0, Ok(Reply::Done)), "{others:?}");
}

#[test]
fn a_grant_is_all_a_receiver_gets() {
    let bench = Bench::new();
    let mut receiver = bench.guest();
    let receivers = vec![AttachAs { slot: 0, name: "a".parse().unwrap(), grant: Some(2) }];
    receiver.ask(Request::Attach { receivers }).unwrap();
    let mut producer = bench.producer(1, &["a"]);
    for sequence in 1..=5 {
        producer.publish(sequence, &[0], format!("m{sequence}").as_bytes());
    }
    producer.confirmed(5);
    assert_eq!(receiver.lines(2), ["deliver 0 1 m1", "deliver 0 2 m2"]);
    let (heard, _) = receiver.ask_amid(Request::Flush);
    assert!(heard.is_empty(), "{heard:?}");
    receiver.grant(0, 3);
    assert_eq!(receiver.line(), "deliver 0 3 m3");
}

#[test]
fn a_receiver_that_reads_slowly_gets_everything_in_order() {
    let bench = Bench::new();
    let mut receiver = bench.receiver(&["a", "b"]);
    let mut producer = bench.producer(1, &["a", "b"]);
    // Several times what sockets and outboxes hold.
    let (count, payload) = (1_500u64, vec![7; 10_000]);
    for sequence in 1..=count {
        producer.send(&publish(sequence, &[0, 1], &payload));
        if sequence % 100 == 0 {
            producer.confirmed(100);
        }
    }
    let (mut next, mut acked) = ([1u64; 2], BytesMut::new());
    while next != [count + 1; 2] {
        let (slot, tag) = receiver
            .frame(|frame| match frame {
                restante_protocol::frame::Frame::Deliver(deliver) => (deliver.slot, deliver.tag),
                other => panic!("{other:?}"),
            })
            .unwrap();
        assert_eq!(tag, next[slot as usize], "slot {slot}");
        next[slot as usize] += 1;
        let range = restante_protocol::frame::TagRange { first: tag, last: tag };
        restante_protocol::codec::put_ack(&mut acked, slot, &[range]);
        if acked.len() > 1_000 {
            receiver.send(&acked);
            acked.clear();
        }
    }
    receiver.send(&acked);
    assert_eq!(receiver.ask(Request::Flush), Ok(Reply::Done));
}

#[test]
fn a_thousand_attachments_on_one_connection() {
    let bench = Bench::new();
    let names: Vec<_> = (0..1_000).map(|number| format!("r{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut receiver = bench.receiver(&names);
    let mut producer = bench.producer(1, &names);
    let everyone: Vec<u32> = (0..1_000).collect();
    producer.publish(1, &everyone, b"x");
    producer.confirmed(1);
    let mut slots: Vec<_> = receiver.lines(1_000);
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), 1_000);
}
