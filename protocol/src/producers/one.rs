//! One producer: what has been decided of its sequences.

use super::{Accepted, Decision, REFUSALS_MAX, RUNS_MAX, Refused, Run, SEQUENCE_MAX};
use crate::id::{MessageNumber, ProducerId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// The first sequence of every producer.
const FIRST: u64 = 1;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Producer {
    // Durable, by events, runs and checkpoints.
    pub(super) id: ProducerId,
    pub(super) epoch: u32,
    /// Above every sequence seen.
    pub(super) next: u64,
    /// Below it, what is not remembered is evicted.
    pub(super) remembered_from: u64,
    /// Ascending, disjoint, at most [`RUNS_MAX`].
    pub(super) runs: VecDeque<Run>,

    // In memory only.
    /// The table's clock at its last use.
    pub(super) used: u64,
    /// See [`super::Producers::fence`].
    pub(super) fenced: bool,
    /// From here to `next`, sequences are in hand: said to be New, outcome not recorded.
    settled: u64,
    /// Sequences below `settled` that are in hand, as first and last; one entry while they ascend.
    gaps: SmallVec<[(u64, u64); 2]>,
    /// By first sequence, disjoint, at most [`REFUSALS_MAX`].
    refusals: BTreeMap<u64, RefusedRun>,
    refusal_bytes: usize,
    /// Up to here, refusals have been forgotten.
    refusals_forgotten: u64,
}

/// Consecutive sequences refused alike: a full disk refuses thousands in the same words.
#[derive(Clone, Debug)]
struct RefusedRun {
    count: u64,
    refused: Refused,
}

impl RefusedRun {
    fn bytes(&self) -> usize {
        let receivers = if self.refused.receivers.spilled() {
            self.refused.receivers.capacity() * size_of::<(u16, crate::refusal::Code)>()
        } else {
            0
        };
        let members = &self.refused.members;
        // Their names are shared with the peers, as long as those are there.
        let names: usize = members.iter().map(|(.., name)| name.as_str().len()).sum();
        let members = size_of_val(&**members) + names;
        size_of::<(u64, RefusedRun)>() + self.refused.detail.len() + receivers + members
    }
}

impl Run {
    /// The last sequence.
    pub(super) fn last_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.count.saturating_sub(1)))
    }

    /// The last message number.
    pub(super) fn last_number(&self) -> MessageNumber {
        self.first_number.saturating_add(u64::from(self.count.saturating_sub(1)))
    }

    /// The part of the run between two of its sequences, both included.
    fn part(&self, first: u64, last: u64) -> Run {
        Run {
            first_sequence: first,
            // Not above `self.count`.
            count: (last - first + 1) as u32,
            first_number: self.first_number.saturating_add(first - self.first_sequence),
            accepted_ms: self.accepted_ms,
        }
    }
}

impl Producer {
    /// One that is new to the table, though it may have been there before.
    pub(super) fn new(id: ProducerId, unused_from: u64) -> Producer {
        Producer::restored(id, 0, unused_from, unused_from, VecDeque::new())
    }

    pub(super) fn restored(
        id: ProducerId,
        epoch: u32,
        next: u64,
        remembered_from: u64,
        runs: VecDeque<Run>,
    ) -> Producer {
        Producer {
            id,
            epoch,
            next,
            remembered_from,
            runs,
            used: 0,
            fenced: false,
            settled: next,
            gaps: SmallVec::new(),
            refusals: BTreeMap::new(),
            refusal_bytes: 0,
            refusals_forgotten: 0,
        }
    }

    /// Begins an epoch: whatever was in hand of the one before has been recorded or never will be.
    pub(super) fn open(&mut self, epoch: u32, unused_from: u64) -> u64 {
        self.epoch = epoch;
        self.fenced = false;
        // Sequences in between were refused or never arrived, and are gaps.
        self.next = self.next.max(unused_from);
        self.settled = self.next;
        self.gaps.clear();
        self.next
    }

    /// Takes the sequence if it is the next one.
    #[inline]
    pub(super) fn take_next(&mut self, sequence: u64) -> bool {
        let next = sequence == self.next && sequence <= SEQUENCE_MAX;
        self.next += u64::from(next);
        next
    }

    pub(super) fn decide(&mut self, sequence: u64, durable_through: MessageNumber) -> Decision<'_> {
        if !(FIRST..=SEQUENCE_MAX).contains(&sequence) {
            return Decision::Invalid;
        }
        if sequence >= self.next {
            if self.next == FIRST {
                return Decision::Evicted;
            }
            self.next = sequence + 1;
            return Decision::New;
        }
        if let Some(run) = self.run(sequence) {
            let part = run.part(sequence, sequence);
            let (number, accepted_ms) = (part.first_number, part.accepted_ms);
            let refused = self.refusal(sequence);
            let may_lack = refused.is_none() && sequence <= self.refusals_forgotten;
            let accepted = Accepted { number, accepted_ms, refused, may_lack };
            return if number <= durable_through {
                Decision::Confirmed(accepted)
            } else {
                Decision::Pending(accepted)
            };
        }
        if self.refusal(sequence).is_none() {
            return self.decide_forgotten(sequence);
        }
        self.refusal(sequence).map_or(Decision::Invalid, Decision::Refused)
    }

    /// Below `next`, and neither accepted nor refused as far as is remembered.
    fn decide_forgotten(&mut self, sequence: u64) -> Decision<'static> {
        if sequence < self.remembered_from {
            Decision::Evicted
        } else if sequence >= self.settled
            || self.gaps.iter().any(|(first, last)| (*first..=*last).contains(&sequence))
            || self.gaps.len() >= RUNS_MAX
        {
            Decision::Invalid
        } else {
            match self.gaps.last_mut() {
                Some((_, last)) if *last + 1 == sequence => *last = sequence,
                _ => self.gaps.push((sequence, sequence)),
            }
            Decision::New
        }
    }

    fn run(&self, sequence: u64) -> Option<&Run> {
        let at = self.runs.partition_point(|run| run.last_sequence() < sequence);
        self.runs.get(at).filter(|run| run.first_sequence <= sequence)
    }

    fn refusal(&self, sequence: u64) -> Option<&Refused> {
        let (first, run) = self.refusals.range(..=sequence).next_back()?;
        (sequence - first < run.count).then_some(&run.refused)
    }

    /// Notes that these sequences are decided.
    #[inline]
    fn settle(&mut self, first: u64, last: u64) {
        self.next = self.next.max(last + 1);
        self.settled = self.settled.max(last + 1);
        if !self.gaps.is_empty() {
            self.close_gaps(first, last);
        }
    }

    fn close_gaps(&mut self, first: u64, last: u64) {
        for (from, to) in core::mem::take(&mut self.gaps) {
            if from < first {
                self.gaps.push((from, to.min(first - 1)));
            }
            if to > last {
                self.gaps.push((from.max(last + 1), to));
            }
        }
    }

    #[inline]
    pub(super) fn record_run(&mut self, run: Run) {
        let (first, last) = (run.first_sequence, run.last_sequence());
        if run.count == 0 || first < FIRST || last > SEQUENCE_MAX {
            return;
        }
        self.settle(first, last);
        match self.runs.back_mut() {
            Some(back) if back.last_sequence() >= first => self.fill_in(run),
            Some(back) if continues(back, &run) => back.count += run.count,
            _ => self.runs.push_back(run),
        }
        while self.runs.len() > RUNS_MAX {
            self.forget_oldest_run();
        }
    }

    /// Puts a run between others: a gap that was judged afresh, or a replayed run. What is remembered
    /// already stays as it is.
    fn fill_in(&mut self, run: Run) {
        let (mut from, last) = (run.first_sequence, run.last_sequence());
        while from <= last {
            let at = self.runs.partition_point(|known| known.last_sequence() < from);
            let next = self.runs.get(at).map(|known| (known.first_sequence, known.last_sequence()));
            from = match next {
                Some((first, known_last)) if first <= from => known_last + 1,
                Some((first, _)) if first <= last => {
                    self.runs.insert(at, run.part(from, first - 1));
                    first
                }
                _ => {
                    self.runs.insert(at, run.part(from, last));
                    last + 1
                }
            };
        }
    }

    pub(super) fn record_refusal(&mut self, sequence: u64, refused: Refused) {
        if !(FIRST..=SEQUENCE_MAX).contains(&sequence) {
            return;
        }
        self.settle(sequence, sequence);
        if self.refusal(sequence).is_some() {
            return;
        }
        if let Some((first, run)) = self.refusals.range_mut(..sequence).next_back()
            && sequence - first == run.count
            && run.refused == refused
        {
            run.count += 1;
            return;
        }
        let run = RefusedRun { count: 1, refused };
        self.refusal_bytes += run.bytes();
        self.refusals.insert(sequence, run);
        while self.refusals.len() > REFUSALS_MAX {
            self.forget_oldest_refusal();
        }
    }

    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn refusal_bytes(&self) -> usize {
        self.refusal_bytes
    }

    pub(super) fn halve_runs(&mut self) {
        for _ in 0..self.runs.len() / 2 {
            self.forget_oldest_run();
        }
        self.runs.shrink_to_fit();
    }

    pub(super) fn halve_refusals(&mut self) {
        for _ in 0..self.refusals.len().div_ceil(2) {
            self.forget_oldest_refusal();
        }
    }

    fn forget_oldest_run(&mut self) {
        if let Some(run) = self.runs.pop_front() {
            self.remembered_from = self.remembered_from.max(run.last_sequence() + 1);
        }
    }

    fn forget_oldest_refusal(&mut self) {
        if let Some((first, run)) = self.refusals.pop_first() {
            self.refusal_bytes -= run.bytes();
            self.refusals_forgotten = self.refusals_forgotten.max(first + run.count - 1);
        }
    }
}

fn continues(back: &Run, run: &Run) -> bool {
    let count = u64::from(back.count);
    run.first_sequence == back.first_sequence + count
        && run.first_number == back.first_number + count
        && run.accepted_ms == back.accepted_ms
        && back.count.checked_add(run.count).is_some()
}
