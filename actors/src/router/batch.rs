//! A batch on its way to disk: first being built, then awaiting its ticket.

use super::calls::Call;
use super::delay::DelayedSlot;
use super::disposal::Copies;
use super::jobs::Step;
use super::release::Released;
use super::repeats::OldRepeat;
use super::{AdminEffect, OpenedProducer};
use crate::journal::{BatchRecord, Ticket};
use crate::link::SharedProducer;
use crate::peer::EnqueuedMessage;
use bytes::BytesMut;
use restante_protocol::admin::AdminDone;
use restante_protocol::frame::Refuse;
use restante_protocol::id::{MessageId, MessageNumber, PeerId};
use restante_protocol::record::{Placed, RecordKind};
use restante_protocol::refusal::Refusal;
use smallvec::SmallVec;
use std::sync::Arc;
use tokio::sync::oneshot;

/// What is said to whom once the batch is durable, in order.
pub(super) enum Outcome {
    /// Accepted publishes: consecutive sequences, consecutive records.
    Confirm {
        to: SharedProducer,
        producer: u32,
        first_sequence: u64,
        count: u32,
        /// Index of the first record within the batch.
        first_index: u32,
        /// Bytes of the publish frames.
        bytes: u64,
    },
    /// A publish that some of its receivers refused.
    Partial {
        to: SharedProducer,
        producer: u32,
        refuse: Box<Refuse>,
        /// The refusing receivers' places in the publish, as `refuse` lists them.
        places: SmallVec<[u16; 4]>,
        index: u32,
        bytes: u64,
    },
    /// A repeat of a publish that is still on its way to disk, in this batch or one before.
    Repeat {
        to: SharedProducer,
        sequence: u64,
        id: MessageId,
        /// Said instead of a confirm if some of its receivers refused.
        refused: Option<Box<Refuse>>,
        bytes: u64,
    },
    /// Repeats of publishes of which it has to be looked up who refused them.
    LookUp { to: SharedProducer, repeats: Vec<OldRepeat> },
    /// A producer identity was interned.
    Opened { reply: oneshot::Sender<Result<OpenedProducer, Refusal>>, opened: OpenedProducer },
    /// An operator's change.
    Administered {
        reply: oneshot::Sender<Result<AdminDone, Refusal>>,
        done: AdminDone,
        /// What the change does; none if everything is so already.
        effect: Option<Box<AdminEffect>>,
    },
    /// Copies of a removed peer's messages, for another: the originals are settled now.
    HandedOver(Box<Copies>),
    /// Copies of delayed messages whose time has come: the originals are settled now.
    Released(Box<Released>),
    /// A job goes on.
    OfJob(Box<Step>),
}

/// A call in the batch whose end its producer awaits.
pub(super) struct CallSlot {
    pub(super) index: u32,
    pub(super) call: Call,
}

/// Records being gathered for the next append.
#[derive(Default)]
pub(super) struct Building {
    pub(super) bytes: BytesMut,
    pub(super) records: Vec<BatchRecord>,
    /// Shared by every message of the batch; 0 while it is empty.
    pub(super) accepted_ms: u64,
    pub(super) outcomes: Vec<Outcome>,
    /// Messages, counted per receiver.
    pub(super) deliveries: u64,
    /// Peers whose slots gather messages of this batch.
    pub(super) touched: Vec<PeerId>,
    pub(super) calls: Vec<CallSlot>,
    pub(super) delayed: Vec<DelayedSlot>,
}

impl Building {
    /// An empty one with room for about as much as `last` has: under load batches are alike, and one
    /// that grows from nothing copies all it has at each doubling. After a large one the room shrinks
    /// by half from batch to batch.
    pub(super) fn after(last: &Building) -> Building {
        let room = |len: usize, capacity: usize| (len + len / 8).max(capacity / 2);
        Building {
            bytes: BytesMut::with_capacity(room(last.bytes.len(), last.bytes.capacity())),
            records: Vec::with_capacity(room(last.records.len(), last.records.capacity())),
            ..Building::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.outcomes.is_empty()
    }

    /// Index the next record will have.
    pub(super) fn next_index(&self) -> u32 {
        u32::try_from(self.records.len()).unwrap_or(u32::MAX)
    }

    /// Notes a record that was appended to the bytes. Batches stay far below 4 GiB.
    pub(super) fn place(&mut self, kind: RecordKind, placed: Placed) {
        self.records.push(BatchRecord {
            kind,
            offset: placed.offset as u32,
            body_len: placed.body_bytes as u32,
            payload_at: placed.payload_at as u32,
        });
    }

    /// Adds an accepted publish to the confirms, to the run before it if it continues that.
    pub(super) fn confirm(
        &mut self,
        to: &SharedProducer,
        producer: u32,
        sequence: u64,
        index: u32,
        frame_bytes: u64,
    ) {
        if let Some(Outcome::Confirm {
            to: last, first_sequence, count, first_index, bytes, ..
        }) = self.outcomes.last_mut()
            && *first_sequence + u64::from(*count) == sequence
            && *first_index + *count == index
            && Arc::ptr_eq(last, to)
        {
            *count += 1;
            *bytes += frame_bytes;
            return;
        }
        self.outcomes.push(Outcome::Confirm {
            to: Arc::clone(to),
            producer,
            first_sequence: sequence,
            count: 1,
            first_index: index,
            bytes: frame_bytes,
        });
    }
}

/// A batch that has been appended and is not yet durable.
pub(super) struct Pending {
    pub(super) ticket: Ticket,
    pub(super) first_number: MessageNumber,
    pub(super) accepted_ms: u64,
    /// How many records it has.
    pub(super) records: u32,
    /// Bytes of its records, for the bound on what is in hand.
    pub(super) bytes: usize,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) hand_offs: Vec<(PeerId, Vec<EnqueuedMessage>)>,
    pub(super) delayed: Vec<DelayedSlot>,
}
