//! Producers: they publish in bursts, lose their connections, and repeat what is undecided under its old
//! sequences until they are told what became of it.

use super::net::{Event, Outside};
use super::plan::{DAY, Plan, SECOND, dice};
use super::post::Post;
use rand::Rng;
use rand::rngs::StdRng;
use restante_protocol::id::ProducerId;
use restante_protocol::time::Time;
use std::collections::VecDeque;

/// How many there are.
pub(super) const PRODUCERS: usize = 12;
/// Messages of a burst, on average.
const BURST: u64 = 10;

/// One producer.
pub(super) struct Producer {
    pub(super) id: ProducerId,
    /// Its index and epoch, while it is connected.
    pub(super) session: Option<(u32, u32)>,
    /// The sequence of its next message.
    pub(super) next_sequence: u64,
    /// Messages it has not been told about, in order.
    undecided: VecDeque<u64>,
    /// Bursts come so far apart, on average.
    gap_us: u64,
    peers: usize,
    dice: StdRng,
}

impl Producer {
    pub(super) fn new(plan: &Plan, place: usize) -> Producer {
        let bursts = (plan.scale.posts / BURST / PRODUCERS as u64).max(1);
        Producer {
            id: ProducerId(u128::from(plan.seed) << 64 | (place as u128 + 1)),
            session: None,
            next_sequence: 1,
            undecided: VecDeque::new(),
            gap_us: plan.scale.days * DAY / bursts,
            peers: plan.tempers.len(),
            dice: dice(plan.seed, 6, place as u64),
        }
    }

    /// Whether it has been told about everything.
    pub(super) fn is_done(&self) -> bool {
        self.undecided.is_empty()
    }

    /// Who gets the messages of a burst, one list for each.
    fn draw_burst(&mut self) -> Vec<Vec<usize>> {
        let peers = self.peers;
        let draw = &mut self.dice;
        match draw.random_range(0..1_000) {
            0..6 => {
                // A bulk for one; often one that is away for long.
                let all = draw.random_range(0..peers);
                let long = all / 20 * 20 + 11 + draw.random_range(0..3);
                let to = if draw.random_bool(0.5) && long < peers { long } else { all };
                vec![vec![to]; draw.random_range(200..1_500)]
            }
            6..500 => vec![self.draw_receivers()],
            _ => {
                let count = self.dice.random_range(2..20);
                (0..count).map(|_| self.draw_receivers()).collect()
            }
        }
    }

    fn draw_receivers(&mut self) -> Vec<usize> {
        let count = if self.dice.random_bool(0.7) { 1 } else { self.dice.random_range(2..=5) };
        let mut receivers: Vec<usize> = Vec::with_capacity(count);
        while receivers.len() < count.min(self.peers) {
            let receiver = self.dice.random_range(0..self.peers);
            if !receivers.contains(&receiver) {
                receivers.push(receiver);
            }
        }
        receivers
    }
}

impl Outside {
    /// A producer makes a burst of messages, and whether its connection breaks behind it, before any
    /// confirm.
    pub(super) fn burst(&mut self, place: usize, end: Time) -> (Vec<u64>, bool) {
        let now = self.now;
        let witnesses = self.judge.peers.iter();
        let gets_poison: Vec<bool> = witnesses.map(|peer| peer.temper.gets_poison).collect();
        let producer = &mut self.producers[place];
        let mut tokens = Vec::new();
        for receivers in producer.draw_burst() {
            let token = self.judge.posts.len() as u64;
            let mut post = Post::draw(&mut producer.dice, token, place, receivers, &gets_poison);
            post.sequence = producer.next_sequence;
            producer.next_sequence += 1;
            producer.undecided.push_back(token);
            tokens.push(token);
            self.judge.posted(post);
        }
        let next = Time(now.0 + producer.dice.random_range(1..2 * producer.gap_us));
        let falls = producer.dice.random_ratio(1, 30);
        if next < end {
            self.at(next, Event::Burst(place));
        }
        (tokens, falls)
    }

    /// A message that does no harm, from the first producer to this peer: what is suspected can only be
    /// told from a receiver that is away by what else is acked.
    pub(super) fn harmless(&mut self, peer: usize) -> u64 {
        let token = self.judge.posts.len() as u64;
        let producer = &mut self.producers[0];
        let sequence = producer.next_sequence;
        producer.next_sequence += 1;
        producer.undecided.push_back(token);
        self.judge.posted(Post::harmless(token, sequence, peer));
        token
    }

    /// What a producer has to repeat on a new connection.
    pub(super) fn undecided(&self, place: usize) -> Vec<u64> {
        self.producers[place].undecided.iter().copied().collect()
    }

    /// A producer is told what became of a message, on the connection of this epoch.
    pub(super) fn tell(&mut self, place: usize, epoch: u32, token: u64) {
        let producer = &mut self.producers[place];
        if producer.session.is_some_and(|(_, now)| now == epoch) {
            let at = producer.undecided.iter().position(|undecided| *undecided == token);
            at.and_then(|at| producer.undecided.remove(at));
        }
    }

    /// A producer's connection is lost; it comes again.
    pub(super) fn cut_off(&mut self, place: usize) {
        self.producers[place].session = None;
        let wait = self.dice.random_range(SECOND / 10..5 * SECOND);
        self.after(wait, Event::Hello(place));
    }
}
