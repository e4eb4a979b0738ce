//! One attachment and what it holds.

use super::DETACHED;
use super::counts::Granted;
use super::types::{Item, Phase};
use crate::acks::Acks;
use crate::intake::Attachment;
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) attachment: Arc<Attachment>,
    pub(super) phase: Phase,
    pub(super) queue: VecDeque<Item>,
    pub(super) queue_bytes: usize,
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
        self.queue.clear();
        self.queue_bytes = 0;
        self.acks.clear();
        self.dirty = false;
    }
}
