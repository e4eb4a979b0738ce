//! The shell of one core: what the actor of a peer is in a node, without the actor.
//!
//! It follows `actors/src/peer` step by step: what is handed over is sent at once, kept or counted; an
//! input marks it dirty, and one drain takes out what the core has to give, in the documented order. What
//! differs:
//!
//! - the drain comes with the input or up to [`LATER_US`] behind it, so that others may come between,
//!   instead of with the next turn of a mailbox;
//! - a link takes what fits its room and is read by the other end; there are no bytes of frames;
//! - calls and return values, marks, counts for the log and the care after a crash are left out;
//! - a page is read at one moment between the question and the answer.

mod drain;

use super::judge::{Seen, Sending};
use super::net::{Answer, Event, Frame, Outside, Reading, wall_ms};
use super::post::token_of;
use rand::Rng;
use restante_actors::journal::{Lane, Page, Read, ReadError, Settle};
use restante_actors::peer::Budget;
use restante_journal::simulated::Simulated;
use restante_protocol::admin::PeerSettings;
use restante_protocol::anchors::Anchors;
use restante_protocol::delivery::types::{
    Entry, LinkCommand, Load, Report, Sent, Settled, Start, Transmit,
};
use restante_protocol::delivery::{Delivery, Expired, Expiry, QUEUE_MESSAGES_MIN, QUEUE_WINDOWS};
use restante_protocol::delivery::{Parked, SKIPPED_MAX};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::message::Body;
use restante_protocol::record::{Outcome, ParkRecord, SettleDetail, SettleRecord};
use restante_protocol::shaper::{Amount, ClassId, Demand, Shaper};
use restante_protocol::time::Time;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// The class of peers that an operator has put into none.
pub(super) const NO_CLASS: ClassId = ClassId(0);
/// Bytes that are on their way on a link at most.
const ROOM_BYTES: usize = 64 * 1024;
/// What a delivery has beside its body, about.
const FRAME_BYTES: usize = 64;
/// How long a drain may come behind its input.
const LATER_US: u64 = 50;

/// What the shells of a node share.
pub(super) struct Shared {
    pub(super) journal: Simulated,
    pub(super) anchors: Anchors,
    pub(super) maybe_sent: MessageNumber,
    /// The memory that waiting bodies may take.
    pub(super) queued_bytes: Budget,
    /// Something has been recorded and is to be written before long.
    pub(super) has_news: bool,
    /// Where those whose rate is limited ask for leave to send, and whether somebody has asked.
    pub(super) shaper: Shaper,
    pub(super) asks_leave: bool,
}

/// A message that is handed over.
pub(super) struct Handed {
    pub(super) number: MessageNumber,
    pub(super) token: u64,
    pub(super) bytes: u32,
    pub(super) body: Rc<[u8]>,
}

/// A body in a core. It is counted, whoever holds it.
pub(super) struct Held {
    token: u64,
    bytes: u32,
    count: Rc<Cell<usize>>,
}

impl Held {
    fn new(token: u64, bytes: u32, count: &Rc<Cell<usize>>) -> Held {
        count.set(count.get() + 1);
        Held { token, bytes, count: Rc::clone(count) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

/// The link in use.
struct Attachment {
    number: u64,
    next_tag: u64,
    grant: Option<u64>,
    on_the_way: usize,
}

/// See the module.
pub(super) struct Shell {
    peer: usize,
    id: PeerId,
    dials: bool,
    pub(super) settings: PeerSettings,
    pub(super) paused: bool,
    pub(super) core: Delivery<Held>,
    /// Counts the cores there were.
    pub(super) core_number: u64,
    link: Option<Attachment>,
    dialling: Option<u64>,
    armed: Option<Time>,
    dirty: bool,
    copies: Rc<Cell<usize>>,
    budgeted: usize,
    /// Whether it needs leave to send.
    is_limited: bool,
    /// What has left and the judge has not been told of.
    sent: Vec<Sending>,
}

impl Shell {
    pub(super) fn new(
        peer: usize,
        of: &restante_protocol::registry::Peer,
        core_number: u64,
        shared: &mut Shared,
        out: &mut Outside,
    ) -> Shell {
        let dials = !matches!(of.url, restante_protocol::admin::PeerUrl::Attach);
        let core = new_core(of.id, &of.settings, (peer, dials, of.paused), shared, out);
        let mut shell = Shell {
            peer,
            id: of.id,
            dials,
            settings: of.settings.clone(),
            paused: of.paused,
            core,
            core_number,
            link: None,
            dialling: None,
            armed: None,
            dirty: false,
            copies: Rc::default(),
            budgeted: 0,
            is_limited: false,
            sent: Vec::new(),
        };
        shell.limit_rate(shared, out.now);
        shell.begin(shared, out);
        shell
    }

    fn begin(&mut self, shared: &Shared, out: &mut Outside) {
        let backlog = shared.journal.backlog(self.id);
        out.judge.new_core(self.peer, backlog.messages, backlog.floor);
        self.mark_dirty(out);
    }

    /// The actor crashed: this core is gone, and another takes over the link.
    pub(super) fn rebuild(&mut self, core_number: u64, shared: &mut Shared, out: &mut Outside) {
        shared.queued_bytes.give(std::mem::take(&mut self.budgeted));
        let terms = (self.peer, self.dials, self.paused);
        self.core = new_core(self.id, &self.settings, terms, shared, out);
        self.core_number = core_number;
        // It was not sending by a grant it may hold.
        if self.is_limited {
            let (used, demand) = (Amount::default(), Demand::default());
            shared.shaper.handle_used(out.now, self.id, used, demand);
        }
        self.limit_rate(shared, out.now);
        (self.armed, self.dialling, self.dirty) = (None, None, false);
        self.sent.clear();
        self.begin(shared, out);
        if let Some(attachment) = &self.link {
            while self.core.poll_link().is_some() {}
            let Attachment { number, next_tag, grant, .. } = *attachment;
            out.judge.up(self.peer, number, next_tag, grant);
            self.core.handle_link_up(out.now, next_tag, grant);
        }
    }

    /// Follows what its settings say of its rate.
    fn limit_rate(&mut self, shared: &mut Shared, now: Time) {
        let was_limited = self.is_limited;
        self.is_limited = self.settings.rates.are_limits();
        self.core.handle_limited(self.is_limited);
        if self.is_limited {
            let rates = self.settings.rates.resolved();
            // The class is there.
            let _ = shared.shaper.set_peer(now, self.id, NO_CLASS, &rates);
        } else if was_limited {
            shared.shaper.remove_peer(now, self.id);
        }
        shared.asks_leave = true;
    }

    pub(super) fn mark_dirty(&mut self, out: &mut Outside) {
        if !self.dirty {
            self.dirty = true;
            let wait = if out.peer_dice[self.peer].random_ratio(1, 4) { LATER_US } else { 0 };
            out.after(wait, Event::Drain(self.peer));
        }
    }

    /// Takes over what has become durable.
    pub(super) fn enqueue(
        &mut self,
        handed: &[Handed],
        accepted_ms: u64,
        is_missed: bool,
        shared: &Shared,
        out: &mut Outside,
    ) {
        let now = out.now;
        let (Some(first), Some(last)) = (handed.first(), handed.last()) else { return };
        let (count, newest) = (handed.len(), last.number);
        let bytes: u64 = handed.iter().map(|handed| u64::from(handed.bytes)).sum();
        self.mark_dirty(out);
        let room = self.link.as_ref().map_or(0, Attachment::room);
        let fits = room as u64 >= bytes + (FRAME_BYTES * count) as u64;
        let at_once = !is_missed && fits && self.core.takes_at_once(first.number, count, bytes);
        let size = bytes as usize;
        if !at_once {
            if is_missed || !self.core.keeps_bodies() || !shared.queued_bytes.take(size) {
                self.core.handle_missed(now, newest, count as u64, bytes);
                return;
            }
            self.budgeted += size;
        }
        let parsed = |handed: &Handed| Body::parse(&handed.body).ok().map(|body| body.key_hash());
        let is_plain =
            |handed: &Handed| out.judge.posts[handed.token as usize].post.ttl_ms.is_none();
        if at_once && handed.iter().all(is_plain) {
            let sent = handed.iter().map(|handed| Sent {
                number: handed.number,
                accepted_ms,
                bytes: handed.bytes,
                key: parsed(handed).flatten(),
            });
            let first_tag = self.core.handle_sent(now, sent);
            let leaving = (first_tag..).zip(handed).map(|(tag, handed)| {
                let (number, token, bytes) = (handed.number, handed.token, handed.bytes);
                let (attempt, redelivered) = (1, false);
                (Sending { at: now, tag, number, token, attempt, redelivered }, bytes)
            });
            let leaving: Vec<_> = leaving.collect();
            self.send(&leaving, out);
            return self.tell_sent(out);
        }
        let entries = handed.iter().map(|handed| {
            let (number, bytes) = (handed.number, handed.bytes);
            entry(number, accepted_ms, bytes, &handed.body, shared, &self.copies).unwrap_or_else(
                || out.judge.fail(Some(self.peer), format_args!("{number} is torn")),
            )
        });
        self.core.handle_enqueue(now, entries);
    }

    /// Hands frames to the link.
    fn send(&mut self, leaving: &[(Sending, u32)], out: &mut Outside) {
        let (Some(attachment), Some((last, _))) = (&mut self.link, leaving.last()) else { return };
        let frames = leaving.iter().map(|(sending, bytes)| {
            let bytes = *bytes as usize + FRAME_BYTES;
            Frame { tag: sending.tag, token: sending.token, bytes }
        });
        let frames: Vec<Frame> = frames.collect();
        attachment.next_tag = last.tag + 1;
        attachment.on_the_way += frames.iter().map(|frame| frame.bytes).sum::<usize>();
        let (peer, link) = (self.peer, attachment.number);
        self.sent.extend(leaving.iter().map(|(sending, _)| sending));
        out.after(out.latency_us(peer), Event::Arrive { peer, link, frames });
    }

    /// Tells the judge what has left since the last time.
    fn tell_sent(&mut self, out: &mut Outside) {
        for sending in std::mem::take(&mut self.sent) {
            out.judge.transmit(self.peer, &sending);
        }
    }

    /// The receiver has read so much.
    pub(super) fn was_read(&mut self, link: u64, bytes: usize, out: &mut Outside) {
        let Some(attachment) = self.link.as_mut().filter(|own| own.number == link) else { return };
        let was_full = attachment.room() == 0;
        attachment.on_the_way = attachment.on_the_way.saturating_sub(bytes);
        if was_full {
            self.mark_dirty(out);
        }
    }

    /// A dial came to an end.
    pub(super) fn dialled(&mut self, link: u64, is_up: bool, out: &mut Outside) {
        if self.dialling != Some(link) {
            return;
        }
        self.dialling = None;
        match is_up {
            true => self.link_up(link, out),
            false => self.core.handle_link_down(out.now, "cannot connect", false),
        }
        self.mark_dirty(out);
    }

    /// The receiver comes by itself. Whether it is taken.
    pub(super) fn attach(&mut self, link: u64, shared: &mut Shared, out: &mut Outside) -> bool {
        self.obey(shared, out);
        let is_taken = self.link.is_none() && !self.dials && !self.paused;
        if is_taken {
            self.link_up(link, out);
            self.mark_dirty(out);
        }
        is_taken
    }

    fn link_up(&mut self, number: u64, out: &mut Outside) {
        let (next_tag, on_the_way) = (1, 0);
        let grant = out.judge.peers[self.peer].temper.grant;
        out.judge.up(self.peer, number, next_tag, grant);
        out.receivers[self.peer].connected(number);
        self.core.handle_link_up(out.now, next_tag, grant);
        self.link = Some(Attachment { number, next_tag, grant, on_the_way });
    }

    pub(super) fn link_lost(&mut self, link: u64, why: &str, out: &mut Outside) {
        if self.link.as_ref().is_some_and(|own| own.number == link) {
            self.link = None;
            out.judge.gone(self.peer, why);
            self.core.handle_link_down(out.now, why, true);
            self.mark_dirty(out);
        }
    }

    pub(super) fn answered(&mut self, link: u64, answers: &[Answer], out: &mut Outside) {
        let Some(attachment) = self.link.as_mut().filter(|own| own.number == link) else { return };
        let (peer, now) = (self.peer, out.now);
        for answer in answers {
            match *answer {
                Answer::Ack { first, last } => {
                    out.judge.ack(peer, first, last);
                    self.core.handle_ack(now, first, last);
                }
                Answer::Nack { tag, permanent, after_us } => {
                    out.judge.nack(peer, tag, permanent, after_us);
                    let after = after_us.map(Duration::from_micros);
                    self.core.handle_nack(now, tag, permanent, after, "not now");
                }
                Answer::Grant(tag) => {
                    attachment.grant = attachment.grant.max(Some(tag));
                    out.judge.granted(peer, tag);
                    self.core.handle_grant(now, tag);
                }
            }
        }
        self.mark_dirty(out);
    }

    /// An operator's change.
    pub(super) fn reconfigure(
        &mut self,
        to: &restante_protocol::registry::Peer,
        moved: bool,
        shared: &mut Shared,
        out: &mut Outside,
    ) {
        let (peer, now) = (self.peer, out.now);
        let was_paused = std::mem::replace(&mut self.paused, to.paused);
        self.settings = to.settings.clone();
        out.judge.peers[peer].settings = to.settings.clone();
        if (to.paused && !was_paused) || moved {
            self.close_link(out);
        }
        self.core.handle_policy(now, &self.settings);
        self.limit_rate(shared, now);
        if to.paused != was_paused {
            if to.paused {
                self.dialling = None;
                self.core.handle_pause(now);
            } else {
                self.core.handle_resume(now);
            }
        }
        if moved {
            self.dialling = None;
            self.core.handle_address_changed(now, self.dials);
        }
        self.obey(shared, out);
        self.mark_dirty(out);
    }

    fn close_link(&mut self, out: &mut Outside) {
        if self.link.take().is_some() {
            out.judge.gone(self.peer, "closed by the node");
            out.receivers[self.peer].session = None;
            out.attach_soon(self.peer);
        }
    }

    fn obey(&mut self, _shared: &mut Shared, out: &mut Outside) {
        while let Some(command) = self.core.poll_link() {
            match command {
                LinkCommand::Dial => {
                    let link = out.link_number();
                    self.dialling = Some(link);
                    out.dial(self.peer, link);
                }
                LinkCommand::Close(_) => self.close_link(out),
            }
        }
    }

    pub(super) fn timer(&mut self, shared: &mut Shared, out: &mut Outside) {
        if self.armed == Some(out.now) {
            self.armed = None;
            self.drain(shared, out);
        }
    }

    pub(super) fn drain_if_dirty(&mut self, shared: &mut Shared, out: &mut Outside) {
        if self.dirty {
            self.drain(shared, out);
        }
    }

    /// The answer to a read.
    pub(super) fn loaded(&mut self, page: Reading, shared: &Shared, out: &mut Outside) {
        let page = match page {
            Reading::Done(page) => page,
            Reading::Due(read) => shared.journal.next(read),
        };
        match page {
            Ok(Page { messages, through, .. }) => {
                out.judge.see(self.peer, Seen::Page { messages: messages.len(), through });
                out.judge.tally.pages += 1;
                let entries = messages.into_iter().map(|stored| {
                    let (number, bytes) = (stored.number, stored.body.len() as u32);
                    let accepted_ms = stored.accepted_ms;
                    entry(number, accepted_ms, bytes, &stored.body, shared, &self.copies)
                        .unwrap_or_else(|| {
                            out.judge.fail(Some(self.peer), format_args!("{number} is torn"))
                        })
                });
                let entries: Vec<_> = entries.collect();
                self.core.handle_loaded(out.now, entries, through);
            }
            // The node is about to go down with its journal.
            Err(ReadError::Unavailable(_)) => self.core.handle_load_failed(out.now),
            Err(error) => out.judge.fail(Some(self.peer), format_args!("a page: {error}")),
        }
        self.mark_dirty(out);
    }
}

impl Attachment {
    fn room(&self) -> usize {
        ROOM_BYTES.saturating_sub(self.on_the_way)
    }
}

fn new_core(
    id: PeerId,
    settings: &PeerSettings,
    (peer, dials, paused): (usize, bool, bool),
    shared: &Shared,
    out: &mut Outside,
) -> Delivery<Held> {
    let backlog = shared.journal.backlog(id);
    let start = Start {
        floor: backlog.floor,
        newest: backlog.newest,
        messages: backlog.messages,
        bytes: backlog.bytes,
        maybe_sent: shared.maybe_sent.max(backlog.newest),
        paused,
        dials,
        knows_since: Some("the node started"),
    };
    Delivery::new(out.now, settings, start, out.peer_dice[peer].random())
}

/// A message as a core takes it; nothing if it is not whole.
fn entry(
    number: MessageNumber,
    accepted_ms: u64,
    bytes: u32,
    body: &[u8],
    shared: &Shared,
    count: &Rc<Cell<usize>>,
) -> Option<Entry<Held>> {
    let body = Body::parse(body).ok()?;
    let token = token_of(&body)?;
    let end = body.ttl_ms.map(|ms| Duration::from_millis(ms.get()));
    let end = end.map(|ttl| shared.anchors.end_of_life(number, accepted_ms, ttl));
    let (key, expires) = (body.key_hash(), end.and_then(Expiry::at));
    Some(Entry { number, accepted_ms, bytes, key, expires, body: Held::new(token, bytes, count) })
}

/// Where both clocks stand when a node starts.
pub(super) fn anchors(from: MessageNumber, now: Time) -> Anchors {
    Anchors::new(from, wall_ms(now), now)
}
