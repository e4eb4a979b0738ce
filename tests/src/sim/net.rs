//! What lies outside of the node: time, lines, and what is on its way.

use super::judge::Judge;
use super::plan::{Plan, Weather, dice};
use super::producer::{PRODUCERS, Producer};
use super::receiver::Receiver;
use rand::rngs::StdRng;
use restante_actors::journal::{Page, Read, ReadError};
use restante_protocol::time::Time;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// When the virtual clock is at 0, milliseconds since the Unix epoch.
const BEGAN_MS: u64 = 1_764_000_000_000;

/// Something that is going to happen.
pub(super) enum Event {
    /// A producer has something to say.
    Burst(usize),
    /// A producer connects.
    Hello(usize),
    /// The journal's writer takes its turn, if it is still due now.
    Write,
    /// Nothing has been written since the writer's turn of this number.
    Rest(u64),
    /// There may be leave to send, if it is still due now.
    Grant,
    /// A peer's timer, if it is still armed for now.
    Timer(usize),
    /// A peer's core is emptied, if that has not been done.
    Drain(usize),
    /// What became of a dial.
    Dialled { peer: usize, link: u64, is_up: bool },
    /// A receiver that comes by itself does.
    Attach(usize),
    /// Deliveries reach the receiver.
    Arrive { peer: usize, link: u64, frames: Vec<Frame> },
    /// The receiver's answers reach the node.
    Answers { peer: usize, link: u64, answers: Vec<Answer> },
    /// Both sides find that a connection is no more.
    Lost { peer: usize, link: u64, why: &'static str },
    /// A page has been read, or is read now.
    Page { peer: usize, core: u64, page: Box<Reading> },
    /// The weather of a peer turns bad, as its plan says in this place, and fair again.
    Spell { peer: usize, place: usize, begins: bool },
    /// A flapping line is lost.
    Flap(usize),
    /// Something happens to the node, by its place in the plan.
    Blow(usize),
    /// The node starts.
    Boot,
    /// The actor of a peer crashes.
    Panic(usize),
    /// An operator changes a peer, and puts it right again.
    Errand { peer: usize, turn: u8 },
    /// Somebody asks what has become of some messages.
    Ask,
}

/// A read of the backlog.
pub(super) enum Reading {
    /// It is done when it is answered,
    Due(Read),
    /// or it was when it was asked for.
    Done(Result<Page, ReadError>),
}

/// A delivery on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) tag: u64,
    pub(super) token: u64,
    pub(super) bytes: usize,
}

/// What a receiver says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Ack { first: u64, last: u64 },
    Nack { tag: u64, permanent: bool, after_us: Option<u64> },
    Grant(u64),
}

/// See the module.
pub(super) struct Outside {
    pub(super) now: Time,
    /// What is going to happen: by time, and by when it was decided.
    heap: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    next_link: u64,
    pub(super) receivers: Vec<Receiver>,
    pub(super) producers: Vec<Producer>,
    pub(super) judge: Judge,
    /// For what is no peer's or producer's own, and for what the node does with a peer: nothing that
    /// happens to one changes what is drawn for another.
    pub(super) dice: StdRng,
    pub(super) peer_dice: Vec<StdRng>,
}

impl Outside {
    pub(super) fn new(plan: &Plan, judge: Judge) -> Outside {
        let receiver = |place| Receiver::new(dice(plan.seed, 4, place as u64));
        Outside {
            now: Time::ZERO,
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            next_link: 1,
            receivers: (0..plan.tempers.len()).map(receiver).collect(),
            producers: (0..PRODUCERS).map(|place| Producer::new(plan, place)).collect(),
            judge,
            dice: dice(plan.seed, 5, 0),
            peer_dice: (0..plan.tempers.len() as u64).map(|at| dice(plan.seed, 7, at)).collect(),
        }
    }

    /// Has something happen then, after what has been decided for the same moment.
    pub(super) fn at(&mut self, at: Time, event: Event) {
        let key = self.next_event;
        self.next_event += 1;
        self.heap.push(Reverse((at.max(self.now), key)));
        self.events.insert(key, event);
    }

    /// Has something happen so many microseconds from now.
    pub(super) fn after(&mut self, us: u64, event: Event) {
        self.at(Time(self.now.0 + us), event);
    }

    /// The next thing that happens, at its time.
    pub(super) fn next(&mut self) -> Option<Event> {
        let Reverse((at, key)) = self.heap.pop()?;
        self.now = at;
        self.judge.now = at;
        self.events.remove(&key)
    }

    /// A number no connection had before.
    pub(super) fn link_number(&mut self) -> u64 {
        self.next_link += 1;
        self.next_link
    }

    /// Milliseconds since the Unix epoch.
    pub(super) fn wall_ms(&self) -> u64 {
        wall_ms(self.now)
    }

    /// The node dials a receiver.
    pub(super) fn dial(&mut self, peer: usize, link: u64) {
        let latency = self.latency_us(peer);
        let (wait, is_up) = match self.receivers[peer].weather {
            Weather::Vanished => (CONNECT_TIMEOUT_US, false),
            Weather::Refusing => (latency, false),
            _ => (3 * latency, true),
        };
        self.after(wait, Event::Dialled { peer, link, is_up });
    }

    pub(super) fn latency_us(&self, peer: usize) -> u64 {
        self.judge.peers[peer].temper.latency_us
    }
}

/// How long a dial may take.
const CONNECT_TIMEOUT_US: u64 = 10_000_000;

pub(super) fn wall_ms(now: Time) -> u64 {
    BEGAN_MS + now.0 / 1_000
}
