//! Messages that left the straight line: sent before and to be sent again, or sent out of turn.
//!
//! ```text
//!             nack                  due, or its life over
//!   Unacked ────────► Refused ───────────────────────► Wanted ──── loaded ───► Ready
//!      ▲ │                                               ▲ ▲                    │ │
//!      │ └─────────── late, or the link is gone ─────────┘ └── the link is gone ┘ │
//!      └────────────────────────────── sent again ────────────────────────────────┘
//! ```
//!
//! One map by number owns them; the sets beside it are indexes of the map, kept by
//! [`Retries::set`] alone. No body is held except in `Ready`. There are at most as many as a window
//! holds, plus [`REFUSED_MAX`].

use super::expiry::Expiry;
use super::types::Whereabouts;
use super::unacked::Slot;
use crate::id::MessageNumber;
use crate::message::KeyHash;
use crate::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Refused messages waiting for their next try at which the peer sends nothing new until some of
/// them are through ([`crate::status::Stall::Refusals`]).
pub const REFUSED_MAX: usize = 4_096;
/// Messages under suspicion at a time (see [`super::suspects`]).
pub(super) const SUSPECTS_MAX: usize = 64;

/// A message off the straight line.
#[derive(Debug)]
pub(super) struct Retry<B> {
    pub(super) accepted_ms: u64,
    pub(super) key: Option<KeyHash>,
    pub(super) bytes: u32,
    /// Sent this often.
    pub(super) attempts: u16,
    /// Nacked this often.
    pub(super) refusals: u16,
    /// Alone in flight at this many losses in a row that count.
    pub(super) losses: u8,
    /// How many messages the peer had acked at the first of them.
    pub(super) acked_before: u64,
    /// When its time to live ends, at the latest: exactly once it has been read again.
    pub(super) expires: Option<Expiry>,
    pub(super) state: State<B>,
}

/// See the module.
#[derive(Debug)]
pub(super) enum State<B> {
    /// Waits for its next try.
    Refused { due: Time, reason: Arc<str> },
    /// To be sent again as soon as its body is there.
    Wanted,
    /// To be sent again.
    Ready(B),
    /// In flight.
    Unacked { tag: u64, since: Time },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Retries<B> {
    by_number: BTreeMap<MessageNumber, Retry<B>>,
    due: BTreeSet<(Time, MessageNumber)>,
    wanted: BTreeSet<MessageNumber>,
    ready: BTreeSet<MessageNumber>,
    /// Ready, but under suspicion: fewest losses first.
    ready_suspects: BTreeSet<(u8, MessageNumber)>,
    ready_bytes: u64,
    /// Everything not in flight, by key: what holds back messages of that key.
    keys: BTreeSet<(Option<KeyHash>, MessageNumber)>,
    suspects: usize,
}

impl<B> Retries<B> {
    pub(super) fn new() -> Retries<B> {
        Retries {
            by_number: BTreeMap::new(),
            due: BTreeSet::new(),
            wanted: BTreeSet::new(),
            ready: BTreeSet::new(),
            ready_suspects: BTreeSet::new(),
            ready_bytes: 0,
            keys: BTreeSet::new(),
            suspects: 0,
        }
    }

    /// A message leaves the straight line. It is not here yet.
    pub(super) fn insert(&mut self, number: MessageNumber, retry: Retry<B>) {
        self.suspects += usize::from(retry.losses > 0);
        self.index(number, &retry);
        let before = self.by_number.insert(number, retry);
        debug_assert!(before.is_none(), "message {number} was off the line already");
    }

    /// A message is done or goes back into a queue.
    pub(super) fn remove(&mut self, number: MessageNumber) -> Option<Retry<B>> {
        let retry = self.by_number.remove(&number)?;
        self.suspects -= usize::from(retry.losses > 0);
        self.unindex(number, &retry);
        Some(retry)
    }

    /// The one place where a state changes; the old state is returned.
    pub(super) fn set(&mut self, number: MessageNumber, state: State<B>) -> Option<State<B>> {
        let mut retry = self.remove(number)?;
        let before = core::mem::replace(&mut retry.state, state);
        self.insert(number, retry);
        Some(before)
    }

    /// Changes what does not belong to the state.
    pub(super) fn update(&mut self, number: MessageNumber, change: impl FnOnce(&mut Retry<B>)) {
        if let Some(mut retry) = self.remove(number) {
            change(&mut retry);
            self.insert(number, retry);
        }
    }

    pub(super) fn get(&self, number: MessageNumber) -> Option<&Retry<B>> {
        self.by_number.get(&number)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn refused(&self) -> usize {
        self.due.len()
    }

    pub(super) fn ready(&self) -> usize {
        self.ready.len() + self.ready_suspects.len()
    }

    pub(super) fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }

    pub(super) fn suspects(&self) -> usize {
        self.suspects
    }

    /// Bytes of all of them.
    pub(super) fn bytes(&self) -> u64 {
        self.by_number.values().map(|retry| u64::from(retry.bytes)).sum()
    }

    /// Bytes of those in flight.
    pub(super) fn unacked_bytes(&self) -> u64 {
        let in_flight = |retry: &&Retry<B>| matches!(retry.state, State::Unacked { .. });
        self.by_number.values().filter(in_flight).map(|retry| u64::from(retry.bytes)).sum()
    }

    /// Those whose bodies are to be loaded, in order.
    pub(super) fn wanted(&self) -> impl Iterator<Item = MessageNumber> {
        self.wanted.iter().copied()
    }

    /// Those wanted within a stretch of the journal.
    pub(super) fn wanted_within(
        &self,
        after: MessageNumber,
        through: MessageNumber,
    ) -> Vec<MessageNumber> {
        if after >= through {
            return Vec::new();
        }
        self.wanted.range(after + 1..=through).copied().collect()
    }

    /// Those that can be sent, in order.
    pub(super) fn sendable(&self) -> impl Iterator<Item = MessageNumber> {
        self.ready.iter().copied()
    }

    /// Those under suspicion that can be sent, in the order in which to try them.
    pub(super) fn sendable_suspects(&self) -> impl Iterator<Item = MessageNumber> {
        self.ready_suspects.iter().map(|(_, number)| *number)
    }

    /// The lowest number, with its message.
    pub(super) fn first(&self) -> Option<(MessageNumber, &Retry<B>)> {
        self.by_number.first_key_value().map(|(number, retry)| (*number, retry))
    }

    /// The lowest message of this key that is not in flight.
    pub(super) fn first_waiting(&self, key: Option<KeyHash>) -> Option<MessageNumber> {
        let of_key = self.keys.range((key, MessageNumber::MIN)..=(key, MessageNumber::MAX));
        of_key.map(|(_, number)| *number).next()
    }

    /// When the next refused message is due, or its life over.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Refused messages that are due want to be sent again; those whose life is over want the same, so
    /// that they are looked at and found expired.
    pub(super) fn wake(&mut self, now: Time) {
        while let Some((due, number)) = self.due.first().copied()
            && due <= now
        {
            self.set(number, State::Wanted);
        }
    }

    /// The bodies at hand are dropped: the link is gone.
    pub(super) fn detach(&mut self) {
        while let Some(number) = self.ready.first().copied() {
            self.set(number, State::Wanted);
        }
        while let Some((_, number)) = self.ready_suspects.first().copied() {
            self.set(number, State::Wanted);
        }
    }

    fn index(&mut self, number: MessageNumber, retry: &Retry<B>) {
        match &retry.state {
            State::Refused { due, .. } => drop(self.due.insert((retry.wakes(*due), number))),
            State::Wanted => drop(self.wanted.insert(number)),
            State::Ready(_) => {
                self.ready_bytes += u64::from(retry.bytes);
                if retry.losses > 0 {
                    self.ready_suspects.insert((retry.losses, number));
                } else {
                    self.ready.insert(number);
                }
            }
            State::Unacked { .. } => return,
        }
        self.keys.insert((retry.key, number));
    }

    fn unindex(&mut self, number: MessageNumber, retry: &Retry<B>) {
        match &retry.state {
            State::Refused { due, .. } => drop(self.due.remove(&(retry.wakes(*due), number))),
            State::Wanted => drop(self.wanted.remove(&number)),
            State::Ready(_) => {
                self.ready_bytes -= u64::from(retry.bytes);
                self.ready_suspects.remove(&(retry.losses, number));
                self.ready.remove(&number);
            }
            State::Unacked { .. } => return,
        }
        self.keys.remove(&(retry.key, number));
    }
}

impl<B> Retry<B> {
    /// A message that was not sent yet and is to be.
    pub(super) fn of(accepted_ms: u64, key: Option<KeyHash>, bytes: u32) -> Retry<B> {
        let (attempts, refusals, losses, acked_before) = (0, 0, 0, 0);
        let (expires, state) = (None, State::Wanted);
        Retry { accepted_ms, key, bytes, attempts, refusals, losses, acked_before, expires, state }
    }

    /// One that was sent once, straight from the queue, and is to be sent again.
    pub(super) fn of_slot(slot: &Slot) -> Retry<B> {
        let expires = slot.left.expiry(slot.sent_at);
        let retry = Retry::of(slot.accepted_ms, slot.key, slot.bytes);
        Retry { attempts: 1, expires, ..retry }
    }

    /// When one that is refused until then is looked at.
    fn wakes(&self, due: Time) -> Time {
        self.expires.map_or(due, |expires| due.min(expires.time()))
    }

    /// When it is tried again, if it was refused and waits.
    pub(super) fn due(&self) -> Option<Time> {
        match self.state {
            State::Refused { due, .. } => Some(due),
            _ => None,
        }
    }

    pub(super) fn whereabouts(&self, now: Time) -> Whereabouts {
        let attempts = self.attempts;
        match &self.state {
            // Due while there is no link: it goes with the next one.
            State::Refused { due, .. } if *due <= now => Whereabouts::Queued { attempts },
            State::Refused { due, reason } => Whereabouts::Retrying {
                attempts,
                next_attempt: *due,
                reason: reason.as_ref().to_owned(),
            },
            State::Wanted | State::Ready(_) => Whereabouts::Queued { attempts },
            State::Unacked { since, .. } => Whereabouts::Unacked { attempts, since: *since },
        }
    }
}
