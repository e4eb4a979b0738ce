//! The shaper: which peer may send how much now, under rates that are guaranteed, ceilings that are
//! not passed, and an unused share that is lent.
//!
//! A hierarchical token bucket of three levels, after Martin Devera's HTB: the node, its classes, and
//! the peers, each in one class. Each has, in messages and in bytes, a guaranteed *rate*, a *ceil*, and
//! a *burst* that may be saved up of either: [`Rates`], taken as they come out of [`Rates::resolved`].
//!
//! ```text
//!                    node     ceil
//!                  ╱      ╲
//!            class          class     rate ≤ ceil
//!           ╱     ╲           │
//!        peer     peer      peer      rate ≤ ceil
//! ```
//!
//! A peer that wants to send is *green* while its own rate has tokens, *yellow* when it has to borrow,
//! *red* at its ceil. Green peers go first; then yellow ones whose class has tokens of its own rate
//! left; then those whose class has to borrow from the node. Whoever has borrowed least goes next, among
//! the peers of a class and among the classes (start-time fair queueing, after Goyal, Vin and Cheng): a
//! share that nobody claims is split evenly, and goes back to its owner with the first grant after the
//! owner wants it. Nothing goes while a ceil on its path lacks tokens, and what is first in line is not
//! overtaken at a ceil that it waits for: large messages are not starved by small ones.
//!
//! Exact on the caller's clock, in integers: in any stretch of time `t`, no node, class or peer sends
//! more than `ceil × t + burst`, unless a single message is larger than the burst; that one goes when
//! the bucket is full and is paid for afterwards.
//!
//! # Order of calls
//!
//! 1. [`Shaper::handle_demand`] says what a peer has at hand; [`Shaper::handle_used`] what it did with a
//!    grant, every grant once, with nothing if its link has gone: what was not used goes back.
//! 2. [`Shaper::poll_grant`] until `None`; each grant goes to its peer.
//! 3. [`Shaper::next_deadline`] to arm one timer; when it fires, go on at 2.
//!
//! Costs O(log peers) per grant, and a look at every class: [`CLASSES_MAX`] bounds them. A peer without
//! a limit anywhere on its path need not be here at all.

mod bucket;
mod lines;
mod meter;
mod rates;
#[cfg(test)]
mod tests;

pub use meter::Amount;
pub use rates::{RATE_BYTES, RATE_MESSAGES, Rate, RatePatch, Rates, RatesPatch};

use crate::id::PeerId;
use crate::time::Time;
use foldhash::{HashMap, HashMapExt};
use meter::{Guarantee, Meter, Turn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most classes of a node.
pub const CLASSES_MAX: usize = 256;

/// Names a class of the shaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClassId(pub u16);

impl ClassId {
    /// The class of peers that are in none.
    pub const NONE: ClassId = ClassId(0);
}

/// What a peer has at hand that it would send now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// All of it. Nothing: the peer wants nothing any more.
    pub amount: Amount,
    /// Bytes of the message that goes first: the least a grant is worth giving for.
    pub first_bytes: u64,
}

/// Leave to send. Answered once by [`Shaper::handle_used`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who may.
    pub peer: PeerId,
    /// How much: whole messages, as long as they fit. The first one always does.
    pub amount: Amount,
}

/// Why a shaper was not changed. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShaperError {
    /// No such class.
    #[error("no class has this number")]
    UnknownClass,
    /// The class still has peers.
    #[error("the class has {0} peers; move them first")]
    ClassInUse(u32),
    /// [`CLASSES_MAX`] are there already.
    #[error("at most 256 classes are allowed")]
    TooManyClasses,
}

/// See the module.
#[derive(Debug)]
pub struct Shaper {
    ceil: Meter,
    lending: Turn,
    /// What the class that borrowed last had borrowed before.
    lent: u64,
    classes: Vec<Class>,
    /// Where the next look at the classes begins.
    cursor: usize,
    /// What the first in line needs of the node's ceil, while everybody waits for that.
    node_full_for: Option<Amount>,
    leaves: HashMap<PeerId, Leaf>,
    /// When a leaf's colour changes by the passing of time alone.
    timers: BTreeSet<(Time, PeerId)>,
    /// The next place in a line of those that need not borrow.
    next_place: u64,
}

#[derive(Debug)]
struct Class {
    id: ClassId,
    guarantee: Guarantee,
    ceil: Meter,
    lending: Turn,
    /// What the leaf that borrowed last had borrowed before.
    lent: u64,
    /// What the class has borrowed from the node; never behind what others were last lent.
    borrowed: u64,
    leaves: u32,
    /// Leaves that want to send: in the order they came, and by what they have borrowed.
    green: BTreeSet<(u64, PeerId)>,
    yellow: BTreeSet<(u64, PeerId)>,
}

#[derive(Debug)]
struct Leaf {
    class: ClassId,
    guarantee: Guarantee,
    ceil: Meter,
    demand: Demand,
    /// What it has borrowed; never behind what others were last lent.
    borrowed: u64,
    state: State,
}

/// Where a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Wants nothing.
    Idle,
    /// At its ceil, until the timer says otherwise; `None`: for ever, at this rate.
    Red(Option<Time>),
    /// Sends on its own rate; its place in the line.
    Green(u64),
    /// Has to borrow; its place in the line, and when its own rate has tokens again, if it has one.
    Yellow(u64, Option<Time>),
    /// Has a grant.
    Granted { amount: Amount, lender: Lender },
}

/// Whose guaranteed rate pays for a grant; also the order in which they are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lender {
    Own,
    Class,
    Node,
}

/// What a look at one class came to.
enum Look {
    /// Nobody here wants this.
    Nobody,
    /// The first in line waits for its class's ceil.
    ClassFull,
    /// The first in line waits for the node's ceil: nothing else may go either.
    NodeFull,
    Goes(PeerId),
}

impl Shaper {
    /// A shaper without classes. Of the node's rates only the ceil and its burst count.
    #[must_use]
    pub fn new(now: Time, node: &Rates) -> Shaper {
        Shaper {
            ceil: Meter::ceil(now, node),
            lending: Turn::under(node),
            lent: 0,
            classes: Vec::new(),
            cursor: 0,
            node_full_for: None,
            leaves: HashMap::new(),
            timers: BTreeSet::new(),
            next_place: 0,
        }
    }

    /// Adds or changes a class.
    ///
    /// # Errors
    /// [`ShaperError::TooManyClasses`].
    pub fn set_class(&mut self, now: Time, id: ClassId, rates: &Rates) -> Result<(), ShaperError> {
        let lending = Turn::under(rates);
        match self.classes.binary_search_by_key(&id, |class| class.id) {
            Ok(at) => {
                let class = &mut self.classes[at];
                class.guarantee.set(now, rates);
                class.ceil.set_ceil(now, rates);
                if !lending.is_like(std::mem::replace(&mut class.lending, lending)) {
                    self.forgive(now, id);
                }
            }
            Err(_) if self.classes.len() >= CLASSES_MAX => return Err(ShaperError::TooManyClasses),
            Err(at) => {
                self.classes.insert(
                    at,
                    Class {
                        id,
                        guarantee: Guarantee::new(now, rates),
                        ceil: Meter::ceil(now, rates),
                        lending,
                        lent: 0,
                        borrowed: 0,
                        leaves: 0,
                        green: BTreeSet::new(),
                        yellow: BTreeSet::new(),
                    },
                );
            }
        }
        Ok(())
    }

    /// Removes a class without peers.
    ///
    /// # Errors
    /// [`ShaperError::UnknownClass`], [`ShaperError::ClassInUse`].
    pub fn remove_class(&mut self, id: ClassId) -> Result<(), ShaperError> {
        let at = self.class_at(id).ok_or(ShaperError::UnknownClass)?;
        match self.classes[at].leaves {
            0 => {
                self.classes.remove(at);
                self.cursor = 0;
                Ok(())
            }
            peers => Err(ShaperError::ClassInUse(peers)),
        }
    }

    /// Adds a peer or changes its class and rates. What it has at hand stays, and so does a grant it
    /// holds, unless the class changes: then that counts as used.
    ///
    /// # Errors
    /// [`ShaperError::UnknownClass`].
    pub fn set_peer(
        &mut self,
        now: Time,
        peer: PeerId,
        class: ClassId,
        rates: &Rates,
    ) -> Result<(), ShaperError> {
        let at = self.class_at(class).ok_or(ShaperError::UnknownClass)?;
        let Some(leaf) = self.leaves.get(&peer) else {
            self.classes[at].leaves += 1;
            let leaf = Leaf {
                class,
                guarantee: Guarantee::new(now, rates),
                ceil: Meter::ceil(now, rates),
                demand: Demand::default(),
                borrowed: 0,
                state: State::Idle,
            };
            self.leaves.insert(peer, leaf);
            return Ok(());
        };
        let old = leaf.class;
        self.leave(peer);
        let Some(leaf) = self.leaves.get_mut(&peer) else { return Ok(()) };
        leaf.guarantee.set(now, rates);
        leaf.ceil.set_ceil(now, rates);
        if old != class {
            leaf.class = class;
            // Neither what it has borrowed there nor a grant of theirs counts here.
            leaf.borrowed = 0;
            if let State::Granted { amount, .. } = &mut leaf.state {
                *amount = Amount::default();
            }
            self.classes[at].leaves += 1;
            self.count_out(old);
        }
        if !self.is_granted(peer) {
            self.line_up(now, peer);
        }
        Ok(())
    }

    /// Removes a peer. A grant it may hold goes back.
    pub fn remove_peer(&mut self, now: Time, peer: PeerId) {
        self.handle_used(now, peer, Amount::default(), Demand::default());
        if let Some(leaf) = self.leaves.remove(&peer) {
            self.count_out(leaf.class);
        }
    }

    /// The grant that a peer holds, and has not answered yet.
    #[must_use]
    pub fn granted(&self, peer: PeerId) -> Option<Amount> {
        match self.leaves.get(&peer)?.state {
            State::Granted { amount, .. } => Some(amount),
            State::Idle | State::Red(_) | State::Green(_) | State::Yellow(..) => None,
        }
    }

    /// When a peer that waits may send at the earliest: by then every ceil on its path has what its
    /// first message needs, and others may be ahead of it in line. `None` if it does not wait.
    #[must_use]
    pub fn ready_at(&self, now: Time, peer: PeerId) -> Option<Time> {
        let leaf = self.leaves.get(&peer)?;
        let first = leaf.demand.first();
        let own = match leaf.state {
            State::Idle | State::Granted { .. } => return None,
            State::Red(at) => at?,
            State::Green(_) | State::Yellow(..) => now,
        };
        let class = self.classes[self.class_at(leaf.class)?].ceil.ready_at(first)?;
        Some(own.max(class).max(self.ceil.ready_at(first)?).max(now))
    }

    /// What a peer has at hand now. While it holds a grant this is only noted.
    pub fn handle_demand(&mut self, now: Time, peer: PeerId, demand: Demand) {
        let Some(leaf) = self.leaves.get_mut(&peer) else { return };
        let before = std::mem::replace(&mut leaf.demand, demand);
        let stays = match leaf.state {
            State::Granted { .. } => true,
            State::Idle => demand.amount.messages == 0,
            // Who has more to send keeps its place, unless another message goes first.
            State::Red(_) | State::Green(_) | State::Yellow(..) => {
                demand.amount.messages > 0 && demand.first_bytes == before.first_bytes
            }
        };
        if !stays {
            self.leave(peer);
            self.line_up(now, peer);
        }
    }

    /// What a peer did with its grant, and what it has at hand now. Without a grant only the latter
    /// counts. Never more than was granted is put back.
    pub fn handle_used(&mut self, now: Time, peer: PeerId, used: Amount, demand: Demand) {
        let Some(leaf) = self.leaves.get_mut(&peer) else { return };
        let State::Granted { amount, lender } = leaf.state else {
            return self.handle_demand(now, peer, demand);
        };
        leaf.demand = demand;
        leaf.state = State::Idle;
        self.put_back(now, peer, lender, amount.less(used));
        self.line_up(now, peer);
    }

    /// The next leave to send, if anyone may.
    pub fn poll_grant(&mut self, now: Time) -> Option<Grant> {
        self.wake(now);
        self.node_full_for = None;
        let classes = self.classes.len();
        for lender in [Lender::Own, Lender::Class] {
            for step in 0..classes {
                let at = (self.cursor + step) % classes;
                match self.look(now, at, lender) {
                    Look::Nobody | Look::ClassFull => {}
                    Look::NodeFull => return None,
                    Look::Goes(peer) => {
                        self.cursor = (at + 1) % classes;
                        return self.grant(now, at, lender, peer);
                    }
                }
            }
        }
        self.grant_borrower(now)
    }

    /// When [`Shaper::poll_grant`] may have something again, if nothing else happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(at, _)| *at);
        if let Some(first) = self.node_full_for {
            return self.ceil.ready_at(first).into_iter().chain(timer).min();
        }
        let full = self.classes.iter().filter_map(|class| {
            let (_, peer) = class.green.first().or_else(|| class.yellow.first())?;
            class.ceil.ready_at(self.leaves.get(peer)?.demand.first())
        });
        full.chain(timer).min()
    }

    fn class_at(&self, id: ClassId) -> Option<usize> {
        self.classes.binary_search_by_key(&id, |class| class.id).ok()
    }

    fn is_granted(&self, peer: PeerId) -> bool {
        self.leaves.get(&peer).is_some_and(|leaf| matches!(leaf.state, State::Granted { .. }))
    }

    /// One peer less in a class.
    fn count_out(&mut self, class: ClassId) {
        if let Some(at) = self.class_at(class) {
            self.classes[at].leaves -= 1;
        }
    }

    /// Who of a class would go next if this one lends.
    fn look(&mut self, now: Time, at: usize, lender: Lender) -> Look {
        let Shaper { classes, leaves, ceil, .. } = self;
        let class = &mut classes[at];
        let line = if lender == Lender::Own { &class.green } else { &class.yellow };
        let Some((_, peer)) = line.first().copied() else { return Look::Nobody };
        let Some(leaf) = leaves.get(&peer) else { return Look::Nobody };
        let first = leaf.demand.first();
        if lender != Lender::Own && !class.green.is_empty() {
            // It has been looked at and could not go.
            return Look::ClassFull;
        }
        if lender == Lender::Class && !class.guarantee.has(now, first) {
            return Look::Nobody;
        }
        if !class.ceil.has(now, first) {
            return Look::ClassFull;
        }
        if !ceil.has(now, first) {
            self.node_full_for = Some(first);
            return Look::NodeFull;
        }
        Look::Goes(peer)
    }

    /// The node lends to the class that has borrowed least.
    fn grant_borrower(&mut self, now: Time) -> Option<Grant> {
        let mut least: Option<(u64, usize, PeerId)> = None;
        for at in 0..self.classes.len() {
            let borrowed = self.classes[at].borrowed.max(self.lent);
            if least.is_some_and(|(least, ..)| least <= borrowed) {
                continue;
            }
            match self.look(now, at, Lender::Node) {
                Look::Goes(peer) => least = Some((borrowed, at, peer)),
                Look::NodeFull => return None,
                Look::Nobody | Look::ClassFull => {}
            }
        }
        let (borrowed, at, peer) = least?;
        self.classes[at].borrowed = borrowed;
        self.lent = borrowed;
        self.grant(now, at, Lender::Node, peer)
    }

    /// Gives a leaf as much as its turn and the tokens on its path allow, at least one message.
    fn grant(&mut self, now: Time, at: usize, lender: Lender, peer: PeerId) -> Option<Grant> {
        self.leave(peer);
        let class = &mut self.classes[at];
        let leaf = self.leaves.get_mut(&peer)?;
        if lender != Lender::Own {
            class.lent = leaf.borrowed;
        }
        let own = match lender {
            Lender::Own => leaf.guarantee.available(),
            Lender::Class => class.guarantee.available(),
            Lender::Node => self.lending.size(),
        };
        let limits = [
            leaf.ceil.available(),
            class.ceil.available(),
            self.ceil.available(),
            class.lending.size(),
            own,
        ];
        let amount = limits.into_iter().fold(leaf.demand.amount, Amount::at_most);
        let amount = amount.at_least(leaf.demand.first());
        leaf.state = State::Granted { amount, lender };
        self.take(now, peer, lender, amount);
        Some(Grant { peer, amount })
    }

    /// Every ceil on the way pays; of the guaranteed rates, those from the lender up.
    fn take(&mut self, now: Time, peer: PeerId, lender: Lender, amount: Amount) {
        let Some(leaf) = self.leaves.get_mut(&peer) else { return };
        leaf.ceil.take(now, amount);
        let Ok(at) = self.classes.binary_search_by_key(&leaf.class, |class| class.id) else {
            return;
        };
        let class = &mut self.classes[at];
        match lender {
            Lender::Own => leaf.guarantee.take(now, amount),
            Lender::Class | Lender::Node => leaf.borrowed += class.lending.cost(amount),
        }
        match lender {
            Lender::Own | Lender::Class => class.guarantee.take(now, amount),
            Lender::Node => class.borrowed += self.lending.cost(amount),
        }
        class.ceil.take(now, amount);
        self.ceil.take(now, amount);
    }

    fn put_back(&mut self, now: Time, peer: PeerId, lender: Lender, amount: Amount) {
        let Some(leaf) = self.leaves.get_mut(&peer) else { return };
        leaf.ceil.put_back(now, amount);
        let Ok(at) = self.classes.binary_search_by_key(&leaf.class, |class| class.id) else {
            return;
        };
        let class = &mut self.classes[at];
        match lender {
            Lender::Own => leaf.guarantee.put_back(now, amount),
            Lender::Class | Lender::Node => {
                leaf.borrowed = leaf.borrowed.saturating_sub(class.lending.cost(amount));
            }
        }
        match lender {
            Lender::Own | Lender::Class => class.guarantee.put_back(now, amount),
            Lender::Node => {
                class.borrowed = class.borrowed.saturating_sub(self.lending.cost(amount));
            }
        }
        class.ceil.put_back(now, amount);
        self.ceil.put_back(now, amount);
    }
}

impl Demand {
    /// Whether something is wanted of which the first message may be sent by a grant of so much.
    #[must_use]
    pub fn is_met_by(&self, granted: Amount) -> bool {
        self.amount.messages > 0 && granted.messages > 0 && granted.bytes >= self.first_bytes
    }

    /// The message that goes first, as an amount.
    fn first(&self) -> Amount {
        Amount { messages: 1, bytes: self.first_bytes }
    }
}
