//! What the journal should know, kept the naive way, and what a crash may make of it.
//!
//! Everything said to the journal has a record number, and everything the journal confirmed has one
//! below [`Model::sure`]. After a crash the log ends somewhere at or behind that: whatever has a lower
//! number is there, whatever has a higher one is not. Only settles and parks may be known further,
//! through a checkpoint that was taken when they were on their way.

use restante_actors::journal::{End, Ended, Life};
use restante_protocol::id::MessageNumber;
use restante_protocol::record::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const PEERS: u32 = 4;

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) messages: BTreeMap<MessageNumber, Message>,
    /// Every admin record so far with its number.
    pub(crate) admin: Vec<(MessageNumber, Arc<[u8]>)>,
    /// Of each append under way, the number after its last record.
    pub(crate) tickets: BTreeMap<u64, MessageNumber>,
    /// Of each flush under way, the number after the last record before it.
    pub(crate) flushes: BTreeMap<u64, MessageNumber>,
    /// Every record with a lower number has been confirmed.
    pub(crate) sure: MessageNumber,
    pub(crate) sequence: u64,
    /// Milliseconds; one for each thing done, so that each can be told from the others.
    pub(crate) now_ms: u64,
    pub(crate) epoch: u32,
    pub(crate) close: Close,
    pub(crate) checkpoint_due: bool,
    /// What was settled that had been settled before: peer, message, and when.
    pub(crate) repeats: BTreeSet<(u32, MessageNumber, u64)>,
}

/// What should be known of one message.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) body: Arc<[u8]>,
    pub(crate) sequence: u64,
    pub(crate) fates: [Option<Fate>; PEERS as usize + 1],
}

/// What should be known of it for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Parked(Said),
    Settled(Said),
    ParkedThenSettled { parked: Said, settled: Said },
}

/// When a thing was said, and in which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// The last record of it; `NEVER` when that is gone and a checkpoint may know it all the same.
    pub(crate) record: MessageNumber,
    pub(crate) at_ms: u64,
    /// Whether attempts and a value were given.
    pub(crate) detail: bool,
}

pub(crate) const NEVER: MessageNumber = MessageNumber::MAX;

/// Where a message stands for a receiver, as the journal tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lies {
    Open,
    Parked,
    Nowhere,
}

/// Whether the last life of the journal ended in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Close {
    #[default]
    No,
    Tried,
    Done,
}

/// Attempts and value of a settle that has them.
pub(crate) fn detail_of(number: MessageNumber) -> (u16, Vec<u8>) {
    (2 + (number % 5) as u16, number.to_be_bytes().to_vec())
}

impl Model {
    /// Takes note of what the journal says.
    pub(crate) fn hear(&mut self, ticket: u64, end: &End) {
        let through = match end {
            End::Durable(_) => self.tickets.remove(&ticket),
            End::Flushed(token) => self.flushes.remove(token),
            End::CheckpointDue => {
                self.checkpoint_due = true;
                None
            }
            End::Poisoned(_) | End::Unknown(_) | End::Fenced(_) => None,
        };
        self.sure = self.sure.max(through.unwrap_or(0));
    }

    /// Numbers of a peer's durable messages with this fate.
    pub(crate) fn with_fate(&self, peer: u32, wanted: impl Fn(Fate) -> bool) -> Vec<MessageNumber> {
        self.messages
            .range(..self.sure)
            .filter(|(_, message)| message.fates[peer as usize].is_some_and(&wanted))
            .map(|(number, _)| *number)
            .collect()
    }

    pub(crate) fn set_fate(&mut self, peer: u32, number: MessageNumber, fate: Fate) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.fates[peer as usize] = Some(fate);
        }
    }

    /// The log was found to end before `end`, whose number is given out anew.
    pub(crate) fn ends_at(&mut self, end: MessageNumber) {
        assert!(self.sure <= end, "{} was confirmed, the log ends at {end}", self.sure - 1);
        drop(self.messages.split_off(&end));
        self.admin.retain(|(number, _)| *number < end);
        for message in self.messages.values_mut() {
            for fate in message.fates.iter_mut().flatten() {
                fate.each_said(|said| {
                    if said.record >= end {
                        said.record = NEVER;
                    }
                });
            }
        }
    }

    /// The journal is open again and knows of everything below `end`: compares where each message
    /// lies for this peer and takes that over.
    pub(crate) fn adopt(
        &mut self,
        peer: u32,
        end: MessageNumber,
        open: &BTreeSet<MessageNumber>,
        parked: &BTreeSet<MessageNumber>,
    ) {
        for number in open.iter().chain(parked) {
            let message = self.messages.get(number).expect("a message we sent");
            assert!(message.fates[peer as usize].is_some(), "{number} is not for {peer}");
        }
        for (number, message) in &mut self.messages {
            let Some(fate) = &mut message.fates[peer as usize] else { continue };
            let lies = match (open.contains(number), parked.contains(number)) {
                (true, false) => Lies::Open,
                (false, true) => Lies::Parked,
                (false, false) => Lies::Nowhere,
                (true, true) => panic!("{number} is open and parked for {peer}"),
            };
            assert!(fate.allows(lies, end), "{number} for {peer} was {fate:?} and lies {lies:?}");
            *fate = fate.found(lies);
        }
    }

    /// Compares what is told of a message's life with what is known of it. `aged`: the records of
    /// what is done may have been dropped.
    pub(crate) fn check_life(&self, number: MessageNumber, life: &Life, aged: bool) {
        let message = &self.messages[&number];
        let wanted: Vec<u32> =
            (1..=PEERS).filter(|peer| message.fates[*peer as usize].is_some()).collect();
        let told: Vec<u32> = life.receivers.iter().map(|(peer, _)| peer.0).collect();
        assert_eq!(told, wanted, "receivers of {number}");
        if let Some(body) = &life.body {
            assert_eq!(body[..], message.body[..], "body of {number}");
        }
        for (peer, ended) in &life.receivers {
            let Some(fate) = message.fates[peer.0 as usize] else { continue };
            let agrees = match fate {
                Fate::Open => ended.is_none(),
                Fate::Parked(said) => match ended {
                    Some(Ended::Parked(park)) => park.at_ms == said.at_ms || said.record == NEVER,
                    Some(Ended::Settled { .. } | Ended::Done) => false,
                    None => said.record >= self.sure,
                },
                Fate::Settled(said) => {
                    self.is_told((peer.0, number), said, false, ended.as_ref(), aged)
                }
                Fate::ParkedThenSettled { parked, settled } => {
                    // Where no record says that it was parked, a floor that passed over it tells.
                    let is_passed = parked.record == NEVER
                        && matches!(ended, Some(Ended::Settled { outcome: Outcome::Acked, .. }));
                    let told = (peer.0, number);
                    is_passed || self.is_told(told, settled, true, ended.as_ref(), aged)
                }
            };
            assert!(agrees, "life of {number} for {peer:?}, {fate:?}: {ended:?}");
        }
    }

    fn is_told(
        &self,
        (peer, number): (u32, MessageNumber),
        said: Said,
        was_parked: bool,
        ended: Option<&Ended>,
        aged: bool,
    ) -> bool {
        // Where its own record was never written, a later one may cover it, or none.
        let vague = said.record == NEVER;
        match ended {
            None => said.record >= self.sure,
            Some(Ended::Parked(_)) => was_parked && said.record >= self.sure,
            Some(Ended::Done) => vague || aged,
            Some(Ended::Settled { outcome, at_ms, attempts, value, .. }) => {
                let detail = match said.detail {
                    true => {
                        (*attempts, value.as_deref())
                            == (detail_of(number).0, Some(&detail_of(number).1[..]))
                    }
                    false => (*attempts, value) == (1, &None),
                };
                // Where the first is no longer kept, a repeated ack is told by its own record.
                let repeated = aged && self.repeats.contains(&(peer, number, *at_ms));
                let exact = *at_ms == said.at_ms && detail;
                *outcome == Outcome::Acked && (vague || repeated || exact)
            }
        }
    }
}

impl Fate {
    fn each_said(&mut self, mut change: impl FnMut(&mut Said)) {
        match self {
            Fate::Open => {}
            Fate::Parked(said) | Fate::Settled(said) => change(said),
            Fate::ParkedThenSettled { parked, settled } => {
                change(parked);
                change(settled);
            }
        }
    }

    /// Whether a message with this fate may lie there when the log ends before `end`.
    fn allows(self, lies: Lies, end: MessageNumber) -> bool {
        match self {
            Fate::Open => lies == Lies::Open,
            Fate::Parked(said) if said.record < end => lies == Lies::Parked,
            Fate::Parked(_) => lies != Lies::Nowhere,
            Fate::Settled(said) if said.record < end => lies == Lies::Nowhere,
            Fate::Settled(_) => lies != Lies::Parked,
            Fate::ParkedThenSettled { settled, .. } if settled.record < end => {
                lies == Lies::Nowhere
            }
            Fate::ParkedThenSettled { parked, .. } if parked.record < end => lies != Lies::Open,
            Fate::ParkedThenSettled { .. } => true,
        }
    }

    /// The fate of a message that lies there.
    fn found(self, lies: Lies) -> Fate {
        match (lies, self) {
            (Lies::Open, _) => Fate::Open,
            (Lies::Parked, Fate::ParkedThenSettled { parked, .. }) => Fate::Parked(parked),
            (_, fate) => fate,
        }
    }
}
