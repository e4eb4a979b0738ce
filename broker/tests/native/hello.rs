//! How connections begin, and how the ones that should not are turned away.

use crate::wire::{Bench, Wire, hello};
use restante_protocol::control::{Control, Request};
use restante_protocol::id::ProducerId;
use restante_protocol::limits::PROTOCOL_VERSION;
use restante_protocol::refusal::Code;

#[test]
fn the_welcome_says_what_holds_here() {
    let bench = Bench::with(|config| {
        config.credit_messages = 7;
        config.payload_bytes_max = 5_000;
    });
    let welcome = bench.connect().hello(Some(ProducerId(1)));
    assert_eq!(welcome.version, PROTOCOL_VERSION);
    assert_eq!((welcome.epoch, welcome.next_sequence), (1, 1));
    assert!(welcome.producer_epoch > 0);
    assert_eq!(welcome.credit.messages, 7);
    assert_eq!(welcome.payload_bytes_max, 5_000);
    assert_eq!((welcome.heartbeat_ms, welcome.silence_ms_max), (10_000, 30_000));
    let guest = bench.connect().hello(None);
    assert_eq!((guest.producer_epoch, guest.credit.messages), (0, 0));
}

#[test]
fn a_hello_may_be_followed_at_once() {
    let bench = Bench::new();
    let mut wire = bench.connect();
    let mut bytes = bytes::BytesMut::new();
    let ask = Control::Request { id: 5, request: Request::Node };
    restante_protocol::codec::put_control(&mut bytes, &Control::Hello(hello(None))).unwrap();
    restante_protocol::codec::put_control(&mut bytes, &ask).unwrap();
    // Byte by byte, as the slowest network would bring it.
    bytes.iter().for_each(|byte| wire.send(&[*byte]));
    assert!(matches!(wire.control(), Some(Control::Welcome(_))));
    assert!(matches!(wire.control(), Some(Control::Response { id: 5, result: Ok(_) })));
}

#[test]
fn what_is_no_hello_is_answered_by_a_goodbye() {
    let bench = Bench::new();
    let mut bystander = bench.guest();
    let say = |bytes: &[u8]| {
        let mut wire = bench.connect();
        wire.send(bytes);
        wire.goodbye().code
    };
    assert_eq!(say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Code::Unsupported);
    assert_eq!(say(&[0, 0, 0, 0, 0x10]), Code::Malformed);
    assert_eq!(say(&[0, 0, 0, 3, 0x10, 1, 2]), Code::Malformed);
    assert_eq!(say(&[0xff, 0xff, 0xff, 0xff, 0x10]), Code::TooLarge);
    assert_eq!(say(&[0, 1, 0, 0, 0x10]), Code::TooLarge, "a hello is small");
    assert_eq!(say(&crate::wire::publish(1, &[0], b"x")), Code::OutOfTurn);
    let mut late = bench.connect();
    late.say(&Control::Request { id: 1, request: Request::Node });
    assert_eq!(late.goodbye().code, Code::OutOfTurn);
    assert!(bystander.ask(Request::Node).is_ok(), "others notice nothing");
}

#[test]
fn versions_that_do_not_overlap_are_told_so() {
    let bench = Bench::new();
    let mut wire = bench.connect();
    let newer = PROTOCOL_VERSION + 1;
    let hello = restante_protocol::control::Hello {
        version_min: newer,
        version_max: newer + 3,
        ..hello(None)
    };
    wire.say(&Control::Hello(hello));
    assert_eq!(wire.goodbye().code, Code::VersionMismatch);
}

#[test]
fn who_says_no_hello_in_time_is_sent_away() {
    let bench = Bench::with(|config| config.hello_ms_max = 150);
    let mut silent = bench.connect();
    let mut slow = bench.connect();
    slow.send(&[0, 0]);
    assert_eq!(silent.goodbye().code, Code::TimedOut);
    assert_eq!(slow.goodbye().code, Code::TimedOut);
}

#[test]
fn one_connection_too_many_is_told_so() {
    let bench = Bench::with(|config| config.connections_max = 2);
    let mut first = bench.guest();
    let second = bench.guest();
    assert_eq!(bench.connect().goodbye().code, Code::LimitReached);
    drop(second);
    // The place is free once the node has seen the end of the second.
    let third = std::iter::repeat_with(|| {
        let mut wire = bench.connect();
        wire.say(&Control::Hello(hello(None)));
        wire.control()
    });
    assert!(third.take(1_000).any(|heard| matches!(heard, Some(Control::Welcome(_)))));
    assert!(first.ask(Request::Node).is_ok());
}

#[test]
fn a_newer_connection_speaks_for_its_producer() {
    let bench = Bench::new();
    let mut old = bench.producer(9, &[]);
    let mut new = bench.producer(9, &[]);
    assert_eq!(old.goodbye().code, Code::ProducerSuperseded);
    assert!(new.ask(Request::Node).is_ok());
}

#[test]
fn a_silent_connection_is_closed_and_a_living_one_is_not() {
    let bench = Bench::with(|config| {
        config.heartbeat_ms = 100;
        config.silence_ms_max = 300;
    });
    let mut silent = bench.guest();
    let mut alive = bench.guest();
    let beating = alive.stream.try_clone().unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let heart = std::thread::spawn(move || {
        let mut wire = Wire::new(beating);
        let beat = std::time::Duration::from_millis(100);
        while stopped
            .recv_timeout(beat)
            .is_err_and(|error| !matches!(error, std::sync::mpsc::RecvTimeoutError::Disconnected))
        {
            wire.send(&[0, 0, 0, 1, 9]);
        }
    });
    assert_eq!(silent.goodbye().code, Code::TimedOut);
    assert!(alive.ask(Request::Node).is_ok());
    drop(stop);
    heart.join().unwrap();
}
