//! A real node in a process of its own, and those who talk to it.
//!
//! Everything is bounded: a condition that does not come about within its limit ends the test with
//! what was waited for. Nothing is decided by the passing of time alone.
//!
//! ```text
//! Scene ── a directory of its own under the target directory, removed when the test has passed
//!   └─ Setup ── settings and environment of one node
//!        └─ Node ── the process: killed, stopped, started again on the same port and data
//! Inbox ── a receiver, attached or dialled, with a log of everything it was given
//! Bystanders ── those who are not to notice what somebody else does
//! Cli ── the command line as scripts use it
//! Raw ── a socket that says whatever bytes it is told to
//! ```

mod bystanders;
mod cli;
mod inbox;
mod node;
mod raw;
mod usage;
mod wait;

pub use bystanders::Bystanders;
pub use cli::{Cli, Finished, Running};
pub use inbox::{Answer, Inbox, Seen};
pub use node::{Node, Refusal, Scene, Setup, add_peer};
pub use raw::{Heard, Raw};
pub use usage::Usage;
pub use wait::{eventually, within};

/// A [`Scene`] named after the test, with the program under test.
#[macro_export]
macro_rules! scene {
    ($name:expr) => {
        $crate::harness::Scene::new(
            env!("CARGO_BIN_EXE_restante-faulty"),
            env!("CARGO_TARGET_TMPDIR"),
            $name,
        )
    };
}
