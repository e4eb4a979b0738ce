//! Restante beside the brokers that a user would pick instead: `tests/bench`.
//!
//! Constraints: the same load, counted in the same way, by the same generator, for all; every server
//! a child of this program with a fresh directory on a real disk; brokers take turns, so that a
//! machine that drifts drifts for all; nothing stays.
//!
//! ```text
//! bin/versus ─► options ─► for each case, round and subject:
//!                            workload/   what is done and what is looked at
//!                               │ starts
//!                            subject/    a broker: its server, its receivers, its protocol
//!                               │ connects               │ server.rs   the child process
//!                            engine.rs   every connection, on one thread
//!                               │ counts                 │ session.rs  the seam: bytes ↔ events
//!                            tally.rs    who has what    │ payload.rs  what a message says
//!                          raw.rs        what the machine can do at all
//!                          report/       tables, goals, JSON, the chart
//! bin/versus cost ─► cost.rs what a message costs the node, in instructions (tests/instructions.sh)
//! ```

mod cost;
mod engine;
mod failure;
mod options;
mod payload;
mod raw;
mod report;
mod result;
mod server;
mod session;
mod shape;
mod subject;
mod tally;
mod workload;

pub use options::main;
