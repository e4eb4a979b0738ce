//! The admin actor: answers questions from what is observed, and carries changes to the router.
//!
//! It lives on the second arbiter. Nothing it does holds up a message.

mod listing;

use crate::Figures;
use crate::aside::REMOVED;
use crate::clock;
use crate::directory::{Directory, Seat};
use crate::events;
use crate::health::outlook;
use crate::journal::{Admission, BackupTaken, Ended, Journal, Life, LookupError};
use crate::peer::{Inspect, Locate, Peer};
use crate::router::{
    Administer, AllClasses, FindGroup, FindJob, FindPeer, GroupsBehind, PeerLabels, PeerRecordView,
    PeerRecords, Router,
};
use actix::dev::ToEnvelope;
use actix::prelude::*;
use restante_protocol::control::{PeerPage, Reply, Request};
use restante_protocol::delivery::types::{Snapshot, Whereabouts};
use restante_protocol::id::{MessageId, MessageNumber, NodeTag, PeerId};
use restante_protocol::limits::{PEER_PAGE_MAX, RECEIVERS_MAX};
use restante_protocol::message::Body;
use restante_protocol::record::Outcome;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::status::{
    BackupDone, Blocked, Health, MessageState, MessageStatus, NodeStatus, PeerInfo, PeerStatus,
    Quota, ReceiverStatus, Stall,
};
use restante_protocol::time::{Time, WallMillis};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Requests the mailbox holds; a connection that finds it full waits.
const MAILBOX_CAPACITY: usize = 1_024;
/// How long a peer's actor is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Copies of a message that are followed when it is traced: one for each receiver it can have, and
/// a few that were handed on again. Of more, the last that is said is to whom they were handed.
const COPIES_MAX: usize = RECEIVERS_MAX + 64;

/// A request of a connection. `Attach`, `Detach`, `Flush`, `Watch` and `Unwatch` are the
/// connection's own and are refused here.
#[derive(Message)]
#[rtype(result = "Result<Reply, Refusal>")]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// Who asks, for the log: agent and address of the connection.
    pub by: String,
}

/// Changes the level filter of the log; an error says what is wrong with it.
pub type SetLogFilter = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the admin actor asks.
#[derive(Clone)]
pub struct Sources {
    /// Who is there.
    pub directory: Arc<Directory>,
    /// Who knows the records.
    pub router: Addr<Router>,
    /// What is stored.
    pub journal: Arc<dyn Journal>,
    /// What has been counted.
    pub figures: Arc<Figures>,
    /// Part of every id this node minted.
    pub node: NodeTag,
    /// The journal's epoch.
    pub epoch: u32,
    /// What a peer without quotas of its own may take.
    pub peer_share: Quota,
    /// Changes the log's filter.
    pub set_log_filter: SetLogFilter,
}

/// The actor that answers requests.
pub struct Admin {
    sources: Sources,
}

impl Admin {
    /// An admin actor over these sources.
    #[must_use]
    pub fn new(sources: Sources) -> Admin {
        Admin { sources }
    }
}

impl Actor for Admin {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
    }
}

impl Supervised for Admin {}

impl Handler<Ask> for Admin {
    type Result = ResponseFuture<Result<Reply, Refusal>>;

    fn handle(&mut self, ask: Ask, _: &mut Context<Self>) -> Self::Result {
        let sources = self.sources.clone();
        Box::pin(async move { sources.answer(ask).await })
    }
}

impl Sources {
    async fn answer(&self, ask: Ask) -> Result<Reply, Refusal> {
        match ask.request {
            Request::Admin(command) => {
                let change = Administer { command, by: ask.by };
                self.router.send(change).await.map_err(unanswered)?.map(Reply::Admin)
            }
            Request::Peers { after } => self.peers(after).await.map(Reply::Peers),
            Request::Peer { name } => self.peer(name).await.map(|peer| Reply::Peer(Box::new(peer))),
            Request::Groups { after } => {
                let page = self.router.send(GroupsBehind(after)).await.map_err(unanswered)?;
                Ok(Reply::Groups(page))
            }
            Request::Group { name } => {
                let none = format!("there is no group '{name}'");
                let group = self.router.send(FindGroup(name)).await.map_err(unanswered)?;
                let group = group.ok_or_else(|| Refusal::new(Code::NotFound, none))?;
                Ok(Reply::Group(Box::new(group)))
            }
            Request::Classes => {
                let classes = self.router.send(AllClasses).await.map_err(unanswered)?;
                Ok(Reply::Classes(classes))
            }
            Request::Node => Ok(Reply::Node(self.node_status())),
            Request::Message { id } => self.message(id).await.map(Reply::Message),
            Request::Payload { id } => self.payload(id).await.map(Reply::Payload),
            Request::Stored { peer, lane, filter, after, bodies } => {
                let asked = listing::Question { peer, lane, filter, after, bodies };
                self.stored(asked).await.map(Reply::Stored)
            }
            Request::Job { peer } => {
                let peer = self.record(&peer).await?.id;
                let job = self.router.send(FindJob(peer)).await.map_err(unanswered)?;
                Ok(Reply::Job(job.map(Box::new)))
            }
            Request::LogFilter { filter } => {
                (self.set_log_filter)(&filter)
                    .map_err(|why| Refusal::new(Code::BadSetting, why))?;
                events::log_filter_changed(&filter, &ask.by);
                Ok(Reply::Done)
            }
            Request::Backup { dir } => self.backup(&dir, &ask.by).await.map(Reply::Backup),
            Request::Attach { .. }
            | Request::Detach { .. }
            | Request::Flush
            | Request::Watch { .. }
            | Request::Unwatch { .. } => {
                Err(Refusal::new(Code::OutOfTurn, "the connection itself answers this request"))
            }
        }
    }

    async fn backup(&self, dir: &str, by: &str) -> Result<BackupDone, Refusal> {
        events::backup_started(dir, by);
        match self.journal.backup(dir.into()).await {
            Ok(BackupTaken { files, bytes, next }) => {
                events::backup_taken(dir, files, bytes, next);
                Ok(BackupDone { files, bytes, next })
            }
            Err(refusal) => {
                events::backup_failed(dir, &refusal.to_string());
                Err(refusal)
            }
        }
    }

    async fn peers(&self, after: Option<PeerId>) -> Result<PeerPage, Refusal> {
        let asked = PeerRecords { after: after.unwrap_or(PeerId::NONE) };
        let records = self.router.send(asked).await.map_err(unanswered)?;
        let more = records.len() == PEER_PAGE_MAX;
        let peers = records.iter().map(|record| self.status_of(record, None)).collect();
        Ok(PeerPage { peers, more })
    }

    async fn peer(&self, name: String) -> Result<PeerInfo, Refusal> {
        let record = self.record(&name).await?;
        let seat = self.directory.seat(record.id);
        let exact = match &seat {
            Some(seat) => ask_peer(seat, Inspect).await.flatten(),
            None => None,
        };
        let restarts = seat.as_ref().map_or(0, |seat| seat.marks.restarts.load(Relaxed));
        let status = self.status_of(&record, exact);
        let quota = record.settings.quota(self.peer_share);
        let forecast = seat.as_ref().and_then(|seat| *seat.marks.forecast.lock());
        let outlook = forecast.as_ref().map(outlook);
        Ok(PeerInfo { status, settings: record.settings, quota, restarts, outlook })
    }

    /// The record of a peer, by `name` or `name#id`.
    async fn record(&self, name: &str) -> Result<PeerRecordView, Refusal> {
        let record = self.router.send(FindPeer(name.to_owned())).await.map_err(unanswered)?;
        record.ok_or_else(|| Refusal::new(Code::NotFound, format!("no peer is named {name:?}")))
    }

    fn status_of(&self, record: &PeerRecordView, exact: Option<Snapshot>) -> PeerStatus {
        let seat = self.directory.seat(record.id);
        let snapshot = exact.or_else(|| seat.as_ref()?.marks.observed.lock().clone());
        peer_status(record, seat.as_deref(), snapshot, &*self.journal)
    }

    fn node_status(&self) -> NodeStatus {
        let seats = self.directory.seats();
        let sum = |count: fn(&Seat) -> u64| seats.iter().map(|seat| count(seat)).sum();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: self.epoch,
            started: WallMillis(self.figures.started_ms),
            peers: seats.len() as u64,
            connections: self.figures.connections.load(Relaxed),
            confirmed: self.figures.confirmed.load(Relaxed),
            acked: sum(|seat| seat.marks.acked.load(Relaxed)),
            waiting: sum(|seat| seat.marks.waiting.load(Relaxed)),
            delayed: self.journal.backlog(PeerId::DELAYED).messages,
            journal_bytes: self.journal.disk_bytes(),
            accepting: match self.journal.admission() {
                Admission::Open => Ok(()),
                Admission::Closed(why) => Err(why),
            },
        }
    }

    async fn life(&self, id: MessageId) -> Result<Life, Refusal> {
        if id.node() != self.node || id.partition() != 0 {
            return Err(gone(id, LookupError::Unknown));
        }
        match self.journal.lookup(id.number()).await {
            Ok(life) if life.accepted_ms == id.accepted_ms() => Ok(life),
            Ok(_) => Err(gone(id, LookupError::Unknown)),
            Err(why) => Err(gone(id, why)),
        }
    }

    async fn payload(&self, id: MessageId) -> Result<Vec<u8>, Refusal> {
        let mut life = self.life(id).await?;
        for _ in 0..COPIES_MAX {
            if let Some(body) = life.body {
                return Ok(body.to_vec());
            }
            // What was delayed or handed over may be stored as a copy only.
            let copy = life.receivers.iter().find_map(|(_, ended)| ended.as_ref()?.copy_number());
            let Some(copy) = copy else { break };
            life = self.journal.lookup(copy).await.map_err(|why| gone(id, why))?;
        }
        Err(Refusal::new(Code::AgedOut, format!("the payload of {id} is gone")))
    }

    async fn message(&self, id: MessageId) -> Result<MessageStatus, Refusal> {
        let life = self.life(id).await?;
        let length = |life: &Life| life.body.as_ref().map(|body| body.len() as u64);
        let mut bytes = length(&life);
        let accepted = WallMillis(life.accepted_ms);
        let mut receivers = Vec::with_capacity(life.receivers.len());
        // A message that was delayed or handed over goes on under another number, for each receiver it
        // was taken from; its life is one.
        let (mut copies, mut followed) = (VecDeque::new(), 0);
        let delayed = self.delayed(&life).await?;
        let mut lost = None;
        let (mut number, mut expires, mut at) = (id.number(), end_of_life(&life), life.receivers);
        receivers.extend(delayed);
        loop {
            for (peer, ended) in at {
                copies.extend(ended.as_ref().and_then(Ended::copy_number));
                if peer == PeerId::DELAYED {
                    continue;
                }
                let mut receiver = self.receiver(number, peer, ended).await?;
                receiver.expires = expires.filter(|_| receiver.state.is_open());
                receivers.push(receiver);
            }
            (number, expires, at) = loop {
                let Some(copy) = copies.pop_front().filter(|_| followed < COPIES_MAX) else {
                    return match lost {
                        // It went into its receivers' queues, and that is all that can be said.
                        Some(why) if receivers.is_empty() => Err(gone(id, why)),
                        _ => Ok(MessageStatus { id, accepted, bytes, receivers }),
                    };
                };
                followed += 1;
                match self.journal.lookup(copy).await {
                    Ok(life) => {
                        bytes = bytes.or(length(&life));
                        break (copy, end_of_life(&life), life.receivers);
                    }
                    Err(LookupError::Unavailable) => {
                        return Err(gone(id, LookupError::Unavailable));
                    }
                    // That it was handed over is all that can be said of it.
                    Err(why) => lost = Some(why),
                }
            };
        }
    }

    /// Of a message that is or was delayed, what there is to say of the time before it was in its
    /// receivers' queues: nothing, once it is there.
    async fn delayed(&self, life: &Life) -> Result<Vec<ReceiverStatus>, Refusal> {
        let ended = life.receivers.iter().find(|(peer, _)| *peer == PeerId::DELAYED);
        let Some((_, ended)) = ended else { return Ok(Vec::new()) };
        let body = life.body.as_deref().map(|body| Body::parse(body).unwrap_or_default());
        let body = body.unwrap_or_default();
        let (at, expires) = (life.accepted_ms, end_of_life(life));
        let state = match ended {
            None => {
                let until = WallMillis(body.delay.map_or(at, |delay| delay.end_ms(at)));
                MessageState::Delayed { until }
            }
            Some(Ended::Settled { .. }) => return Ok(Vec::new()),
            Some(Ended::Parked(park)) => {
                MessageState::Parked { at: WallMillis(park.at_ms), reason: park.reason.clone() }
            }
            Some(Ended::Done) => MessageState::Done,
        };
        let peers = body.delayed_for().collect();
        let labels = self.router.send(PeerLabels(peers)).await.map_err(unanswered)?;
        let expires = expires.filter(|_| state.is_open());
        let of = |receiver| ReceiverStatus {
            receiver,
            state: state.clone(),
            attempts: 0,
            blocked: None,
            expires,
        };
        Ok(labels.into_iter().map(of).collect())
    }

    async fn receiver(
        &self,
        number: MessageNumber,
        peer: PeerId,
        ended: Option<Ended>,
    ) -> Result<ReceiverStatus, Refusal> {
        let mut names = vec![peer];
        if let Some(Ended::Settled { moved_to, outcome: Outcome::Moved, .. }) = &ended {
            names.push(*moved_to);
        }
        let labels = self.router.send(PeerLabels(names)).await.map_err(unanswered)?;
        let mut labels = labels.into_iter();
        let receiver = labels.next().unwrap_or_default();
        let (state, attempts) = match ended {
            Some(Ended::Settled { outcome, at_ms, moved_to, attempts, value }) => {
                let at = WallMillis(at_ms);
                let to = labels.next().unwrap_or_default();
                let state = match outcome {
                    Outcome::Acked => {
                        MessageState::Acked { at, value: value.map(|value| value.to_vec()) }
                    }
                    Outcome::Purged => {
                        let by = value.map(|by| String::from_utf8_lossy(&by).into_owned());
                        let by = match by {
                            Some(by) => Some(by),
                            None => self.removed_by(&receiver).await?,
                        };
                        MessageState::Purged { at, by }
                    }
                    Outcome::Expired => MessageState::Expired { at },
                    Outcome::Moved if moved_to == peer => MessageState::Replayed { at },
                    Outcome::Moved => MessageState::Moved { at, to },
                };
                (state, u32::from(attempts))
            }
            Some(Ended::Parked(park)) => {
                let (at, attempts) = (WallMillis(park.at_ms), u32::from(park.attempts));
                (MessageState::Parked { at, reason: park.reason }, attempts)
            }
            Some(Ended::Done) => (MessageState::Done, 0),
            None => match self.parked_at(&receiver).await? {
                Some(at) => (MessageState::Parked { at, reason: REMOVED.to_owned() }, 0),
                None => return Ok(self.open_status(receiver, number, peer).await),
            },
        };
        Ok(ReceiverStatus { receiver, state, attempts, blocked: None, expires: None })
    }

    /// When the removal of this receiver (`name#id`) parked what waited for it, if it did.
    async fn parked_at(&self, label: &str) -> Result<Option<WallMillis>, Refusal> {
        let record = self.router.send(FindPeer(label.to_owned())).await.map_err(unanswered)?;
        Ok(record.and_then(|record| record.parked_at))
    }

    /// Who removed this receiver (`name#id`), if that is still known.
    async fn removed_by(&self, label: &str) -> Result<Option<String>, Refusal> {
        let record = self.router.send(FindPeer(label.to_owned())).await.map_err(unanswered)?;
        Ok(record.and_then(|record| record.removed_by))
    }

    /// Where an open message is and what it waits for, as its peer knows it; queued if the peer only
    /// has it in the journal.
    async fn open_status(
        &self,
        receiver: String,
        number: MessageNumber,
        peer: PeerId,
    ) -> ReceiverStatus {
        let state = MessageState::Queued;
        let (attempts, blocked, expires) = (0, None, None);
        let mut status = ReceiverStatus { receiver, state, attempts, blocked, expires };
        let Some(seat) = self.directory.seat(peer) else { return status };
        if seat.marks.held.load(Relaxed) {
            let by = Stall::Crashing;
            status.blocked = Some(Blocked { by, behind: None, until: None, why: String::new() });
            return status;
        }
        let found = ask_peer(&seat, Locate(number)).await.flatten();
        let Some((whereabouts, blocked)) = found else { return status };
        let (state, attempts) = match whereabouts {
            Whereabouts::Queued { attempts } => (MessageState::Queued, attempts),
            Whereabouts::Unacked { attempts, since } => {
                (MessageState::InFlight { since: wall(since) }, attempts)
            }
            Whereabouts::Retrying { attempts, next_attempt, reason } => {
                (MessageState::Retrying { next_attempt: wall(next_attempt), reason }, attempts)
            }
        };
        let behind = blocked.behind.map(|(number, ms)| MessageId::new(ms, self.node, 0, number));
        let (by, until, mut why) = (blocked.by, blocked.until.map(wall), blocked.why);
        if by == Stall::Link {
            why = seat.marks.why_no_link(&why);
        }
        status.blocked = Some(Blocked { by, behind, until, why });
        (status.state, status.attempts) = (state, attempts.into());
        status
    }
}

/// What a peer's actor answers. One that is held back after crashes, or is too busy, is not waited
/// for: its marks speak for it.
async fn ask_peer<M>(seat: &Seat, question: M) -> Option<M::Result>
where
    M: Message + Send + 'static,
    M::Result: Send,
    Peer: Handler<M>,
    Context<Peer>: ToEnvelope<Peer, M>,
{
    if seat.marks.held.load(Relaxed) {
        return None;
    }
    let answer = tokio::time::timeout(ANSWER_MAX, seat.addr.send(question)).await;
    answer.ok()?.ok()
}

/// A peer's status from its record, its seat and its last snapshot.
pub(crate) fn peer_status(
    record: &PeerRecordView,
    seat: Option<&Seat>,
    snapshot: Option<Snapshot>,
    journal: &dyn Journal,
) -> PeerStatus {
    let backlog = seat.is_none().then(|| journal.backlog(record.id));
    let left = backlog.map_or(0, |backlog| backlog.messages);
    let bytes = backlog.map_or(0, |backlog| backlog.bytes);
    // What waited for a peer whose removal parked it does not wait any more.
    let is_parked = record.parked_at.is_some();
    let (waiting, waiting_bytes, left) = if is_parked { (0, 0, left) } else { (left, bytes, 0) };
    let parked = seat.map_or_else(
        || left + backlog.map_or(0, |backlog| backlog.parked),
        |seat| seat.marks.parked.load(Relaxed),
    );
    let mut status = PeerStatus {
        id: record.id,
        name: record.name.clone(),
        url: record.url.clone(),
        version: record.version,
        health: if record.paused { Health::Paused } else { Health::Unreachable },
        since: record.parked_at.unwrap_or_default(),
        why: if record.removed { "removed" } else { "not started yet" }.to_owned(),
        waiting,
        waiting_bytes,
        unacked: 0,
        parked,
        delayed: record.delayed,
        acked: seat.map_or(0, |seat| seat.marks.acked.load(Relaxed)),
        next_attempt: None,
        oldest: None,
        stall: None,
        taking: record.taking,
    };
    if let Some(mut snapshot) = snapshot {
        if let Some(seat) = seat {
            seat.marks.complete(&mut snapshot);
        }
        status.health = snapshot.health;
        status.since = wall(snapshot.since);
        status.why = snapshot.why;
        status.waiting = snapshot.waiting;
        status.waiting_bytes = snapshot.waiting_bytes;
        status.unacked = snapshot.unacked;
        status.next_attempt = snapshot.next_attempt.map(wall);
        status.oldest = snapshot.oldest_ms.map(WallMillis);
        status.stall = snapshot.stall;
    }
    status
}

/// When a stored message's time to live ends; that of a copy began with the message.
fn end_of_life(life: &Life) -> Option<WallMillis> {
    let body = Body::parse(life.body.as_ref()?).ok()?;
    let accepted_ms = body.original_id.map_or(life.accepted_ms, MessageId::accepted_ms);
    Some(WallMillis(accepted_ms.saturating_add(body.ttl_ms?.get())))
}

/// Why nothing is said of a message.
fn gone(id: MessageId, why: LookupError) -> Refusal {
    let (code, detail) = match why {
        LookupError::Unknown => (Code::NotFound, format!("{id} was not accepted by this node")),
        LookupError::AgedOut => (Code::AgedOut, format!("the record of {id} is gone")),
        LookupError::Damaged => {
            (Code::Damaged, format!("the record of {id} was on disk and is damaged"))
        }
        LookupError::Unavailable => {
            (Code::JournalPoisoned, "the journal cannot be read now".to_owned())
        }
    };
    Refusal::new(code, detail)
}

fn wall(time: Time) -> WallMillis {
    WallMillis(clock::wall_of(time))
}

fn unanswered(why: MailboxError) -> Refusal {
    Refusal::new(Code::Internal, format!("an actor did not answer: {why}"))
}
