//! Watching: who is told what changed, and how the node looks from outside.

use actix::prelude::*;
use restante_protocol::control::WatchEvent;
use restante_protocol::refusal::Refusal;
use std::sync::Arc;

/// Where a watch's events go.
pub trait WatchSink: Send + Sync {
    /// Takes one event; `false` when the watcher is gone or cannot keep up, which ends the watch
    /// (the watcher resumes from its last version).
    fn event(&self, watch: u64, event: WatchEvent) -> bool;

    /// Identifies the connection, so that a watch can be ended by its number.
    fn connection(&self) -> u64;
}

/// Begins a watch: first a snapshot, or, with `after`, the changes since that version.
#[derive(Message)]
#[rtype(result = "Result<(), Refusal>")]
pub struct StartWatch {
    /// The request's number, carried by every event.
    pub watch: u64,
    /// Resume after this version.
    pub after: Option<u64>,
    /// Where events go.
    pub sink: Arc<dyn WatchSink>,
}

/// Ends a watch.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StopWatch {
    /// The request's number.
    pub watch: u64,
    /// See [`WatchSink::connection`].
    pub connection: u64,
}

/// The actor that watches the peers: keeps versions of what changed, tells watchers, writes the
/// periodic summary.
pub struct Observer;
impl Actor for Observer {
    type Context = Context<Self>;
}
impl Handler<StartWatch> for Observer {
    type Result = Result<(), Refusal>;
    fn handle(&mut self, _: StartWatch, _: &mut Context<Self>) -> Self::Result {
        Ok(())
    }
}
impl Handler<StopWatch> for Observer {
    type Result = ();
    fn handle(&mut self, _: StopWatch, _: &mut Context<Self>) {}
}
