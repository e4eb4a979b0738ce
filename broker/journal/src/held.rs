//! A peer's share of one segment: counts, and what was settled or parked out of order.
//!
//! There is one for each segment in which a peer has something open, whatever the depth of its queue,
//! so a share is kept to 32 bytes: the sets live beside it, and only where acks do not come in order.

use super::numbers::NumberSet;
use super::refs::{Ref, Refs};
use super::state::Budget;
use restante_actors::journal::{Lane, Read};
use restante_protocol::id::MessageNumber;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// The segment's first number.
    pub(super) first: MessageNumber,
    /// The peer's newest message in it, relative to `first`.
    last: u32,
    /// All messages of the peer in it.
    pub(super) total: u32,
    /// Open ones.
    pub(super) open: u32,
    /// See [`Held::bytes`]. A segment has at most a GiB.
    bytes: u32,
    marks: Option<Box<Marks>>,
}

/// Numbers relative to the segment's first.
#[derive(Clone, Debug, Default)]
struct Marks {
    /// Settled above the floor.
    settled: NumberSet,
    parked: NumberSet,
    /// See [`Held::parked_bytes`].
    parked_bytes: u64,
}

static UNMARKED: Marks =
    Marks { settled: NumberSet::EMPTY, parked: NumberSet::EMPTY, parked_bytes: 0 };

impl Held {
    /// A share of the segment that begins with `first`, without a message.
    pub(super) fn new(first: MessageNumber) -> Held {
        Held { first, ..Held::default() }
    }

    /// Adds open messages up to `last`, above all others.
    pub(super) fn grow(&mut self, last: MessageNumber, count: u32, bytes: u64) {
        self.last = self.relative(last);
        self.total += count;
        self.open += count;
        self.bytes = self.bytes.saturating_add(small(bytes));
    }

    /// Takes over what a checkpoint or a count says of it.
    pub(super) fn set_open(&mut self, open: u32, bytes: u64) {
        self.open = open;
        self.bytes = small(bytes);
    }

    /// The peer's newest message in the segment.
    pub(super) fn last(&self) -> MessageNumber {
        self.first + u64::from(self.last)
    }

    /// Bytes of the open messages' bodies: exact when none or all are open, else by their average.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }

    /// Bytes of the parked messages' bodies, by the average of those that were open.
    pub(super) fn parked_bytes(&self) -> u64 {
        self.marks().parked_bytes
    }

    pub(super) fn settled(&self) -> &NumberSet {
        &self.marks().settled
    }

    pub(super) fn parked(&self) -> &NumberSet {
        &self.marks().parked
    }

    fn marks(&self) -> &Marks {
        self.marks.as_deref().unwrap_or(&UNMARKED)
    }

    fn marks_mut(&mut self) -> &mut Marks {
        self.marks.get_or_insert_default()
    }

    pub(super) fn set_marks(&mut self, settled: NumberSet, parked: NumberSet, parked_bytes: u64) {
        self.marks = Some(Box::new(Marks { settled, parked, parked_bytes }));
        self.forget_empty_marks();
    }

    fn forget_empty_marks(&mut self) {
        if self.settled().is_empty() && self.parked().is_empty() {
            self.marks = None;
        }
    }

    /// A number of this segment, counted from its first.
    pub(super) fn relative(&self, number: MessageNumber) -> u32 {
        // Numbers within a segment are fewer than its bytes.
        number.saturating_sub(self.first) as u32
    }

    /// Notes a number as settled above the floor; `false` if it was.
    pub(super) fn mark_settled(&mut self, relative: u32) -> bool {
        self.marks_mut().settled.insert(relative)
    }

    /// Notes an open number as parked, its bytes those of an open one; `false` if it was. The counts of
    /// what is open are the caller's.
    pub(super) fn mark_parked(&mut self, relative: u32) -> bool {
        let bytes = u64::from(self.bytes) / u64::from(self.open.max(1));
        let marks = self.marks_mut();
        let is_new = marks.parked.insert(relative);
        marks.parked_bytes += if is_new { bytes } else { 0 };
        is_new
    }

    /// `false` if the number was not parked.
    pub(super) fn unmark_parked(&mut self, relative: u32) -> bool {
        let Some(marks) = &mut self.marks else { return false };
        let parked = u64::from(marks.parked.len());
        let was = marks.parked.remove(relative);
        if was {
            marks.parked_bytes -= marks.parked_bytes / parked.max(1);
        }
        self.forget_empty_marks();
        was
    }

    /// The floor covers everything up to `floor`.
    pub(super) fn raise_floor(&mut self, floor: MessageNumber) {
        let through = self.relative(floor.min(self.last()));
        let Some(marks) = &mut self.marks else { return };
        marks.settled.drop_through(through);
        self.forget_empty_marks();
    }

    pub(super) fn is_done(&self) -> bool {
        self.open == 0 && self.parked().is_empty()
    }

    /// Whether anything in it is other than it was when it was written.
    pub(super) fn is_touched(&self) -> bool {
        self.open != self.total || !self.settled().is_empty()
    }

    /// Marks `numbers`, all of this segment, as settled; returns how many were open and how many
    /// parked. `floor` is where the floor will be, `old_floor` where it is.
    pub(super) fn settle(
        &mut self,
        numbers: &[MessageNumber],
        old_floor: MessageNumber,
        floor: MessageNumber,
        above: &mut Vec<MessageNumber>,
    ) -> (u32, u32) {
        if self.marks.is_none() && numbers.last().is_some_and(|last| *last <= floor) {
            // The usual case: in order, so that they are those that the floor comes to cover.
            let is_before = |number: &MessageNumber| *number < self.first || *number <= old_floor;
            let from = numbers.partition_point(is_before);
            return (((numbers.len() - from) as u32).min(self.open), 0);
        }
        let (mut settled, mut unparked) = (0, 0);
        for &number in numbers {
            if number < self.first {
                continue;
            }
            let relative = self.relative(number);
            if self.unmark_parked(relative) {
                unparked += 1;
                if let Err(place) = above.binary_search(&number) {
                    above.insert(place, number);
                }
                if number > floor {
                    self.mark_settled(relative);
                }
            } else if number > floor {
                settled += u32::from(self.mark_settled(relative));
            } else if number > old_floor {
                settled += u32::from(!self.settled().contains(relative));
            }
        }
        (settled.min(self.open), unparked)
    }

    /// Takes `count` messages out of the open ones; returns their share of the bytes.
    pub(super) fn give_up(&mut self, count: u32) -> u64 {
        if self.open == 0 {
            return 0;
        }
        let bytes = u64::from(self.bytes) * u64::from(count) / u64::from(self.open);
        self.open -= count;
        self.bytes -= bytes as u32;
        bytes
    }

    /// Counts the open messages anew, by the list of all.
    pub(super) fn count(&mut self, floor: MessageNumber, refs: Option<&Refs>) {
        let Some(refs) = refs else { return };
        let from = floor.saturating_add(1).saturating_sub(self.first);
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        let marks = self.marks();
        let open = refs.from(from).filter(|entry| {
            !marks.settled.contains(entry.number) && !marks.parked.contains(entry.number)
        });
        let open = open.count() as u32;
        let share = |count: u32| refs.body_bytes * u64::from(count) / u64::from(self.total.max(1));
        let (bytes, parked_bytes) = (share(open), share(self.parked().len()));
        self.set_open(open, bytes);
        if let Some(marks) = &mut self.marks {
            marks.parked_bytes = parked_bytes;
        }
    }

    /// What of `refs` a read gets, and up to where it has looked.
    pub(super) fn pick(
        &self,
        refs: &Refs,
        read: &Read,
        after: MessageNumber,
        budget: Budget,
    ) -> (Vec<Ref>, MessageNumber) {
        let mut picked = Vec::new();
        let mut bytes = 0;
        let mut take = |entry: Ref| {
            let full = picked.len() >= budget.messages
                || (!picked.is_empty() && bytes + entry.length as usize > budget.bytes);
            if !full {
                bytes += entry.length as usize;
                picked.push(entry);
            }
            !full
        };
        let mut through = self.last().min(read.through);
        let from = if after < self.first { 0 } else { self.relative(after + 1) };
        let Marks { settled, parked, .. } = self.marks();
        match read.lane {
            Lane::Open => {
                for entry in refs.from(from) {
                    let number = self.first + u64::from(entry.number);
                    if number > read.through {
                        break;
                    }
                    let open = (settled.is_empty() || !settled.contains(entry.number))
                        && (parked.is_empty() || !parked.contains(entry.number));
                    if open && !take(entry) {
                        through = number - 1;
                        break;
                    }
                }
            }
            Lane::Parked => {
                for number in parked.iter().filter(|number| *number >= from) {
                    if self.first + u64::from(number) > read.through {
                        break;
                    }
                    let entry = refs.from(number).next().filter(|entry| entry.number == number);
                    if entry.is_some_and(|entry| !take(entry)) {
                        through = self.first + u64::from(number) - 1;
                        break;
                    }
                }
            }
        }
        (picked, through)
    }
}

fn small(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_small_and_marks_cost_only_where_they_are() {
        assert!(size_of::<Held>() <= 32, "{} bytes", size_of::<Held>());
        let mut held = Held::new(100);
        held.grow(109, 10, 1_000);
        let mut above = Vec::new();
        assert_eq!(held.settle(&[100, 101], 99, 101, &mut above), (2, 0));
        assert_eq!(held.give_up(2), 200);
        assert!(held.marks.is_none(), "acks in order leave no marks");
        assert_eq!(held.settle(&[104, 104], 101, 101, &mut above), (1, 0));
        assert!(held.settled().contains(4) && held.mark_parked(5));
        held.raise_floor(104);
        assert!(held.marks.is_some(), "one is parked");
        assert!(!held.mark_parked(5), "it is");
        assert_eq!((held.parked_bytes(), held.give_up(1)), (100, 100), "no byte more, none less");
        assert!(held.unmark_parked(5) && !held.unmark_parked(5));
        assert!(held.marks.is_none());
        held.open += 1;
        held.bytes += 100;
        assert_eq!((held.open, held.bytes(), held.last()), (8, 800, 109));
    }
}
