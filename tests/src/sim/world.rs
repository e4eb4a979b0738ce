//! The world: what happens next, and to whom.

use super::judge::{Judge, Report};
use super::net::{Event, Outside};
use super::node::{Node, set_wall, settings_of};
use super::plan::{Blow, DAY, HOUR, MINUTE, Plan, SECOND, Scale, Weather};
use super::producer::PRODUCERS;
use rand::Rng;
use restante_journal::OpenError;
use restante_journal::simulated::Medium;
use restante_protocol::delivery::Whereabouts;
use restante_protocol::time::Time;

/// Room on the disk.
const DISK_BYTES: u64 = 1 << 40;
/// How long the rest may take when all weather is fair: what is refused may wait for a day.
const REST_DAYS: u64 = 4;
/// Messages that are looked up at a time.
const ASKED: usize = 3;

/// See the module.
pub(super) struct World {
    plan: Plan,
    out: Outside,
    medium: Medium,
    node: Option<Node>,
    /// The versions of the peers that operators have been told.
    confirmed: Vec<u64>,
}

impl World {
    pub(super) fn new(seed: u64, scale: Scale) -> World {
        let plan = Plan::draw(seed, scale);
        let judge = Judge::new(&plan, settings_of);
        let mut out = Outside::new(&plan, judge);
        out.at(Time::ZERO, Event::Boot);
        for (place, (at, _)) in plan.blows.iter().enumerate() {
            out.at(*at, Event::Blow(place));
        }
        for (at, peer) in &plan.panics {
            out.at(*at, Event::Panic(*peer));
        }
        for (at, peer) in &plan.errands {
            out.at(*at, Event::Errand { peer: *peer, turn: 0 });
        }
        for (peer, temper) in plan.tempers.iter().enumerate() {
            for (place, spell) in temper.spells.iter().enumerate() {
                out.at(spell.from, Event::Spell { peer, place, begins: true });
                out.at(spell.until, Event::Spell { peer, place, begins: false });
            }
        }
        for place in 0..PRODUCERS {
            out.at(Time(MINUTE + place as u64 * SECOND), Event::Burst(place));
        }
        out.at(Time(HOUR), Event::Ask);
        let confirmed = vec![0; plan.tempers.len()];
        World { plan, out, medium: Medium::new(DISK_BYTES), node: None, confirmed }
    }

    /// Lives through all of it.
    pub(super) fn run(mut self) -> Report {
        let end = self.plan.end();
        let rest = Time(end.0 + REST_DAYS * DAY);
        while let Some(event) = self.out.next() {
            set_wall(self.out.wall_ms());
            self.happen(event);
            let now = self.out.now;
            if now > end && self.is_done() {
                break;
            }
            if now > rest {
                let open = self.out.judge.open_in_all();
                let peer = self.out.judge.peers.iter().position(|peer| !peer.open.is_empty());
                self.out.judge.fail(peer, format_args!("{open} are open after {REST_DAYS} days"));
            }
        }
        // What has been done is known to the next life, whatever this one had in memory.
        self.node.take().into_iter().for_each(|node| node.stop(&mut self.confirmed, &mut self.out));
        // One fault may be planned that has not struck.
        (0..2).for_each(|_| self.boot());
        let World { out, node, .. } = self;
        match node {
            Some(node) => out.judge.sum_up(node.journal()),
            None => out.judge.fail(None, format_args!("the node is down in the end")),
        }
    }

    fn is_done(&self) -> bool {
        let told = self.out.producers.iter().all(super::producer::Producer::is_done);
        self.node.is_some() && told && self.out.judge.open_in_all() == 0
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Boot => self.boot(),
            Event::Blow(place) => self.blow(self.plan.blows[place].1),
            Event::Burst(place) => {
                let (tokens, falls) = self.out.burst(place, self.plan.end());
                if let Some(node) = &mut self.node {
                    node.publish(place, &tokens, &mut self.out);
                    if falls && self.out.producers[place].session.is_some() {
                        self.out.cut_off(place);
                    }
                }
            }
            Event::Spell { peer, place, begins } => {
                let weather = self.plan.tempers[peer].spells[place].weather;
                self.out.turn_weather(peer, if begins { weather } else { Weather::Fair });
            }
            Event::Flap(peer) => self.out.flap(peer),
            Event::Arrive { peer, link, frames } => {
                let bytes = frames.iter().map(|frame| frame.bytes).sum();
                let is_read = self.out.arrive(peer, link, frames);
                if let Some(node) = self.node.as_mut().filter(|_| is_read) {
                    node.shells[peer].was_read(link, bytes, &mut self.out);
                }
            }
            Event::Attach(peer) => self.attach(peer),
            Event::Lost { peer, link, .. } => {
                let receiver = &mut self.out.receivers[peer];
                if receiver.session == Some(link) {
                    // Not noticed if the weather has turned in time.
                    receiver.session = None;
                }
                self.out.attach_soon(peer);
                self.of_node(event);
            }
            Event::Ask => self.ask(),
            event => self.of_node(event),
        }
        if let Some(node) = &mut self.node {
            node.write_lazily(&mut self.out);
            if node.has_failed || node.journal().is_poisoned() {
                self.node_is_gone();
            }
        }
    }

    /// What only a node that is up can do.
    fn of_node(&mut self, event: Event) {
        let Some(node) = &mut self.node else {
            // An operator tries again.
            if let Event::Errand { .. } = event {
                self.out.after(MINUTE, event);
            }
            return;
        };
        let out = &mut self.out;
        match event {
            Event::Hello(place) => node.hello(place, out),
            Event::Write => node.write(&mut self.confirmed, out),
            Event::Rest(writes) => node.rest(writes),
            Event::Grant => node.grant_due(out),
            Event::Errand { peer, turn } => {
                node.errand(peer, turn, out);
                if turn > 0 && node.is_held(peer) {
                    out.after(MINUTE, Event::Errand { peer, turn });
                }
            }
            // On its way when the line went silent.
            Event::Answers { peer, .. } if out.receivers[peer].weather == Weather::Vanished => {}
            event => node.of_peer(event, out),
        }
    }

    fn attach(&mut self, peer: usize) {
        let receiver = &mut self.out.receivers[peer];
        receiver.attaches = false;
        let can = !matches!(receiver.weather, Weather::Vanished | Weather::Refusing);
        if !can || receiver.session.is_some() {
            return;
        }
        let link = self.out.link_number();
        let Some(node) = &mut self.node else { return };
        if peer < node.shells.len() && !node.attach(peer, link, &mut self.out) {
            self.out.attach_soon(peer);
        }
    }

    /// The node starts.
    fn boot(&mut self) {
        if self.node.is_some() {
            return;
        }
        let is_first = self.out.judge.tally.boots == 0;
        self.out.judge.tally.boots += 1;
        let mut node = match Node::boot(&self.medium, &self.confirmed, &mut self.out) {
            Ok(node) => node,
            // A fault that was planned struck the opening.
            Err(OpenError::Io { .. }) => return self.out.after(SECOND, Event::Boot),
            Err(why) => self.out.judge.fail(None, format_args!("the journal does not open: {why}")),
        };
        if is_first {
            node.add_peers(&mut self.out);
        }
        // Whoever let a peer go on was not told: it is held again.
        for peer in (0..self.plan.tempers.len()).filter(|peer| node.is_held(*peer)) {
            self.out.after(MINUTE, Event::Errand { peer, turn: 1 });
        }
        self.node = Some(node);
        for place in 0..PRODUCERS {
            self.out.cut_off(place);
        }
    }

    /// Something happens to the node.
    fn blow(&mut self, blow: Blow) {
        let Some(mut node) = self.node.take() else { return };
        let out = &mut self.out;
        let steps = out.dice.random_range(1..8);
        match blow {
            Blow::Stop => node.stop(&mut self.confirmed, out),
            Blow::Kill => node.kill(),
            Blow::PowerCut => {
                self.medium.crash_at(steps);
                // What it says to the end is a promise.
                node.write_now(&mut self.confirmed, out);
                node.kill();
                self.medium = self.medium.after_crash(out.dice.random());
            }
            Blow::SickDisk => {
                self.medium.fail_at(steps);
                self.node = Some(node);
                return;
            }
        }
        self.node_is_gone();
    }

    /// No connection outlives a node.
    fn node_is_gone(&mut self) {
        self.node.take().into_iter().for_each(Node::kill);
        for peer in 0..self.plan.tempers.len() {
            self.out.judge.gone(peer, "the node is down");
            self.out.receivers[peer].session = None;
        }
        for producer in &mut self.out.producers {
            producer.session = None;
        }
        let wait = self.out.dice.random_range(SECOND..MINUTE);
        self.out.after(wait, Event::Boot);
    }

    /// Where is this message?
    fn ask(&mut self) {
        self.out.after(HOUR / 4, Event::Ask);
        let Some(node) = &mut self.node else { return };
        if self.out.now > self.plan.end() {
            let peers = self.out.judge.peers.iter().enumerate();
            let open = peers.filter(|(_, witness)| !witness.open.is_empty());
            for peer in open.map(|(peer, _)| peer).collect::<Vec<_>>() {
                let token = self.out.harmless(peer);
                node.publish(0, &[token], &mut self.out);
            }
        }
        let tally = &mut self.out.judge.tally;
        tally.disk_max = tally.disk_max.max(node.journal().disk_bytes());
        let (posts, now) = (self.out.judge.posts.len(), self.out.now);
        for _ in 0..ASKED.min(posts) {
            let token = self.out.dice.random_range(0..posts) as u64;
            self.out.judge.ask(token, node.journal());
        }
        for (peer, shell) in node.shells.iter().enumerate() {
            let witness = &self.out.judge.peers[peer];
            let Some(number) = witness.open.keys().next_back().copied() else { continue };
            let found = shell.core.whereabouts(now, number);
            let blocked = shell.core.explain(now, number);
            let is_past = match &found {
                Some(Whereabouts::Retrying { next_attempt, .. }) => *next_attempt < now,
                _ => false,
            };
            let until = blocked.as_ref().and_then(|blocked| blocked.until);
            let told = found.is_some() && blocked.is_some();
            if !told || is_past || until.is_some_and(|until| until < now) {
                let what = format_args!("{number} is {found:?}, held by {blocked:?}");
                self.out.judge.fail(Some(peer), what);
            }
        }
    }
}
