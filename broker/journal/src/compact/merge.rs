//! The state changes over from the sources to the cold segment that stands for them.
//!
//! Every share of the sources that a peer has becomes one: counts are added, sets are moved. What the
//! copy left out was done; above the floor it stands in the set of settled numbers, so that a number
//! says the same before and after.

use super::super::held::Held;
use super::super::numbers::NumberSet;
use super::super::state::{Peer, Segment, State};
use foldhash::HashMap;
use restante_protocol::id::{MessageNumber, PeerId};

/// What a cold segment holds of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) total: u32,
    /// The newest, relative to the segment's first number.
    pub(super) last: u32,
}

impl State {
    /// Puts `cold` in the place of the segments in whose range of numbers it lies; or changes nothing
    /// and says so, should there be none or should anything be open that is not in the copy.
    pub(super) fn replace(&mut self, mut cold: Segment, shares: &HashMap<PeerId, Share>) -> bool {
        let Some(next) = cold.next else { return false };
        let range = cold.first..next;
        let complete = self.peers.iter().all(|(id, peer)| {
            let copied = shares.get(id).map_or(0, |share| share.total);
            let held = &peer.held[peer.places(&range)];
            let live: u64 =
                held.iter().map(|held| u64::from(held.open) + u64::from(held.parked().len())).sum();
            live <= u64::from(copied)
        });
        let from = self.segments.partition_point(|segment| segment.first < cold.first);
        let to = self.segments.partition_point(|segment| segment.first < next);
        if !complete || from == to || self.segments[from..to].iter().any(|s| s.next.is_none()) {
            return false;
        }
        for (id, peer) in &mut self.peers {
            cold.live += peer.merge(&range, shares.get(id).copied());
        }
        let dead = self.segments[from..to].iter().filter(|segment| segment.live == 0).count();
        self.dead = self.dead.saturating_sub(dead) + usize::from(cold.live == 0);
        self.segments.splice(from..to, [cold]);
        self.moves += 1;
        true
    }

    /// Bytes that the sets of settled numbers may come to if the segments in this range become one.
    pub(super) fn marks_of(&self, range: &Numbers) -> u64 {
        self.peers.values().map(|peer| peer.marks_of(range)).sum()
    }
}

type Numbers = std::ops::Range<MessageNumber>;

impl Peer {
    /// Which shares lie in a range of numbers.
    fn places(&self, range: &Numbers) -> std::ops::Range<usize> {
        let from = self.held.partition_point(|held| held.first < range.start);
        from..self.held.partition_point(|held| held.first < range.end)
    }

    /// Which segments in a range of numbers it is done with.
    fn done_in(&self, range: &Numbers) -> std::ops::Range<usize> {
        let from = self.done.partition_point(|(first, _)| *first < range.start);
        from..self.done.partition_point(|(first, _)| *first < range.end)
    }

    /// See [`State::marks_of`]: a bit for each number above the floor, if some of them are done and some
    /// are not.
    fn marks_of(&self, range: &Numbers) -> u64 {
        let held = &self.held[self.places(range)];
        let done = &self.done[self.done_in(range)];
        let is_mixed = !done.is_empty() || held.iter().any(|held| !held.settled().is_empty());
        if held.iter().all(Held::is_done) || !is_mixed {
            return 0;
        }
        let last = held.last().map(Held::last).max(done.last().map(|(_, last)| *last));
        let first = range.start.max(self.floor + 1);
        last.map_or(0, |last| last.saturating_sub(first).div_ceil(8))
    }

    /// Makes all shares within a range one, or none if nothing of it is live; returns how much is.
    fn merge(&mut self, range: &Numbers, share: Option<Share>) -> u64 {
        let first = range.start;
        let done_in = self.done_in(range);
        let from = done_in.start;
        let done: Vec<_> = self.done.drain(done_in).collect();
        let places = self.places(range);
        let last_done = done.last().map(|(_, last)| *last);
        let last_held = self.held[places.clone()].last().map(Held::last);
        let last = last_done.max(last_held).max(share.map(|share| first + u64::from(share.last)));
        let Some(last) = last else { return 0 };
        let floor = self.floor;
        if self.held[places.clone()].iter().all(Held::is_done) {
            // A pair of numbers says as much as any set.
            self.held.drain(places);
            if last > floor {
                self.done.insert(from, (first, last));
            }
            return 0;
        }
        let (mut settled, mut parked) = (NumberSet::default(), NumberSet::default());
        let relative = |number: MessageNumber| (number - first) as u32;
        for (from, to) in done.into_iter().filter(|(_, to)| *to > floor) {
            settled.insert_range(relative(from.max(floor + 1)), relative(to));
        }
        let (mut open, mut bytes, mut parked_bytes) = (0, 0, 0);
        for held in self.held.drain(places.clone()) {
            let shift = relative(held.first);
            open += held.open;
            bytes += held.bytes();
            parked_bytes += held.parked_bytes();
            settled.insert_all(held.settled(), shift);
            parked.insert_all(held.parked(), shift);
        }
        let mut merged = Held::new(first);
        merged.grow(last, share.map_or(0, |share| share.total), 0);
        merged.set_open(open, bytes);
        merged.set_marks(settled, parked, parked_bytes);
        let live = u64::from(merged.open) + u64::from(merged.parked().len());
        self.held.insert(places.start, merged);
        live
    }
}
