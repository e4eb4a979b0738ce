//! A shell, a journal and a receiver, as simple as can be, around one core.

use super::{Op, Setup};
use core::num::NonZeroU64;
use core::time::Duration;
use restante_protocol::admin::{Order, PeerSettings};
use restante_protocol::delivery::{
    Delivery, Entry, Expiry, LinkCommand, Load, NotExcluded, ParkCause, Report, Sent, Start,
    Transmit,
};
use restante_protocol::message::KeyHash;
use restante_protocol::shaper::Amount;
use restante_protocol::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const ACK_TIMEOUT_MS: u64 = 1_000;
pub(crate) const SCHEDULE_MS: [u64; 2] = [500, 2_000];

/// Where a message is, as the journal sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    Settled,
    Parked,
    Expired,
}

/// Everything there is to know about a message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) key: Option<u64>,
    pub(crate) bytes: u32,
    pub(crate) end: End,
    /// Sent by this core.
    pub(crate) attempts: u16,
    /// Nacked by the receiver.
    pub(crate) refusals: usize,
    /// Not to be sent before.
    pub(crate) due: Time,
    /// Not to be sent from then on.
    pub(crate) expires: Option<Expiry>,
}

/// One delivery in flight, or given up for lateness on this link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) number: u64,
    pub(crate) sent_at: Time,
}

/// What the shell knows of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Down,
    Dialling,
    Up,
}

/// See [`World::index`].
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) open: BTreeSet<u64>,
    pub(crate) open_bytes: u64,
    /// Open and not in flight: key, whether it was sent before, number.
    pub(crate) waiting: BTreeSet<(Option<u64>, bool, u64)>,
    /// Tags by number.
    pub(crate) flying: BTreeMap<u64, u64>,
    pub(crate) flying_keys: BTreeMap<Option<u64>, u32>,
    pub(crate) flying_bytes: u64,
}

pub(crate) struct World {
    pub(crate) core: Delivery<Arc<()>>,
    pub(crate) settings: PeerSettings,
    pub(crate) dials: bool,
    pub(crate) paused: bool,
    pub(crate) seed: u64,
    pub(crate) now: Time,
    pub(crate) messages: BTreeMap<u64, Message>,
    pub(crate) newest: u64,
    pub(crate) maybe_sent: u64,
    pub(crate) link: Link,
    pub(crate) in_flight: BTreeMap<u64, InFlight>,
    pub(crate) given_up: BTreeMap<u64, u64>,
    /// What follows from the maps above, kept beside them for speed.
    pub(crate) index: Index,
    pub(crate) next_tag: u64,
    pub(crate) first_tag: u64,
    pub(crate) grant: Option<u64>,
    pub(crate) load: Option<(Load, Vec<Entry<Arc<()>>>)>,
    pub(crate) loads: u64,
    pub(crate) floor: u64,
    /// Highest number this core sent.
    pub(crate) sent_max: u64,
    /// Every body is a clone of this.
    pub(crate) body: Arc<()>,
    /// How much it may send at a time, where its rate is limited.
    pub(crate) leave: Option<Amount>,
}

impl World {
    pub(crate) fn new(setup: &Setup) -> World {
        let settings = PeerSettings {
            order: setup.order,
            window_messages: setup.window,
            window_messages_min: setup.window_min,
            window_bytes: setup.window_bytes,
            ack_timeout_ms: ACK_TIMEOUT_MS,
            backoff_ms_min: 50,
            backoff_ms_max: 2_000,
            retry_schedule_ms: SCHEDULE_MS.to_vec(),
            ..PeerSettings::default()
        };
        let start = Start { dials: setup.dials, ..Start::default() };
        let mut world = World {
            core: Delivery::new(Time::ZERO, &settings, start, setup.seed),
            settings,
            dials: setup.dials,
            paused: false,
            seed: setup.seed,
            now: Time::ZERO,
            messages: BTreeMap::new(),
            newest: 0,
            maybe_sent: 0,
            link: Link::Down,
            in_flight: BTreeMap::new(),
            given_up: BTreeMap::new(),
            index: Index::default(),
            next_tag: 1,
            first_tag: 1,
            grant: None,
            load: None,
            loads: 0,
            floor: 0,
            sent_max: 0,
            body: Arc::new(()),
            leave: setup.leave,
        };
        world.core.handle_limited(setup.leave.is_some());
        world.drain();
        world
    }

    pub(crate) fn loads_asked(&self) -> u64 {
        self.loads
    }

    /// One thing happens; then everything is drained and checked.
    pub(crate) fn apply(&mut self, op: &Op) {
        self.act(op);
        self.drain();
    }

    /// From here on all goes well: in the end nothing is open, and the floor says so.
    pub(crate) fn run_out(&mut self) {
        self.apply(&Op::Resume);
        for _ in 0..20_000 {
            if self.index.open.is_empty() && self.core.floor() == self.newest {
                return;
            }
            match (self.link, &self.load) {
                (_, Some(_)) => self.apply(&Op::Page { size: usize::MAX }),
                (Link::Dialling, _) => self.apply(&Op::LinkUp { grant: None }),
                (Link::Down, _) if !self.dials => self.apply(&Op::LinkUp { grant: None }),
                (Link::Up, _) if self.grant.is_some_and(|grant| grant < self.next_tag + 99) => {
                    self.apply(&Op::Grant { more: 1_000_000 });
                }
                (Link::Up, _) if !self.in_flight.is_empty() => self.apply(&Op::AckAll),
                _ => self.apply(&Op::AdvanceToDeadline),
            }
        }
        panic!("stuck with {:?}: {:?}", self.core.snapshot(self.now), self.index.open.first());
    }

    /// A delivery leaves.
    pub(crate) fn fly(&mut self, tag: u64, number: u64) {
        let Message { key, bytes, .. } = self.messages[&number];
        self.index.waiting.remove(&(key, false, number));
        self.index.waiting.remove(&(key, true, number));
        self.index.flying.insert(number, tag);
        self.index.flying_bytes += u64::from(bytes);
        *self.index.flying_keys.entry(key).or_insert(0) += 1;
        self.in_flight.insert(tag, InFlight { number, sent_at: self.now });
    }

    /// A delivery is not in flight any more, whatever becomes of its message.
    pub(crate) fn land(&mut self, tag: u64) -> Option<u64> {
        let InFlight { number, .. } = self.in_flight.remove(&tag)?;
        let Message { key, bytes, end, .. } = self.messages[&number];
        self.index.flying.remove(&number);
        self.index.flying_bytes -= u64::from(bytes);
        let of_key = self.index.flying_keys.get_mut(&key).expect("it was counted");
        *of_key -= 1;
        if *of_key == 0 {
            self.index.flying_keys.remove(&key);
        }
        if end == End::Open {
            self.index.waiting.insert((key, true, number));
        }
        Some(number)
    }

    pub(crate) fn land_number(&mut self, number: u64) {
        if let Some(tag) = self.index.flying.get(&number).copied() {
            self.land(tag);
        }
    }

    /// A message is done.
    pub(crate) fn close(&mut self, number: u64, end: End) {
        self.land_number(number);
        let message = self.message(number);
        assert_eq!(message.end, End::Open, "{number} is done twice");
        message.end = end;
        let (key, bytes) = (message.key, message.bytes);
        self.index.open.remove(&number);
        self.index.open_bytes -= u64::from(bytes);
        self.index.waiting.remove(&(key, false, number));
        self.index.waiting.remove(&(key, true, number));
    }

    pub(crate) fn message(&mut self, number: u64) -> &mut Message {
        self.messages.get_mut(&number).expect("the core speaks of messages it was given")
    }

    fn act(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Enqueue { count, stride, keys, bytes } => {
                let entries = self.store(count, stride, keys, bytes, None);
                let first = entries.first().map_or(0, |entry| entry.number);
                let all = count * u64::from(bytes);
                if count % 2 == 0 && self.core.takes_at_once(first, entries.len(), all) {
                    self.send_at_once(entries);
                } else {
                    self.core.handle_enqueue(now, entries);
                }
            }
            Op::EnqueueMortal { count, keys, ttl_ms } => {
                let expires = Expiry::at(now + Duration::from_millis(ttl_ms));
                let entries = self.store(count, 1, keys, 100, expires);
                self.core.handle_enqueue(now, entries);
            }
            Op::Missed { count } => {
                self.store(count, 2, 3, 100, None);
                self.core.handle_missed(now, self.newest, count, count * 100);
            }
            Op::LinkUp { grant } => self.link_up(grant),
            Op::LinkLost if self.link == Link::Up => {
                self.link_is_gone();
                self.core.handle_link_down(now, "lost", true);
            }
            Op::DialFailed if self.link == Link::Dialling => {
                self.link = Link::Down;
                self.core.handle_link_down(now, "refused", false);
            }
            Op::LinkLost => self.core.handle_link_down(now, "of an old link", true),
            Op::DialFailed if self.link == Link::Up => {
                self.core.handle_link_down(now, "of an old dial", false);
            }
            Op::DialFailed => {}
            Op::Advance { ms } => self.pass(self.now + Duration::from_millis(ms)),
            Op::AdvanceToDeadline => {
                if let Some(at) = self.core.next_deadline() {
                    self.pass(at.max(now));
                }
            }
            Op::Page { size } => self.page(size),
            Op::PageFails => {
                if self.load.take().is_some() {
                    self.core.handle_load_failed(now);
                }
            }
            Op::Restart => self.restart(),
            Op::Trim => self.core.trim(),
            Op::Policy { order, window } => {
                (self.settings.order, self.settings.window_messages) = (order, window);
                self.core.handle_policy(now, &self.settings);
            }
            Op::Pause => {
                self.paused = true;
                self.core.handle_pause(now);
            }
            Op::Resume => {
                self.paused = false;
                self.core.handle_resume(now);
            }
            Op::AddressChanged { dials } => {
                self.dials = dials;
                self.core.handle_address_changed(now, dials);
            }
            Op::Exclude { at } => self.exclude(at),
            _ => self.answer(op),
        }
    }

    /// The receiver says something.
    fn answer(&mut self, op: &Op) {
        let now = self.now;
        match *op {
            Op::Ack { at, length } => {
                let Some(first) = pick(&self.in_flight, at) else { return };
                let last = (first + length - 1).min(self.next_tag - 1);
                self.acked(first, last);
                self.core.handle_ack(now, first, last);
            }
            Op::AckAll => {
                if self.link == Link::Up && self.next_tag > self.first_tag {
                    let (first, last) = (self.first_tag, self.next_tag - 1);
                    self.acked(first, last);
                    self.core.handle_ack(now, first, last);
                }
            }
            Op::AckValue { at } => {
                let Some(tag) = pick(&self.in_flight, at) else { return };
                let number = self.in_flight[&tag].number;
                self.acked(tag, tag);
                assert_eq!(self.core.handle_ack_value(now, tag), Some(number));
            }
            Op::AckGivenUp { at } => {
                let Some(tag) = pick(&self.given_up, at) else { return };
                self.acked(tag, tag);
                self.core.handle_ack(now, tag, tag);
            }
            Op::AckOdd { ahead } => {
                self.core.handle_ack(now, self.first_tag, self.next_tag + ahead);
            }
            Op::AckEarlier => self.core.handle_ack(now, 0, self.first_tag - 1),
            Op::Nack { at, permanent, after_ms } => {
                let Some(tag) = pick(&self.in_flight, at) else { return };
                if let Some(number) = self.land(tag) {
                    self.nacked(tag, number, permanent, after_ms);
                }
            }
            Op::NackGivenUp { at, permanent } => {
                let Some(tag) = pick(&self.given_up, at) else { return };
                let number = self.given_up[&tag];
                let again = self.index.flying.get(&number).copied();
                let Message { end, due, .. } = self.messages[&number];
                let open = end == End::Open;
                let counts = open && again.is_none() && due <= now;
                if counts || (open && permanent) {
                    again.map(|tag| self.land(tag));
                    self.nacked(tag, number, permanent, None);
                } else {
                    self.core.handle_nack(now, tag, permanent, None, "no");
                }
            }
            Op::Grant { more } => {
                if self.link == Link::Up {
                    let grant = self.grant.unwrap_or(self.next_tag) + more;
                    self.grant = Some(grant);
                    self.core.handle_grant(now, grant);
                }
            }
            _ => unreachable!("{op:?} is no answer"),
        }
    }

    fn store(
        &mut self,
        count: u64,
        stride: u64,
        keys: u64,
        bytes: u32,
        expires: Option<Expiry>,
    ) -> Vec<Entry<Arc<()>>> {
        let mut entries = Vec::new();
        for _ in 0..count {
            self.newest += stride;
            let key = NonZeroU64::new(self.newest / stride % keys).map(u64::from);
            let (end, due) = (End::Open, Time::ZERO);
            let message = Message { key, bytes, end, attempts: 0, refusals: 0, due, expires };
            entries.push(self.entry(self.newest, &message));
            self.index.open.insert(self.newest);
            self.index.open_bytes += u64::from(bytes);
            self.index.waiting.insert((key, false, self.newest));
            self.messages.insert(self.newest, message);
        }
        entries
    }

    fn entry(&self, number: u64, message: &Message) -> Entry<Arc<()>> {
        let key = message.key.and_then(NonZeroU64::new).map(KeyHash);
        let body = Arc::clone(&self.body);
        let Message { bytes, expires, .. } = *message;
        Entry { number, accepted_ms: number, bytes, key, expires, body }
    }

    /// What the core says it would send at once leaves past its queue.
    fn send_at_once(&mut self, entries: Vec<Entry<Arc<()>>>) {
        let sent = entries.iter().map(|entry| {
            let Entry { number, accepted_ms, bytes, key, .. } = *entry;
            Sent { number, accepted_ms, bytes, key }
        });
        let first_tag = self.core.handle_sent(self.now, sent);
        for (tag, entry) in (first_tag..).zip(entries) {
            let Entry { number, accepted_ms, body, .. } = entry;
            let (attempt, redelivered) = (1, false);
            let sent = Transmit { tag, number, accepted_ms, attempt, redelivered, body };
            self.check_transmit(&sent);
            self.fly(tag, number);
        }
    }

    fn link_up(&mut self, grant: Option<u64>) {
        let may = self.link == Link::Dialling || !self.dials;
        if !may {
            return;
        }
        self.link_is_gone();
        self.first_tag = self.next_tag;
        let grant = grant.map(|grant| self.first_tag + grant);
        self.grant = grant;
        self.link = Link::Up;
        self.core.handle_link_up(self.now, self.first_tag, grant);
    }

    pub(crate) fn link_is_gone(&mut self) {
        self.link = Link::Down;
        while let Some((tag, _)) = self.in_flight.first_key_value() {
            self.land(*tag);
        }
        self.given_up.clear();
        self.grant = None;
    }

    /// Time passes; what is in flight for too long is given up, by the model as by the core.
    fn pass(&mut self, until: Time) {
        self.now = until;
        let timeout = Duration::from_millis(ACK_TIMEOUT_MS);
        let is_late = |delivery: &InFlight| delivery.sent_at + timeout <= until;
        if self.link == Link::Up {
            let late = self.in_flight.iter().filter(|(_, delivery)| is_late(delivery));
            for tag in late.map(|(tag, _)| *tag).collect::<Vec<_>>() {
                let number = self.land(tag).expect("it was in flight");
                self.given_up.insert(tag, number);
            }
        }
        self.core.handle_timeout(until);
    }

    /// Answers the read under way, as of when it was begun.
    fn page(&mut self, size: usize) {
        let Some((load, mut entries)) = self.load.take() else { return };
        let mut through = load.through;
        let size = size.min(load.messages_max).max(1);
        if let Some(cut) = entries.get(size) {
            through = cut.number - 1;
            entries.truncate(size);
        }
        self.core.handle_loaded(self.now, entries, through);
    }

    fn exclude(&mut self, at: usize) {
        let beyond =
            self.core.handle_exclude(self.now, self.newest + 1, 100, ParkCause::Poison, "poison");
        assert_eq!(beyond, Err(NotExcluded::NotOpen));
        let Some(at) = at.checked_rem(self.index.open.len()) else { return };
        let Some(number) = self.index.open.iter().nth(at).copied() else { return };
        let bytes = self.messages[&number].bytes;
        assert_eq!(
            self.core.handle_exclude(self.now, number, bytes, ParkCause::Poison, "poison"),
            Ok(())
        );
        self.land_number(number);
    }

    /// The process dies and starts again: the journal is all that is left.
    fn restart(&mut self) {
        self.link_is_gone();
        self.load = None;
        self.maybe_sent = self.maybe_sent.max(self.sent_max);
        self.sent_max = 0;
        self.index.waiting.clear();
        for number in &self.index.open {
            let message = self.messages.get_mut(number).expect("what is open is there");
            (message.attempts, message.refusals, message.due) = (0, 0, Time::ZERO);
            self.index.waiting.insert((message.key, false, *number));
        }
        let start = Start {
            floor: self.index.open.first().map_or(self.newest, |number| number - 1),
            newest: self.newest,
            messages: self.index.open.len() as u64,
            bytes: self.index.open_bytes,
            maybe_sent: self.maybe_sent,
            paused: self.paused,
            dials: self.dials,
            knows_since: None,
        };
        self.floor = 0;
        self.core = Delivery::new(self.now, &self.settings, start, self.seed);
        self.core.handle_limited(self.leave.is_some());
    }

    fn acked(&mut self, first: u64, last: u64) {
        let in_flight = self.in_flight.range(first..=last).map(|(_, delivery)| delivery.number);
        let given_up = self.given_up.range(first..=last).map(|(_, number)| *number);
        for number in in_flight.chain(given_up).collect::<Vec<_>>() {
            self.land_number(number);
        }
        self.given_up.retain(|tag, _| *tag < first || *tag > last);
    }

    fn nacked(&mut self, tag: u64, number: u64, permanent: bool, after_ms: Option<u64>) {
        let now = self.now;
        let message = self.message(number);
        if let Some(wait) = SCHEDULE_MS.get(message.refusals).filter(|_| !permanent) {
            message.due = now + Duration::from_millis(after_ms.unwrap_or(*wait));
        }
        message.refusals += 1;
        let retry_after = after_ms.map(Duration::from_millis);
        self.core.handle_nack(now, tag, permanent, retry_after, "no");
    }

    /// Takes everything out, in the documented order, and checks each thing and the whole.
    fn drain(&mut self) {
        while let Some(settled) = self.core.poll_settled() {
            self.check_settled(&settled);
        }
        // What is parked and not told yet keeps the floor below it.
        self.check_floor();
        while let Some(parked) = self.core.poll_parked() {
            self.check_parked(&parked);
        }
        while let Some(command) = self.core.poll_link() {
            self.obey(command);
        }
        self.transmit();
        if let Some(load) = self.core.poll_load() {
            self.check_load(&load);
            let within = self.index.open.range(load.after + 1..=load.through);
            let entries = within.take(load.messages_max + 1);
            let entries = entries.map(|number| self.entry(*number, &self.messages[number]));
            let entries = entries.collect();
            self.load = Some((load, entries));
            self.loads += 1;
        }
        while let Some(report) = self.core.poll_report() {
            self.check_report(&report);
        }
        self.check_whole();
    }

    pub(crate) fn let_expire(&mut self) {
        while let Some(expired) = self.core.poll_expired() {
            self.check_expired(&expired);
        }
    }

    fn obey(&mut self, command: LinkCommand) {
        match command {
            LinkCommand::Dial => {
                assert!(self.dials && !self.paused && self.link == Link::Down, "no time to dial");
                self.link = Link::Dialling;
            }
            LinkCommand::Close(_) => {
                assert_ne!(self.link, Link::Down, "there is nothing to close");
                self.link_is_gone();
            }
        }
    }

    fn check_report(&self, report: &Report) {
        if let Report::DialFailed { next_attempt, .. } | Report::Refused { next_attempt, .. } =
            report
        {
            assert!(*next_attempt > self.now, "the next attempt is never in the past");
        }
    }

    /// Which order is promised.
    pub(crate) fn order(&self) -> Order {
        self.settings.order
    }
}

/// One of the keys of a map.
fn pick<V>(map: &BTreeMap<u64, V>, at: usize) -> Option<u64> {
    let at = at.checked_rem(map.len())?;
    map.keys().nth(at).copied()
}
