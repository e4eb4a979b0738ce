//! Who sees everything that passes and knows what was promised.
//!
//! It is told by what passes between the parts, never by what a core says of itself: what was appended,
//! became durable and was confirmed; what left for a receiver and what came back; what is to be
//! recorded as done. Each is held against the promises at once, and what is left in the end against
//! [`verdict`]. What it says of order stands in [`order`].

mod ends;
mod order;
mod verdict;

pub use verdict::Report;

use super::plan::{Plan, Temper};
use super::post::{Poison, Post};
use restante_protocol::admin::{Order, PeerSettings};
use restante_protocol::delivery::Expired;
use restante_protocol::delivery::types::{Parked, Settled};
use restante_protocol::id::MessageNumber;
use restante_protocol::time::Time;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Arguments;

/// Things remembered of each peer, to be told should a promise be broken.
const SEEN_MAX: usize = 80;
/// Pages that a peer reads before anything else happens to it: as many as fill its queue, a few messages
/// at a time.
const READS_MAX: u32 = 500;
/// How much later than its end a message may still be sent: lives are kept in twentieths of a second.
const END_EXACT_TO_US: u64 = 100_000;

/// What has become of a message for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not stored, as far as anybody knows.
    Unknown,
    /// Refused at the door, and the producer was told.
    Refused,
    Open,
    Acked,
    Expired,
    Parked,
}

/// A message and one of its receivers.
#[derive(Clone, Debug)]
pub(super) struct Fate {
    pub(super) standing: Standing,
    /// Sent so often, by whatever core.
    pub(super) sent: u32,
    /// The core that what follows is about.
    core: u32,
    /// Sent so often by it.
    pub(super) sent_now: u16,
    /// Refused so often.
    nacks: usize,
    /// Not to be sent before.
    due: Time,
    /// In flight under this tag.
    pub(super) flying: Option<u64>,
    sent_at: Time,
    /// The receiver has acked it, whether that came through or not.
    pub(super) is_taken: bool,
    /// It has arrived.
    pub(super) is_there: bool,
    /// What it came to is on disk.
    pub(super) is_synced: bool,
}

/// Everything known of a message.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) post: Post,
    pub(super) bytes: u32,
    pub(super) number: Option<MessageNumber>,
    pub(super) accepted_at: Time,
    pub(super) is_confirmed: bool,
    /// By place among its receivers.
    pub(super) fates: Vec<Fate>,
}

/// Everything known of a peer.
pub(super) struct Witness {
    pub(super) temper: Temper,
    pub(super) settings: PeerSettings,
    core: u32,
    is_up: bool,
    next_tag: u64,
    grant: Option<u64>,
    /// At most one in flight until something is answered.
    is_probing: bool,
    last_answer: Time,
    /// Millionths of messages that its rate allows, and as of when.
    allowed: (u64, Time),
    flying: BTreeMap<u64, u64>,
    flying_bytes: u64,
    /// Found late on this link.
    given_up: BTreeMap<u64, u64>,
    /// Messages by number.
    pub(super) open: BTreeMap<MessageNumber, u64>,
    /// Of each key.
    pub(super) keys: BTreeMap<u32, BTreeSet<MessageNumber>>,
    /// The newest of each key that this core has sent.
    pub(super) newest_sent: BTreeMap<u32, MessageNumber>,
    /// Acks that came through and whose messages have not been recorded as done yet.
    answered: BTreeSet<u64>,
    /// Refused for good or too often, and not recorded as parked yet.
    leaving: BTreeSet<u64>,
    /// Pages read since something was sent or ended.
    reads: u32,
    seen: VecDeque<(Time, Seen)>,
}

/// A message on its way to a receiver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) at: Time,
    pub(super) tag: u64,
    pub(super) number: MessageNumber,
    pub(super) token: u64,
    pub(super) attempt: u16,
    pub(super) redelivered: bool,
}

/// Something that happened to a peer.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "printed, should a promise be broken")]
pub(super) enum Seen {
    NewCore { waiting: u64, floor: MessageNumber },
    Up { link: u64, grant: Option<u64> },
    Gone { why: String },
    Stored(MessageNumber),
    Sent { number: MessageNumber, tag: u64, attempt: u16 },
    Ack { first: u64, last: u64 },
    Nack { tag: u64, permanent: bool },
    Granted(u64),
    Settled(MessageNumber),
    Parked(MessageNumber, String),
    Expired(MessageNumber),
    Load { after: MessageNumber, through: MessageNumber },
    Page { messages: usize, through: MessageNumber },
    Said(String),
}

/// See the module.
pub(super) struct Judge {
    pub(super) seed: u64,
    pub(super) now: Time,
    pub(super) posts: Vec<Told>,
    pub(super) peers: Vec<Witness>,
    /// Messages done of which nobody knows yet that it is on disk.
    unsynced: Vec<(usize, u64)>,
    /// Appended and not yet durable.
    pub(super) appended: BTreeSet<u64>,
    pub(super) tally: verdict::Tally,
}

impl Judge {
    pub(super) fn new(plan: &Plan, settings: impl Fn(&Temper) -> PeerSettings) -> Judge {
        let witness = |temper: &Temper| Witness {
            settings: settings(temper),
            temper: temper.clone(),
            core: 0,
            is_up: false,
            next_tag: 1,
            grant: None,
            is_probing: false,
            last_answer: Time::ZERO,
            allowed: (0, Time::ZERO),
            flying: BTreeMap::new(),
            flying_bytes: 0,
            given_up: BTreeMap::new(),
            open: BTreeMap::new(),
            keys: BTreeMap::new(),
            newest_sent: BTreeMap::new(),
            answered: BTreeSet::new(),
            leaving: BTreeSet::new(),
            reads: 0,
            seen: VecDeque::new(),
        };
        Judge {
            seed: plan.seed,
            now: Time::ZERO,
            posts: Vec::new(),
            peers: plan.tempers.iter().map(witness).collect(),
            unsynced: Vec::new(),
            appended: BTreeSet::new(),
            tally: verdict::Tally::default(),
        }
    }

    /// A promise is broken.
    pub(super) fn fail(&self, peer: Option<usize>, what: Arguments<'_>) -> ! {
        let mut text = format!("seed {}, at {:?}: {what}\n", self.seed, self.now);
        if let Some(peer) = peer {
            let witness = &self.peers[peer];
            text += &format!("peer {peer} is {:?}\n", witness.temper);
            for (at, seen) in &witness.seen {
                text += &format!("  {:>16.6} {seen:?}\n", at.0 as f64 / 1e6);
            }
        }
        panic!("{text}");
    }

    pub(super) fn see(&mut self, peer: usize, seen: Seen) {
        let witness = &mut self.peers[peer];
        witness.reads = match seen {
            Seen::Page { .. } => witness.reads + 1,
            Seen::Load { .. } => witness.reads,
            _ => 0,
        };
        if witness.reads > READS_MAX {
            self.fail(
                Some(peer),
                format_args!("{READS_MAX} pages were read, and nothing came of it"),
            );
        }
        let ring = &mut self.peers[peer].seen;
        if ring.len() == SEEN_MAX {
            ring.pop_front();
        }
        ring.push_back((self.now, seen));
    }

    /// A message is about to be published.
    pub(super) fn posted(&mut self, post: Post) {
        let fate = Fate {
            standing: Standing::Unknown,
            sent: 0,
            core: 0,
            sent_now: 0,
            nacks: 0,
            due: Time::ZERO,
            flying: None,
            sent_at: Time::ZERO,
            is_taken: false,
            is_there: false,
            is_synced: false,
        };
        let fates = vec![fate; post.receivers.len()];
        let bytes = post.body().len() as u32;
        let (number, accepted_at, is_confirmed) = (None, Time::ZERO, false);
        self.posts.push(Told { post, bytes, number, accepted_at, is_confirmed, fates });
    }

    /// A message has been appended under this number for those of its receivers that do not refuse.
    pub(super) fn appended(&mut self, token: u64, number: MessageNumber, refusing: &[usize]) {
        let now = self.now;
        let told = &mut self.posts[token as usize];
        if told.number.is_some() {
            let before = told.number;
            self.fail(None, format_args!("{token} is {number} and was {before:?}: accepted twice"));
        }
        // Ids and records have it in milliseconds.
        (told.number, told.accepted_at) = (Some(number), Time(now.0 / 1_000 * 1_000));
        for (receiver, fate) in told.post.receivers.iter().zip(&mut told.fates) {
            if refusing.contains(receiver) {
                fate.standing = Standing::Refused;
            }
        }
        self.appended.insert(token);
    }

    /// It is on disk.
    pub(super) fn durable(&mut self, token: u64) {
        self.appended.remove(&token);
        let told = &mut self.posts[token as usize];
        let Some(number) = told.number else { return };
        let key = told.post.key;
        let mut receivers = Vec::new();
        for (receiver, fate) in told.post.receivers.iter().zip(&mut told.fates) {
            if fate.standing == Standing::Unknown {
                fate.standing = Standing::Open;
                receivers.push(*receiver);
            }
        }
        for receiver in receivers {
            self.open(receiver, key, number, token);
            self.see(receiver, Seen::Stored(number));
        }
    }

    fn open(&mut self, peer: usize, key: u32, number: MessageNumber, token: u64) {
        let witness = &mut self.peers[peer];
        witness.open.insert(number, token);
        witness.keys.entry(key).or_default().insert(number);
    }

    /// Its producer was told that it is on disk.
    pub(super) fn confirmed(&mut self, token: u64, number: MessageNumber) {
        let told = &mut self.posts[token as usize];
        let (known, is_durable) = (told.number, !self.appended.contains(&token));
        if known != Some(number) || !is_durable {
            self.fail(
                None,
                format_args!("{token} is confirmed as {number}: {known:?}, {is_durable}"),
            );
        }
        self.tally.confirmed += u64::from(!told.is_confirmed);
        told.is_confirmed = true;
    }

    /// Its producer was told that nobody takes it.
    pub(super) fn refused(&mut self, token: u64) {
        let told = &mut self.posts[token as usize];
        if let Some(number) = told.number {
            self.fail(None, format_args!("{token} is refused and stored as {number}"));
        }
        told.fates.iter_mut().for_each(|fate| fate.standing = Standing::Refused);
        self.tally.refused += 1;
    }

    /// A core is built, from what the journal knows.
    pub(super) fn new_core(&mut self, peer: usize, waiting: u64, floor: MessageNumber) {
        self.gone(peer, "a new core");
        let now = self.now;
        let witness = &mut self.peers[peer];
        witness.core += 1;
        witness.newest_sent.clear();
        witness.allowed = (u64::MAX, now);
        witness.answered.clear();
        witness.leaving.clear();
        let open = witness.open.len() as u64;
        let first = witness.open.first_key_value().map(|(number, _)| *number);
        self.see(peer, Seen::NewCore { waiting, floor });
        if waiting != open || first.is_some_and(|first| first <= floor) {
            let what =
                format_args!("the journal has {waiting} above {floor}, {open} from {first:?}");
            self.fail(Some(peer), what);
        }
    }

    /// There is a link.
    pub(super) fn up(&mut self, peer: usize, link: u64, first_tag: u64, grant: Option<u64>) {
        self.gone(peer, "another link");
        let now = self.now;
        let witness = &mut self.peers[peer];
        (witness.is_up, witness.next_tag, witness.grant) = (true, first_tag, grant);
        witness.is_probing = !witness.open.is_empty();
        witness.last_answer = now;
        self.see(peer, Seen::Up { link, grant });
    }

    /// There is none any more.
    pub(super) fn gone(&mut self, peer: usize, why: &str) {
        if std::mem::take(&mut self.peers[peer].is_up) {
            self.see(peer, Seen::Gone { why: why.to_owned() });
        }
        let witness = &mut self.peers[peer];
        witness.given_up.clear();
        witness.flying_bytes = 0;
        for token in std::mem::take(&mut witness.flying).into_values() {
            self.fate(peer, token).flying = None;
        }
    }

    /// What is known of a message for one of its receivers, as far as its present core goes.
    pub(super) fn fate(&mut self, peer: usize, token: u64) -> &mut Fate {
        let core = self.peers[peer].core;
        let told = &mut self.posts[token as usize];
        let place = told.post.receivers.iter().position(|receiver| *receiver == peer);
        let fate = &mut told.fates[place.expect("a message goes to its receivers")];
        if fate.core != core {
            fate.core = core;
            (fate.sent_now, fate.nacks, fate.due, fate.flying) = (0, 0, Time::ZERO, None);
        }
        fate
    }

    /// What is in flight for the ack timeout has been given up by now.
    fn give_up_late(&mut self, peer: usize) {
        let timeout_us = self.peers[peer].settings.ack_timeout_ms * 1_000;
        while let Some((&tag, &token)) = self.peers[peer].flying.first_key_value() {
            let sent_at = self.fate(peer, token).sent_at;
            if sent_at.0 + timeout_us > self.now.0 {
                return;
            }
            self.land(peer, tag);
            let witness = &mut self.peers[peer];
            witness.given_up.insert(tag, token);
            // Nothing came back since: one message asks, and nothing else leaves.
            witness.is_probing |= sent_at >= witness.last_answer;
        }
    }

    fn land(&mut self, peer: usize, tag: u64) -> Option<u64> {
        let token = self.peers[peer].flying.remove(&tag)?;
        let bytes = u64::from(self.posts[token as usize].bytes);
        self.peers[peer].flying_bytes -= bytes;
        self.fate(peer, token).flying = None;
        Some(token)
    }

    /// A message has left for its receiver.
    pub(super) fn transmit(&mut self, peer: usize, sending: &Sending) {
        self.give_up_late(peer);
        let Sending { at: now, tag, number, token, attempt, redelivered } = *sending;
        self.see(peer, Seen::Sent { number, tag, attempt });
        let told = &self.posts[token as usize];
        let (bytes, is_right) = (u64::from(told.bytes), told.number == Some(number));
        let end = told.post.end_of_life(told.accepted_at);
        let key = told.post.key;
        let fate = self.fate(peer, token).clone();
        let witness = &self.peers[peer];
        let wrong = |what: &str| self.fail(Some(peer), format_args!("{number} is sent {what}"));
        if !is_right || fate.standing != Standing::Open {
            wrong(&format!("and is {:?}", fate.standing));
        }
        if !witness.is_up || tag != witness.next_tag {
            wrong(&format!("under tag {tag}, expected {}", witness.next_tag));
        }
        if witness.grant.is_some_and(|grant| tag > grant) {
            wrong("beyond the grant");
        }
        if let Some(other) = fate.flying {
            wrong(&format!("and is in flight under {other}"));
        }
        let in_flight = witness.flying.len();
        let fits = witness.flying_bytes + bytes <= witness.settings.window_bytes || in_flight == 0;
        if in_flight >= witness.settings.window_messages as usize || !fits {
            wrong(&format!("while {in_flight} are in flight"));
        }
        if witness.is_probing && in_flight > 0 {
            wrong("before the probe was answered");
        }
        if fate.due > now {
            wrong(&format!("before it is due, at {:?}", fate.due));
        }
        if end.is_some_and(|end| now.0 > end.0 + END_EXACT_TO_US) {
            wrong("although its time to live has ended");
        }
        if attempt != fate.sent_now + 1 || (fate.sent > 0 && !redelivered) {
            wrong(&format!("as attempt {attempt}, redelivered {redelivered}: {fate:?}"));
        }
        self.check_order(peer, key, number, fate.sent_now == 0);
        self.check_rate(peer, number, now);
        let witness = &mut self.peers[peer];
        witness.next_tag += 1;
        witness.flying.insert(tag, token);
        witness.flying_bytes += bytes;
        let fate = self.fate(peer, token);
        (fate.flying, fate.sent_at) = (Some(tag), now);
        fate.sent += 1;
        fate.sent_now += 1;
        let again = fate.sent > 1;
        self.tally.sent(peer, number, now, again);
    }

    /// A message has come to its receiver.
    pub(super) fn arrived(&mut self, peer: usize, token: u64) {
        let now = self.now;
        let fate = self.fate(peer, token);
        if std::mem::replace(&mut fate.is_there, true) {
            return;
        }
        let told = &self.posts[token as usize];
        let took_us = now.0 - told.accepted_at.0;
        let temper = &self.peers[peer].temper;
        if temper.is_bystander {
            self.tally.latencies_us.push(took_us);
        } else if let Some((key, from, until)) = temper.refused_key {
            let is_other = told.post.key != key;
            if is_other && temper.order != Order::None && (from..until).contains(&told.accepted_at)
            {
                self.tally.beside_refused_us.push(took_us);
            }
        }
    }

    /// Its receiver has done with it, and says so.
    pub(super) fn taken(&mut self, peer: usize, token: u64) {
        self.fate(peer, token).is_taken = true;
    }

    /// An ack came back.
    pub(super) fn ack(&mut self, peer: usize, first: u64, last: u64) {
        self.see(peer, Seen::Ack { first, last });
        let witness = &mut self.peers[peer];
        let flying = witness.flying.range(first..=last).map(|(tag, _)| *tag).collect::<Vec<_>>();
        let late = witness.given_up.range(first..=last).map(|(tag, _)| *tag).collect::<Vec<_>>();
        let mut done: Vec<u64> = Vec::new();
        done.extend(flying.iter().filter_map(|tag| self.land(peer, *tag)));
        done.extend(late.iter().filter_map(|tag| self.peers[peer].given_up.remove(tag)));
        for token in done {
            let fate = self.fate(peer, token);
            let (again, is_open) = (fate.flying, fate.standing == Standing::Open);
            if is_open {
                again.and_then(|tag| self.land(peer, tag));
                self.peers[peer].answered.insert(token);
                self.answered(peer);
            }
        }
    }

    /// The message that a nack counts for. Of a delivery that was given up it counts unless the message is
    /// in flight again or has been refused already; one for good always does.
    fn nacked(&mut self, peer: usize, tag: u64, permanent: bool) -> Option<u64> {
        if let Some(token) = self.land(peer, tag) {
            return Some(token);
        }
        let (token, now) = (*self.peers[peer].given_up.get(&tag)?, self.now);
        let fate = self.fate(peer, token);
        let is_open = fate.standing == Standing::Open;
        let (again, waits) = (fate.flying, fate.due > now);
        if !is_open || !(permanent || (again.is_none() && !waits)) {
            return None;
        }
        again.and_then(|tag| self.land(peer, tag));
        Some(token)
    }

    fn answered(&mut self, peer: usize) {
        let now = self.now;
        let witness = &mut self.peers[peer];
        (witness.is_probing, witness.last_answer) = (false, now);
    }

    /// A nack came back.
    pub(super) fn nack(&mut self, peer: usize, tag: u64, permanent: bool, after_us: Option<u64>) {
        self.see(peer, Seen::Nack { tag, permanent });
        let now = self.now;
        let Some(token) = self.nacked(peer, tag, permanent) else { return };
        self.answered(peer);
        let schedule = &self.peers[peer].settings.retry_schedule_ms;
        let waits: Vec<u64> = schedule.iter().map(|ms| ms * 1_000).collect();
        let fate = self.fate(peer, token);
        if let Some(wait) = waits.get(fate.nacks).filter(|_| !permanent) {
            fate.due = Time(now.0 + after_us.unwrap_or(*wait));
        }
        fate.nacks += 1;
        if permanent || fate.nacks > waits.len() {
            self.peers[peer].leaving.insert(token);
        }
    }

    /// More was granted.
    pub(super) fn granted(&mut self, peer: usize, tag: u64) {
        self.see(peer, Seen::Granted(tag));
        self.peers[peer].grant = self.peers[peer].grant.max(Some(tag));
    }
}
