//! Who publishes, and what became of it: idempotent publishing (promise P3).
//!
//! A producer numbers its publishes 1, 2, 3, … under an identity it keeps. After a lost connection it
//! sends everything undecided again under the old numbers, and for each the answer must be the one
//! that was, or would have been, given the first time:
//!
//! ```text
//!             remembered_from          settled        next
//! ───────────────┼──────────────────────┼──────────────┼───────────────►  sequence
//!     Evicted    │ Confirmed / Pending  │   in hand    │ New
//!                │ Refused, or a gap:   │ (this batch) │
//!                │ New                  │              │
//! ```
//!
//! - Accepted sequences are remembered as *runs*: consecutive sequences with consecutive message numbers.
//!   One whose last number is on disk is Confirmed, one that is not is Pending: its repeat waits for the
//!   same commit. A run is recorded once a batch; a message in turn costs one comparison.
//! - Refusals live in memory. One forgotten (by a restart, or past the bound) leaves a gap, and a repeat
//!   is judged afresh: a refusal stored nothing, so that cannot duplicate.
//! - Runs are bounded. Below the oldest one kept nothing is known: Evicted, by name, never accepted twice.
//! - The table is bounded too. A producer that was forgotten as a whole says in its hello which sequences
//!   it has never sent: those are New, those below are Evicted, for they may have been accepted before.
//!   If it does not say, it begins again at 1, and while nothing has been decided any other sequence is
//!   Evicted.
//!
//! Every hello assigns an epoch, and publishes of an older one are refused: two connections cannot speak
//! for one identity. Opening is an event, journaled before the hello is answered, so that neither an
//! epoch nor an index (which message records store) is given twice. Use:
//! [`Producers::open`] → journal and [`Producers::apply`] → answer once durable; for each batch
//! [`Producers::session`], [`Session::decide`] for each message, [`Producers::record_run`] and
//! [`Producers::record_refusal`] for the New ones once appended; [`Producers::set_durable`] for each commit.

mod one;
mod snapshot;

use crate::id::{MessageNumber, ProducerId};
use crate::name::Name;
use crate::refusal::{Code, Refusal};
use crate::state::StateError;
use foldhash::fast::FixedState;
use one::Producer;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::{BTreeMap, HashMap};

/// Highest sequence a publish can have.
pub const SEQUENCE_MAX: u64 = 1 << 63;
/// Most producers remembered unless configured otherwise.
pub const PRODUCERS_MAX_DEFAULT: usize = 65_536;
/// Most runs remembered for one producer. A client's repeats are answered if its node grants no more
/// credit than this, whatever shape its runs have.
pub const RUNS_MAX: usize = 8_192;
/// Most runs remembered for all producers together (32 bytes each).
pub const RUNS_TOTAL_MAX: usize = 262_144;
/// Most different refusals remembered for one producer.
pub const REFUSALS_MAX: usize = 1_024;
/// Most bytes of refusals remembered for all producers together.
pub const REFUSAL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How many producers are forgotten at once when the table is full, so that the search for the least
/// recently used ones is paid for by many.
const EVICTIONS: usize = 64;

/// Sequences accepted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first sequence.
    pub first_sequence: u64,
    /// How many, at least 1; sequences and numbers ascend together by one.
    pub count: u32,
    /// The message number of the first.
    pub first_number: MessageNumber,
    /// When, in milliseconds since the Unix epoch.
    pub accepted_ms: u64,
}

/// A refusal as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The overall reason.
    pub code: Code,
    /// Which receivers refused and why, by place in the publish: a repeat names the same ones in the
    /// same order, though its connection may have other aliases for them.
    pub receivers: SmallVec<[(u16, Code); 2]>,
    /// Which members of groups did, by the place of their group.
    pub members: Box<[(u16, Code, Name)]>,
    /// One line for people.
    pub detail: Box<str>,
}

/// What is to be done with a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Judge it, then record what came of it.
    New,
    /// It was accepted and is not yet on disk: answer once it is.
    Pending(Accepted<'a>),
    /// It was accepted and is on disk: answer so.
    Confirmed(Accepted<'a>),
    /// It was refused: answer so.
    Refused(&'a Refused),
    /// Nobody remembers: refuse with [`Code::OutcomeEvicted`].
    Evicted,
    /// 0, above [`SEQUENCE_MAX`], or used twice in one batch: refuse with [`Code::BadSequence`].
    Invalid,
}

/// The outcome of an accepted publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted<'a> {
    /// Its number.
    pub number: MessageNumber,
    /// When.
    pub accepted_ms: u64,
    /// The receivers that refused, if some did. Not remembered through a restart: for a number from
    /// before it, the receivers that the stored record lacks are those that refused.
    pub refused: Option<&'a Refused>,
    /// Whether some may have refused all the same, of which there were too many to remember: then too the
    /// stored record tells.
    pub may_lack: bool,
}

/// A hello with a producer identity, as journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerOpened {
    /// The interned number. Above 0, never given twice.
    pub index: u32,
    /// The identity.
    pub id: ProducerId,
    /// Above every epoch this identity had before.
    pub epoch: u32,
    /// What the hello said: no publish of this or a higher sequence was ever sent. 1 if it did not say.
    pub unused_from: u64,
    /// The producers forgotten to make room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evicts: Vec<u32>,
}

/// What a welcome tells a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The interned number.
    pub index: u32,
    /// The epoch of this connection.
    pub epoch: u32,
    /// The lowest sequence that has not been decided, as far as is remembered.
    pub next_sequence: u64,
}

/// Why a connection cannot publish (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A newer connection has said hello with this identity.
    #[error("a newer connection speaks for this producer, of epoch {epoch}")]
    Superseded {
        /// The newer one.
        epoch: u32,
    },
    /// The producer was the least recently used of too many.
    #[error("this producer has been idle while many others came, and is forgotten; connect again")]
    Forgotten,
    /// See [`Producers::fence`].
    #[error("publishes of this connection are undecided; connect again and repeat them")]
    Fenced,
}

impl SessionError {
    /// What to say in a refuse frame.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            SessionError::Superseded { .. } => Code::ProducerSuperseded,
            SessionError::Forgotten => Code::OutcomeEvicted,
            SessionError::Fenced => Code::Overloaded,
        };
        Refusal::new(code, self.to_string())
    }
}

/// A producer's turn: one batch of its publishes.
pub struct Session<'a> {
    producer: &'a mut Producer,
    durable_through: MessageNumber,
}

impl Session<'_> {
    /// What is to be done with the publish of this sequence. [`Decision::New`] is said once: it is in
    /// hand until its outcome is recorded.
    #[inline]
    pub fn decide(&mut self, sequence: u64) -> Decision<'_> {
        if self.producer.take_next(sequence) {
            return Decision::New;
        }
        self.producer.decide(sequence, self.durable_through)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Producers {
    producers_max: usize,
    /// The highest index ever given.
    last_index: u32,
    /// The highest epoch any forgotten producer had: a producer that is new to the table may be one of them.
    epoch_floor: u32,
    by_index: HashMap<u32, Producer, FixedState>,
    by_id: BTreeMap<ProducerId, u32>,
    durable_through: MessageNumber,
    /// Ticks with every session, to find the least recently used.
    clock: u64,
    runs_total: usize,
    refusal_bytes: usize,
}

impl Default for Producers {
    fn default() -> Producers {
        Producers::new(PRODUCERS_MAX_DEFAULT)
    }
}

impl Producers {
    /// A table that remembers up to `producers_max` producers, at least 1.
    #[must_use]
    pub fn new(producers_max: usize) -> Producers {
        Producers {
            producers_max: producers_max.max(1),
            last_index: 0,
            epoch_floor: 0,
            by_index: HashMap::default(),
            by_id: BTreeMap::new(),
            durable_through: 0,
            clock: 0,
            runs_total: 0,
            refusal_bytes: 0,
        }
    }

    /// What a hello of this identity comes to; `unused_from` as in
    /// [`Hello`](crate::control::Hello::unused_from). Nothing has changed yet. Where others have to be
    /// forgotten for it, those for which `is_connected` is false go first.
    ///
    /// # Errors
    /// [`Code::LimitReached`]: epochs or indexes are used up. [`Code::BadSequence`]: `unused_from` is no
    /// sequence.
    pub fn open(
        &self,
        id: ProducerId,
        unused_from: Option<u64>,
        is_connected: impl Fn(u32) -> bool,
    ) -> Result<ProducerOpened, Refusal> {
        let used_up = |what| move || Refusal::new(Code::LimitReached, what);
        let unused_from = unused_from.unwrap_or(1);
        if !(1..=SEQUENCE_MAX).contains(&unused_from) {
            let detail = format!("unused_from is {unused_from}, expected 1 to {SEQUENCE_MAX}");
            return Err(Refusal::new(Code::BadSequence, detail));
        }
        if let Some((index, producer)) = self.by_id(id) {
            let epoch = producer.epoch.checked_add(1);
            let epoch = epoch.ok_or_else(used_up("this identity's epochs are used up"))?;
            return Ok(ProducerOpened { index, id, epoch, unused_from, evicts: Vec::new() });
        }
        let index = self.last_index.checked_add(1);
        let index = index.ok_or_else(used_up("all producer indexes have been given"))?;
        let epoch = self.epoch_floor.checked_add(1);
        let epoch = epoch.ok_or_else(used_up("all epochs of new producers are used up"))?;
        let evicts = self.least_recently_used(is_connected);
        Ok(ProducerOpened { index, id, epoch, unused_from, evicts })
    }

    /// Those to be forgotten before another producer comes; none while there is room. While all are
    /// connected only one: each has to be told.
    fn least_recently_used(&self, is_connected: impl Fn(u32) -> bool) -> Vec<u32> {
        if self.by_index.len() < self.producers_max {
            return Vec::new();
        }
        let all = || self.by_index.iter().map(|(index, producer)| (producer.used, *index));
        let mut by_use: Vec<_> = all().filter(|(_, index)| !is_connected(*index)).collect();
        if by_use.is_empty() {
            return all().min().into_iter().map(|(_, index)| index).collect();
        }
        let count = EVICTIONS.min(by_use.len());
        if count < by_use.len() {
            by_use.select_nth_unstable(count);
            by_use.truncate(count);
        }
        by_use.sort_unstable();
        by_use.into_iter().map(|(_, index)| index).collect()
    }

    /// Carries an opening out, when it is appended to the journal. Its welcome is sent once it is on disk.
    ///
    /// # Errors
    /// The event does not follow from this state; nothing has changed.
    pub fn apply(&mut self, event: &ProducerOpened) -> Result<Opened, StateError> {
        let ProducerOpened { index, id, epoch, unused_from, ref evicts } = *event;
        let out_of_order = StateError::OutOfOrder { what: "producer", id: index };
        match self.by_id(id) {
            Some((known, producer)) if known != index || epoch <= producer.epoch => {
                return Err(out_of_order);
            }
            None if index <= self.last_index => return Err(out_of_order),
            _ => {}
        }
        for evicted in evicts {
            self.forget(*evicted);
        }
        self.last_index = self.last_index.max(index);
        self.by_id.insert(id, index);
        self.clock += 1;
        let producer = self.by_index.entry(index).or_insert_with(|| Producer::new(id, unused_from));
        producer.used = self.clock;
        Ok(Opened { index, epoch, next_sequence: producer.open(epoch, unused_from) })
    }

    fn forget(&mut self, index: u32) {
        if let Some(producer) = self.by_index.remove(&index) {
            self.by_id.remove(&producer.id);
            self.epoch_floor = self.epoch_floor.max(producer.epoch);
            self.runs_total -= producer.runs();
            self.refusal_bytes -= producer.refusal_bytes();
        }
    }

    fn by_id(&self, id: ProducerId) -> Option<(u32, &Producer)> {
        let index = *self.by_id.get(&id)?;
        Some((index, self.by_index.get(&index)?))
    }

    /// The turn of the connection that was given `epoch`.
    ///
    /// # Errors
    /// The connection may not publish; every publish of the batch is refused for it, and nothing of that
    /// is recorded.
    #[inline]
    pub fn session(&mut self, index: u32, epoch: u32) -> Result<Session<'_>, SessionError> {
        self.clock += 1;
        let producer = self.by_index.get_mut(&index).ok_or(SessionError::Forgotten)?;
        if producer.epoch != epoch {
            return Err(SessionError::Superseded { epoch: producer.epoch });
        }
        if producer.fenced {
            return Err(SessionError::Fenced);
        }
        producer.used = self.clock;
        Ok(Session { producer, durable_through: self.durable_through })
    }

    /// Something of this producer's was not appended and stays undecided: nothing later may overtake
    /// it, so its present connection publishes no more. Its next hello lifts this.
    pub fn fence(&mut self, index: u32) {
        if let Some(producer) = self.by_index.get_mut(&index) {
            producer.fenced = true;
        }
    }

    /// Remembers that these sequences were accepted, as soon as they are appended.
    #[inline]
    pub fn record_run(&mut self, index: u32, run: Run) {
        let Some(producer) = self.by_index.get_mut(&index) else {
            return;
        };
        let before = producer.runs();
        producer.record_run(run);
        self.runs_total = self.runs_total - before + producer.runs();
        if self.runs_total > RUNS_TOTAL_MAX {
            self.halve_runs();
        }
    }

    /// Remembers that this sequence was refused; wholly, or by some receivers if a run holds it too.
    pub fn record_refusal(&mut self, index: u32, sequence: u64, refused: Refused) {
        let Some(producer) = self.by_index.get_mut(&index) else {
            return;
        };
        let before = producer.refusal_bytes();
        producer.record_refusal(sequence, refused);
        self.refusal_bytes = self.refusal_bytes - before + producer.refusal_bytes();
        if self.refusal_bytes > REFUSAL_BYTES_MAX {
            self.halve_refusals();
        }
    }

    /// Says that every message up to this number is on disk.
    #[inline]
    pub fn set_durable(&mut self, through: MessageNumber) {
        self.durable_through = self.durable_through.max(through);
    }

    /// Remembers a run found in the journal at boot, after the events that opened its producer have been
    /// applied. Those of a producer that was forgotten since are passed over.
    pub fn replay_run(&mut self, index: u32, run: Run) {
        self.set_durable(run.last_number());
        self.record_run(index, run);
    }

    /// Every producer forgets the older half of its outcomes, rather than a few all of theirs. One sweep
    /// makes room for half of the bound.
    fn halve_runs(&mut self) {
        self.by_index.values_mut().for_each(Producer::halve_runs);
        self.runs_total = self.by_index.values().map(Producer::runs).sum();
    }

    fn halve_refusals(&mut self) {
        self.by_index.values_mut().for_each(Producer::halve_refusals);
        self.refusal_bytes = self.by_index.values().map(Producer::refusal_bytes).sum();
    }

    /// How many producers are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_index.is_empty()
    }
}

#[cfg(test)]
mod tests;
