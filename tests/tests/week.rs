//! A week of a node and 300 peers on a virtual clock, see `tests/src/sim`: outages from seconds to three
//! days, refusals, poison, lives that end, rates, operators, actors that crash, and a node that is stopped, killed,
//! cut off its power and left by its disk. Whatever happens, of P2 to P7 of the design there holds:
//!
//! - what was confirmed is delivered, or has ended in a state that has a name, and the ledger knows it;
//! - nothing is sent that was acked, as far as the node can know, nor anything whose life has ended;
//! - first attempts of a key leave in order; strict order holds through retries, a key that is refused
//!   holds only itself;
//! - no outage parks anything;
//! - windows, grants, rates and probes are respected, and no refused message is sent before it is due;
//! - no next attempt lies in the past, without a link no body is held, and with one a bounded number;
//! - one peer's sickness delays no other.
//!
//! It must be able to fail: `tests/mutations.py` plants faults in the cores, one at a time, and expects this
//! test to find each.
//!
//! `RESTANTE_WEEK_SEEDS` asks for others than the usual seed: `7`, `1..50`, `3,5,8`. A run that fails
//! prints its seed and the last things that happened to the peer concerned.

use restante_tests::sim::{Report, Scale, live};

const USUAL_SEED: u64 = 20_261_127;

/// How long a message may take beside a key that is refused for hours: a restart of the node, and what was
/// left for after it.
const BESIDE_US_MAX: u64 = 3 * 60 * 1_000_000;
/// Bytes on disk: what waits for three days, as much again, and some segments.
const DISK_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// How much later than without the sick ones a message may come to a healthy peer, microseconds.
const DELAY_US_MAX: u64 = 1_000;

#[test]
fn a_week_keeps_every_promise() {
    for seed in seeds() {
        println!("seed {seed}");
        let report = live(seed, Scale::WEEK);
        println!("{report:#?}");
        // A quiet week shows nothing.
        let Report { confirmed, again, expired, parked, pages, boots, .. } = report;
        let counts = [confirmed, again, expired, parked, pages, boots];
        let least = [Scale::WEEK.posts / 2, 1_000, 100, 20, 1_000, 10];
        assert!(counts.iter().zip(least).all(|(count, least)| *count >= least), "{report:#?}");
        assert!(
            report.beside_refused_us < BESIDE_US_MAX,
            "a refused key holds others: {report:#?}"
        );
        assert!(report.disk_max < DISK_BYTES_MAX, "the disk fills: {report:#?}");
    }
}

#[test]
fn one_peers_sickness_delays_no_other() {
    let rough = Scale { days: 1, posts: 20_000, restarts: 0, ..Scale::WEEK };
    let fair = Scale { is_rough: false, ..rough };
    let [rough, fair] = [rough, fair].map(|scale| live(USUAL_SEED, scale).healthy_us);
    let is_late = |rough, fair| rough > fair + DELAY_US_MAX;
    let late = is_late(rough.0, fair.0) || is_late(rough.1, fair.1);
    assert!(!late, "median and p99 are {rough:?} us with the sick ones, {fair:?} us without");
}

#[test]
fn the_same_seed_is_the_same_week() {
    let scale = Scale { peers: 40, days: 2, posts: 8_000, restarts: 8, ..Scale::WEEK };
    assert_eq!(live(5, scale), live(5, scale));
    assert_ne!(live(5, scale).digest, live(6, scale).digest);
}

fn seeds() -> Vec<u64> {
    let Ok(text) = std::env::var("RESTANTE_WEEK_SEEDS") else { return vec![USUAL_SEED] };
    let number =
        |text: &str| text.trim().parse::<u64>().expect("RESTANTE_WEEK_SEEDS: 7, 1..50, 3,5,8");
    let range = |text: &str| match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(text)..number(text) + 1,
    };
    text.split(',').flat_map(range).collect()
}
