//! The node: its state, its journal, and a shell for each peer.
//!
//! It follows `actors/src/router`: a batch is judged, appended and handed over once it is durable; a
//! change of state is applied when it is appended and takes effect once it is durable; the boot is that
//! of `actors/src/start.rs`. What differs:
//!
//! - names stand for aliases, and there is no credit: a producer sends all it has;
//! - a hand-over to a full mailbox is drawn by chance instead of coming about;
//! - groups, jobs and removed peers are left out, and of quotas there is only that of messages;
//! - a repeat whose refusals are forgotten is answered from the ledger at once.

mod door;

use super::net::{Answer, Event, Outside, Reading};
use super::plan::{SECOND, Temper};
use super::shell::{Handed, NO_CLASS, Shared, Shell, anchors};
use bytes::BytesMut;
use rand::Rng;
use restante_actors::journal::{Batch, BatchRecord, End, Ticket};
use restante_actors::peer::Budget;
use restante_journal::simulated::{Medium, Simulated};
use restante_journal::{OpenError, Options};
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerSettings, PeerUrl};
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use restante_protocol::name::Name;
use restante_protocol::producers::{Decision, Refused, Run};
use restante_protocol::record::{Placed, RecordKind, put_message_record, put_record};
use restante_protocol::refusal::Code;
use restante_protocol::shaper::{Rate, RatePatch, Rates, RatesPatch, Shaper};
use restante_protocol::state::{Applied, NodeState, StateEvent, StateLimits};
use restante_protocol::time::WallMillis;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a batch at which it is appended.
const BATCH_BYTES: usize = 48 * 1024;
/// Memory for waiting bodies: so little that some of them have to be read again.
const QUEUED_BYTES: usize = 192 * 1024;
/// How long after an append the writer takes its turn, and after something that may wait.
const WRITE_US: u64 = 2_000;
const LAZY_US: u64 = 100_000;
/// After how long without work the writer leaves a mark.
const REST_US: u64 = 100_000;

thread_local! {
    /// The wall clock, for the journal.
    static WALL_MS: Cell<u64> = const { Cell::new(0) };
}

/// The wall clock shows this.
pub(super) fn set_wall(ms: u64) {
    WALL_MS.set(ms);
}

/// How the journal is opened.
fn options() -> Options {
    Options {
        segment_bytes: 128 * 1024,
        checkpoint_bytes: 512 * 1024,
        ready_segments: 2,
        cooling: Duration::ZERO,
        history_ms_max: 30 * 24 * 3_600_000,
        seed: 7,
        node: NodeTag(3),
        now_ms: || WALL_MS.get(),
        ..Options::default()
    }
}

/// What a peer is set to.
pub(super) fn settings_of(temper: &Temper) -> PeerSettings {
    PeerSettings {
        order: temper.order,
        window_messages: temper.window,
        window_bytes: 64 * 1024,
        ack_timeout_ms: temper.ack_timeout_ms,
        quota_messages: temper.quota,
        rates: Rates {
            messages: Rate { rate: 0, ceil: temper.ceil, burst: 2 * temper.ceil },
            ..Rates::default()
        },
        ..PeerSettings::default()
    }
}

/// Something said once a batch is durable.
enum Outcome {
    Confirm { place: usize, epoch: u32, token: u64, number: MessageNumber },
    Welcome { place: usize, session: (u32, u32) },
    Changed { peer: usize, version: u64, moved: bool },
}

/// A batch that has been appended.
struct Pending {
    ticket: Ticket,
    first: MessageNumber,
    records: u64,
    accepted_ms: u64,
    outcomes: Vec<Outcome>,
    tokens: Vec<u64>,
    /// By peer.
    hand_offs: BTreeMap<usize, Vec<Handed>>,
}

/// A batch that is being gathered.
#[derive(Default)]
struct Building {
    bytes: BytesMut,
    records: Vec<BatchRecord>,
    /// With who refuses each.
    posts: Vec<(u64, Vec<(u16, usize)>)>,
}

impl Building {
    fn place(&mut self, kind: RecordKind, placed: Placed) {
        self.records.push(BatchRecord {
            kind,
            offset: placed.offset as u32,
            body_len: placed.body_bytes as u32,
            payload_at: placed.payload_at as u32,
        });
    }
}

/// See the module.
pub(super) struct Node {
    shared: Shared,
    state: NodeState,
    pub(super) shells: Vec<Shell>,
    pending: VecDeque<Pending>,
    /// Appended for each peer, and not yet durable.
    gathered: Vec<u64>,
    write_at: Option<restante_protocol::time::Time>,
    /// When there may be leave to send for somebody.
    grant_at: Option<restante_protocol::time::Time>,
    writes: u64,
    cores: u64,
    /// The journal failed: the node has to start anew.
    pub(super) has_failed: bool,
}

impl Node {
    /// The node starts on this disk, for the first time or again. `confirmed` are the versions of the
    /// peers that operators were told.
    pub(super) fn boot(
        medium: &Medium,
        confirmed: &[u64],
        out: &mut Outside,
    ) -> Result<Node, OpenError> {
        let journal = Simulated::open(medium, options())?;
        let limits = StateLimits::default();
        let fail = |why: &dyn std::fmt::Display| -> ! {
            out.judge.fail(None, format_args!("the state cannot be replayed: {why}"))
        };
        let recovered = journal.recovered();
        if let Some(finding) = recovered.findings.iter().find(|said| !said.contains("is cut")) {
            fail(finding);
        }
        let mut state = match &recovered.checkpoint {
            Some(bytes) => NodeState::restore(bytes, limits).unwrap_or_else(|why| fail(&why)),
            None => NodeState::new(limits),
        };
        for event in &recovered.admin {
            state.apply_bytes(event).unwrap_or_else(|why| fail(&why));
        }
        for run in &recovered.published {
            let run_ = Run {
                first_sequence: run.first_sequence,
                count: run.count,
                first_number: run.first_number,
                accepted_ms: run.accepted_ms,
            };
            state.producers.replay_run(run.producer, run_);
        }
        let maybe_sent = journal.next_number() - 1;
        state.producers.set_durable(maybe_sent);
        let anchors = anchors(maybe_sent + 1, out.now);
        let queued_bytes = Budget::new(QUEUED_BYTES);
        let mut shaper = Shaper::new(out.now, &Rates::default().resolved());
        if let Err(why) = shaper.set_class(out.now, NO_CLASS, &Rates::default().resolved()) {
            fail(&why);
        }
        let (has_news, asks_leave) = (false, false);
        let shared =
            Shared { journal, anchors, maybe_sent, queued_bytes, has_news, shaper, asks_leave };
        let mut node = Node {
            shared,
            state,
            shells: Vec::new(),
            pending: VecDeque::new(),
            gathered: vec![0; out.judge.peers.len()],
            write_at: None,
            grant_at: None,
            writes: 0,
            cores: out.judge.tally.boots << 32,
            has_failed: false,
        };
        node.compare(confirmed, out);
        node.start_peers(out);
        Ok(node)
    }

    /// What the journal kept against what was promised.
    fn compare(&self, confirmed: &[u64], out: &mut Outside) {
        let journal = &self.shared.journal;
        let is_stored = |number, token: u64| {
            let body = journal.lookup(number).ok().and_then(|life| life.body);
            let body = body.as_deref().map(restante_protocol::message::Body::parse);
            body.is_some_and(|body| {
                body.is_ok_and(|body| super::post::token_of(&body) == Some(token))
            })
        };
        let is_open = |number, peer| {
            let life = journal.lookup(number).ok();
            let mut ended = life.into_iter().flat_map(|life| life.receivers);
            ended.any(|(id, ended)| id == id_of(peer) && ended.is_none())
        };
        out.judge.reopened(is_stored, is_open);
        for (peer, version) in confirmed.iter().enumerate().filter(|(_, version)| **version > 0) {
            let found = self.state.registry.get(id_of(peer)).map(|peer| peer.version);
            if found.is_none_or(|found| found < *version) {
                out.judge.fail(Some(peer), format_args!("it is at {found:?}, confirmed {version}"));
            }
        }
    }

    fn start_peers(&mut self, out: &mut Outside) {
        for peer in self.shells.len()..self.state.registry.len() {
            let Some(of) = self.state.registry.get(id_of(peer)) else { continue };
            out.judge.peers[peer].settings = of.settings.clone();
            self.cores += 1;
            let shell = Shell::new(peer, of, self.cores, &mut self.shared, out);
            self.shells.push(shell);
            out.attach_soon(peer);
        }
    }

    /// Adds a peer for each of these tempers, before anything else.
    pub(super) fn add_peers(&mut self, out: &mut Outside) {
        for peer in 0..out.judge.peers.len() {
            let temper = &out.judge.peers[peer].temper;
            let settings = settings_of(temper);
            let url = match temper.dials {
                true => PeerUrl::Tcp { host: "receiver".to_owned(), port: 1 },
                false => PeerUrl::Attach,
            };
            let settings = PeerPatch {
                order: Some(settings.order),
                window_messages: Some(settings.window_messages),
                window_bytes: Some(settings.window_bytes),
                ack_timeout_ms: Some(settings.ack_timeout_ms),
                quota_messages: Some(settings.quota_messages),
                rates: Some(Box::new(RatesPatch {
                    messages: RatePatch {
                        ceil: Some(settings.rates.messages.ceil),
                        burst: Some(settings.rates.messages.burst),
                        ..RatePatch::default()
                    },
                    ..RatesPatch::default()
                })),
                ..PeerPatch::default()
            };
            let command = AdminCommand::PeerAdd { name: name_of(peer), url, settings };
            self.command(peer, &command, out);
        }
    }

    /// An operator's command about a peer.
    fn command(&mut self, peer: usize, command: &AdminCommand, out: &mut Outside) {
        let now = WallMillis(out.wall_ms());
        let event = match self.state.registry.check(command, now, "sim", |_| 0) {
            Ok(event) => event,
            Err(why) => out.judge.fail(Some(peer), format_args!("{command:?}: {why}")),
        };
        let moved = matches!(command, AdminCommand::PeerSet { url: Some(_), .. });
        if let Some(Applied::Admin(done)) = self.append_state(&StateEvent::Admin(event), out) {
            self.once_durable(Outcome::Changed { peer, version: done.version, moved });
        }
    }

    fn append_state(&mut self, event: &StateEvent, out: &mut Outside) -> Option<Applied> {
        let mut building = Building::default();
        let placed = put_record(&mut building.bytes, &event.encode().ok()?);
        building.place(RecordKind::Admin, placed);
        self.append(building, out).then_some(())?;
        match self.state.apply(event) {
            Ok(applied) => Some(applied),
            Err(why) => out.judge.fail(None, format_args!("{event:?}: {why}")),
        }
    }

    fn once_durable(&mut self, outcome: Outcome) {
        if let Some(last) = self.pending.back_mut() {
            last.outcomes.push(outcome);
        }
    }

    /// A change by an operator, and, at another turn, what puts it right.
    pub(super) fn errand(&mut self, peer: usize, turn: u8, out: &mut Outside) {
        let Some(of) = self.state.registry.get(id_of(peer)) else { return };
        let (name, window, port) = (of.name.clone(), of.settings.window_messages, of.version);
        let if_version = Some(of.version);
        let set = |url, window_messages| AdminCommand::PeerSet {
            name: name.clone(),
            if_version,
            url,
            settings: PeerPatch { window_messages, ..PeerPatch::default() },
        };
        let command = match (turn, out.dice.random_range(0..3)) {
            (0, 0) => AdminCommand::PeerPause { name, if_version },
            (0, 1) => set(None, Some((window / 2).max(1))),
            (0, _) if out.judge.peers[peer].temper.dials => {
                let host = "elsewhere".to_owned();
                set(Some(PeerUrl::Tcp { host, port: 1 + (port % 60_000) as u16 }), None)
            }
            (0, _) => return,
            (_, _) if of.paused => AdminCommand::PeerResume { name, if_version },
            (_, _) => set(None, Some(out.judge.peers[peer].temper.window)),
        };
        self.command(peer, &command, out);
        let wait = out.dice.random_range(SECOND..3_600 * SECOND);
        if turn == 0 {
            out.after(wait, Event::Errand { peer, turn: 1 });
        }
    }

    /// Whether an operator holds this peer.
    pub(super) fn is_held(&self, peer: usize) -> bool {
        self.state.registry.get(id_of(peer)).is_some_and(|peer| peer.paused)
    }

    fn write_by(&mut self, us: u64, out: &mut Outside) {
        let at = restante_protocol::time::Time(out.now.0 + us);
        if self.write_at.is_none_or(|due| due > at) {
            self.write_at = Some(at);
            out.at(at, Event::Write);
        }
    }

    /// Gives leave to send to those that asked for it, and may have it.
    pub(super) fn grant(&mut self, out: &mut Outside) {
        self.shared.asks_leave = false;
        while let Some(grant) = self.shared.shaper.poll_grant(out.now) {
            self.shells[grant.peer.0 as usize - 1].mark_dirty(out);
        }
        let due = self.shared.shaper.next_deadline();
        if let Some(due) = due.filter(|due| self.grant_at.is_none_or(|at| at > *due)) {
            self.grant_at = Some(due);
            out.at(due, Event::Grant);
        }
    }

    /// It is time to.
    pub(super) fn grant_due(&mut self, out: &mut Outside) {
        if self.grant_at == Some(out.now) {
            self.grant_at = None;
            self.grant(out);
        }
    }

    /// Has what was recorded written before long.
    pub(super) fn write_lazily(&mut self, out: &mut Outside) {
        if self.shared.asks_leave {
            self.grant(out);
        }
        if std::mem::take(&mut self.shared.has_news) {
            self.write_by(LAZY_US, out);
        }
    }

    /// The writer's turn, if it is due.
    pub(super) fn write(&mut self, confirmed: &mut [u64], out: &mut Outside) {
        if self.write_at != Some(out.now) {
            return;
        }
        self.write_at = None;
        self.write_now(confirmed, out);
        self.writes += 1;
        out.after(REST_US, Event::Rest(self.writes));
    }

    /// The writer's turn, and all that it has to say.
    pub(super) fn write_now(&mut self, confirmed: &mut [u64], out: &mut Outside) {
        self.shared.journal.write();
        if !self.shared.journal.is_poisoned() {
            out.judge.synced();
        }
        while let Some(completion) = self.shared.journal.completion() {
            match completion.end {
                End::Durable(_) => self.durable(completion.ticket, confirmed, out),
                End::CheckpointDue => {
                    if let Ok(state) = self.state.snapshot() {
                        self.shared.journal.checkpoint(state.into());
                        self.write_by(WRITE_US, out);
                    }
                }
                End::Flushed(_) => {}
                End::Unknown(_) | End::Fenced(_) | End::Poisoned(_) => self.has_failed = true,
            }
        }
    }

    pub(super) fn rest(&mut self, writes: u64) {
        if self.writes == writes && !self.shared.journal.is_poisoned() {
            self.shared.journal.rest();
        }
    }

    fn durable(&mut self, ticket: Ticket, confirmed: &mut [u64], out: &mut Outside) {
        let Some(pending) = self.pending.pop_front() else { return };
        assert_eq!(pending.ticket, ticket, "tickets end in order");
        self.state.producers.set_durable(pending.first + pending.records - 1);
        pending.tokens.iter().for_each(|token| out.judge.durable(*token));
        for outcome in pending.outcomes {
            if let Outcome::Changed { peer, version, .. } = outcome {
                confirmed[peer] = confirmed[peer].max(version);
            }
            self.tell(outcome, out);
        }
        for (peer, handed) in pending.hand_offs {
            self.gathered[peer] -= handed.len() as u64;
            let is_missed = out.peer_dice[peer].random_ratio(1, 50);
            let shell = &mut self.shells[peer];
            shell.enqueue(&handed, pending.accepted_ms, is_missed, &self.shared, out);
        }
    }

    fn tell(&mut self, outcome: Outcome, out: &mut Outside) {
        match outcome {
            Outcome::Confirm { place, epoch, token, number } => {
                out.judge.confirmed(token, number);
                out.tell(place, epoch, token);
            }
            Outcome::Welcome { place, session } => {
                out.producers[place].session = Some(session);
                let undecided = out.undecided(place);
                self.publish(place, &undecided, out);
            }
            Outcome::Changed { peer, moved, .. } => {
                if peer >= self.shells.len() {
                    return self.start_peers(out);
                }
                let Some(of) = self.state.registry.get(id_of(peer)).cloned() else { return };
                self.shells[peer].reconfigure(&of, moved, &mut self.shared, out);
            }
        }
    }

    /// Something happens to one peer.
    pub(super) fn of_peer(&mut self, event: Event, out: &mut Outside) {
        let shared = &mut self.shared;
        match event {
            Event::Timer(peer) => self.shells[peer].timer(shared, out),
            Event::Drain(peer) => self.shells[peer].drain_if_dirty(shared, out),
            Event::Dialled { peer, link, is_up } => self.shells[peer].dialled(link, is_up, out),
            Event::Answers { peer, link, answers } => self.answers(peer, link, &answers, out),
            Event::Lost { peer, link, why } => self.shells[peer].link_lost(link, why, out),
            Event::Page { peer, core, page } => self.page(peer, core, *page, out),
            Event::Panic(peer) => {
                self.cores += 1;
                self.shells[peer].rebuild(self.cores, shared, out);
            }
            _ => {}
        }
    }

    fn answers(&mut self, peer: usize, link: u64, answers: &[Answer], out: &mut Outside) {
        self.shells[peer].answered(link, answers, out);
    }

    fn page(&mut self, peer: usize, core: u64, page: Reading, out: &mut Outside) {
        if self.shells[peer].core_number == core {
            self.shells[peer].loaded(page, &self.shared, out);
        }
    }

    /// A receiver comes by itself. Whether it is taken.
    pub(super) fn attach(&mut self, peer: usize, link: u64, out: &mut Outside) -> bool {
        self.shells[peer].attach(link, &mut self.shared, out)
    }

    /// The journal, for whoever asks what has become of messages.
    pub(super) fn journal(&self) -> &Simulated {
        &self.shared.journal
    }

    /// Ends in order.
    pub(super) fn stop(mut self, confirmed: &mut [u64], out: &mut Outside) {
        self.shared.journal.close();
        self.write_now(confirmed, out);
        self.shared.journal.abandon();
    }

    /// The process is gone; what the writer has not taken is lost.
    pub(super) fn kill(self) {
        self.shared.journal.abandon();
    }
}

/// Ids are given one after the other.
pub(super) fn id_of(peer: usize) -> PeerId {
    PeerId(peer as u32 + 1)
}

fn name_of(peer: usize) -> Name {
    format!("peer-{peer}").parse().unwrap_or_else(|why| panic!("a name: {why}"))
}
