//! The peers as the router sees them, by id in constant time.

use crate::directory::{Marks, Seat};
use crate::peer::{EnqueuedMessage, Missed, Peer, Taken};
use actix::Addr;
use restante_protocol::id::PeerId;
use restante_protocol::refusal::Code;
use restante_protocol::status::Quota;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// One peer.
pub(super) struct Slot {
    /// The router's own clone: its place in the mailbox.
    pub(super) addr: Addr<Peer>,
    pub(super) marks: Arc<Marks>,
    messages_max: u64,
    bytes_max: u64,
    /// Whether nothing new is accepted for it; it has no room for a message then.
    draining: bool,
    /// Appended for it since the node started. Against what it says it has taken over, they tell what
    /// is on its way between here and its own count.
    appended: Taken,
    /// Accepted for it and waiting for their time: in its queue later.
    delayed: Taken,
    /// What it has of all that, when the batch being built began.
    has: Taken,
    /// Messages of the batch being built, and their bytes.
    gathered: Vec<EnqueuedMessage>,
    gathered_bytes: u64,
    /// How many messages the last batch had: the next one will likely have as many.
    usual: usize,
    /// The publish that last named this peer, so that naming it twice counts once.
    pub(super) named_by: u64,
    /// What a full mailbox kept from it.
    pub(super) missed: Missed,
    /// Whether it stands in the router's list of those to be told.
    pub(super) owed: bool,
}

/// Which of a peer's own bounds a message would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Messages {
        waiting: u64,
        max: u64,
    },
    Bytes {
        waiting: u64,
        more: u64,
        max: u64,
    },
    /// It takes nothing at all.
    Draining,
}

impl Over {
    pub(super) const fn code(self) -> Code {
        match self {
            Over::Messages { .. } | Over::Bytes { .. } => Code::PeerQuota,
            Over::Draining => Code::Draining,
        }
    }
}

impl Slot {
    pub(super) fn new(seat: &Seat, quota: Quota, draining: bool) -> Slot {
        let mut slot = Slot {
            addr: seat.addr.clone(),
            marks: Arc::clone(&seat.marks),
            messages_max: u64::MAX,
            bytes_max: u64::MAX,
            draining,
            appended: Taken::default(),
            delayed: Taken::default(),
            has: Taken::default(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            usual: 0,
            named_by: 0,
            missed: Missed::default(),
            owed: false,
        };
        slot.configure(quota, draining);
        slot
    }

    /// Takes over changed quotas; 0 stands for none.
    pub(super) fn configure(&mut self, quota: Quota, draining: bool) {
        let or_none = |max: u64| if max == 0 { u64::MAX } else { max };
        self.marks.set_quota(quota);
        self.draining = draining;
        self.messages_max = if draining { 0 } else { or_none(quota.messages) };
        self.bytes_max = or_none(quota.bytes);
    }

    /// Adds a message of the batch being built; whether it is the peer's first of that.
    #[inline]
    pub(super) fn gather(&mut self, message: EnqueuedMessage) -> bool {
        let is_first = self.gathered.is_empty();
        if is_first {
            self.gathered.reserve(self.usual);
        }
        self.gathered.push(message);
        self.gathered_bytes += u64::from(message.body_len);
        is_first
    }

    /// Takes what was gathered out of the slot; it has been appended, unless that failed.
    pub(super) fn take_gathered(&mut self, appended: bool) -> Vec<EnqueuedMessage> {
        let bytes = std::mem::take(&mut self.gathered_bytes);
        if appended {
            self.appended.add(self.gathered.len() as u64, bytes);
        }
        self.usual = self.gathered.len();
        std::mem::take(&mut self.gathered)
    }

    /// A delayed message was accepted for it.
    pub(super) fn hold(&mut self, bytes: u64) {
        self.delayed.add(1, bytes);
        self.has.add(1, bytes);
    }

    /// A delayed message is one no more.
    pub(super) fn let_go(&mut self, bytes: u64) {
        self.delayed.take(1, bytes);
    }

    /// Delayed messages accepted for it.
    pub(super) fn delayed(&self) -> u64 {
        self.delayed.messages
    }

    /// Whether a message of this size is over the peer's quota. Everything accepted for it and not
    /// settled counts, wherever it is at the moment; added up once per batch.
    pub(super) fn over_quota(&mut self, bytes: u64) -> Option<Over> {
        if self.gathered.is_empty() {
            self.measure();
        }
        let waiting = self.has.messages + self.gathered.len() as u64;
        if waiting >= self.messages_max {
            if self.draining {
                return Some(Over::Draining);
            }
            return Some(Over::Messages { waiting, max: self.messages_max });
        }
        let waiting = self.has.bytes + self.gathered_bytes;
        if waiting.saturating_add(bytes) > self.bytes_max {
            return Some(Over::Bytes { waiting, more: bytes, max: self.bytes_max });
        }
        None
    }

    /// Everything appended for it and not settled; without what is delayed.
    pub(super) fn kept(&mut self) -> u64 {
        self.measure();
        self.has.messages - self.delayed.messages
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Whether everything that was accepted for it has been delivered or parked, and nothing is delayed.
    /// What the router gathers or has on its way to disk is not counted as appended before it is.
    pub(super) fn is_delivered(&self) -> bool {
        let marks = &*self.marks;
        let is_counted = marks.counted.load(Relaxed) >= self.appended.messages;
        let is_empty = marks.waiting.load(Relaxed) == 0 && self.gathered.is_empty();
        is_counted && is_empty && self.delayed.messages == 0
    }

    fn measure(&mut self) {
        let marks = &*self.marks;
        let Taken { messages, bytes } = self.appended;
        let on_its_way = messages.saturating_sub(marks.counted.load(Relaxed));
        let has = marks.waiting.load(Relaxed) + marks.parked.load(Relaxed);
        self.has.messages = has + on_its_way + self.delayed.messages;
        let on_its_way = bytes.saturating_sub(marks.counted_bytes.load(Relaxed));
        let has = marks.waiting_bytes.load(Relaxed) + marks.parked_bytes.load(Relaxed);
        self.has.bytes = has + on_its_way + self.delayed.bytes;
    }
}

/// Ids that share a page.
const PAGE: usize = 256;

/// All peers. Ids ascend by one and are never reused, so a vector finds them; in pages, so that the
/// ids of those that have gone cost next to nothing.
#[derive(Default)]
pub(super) struct Slots {
    pages: Vec<Option<Box<Page>>>,
}

struct Page {
    slots: [Option<Box<Slot>>; PAGE],
    taken: usize,
}

impl Slots {
    #[inline]
    pub(super) fn get_mut(&mut self, id: PeerId) -> Option<&mut Slot> {
        let (page, place) = split(id);
        self.pages.get_mut(page)?.as_deref_mut()?.slots[place].as_deref_mut()
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Slot> {
        let (page, place) = split(id);
        self.pages.get(page)?.as_deref()?.slots[place].as_deref()
    }

    pub(super) fn insert(&mut self, id: PeerId, slot: Slot) {
        let (page, place) = split(id);
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, || None);
        }
        let empty = || Box::new(Page { slots: [const { None }; PAGE], taken: 0 });
        let page = self.pages[page].get_or_insert_with(empty);
        page.taken += usize::from(page.slots[place].replace(Box::new(slot)).is_none());
    }

    pub(super) fn remove(&mut self, id: PeerId) -> Option<Box<Slot>> {
        let (page, place) = split(id);
        let entry = self.pages.get_mut(page)?;
        let page = entry.as_deref_mut()?;
        let slot = page.slots[place].take()?;
        page.taken -= 1;
        if page.taken == 0 {
            *entry = None;
        }
        Some(slot)
    }
}

fn split(id: PeerId) -> (usize, usize) {
    (id.0 as usize / PAGE, id.0 as usize % PAGE)
}
