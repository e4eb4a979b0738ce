//! The delivery core: the state machine that carries messages to one peer.
//!
//! It performs no I/O, reads no clock and draws no random number: inputs are `handle_*`, outputs are
//! `poll_*`, time and a seed are arguments. The same inputs give the same outputs, always.
//!
//! # The life of a message
//!
//! ```text
//!            enqueue                    transmit                   ack
//!  journal ───────────► send queue ───────────────► unacked ───────────────► settled
//!    │  ▲    (load)      │      ▲                    ▲    │
//!    │  │                │ key  │ key                │    ├─ nack for good, or too often,
//!    │  │ link gone,     │ busy │ free        resend │    │  or under suspicion ──► parked
//!    │  │ queue full     ▼      │                    │    │
//!    │  └────────────── held ───┘                    │    ├─ nack ──► refused ─┐
//!    │                                               │    │              due  │
//!    │                     load by number            │    ▼                    │
//!    └────────────────────────────────────────► ready ◄─ wanted ◄──────────────┘
//!                                                          ▲
//!                                                          └─ late, or the link is gone
//! ```
//!
//! Where a message would be sent (send queue, held, ready) and its time to live has ended, it is
//! expired instead, see [`expiry`].
//!
//! What can leave at once passes the send queue by, see [`hand_off`].
//!
//! A message is in one container at a time: [`send_queue`] (fresh, in order of number), [`held`]
//! (stepped over for its key), [`unacked`] (in flight, by tag), [`retries`] (everything that left the
//! straight line, in one of four states), or in the journal only. Bodies are held in the send queue,
//! in `held` and by `ready` retries, each bounded; what is in flight, refused or wanted has none and
//! is loaded again. Without a link no body is held at all, whatever the backlog.
//!
//! # Order of calls
//!
//! One input, then drain everything, in this order:
//!
//! 1. [`Delivery::poll_link`]: dial or close. A closed link's later events are the shell's to drop;
//! 2. [`Delivery::poll_transmit`] until `None`, which also finds what has expired. Where the rate is
//!    limited ([`Delivery::handle_limited`]), [`Delivery::poll_demand`] says what there is to send, and
//!    [`Delivery::handle_leave`] and [`Delivery::end_leave`] stand around this;
//! 3. [`Delivery::poll_parked`] and [`Delivery::poll_expired`], then [`Delivery::poll_settled`] with
//!    [`Delivery::floor`], which covers what was parked or expired: tell the journal, in this order,
//!    before any load is begun, so that no page brings back what is done;
//! 4. [`Delivery::poll_load`], answered once, later, by [`Delivery::handle_loaded`] or
//!    [`Delivery::handle_load_failed`];
//! 5. [`Delivery::poll_report`], and [`Delivery::next_deadline`] to arm the peer's one timer.
//!
//! # Promises kept here
//!
//! *Order* (P2). `sent`: first attempts leave in order of number; a message whose key has an earlier
//! message that waits to be sent again waits until it has been. `strict`: one message per key is in
//! flight or waits to be sent again; messages without key share one. `none`: nothing waits for a key.
//!
//! *Three clocks* (P4). Unreachable: [`backoff`], one timer, no attempt of any message. Slow: a
//! message unanswered for the ack timeout is sent again under a new tag; an ack of the old tag still
//! settles it, wherever it is by then; after three rounds without an answer the peer has failed
//! and is redialled. Refused: a nack waits as the schedule says, then parks. A message that is alone
//! in flight at five losses in a row is parked too, see [`suspects`].
//!
//! *Numbers*. [`Delivery::floor`] and the counters of [`Snapshot`] are exact after every input.

mod answers;
mod backoff;
mod connect;
mod expiry;
mod explain;
mod hand_off;
mod held;
mod leave;
mod link;
mod loading;
mod retries;
mod send_queue;
mod suspects;
mod timeouts;
mod transmit;
pub mod types;
mod unacked;
mod verdict;
mod window;

pub use expiry::{Expired, Expiry};
pub use held::SKIPPED_MAX;
pub use retries::REFUSED_MAX;
pub use send_queue::{QUEUE_BYTES_MIN, QUEUE_MESSAGES_MIN, QUEUE_WINDOWS};
pub use suspects::SUSPECT_LOSSES;
pub use types::*;

use crate::admin::{Order, PeerSettings};
use crate::id::MessageNumber;
use crate::message::KeyHash;
use crate::record::Outcome;
use crate::status::{Health, Stall};
use crate::time::Time;
use backoff::Backoff;
use core::time::Duration;
use expiry::Left;
use held::Held;
use leave::Leave;
use link::{Link, LinkState};
use loading::Loading;
use retries::{Retries, Retry, State};
use send_queue::SendQueue;
use std::collections::VecDeque;
use std::sync::Arc;
use transmit::Next;
use unacked::{Line, Slot, Unacked};
use verdict::Verdict;

/// Numbers ahead of the send queue remembered as done, above which no more are excluded.
const AHEAD_MAX: usize = 65_536;

/// The delivery core of one peer. See the module.
#[derive(Debug)]
pub struct Delivery<B> {
    terms: Terms,
    dials: bool,
    paused: bool,
    maybe_sent: MessageNumber,

    // Where messages are.
    queue: SendQueue<B>,
    held: Held<B>,
    unacked: Unacked,
    retries: Retries<B>,
    waiting: u64,
    waiting_bytes: u64,
    acked: u64,

    // The link and what follows from it.
    link: Link,
    backoff: Backoff,
    verdict: Verdict,
    /// Most messages in flight now; 0 without a link.
    allowance: u32,
    /// What the peer may send as its rate goes, see [`leave`].
    leave: Leave,
    /// The last tag that may be sent, and the most bytes in flight: by the receiver's grant and by the
    /// window, and by the leave to send.
    tag_max: u64,
    bytes_max: u64,
    /// Why there is no link, and what the receiver last refused with.
    link_why: String,
    refusal_why: Arc<str>,
    /// When a link that was lost too often lately is called up again.
    calm_at: Option<Time>,
    /// See [`Start::knows_since`]; gone with the first link.
    knows_since: Option<&'static str>,

    // Reading from the journal.
    loading: Option<Loading>,
    load_retry_at: Option<Time>,
    /// Reads that have failed in a row.
    load_failures: u32,

    // To be drained.
    settled: VecDeque<Settled>,
    parked: VecDeque<Parked>,
    expired: VecDeque<Expired>,
    commands: VecDeque<LinkCommand>,
    reports: VecDeque<Report>,
}

/// The settings a core goes by.
#[derive(Debug)]
struct Terms {
    window_messages: u32,
    /// How far lateness may shrink it; 0: not at all.
    window_messages_min: u32,
    window_bytes: u64,
    ack_timeout: Duration,
    retry_schedule: Box<[Duration]>,
    order: Order,
}

/// What is left of a message that has been taken out of its container.
struct Out {
    accepted_ms: u64,
    attempts: u16,
    bytes: u32,
    key: Option<KeyHash>,
}

impl<B> Delivery<B> {
    /// A core for a peer as it stands: new, or after a crash. `seed` spreads its dials.
    #[must_use]
    pub fn new(now: Time, settings: &PeerSettings, start: Start, seed: u64) -> Delivery<B> {
        let cursor = if start.messages == 0 { start.newest } else { start.floor };
        let terms = Terms::of(settings);
        let (min, max) = backoff_bounds(settings);
        let mut core = Delivery {
            dials: start.dials,
            paused: start.paused,
            maybe_sent: start.maybe_sent,
            queue: SendQueue::new(cursor, start.newest),
            held: Held::new(),
            unacked: Unacked::new(terms.order == Order::Strict),
            retries: Retries::new(),
            waiting: start.messages,
            waiting_bytes: start.bytes,
            acked: 0,
            link: Link::new(),
            backoff: Backoff::new(min, max, seed),
            verdict: Verdict::new(now, start.paused),
            allowance: 0,
            leave: Leave::ALL,
            tag_max: 0,
            bytes_max: 0,
            link_why: String::new(),
            calm_at: None,
            knows_since: start.knows_since,
            refusal_why: Arc::from(""),
            loading: None,
            load_retry_at: None,
            load_failures: 0,
            settled: VecDeque::new(),
            parked: VecDeque::new(),
            expired: VecDeque::new(),
            commands: VecDeque::new(),
            reports: VecDeque::new(),
            terms,
        };
        core.queue.set_bounds(core.terms.window_messages, core.terms.window_bytes);
        core.verdict.why = if core.paused { core.paused_why() } else { core.unreachable_why() };
        core.dial();
        core
    }

    /// Fresh messages, durable, with numbers ascending above every earlier one. Numbers that have
    /// been counted before (a hand-off repeated after a rebuild) are ignored.
    pub fn handle_enqueue(&mut self, _now: Time, entries: impl IntoIterator<Item = Entry<B>>) {
        let keeps = self.link.is_up();
        for entry in entries {
            let (number, bytes) = (entry.number, u64::from(entry.bytes));
            let fresh = if keeps { self.queue.enqueue(entry) } else { self.queue.count(number) };
            if fresh {
                self.waiting += 1;
                self.waiting_bytes += bytes;
            }
        }
    }

    /// The operator changed the settings. They apply at once, also to what is queued or refused,
    /// except that waits which have begun run out as begun.
    pub fn handle_policy(&mut self, now: Time, settings: &PeerSettings) {
        let was_strict = self.terms.order == Order::Strict;
        self.terms = Terms::of(settings);
        let is_strict = self.terms.order == Order::Strict;
        if was_strict != is_strict {
            self.unacked.count_keys(is_strict);
        }
        self.held.release_all();
        self.queue.set_bounds(self.terms.window_messages, self.terms.window_bytes);
        let (min, max) = backoff_bounds(settings);
        self.backoff.set_bounds(now, min, max);
        self.set_allowance();
    }

    /// Sets one open message aside for an operator, wherever it is: one that killed its actor twice,
    /// or that cannot be read. `bytes` is its size, used only where the core does not hold the
    /// message; the caller knows that it is open.
    ///
    /// # Errors
    /// Nothing changes when the message is not open, or too many are excluded ahead of the queue.
    pub fn handle_exclude(
        &mut self,
        _now: Time,
        number: MessageNumber,
        bytes: u32,
        cause: ParkCause,
        reason: &str,
    ) -> Result<(), NotExcluded> {
        let out = self.take_out(number, bytes)?;
        self.set_aside(number, &out, cause, reason.to_owned());
        self.unblock(out.key);
        self.after_removal();
        Ok(())
    }

    /// A message that was excluded with a length of 0, unread, had so many bytes, as is known by now:
    /// they do not wait any more.
    pub fn handle_length_known(&mut self, bytes: u64) {
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }

    /// The next message that is done.
    #[inline]
    pub fn poll_settled(&mut self) -> Option<Settled> {
        self.settled.pop_front()
    }

    /// The next message that is set aside for an operator.
    #[inline]
    pub fn poll_parked(&mut self) -> Option<Parked> {
        self.parked.pop_front()
    }

    /// What to do about the link.
    #[inline]
    pub fn poll_link(&mut self) -> Option<LinkCommand> {
        self.commands.pop_front()
    }

    /// What health and log should know.
    #[inline]
    pub fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Nothing of this peer at or below this number is open, nor parked or expired without the journal
    /// having been told: [`Delivery::poll_parked`] and [`Delivery::poll_expired`] are emptied first.
    #[must_use]
    pub fn floor(&self) -> MessageNumber {
        let straight = self.unacked.first_straight().map(|slot| slot.number);
        let retry = self.retries.first().map(|(number, _)| number);
        let queued = self.queue.front().map(|entry| entry.number);
        let parked = self.parked.iter().map(|parked| parked.number).min();
        let expired = self.expired.iter().map(|expired| expired.number).min();
        let open = [straight, retry, queued, self.held.first(), parked, expired];
        let lowest = open.into_iter().flatten().min();
        lowest.map_or(self.queue.cursor(), |number| self.queue.cursor().min(number - 1))
    }

    /// How the peer stands.
    #[must_use]
    pub fn snapshot(&self, _now: Time) -> Snapshot {
        Snapshot {
            health: self.verdict.health,
            since: self.verdict.since,
            why: self.verdict.why.clone(),
            waiting: self.waiting,
            waiting_bytes: self.waiting_bytes,
            unacked: u64::from(self.unacked.live()),
            retrying: self.retries.refused() as u64,
            dial_failures: if self.link.is_up() { 0 } else { self.backoff.tries() },
            next_attempt: self.backoff.next_attempt,
            oldest_ms: self.oldest_ms(),
            acked: self.acked,
            stall: self.stall(),
        }
    }

    /// What is in flight under the tags of a closed range: tag, number and time of acceptance. Nothing
    /// if an ack of that range would be ignored.
    pub fn in_flight(
        &self,
        first_tag: u64,
        last_tag: u64,
    ) -> impl Iterator<Item = (u64, MessageNumber, u64)> {
        let known = self.link.is_up() && last_tag < self.unacked.next_tag();
        let known = known && first_tag <= last_tag;
        let within = known.then(|| self.unacked.within(first_tag, last_tag));
        within.into_iter().flatten().map(|(tag, slot)| (tag, slot.number, slot.accepted_ms))
    }

    /// Gives back memory an idle peer does not need. Cheap when there is none.
    pub fn trim(&mut self) {
        self.queue.trim();
        self.unacked.trim();
        if self.settled.is_empty() {
            self.settled = VecDeque::new();
        }
    }

    /// Removes a message from wherever it is.
    fn take_out(&mut self, number: MessageNumber, bytes: u32) -> Result<Out, NotExcluded> {
        if let Some(retry) = self.retries.remove(number) {
            self.queue.done_ahead(number);
            if let State::Unacked { tag, .. } = retry.state {
                self.unacked.take(tag);
                self.unacked.settle_front();
            }
            return Ok(Out::of_retry(&retry));
        }
        if let Some(entry) = self.queue.remove(number).or_else(|| self.held.remove(number)) {
            return Ok(Out::of(&entry));
        }
        let in_flight = self.unacked.iter().find(|(_, slot)| slot.number == number);
        if let Some((tag, slot)) = in_flight.map(|(tag, slot)| (tag, *slot)) {
            self.unacked.take(tag);
            self.unacked.settle_front();
            let Slot { accepted_ms, bytes, key, .. } = slot;
            return Ok(Out { accepted_ms, attempts: 1, bytes, key });
        }
        if !self.queue.is_unread(number) {
            return Err(NotExcluded::NotOpen);
        }
        // One that is being read is passed by in a moment, and nothing is passed before it is out.
        if self.queue.ahead() >= AHEAD_MAX && !self.is_loading(number) {
            return Err(NotExcluded::TooMany);
        }
        self.queue.done_ahead(number);
        Ok(Out { accepted_ms: 0, attempts: 0, bytes, key: None })
    }

    /// A message that is in no container any more is parked.
    fn set_aside(&mut self, number: MessageNumber, out: &Out, cause: ParkCause, reason: String) {
        let Out { accepted_ms, attempts, bytes, .. } = *out;
        self.count_out(bytes);
        self.parked.push_back(Parked { number, accepted_ms, attempts, bytes, cause, reason });
    }

    /// One open message less.
    #[inline]
    fn count_out(&mut self, bytes: u32) {
        self.waiting = self.waiting.saturating_sub(1);
        self.waiting_bytes = self.waiting_bytes.saturating_sub(u64::from(bytes));
    }

    /// Whether a message of this key has to wait for an earlier one that was sent already.
    fn is_key_blocked(&self, key: Option<KeyHash>) -> bool {
        match self.terms.order {
            Order::None => false,
            Order::Sent => key.is_some() && self.retries.first_waiting(key).is_some(),
            Order::Strict => {
                self.unacked.is_key_busy(key) || self.retries.first_waiting(key).is_some()
            }
        }
    }

    /// A message of this key is out of the way.
    fn unblock(&mut self, key: Option<KeyHash>) {
        if !self.held.is_empty() && !self.is_key_blocked(key) {
            self.held.release(key);
        }
    }

    /// Something left the unacked queue other than by an answer.
    fn after_removal(&mut self) {
        if self.unacked.live() == 0 {
            self.link.is_alone = false;
        }
        self.set_allowance();
    }

    /// How much may be in flight as things stand.
    fn set_allowance(&mut self) {
        self.tag_max = self.link.grant.min(self.leave.tag_max);
        self.bytes_max = self.terms.window_bytes.min(self.leave.bytes_max);
        let window = self.terms.window_messages;
        self.allowance = match self.link.state {
            LinkState::Down | LinkState::Dialling => 0,
            LinkState::Up if self.link.is_alone => 1,
            LinkState::Up => self.link.ramp.map_or(window, |ramp| ramp.window().min(window)),
        };
    }

    /// Draws the verdict again and reports it if it is news.
    fn judge(&mut self, now: Time) -> bool {
        let health = verdict::judge(now, self.paused, &self.link);
        self.calm_at = self.link.losses.calm_at(now).filter(|_| self.link.is_up());
        let ms = self.terms.ack_timeout.as_millis();
        let why = match health {
            Health::Up | Health::Crashing => String::new(),
            Health::Paused => self.paused_why(),
            Health::Unreachable if self.link.is_up() && !self.link.is_flapping => {
                let (times, within) = (link::FLAPPING_AT, link::FLAPPING_WITHIN.as_secs());
                format!("flapping: its link was lost {times} times within {within} s")
            }
            Health::Unreachable => self.unreachable_why(),
            Health::Slow => format!("no answer within {ms} ms"),
            Health::Failed => format!("no answer within {} times {ms} ms", verdict::FAILED_AT),
            Health::Refusing => self.refusal_why.as_ref().to_owned(),
        };
        let is_news = self.verdict.set(now, health, &why);
        if is_news {
            let (since, next_attempt) = (self.verdict.since, self.backoff.next_attempt);
            self.reports.push_back(Report::Verdict { health, since, why, next_attempt });
        }
        is_news
    }

    /// Why there is no link; and since when that is known, if it may have been so for longer.
    fn unreachable_why(&self) -> String {
        match (self.link_why.as_str(), self.knows_since) {
            ("", None) => "not connected yet".to_owned(),
            ("", Some(event)) => format!("not connected since {event}"),
            (why, None) => why.to_owned(),
            (why, Some(event)) => format!("{why}; not connected since {event}"),
        }
    }

    fn paused_why(&self) -> String {
        match self.knows_since {
            None => "held by an operator".to_owned(),
            Some(event) => format!("held by an operator since before {event}"),
        }
    }

    fn oldest_ms(&self) -> Option<u64> {
        let straight = self.unacked.first_straight().map(|slot| (slot.number, slot.accepted_ms));
        let retry = self.retries.first().map(|(number, retry)| (number, retry.accepted_ms));
        let queued = self.queue.front().map(|entry| (entry.number, entry.accepted_ms));
        let held = self.held.first().and_then(|n| Some((n, self.held.find(n)?.accepted_ms)));
        let (number, ms) = [straight, retry, queued, held].into_iter().flatten().min()?;
        // One that lies unread below it is older.
        let is_first = number <= self.queue.cursor().saturating_add(1) || self.queue.is_attached();
        is_first.then_some(ms)
    }
}

impl Terms {
    fn of(settings: &PeerSettings) -> Terms {
        Terms {
            window_messages: settings.window_messages.max(1),
            window_messages_min: settings.window_messages_min.min(settings.window_messages),
            window_bytes: settings.window_bytes,
            ack_timeout: Duration::from_millis(settings.ack_timeout_ms.max(1)),
            retry_schedule: settings
                .retry_schedule_ms
                .iter()
                .map(|ms| Duration::from_millis(*ms))
                .collect(),
            order: settings.order,
        }
    }
}

impl Out {
    /// Of one that was not sent.
    fn of<B>(entry: &Entry<B>) -> Out {
        let Entry { accepted_ms, bytes, key, .. } = *entry;
        Out { accepted_ms, attempts: 0, bytes, key }
    }

    fn of_retry<B>(retry: &Retry<B>) -> Out {
        let Retry { accepted_ms, attempts, bytes, key, .. } = *retry;
        Out { accepted_ms, attempts, bytes, key }
    }
}

fn backoff_bounds(settings: &PeerSettings) -> (Duration, Duration) {
    let min = Duration::from_millis(settings.backoff_ms_min);
    (min, Duration::from_millis(settings.backoff_ms_max))
}
