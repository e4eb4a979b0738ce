//! Producers in a checkpoint. Compact, because it is written again and again: a run takes about seven
//! bytes, as differences to the one before it.
//!
//! ```text
//! varint last index | varint epoch floor | varint durable through | varint producers
//! per producer, least recently used first:
//!   16 bytes id | varint index | varint epoch | varint next | varint remembered from | varint runs
//!   per run: varint first sequence - end of the one before | varint count
//!            | zigzag varint number - end of the one before | zigzag varint accepted ms - the one before
//! ```

use super::one::Producer;
use super::{Producers, RUNS_MAX, Run, SEQUENCE_MAX};
use crate::id::ProducerId;
use crate::record::{put_varint, take_varint};
use crate::state::StateError;
use std::collections::VecDeque;

impl Producers {
    /// Appends everything a restart needs, for a checkpoint. Refusals are not in it.
    pub fn snapshot(&self, out: &mut Vec<u8>) {
        put_varint(out, u64::from(self.last_index));
        put_varint(out, u64::from(self.epoch_floor));
        put_varint(out, self.durable_through);
        put_varint(out, self.by_index.len() as u64);
        let mut by_use: Vec<(&u32, &Producer)> = self.by_index.iter().collect();
        by_use.sort_unstable_by_key(|(index, producer)| (producer.used, **index));
        for (index, producer) in by_use {
            out.extend_from_slice(&producer.id.0.to_be_bytes());
            put_varint(out, u64::from(*index));
            put_varint(out, u64::from(producer.epoch));
            put_varint(out, producer.next);
            put_varint(out, producer.remembered_from);
            put_runs(out, &producer.runs);
        }
    }

    /// The table as it was when [`Producers::snapshot`] was taken.
    ///
    /// # Errors
    /// The bytes are no snapshot, or one that contradicts itself.
    pub fn restore(bytes: &[u8], producers_max: usize) -> Result<Producers, StateError> {
        let mut rest = bytes;
        let mut producers = Producers::new(producers_max);
        read(&mut producers, &mut rest)
            .filter(|()| rest.is_empty())
            .ok_or_else(|| StateError::Unreadable("the producers' table is damaged".to_owned()))?;
        Ok(producers)
    }
}

fn read(producers: &mut Producers, rest: &mut &[u8]) -> Option<()> {
    producers.last_index = take_u32(rest)?;
    producers.epoch_floor = take_u32(rest)?;
    producers.durable_through = take_varint(rest)?;
    for _ in 0..take_varint(rest)? {
        let (id, after) = rest.split_first_chunk::<16>()?;
        *rest = after;
        let id = ProducerId(u128::from_be_bytes(*id));
        let (index, epoch) = (take_u32(rest)?, take_u32(rest)?);
        let (next, remembered_from) = (take_varint(rest)?, take_varint(rest)?);
        let runs = take_runs(rest)?;
        let runs_end = runs.back().map_or(0, |run| run.last_sequence() + 1);
        if index > producers.last_index || next < runs_end.max(1) || next > SEQUENCE_MAX + 1 {
            return None;
        }
        // A checkpoint counts only once everything before it in the log is on disk.
        for run in &runs {
            producers.set_durable(run.last_number());
        }
        producers.clock += 1;
        producers.runs_total += runs.len();
        let mut producer = Producer::restored(id, epoch, next, remembered_from, runs);
        producer.used = producers.clock;
        let known = producers.by_index.insert(index, producer).is_some()
            | producers.by_id.insert(id, index).is_some();
        if known {
            return None;
        }
    }
    Some(())
}

fn put_runs(out: &mut Vec<u8>, runs: &VecDeque<Run>) {
    put_varint(out, runs.len() as u64);
    let (mut sequence, mut number, mut ms) = (0, 0, 0);
    for run in runs {
        put_varint(out, run.first_sequence - sequence);
        put_varint(out, u64::from(run.count));
        put_varint(out, zigzag(run.first_number.wrapping_sub(number)));
        put_varint(out, zigzag(run.accepted_ms.wrapping_sub(ms)));
        sequence = run.last_sequence() + 1;
        number = run.first_number.wrapping_add(u64::from(run.count));
        ms = run.accepted_ms;
    }
}

fn take_runs(rest: &mut &[u8]) -> Option<VecDeque<Run>> {
    let runs = take_varint(rest)?;
    if runs > RUNS_MAX as u64 {
        return None;
    }
    let mut taken = VecDeque::new();
    let (mut sequence, mut number, mut ms) = (0u64, 0u64, 0u64);
    for _ in 0..runs {
        let first_sequence = sequence.checked_add(take_varint(rest)?)?;
        let count = take_u32(rest)?;
        let first_number = number.wrapping_add(unzigzag(take_varint(rest)?));
        let accepted_ms = ms.wrapping_add(unzigzag(take_varint(rest)?));
        sequence = first_sequence.checked_add(u64::from(count))?;
        if count == 0 || first_sequence == 0 || sequence > SEQUENCE_MAX + 1 {
            return None;
        }
        number = first_number.wrapping_add(u64::from(count));
        ms = accepted_ms;
        taken.push_back(Run { first_sequence, count, first_number, accepted_ms });
    }
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take_varint(rest)?.try_into().ok()
}

/// Small differences of either sign to small numbers: 0, -1, 1, -2, … to 0, 1, 2, 3, …
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (((difference as i64) >> 63) as u64)
}

fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}
