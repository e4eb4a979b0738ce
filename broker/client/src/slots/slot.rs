//! One attachment and what it holds.

use super::DETACHED;
use super::counts::Granted;
use super::types::{Item, Phase};
use crate::acks::Acks;
use crate::intake::Attachment;
use bytes::Bytes;
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A queue may pin so much, whatever it holds; beyond that, four times what it holds.
const PINNED_BYTES_MAX: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) attachment: Arc<Attachment>,
    pub(super) phase: Phase,
    pub(super) queue: VecDeque<Item>,
    pub(super) queue_bytes: usize,
    /// What the chunks hold that the bodies in the queue are part of.
    pub(super) pinned_bytes: usize,
    /// Where the chunk of the last body in the queue begins; 0 if that is a copy.
    chunk_at: usize,
    pub(super) last_tag: u64,
    pub(super) acks: Acks,
    /// What `Flushes::given` was with the latest ack of this slot.
    pub(super) given: u64,
    pub(super) dirty: bool,
    pub(super) grant: Option<Granted>,
    /// To be told to the reader.
    pub(super) trouble: Option<Refusal>,
    /// The last trouble since the slot was attached; the same is not told twice.
    pub(super) told: Option<Code>,
    /// Refused attaches in a row.
    pub(super) refusals: u32,
    pub(super) attached_before: bool,
    pub(super) told_end: bool,
}

impl Slot {
    pub(super) fn new(attachment: Arc<Attachment>, grant: Option<u64>) -> Slot {
        Slot {
            attachment,
            phase: Phase::Wanted { not_before: None },
            queue: VecDeque::new(),
            queue_bytes: 0,
            pinned_bytes: 0,
            chunk_at: 0,
            last_tag: 0,
            acks: Acks::default(),
            given: 0,
            dirty: false,
            grant: grant.map(|total| Granted { total, taken: 0, taken_before: 0, told: 0 }),
            trouble: None,
            told: None,
            refusals: 0,
            attached_before: false,
            told_end: false,
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.attachment.generation.load(Ordering::Acquire)
    }

    /// The attach goes out.
    pub(super) fn begin(&mut self, generation: u32) {
        self.phase = Phase::Asked { dropped: false };
        self.attachment.generation.store(generation, Ordering::Release);
        self.last_tag = 0;
        if let Some(granted) = &mut self.grant {
            granted.taken_before = granted.taken;
            granted.told = granted.of_generation();
        }
    }

    /// The body as it is to wait in the queue, and how much it pins beside the others there. A part of
    /// the chunk it came in, as long as the queue is most of what its chunks hold: else a few small
    /// bodies that nobody takes would pin all that has come between them for others.
    pub(super) fn keep(&mut self, body: &[u8], chunk: &Bytes) -> (Bytes, u32) {
        let chunk_at = chunk.as_ptr() as usize;
        if chunk_at == self.chunk_at && !self.queue.is_empty() {
            return (chunk.slice_ref(body), 0);
        }
        let is_thin = self.pinned_bytes > PINNED_BYTES_MAX.max(4 * self.queue_bytes);
        if is_thin && body.len() < chunk.len() / 4 {
            self.chunk_at = 0;
            return (Bytes::copy_from_slice(body), 0);
        }
        // A read is far shorter than that.
        let pins = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        self.chunk_at = chunk_at;
        self.pinned_bytes += pins as usize;
        (chunk.slice_ref(body), pins)
    }

    /// Nothing waits to be taken any more.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        (self.queue_bytes, self.pinned_bytes) = (0, 0);
    }

    /// A delivery is dropped, which has used up a tag of the grant and is not what was asked for.
    pub(super) fn drop_one(&mut self) {
        if let Some(granted) = &mut self.grant {
            granted.total = granted.total.saturating_add(1);
            granted.taken += 1;
        }
    }

    /// What came by this generation is void: the node delivers it again.
    pub(super) fn lose(&mut self) {
        self.attachment.generation.store(DETACHED, Ordering::Release);
        self.clear();
        self.acks.clear();
        self.dirty = false;
    }
}
