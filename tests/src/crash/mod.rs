//! The crash run: producers and receivers that go on while the node is killed, and the judge of what
//! came of it.
//!
//! ```text
//! Plan ── (seed, producer, serial) → receivers, key, payload; the same whenever it is asked
//!   ├─ producer ── publishes its serials in order, remembers every outcome
//!   ├─ receiver ── comes and goes, remembers every delivery before it acks it
//!   └─ judge ── outcomes and deliveries against the plan and the promises
//! ```

mod judge;
mod plan;
mod producer;
mod receiver;

pub use judge::{Evidence, Verdict, judge};
pub use plan::{GHOST, Plan, Post};
pub use producer::{Outcome, produce};
pub use receiver::{Place, Taken, receive};
