//! Watching: who is told what changed.
//!
//! While anybody watches, this actor compares all peers with what it knows of them at intervals, a
//! page of them at a time so that the router is never asked for many at once, gives each change a
//! version and keeps the last [`CHANGES_MAX`] of them. A watch is a place in that list:
//!
//! ```text
//! Starting ──first look──► Snapshot ──last part──► Through(version) ──next change──► Through(version + 1)
//!     └───────resumes──────────▲──────────────────────┤  ▲
//!                              └──── gap: not kept ───┘  └ as its connection has room
//! ```
//!
//! So a watcher that lost its connection resumes where it was, and one that is slow costs no memory
//! here: it falls behind, and when its changes are no longer kept it is told of the gap and gets a
//! snapshot. What the parts of a snapshot show may be newer than its version; the changes that follow
//! say it again.

use crate::admin::peer_status;
use crate::directory::Directory;
use crate::journal::Journal;
use crate::router::{PeerRecordView, PeerRecords, Router};
use actix::prelude::*;
use restante_protocol::control::WatchEvent;
use restante_protocol::id::PeerId;
use restante_protocol::limits::PEER_PAGE_MAX;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::status::PeerStatus;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

/// How often changes are collected while somebody watches.
const COLLECT_EVERY: Duration = Duration::from_millis(250);
/// Changes kept for watchers that resume or are slow.
const CHANGES_MAX: usize = 16_384;
/// Watches at a time.
const WATCHES_MAX: usize = 1_024;

/// Where a watch's events go.
pub trait WatchSink: Send + Sync {
    /// Whether another event may be said now. A watcher that is gone has room.
    fn has_room(&self) -> bool;

    /// Takes one event, after [`WatchSink::has_room`]; `false` when the watcher is gone.
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
    told: Story,
    watches: Vec<Watching>,
    /// A look at the peers is under way or will be.
    looking: bool,
    /// What is known is no older than [`COLLECT_EVERY`].
    fresh: bool,
}

/// What there is to tell.
struct Story {
    known: BTreeMap<PeerId, PeerStatus>,
    /// The last changes, oldest first, with consecutive versions up to `version`.
    changes: VecDeque<WatchEvent>,
    version: u64,
}

/// One watch.
struct Watching {
    start: StartWatch,
    place: Place,
}

/// How far a watch has come.
#[derive(Clone, Copy)]
enum Place {
    /// Waits for the first look at the peers.
    Starting,
    /// In the middle of a snapshot, up to this peer.
    Snapshot { version: u64, after: PeerId },
    /// It has been told everything up to this version.
    Through(u64),
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
        let (known, changes) = (BTreeMap::new(), VecDeque::new());
        Observer {
            directory,
            router,
            journal,
            told: Story { known, changes, version: first_version },
            watches: Vec::new(),
            looking: false,
            fresh: false,
        }
    }

    /// Compares the records with what is known.
    fn collect(&mut self, records: &[PeerRecordView]) {
        let mut gone: BTreeMap<PeerId, Name> = BTreeMap::new();
        for (id, status) in &self.told.known {
            gone.extend(status.name.parse().ok().map(|name| (*id, name)));
        }
        for record in records {
            gone.remove(&record.id);
            let seat = self.directory.seat(record.id);
            let snapshot = seat.as_ref().and_then(|seat| seat.marks.observed.lock().clone());
            let status = peer_status(record, seat.as_deref(), snapshot, &*self.journal);
            if self.told.known.get(&record.id) != Some(&status) {
                self.told.known.insert(record.id, status.clone());
                self.told.change(|version| WatchEvent::Changed { version, peer: status });
            }
        }
        for (id, name) in gone {
            self.told.known.remove(&id);
            self.told.change(|version| WatchEvent::Removed { version, name });
        }
    }

    fn tell(&mut self) {
        let (told, fresh) = (&self.told, self.fresh);
        self.watches.retain_mut(|watching| !fresh || watching.go_on(told));
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        self.looking = true;
        let records = all_records(self.router.clone()).into_actor(self);
        ctx.spawn(records.map(|records, observer, ctx| {
            if let Some(records) = records {
                observer.collect(&records);
                observer.fresh = true;
            }
            observer.tell();
            observer.fresh &= !observer.watches.is_empty();
            observer.looking = !observer.watches.is_empty();
            if observer.looking {
                ctx.run_later(COLLECT_EVERY, |observer, ctx| observer.look(ctx));
            }
        }));
    }
}

/// The records of all peers; `None` from a router that is gone.
async fn all_records(router: Addr<Router>) -> Option<Vec<PeerRecordView>> {
    let mut all: Vec<PeerRecordView> = Vec::new();
    loop {
        let after = all.last().map_or(PeerId::NONE, |last| last.id);
        let page = router.send(PeerRecords { after }).await.ok()?;
        let is_last = page.len() < PEER_PAGE_MAX;
        all.extend(page);
        if is_last {
            return Some(all);
        }
    }
}

impl Story {
    fn change(&mut self, event: impl FnOnce(u64) -> WatchEvent) {
        self.version += 1;
        if self.changes.len() == CHANGES_MAX {
            self.changes.pop_front();
        }
        self.changes.push_back(event(self.version));
    }

    /// The change that follows this version; `None` if it is not kept.
    fn change_after(&self, version: u64) -> Option<&WatchEvent> {
        let kept_after = self.version - self.changes.len() as u64;
        let place = usize::try_from(version.checked_sub(kept_after)?).ok()?;
        self.changes.get(place)
    }

    /// The next part of a snapshot and the last peer in it.
    fn part(&self, version: u64, after: PeerId) -> (WatchEvent, Option<PeerId>) {
        let mut above = self.known.range((Bound::Excluded(after), Bound::Unbounded));
        let peers: Vec<PeerStatus> =
            above.by_ref().take(PEER_PAGE_MAX).map(|(_, status)| status.clone()).collect();
        let last = peers.last().map(|status| status.id);
        let more = above.next().is_some();
        (WatchEvent::Snapshot { version, peers, more }, last.filter(|_| more))
    }
}

impl Watching {
    /// Tells as much as the connection has room for; `false` when the watcher is gone.
    fn go_on(&mut self, told: &Story) -> bool {
        while self.start.sink.has_room() {
            let (event, next) = match self.place {
                Place::Starting => {
                    let (version, after) = (told.version, PeerId::NONE);
                    let fresh = Place::Snapshot { version, after };
                    self.place = self.start.after.map_or(fresh, Place::Through);
                    continue;
                }
                Place::Through(version) if version == told.version => return true,
                Place::Through(version) => match told.change_after(version) {
                    Some(change) => (change.clone(), Place::Through(version + 1)),
                    None => {
                        let (after, version) = (version, told.version);
                        let next = Place::Snapshot { version, after: PeerId::NONE };
                        (WatchEvent::Gap { after }, next)
                    }
                },
                Place::Snapshot { version, after } => {
                    let (part, last) = told.part(version, after);
                    let whole = Place::Through(version);
                    (part, last.map_or(whole, |after| Place::Snapshot { version, after }))
                }
            };
            if !self.start.sink.event(self.start.watch, event) {
                return false;
            }
            self.place = next;
        }
        true
    }
}

impl Actor for Observer {
    type Context = Context<Self>;
}

impl Supervised for Observer {
    /// What was known may be half of a change: everybody meets a gap.
    fn restarting(&mut self, ctx: &mut Self::Context) {
        self.told.known.clear();
        self.told.changes.clear();
        self.told.version += 1;
        self.fresh = false;
        self.look(ctx);
    }
}

impl Handler<StartWatch> for Observer {
    type Result = Result<(), Refusal>;

    fn handle(&mut self, start: StartWatch, ctx: &mut Context<Self>) -> Self::Result {
        if self.watches.len() >= WATCHES_MAX {
            let detail = format!("{WATCHES_MAX} watches are open already");
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        self.watches.push(Watching { start, place: Place::Starting });
        if self.looking {
            self.tell();
        } else {
            self.look(ctx);
        }
        Ok(())
    }
}

impl Handler<StopWatch> for Observer {
    type Result = ();

    fn handle(&mut self, stop: StopWatch, _: &mut Context<Self>) {
        self.watches.retain(|Watching { start, .. }| {
            start.watch != stop.watch || start.sink.connection() != stop.connection
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Takes so many events and then has no room.
    struct Narrow(Mutex<(usize, Vec<WatchEvent>)>);

    impl WatchSink for Narrow {
        fn has_room(&self) -> bool {
            self.0.lock().0 > 0
        }

        fn event(&self, _: u64, event: WatchEvent) -> bool {
            let mut inner = self.0.lock();
            inner.0 -= 1;
            inner.1.push(event);
            true
        }

        fn connection(&self) -> u64 {
            1
        }
    }

    fn story() -> Story {
        Story { known: BTreeMap::new(), changes: VecDeque::new(), version: 100 }
    }

    fn gone(told: &mut Story, name: &str) {
        let name = name.parse().unwrap();
        told.change(|version| WatchEvent::Removed { version, name });
    }

    fn watching(after: Option<u64>) -> (Watching, Arc<Narrow>) {
        let narrow = Arc::new(Narrow(Mutex::new((0, Vec::new()))));
        let sink = Arc::clone(&narrow) as Arc<dyn WatchSink>;
        let start = StartWatch { watch: 1, after, sink };
        (Watching { start, place: Place::Starting }, narrow)
    }

    /// What is heard when there is room for so many events.
    fn heard(watching: &mut Watching, narrow: &Narrow, told: &Story, room: usize) -> Vec<String> {
        narrow.0.lock().0 = room;
        assert!(watching.go_on(told));
        let events = std::mem::take(&mut narrow.0.lock().1);
        let word = |event: &WatchEvent| match event {
            WatchEvent::Snapshot { version, .. } => format!("snapshot {version}"),
            WatchEvent::Changed { version, .. } => format!("changed {version}"),
            WatchEvent::Removed { version, .. } => format!("removed {version}"),
            WatchEvent::Gap { after } => format!("gap {after}"),
        };
        events.iter().map(word).collect()
    }

    #[test]
    fn a_slow_watcher_falls_behind_and_misses_nothing_that_is_kept() {
        let mut told = story();
        let (mut watching, narrow) = watching(None);
        assert_eq!(heard(&mut watching, &narrow, &told, 9), ["snapshot 100"]);
        for name in ["a", "b", "c"] {
            gone(&mut told, name);
        }
        assert_eq!(heard(&mut watching, &narrow, &told, 0), [""; 0]);
        assert_eq!(heard(&mut watching, &narrow, &told, 2), ["removed 101", "removed 102"]);
        assert_eq!(heard(&mut watching, &narrow, &told, 9), ["removed 103"]);
    }

    #[test]
    fn what_is_no_longer_kept_is_a_gap_and_a_snapshot() {
        let mut told = story();
        let (mut slow, narrow) = watching(Some(100));
        assert_eq!(heard(&mut slow, &narrow, &told, 9), [""; 0], "nothing has changed since");
        (0..=CHANGES_MAX).for_each(|_| gone(&mut told, "a"));
        let version = told.version;
        assert_eq!(
            heard(&mut slow, &narrow, &told, 9),
            ["gap 100".to_owned(), format!("snapshot {version}")]
        );
        for unheard_of in [7, version + 1] {
            let (mut other, narrow) = watching(Some(unheard_of));
            assert_eq!(heard(&mut other, &narrow, &told, 1), [format!("gap {unheard_of}")]);
        }
    }
}
