//! The delivery core against a model that is too simple to be wrong: lists of messages, and a journal
//! that is a map. Whatever happens in whatever order (links, acks, nacks, lateness, reads, restarts,
//! policies), the model checks after every step that
//!
//! - each message is settled, parked or expired at most once, and only while open; in the end all are;
//! - what is sent is open, in flight once, within window and grant, flagged and counted right; and where
//!   the rate is limited within the leave there is;
//! - first attempts of a key leave in order, and strict order holds through retries (P2);
//! - refused messages are not sent before they are due and parked when the schedule ends (P4);
//! - what has a time to live is not sent once it has ended, and expires then, never earlier nor in flight;
//! - without a link no body is held, and with one no more than the bounds say (P6);
//! - floor and counters are exact.

mod model;

use model::{Op, World};
use proptest::prelude::*;

/// Thousands of runs; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = ProptestConfig::default();
    ProptestConfig { cases: asked.cases.max(2_000), failure_persistence: None, ..asked }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_the_promises_hold(
        setup in model::setup(),
        ops in proptest::collection::vec(model::op(), 1..120),
    ) {
        let mut world = World::new(&setup);
        for op in &ops {
            world.apply(op);
        }
        world.run_out();
    }

    #[test]
    fn a_steady_peer_never_reads_from_the_journal(batches in proptest::collection::vec(1..40_u64, 1..60)) {
        let mut world = World::new(&model::Setup::default());
        world.apply(&Op::LinkUp { grant: None });
        for batch in batches {
            world.apply(&Op::Enqueue { count: batch, stride: 1, keys: 4, bytes: 100 });
            world.apply(&Op::AckAll);
        }
        prop_assert_eq!(world.loads_asked(), 0);
        world.run_out();
    }
}
