//! Publishing over a real socket: batches, cuts, refusals, credit.

use crate::wire::{Bench, Wire, hello, publish};
use bytes::BytesMut;
use restante_protocol::control::{Control, Hello, Reply, Request};
use restante_protocol::id::ProducerId;
use restante_protocol::refusal::Code;

#[test]
fn many_publishes_in_one_write_are_confirmed_as_one_run() {
    let bench = Bench::new();
    let mut receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    let mut bytes = BytesMut::new();
    for sequence in 1..=500 {
        bytes.unsplit(publish(sequence, &[0], format!("m{sequence}").as_bytes()));
    }
    producer.send(&bytes);
    producer.confirmed(500);
    for tag in 1..=500 {
        assert_eq!(receiver.line(), format!("deliver 0 {tag} m{tag}"));
    }
}

#[test]
fn a_publish_cut_at_any_byte_arrives_whole() {
    let bench = Bench::new();
    let mut receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    let one = publish(1, &[0], b"payload");
    for cut in 1..one.len() {
        let frame = publish(cut as u64, &[0], b"payload");
        producer.send(&frame[..cut]);
        producer.send(&frame[cut..]);
        assert_eq!(producer.line(), format!("confirm {cut}+1"));
        assert_eq!(receiver.line(), format!("deliver 0 {cut} payload"));
    }
}

#[test]
fn a_payload_over_the_limit_is_refused_and_the_next_is_not() {
    let bench = Bench::with(|config| config.payload_bytes_max = 100_000);
    let mut receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    producer.publish(1, &[0], &vec![1; 16 * 1024 * 1024]);
    producer.publish(2, &[0], &vec![1; 100_001]);
    producer.publish(3, &[0], &vec![1; 100_000]);
    assert_eq!(producer.lines(2), ["refuse 1 too_large", "refuse 2 too_large"]);
    producer.confirmed(1);
    assert_eq!(receiver.line(), "deliver 0 1 (100000 bytes)");
    producer.publish(1, &[0], b"small now");
    assert_eq!(producer.line(), "refuse 1 too_large", "a refusal consumes its sequence");
}

#[test]
fn a_frame_no_payload_may_have_ends_the_connection() {
    let bench = Bench::new();
    let mut producer = bench.producer(1, &["a"]);
    producer.send(&[0xff, 0xff, 0xff, 0xff, 1, 0, 0, 1]);
    assert_eq!(producer.goodbye().code, Code::TooLarge);
}

#[test]
fn receivers_that_cannot_take_it_are_named() {
    let bench = Bench::new();
    let _receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a", "nobody"]);
    producer.publish(1, &[0, 1], b"x");
    producer.publish(2, &[1], b"x");
    producer.publish(3, &[77], b"x");
    let heard = producer.lines(3);
    let expected = [
        "refuse 1 [(1, UnknownReceiver)]",
        "refuse 2 [(1, UnknownReceiver)]",
        "refuse 3 [(77, StaleAlias)]",
    ];
    for line in expected {
        assert!(heard.contains(&line.to_owned()), "{line} in {heard:?}");
    }
}

#[test]
fn a_name_that_becomes_known_needs_no_new_alias() {
    let bench = Bench::new();
    let mut producer = bench.producer(1, &["later"]);
    producer.publish(1, &[0], b"x");
    assert_eq!(producer.line(), "refuse 1 [(0, UnknownReceiver)]");
    let mut receiver = bench.receiver(&["later"]);
    producer.publish(2, &[0], b"y");
    assert_eq!(producer.line(), "confirm 2+1");
    assert_eq!(receiver.line(), "deliver 0 1 y");
}

#[test]
fn beyond_the_credit_publishes_are_refused_one_by_one() {
    let bench = Bench::with(|config| config.credit_messages = 4);
    let _receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    let burst = |from: u64| {
        let mut bytes = BytesMut::new();
        (from..from + 6).for_each(|sequence| bytes.unsplit(publish(sequence, &[0], b"x")));
        bytes
    };
    producer.send(&burst(1));
    let mut heard = producer.lines(3);
    heard.sort();
    assert_eq!(heard, ["confirm 1+4", "refuse 5 over_credit", "refuse 6 over_credit"]);
    producer.publish(7, &[0], b"x");
    assert_eq!(producer.line(), "confirm 7+1", "the credit has come back");
}

#[test]
fn who_ignores_the_credit_is_closed() {
    let bench = Bench::with(|config| config.credit_messages = 1);
    let _receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    let mut bytes = BytesMut::new();
    (1..=2_000).for_each(|sequence| bytes.unsplit(publish(sequence, &[0], b"x")));
    producer.send(&bytes);
    assert_eq!(producer.goodbye().code, Code::OverCredit);
}

#[test]
fn publishing_takes_an_identity() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.publish(1, &[0], b"x");
    assert_eq!(guest.line(), "refuse 1 out_of_turn");
    assert!(guest.ask(Request::Node).is_ok());
}

#[test]
fn what_is_sent_out_of_turn_ends_only_its_connection() {
    let bench = Bench::new();
    let mut bystander = bench.producer(2, &[]);
    for odd in [
        Control::Goodbye(restante_protocol::refusal::Refusal::new(Code::Internal, "bye")),
        Control::Hello(crate::wire::hello(None)),
        Control::Credit(Default::default()),
    ] {
        let mut producer = bench.producer(1, &[]);
        producer.say(&odd);
        match odd {
            Control::Goodbye(_) => assert_eq!(producer.line(), "closed"),
            _ => assert_eq!(producer.goodbye().code, Code::OutOfTurn),
        }
    }
    assert!(bystander.ask(Request::Node).is_ok());
}

#[test]
fn a_producer_that_never_hears_its_outcomes_is_given_up() {
    let bench = Bench::with(|config| {
        config.heartbeat_ms = 100;
        config.silence_ms_max = 300;
    });
    let mut producer = bench.producer(1, &["nobody"]);
    // Refusals are larger than publishes, so that the node's answers jam first.
    let mut sequence = 0;
    let jammed = loop {
        let mut bytes = BytesMut::new();
        for _ in 0..256 {
            sequence += 1;
            bytes.unsplit(publish(sequence, &[0], b""));
        }
        if std::io::Write::write_all(&mut producer.stream, &bytes).is_err() {
            break true;
        }
        if sequence > 20_000_000 {
            break false;
        }
    };
    assert!(jammed, "the node goes on talking to somebody who does not listen");
    assert!(bench.guest().ask(Request::Node).is_ok());
}

#[test]
fn a_quiet_producer_outlives_those_that_come_and_go_and_is_told_when_it_cannot() {
    const REMEMBERED: u32 = 16;
    let bench = Bench::with(|config| config.producers_max = REMEMBERED);
    let _receiver = bench.receiver(&["a"]);
    let mut asker = bench.guest();
    let mut quiet = bench.producer(1, &["a"]);
    let connections = |asker: &mut Wire| match asker.ask(Request::Node) {
        Ok(Reply::Node(node)) => node.connections,
        other => panic!("{other:?}"),
    };
    let staying = connections(&mut asker);
    for passing in 2..100 {
        drop(bench.producer(passing, &[]));
        while connections(&mut asker) > staying {
            std::thread::yield_now();
        }
    }
    quiet.publish(1, &[0], b"x");
    quiet.confirmed(1);
    // As many others that stay: there is no place left for the one used least recently.
    let others: Vec<_> =
        (200..200 + u128::from(REMEMBERED)).map(|id| bench.producer(id, &[])).collect();
    assert_eq!(quiet.goodbye().code, Code::OutcomeEvicted);
    drop(others);
    let mut again = bench.connect();
    let hello = Hello { unused_from: Some(2), ..hello(Some(ProducerId(1))) };
    again.say(&Control::Hello(hello));
    assert!(
        matches!(again.control(), Some(Control::Welcome(welcome)) if welcome.next_sequence == 2)
    );
    again.say(&Control::Alias { alias: 0, name: "a".parse().unwrap() });
    again.publish(2, &[0], b"y");
    again.confirmed(1);
}
