//! The journal tested as a whole.

mod answers;
mod backup;
mod checkpoints;
mod commit;
mod compact;
mod crash;
mod damage;
mod depth;
mod disk;
mod flips;
mod forgetting;
mod format;
mod full;
mod history;
mod indexes;
mod lost;
mod model;
mod offline;
mod parked;
mod reopen;
mod rest;
mod rig;
mod settles;
mod sick;
mod stalled;
mod strange;
mod stress;
mod threads;
mod tight;
mod unread;

use super::Options;
use bytes::BytesMut;
use restante_actors::journal::{Batch, BatchRecord};
use restante_protocol::id::{NodeTag, PeerId};
use restante_protocol::record::{MESSAGE_FIXED_BYTES, RECORD_HEADER_BYTES, RecordKind};
use std::time::Duration;

/// A message to be put into a batch.
pub(super) struct Draft<'a> {
    pub(super) producer: u32,
    pub(super) sequence: u64,
    pub(super) receivers: &'a [u32],
    pub(super) body: &'a [u8],
}

pub(super) fn push_message(batch: &mut Batch, draft: &Draft<'_>) {
    let offset = batch.bytes.len() as u32;
    batch.bytes.resize(batch.bytes.len() + RECORD_HEADER_BYTES, 0);
    let start = batch.bytes.len();
    batch.bytes.extend_from_slice(&1_700_000_000_000u64.to_be_bytes());
    batch.bytes.extend_from_slice(&draft.producer.to_be_bytes());
    batch.bytes.extend_from_slice(&draft.sequence.to_be_bytes());
    batch.bytes.extend_from_slice(&(draft.receivers.len() as u16).to_be_bytes());
    batch.bytes.extend_from_slice(&[0, 0]);
    for receiver in draft.receivers {
        batch.bytes.extend_from_slice(&receiver.to_be_bytes());
    }
    batch.bytes.extend_from_slice(draft.body);
    let payload_at = (MESSAGE_FIXED_BYTES + 4 * draft.receivers.len()) as u32;
    let body_len = (batch.bytes.len() - start) as u32;
    let kind = RecordKind::Message;
    batch.records.push(BatchRecord { kind, offset, body_len, payload_at });
}

pub(super) fn push_admin(batch: &mut Batch, body: &[u8]) {
    let offset = batch.bytes.len() as u32;
    batch.bytes.resize(batch.bytes.len() + RECORD_HEADER_BYTES, 0);
    batch.bytes.extend_from_slice(body);
    let body_len = body.len() as u32;
    let kind = RecordKind::Admin;
    batch.records.push(BatchRecord { kind, offset, body_len, payload_at: body_len });
}

/// A batch of messages of producer 1, one for each body.
pub(super) fn batch_of(first_sequence: u64, receivers: &[u32], bodies: &[&[u8]]) -> Batch {
    let mut batch = Batch { bytes: BytesMut::new(), records: Vec::new() };
    for (sequence, body) in (first_sequence..).zip(bodies) {
        push_message(&mut batch, &Draft { producer: 1, sequence, receivers, body });
    }
    batch
}

pub(super) fn small(segment_bytes: u64) -> Options {
    Options {
        segment_bytes,
        checkpoint_bytes: segment_bytes * 2,
        // What is compacted when does not hang on how fast a test runs.
        cooling: Duration::ZERO,
        seed: 7,
        node: NodeTag(3),
        ..Options::default()
    }
}

pub(super) const A: PeerId = PeerId(1);
pub(super) const B: PeerId = PeerId(2);
