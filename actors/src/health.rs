//! The health actor: hears what peers report, writes it to the log at a bearable rate, and sums up
//! once a minute who is worst off.
//!
//! It lives on the second arbiter and is never waited for. The verdicts themselves are the cores';
//! what is kept here is only what a log needs: rate limits.

use crate::Figures;
use crate::clock;
use crate::directory::{Directory, Seat};
use crate::events::{self, Limiter, SWEEP_EVERY, Suppressed};
use crate::journal::Journal;
use crate::peer::PeerConfig;
use crate::supervise::{self, Crash, Turn};
use actix::prelude::*;
use foldhash::HashMap;
use restante_protocol::delivery::Expired;
use restante_protocol::delivery::types::{ParkCause, Parked, Report, Snapshot};
use restante_protocol::forecast::{Alarm, Flow, Forecast};
use restante_protocol::id::{MessageId, MessageNumber, NodeTag, PeerId};
use restante_protocol::name::Name;
use restante_protocol::status::{Health as Verdict, Outlook};
use restante_protocol::time::{Time, WallMillis};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Reports the mailbox holds; beyond it reports are lost to the log, never to the verdicts.
const MAILBOX_CAPACITY: usize = 65_536;
/// How often the summary is written.
const SUMMARY_EVERY: Duration = Duration::from_secs(60);
/// How often is looked where the queues are going.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Peers named in a summary.
const WORST_MAX: usize = 20;

/// What a peer has to report.
#[derive(Message)]
#[rtype(result = "()")]
pub struct PeerReport {
    id: PeerId,
    name: Name,
    kind: Kind,
}

enum Kind {
    Core(Report),
    Parked(Parked),
    Expired { messages: u64, first: Expired },
    Turn(Turn),
}

impl PeerReport {
    /// What the peer's core reports.
    #[must_use]
    pub fn core(peer: &PeerConfig, report: Report) -> PeerReport {
        PeerReport { id: peer.id, name: peer.name.clone(), kind: Kind::Core(report) }
    }

    /// A message was set aside.
    #[must_use]
    pub fn parked(peer: &PeerConfig, parked: &Parked) -> PeerReport {
        PeerReport { id: peer.id, name: peer.name.clone(), kind: Kind::Parked(parked.clone()) }
    }

    /// So many messages have expired, of which this is the first.
    #[must_use]
    pub fn expired(peer: &PeerConfig, messages: u64, first: Expired) -> PeerReport {
        let kind = Kind::Expired { messages, first };
        PeerReport { id: peer.id, name: peer.name.clone(), kind }
    }

    /// The actor panicked, or has been rebuilt.
    #[must_use]
    pub fn turn(peer: &PeerConfig, turn: Turn) -> PeerReport {
        PeerReport { id: peer.id, name: peer.name.clone(), kind: Kind::Turn(turn) }
    }
}

/// The health actor.
pub struct Health {
    directory: Arc<Directory>,
    node: NodeTag,
    partition: u16,
    figures: Arc<Figures>,
    journal: Arc<dyn Journal>,
    limiter: Limiter<PeerId>,
    /// The queues that something is in.
    queues: HashMap<PeerId, Queue>,
}

/// A queue that is looked at every so often.
struct Queue {
    flow: Flow,
    alarm: Alarm,
}

impl Health {
    /// A health actor over the peers of this directory.
    #[must_use]
    pub fn new(
        directory: Arc<Directory>,
        node: NodeTag,
        partition: u16,
        figures: Arc<Figures>,
        journal: Arc<dyn Journal>,
    ) -> Health {
        let (limiter, queues) = (Limiter::default(), HashMap::default());
        Health { directory, node, partition, figures, journal, limiter, queues }
    }

    fn id(&self, accepted_ms: u64, number: MessageNumber) -> MessageId {
        MessageId::new(accepted_ms, self.node, self.partition, number)
    }

    fn waiting(&self, id: PeerId) -> u64 {
        self.directory.seat(id).map_or(0, |seat| seat.marks.waiting.load(Relaxed))
    }

    fn admit(&mut self, id: PeerId, event: &'static str) -> Option<Suppressed> {
        self.limiter.admit(id, event, clock::now())
    }

    fn core_report(&mut self, id: PeerId, peer: &str, report: Report) {
        match report {
            Report::Verdict { health, since, why, next_attempt } => {
                self.verdict(id, peer, health, wall(since), &why, next_attempt.map(wall));
            }
            Report::DialFailed { failures, why, next_attempt } => {
                if let Some(suppressed) = self.admit(id, "dial_failed") {
                    events::dial_failed(peer, failures, &why, wall(next_attempt), suppressed);
                }
            }
            Report::Late { messages, first, accepted_ms, in_a_row } => {
                if let Some(suppressed) = self.admit(id, "messages_late") {
                    let first = self.id(accepted_ms, first);
                    events::messages_late(peer, messages, first, in_a_row, suppressed);
                }
            }
            Report::Refused { number, accepted_ms, attempts, next_attempt, reason } => {
                if let Some(suppressed) = self.admit(id, "message_refused") {
                    let (message, next) = (self.id(accepted_ms, number), wall(next_attempt));
                    let attempts = u32::from(attempts);
                    events::message_refused(peer, message, attempts, &reason, next, suppressed);
                }
            }
            Report::OddAck { tag } => {
                if let Some(suppressed) = self.admit(id, "odd_ack") {
                    events::odd_ack(peer, tag, suppressed);
                }
            }
        }
    }

    fn verdict(
        &mut self,
        id: PeerId,
        peer: &str,
        health: Verdict,
        since: WallMillis,
        why: &str,
        next: Option<WallMillis>,
    ) {
        let event = match health {
            Verdict::Up => "peer_up",
            Verdict::Slow => "peer_slow",
            Verdict::Refusing => "peer_refusing",
            Verdict::Failed => "peer_failed",
            Verdict::Unreachable if self.figures.stopping.load(Relaxed) => return,
            Verdict::Unreachable => "peer_down",
            // Said by whoever caused it: the stopping node, the operator's command, the supervisor.
            Verdict::Paused | Verdict::Crashing => return,
        };
        let Some(suppressed) = self.admit(id, event) else { return };
        let waiting = self.waiting(id);
        match health {
            Verdict::Up => events::peer_up(peer, since, waiting, suppressed),
            Verdict::Slow => events::peer_slow(peer, since, why, waiting, suppressed),
            Verdict::Refusing => events::peer_refusing(peer, since, why, waiting, suppressed),
            Verdict::Failed => events::peer_failed(peer, since, why, waiting, next, suppressed),
            _ => events::peer_down(peer, since, why, waiting, next, suppressed),
        }
    }

    fn parked(&mut self, id: PeerId, peer: &str, parked: &Parked) {
        let message = self.id(parked.accepted_ms, parked.number);
        match parked.cause {
            ParkCause::Poison => events::poison_parked(peer, message, &parked.reason),
            ParkCause::Receiver | ParkCause::Unreadable => {
                let Some(suppressed) = self.admit(id, "message_parked") else { return };
                let attempts = u32::from(parked.attempts);
                events::message_parked(peer, message, attempts, &parked.reason, suppressed);
            }
        }
    }

    fn expired(&mut self, id: PeerId, peer: &str, messages: u64, first: Expired) {
        if let Some(suppressed) = self.admit(id, "messages_expired") {
            let first = self.id(first.accepted_ms, first.number);
            events::messages_expired(peer, messages, first, suppressed);
        }
    }

    fn crashed(&mut self, peer: &str, crash: &Crash) {
        let crashes = u32::try_from(crash.crashes).unwrap_or(u32::MAX);
        let message = crash.in_hand.map(|(number, accepted_ms)| self.id(accepted_ms, number));
        events::actor_crashed("peer", Some(peer), message, &crash.panic, crashes);
        if !crash.hold.is_zero() {
            let next = WallMillis(clock::wall_of(clock::now() + crash.hold));
            events::actor_held("peer", Some(peer), crashes, next);
        }
    }

    /// Looks where the queues are going, and tells of those that will soon be full.
    fn look_ahead(&mut self) {
        let (now, mut before) = (clock::now(), std::mem::take(&mut self.queues));
        for seat in self.directory.seats() {
            let (marks, totals) = (&seat.marks, seat.marks.totals());
            let queue = before.remove(&seat.id);
            if totals.waiting[0] == 0 && totals.kept[0] == 0 {
                if let Some(mut queue) = queue {
                    *marks.forecast.lock() = None;
                    self.tell_ahead(&seat, &mut queue.alarm, &Forecast::default());
                }
                continue;
            }
            let mut queue = match queue {
                Some(Queue { mut flow, alarm }) => {
                    flow.observe(now, totals);
                    Queue { flow, alarm }
                }
                None => Queue { flow: Flow::new(now, totals), alarm: Alarm::default() },
            };
            let forecast = queue.flow.forecast(marks.quota());
            *marks.forecast.lock() = forecast;
            if let Some(forecast) = forecast {
                self.tell_ahead(&seat, &mut queue.alarm, &forecast);
            }
            self.queues.insert(seat.id, queue);
        }
    }

    fn tell_ahead(&mut self, seat: &Seat, alarm: &mut Alarm, forecast: &Forecast) {
        let Some(raised) = alarm.judge(forecast) else { return };
        let event = if raised { "peer_fills" } else { "peer_fills_no_more" };
        let Some(suppressed) = self.admit(seat.id, event) else { return };
        let (peer, waiting) = (seat.name.as_str(), seat.marks.waiting.load(Relaxed));
        match outlook(forecast) {
            Outlook { full: Some(full), came_per_minute, went_per_minute, .. } if raised => {
                events::peer_fills(
                    peer,
                    full,
                    waiting,
                    came_per_minute,
                    went_per_minute,
                    suppressed,
                );
            }
            _ => events::peer_fills_no_more(peer, waiting, suppressed),
        }
    }

    /// The worst peers by name, and how many more there are.
    fn summarise(&self) {
        let (mut up, mut paused, mut waiting, mut parked, mut acked) = (0, 0, 0, 0, 0);
        let seats = self.directory.seats();
        let mut troubled: Vec<(&Name, Snapshot, u64)> = Vec::new();
        for seat in &seats {
            let marks = &seat.marks;
            let here = marks.parked.load(Relaxed);
            waiting += marks.waiting.load(Relaxed);
            parked += here;
            acked += marks.acked.load(Relaxed);
            let Some(mut observed) = marks.observed.lock().clone() else { continue };
            up += u64::from(observed.health == Verdict::Up);
            paused += u64::from(observed.health == Verdict::Paused);
            if observed.health != Verdict::Up && (observed.waiting > 0 || here > 0) {
                marks.complete(&mut observed);
                troubled.push((&seat.name, observed, here));
            }
        }
        troubled.sort_by_key(|(name, snapshot, _)| (std::cmp::Reverse(snapshot.waiting), *name));
        let peers = seats.len() as u64;
        let commits = self.journal.commits();
        events::summary(
            peers,
            up,
            peers - up - paused,
            paused,
            waiting,
            parked,
            self.journal.backlog(PeerId::DELAYED).messages,
            self.figures.confirmed.load(Relaxed),
            acked,
            self.figures.connections.load(Relaxed),
            self.journal.disk_bytes(),
            commits.count,
            commits.slowest_us / 1_000,
            troubled.len().saturating_sub(WORST_MAX) as u64,
        );
        for (name, snapshot, parked) in troubled.iter().take(WORST_MAX) {
            events::summary_peer(
                name.as_str(),
                snapshot.health.word(),
                wall(snapshot.since),
                &snapshot.why,
                snapshot.waiting,
                *parked,
                snapshot.oldest_ms.map(WallMillis),
                snapshot.next_attempt.map(wall),
            );
        }
    }
}

fn wall(time: Time) -> WallMillis {
    WallMillis(clock::wall_of(time))
}

/// A forecast as people are told of it.
pub(crate) fn outlook(forecast: &Forecast) -> Outlook {
    let now = clock::now();
    let at = |after: Option<Duration>| after.map(|after| wall(now + after));
    let [came_per_minute, went_per_minute] =
        forecast.rates.map(|per_second| (60.0 * per_second).round() as u64);
    let (drained, full) = (at(forecast.drained), at(forecast.full));
    Outlook { came_per_minute, went_per_minute, drained, full }
}

impl Actor for Health {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        self.arm(ctx);
    }
}

impl Supervised for Health {
    fn restarting(&mut self, ctx: &mut Self::Context) {
        self.limiter = Limiter::default();
        self.queues.clear();
        // What the one before foresaw is no longer looked at.
        self.directory.seats().iter().for_each(|seat| *seat.marks.forecast.lock() = None);
        self.arm(ctx);
    }
}

impl Health {
    fn tell_unsaid(&mut self, now: Time) {
        for (of, id, lines) in self.limiter.take_expired(now) {
            let seat = id.and_then(|id| self.directory.seat(id));
            events::lines_suppressed(of, seat.as_ref().map(|seat| seat.name.as_str()), None, lines);
        }
    }

    fn arm(&self, ctx: &mut Context<Self>) {
        ctx.run_interval(SUMMARY_EVERY, |health, _| health.summarise());
        ctx.run_interval(LOOK_EVERY, |health, _| health.look_ahead());
        ctx.run_interval(SWEEP_EVERY, |health, _| health.tell_unsaid(clock::now()));
    }
}

impl Handler<PeerReport> for Health {
    type Result = ();

    fn handle(&mut self, report: PeerReport, _: &mut Context<Self>) {
        let PeerReport { id, name, kind } = report;
        match kind {
            Kind::Core(report) => self.core_report(id, name.as_str(), report),
            Kind::Parked(parked) => self.parked(id, name.as_str(), &parked),
            Kind::Expired { messages, first } => self.expired(id, name.as_str(), messages, first),
            Kind::Turn(Turn::Crashed(crash)) => self.crashed(name.as_str(), &crash),
            Kind::Turn(Turn::Restarted(took)) => {
                let took_ms = supervise::millis(took);
                events::actor_restarted("peer", Some(name.as_str()), took_ms);
            }
        }
    }
}
