//! Watching: who is told what changed.
//!
//! Peers put themselves on the directory's list when their status changes, at most a few times a
//! second each. While anybody watches, this actor takes that list at intervals, gives each change a
//! version and keeps the last [`CHANGES_MAX`] of them, so that a watcher that lost its connection
//! resumes where it was. One whose changes are no longer kept is told of the gap and starts anew
//! from a snapshot.

use crate::admin::peer_status;
use crate::directory::Directory;
use crate::journal::Journal;
use crate::router::{PeerRecordView, PeerRecords, Router};
use actix::prelude::*;
use restante_protocol::control::WatchEvent;
use restante_protocol::id::PeerId;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::status::PeerStatus;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How often changes are collected while somebody watches.
const COLLECT_EVERY: Duration = Duration::from_millis(250);
/// Changes kept for watchers that resume.
const CHANGES_MAX: usize = 16_384;
/// Watches at a time.
const WATCHES_MAX: usize = 1_024;

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

/// The actor that watches the peers and tells watchers.
pub struct Observer {
    directory: Arc<Directory>,
    router: Addr<Router>,
    journal: Arc<dyn Journal>,
    /// What watchers have been told of each peer.
    known: HashMap<PeerId, PeerStatus>,
    /// The last changes, oldest first, with consecutive versions up to `version`.
    changes: VecDeque<WatchEvent>,
    version: u64,
    watches: Vec<StartWatch>,
    collecting: bool,
}

impl Observer {
    /// An observer of these peers. Versions start at `first_version`, which must lie above those of
    /// every earlier process, so that a watcher of an earlier one meets a gap.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        router: Addr<Router>,
        journal: Arc<dyn Journal>,
        first_version: u64,
    ) -> Observer {
        Observer {
            directory,
            router,
            journal,
            known: HashMap::new(),
            changes: VecDeque::new(),
            version: first_version,
            watches: Vec::new(),
            collecting: false,
        }
    }

    /// Compares the records with what is known, and tells what differs.
    fn collect(&mut self, records: &[PeerRecordView]) {
        let _listed = self.directory.take_changed();
        let mut gone: HashMap<PeerId, Name> = self
            .known
            .values()
            .filter_map(|status| Some((status.id, status.name.parse().ok()?)))
            .collect();
        for record in records {
            gone.remove(&record.id);
            let seat = self.directory.seat(record.id);
            let snapshot = seat.as_ref().and_then(|seat| seat.marks.observed.lock().clone());
            let status = peer_status(record, seat.as_deref(), snapshot, &*self.journal);
            if self.known.get(&record.id) != Some(&status) {
                self.known.insert(record.id, status.clone());
                self.version += 1;
                self.tell(WatchEvent::Changed { version: self.version, peer: status });
            }
        }
        for (id, name) in gone {
            self.known.remove(&id);
            self.version += 1;
            self.tell(WatchEvent::Removed { version: self.version, name });
        }
    }

    fn tell(&mut self, event: WatchEvent) {
        self.watches.retain(|watch| watch.sink.event(watch.watch, event.clone()));
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(event);
    }

    /// Brings a new watcher up to date.
    fn greet(&self, start: &StartWatch) -> bool {
        let say = |event| start.sink.event(start.watch, event);
        let kept_after = self.version - self.changes.len() as u64;
        if let Some(after) = start.after {
            if (kept_after..=self.version).contains(&after) {
                let missed = usize::try_from(self.version - after).unwrap_or(0);
                let from = self.changes.len() - missed;
                return self.changes.range(from..).all(|event| say(event.clone()));
            }
            if !say(WatchEvent::Gap { after }) {
                return false;
            }
        }
        let peers = self.known.values().cloned().collect();
        say(WatchEvent::Snapshot { version: self.version, peers })
    }

    fn ask_for_records(&mut self, ctx: &mut Context<Self>, starting: Option<StartWatch>) {
        let records = self.router.send(PeerRecords(None)).into_actor(self);
        ctx.spawn(records.map(move |records, observer, ctx| {
            if let Ok(records) = records {
                observer.collect(&records);
            }
            if let Some(start) = starting
                && observer.greet(&start)
            {
                observer.watches.push(start);
            }
            observer.collect_later(ctx);
        }));
    }

    fn collect_later(&mut self, ctx: &mut Context<Self>) {
        if !self.collecting && !self.watches.is_empty() {
            self.collecting = true;
            ctx.run_later(COLLECT_EVERY, |observer, ctx| {
                observer.collecting = false;
                observer.ask_for_records(ctx, None);
            });
        }
    }
}

impl Actor for Observer {
    type Context = Context<Self>;
}

impl Supervised for Observer {
    fn restarting(&mut self, _: &mut Self::Context) {
        // Watchers whose events may be missing resume by themselves when theirs end.
        self.watches.clear();
        self.collecting = false;
    }
}

impl Handler<StartWatch> for Observer {
    type Result = Result<(), Refusal>;

    fn handle(&mut self, start: StartWatch, ctx: &mut Context<Self>) -> Self::Result {
        if self.watches.len() >= WATCHES_MAX {
            let detail = format!("{WATCHES_MAX} watches are open already");
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        self.ask_for_records(ctx, Some(start));
        Ok(())
    }
}

impl Handler<StopWatch> for Observer {
    type Result = ();

    fn handle(&mut self, stop: StopWatch, _: &mut Context<Self>) {
        self.watches.retain(|watch| {
            watch.watch != stop.watch || watch.sink.connection() != stop.connection
        });
    }
}
