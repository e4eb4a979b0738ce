//! The peer actor: feed the core, drain it, arm one timer.
//!
//! Every message that arrives is handed to the [`Delivery`] core and marks the actor dirty; one
//! [`Drain`] per turn of the mailbox then takes out of the core all it has to give: deliveries for
//! the link, settled messages for the journal, reports for health, a stretch to load. The core holds
//! no truth that the journal does not: after a panic it is thrown away and built anew from there,
//! exactly as at boot.
//!
//! So that a panic can be blamed on a message, the one being handled stands in the peer's marks while
//! messages are taken over and made ready to be sent. What is done to many at once (acks, settles, a
//! write to a link) blames nobody; after a crash it is done to one at a time for a while, and does.

mod drain;
mod hand_over;
pub mod messages;
mod oldest;
mod started;

pub use messages::*;
pub use started::{Budget, PeerConfig, Shared, spawn};

use crate::clock;
#[cfg(feature = "faults")]
use crate::faults::{self, Place};
use crate::health::PeerReport;
use crate::journal::{Page, Read, ReadError};
use crate::link::SharedLink;
use actix::prelude::*;
use bytes::Bytes;
use drain::{Drain, Leaving};
use oldest::Oldest;
use restante_protocol::delivery::Delivery;
use restante_protocol::delivery::types::{CloseReason, Entry, NotExcluded, ParkCause, Snapshot};
use restante_protocol::frame::TagRange;
use restante_protocol::id::MessageNumber;
use restante_protocol::message::Body;
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::status::Stall;
use restante_protocol::time::Time;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Messages a mailbox holds while its peer is held back after crashes.
const MAILBOX_CAPACITY: usize = 1_024;
/// Bytes of backlog a peer may read at once however much the others hold.
const PAGE_BYTES_MIN: usize = 8 * 1024;
/// How long after a crash messages are handled one at a time.
const CAREFUL_FOR: Duration = crate::supervise::WINDOW;

/// The actor that serves one peer.
pub struct Peer {
    config: PeerConfig,
    shared: Arc<Shared>,
    marks: Arc<crate::directory::Marks>,
    core: Delivery<Bytes>,
    /// Whether it needs leave to send, see [`crate::shaping`].
    is_limited: bool,
    link: Option<Attachment>,
    /// Number of the dial under way.
    dialling: Option<u64>,
    /// Messages in flight whose producer awaits an answer.
    calls: HashSet<MessageNumber>,
    /// Return values of messages acked since the last drain.
    values: Vec<(MessageNumber, Bytes)>,
    /// Condemned messages on their way to being parked, and when they were accepted.
    condemned: Vec<(MessageNumber, u64)>,
    dirty: bool,
    timer: Option<(Time, SpawnHandle)>,
    observed_at: Time,
    observed_stale: bool,
    /// See [`oldest`].
    oldest: Oldest,
    /// Bytes of bodies this peer counts against the budget all peers share.
    budgeted: usize,
    /// Bytes that the last page it read may have, out of what all peers share.
    page_budget: usize,
    /// Whether a page is being read.
    reading: bool,
    /// Handed over by the router; outlives the core, as the messages do.
    taken: Taken,
    /// What it has told the node's count of kept messages, less what it was handed.
    kept: i64,
    outgoing: Vec<Leaving>,
    settled: Vec<MessageNumber>,
    /// After a crash: until when nothing is done to many messages at once.
    careful_until: Time,
}

/// The link in use.
struct Attachment {
    link: SharedLink,
    number: u64,
    /// The tag after the last one sent: where a rebuilt core goes on.
    next_tag: u64,
    /// The receiver's grant, as an absolute tag.
    grant: Option<u64>,
}

impl Actor for Peer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        self.mark_dirty(ctx);
    }

    fn stopped(&mut self, _ctx: &mut Self::Context) {
        self.give_back_budget();
        self.shared.shaping.remove(clock::now(), self.config.id);
    }
}

impl Supervised for Peer {
    /// The same as a boot: what this incarnation knew is gone, what the journal knows is not. The
    /// link stays, and goes on under tags it has not seen.
    fn restarting(&mut self, ctx: &mut Self::Context) {
        if self.marks.removed.load(Relaxed) {
            // It crashed while it retired. What is left is disposed of, and not to be delivered too.
            self.close_as_removed();
            return ctx.stop();
        }
        let now = clock::now();
        self.give_back_budget();
        self.core = self.shared.new_core(&self.config, now, Some("its actor was rebuilt"));
        self.limit_rate(now, ctx);
        self.values.clear();
        self.outgoing.clear();
        self.settled.clear();
        self.careful_until = now + CAREFUL_FOR;
        self.observed_at = Time::ZERO;
        self.dirty = false;
        self.reading = false;
        self.timer = None;
        self.dialling = None;
        self.oldest = Oldest::Unknown;
        self.park_condemned(now);
        if let Some(attachment) = &self.link {
            // There is no need for the dial that a new core begins with.
            while self.core.poll_link().is_some() {}
            self.core.handle_link_up(now, attachment.next_tag, attachment.grant);
        }
        self.mark_dirty(ctx);
    }
}

impl Peer {
    fn mark_dirty(&mut self, ctx: &mut Context<Self>) {
        if !self.dirty {
            self.dirty = true;
            ctx.notify(Drain);
        }
    }

    fn close_as_removed(&mut self) {
        if let Some(attachment) = self.link.take() {
            let gone = format!("{} has been removed", self.config.name);
            attachment.link.close(&Refusal::new(Code::NotFound, gone));
        }
    }

    fn on_link(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|attachment| attachment.number == number)
    }

    /// Follows what its settings say of its rate.
    fn limit_rate(&mut self, now: Time, ctx: &Context<Self>) {
        let (shaping, settings) = (&self.shared.shaping, &self.config.settings);
        self.is_limited = shaping.limits(settings);
        self.core.handle_limited(self.is_limited);
        shaping.set(now, self.config.id, ctx.address().recipient(), settings);
    }

    /// Sets aside the messages that killed this actor too often.
    fn park_condemned(&mut self, now: Time) {
        for (number, accepted_ms) in std::mem::take(&mut *self.marks.condemned.lock()) {
            let kills = crate::supervise::KILLS_MAX;
            let reason = format!("poison: its handling crashed the peer's actor {kills} times");
            // One that is no longer open needs no parking.
            if self.core.handle_exclude(now, number, 0, ParkCause::Poison, &reason).is_ok() {
                self.condemned.push((number, accepted_ms));
            }
        }
    }

    fn give_back_budget(&mut self) {
        self.shared.queued_bytes.give(std::mem::take(&mut self.budgeted));
        self.give_back_page();
    }

    fn give_back_page(&mut self) {
        self.shared.page_bytes.give(std::mem::take(&mut self.page_budget));
    }

    /// How large the next page may be: as large as is wanted, unless so many peers read at the same
    /// time that there is only room for less.
    fn take_page_budget(&mut self, wanted: usize) -> usize {
        self.give_back_page();
        let mut bytes = wanted;
        while bytes > PAGE_BYTES_MIN {
            if self.shared.page_bytes.take(bytes) {
                self.page_budget = bytes;
                return bytes;
            }
            bytes /= 2;
        }
        wanted.min(PAGE_BYTES_MIN)
    }

    fn report(&self, report: PeerReport) {
        // Health's mailbox is large and its work is cheap; should it ever be full, the verdict
        // still stands in the marks and only a log line is late.
        let _ = self.shared.health.try_send(report);
    }

    /// Reads a stretch of the backlog for the core.
    fn load(&mut self, mut read: Read, ctx: &mut Context<Self>) {
        read.bytes_max = self.take_page_budget(read.bytes_max);
        self.reading = true;
        let page = self.shared.journal.next(read).into_actor(self);
        ctx.spawn(page.map(move |page, peer, ctx| {
            peer.loaded(page);
            peer.mark_dirty(ctx);
        }));
    }

    fn loaded(&mut self, page: Result<Page, ReadError>) {
        self.reading = false;
        let now = clock::now();
        match page {
            Ok(page) => {
                let (marks, shared) = (&self.marks, &self.shared);
                let entries = page.messages.into_iter().map(|stored| {
                    marks.take_in_hand(stored.number, stored.accepted_ms);
                    #[cfg(feature = "faults")]
                    faults::with_body(Place::Load, &self.config.name, &stored.body);
                    let (number, accepted_ms) = (stored.number, stored.accepted_ms);
                    let body = Body::parse(&stored.body).unwrap_or_default();
                    let (key, expires) =
                        (body.key_hash(), shared.expiry(number, accepted_ms, &body));
                    Entry {
                        number,
                        accepted_ms,
                        bytes: u32::try_from(stored.body.len()).unwrap_or(u32::MAX),
                        key,
                        expires,
                        body: stored.body,
                    }
                });
                self.core.handle_loaded(now, marks.then_put_down(entries), page.through);
            }
            Err(ReadError::Unavailable(_)) => self.core.handle_load_failed(now),
            Err(ReadError::Damaged { number, detail }) => {
                // Never a silent skip: it is set aside by name, and the rest is served.
                let why = format!("damaged on disk: {detail}");
                match self.core.handle_exclude(now, number, 0, ParkCause::Unreadable, &why) {
                    // One that is not open any more is not missed either.
                    Ok(()) | Err(NotExcluded::NotOpen) => {
                        // Before the core may have caught up, and counts what is left anew.
                        self.record_parked();
                        self.core.handle_loaded(now, std::iter::empty(), number);
                    }
                    Err(NotExcluded::TooMany) => self.core.handle_load_failed(now),
                }
            }
        }
    }

    fn ack(&mut self, now: Time, first: u64, last: u64) {
        #[cfg(feature = "faults")]
        for (_, number, _) in self.core.in_flight(first, last) {
            faults::with_number(Place::Ack, &self.config.name, number);
        }
        self.core.handle_ack(now, first, last);
    }

    /// After a crash, does to each message in flight under these tags what is usually done to many at
    /// once, with the message in hand.
    fn one_at_a_time(&mut self, now: Time, first: u64, last: u64, act: impl Fn(&mut Peer, u64)) {
        if now >= self.careful_until {
            return;
        }
        let in_flight: Vec<_> = self.core.in_flight(first, last).collect();
        for (tag, number, accepted_ms) in in_flight {
            self.marks.take_in_hand(number, accepted_ms);
            act(self, tag);
            self.marks.put_down();
        }
    }
}

impl Handler<Enqueue> for Peer {
    type Result = ();

    fn handle(&mut self, enqueue: Enqueue, ctx: &mut Context<Self>) {
        self.enqueue(&enqueue);
        self.mark_dirty(ctx);
    }
}

impl Handler<LinkUp> for Peer {
    type Result = Result<u64, Refusal>;

    fn handle(&mut self, up: LinkUp, ctx: &mut Context<Self>) -> Self::Result {
        // What the core has decided before this is about the link before this one.
        self.obey_link_commands(ctx);
        let wanted =
            if up.dialled { self.dialling == Some(up.number) } else { self.link.is_none() };
        if !wanted {
            let name = &self.config.name;
            return Err(Refusal::new(
                Code::AlreadyAttached,
                format!("{name} is being served by another connection"),
            ));
        }
        if !up.dialled && self.config.dials() {
            return Err(Refusal::new(
                Code::WrongKind,
                format!("{} is dialled by the node, at {}", self.config.name, self.config.url),
            ));
        }
        if self.config.paused {
            let detail = format!("{} is held by an operator", self.config.name);
            return Err(Refusal::new(Code::Paused, detail));
        }
        self.dialling = None;
        const FIRST_TAG: u64 = 1;
        self.core.handle_link_up(clock::now(), FIRST_TAG, up.grant);
        self.link = Some(Attachment {
            link: up.link,
            number: up.number,
            next_tag: FIRST_TAG,
            grant: up.grant,
        });
        self.mark_dirty(ctx);
        Ok(FIRST_TAG)
    }
}

impl Handler<LinkDown> for Peer {
    type Result = ();

    fn handle(&mut self, down: LinkDown, ctx: &mut Context<Self>) {
        let now = clock::now();
        if self.on_link(down.number) {
            self.link = None;
            self.core.handle_link_down(now, &down.why, true);
        } else if self.dialling == Some(down.number) {
            // However far it came, it never was a link of this peer.
            self.dialling = None;
            self.core.handle_link_down(now, &down.why, false);
        } else {
            return;
        }
        self.mark_dirty(ctx);
    }
}

impl Handler<Acked> for Peer {
    type Result = ();

    fn handle(&mut self, acked: Acked, ctx: &mut Context<Self>) {
        if self.on_link(acked.number) {
            let now = clock::now();
            for TagRange { first, last } in acked.ranges {
                self.one_at_a_time(now, first, last, |peer, tag| {
                    peer.ack(now, tag, tag);
                    peer.record_parked();
                    peer.record_settled();
                });
                self.ack(now, first, last);
            }
            self.mark_dirty(ctx);
        }
    }
}

impl Handler<AckedValue> for Peer {
    type Result = ();

    fn handle(&mut self, acked: AckedValue, ctx: &mut Context<Self>) {
        if self.on_link(acked.number) {
            let now = clock::now();
            let take = |peer: &mut Peer| {
                if let Some(number) = peer.core.handle_ack_value(now, acked.tag) {
                    peer.values.push((number, acked.value.clone()));
                }
            };
            self.one_at_a_time(now, acked.tag, acked.tag, |peer, _| {
                take(peer);
                peer.record_parked();
                peer.record_settled();
            });
            // If it was in flight it is done, and this changes nothing.
            take(self);
            self.mark_dirty(ctx);
        }
    }
}

impl Handler<Nacked> for Peer {
    type Result = ();

    fn handle(&mut self, nacked: Nacked, ctx: &mut Context<Self>) {
        if self.on_link(nacked.number) {
            let after = Duration::from_millis(u64::from(nacked.retry_after_ms));
            let after = Some(after).filter(|after| !after.is_zero());
            let (now, tag) = (clock::now(), nacked.tag);
            self.one_at_a_time(now, tag, tag, |peer, tag| {
                peer.core.handle_nack(now, tag, nacked.permanent, after, &nacked.reason);
            });
            self.core.handle_nack(now, tag, nacked.permanent, after, &nacked.reason);
            self.mark_dirty(ctx);
        }
    }
}

impl Handler<Granted> for Peer {
    type Result = ();

    fn handle(&mut self, granted: Granted, ctx: &mut Context<Self>) {
        let Some(attachment) = self.link.as_mut() else { return };
        if attachment.number == granted.number {
            // A grant is never taken back.
            attachment.grant = attachment.grant.max(Some(granted.messages));
            self.core.handle_grant(clock::now(), granted.messages);
            self.mark_dirty(ctx);
        }
    }
}

impl Handler<Writable> for Peer {
    type Result = ();

    fn handle(&mut self, writable: Writable, ctx: &mut Context<Self>) {
        if self.on_link(writable.number) {
            self.mark_dirty(ctx);
        }
    }
}

impl Handler<MaySend> for Peer {
    type Result = ();

    fn handle(&mut self, _: MaySend, ctx: &mut Context<Self>) {
        self.mark_dirty(ctx);
    }
}

impl Handler<Reconfigure> for Peer {
    type Result = ();

    fn handle(&mut self, change: Reconfigure, ctx: &mut Context<Self>) {
        if change.version <= self.config.version {
            return;
        }
        let now = clock::now();
        let was_paused = std::mem::replace(&mut self.config.paused, change.paused);
        let moved = change.url != self.config.url;
        self.config.version = change.version;
        self.config.url = change.url;
        self.config.settings = change.settings;
        // All of it is noted, and a link it ends given up, before the core sees any: one that is built
        // anew after a crash in here takes over what is noted, and the link that is there.
        if change.paused && !was_paused {
            self.close_link(CloseReason::Paused);
        } else if moved {
            self.close_link(CloseReason::Changed);
        }
        #[cfg(feature = "faults")]
        faults::on_change(&self.config.name);
        self.core.handle_policy(now, &self.config.settings);
        self.limit_rate(now, ctx);
        if change.paused != was_paused {
            if change.paused {
                self.dialling = None;
                self.core.handle_pause(now);
            } else {
                self.core.handle_resume(now);
            }
        }
        if moved {
            self.dialling = None;
            self.core.handle_address_changed(now, self.config.dials());
        }
        // Not in a later drain: another change, a link or a crash may come before it, and what was
        // decided here would be done to that link, or never.
        self.obey_link_commands(ctx);
        self.mark_dirty(ctx);
    }
}

impl Handler<Retire> for Peer {
    type Result = ();

    fn handle(&mut self, _: Retire, ctx: &mut Context<Self>) {
        self.close_as_removed();
        // There will be no drain any more, and what was acked in this turn is done all the same.
        self.record_parked();
        self.record_settled();
        ctx.stop();
    }
}

impl Handler<Barrier> for Peer {
    type Result = ();

    fn handle(&mut self, _: Barrier, _: &mut Context<Self>) {}
}

impl Handler<Recount> for Peer {
    type Result = ();

    fn handle(&mut self, _: Recount, ctx: &mut Context<Self>) {
        self.mark_dirty(ctx);
    }
}

impl Handler<Inspect> for Peer {
    type Result = MessageResult<Inspect>;

    fn handle(&mut self, _: Inspect, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Some::<Snapshot>(self.snapshot(clock::now())))
    }
}

impl Handler<Locate> for Peer {
    type Result = MessageResult<Locate>;

    fn handle(&mut self, locate: Locate, _: &mut Context<Self>) -> Self::Result {
        let (now, Locate(number)) = (clock::now(), locate);
        let whereabouts = self.core.whereabouts(now, number);
        let mut blocked = self.core.explain(now, number);
        if let Some(blocked) = blocked.as_mut().filter(|blocked| blocked.by == Stall::Rate) {
            blocked.until = self.shared.shaping.ready_at(now, self.config.id);
        }
        MessageResult(whereabouts.zip(blocked))
    }
}
