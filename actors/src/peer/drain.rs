//! Emptying the core: what it wants sent, recorded, reported, loaded and woken up for.

use super::Peer;
use crate::clock;
#[cfg(feature = "faults")]
use crate::faults::{self, Place};
use crate::health::PeerReport;
use crate::journal::{Lane, Read, Settle};
use crate::link::{DialTarget, Outgoing};
use crate::router::{CallEnded, CallsExpired};
use actix::prelude::*;
use bytes::Bytes;
use restante_protocol::delivery::types::{CloseReason, LinkCommand};
use restante_protocol::frame::ReplyKind;
use restante_protocol::id::{MessageId, MessageNumber, PeerId};
use restante_protocol::message::body_flags;
use restante_protocol::record::{Outcome, ParkRecord, SettleDetail, SettleRecord};
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::shaper::Demand;
use restante_protocol::time::Time;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Deliveries handed to a link at a time.
const TRANSMIT_BATCH: usize = 512;
/// How often a peer that changes all the time publishes how it is.
const OBSERVE_EVERY: Duration = Duration::from_millis(200);

/// What a delivery has beside its body, about.
pub(super) const FRAME_BYTES: usize = 64;

/// A delivery that has been made ready to be sent.
pub(super) struct Leaving {
    tag: u64,
    attempt: u16,
    redelivered: bool,
    id: MessageId,
    body: Bytes,
}

/// Said by the actor to itself, once per turn of its mailbox.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Drain;

impl Handler<Drain> for Peer {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Context<Self>) {
        self.dirty = false;
        let now = clock::now();
        if self.core.next_deadline().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now);
        }
        self.obey_link_commands(ctx);
        if self.is_limited {
            self.transmit_by_leave(now);
        } else {
            self.transmit(now);
        }
        // Parks come first, and what has expired: a floor covers those too, and a crash may keep any
        // number of records and lose those behind them.
        self.record_parked();
        self.record_settled();
        self.send_reports();
        self.return_budget();
        self.publish_counts();
        if let Some(load) = self.core.poll_load() {
            let read = Read {
                peer: self.config.id,
                lane: Lane::Open,
                after: load.after,
                through: load.through,
                bytes_max: load.bytes_max,
                messages_max: load.messages_max,
            };
            self.load(read, ctx);
        }
        self.observe(now, ctx);
        self.arm(now, ctx);
    }
}

impl Peer {
    pub(super) fn obey_link_commands(&mut self, ctx: &mut Context<Self>) {
        while let Some(command) = self.core.poll_link() {
            match command {
                LinkCommand::Dial => {
                    let link = crate::link_number();
                    self.dialling = Some(link);
                    let target = DialTarget {
                        id: self.config.id,
                        name: self.config.name.clone(),
                        url: self.config.url.clone(),
                        link,
                        marks: Arc::clone(&self.marks),
                    };
                    self.shared.dialer.dial(target, ctx.address());
                }
                LinkCommand::Close(reason) => self.close_link(reason),
            }
        }
    }

    pub(super) fn close_link(&mut self, reason: CloseReason) {
        if let Some(attachment) = self.link.take() {
            attachment.link.close(&close_refusal(reason));
        }
    }

    /// As [`Peer::transmit`], as far as there is leave to.
    fn transmit_by_leave(&mut self, now: Time) {
        let (shaping, id) = (Arc::clone(&self.shared.shaping), self.config.id);
        let demand = self.demand(now);
        if let Some(leave) = shaping.ask(now, id, demand) {
            self.core.handle_leave(leave);
            self.transmit(now);
            let used = self.core.end_leave();
            let demand = self.demand(now);
            shaping.used(now, id, used, demand);
        }
    }

    /// What it would send if there were leave to; nothing while the link has no room.
    fn demand(&mut self, now: Time) -> Demand {
        match &self.link {
            Some(attachment) if attachment.link.room() > 0 => self.core.poll_demand(now),
            Some(_) | None => Demand::default(),
        }
    }

    /// Hands the link as much as it has room for, in batches.
    fn transmit(&mut self, now: Time) {
        let Some(attachment) = &mut self.link else { return };
        let careful = now < self.careful_until;
        let most = if careful { 1 } else { TRANSMIT_BATCH };
        loop {
            let mut room = attachment.link.room();
            while room > 0 && self.outgoing.len() < most {
                let Some(transmit) = self.core.poll_transmit(now) else { break };
                self.marks.take_in_hand(transmit.number, transmit.accepted_ms);
                #[cfg(feature = "faults")]
                faults::before_transmit(&self.config.name, transmit.number, &transmit.body);
                let flags = transmit.body.first().copied().unwrap_or(0);
                let mut redelivered = transmit.redelivered;
                let mut id = MessageId::new(
                    transmit.accepted_ms,
                    self.shared.node,
                    self.shared.partition,
                    transmit.number,
                );
                if flags & (body_flags::REPLY | body_flags::ORIGINAL_ID) != 0 {
                    if flags & body_flags::REPLY != 0 {
                        self.calls.insert(transmit.number);
                    }
                    id = original_id(flags, &transmit.body).unwrap_or(id);
                    // A hand-over that was cut short by a crash is repeated from its last record,
                    // so a copy may be one of two; one of a delayed message is not.
                    redelivered |=
                        flags & body_flags::RELEASED == 0 && flags & body_flags::ORIGINAL_ID != 0;
                }
                room = room.saturating_sub(transmit.body.len() + FRAME_BYTES);
                self.outgoing.push(Leaving {
                    tag: transmit.tag,
                    attempt: transmit.attempt,
                    redelivered,
                    id,
                    body: transmit.body,
                });
            }
            // A single message stays in hand until the link has taken it.
            if !careful {
                self.marks.put_down();
            }
            let Some(last) = self.outgoing.last() else { return };
            // Not before they leave: after a panic a rebuilt core must go on with the first tag that
            // the receiver has not seen, or its grant would count deliveries that never came.
            let next_tag = last.tag + 1;
            #[cfg(feature = "faults")]
            for outgoing in &self.outgoing {
                faults::with_body(Place::Send, &self.config.name, &outgoing.body);
            }
            attachment.link.transmit(&mut self.outgoing.iter().map(Leaving::outgoing));
            self.marks.put_down();
            attachment.next_tag = next_tag;
            self.outgoing.clear();
        }
    }

    /// One record for everything that was acked since the last drain, and one before it for everything
    /// that has expired.
    pub(super) fn record_settled(&mut self) {
        let mut details = Vec::new();
        while let Some(settled) = self.core.poll_settled() {
            #[cfg(feature = "faults")]
            faults::with_number(Place::Settle, &self.config.name, settled.number);
            self.settled.push(settled.number);
            if settled.attempts > 1 {
                let (number, attempts) = (settled.number, settled.attempts);
                details.push(SettleDetail { number, attempts, value: Vec::new() });
            }
        }
        self.record_expired();
        if self.settled.is_empty() {
            self.values.clear();
            return;
        }
        if !self.settled.is_sorted() {
            self.settled.sort_unstable();
        }
        self.end_calls(&mut details);
        let floor = self.core.floor();
        let above = self.settled.partition_point(|number| *number <= floor);
        let record = SettleRecord {
            peer: self.config.id,
            at_ms: clock::wall_ms(),
            outcome: Outcome::Acked,
            moved_to: PeerId::NONE,
            floor,
            above: self.settled[above..].to_vec(),
            details,
        };
        let numbers = self.settled.clone();
        self.settled.clear();
        self.marks.acked.fetch_add(numbers.len() as u64, Relaxed);
        self.shared.journal.settle(Settle { record, numbers });
    }

    /// Each expired message is named by a record that stands before any floor that passes over it: the
    /// ledger takes the first word it finds.
    fn record_expired(&mut self) {
        let Some(first) = self.core.poll_expired() else { return };
        let mut all = vec![first];
        while let Some(expired) = self.core.poll_expired() {
            all.push(expired);
        }
        all.sort_unstable_by_key(|expired| expired.number);
        let numbers: Vec<MessageNumber> = all.iter().map(|expired| expired.number).collect();
        let sent = all.iter().filter(|expired| expired.attempts > 0);
        let details = sent.map(|expired| {
            let (number, attempts) = (expired.number, expired.attempts);
            SettleDetail { number, attempts, value: Vec::new() }
        });
        let record = SettleRecord {
            peer: self.config.id,
            at_ms: clock::wall_ms(),
            outcome: Outcome::Expired,
            moved_to: PeerId::NONE,
            // What was acked and is not on record yet lies below it too, and was not expired.
            floor: if self.settled.is_empty() { self.core.floor() } else { 0 },
            above: numbers.clone(),
            details: details.collect(),
        };
        for number in &numbers {
            self.calls.remove(number);
        }
        // A fresh address has a place in the mailbox however full that is; one for all of a drain.
        let _ = self
            .shared
            .router
            .get()
            .map(|router| router.clone().try_send(CallsExpired(numbers.clone())));
        self.report(PeerReport::expired(&self.config, all.len() as u64, all[0]));
        self.shared.journal.settle(Settle { record, numbers });
    }

    /// Return values go to whoever called, and into the ledger.
    fn end_calls(&mut self, details: &mut Vec<SettleDetail>) {
        for (number, value) in std::mem::take(&mut self.values) {
            if self.calls.remove(&number) {
                self.answer(number, ReplyKind::Acked, value.clone());
            }
            match details.iter_mut().find(|detail| detail.number == number) {
                Some(detail) => detail.value = value.to_vec(),
                None => details.push(SettleDetail { number, attempts: 1, value: value.to_vec() }),
            }
        }
        if !self.calls.is_empty() {
            for number in &self.settled {
                if self.calls.remove(number) {
                    self.answer(*number, ReplyKind::Acked, Bytes::new());
                }
            }
        }
    }

    fn answer(&self, number: MessageNumber, kind: ReplyKind, value: Bytes) {
        // A fresh address has a place in the mailbox however full that is; at most one per call.
        let _ = self.shared.router.get().map(|router| {
            let ended = CallEnded { number, kind, value };
            router.clone().try_send(ended)
        });
    }

    pub(super) fn record_parked(&mut self) {
        while let Some(mut parked) = self.core.poll_parked() {
            if let Some(at) = self.condemned.iter().position(|(number, _)| *number == parked.number)
            {
                parked.accepted_ms = self.condemned.swap_remove(at).1;
            }
            self.marks.parked.fetch_add(1, Relaxed);
            // One that was never sent is not among the calls in flight, and may be one all the same.
            self.calls.remove(&parked.number);
            let reason = Bytes::from(parked.reason.clone());
            self.answer(parked.number, ReplyKind::Refused, reason);
            self.report(PeerReport::parked(&self.config, &parked));
            let record = ParkRecord {
                peer: self.config.id,
                number: parked.number,
                at_ms: clock::wall_ms(),
                attempts: parked.attempts,
                reason: parked.reason,
            };
            let bytes = match parked.bytes {
                0 => self.park_unread(record),
                bytes => {
                    self.shared.journal.park(record);
                    u64::from(bytes)
                }
            };
            self.marks.parked_bytes.fetch_add(bytes, Relaxed);
        }
    }

    /// Parks a message that was set aside without having been read: its bytes, which only the journal
    /// knows, and which do not wait any more.
    #[cold]
    fn park_unread(&mut self, record: ParkRecord) -> u64 {
        let (journal, id) = (&self.shared.journal, self.config.id);
        let before = journal.backlog(id).parked_bytes;
        journal.park(record);
        let bytes = journal.backlog(id).parked_bytes.saturating_sub(before);
        self.core.handle_length_known(bytes);
        bytes
    }

    fn send_reports(&mut self) {
        while let Some(report) = self.core.poll_report() {
            // A verdict is published at once, whatever the pace of the rest.
            self.observed_at = Time::ZERO;
            self.report(PeerReport::core(&self.config, report));
        }
    }

    /// Bodies that left the core no longer count against the shared budget.
    fn return_budget(&mut self) {
        let held = usize::try_from(self.core.held_bytes()).unwrap_or(usize::MAX);
        if self.budgeted > held {
            self.shared.queued_bytes.give(self.budgeted - held);
            self.budgeted = held;
        }
        if held == 0 && !self.reading {
            self.give_back_page();
        }
    }

    /// Says how much waits, here and in the node's sum. What was handed over went into that sum when
    /// it was appended; what is still on its way stays in it.
    fn publish_counts(&mut self) {
        let waiting = self.core.waiting();
        self.marks.set_waiting(waiting, self.core.waiting_bytes(), self.taken);
        let parked = self.marks.parked.load(Relaxed);
        let kept = (waiting + parked) as i64 - self.taken.messages as i64;
        let change = kept - std::mem::replace(&mut self.kept, kept);
        // What a removed peer has left was taken out of the sum when it was removed.
        if change != 0 && !self.marks.removed.load(Relaxed) {
            self.shared.kept.fetch_add(change, Relaxed);
        }
    }

    /// Publishes how the peer is, at most once per [`OBSERVE_EVERY`] unless a verdict changed.
    fn observe(&mut self, now: Time, ctx: &mut Context<Self>) {
        self.observed_stale = now.since(self.observed_at) < OBSERVE_EVERY;
        if !self.observed_stale {
            self.observed_at = now;
            self.rest();
            let snapshot = self.snapshot(now);
            self.ask_for_oldest(&snapshot, ctx);
            *self.marks.observed.lock() = Some(snapshot);
        }
    }

    /// Gives back the memory of a burst once nothing waits.
    fn rest(&mut self) {
        if self.core.waiting() == 0 {
            self.core.trim();
            self.outgoing = Vec::new();
            self.settled = Vec::new();
        }
    }

    /// Arms one timer for the next thing due. One that is already armed for earlier is left to
    /// fire: the drain it causes arms the next.
    fn arm(&mut self, now: Time, ctx: &mut Context<Self>) {
        let observe = self.observed_stale.then(|| self.observed_at + OBSERVE_EVERY);
        let Some(due) = self.core.next_deadline().into_iter().chain(observe).min() else { return };
        if let Some((armed, handle)) = self.timer {
            if armed <= due {
                return;
            }
            ctx.cancel_future(handle);
        }
        let handle = ctx.run_later(due.since(now), |peer, ctx| {
            peer.timer = None;
            peer.mark_dirty(ctx);
        });
        self.timer = Some((due, handle));
    }
}

impl Leaving {
    fn outgoing(&self) -> Outgoing<'_> {
        let Leaving { tag, attempt, redelivered, id, ref body } = *self;
        Outgoing { tag, attempt, redelivered, id, body }
    }
}

/// The id a handed-over message was first accepted under.
fn original_id(flags: u8, body: &[u8]) -> Option<MessageId> {
    if flags & body_flags::ORIGINAL_ID == 0 {
        return None;
    }
    let id = body.get(1..17)?.try_into().ok()?;
    Some(MessageId(u128::from_be_bytes(id)))
}

fn close_refusal(reason: CloseReason) -> Refusal {
    match reason {
        CloseReason::Late => Refusal::new(Code::TimedOut, "no ack in time, several times in a row"),
        CloseReason::Paused => Refusal::new(Code::Paused, "an operator holds this peer"),
        CloseReason::Changed => Refusal::new(Code::NotFound, "the peer's address has changed"),
    }
}
