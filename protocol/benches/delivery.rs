//! What one message costs in the delivery core, in nanoseconds: `cargo bench -p restante-protocol`.
//!
//! Each line is the median of several runs of the whole way of a message: enqueue, transmit, ack,
//! settle. With arguments that a test runner passes (`--test`) one short run proves that it works.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock; the cores do not")]

use bytes::Bytes;
use core::num::NonZeroU64;
use restante_protocol::admin::{Order, PeerSettings};
use restante_protocol::delivery::{Delivery, Entry, Start, Transmit};
use restante_protocol::message::KeyHash;
use restante_protocol::time::Time;
use std::hint::black_box;
use std::time::Instant;

const RUNS: usize = 9;
const ROUNDS: u64 = 10_000;

/// One case: how much comes at once, and how it is acked.
struct Case {
    name: &'static str,
    batch: u64,
    order: Order,
    keys: u64,
    /// Messages of a foreign key that stay refused in the background.
    refused: u64,
    reversed: bool,
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let (runs, rounds) = if quick { (1, 10) } else { (RUNS, ROUNDS) };
    let plain =
        Case { name: "", batch: 128, order: Order::Sent, keys: 0, refused: 0, reversed: false };
    let cases = [
        Case { name: "batches of 128, acked in one range", ..plain },
        Case { name: "batches of 1,024, acked in one range", batch: 1_024, ..plain },
        Case { name: "batches of 8, acked in one range", batch: 8, ..plain },
        Case { name: "batches of 128, keyed", keys: 1_000, ..plain },
        Case { name: "batches of 128, acked one by one, backwards", reversed: true, ..plain },
        Case { name: "batches of 128, keyed, one key refused", keys: 1_000, refused: 1, ..plain },
        Case { name: "batches of 128, strict, 128 keys", keys: 128, order: Order::Strict, ..plain },
    ];
    let mut handles: Vec<f64> = (0..runs).map(|_| handles_alone(rounds)).collect();
    println!(
        "{:<48} {:>6.1} ns a message",
        "of each: making and dropping the body's handle",
        median(&mut handles)
    );
    for case in cases {
        let mut ns: Vec<f64> = (0..runs).map(|_| run(&case, rounds)).collect();
        println!("{:<48} {:>6.1} ns a message", case.name, median(&mut ns));
    }
}

fn median(ns: &mut [f64]) -> f64 {
    ns.sort_by(f64::total_cmp);
    ns[ns.len() / 2]
}

/// What the loop below costs without a core.
fn handles_alone(rounds: u64) -> f64 {
    let chunk = Bytes::from(vec![7_u8; 256 * 1_024]);
    let mut entries = Vec::with_capacity(128);
    let began = Instant::now();
    for round in 0..rounds {
        entries.extend((1..=128).map(|n| entry(&chunk, round * 128 + n, 0, round * 128 + 1)));
        entries.drain(..).for_each(|entry| drop(black_box(entry)));
    }
    began.elapsed().as_nanos() as f64 / (rounds * 128) as f64
}

fn run(case: &Case, rounds: u64) -> f64 {
    let settings = PeerSettings { order: case.order, ..PeerSettings::default() };
    let mut core = Delivery::new(Time::ZERO, &settings, Start::default(), 1);
    core.handle_link_up(Time::ZERO, 1, None);
    let chunk = Bytes::from(vec![7_u8; 256 * 1_024]);
    let mut number = 0;
    let mut tag = 0;
    for _ in 0..case.refused {
        number += 1;
        tag += 1;
        core.handle_enqueue(Time::ZERO, [entry(&chunk, number, u64::MAX, 0)]);
        black_box(core.poll_transmit(Time::ZERO));
        core.handle_nack(Time::ZERO, tag, false, None, "no");
    }
    while core.poll_report().is_some() {}
    let began = Instant::now();
    for round in 0..rounds {
        let now = Time(round);
        let first = number + 1;
        number += case.batch;
        core.handle_enqueue(now, (first..=number).map(|n| entry(&chunk, n, case.keys, first)));
        let first_tag = tag + 1;
        while let Some(transmit) = core.poll_transmit(now) {
            tag = consume(transmit);
        }
        if case.reversed {
            (first_tag..=tag).rev().for_each(|tag| core.handle_ack(now, tag, tag));
        } else {
            core.handle_ack(now, first_tag, tag);
        }
        while let Some(settled) = core.poll_settled() {
            black_box(settled);
        }
        black_box((core.floor(), core.next_deadline(), core.poll_load(), core.poll_report()));
    }
    let ns = began.elapsed().as_nanos() as f64;
    assert_eq!(core.snapshot(Time::ZERO).waiting, case.refused, "everything else is through");
    ns / (rounds * case.batch) as f64
}

fn entry(chunk: &Bytes, number: u64, keys: u64, first: u64) -> Entry<Bytes> {
    let key = match keys {
        0 => None,
        u64::MAX => NonZeroU64::new(u64::MAX),
        keys => NonZeroU64::new(number % keys + 1),
    };
    let at = (number - first.min(number)) as usize % 1_024 * 256;
    let body = chunk.slice(at..at + 256);
    let (key, expires) = (key.map(KeyHash), None);
    Entry { number, accepted_ms: 0, bytes: 256, key, expires, body }
}

fn consume(transmit: Transmit<Bytes>) -> u64 {
    let transmit = black_box(transmit);
    transmit.tag
}
