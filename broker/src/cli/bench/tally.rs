//! What became of every message: the generator's own ledger.
//!
//! A message is published to the `fanout` receivers that follow its place in the round, so a receiver
//! can tell whether a delivery was meant for it. A delivery counts once its receiver has acked it and
//! its publish is confirmed, whichever comes last. A second delivery of the same message to the same
//! receiver is a duplicate; a confirmed one that never comes is lost.
//!
//! Memory: 8 bytes per unconfirmed message and 16 per message that is not delivered everywhere.

use super::payload::Stamp;
use hdrhistogram::Histogram;
use restante_protocol::frame::{Confirm, Refuse};
use restante_protocol::refusal::Code;
use std::collections::VecDeque;
use std::ops::Range;

/// Most receivers of one message: their bits and one for the confirm are a word.
pub(super) const FANOUT_MAX: u32 = 127;
const CONFIRMED: u128 = 1 << 127;

/// Longest latency that is told apart from longer ones.
const LATENCY_US_MAX: u64 = 600_000_000;

/// Everything counted since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Messages handed to a connection.
    pub(super) published: u64,
    /// Messages whose confirm has come, the partly refused ones included.
    pub(super) confirmed: u64,
    /// Messages that were refused wholly.
    pub(super) refused: u64,
    /// Deliveries that confirmed messages owe.
    pub(super) owed: u64,
    /// Deliveries that count: see the module.
    pub(super) delivered: u64,
    /// Deliveries of what the receiver had already.
    pub(super) duplicates: u64,
    /// Deliveries flagged as possible repeats.
    pub(super) flagged: u64,
    /// Deliveries to the wrong receiver, of nothing published, or with other bytes.
    pub(super) foreign: u64,
}

impl Counts {
    /// Messages neither confirmed nor refused.
    pub(super) fn unconfirmed(&self) -> u64 {
        self.published - self.confirmed - self.refused
    }

    /// Deliveries that are owed and have not come.
    pub(super) fn missing(&self) -> u64 {
        self.owed - self.delivered
    }
}

/// One producer's messages.
#[derive(Debug)]
struct Sent {
    /// The node's sequence of message 0.
    first_sequence: u64,
    /// Number of the first message in `intended`.
    confirmed_floor: u64,
    /// Intended time of each message from there on; `None` once it is decided.
    intended: VecDeque<Option<u64>>,
    /// Number of the first message in `open`.
    floor: u64,
    /// Who has each message from there on, and whether it is confirmed.
    open: VecDeque<u128>,
}

/// The ledger of a run.
#[derive(Debug)]
pub(super) struct Tally {
    receivers: u64,
    fanout: u64,
    whole: u128,
    sent: Vec<Sent>,
    pub(super) counts: Counts,
    /// The first refusal and how the node put it.
    pub(super) refusal: Option<(Code, String)>,
    /// Messages meant to be sent in this time, ns since the run began, are in the histograms.
    pub(super) window: Range<u64>,
    /// From the intended time to the confirm, µs.
    pub(super) confirm: Histogram<u64>,
    /// From the intended time to the delivery, µs.
    pub(super) deliver: Histogram<u64>,
}

/// The node said something about a message that was never sent, or decided it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotOpen {
    pub(super) sequence: u64,
}

impl Tally {
    /// `first_sequences`: what the node's welcomes said to each producer.
    pub(super) fn new(
        receivers: u32,
        fanout: u32,
        first_sequences: &[u64],
    ) -> Result<Tally, hdrhistogram::CreationError> {
        let sent = first_sequences.iter().map(|first_sequence| Sent {
            first_sequence: *first_sequence,
            confirmed_floor: 0,
            intended: VecDeque::new(),
            floor: 0,
            open: VecDeque::new(),
        });
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3);
        Ok(Tally {
            receivers: u64::from(receivers),
            fanout: u64::from(fanout),
            whole: CONFIRMED | ((1 << fanout) - 1),
            sent: sent.collect(),
            counts: Counts::default(),
            refusal: None,
            window: u64::MAX..u64::MAX,
            confirm: histogram()?,
            deliver: histogram()?,
        })
    }

    /// The first receiver of a message; the others follow it.
    #[inline]
    pub(super) fn first_receiver(&self, producer: u16, number: u64) -> u32 {
        // A remainder of a `u32`.
        ((number * self.fanout + u64::from(producer)) % self.receivers) as u32
    }

    /// A producer's next message is on its way; its number.
    #[inline]
    pub(super) fn published(&mut self, producer: u16, intended_ns: u64) {
        let sent = &mut self.sent[usize::from(producer)];
        sent.intended.push_back(Some(intended_ns));
        sent.open.push_back(0);
        self.counts.published += 1;
    }

    /// A run of messages is durable; how many.
    pub(super) fn confirmed(
        &mut self,
        producer: u16,
        confirm: &Confirm,
        now_ns: u64,
    ) -> Result<u32, NotOpen> {
        for offset in 0..u64::from(confirm.count) {
            self.decided(producer, confirm.first_sequence + offset, now_ns, Some(0))?;
        }
        Ok(confirm.count)
    }

    /// A message was refused, wholly or for some receivers.
    pub(super) fn refused(
        &mut self,
        producer: u16,
        refuse: &Refuse,
        now_ns: u64,
    ) -> Result<(), NotOpen> {
        if self.refusal.is_none() {
            self.refusal = Some((refuse.code, refuse.detail.clone()));
        }
        let Some(sent) = self.sent.get(usize::from(producer)) else {
            return Err(NotOpen { sequence: refuse.sequence });
        };
        let number = refuse.sequence.wrapping_sub(sent.first_sequence);
        let first = self.first_receiver(producer, number);
        let absent = refuse.id.map(|_| {
            let aliases = refuse.receivers.iter().map(|(alias, _)| u64::from(*alias));
            let places = aliases.map(|alias| self.place(first, alias));
            places.filter(|place| *place < self.fanout).fold(0, |mask, place| mask | 1 << place)
        });
        self.decided(producer, refuse.sequence, now_ns, absent)
    }

    /// A message's outcome is known; `absent`: the receivers that refused it, `None` for all.
    #[inline]
    fn decided(
        &mut self,
        producer: u16,
        sequence: u64,
        now_ns: u64,
        absent: Option<u128>,
    ) -> Result<(), NotOpen> {
        let unknown = NotOpen { sequence };
        let sent = self.sent.get_mut(usize::from(producer)).ok_or(unknown)?;
        let number = sequence.wrapping_sub(sent.first_sequence);
        let place = index(number, sent.confirmed_floor).ok_or(unknown)?;
        let intended = sent.intended.get_mut(place).and_then(Option::take).ok_or(unknown)?;
        while sent.intended.front() == Some(&None) {
            sent.intended.pop_front();
            sent.confirmed_floor += 1;
        }
        let place = index(number, sent.floor).ok_or(unknown)?;
        let open = sent.open.get_mut(place).ok_or(unknown)?;
        match absent {
            None => {
                self.counts.refused += 1;
                *open = self.whole;
            }
            Some(absent) => {
                self.counts.confirmed += 1;
                // What came before the confirm counts from here on.
                self.counts.delivered += u64::from((*open & !absent).count_ones());
                self.counts.owed += self.fanout - u64::from(absent.count_ones());
                *open |= absent | CONFIRMED;
                if self.window.contains(&intended) {
                    self.confirm.saturating_record(now_ns.saturating_sub(intended) / 1_000);
                }
            }
        }
        sent.settle(self.whole);
        Ok(())
    }

    /// A receiver has a message and acks it.
    #[inline]
    pub(super) fn delivered(&mut self, stamp: Stamp, receiver: u32, flagged: bool, now_ns: u64) {
        self.counts.flagged += u64::from(flagged);
        let Stamp { producer, number, intended_ns } = stamp;
        if usize::from(producer) >= self.sent.len() {
            self.counts.foreign += 1;
            return;
        }
        let first = self.first_receiver(producer, number);
        let place = self.place(first, u64::from(receiver));
        let sent = &mut self.sent[usize::from(producer)];
        let beyond = number >= sent.floor + sent.open.len() as u64;
        if place >= self.fanout || beyond {
            self.counts.foreign += 1;
            return;
        }
        let bit = 1 << place;
        let open = index(number, sent.floor).and_then(|at| sent.open.get_mut(at));
        let Some(open) = open.filter(|open| **open & bit == 0) else {
            self.counts.duplicates += 1;
            return;
        };
        *open |= bit;
        self.counts.delivered += u64::from(*open & CONFIRMED != 0);
        if *open == self.whole {
            sent.settle(self.whole);
        }
        if self.window.contains(&intended_ns) {
            self.deliver.saturating_record(now_ns.saturating_sub(intended_ns) / 1_000);
        }
    }

    /// How many receivers after a message's first one this is.
    #[inline]
    fn place(&self, first: u32, receiver: u64) -> u64 {
        (receiver + self.receivers - u64::from(first)) % self.receivers
    }
}

impl Sent {
    /// Forgets the messages in front that are done.
    #[inline]
    fn settle(&mut self, whole: u128) {
        while self.open.front() == Some(&whole) {
            self.open.pop_front();
            self.floor += 1;
        }
    }
}

#[inline]
fn index(number: u64, floor: u64) -> Option<usize> {
    number.checked_sub(floor).and_then(|place| usize::try_from(place).ok())
}

#[cfg(test)]
mod tests;
