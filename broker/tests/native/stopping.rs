//! How a node ends and begins again.

use crate::wire::Bench;
use restante::config::Config;
use restante::node::{Node, NodeError};
use restante_protocol::refusal::Code;

#[test]
fn everybody_is_told_goodbye() {
    let mut bench = Bench::new();
    let mut guest = bench.guest();
    let mut silent = bench.connect();
    silent.send(&[0, 0, 0]);
    // Both have been accepted once a later one has its welcome.
    let mut last = bench.guest();
    bench.node.take().unwrap().stop().unwrap();
    for wire in [&mut guest, &mut silent, &mut last] {
        assert_eq!(wire.goodbye().code, Code::ShuttingDown);
    }
}

#[test]
fn what_is_in_flight_may_still_be_acked() {
    let mut bench = Bench::new();
    let mut receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    producer.publish(1, &[0], b"x");
    producer.confirmed(1);
    assert_eq!(receiver.line(), "deliver 0 1 x");
    let node = bench.node.take().unwrap();
    let stopping = std::thread::spawn(move || node.stop());
    receiver.ack(0, 1, 1);
    assert_eq!(receiver.goodbye().code, Code::ShuttingDown);
    stopping.join().unwrap().unwrap();
}

#[test]
fn sequences_go_on_after_a_restart() {
    let mut bench = Bench::new();
    let _receiver = bench.receiver(&["a"]);
    let mut producer = bench.producer(1, &["a"]);
    producer.publish(1, &[0], b"x");
    producer.publish(2, &[0], b"y");
    producer.confirmed(2);
    bench.restart();
    let mut again = bench.connect();
    let welcome = again.hello(Some(restante_protocol::id::ProducerId(1)));
    assert_eq!((welcome.next_sequence, welcome.epoch), (3, 2));
}

#[test]
fn an_address_in_use_is_named() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    let config =
        Config { tcp: bench.address(), data_dir: dir.path().join("data"), ..Config::default() };
    let error = Node::start(config).unwrap_err();
    assert!(matches!(error, NodeError::Listen { .. }), "{error}");
    assert!(!error.is_data_dir());
    assert!(!dir.path().join("data").exists(), "nothing was touched");
}

#[test]
fn a_data_directory_in_use_is_named() {
    let bench = Bench::new();
    let config = Config {
        tcp: ([127, 0, 0, 1], 0).into(),
        data_dir: bench.dir.path().join("data"),
        ..Config::default()
    };
    let error = Node::start(config).unwrap_err();
    assert!(error.is_data_dir(), "{error}");
}

#[test]
fn several_nodes_live_in_one_program() {
    let benches: Vec<_> = (0..3).map(|_| Bench::new()).collect();
    for bench in &benches {
        let mut receiver = bench.receiver(&["a"]);
        let mut producer = bench.producer(1, &["a"]);
        producer.publish(1, &[0], b"x");
        assert_eq!(producer.line(), "confirm 1+1");
        assert_eq!(receiver.line(), "deliver 0 1 x");
    }
}
