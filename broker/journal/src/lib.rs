//! The embedded journal: a segmented log that every message goes through before it is confirmed.
//!
//! ```text
//!  router ── append, settle, park ──► intake ──► writer ──── write + sync ──► segments/
//!     ▲                                            │ counts, positions            ▲   ▲
//!     └──────────── completions ◄──────────────────┤                              │   │
//!  peers ◄─ pages ── reader ◄── which messages ── state ──► keeper ─ indexes, checkpoints, room
//!  admin ◄─ lives ── ledger ◄── which segments ─────┘
//! ```
//!
//! - [`shared`] is what all sides hold; [`writer`], [`reader`], [`ledger`] and [`keeper`] are plain state machines
//!   under one thread each ([`handle`]), so that tests drive the same code without threads.
//! - [`state`] knows, per peer and segment, how much is open; positions are in the segments' indexes
//!   ([`index`], [`refs`]).
//! - [`compact`] copies what is live out of segments that are mostly done; [`history`] is what is left of
//!   those that are gone, and the ledger's.
//! - [`recovery`] opens: first boot and restart alike.
//! - [`offline`] looks at a directory without opening it as a node does; [`backup`] copies it while one runs.
//! - [`storage`] is the disk, real or simulated. [`mod@format`] has the bytes; `FORMAT.md` tells them all,
//!   with the invariants and what is assumed of the medium.
//!
//! What holds: a completion `Durable` leaves only after a sync that covers it and everything before
//! it; a segment goes only after a durable checkpoint says that nothing in it is live or that a copy of
//! what is counts; a failed write or
//! sync poisons the journal until it is opened again.

pub mod backup;
mod cache;
mod checkpoint;
mod compact;
mod error;
mod format;
mod handle;
mod held;
mod history;
mod index;
mod intake;
mod keeper;
mod ledger;
mod numbers;
pub mod offline;
mod options;
mod reader;
mod rebuild;
mod recovery;
mod refs;
mod room;
mod segment;
mod shared;
#[cfg(feature = "sim")]
pub mod simulated;
mod state;
mod storage;
mod survey;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

pub use error::OpenError;
pub use options::Options;

use restante_actors::journal::Opened;
use std::path::Path;
use std::sync::Arc;

/// Opens the journal in the directory `dir`, creating it if need be, and starts its threads. Blocks
/// while it recovers: call it off the arbiters.
///
/// # Errors
/// See [`OpenError`]: what was found, what was expected, what to do.
pub fn open(dir: &Path, options: Options) -> Result<Opened, OpenError> {
    let disk: Arc<dyn storage::Disk> = Arc::new(storage::RealDisk::new(dir));
    #[cfg(feature = "faults")]
    let disk = storage::faulty::planted(disk);
    open_on(disk, options)
}

/// Opens the journal on any disk.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_on(disk: Arc<dyn storage::Disk>, options: Options) -> Result<Opened, OpenError> {
    let path = disk.describe("");
    let engine = recovery::open(disk, options)?;
    handle::start(engine).map_err(|source| OpenError::Io { path, source })
}
