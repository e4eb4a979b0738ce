//! The router actor: takes publishes, makes them durable, confirms them, and hands them to the peers.
//!
//! ```text
//! PublishBatch ─► publish.rs: dedupe, resolve, quotas ─► record in the batch being built
//!                                                              │ once per mailbox turn
//!                              commit.rs: journal.append ◄─────┘
//!                                     │ durable
//!                                     ├─► confirm ─► producer
//!                                     └─► Enqueue, one per peer ─► peer actors
//! ```
//!
//! It is the only one that appends, so the order of its turns is the order of the log; it never
//! waits for a peer, a connection or the disk. Changes by operators take the same way
//! (administer.rs): checked against the state as of the last append, appended, and in effect once
//! durable.

mod administer;
mod batch;
mod calls;
mod classes;
mod commit;
mod delay;
mod disposal;
mod drain;
mod forget;
mod groups;
mod jobs;
pub mod messages;
mod publish;
mod release;
mod repeats;
mod slots;

pub use messages::*;

use crate::events::{self, Limiter, SWEEP_EVERY};
use crate::journal::{Caps, Completion};
use crate::link::SharedProducer;
use crate::peer::{PeerConfig, Shared};
use crate::{Figures, Limits, clock, peer};
use actix::prelude::*;
use batch::{Building, Pending};
use calls::Calls;
use restante_protocol::admin::AdminDone;
use restante_protocol::id::PeerId;
use restante_protocol::job::Job;
use restante_protocol::producers::SessionError;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::registry::{
    AdminEvent, Class, Destination, Group, Peer as PeerRecord, Removed,
};
use restante_protocol::state::{Applied, NodeState, StateEvent};
use restante_protocol::time::Time;
use slots::{Slot, Slots};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};

/// Messages the mailbox holds; a connection that finds it full keeps its batch and tries again.
const MAILBOX_CAPACITY: usize = 1_024;
/// A batch is appended at this size without waiting for the end of the mailbox turn, in bytes.
const BUILDING_BYTES_MAX: usize = 1024 * 1024;
/// When peers whose mailboxes were full are told what they missed, if nothing happens before.
const OWED_RETRY: Duration = Duration::from_millis(50);
/// Flushes that may be awaited at a time.
const FLUSHES_MAX: usize = 65_536;

/// The router.
pub struct Router {
    shared: Arc<Shared>,
    journal: Arc<dyn crate::journal::Journal>,
    caps: Caps,
    limits: Limits,
    figures: Arc<Figures>,
    /// As of the last append.
    state: NodeState,
    completions: Option<UnboundedReceiver<Completion>>,
    slots: Slots,
    building: Building,
    pending: VecDeque<Pending>,
    /// Bytes appended and not yet durable.
    in_hand_bytes: usize,
    /// Counts publishes, to tell a receiver named twice in one.
    publishes: u64,
    /// Messages that the node's quota has room for, as the batch in hand goes.
    messages_left: u64,
    /// Producers fenced so far; see [`restante_protocol::producers::Producers::fence`].
    fences: u64,
    /// The connection that speaks for each producer.
    sessions: HashMap<u32, SharedProducer>,
    calls: Calls,
    /// Changes that have just become durable.
    effects: Vec<Effected>,
    /// Pages of removed peers whose copies for others have just become durable.
    copied: Vec<disposal::Copies>,
    delays: delay::Delays,
    /// Delayed messages whose copies have just become durable.
    released: Vec<release::Released>,
    jobs: jobs::Jobs,
    /// Of jobs, what has just become durable.
    steps: Vec<jobs::Step>,
    leaving: administer::Leaving,
    drains: drain::Drains,
    /// How far removed peers have been looked at, to be forgotten.
    looked_at: PeerId,
    /// For lines that operators' tools can cause at will.
    limiter: Limiter<PeerId>,
    flushes: HashMap<u64, Vec<oneshot::Sender<Result<(), Refusal>>>>,
    next_flush: u64,
    owed: Vec<PeerId>,
    retrying_owed: bool,
    flushing: bool,
    failed: bool,
    /// Told when the node has to start anew from its journal.
    fatal: Arc<watch::Sender<Option<String>>>,
    draining: bool,
    drained: Vec<oneshot::Sender<()>>,
}

/// What an operator's change does to the running node once it is durable.
struct AdminEffect {
    event: AdminEvent,
    /// The record as it was, for the log.
    before: Option<PeerRecord>,
    /// The same of a group.
    group_before: Option<Group>,
    /// The same of a class.
    class_before: Option<Class>,
    /// How many groups a removed peer was in.
    groups: u64,
    by: String,
    /// Messages that waited when a peer was removed.
    waiting: u64,
    /// Jobs that end with it.
    ended: Vec<Job>,
}

/// A durable change whose effect and answer are due.
struct Effected {
    effect: AdminEffect,
    reply: oneshot::Sender<Result<AdminDone, Refusal>>,
    done: AdminDone,
}

impl Router {
    /// A router over what a journal remembers. `fatal` is told why when it cannot go on.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        state: NodeState,
        completions: UnboundedReceiver<Completion>,
        limits: Limits,
        figures: Arc<Figures>,
        fatal: Arc<watch::Sender<Option<String>>>,
    ) -> Router {
        let calls = Calls::new(limits.calls_max, limits.calls_each_max);
        Router {
            journal: Arc::clone(&shared.journal),
            caps: shared.journal.caps(),
            shared,
            limits,
            figures,
            state,
            completions: Some(completions),
            slots: Slots::default(),
            building: Building::default(),
            pending: VecDeque::new(),
            in_hand_bytes: 0,
            publishes: 0,
            messages_left: u64::MAX,
            fences: 0,
            sessions: HashMap::new(),
            calls,
            effects: Vec::new(),
            copied: Vec::new(),
            delays: delay::Delays::default(),
            released: Vec::new(),
            jobs: jobs::Jobs::default(),
            steps: Vec::new(),
            leaving: administer::Leaving::new(),
            drains: drain::Drains::default(),
            looked_at: PeerId::NONE,
            limiter: Limiter::default(),
            flushes: HashMap::new(),
            next_flush: 1,
            owed: Vec::new(),
            retrying_owed: false,
            flushing: false,
            failed: false,
            fatal,
            draining: false,
            drained: Vec::new(),
        }
    }

    /// Starts the actor of a peer and gives it a slot.
    fn seat(&mut self, record: &PeerRecord, knows_since: Option<&'static str>) {
        let config = PeerConfig {
            id: record.id,
            name: record.name.clone(),
            url: record.url.clone(),
            settings: record.settings.clone(),
            paused: record.paused,
            version: record.version,
        };
        let seat = peer::spawn(config, &self.shared, knows_since);
        let quota = record.settings.quota(self.limits.peer_share);
        self.slots.insert(record.id, Slot::new(&seat, quota, record.draining));
        if record.draining {
            self.drains.begin(record.id);
        }
    }

    /// Says of what there were too many lines, where no later line has said it.
    fn tell_unsaid(&mut self, now: Time) {
        for (of, id, lines) in self.limiter.take_expired(now) {
            let peer = id.and_then(|id| self.state.registry.get(id));
            let peer = peer.map(|record| record.name.as_str());
            events::lines_suppressed(of, peer, None, lines);
        }
    }

    /// Whoever waits for the router to be idle is told once it is.
    fn answer_drain(&mut self) {
        if self.draining && self.pending.is_empty() && self.building.is_empty() {
            for reply in self.drained.drain(..) {
                let _ = reply.send(());
            }
        }
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    /// The same at first boot and after a crash: a peer per record, and what was begun goes on.
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        if let Some(mut completions) = self.completions.take() {
            ctx.add_stream(futures_util::stream::poll_fn(move |cx| completions.poll_recv(cx)));
        }
        for (class, _) in self.state.registry.classes() {
            self.shared.shaping.set_class(clock::now(), class);
        }
        let records: Vec<PeerRecord> = self.state.registry.peers().cloned().collect();
        for record in &records {
            self.seat(record, Some("the node started"));
        }
        for group in self.state.registry.groups_behind(None) {
            self.shared.directory.insert_group(group.name.clone(), group.id);
        }
        let registry = &self.state.registry;
        // One whose messages have all been purged has some only if they were delayed and came since.
        let has_more = |id| {
            registry.destination(id) == Some(Destination::Purge)
                && self.journal.backlog(id).messages > 0
        };
        let is_at_rest =
            |removed: &&Removed| removed.disposition.is_done() && !has_more(removed.peer.id);
        let (at_rest, unfinished): (Vec<&Removed>, Vec<&Removed>) =
            registry.removed_peers().partition(is_at_rest);
        let ids = |of: Vec<&Removed>| of.into_iter().map(|r| r.peer.id).collect::<Vec<PeerId>>();
        let (at_rest, unfinished) = (ids(at_rest), ids(unfinished));
        at_rest.into_iter().for_each(|id| self.count_left_by(id));
        for id in unfinished {
            self.dispose(id, "restart".to_owned(), ctx);
        }
        let jobs: Vec<u64> = self.state.registry.jobs().map(|job| job.number).collect();
        for number in jobs {
            self.resume_job(number, ctx);
        }
        self.begin_delays(ctx);
        ctx.run_interval(SWEEP_EVERY, |router, _| router.tell_unsaid(clock::now()));
        ctx.run_interval(drain::LOOK_EVERY, |router, _| router.look_at_drains());
    }
}

impl Handler<OpenProducer> for Router {
    type Result = ResponseFuture<Result<OpenedProducer, Refusal>>;

    fn handle(&mut self, open: OpenProducer, ctx: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.open_producer(open, reply);
        self.flush_soon(ctx);
        answered(answer)
    }
}

impl Router {
    /// Interns a producer identity under a new epoch, durably, and takes the older connection's
    /// place.
    fn open_producer(
        &mut self,
        open: OpenProducer,
        reply: oneshot::Sender<Result<OpenedProducer, Refusal>>,
    ) {
        // What the older connection had in the batch counts as decided before the hello.
        self.append_building();
        let sessions = &self.sessions;
        let is_connected =
            |index| sessions.get(&index).is_some_and(|producer| !producer.is_closed());
        let event = match self.state.producers.open(open.id, open.unused_from, is_connected) {
            Ok(event) => event,
            Err(why) => {
                let _ = reply.send(Err(why));
                return;
            }
        };
        let evicts = event.evicts.clone();
        match self.append_state(&StateEvent::Producer(event)) {
            Ok(Applied::Producer(opened)) => {
                let session = ProducerSession { index: opened.index, epoch: opened.epoch };
                let opened = OpenedProducer { session, next_sequence: opened.next_sequence };
                for evicted in evicts.iter().filter_map(|index| self.sessions.remove(index)) {
                    evicted.abandon(&SessionError::Forgotten.refusal());
                }
                if let Some(older) = self.sessions.insert(session.index, open.from) {
                    older.supersede();
                }
                self.once_durable(batch::Outcome::Opened { reply, opened });
            }
            Ok(Applied::Admin(_) | Applied::Released) => {}
            Err(why) => {
                let _ = reply.send(Err(why));
            }
        }
    }
}

impl Handler<CallEnded> for Router {
    type Result = ();

    fn handle(&mut self, ended: CallEnded, _: &mut Context<Self>) {
        if let Some(call) = self.calls.remove(ended.number) {
            call.from.reply(call.sequence, ended.kind, &ended.value);
        }
    }
}

impl Handler<CancelCall> for Router {
    type Result = ();

    fn handle(&mut self, cancel: CancelCall, _: &mut Context<Self>) {
        let CancelCall { from, sequence } = cancel;
        let coming = &mut self.building.calls;
        match coming.iter().rposition(|slot| slot.call.is_of(&from, sequence)) {
            Some(place) => drop(coming.remove(place)),
            None => drop(self.calls.cancel(&from, sequence)),
        }
    }
}

impl Handler<CallsExpired> for Router {
    type Result = ();

    fn handle(&mut self, expired: CallsExpired, _: &mut Context<Self>) {
        for number in self.calls.numbers_of(&expired.0) {
            if let Some(call) = self.calls.remove(number) {
                call.end(b"its time to live ended");
            }
        }
    }
}

impl Handler<FlushSettles> for Router {
    type Result = ResponseFuture<Result<(), Refusal>>;

    fn handle(&mut self, _: FlushSettles, _: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        if self.flushes.len() >= FLUSHES_MAX {
            let _ = reply.send(Err(Refusal::new(Code::Overloaded, "too many flushes at a time")));
        } else {
            let token = self.next_flush;
            self.next_flush += 1;
            self.flushes.insert(token, vec![reply]);
            self.journal.flush(token);
        }
        answered(answer)
    }
}

impl Handler<Drain> for Router {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Drain, _: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        self.draining = true;
        self.append_building();
        self.drained.push(reply);
        self.answer_drain();
        Box::pin(async move {
            // A router that is gone has nothing left to drain.
            let _ = answer.await;
        })
    }
}

/// Awaits an answer; a router that died before giving it is a defect that the asker is told of.
fn answered<T: 'static>(
    answer: oneshot::Receiver<Result<T, Refusal>>,
) -> ResponseFuture<Result<T, Refusal>> {
    Box::pin(async move {
        answer.await.unwrap_or_else(|_| {
            Err(Refusal::new(Code::Internal, "the router ended before it could answer"))
        })
    })
}
