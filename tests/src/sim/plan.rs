//! What is going to happen: a function of the seed alone. What goes wrong is drawn apart from what is
//! published, so that a run in which nothing goes wrong has the same messages.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use restante_protocol::admin::Order;
use restante_protocol::time::Time;

pub(super) const SECOND: u64 = 1_000_000;
pub(super) const MINUTE: u64 = 60 * SECOND;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// The size of a run.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Peers.
    pub peers: usize,
    /// Virtual days; what is open then has as long again as it needs.
    pub days: u64,
    /// Messages, about.
    pub posts: u64,
    /// How often the node goes down, one way or another.
    pub restarts: u32,
    /// Whether anything goes wrong with peers: else all are healthy.
    pub is_rough: bool,
}

impl Scale {
    /// A week of 300 peers.
    pub const WEEK: Scale =
        Scale { peers: 300, days: 7, posts: 100_000, restarts: 40, is_rough: true };
}

/// What a line or a receiver is like for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// All is well.
    Fair,
    /// Nobody listens: connections are lost and refused.
    Refusing,
    /// Nothing comes through, either way; nobody is told.
    Vanished,
    /// It listens and takes what it is sent, and answers nothing.
    Hung,
    /// It listens and never reads.
    Unread,
    /// The connection is lost every so often.
    Flapping,
    /// It accepts connections and closes them with the first message.
    TurningAway,
}

/// A stretch of bad weather.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spell {
    pub(super) from: Time,
    pub(super) until: Time,
    pub(super) weather: Weather,
}

/// What a peer is like.
#[derive(Clone, Debug)]
pub(super) struct Temper {
    pub(super) order: Order,
    pub(super) window: u32,
    pub(super) ack_timeout_ms: u64,
    /// Messages it may have waiting; 0: any.
    pub(super) quota: u64,
    /// Messages a second it may be sent; 0: any.
    pub(super) ceil: u64,
    /// Whether the node dials; else the receiver attaches.
    pub(super) dials: bool,
    /// Whether the receiver grants credit, and how many deliveries at a time.
    pub(super) grant: Option<u64>,
    /// One way.
    pub(super) latency_us: u64,
    /// From arrival to answer.
    pub(super) work_us: u64,
    /// Whether it answers each message by itself, out of order.
    pub(super) is_parallel: bool,
    /// Whether it says everything twice.
    pub(super) repeats: bool,
    /// Of a thousand messages, so many are refused for now.
    pub(super) nacks: u32,
    /// The key whose messages it refuses for some hours.
    pub(super) refused_key: Option<(u32, Time, Time)>,
    /// Whether some of its messages do harm.
    pub(super) gets_poison: bool,
    pub(super) spells: Vec<Spell>,
    /// Whether nothing is wrong with it in any run: its messages are never late.
    pub(super) is_bystander: bool,
}

impl Temper {
    /// Whether it is looked at how long its messages take: nobody lays hands on it.
    fn is_measured(&self) -> bool {
        self.is_bystander || self.refused_key.is_some()
    }
}

/// What happens to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blow {
    /// The machine goes down, in the middle of a write.
    PowerCut,
    /// The process is killed; the disk keeps what was written.
    Kill,
    /// It is stopped in order.
    Stop,
    /// A write fails: the journal is poisoned, and the node starts anew.
    SickDisk,
}

/// What is drawn for a whole run.
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) scale: Scale,
    pub(super) tempers: Vec<Temper>,
    pub(super) blows: Vec<(Time, Blow)>,
    /// Peers whose actor crashes, and when.
    pub(super) panics: Vec<(Time, usize)>,
    /// Peers an operator does something to, and when.
    pub(super) errands: Vec<(Time, usize)>,
}

impl Plan {
    pub(super) fn draw(seed: u64, scale: Scale) -> Plan {
        let mut draw = dice(seed, 1, 0);
        let end = scale.days * DAY;
        let temper = |place| {
            let is_bystander = place % 20 < BYSTANDERS;
            let fair = Temper { is_bystander, ..fair(&mut dice(seed, 2, place)) };
            if scale.is_rough { rough(&mut dice(seed, 3, place), fair, place, end) } else { fair }
        };
        let tempers = (0..scale.peers as u64).map(temper).collect();
        let blows = (0..scale.restarts).map(|nth| {
            let blow = match nth % 4 {
                0 => Blow::PowerCut,
                1 => Blow::Stop,
                2 => Blow::Kill,
                _ => Blow::SickDisk,
            };
            (Time(draw.random_range(HOUR..end)), blow)
        });
        let blows: Vec<_> = blows.collect();
        let tempers: Vec<Temper> = tempers;
        let mut some = |count: usize| -> Vec<(Time, usize)> {
            let one = |_| (Time(draw.random_range(HOUR..end)), draw.random_range(0..scale.peers));
            let all = (0..count).map(one);
            all.filter(|(_, peer)| !tempers[*peer].is_measured()).collect()
        };
        let (panics, errands) = match scale.is_rough {
            true => (some(scale.peers / 2), some(scale.peers)),
            false => (Vec::new(), Vec::new()),
        };
        Plan { seed, scale, tempers, blows, panics, errands }
    }

    /// When nothing is published any more and all weather is fair.
    pub(super) fn end(&self) -> Time {
        Time(self.scale.days * DAY)
    }
}

/// A source of choices of its own for one thing of a kind.
pub(super) fn dice(seed: u64, kind: u64, place: u64) -> StdRng {
    let mixed = seed ^ (kind << 56) ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    StdRng::seed_from_u64(mixed)
}

fn fair(draw: &mut StdRng) -> Temper {
    let order = match draw.random_range(0..10) {
        0..6 => Order::Sent,
        6..9 => Order::Strict,
        _ => Order::None,
    };
    Temper {
        order,
        window: [1, 4, 16, 64, 256, 2_048][draw.random_range(0..6)],
        ack_timeout_ms: [30_000, 120_000][draw.random_range(0..2)],
        quota: 0,
        ceil: 0,
        dials: draw.random_ratio(5, 6),
        grant: draw.random_ratio(1, 8).then(|| draw.random_range(1..200)),
        latency_us: draw.random_range(100..20_000),
        work_us: draw.random_range(100..20_000),
        is_parallel: draw.random_ratio(1, 6),
        repeats: draw.random_ratio(1, 10),
        nacks: 0,
        refused_key: None,
        gets_poison: false,
        spells: Vec::new(),
        is_bystander: false,
    }
}

/// Of twenty peers so many are healthy.
const BYSTANDERS: u64 = 8;

/// What is wrong with a peer.
fn rough(draw: &mut StdRng, fair: Temper, place: u64, end: u64) -> Temper {
    let mut temper = fair;
    let mut spells = |count: u32, shortest: u64, longest: u64| {
        let mut all: Vec<Spell> = (0..count)
            .map(|_| {
                let from = draw.random_range(0..end);
                let until = (from + draw.random_range(shortest..=longest)).min(end);
                let weather = [
                    Weather::Refusing,
                    Weather::Vanished,
                    Weather::Hung,
                    Weather::Unread,
                    Weather::Flapping,
                    Weather::TurningAway,
                ][draw.random_range(0..6)];
                Spell { from: Time(from), until: Time(until), weather }
            })
            .collect();
        all.sort_unstable_by_key(|spell| spell.from);
        // One after the other.
        let mut free = Time::ZERO;
        all.retain(|spell| {
            let fits = spell.from >= free && spell.until > spell.from;
            if fits {
                free = spell.until;
            }
            fits
        });
        all
    };
    if [9, 15].contains(&(place % 20)) {
        temper.ceil = 1 + place % 7;
    }
    match place % 20 {
        0..BYSTANDERS => {}
        8..11 => temper.spells = spells(20, SECOND, 10 * MINUTE),
        11 => temper.spells = spells(6, HOUR, 12 * HOUR),
        12 => temper.spells = spells(2, DAY.min(end / 3), (3 * DAY).min(end)),
        13 => {
            temper.spells = spells(3, HOUR, DAY);
            temper.quota = 300;
        }
        14 | 15 => temper.nacks = 20,
        16 => {
            let from = draw.random_range(0..end / 2);
            let until = from + draw.random_range(HOUR..12 * HOUR);
            temper.refused_key = Some((draw.random_range(1..8), Time(from), Time(until)));
        }
        17 | 18 => temper.gets_poison = true,
        _ => {
            temper.spells = spells(8, SECOND, 3 * HOUR);
            temper.nacks = 20;
            temper.gets_poison = true;
        }
    }
    temper
}
