//! The publishes that are not yet confirmed: kept in order, sent within credit, sent again after a
//! reconnect, and each resolved exactly once. No I/O, no clock.
//!
//! A frame is encoded once, into the last chunk; sending copies it into the connection's write
//! buffer, and it stays in its chunk until it and everything before it is resolved.
//!
//! ```text
//!   push ──► waiting ──transmit (within credit)──► sent ──confirm / refuse──► resolved
//!               ▲                                   │
//!               └───────── connection lost ─────────┘
//! ```
//!
//! Order of calls: `handle_welcome`, then any of `push`, `transmit`, `handle_confirm`,
//! `handle_refuse`, `handle_credit` until `handle_disconnect`; then again. `push` works in between.

use crate::error::Violation;
use crate::options::BufferBounds;
use bytes::BytesMut;
use restante_protocol::control::Credit;
use restante_protocol::id::MessageId;
use std::collections::VecDeque;

/// Whom an outcome is for; chosen by the caller of [`Producer::push`].
pub(crate) type ReceiptKey = u32;

#[derive(Debug)]
pub(crate) struct Producer {
    /// Ascending by one from `base`; the first is never resolved.
    entries: VecDeque<Entry>,
    base: u64,
    /// Index of the first entry that has not been sent on this connection.
    unsent: usize,
    /// The lowest sequence that has not been sent on any connection.
    unused_from: u64,
    chunks: Chunks,
    retained_bytes: usize,
    bounds: BufferBounds,
    credit: Credit,
    in_flight: Credit,
    /// The node is stopping: what it refuses now is sent to its successor.
    holding: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    receipt: ReceiptKey,
    chunk: u32,
    start: u32,
    len: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Sent,
    Resolved,
}

/// The node knows sequences that this client never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdentityShared {
    pub(crate) decided: u64,
    pub(crate) sent: u64,
}

impl Producer {
    pub(crate) fn new(bounds: BufferBounds) -> Producer {
        Producer {
            entries: VecDeque::new(),
            base: 0,
            unsent: 0,
            unused_from: 0,
            chunks: Chunks::default(),
            retained_bytes: 0,
            bounds,
            credit: Credit::default(),
            in_flight: Credit::default(),
            holding: false,
        }
    }

    /// The sequence of the next publish.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// The lowest sequence that has never been sent; `None` before the first welcome.
    pub(crate) fn unused_from(&self) -> Option<u64> {
        Some(self.unused_from).filter(|sequence| *sequence > 0)
    }

    /// How many publishes have no outcome yet.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state != State::Resolved).count()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The lowest sequence without an outcome.
    pub(crate) fn oldest(&self) -> u64 {
        self.base
    }

    /// The lowest sequence that has not been sent on this connection.
    pub(crate) fn first_unsent(&self) -> u64 {
        self.base + self.unsent as u64
    }

    /// Whether a frame of this many bytes may be pushed. An empty buffer takes any.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.entries.is_empty()
            || (self.entries.len() < self.bounds.messages
                && self.retained_bytes.saturating_add(bytes) <= self.bounds.bytes)
    }

    /// Whether so much is free that waking those who wait for room is worth while.
    pub(crate) fn has_ample_room(&self) -> bool {
        self.entries.len() < self.bounds.messages - self.bounds.messages / 8
            && self.retained_bytes <= self.bounds.bytes - self.bounds.bytes / 8
    }

    /// Takes one publish: `encode` appends its frame, `bytes` long, under the sequence it is given.
    /// The caller has asked [`Producer::has_room`].
    pub(crate) fn push(
        &mut self,
        receipt: ReceiptKey,
        bytes: usize,
        encode: impl FnOnce(u64, &mut BytesMut),
    ) -> u64 {
        let sequence = self.next_sequence();
        let (chunk, buffer) = self.chunks.room_for(bytes);
        let start = buffer.len();
        encode(sequence, buffer);
        let len = buffer.len() - start;
        self.retained_bytes += len;
        // A chunk holds less than 2^32 bytes: it ends with the first frame that passes its size.
        let (start, len) = (start as u32, len as u32);
        self.entries.push_back(Entry { receipt, chunk, start, len, state: State::Waiting });
        sequence
    }

    /// Appends frames to `out` in ascending order while credit and `out_bytes_max` allow.
    pub(crate) fn transmit(&mut self, out: &mut BytesMut, out_bytes_max: usize) {
        while !self.holding && out.len() < out_bytes_max {
            let Some(entry) = self.entries.get_mut(self.unsent) else { break };
            if entry.state == State::Waiting {
                let bytes = self.in_flight.bytes + u64::from(entry.len);
                if self.in_flight.messages >= self.credit.messages || bytes > self.credit.bytes {
                    break;
                }
                out.extend_from_slice(self.chunks.frame(entry.chunk, entry.start, entry.len));
                entry.state = State::Sent;
                self.in_flight.messages += 1;
                self.in_flight.bytes = bytes;
            }
            self.unsent += 1;
        }
        self.unused_from = self.unused_from.max(self.base + self.unsent as u64);
    }

    /// Begins a conversation. On the first one the sequence starts where the node says.
    pub(crate) fn handle_welcome(
        &mut self,
        next_sequence: u64,
        credit: Credit,
        first: bool,
    ) -> Result<(), IdentityShared> {
        if first && self.entries.is_empty() {
            self.base = next_sequence;
            self.unused_from = next_sequence;
        } else if next_sequence > self.next_sequence() {
            return Err(IdentityShared { decided: next_sequence, sent: self.next_sequence() });
        }
        self.credit = credit;
        Ok(())
    }

    /// What was sent and not resolved waits again.
    pub(crate) fn handle_disconnect(&mut self) {
        for entry in self.entries.iter_mut().take(self.unsent) {
            if entry.state == State::Sent {
                entry.state = State::Waiting;
            }
        }
        self.unsent = 0;
        self.in_flight = Credit::default();
        self.credit = Credit::default();
        self.holding = false;
    }

    pub(crate) fn handle_credit(&mut self, credit: Credit) {
        self.credit = credit;
    }

    /// The node is stopping: send nothing more on this connection and keep what it has not confirmed.
    pub(crate) fn hold(&mut self) {
        self.holding = true;
    }

    /// A run of publishes is durable. `resolved` is told each one's receipt and id, once.
    pub(crate) fn handle_confirm(
        &mut self,
        first_sequence: u64,
        count: u32,
        first_id: MessageId,
        mut resolved: impl FnMut(ReceiptKey, MessageId),
    ) -> Result<(), Violation> {
        let end = first_sequence.checked_add(u64::from(count)).filter(|end| {
            // Every sequence of the run must have been sent on this connection.
            *end <= self.base + self.unsent as u64
        });
        let Some(end) = end else {
            return Err(Violation::UnknownSequence { sequence: first_sequence });
        };
        for sequence in first_sequence.max(self.base)..end {
            let id = first_id.plus(sequence - first_sequence);
            if let Some(receipt) = self.resolve(sequence) {
                resolved(receipt, id);
            }
        }
        self.release();
        Ok(())
    }

    /// One publish has its outcome. Returns its receipt, or nothing if it was resolved before.
    pub(crate) fn handle_refuse(&mut self, sequence: u64) -> Result<Option<ReceiptKey>, Violation> {
        if sequence >= self.base + self.unsent as u64 {
            return Err(Violation::UnknownSequence { sequence });
        }
        let receipt = self.resolve(sequence);
        self.release();
        Ok(receipt)
    }

    /// Gives up everything without an outcome, in order.
    pub(crate) fn abandon(&mut self, mut resolved: impl FnMut(ReceiptKey, u64)) {
        let base = self.base;
        self.base = self.next_sequence();
        for (sequence, entry) in (base..).zip(self.entries.drain(..)) {
            if entry.state != State::Resolved {
                resolved(entry.receipt, sequence);
            }
        }
        self.unsent = 0;
        self.in_flight = Credit::default();
        self.retained_bytes = 0;
        self.chunks = Chunks::default();
    }

    /// The caller has checked that `sequence` is below the first unsent one.
    fn resolve(&mut self, sequence: u64) -> Option<ReceiptKey> {
        let index = usize::try_from(sequence.checked_sub(self.base)?).ok()?;
        let entry = self.entries.get_mut(index)?;
        if entry.state != State::Sent {
            return None;
        }
        entry.state = State::Resolved;
        self.in_flight.messages -= 1;
        self.in_flight.bytes -= u64::from(entry.len);
        Some(entry.receipt)
    }

    /// Forgets what is resolved at the front.
    fn release(&mut self) {
        while let Some(entry) = self.entries.front().filter(|e| e.state == State::Resolved) {
            self.retained_bytes -= entry.len as usize;
            self.entries.pop_front();
            self.base += 1;
            self.unsent -= 1;
        }
        self.chunks.release(self.entries.front().map(|entry| entry.chunk));
    }
}

/// Bytes of a chunk; a larger frame has one of its own.
const CHUNK_BYTES: usize = 64 * 1024;
/// Empty chunks kept for reuse.
const SPARE_CHUNKS_MAX: usize = 4;

/// Encoded frames in order. Chunks are numbered (wrapping) from `first`.
#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<BytesMut>,
    first: u32,
    spare: Vec<BytesMut>,
}

impl Chunks {
    /// The chunk the next frame goes into, and its number.
    fn room_for(&mut self, bytes: usize) -> (u32, &mut BytesMut) {
        let full = self
            .chunks
            .back()
            .is_none_or(|last| !last.is_empty() && last.len().saturating_add(bytes) > CHUNK_BYTES);
        if full {
            let chunk = self.spare.pop().unwrap_or_else(|| BytesMut::with_capacity(CHUNK_BYTES));
            self.chunks.push_back(chunk);
        }
        let last = self.chunks.len() - 1;
        (self.first.wrapping_add(last as u32), &mut self.chunks[last])
    }

    fn frame(&self, chunk: u32, start: u32, len: u32) -> &[u8] {
        let chunk = &self.chunks[chunk.wrapping_sub(self.first) as usize];
        &chunk[start as usize..start as usize + len as usize]
    }

    /// Drops the chunks before `oldest`; all but an empty last one if nothing is kept.
    fn release(&mut self, oldest: Option<u32>) {
        let count = match oldest {
            Some(oldest) => oldest.wrapping_sub(self.first) as usize,
            None => self.chunks.len(),
        };
        for _ in 0..count {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            self.first = self.first.wrapping_add(1);
            if self.spare.len() < SPARE_CHUNKS_MAX && chunk.capacity() <= 2 * CHUNK_BYTES {
                chunk.clear();
                self.spare.push(chunk);
            }
        }
    }
}

#[cfg(test)]
mod tests;
