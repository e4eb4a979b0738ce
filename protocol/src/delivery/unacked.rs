//! What is in flight on the current link: one slot per tag, without the body.
//!
//! Tags are dense, so a slot is found by subtraction, and sent times ascend with them, so the oldest
//! slot carries the one deadline. A slot that is done leaves a gap until the front has caught up.
//! Where the front does not catch up because one message goes unanswered while thousands behind it
//! are acked, it moves to `stragglers`, so that memory follows the window and not the traffic.

use super::expiry::Left;
use crate::id::MessageNumber;
use crate::message::KeyHash;
use crate::time::Time;
use core::time::Duration;
use std::collections::vec_deque::Drain;
use std::collections::{BTreeMap, VecDeque};

/// Tags remembered after their message was found late, so that an ack that comes after all still
/// counts. The oldest is forgotten first; that costs a redelivery, no more.
const SUPERSEDED_MAX: usize = 8_192;
/// Shortest and usual length, as a multiple of what is in flight at most, of the dense run of slots.
const SPAN_MIN: usize = 1_024;
const SPAN_WINDOWS: usize = 4;

/// One delivery in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) number: MessageNumber,
    pub(super) sent_at: Time,
    pub(super) accepted_ms: u64,
    pub(super) key: Option<KeyHash>,
    pub(super) bytes: u32,
    pub(super) line: Line,
    /// How long it has left to be sent again.
    pub(super) left: Left,
}

/// How a message came into flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Straight from the send queue, its first attempt: the slot is all there is.
    Straight,
    /// Out of line: [`super::retries::Retries`] knows the rest.
    Retry,
    /// Answered or given up; a gap.
    Done,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Unacked {
    slots: VecDeque<Slot>,
    /// Tag of the first slot.
    base: u64,
    /// No straight slot has a tag below this one.
    straight_from: u64,
    stragglers: BTreeMap<u64, Slot>,
    superseded: BTreeMap<u64, MessageNumber>,
    live: u32,
    live_straight: u32,
    bytes: u64,
    /// In flight per key; kept under strict order alone.
    keys: Option<BTreeMap<Option<KeyHash>, u32>>,
}

impl Unacked {
    pub(super) fn new(count_keys: bool) -> Unacked {
        Unacked {
            slots: VecDeque::new(),
            base: 1,
            straight_from: 1,
            stragglers: BTreeMap::new(),
            superseded: BTreeMap::new(),
            live: 0,
            live_straight: 0,
            bytes: 0,
            keys: count_keys.then(BTreeMap::new),
        }
    }

    /// Starts the tags of a new link. Nothing is in flight.
    pub(super) fn open(&mut self, first_tag: u64) {
        debug_assert_eq!(self.live, 0, "what was in flight on the old link has been drained");
        self.base = first_tag;
        self.straight_from = first_tag;
    }

    /// In flight.
    #[inline]
    pub(super) fn live(&self) -> u32 {
        self.live
    }

    /// In flight, and described by their slots alone.
    pub(super) fn live_straight(&self) -> u32 {
        self.live_straight
    }

    /// Bytes in flight.
    #[inline]
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first tag not found in the dense run any more.
    #[inline]
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// The tag the next delivery gets.
    #[inline]
    pub(super) fn next_tag(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// A delivery leaves. Inlined by force: the slot is then written where it stays, and not read
    /// back from the stack before its halves have been stored (a third of the cost of a transmit).
    #[inline(always)]
    pub(super) fn push(&mut self, slot: Slot, window: u32) {
        self.live += 1;
        self.live_straight += u32::from(slot.line == Line::Straight);
        self.bytes += u64::from(slot.bytes);
        if self.keys.is_some() {
            self.count_key(slot.key);
        }
        self.slots.push_back(slot);
        if self.slots.len() > SPAN_MIN && self.slots.len() > SPAN_WINDOWS * window as usize {
            self.shorten(window);
        }
    }

    /// Takes the slots from the first up to `last_tag` or the first that is not straight. Under strict
    /// order none: there each frees its key.
    #[inline]
    pub(super) fn take_straight_run(&mut self, last_tag: u64) -> Drain<'_, Slot> {
        let in_range = usize::try_from((last_tag - self.base).saturating_add(1));
        let limit = if self.keys.is_some() { 0 } else { in_range.unwrap_or(usize::MAX) };
        let mut run = 0_usize;
        for slot in self.slots.iter().take(limit) {
            if slot.line != Line::Straight {
                break;
            }
            run += 1;
            self.bytes -= u64::from(slot.bytes);
        }
        self.base += run as u64;
        self.live -= run as u32;
        self.live_straight -= run as u32;
        self.slots.drain(..run)
    }

    /// Takes the slot of `tag`, if it is in flight.
    pub(super) fn take(&mut self, tag: u64) -> Option<Slot> {
        let slot = if tag >= self.base {
            let slot = self.slots.get_mut(usize::try_from(tag - self.base).ok()?)?;
            let taken = *slot;
            slot.line = Line::Done;
            taken
        } else {
            self.stragglers.remove(&tag)?
        };
        self.account_gone(&slot);
        (slot.line != Line::Done).then_some(slot)
    }

    /// Restores what [`Unacked::take`] leaves open: the first slot is in flight, and the first
    /// straight one is known. Call it after the last of a series.
    #[inline]
    pub(super) fn settle_front(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.line == Line::Done) {
            self.slots.pop_front();
            self.base += 1;
        }
        self.straight_from = self.straight_from.max(self.base);
        while let Some(slot) = self.slots.get((self.straight_from - self.base) as usize) {
            if slot.line == Line::Straight {
                break;
            }
            self.straight_from += 1;
        }
    }

    /// Takes the oldest delivery if it was sent at or before `limit`, and keeps its tag in mind.
    pub(super) fn take_sent_by(&mut self, limit: Time) -> Option<Slot> {
        let tag = self.oldest().filter(|(_, slot)| slot.sent_at <= limit)?.0;
        let slot = self.take(tag)?;
        self.settle_front();
        if self.superseded.len() >= SUPERSEDED_MAX {
            self.superseded.pop_first();
        }
        self.superseded.insert(tag, slot.number);
        Some(slot)
    }

    /// When the oldest delivery becomes late.
    pub(super) fn late_at(&self, timeout: Duration) -> Option<Time> {
        self.oldest().map(|(_, slot)| slot.sent_at + timeout)
    }

    /// Takes the lowest tag of `first..=last` that was left behind by the dense run, with what is
    /// known of it: the slot, or the number alone if its delivery has been given up.
    pub(super) fn take_old(&mut self, first: u64, last: u64) -> Option<Old> {
        if let Some((&tag, _)) = self.stragglers.range(first..=last).next() {
            let slot = self.take(tag)?;
            return Some(Old::InFlight(slot));
        }
        let (&tag, _) = self.superseded.range(first..=last).next()?;
        self.superseded.remove(&tag).map(Old::GivenUp)
    }

    /// The message whose delivery under this tag was given up.
    pub(super) fn given_up(&self, tag: u64) -> Option<MessageNumber> {
        self.superseded.get(&tag).copied()
    }

    /// Whether tags outside the dense run mean anything.
    #[inline]
    pub(super) fn remembers_old(&self) -> bool {
        !self.stragglers.is_empty() || !self.superseded.is_empty()
    }

    /// Takes everything: the link is gone.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Slot> + use<> {
        self.base = self.next_tag();
        self.straight_from = self.base;
        self.superseded.clear();
        self.live = 0;
        self.live_straight = 0;
        self.bytes = 0;
        if let Some(keys) = &mut self.keys {
            keys.clear();
        }
        let stragglers = core::mem::take(&mut self.stragglers);
        let slots = core::mem::take(&mut self.slots);
        stragglers.into_values().chain(slots).filter(|slot| slot.line != Line::Done)
    }

    /// The oldest straight delivery in flight: no straight one has a lower number.
    pub(super) fn first_straight(&self) -> Option<&Slot> {
        let is_straight = |slot: &&Slot| slot.line == Line::Straight;
        let dense = || self.slots.range((self.straight_from - self.base) as usize..);
        self.stragglers.values().find(is_straight).or_else(|| dense().find(is_straight))
    }

    /// Every delivery in flight with its tag.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Slot)> {
        let old = self.stragglers.iter().map(|(tag, slot)| (*tag, slot));
        let dense = (self.base..).zip(&self.slots);
        old.chain(dense).filter(|(_, slot)| slot.line != Line::Done)
    }

    /// Every delivery in flight under the tags from `first` to `last`, which is not below it.
    pub(super) fn within(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Slot)> {
        let end = self.slots.len() as u64;
        let from = first.saturating_sub(self.base).min(end);
        let to = last.saturating_add(1).saturating_sub(self.base).min(end);
        let dense = (self.base + from..).zip(self.slots.range(from as usize..to as usize));
        let old = self.stragglers.range(first..=last).map(|(tag, slot)| (*tag, slot));
        old.chain(dense).filter(|(_, slot)| slot.line != Line::Done)
    }

    /// Whether a message of this key is in flight; known under strict order alone.
    pub(super) fn is_key_busy(&self, key: Option<KeyHash>) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.contains_key(&key))
    }

    /// Begins or ends to count keys.
    pub(super) fn count_keys(&mut self, count: bool) {
        self.keys = count.then(BTreeMap::new);
        let Some(mut keys) = self.keys.take() else { return };
        for (_, slot) in self.iter() {
            *keys.entry(slot.key).or_insert(0) += 1;
        }
        self.keys = Some(keys);
    }

    /// Gives back what an idle peer does not need.
    pub(super) fn trim(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        }
    }

    fn oldest(&self) -> Option<(u64, &Slot)> {
        let straggler = self.stragglers.first_key_value().map(|(tag, slot)| (*tag, slot));
        straggler.or_else(|| self.slots.front().map(|slot| (self.base, slot)))
    }

    fn account_gone(&mut self, slot: &Slot) {
        if slot.line == Line::Done {
            return;
        }
        self.live -= 1;
        self.live_straight -= u32::from(slot.line == Line::Straight);
        self.bytes -= u64::from(slot.bytes);
        if let Some(keys) = &mut self.keys
            && let Some(count) = keys.get_mut(&slot.key)
        {
            *count -= 1;
            if *count == 0 {
                keys.remove(&slot.key);
            }
        }
    }

    #[cold]
    fn count_key(&mut self, key: Option<KeyHash>) {
        if let Some(keys) = &mut self.keys {
            *keys.entry(key).or_insert(0) += 1;
        }
    }

    /// Moves the front aside until the dense run is short again. Each slot moves once.
    #[cold]
    fn shorten(&mut self, window: u32) {
        let span = SPAN_MIN.max(SPAN_WINDOWS * window as usize) / 2;
        while self.slots.len() > span {
            let Some(slot) = self.slots.pop_front() else { break };
            if slot.line != Line::Done {
                self.stragglers.insert(self.base, slot);
            }
            self.base += 1;
        }
        self.settle_front();
    }
}

/// What a tag outside the dense run stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Old {
    /// Still waited for.
    InFlight(Slot),
    /// Found late: the message has been or will be sent under another tag.
    GivenUp(MessageNumber),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_within_a_range_is_found_wherever_it_is_kept() {
        const WINDOW: u32 = 1;
        let mut unacked = Unacked::new(false);
        unacked.open(1);
        for tag in 1..=3_000 {
            let slot = Slot {
                number: 10_000 + tag,
                sent_at: Time::ZERO,
                accepted_ms: 0,
                key: None,
                bytes: 1,
                line: Line::Straight,
                left: Left::default(),
            };
            unacked.push(slot, WINDOW);
            // The first hundred go unanswered, and of the others every third.
            if tag > 100 && tag % 3 != 0 {
                unacked.take(tag);
            }
        }
        assert!(!unacked.stragglers.is_empty() && !unacked.slots.is_empty());
        let base = unacked.base();
        for (first, last) in
            [(1, 3_000), (50, 60), (base - 9, base + 9), (base, base), (2_999, 3_000)]
        {
            let found: Vec<u64> = unacked.within(first, last).map(|(tag, _)| tag).collect();
            let all = unacked.iter().map(|(tag, _)| tag);
            let expected: Vec<u64> = all.filter(|tag| (first..=last).contains(tag)).collect();
            assert_eq!(found, expected, "{first} to {last}");
        }
    }
}
