//! What the journal knows in memory: the segments, and of each peer how much of which segment is
//! still open. Kept under one lock, touched once per batch, never once per message of a backlog.
//!
//! A peer holds one [`Held`] for each segment with messages of its own that are not done: counts, and
//! the few numbers settled out of order. Positions stay in the segments' indexes. So memory grows
//! with segments times peers (32 bytes each), not with messages. What is done settle by settle takes
//! no longer the more segments there are: shares are found by bisection, and gone through only by a
//! checkpoint.
//!
//! A message counts from the moment it is durable. It is *open* until it is settled or parked; a
//! parked one keeps its segment until it is settled.

use super::held::Held;
use super::index::SegmentIndex;
use super::refs::{Messages, Ref, Refs};
use foldhash::HashMap;
use restante_actors::journal::{Backlog, Lane, Read};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::SettleRecord;
use std::sync::Arc;

/// Everything known in memory.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) peers: HashMap<PeerId, Peer>,
    /// Ascending; the last one is active.
    pub(super) segments: Vec<Segment>,
    /// One past the last durable record.
    pub(super) durable_next: MessageNumber,
    /// Sealed segments of which nothing is live.
    pub(super) dead: usize,
    /// Whether what is live of a sealed segment has halved since someone asked: it may be worth
    /// copying.
    pub(super) thinner: bool,
    /// How often segments have gone or have been made one: what named them before names what may not
    /// be there.
    pub(super) moves: u64,
    /// Stretches of numbers whose records are damaged, ascending: first, and one past the last.
    pub(super) lost: Vec<(MessageNumber, MessageNumber)>,
}

/// Stretches of damage that are remembered; the oldest is forgotten first.
const LOST_MAX: usize = 256;

/// One segment of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    /// One past its last number, once it is sealed.
    pub(super) next: Option<MessageNumber>,
    /// Open and parked messages in it, once for each receiver.
    pub(super) live: u64,
    /// All there were when it was sealed.
    pub(super) total: u64,
    /// Where its records end, once it is sealed.
    pub(super) data_end: u64,
    /// Bytes it occupies.
    pub(super) file_bytes: u64,
    /// Bytes of its index file, once there is one.
    pub(super) index_bytes: u64,
    pub(super) index: Place,
}

/// Where a segment's index is.
#[derive(Debug)]
pub(super) enum Place {
    /// Growing.
    Active(Box<SegmentIndex>),
    /// Complete, its file not yet written.
    Sealed(Arc<SegmentIndex>),
    /// In its file.
    File,
}

/// One peer's share of the log.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// Nothing at or below is open.
    pub(super) floor: MessageNumber,
    /// The newest message, 0 if there was none.
    pub(super) newest: MessageNumber,
    /// By segment, ascending; only those with something open or parked, and the active one.
    pub(super) held: Vec<Held>,
    /// Segments above the floor in which everything is done, ascending: first numbers, and the peer's
    /// last.
    pub(super) done: Vec<(MessageNumber, MessageNumber)>,
    messages: u64,
    bytes: u64,
    parked: u64,
    parked_bytes: u64,
}

/// What a commit adds, collected before the write and taken over after the sync.
#[derive(Debug, Default)]
pub(super) struct Stage {
    /// Of every peer with messages in the active segment, what follows on the index's list.
    pub(super) refs: HashMap<PeerId, Refs>,
    /// Which of them this commit touches.
    pub(super) touched: Vec<PeerId>,
    pub(super) messages: Messages,
    pub(super) settles: super::index::Settles,
}

/// What became of a message for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    Parked,
    Settled,
}

/// Messages to read from one segment.
#[derive(Debug)]
pub(super) struct Picked {
    pub(super) segment: u64,
    pub(super) first: MessageNumber,
    pub(super) refs: Vec<Ref>,
    /// Everything of the peer's lane up to here has been looked at.
    pub(super) through: MessageNumber,
}

/// The answer to a search for a peer's next messages.
#[derive(Debug)]
pub(super) enum Pick {
    /// Nothing more up to the end of the request.
    Nothing,
    /// These, all of one segment; none if they were all done.
    Found(Picked),
    /// The peer's part of this segment's index has to be loaded first.
    Load(u64),
}

/// How much may still be picked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl State {
    /// Takes over what a commit to the active segment made durable.
    pub(super) fn commit(&mut self, stage: &mut Stage, next: MessageNumber) {
        self.durable_next = next;
        let Some(segment) = self.segments.last_mut() else { return };
        let Place::Active(index) = &mut segment.index else { return };
        for peer_id in stage.touched.drain(..) {
            let Some(tail) = stage.refs.get_mut(&peer_id) else { continue };
            let refs = index.refs.entry(peer_id).or_default();
            let (before, bytes) = (refs.count(), tail.body_bytes);
            refs.absorb(tail);
            let added = refs.count() - before;
            let last = segment.first + u64::from(refs.last());
            let peer = self.peers.entry(peer_id).or_default();
            peer.add(segment.first, last, added, bytes);
            segment.live += u64::from(added);
            segment.total += u64::from(added);
        }
        index.messages.absorb(&mut stage.messages);
        index.settles.absorb(&mut stage.settles);
    }

    /// Ends the active segment and begins another.
    pub(super) fn seal(&mut self, data_end: u64, following: Segment) {
        let next = following.first;
        if let Some(segment) = self.segments.last_mut() {
            segment.next = Some(next);
            segment.data_end = data_end;
            if segment.live == 0 {
                self.dead += 1;
            }
            if let Place::Active(index) = &mut segment.index {
                let index = std::mem::take(&mut **index);
                for peer in index.refs.keys() {
                    if let Some(peer) = self.peers.get_mut(peer) {
                        peer.let_go_if_done(segment.first);
                    }
                }
                segment.index = Place::Sealed(Arc::new(index));
            }
        }
        self.segments.push(following);
    }

    /// Marks messages as done. Numbers that were done before are ignored; parked ones that are
    /// settled are added to the record's `above` wherever they lie, so that a replay knows.
    /// Says whether a sealed segment became dead, or thin enough to be looked at.
    pub(super) fn settle(&mut self, record: &mut SettleRecord, numbers: &[MessageNumber]) -> bool {
        let State { peers, segments, dead, thinner, .. } = self;
        let Some(peer) = peers.get_mut(&record.peer) else { return false };
        let dead_before = *dead;
        let floor = peer.floor.max(record.floor);
        let active = segments.last().map_or(0, |segment| segment.first);
        let mut at = 0;
        while at < numbers.len() {
            let Some(place) = peer.place_of(numbers[at]) else {
                at += 1;
                continue;
            };
            let held = &mut peer.held[place];
            let (first, last, parked_bytes) = (held.first, held.last(), held.parked_bytes());
            let through = at + numbers[at..].partition_point(|number| *number <= last);
            let (settled, unparked) =
                held.settle(&numbers[at..through], peer.floor, floor, &mut record.above);
            let bytes = held.give_up(settled);
            let is_done = held.is_done();
            peer.parked_bytes -= parked_bytes - held.parked_bytes();
            peer.messages -= u64::from(settled);
            peer.bytes -= bytes;
            peer.parked -= u64::from(unparked);
            *thinner |= release(segments, dead, first, u64::from(settled + unparked));
            if is_done && first != active {
                peer.let_go(place, floor);
            }
            at = through.max(at + 1);
        }
        peer.raise_floor(floor);
        std::mem::take(thinner) | (*dead > dead_before)
    }

    /// Takes a message out of the open lane. One at or below the floor is accepted too: the floor
    /// covers parked messages, and the two records may come in either order.
    pub(super) fn park(&mut self, peer: PeerId, number: MessageNumber) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let Some(place) = peer.place_of(number) else { return };
        let held = &mut peer.held[place];
        let relative = held.relative(number);
        if held.open == 0 || held.settled().contains(relative) || !held.mark_parked(relative) {
            return;
        }
        let bytes = held.give_up(1);
        peer.messages -= 1;
        peer.bytes -= bytes;
        peer.parked += 1;
        peer.parked_bytes += bytes;
    }

    /// What waits for a peer.
    pub(super) fn backlog(&self, peer: PeerId) -> Backlog {
        self.peers.get(&peer).map_or_else(Backlog::default, |peer| Backlog {
            floor: peer.floor,
            newest: peer.newest,
            messages: peer.messages,
            bytes: peer.bytes,
            parked: peer.parked,
            parked_bytes: peer.parked_bytes,
        })
    }

    /// Where a message stands for one of its receivers.
    pub(super) fn standing(&self, peer: PeerId, number: MessageNumber) -> Standing {
        let Some(peer) = self.peers.get(&peer) else { return Standing::Settled };
        let Some(place) = peer.place_of(number) else { return Standing::Settled };
        let held = &peer.held[place];
        let relative = held.relative(number);
        if held.parked().contains(relative) {
            Standing::Parked
        } else if number <= peer.floor || held.settled().contains(relative) {
            Standing::Settled
        } else {
            Standing::Open
        }
    }

    /// Forgets the peers of which nothing is stored: no message above or at `oldest`, the oldest number
    /// that anything stored speaks of, and nothing open or parked. Nothing is lost with them: no index
    /// names them any more, and what comes for one of them is above every number it ever had.
    pub(super) fn forget_peers(&mut self, oldest: MessageNumber) {
        self.peers.retain(|_, peer| !peer.held.is_empty() || peer.newest >= oldest);
    }

    /// Remembers that records cannot be read any more.
    pub(super) fn lose(&mut self, first: MessageNumber, next: MessageNumber) {
        let place = self.lost.partition_point(|lost| *lost < (first, next));
        if self.lost.get(place) != Some(&(first, next)) {
            self.lost.insert(place, (first, next));
        }
        if self.lost.len() > LOST_MAX {
            self.lost.remove(0);
        }
    }

    /// Whether the record with this number is among those that are known to be damaged.
    pub(super) fn is_lost(&self, number: MessageNumber) -> bool {
        self.lost.iter().any(|(first, next)| (*first..*next).contains(&number))
    }

    /// The segment that begins with this number.
    pub(super) fn segment(&self, first: MessageNumber) -> Option<&Segment> {
        let place = self.segments.binary_search_by_key(&first, |segment| segment.first).ok()?;
        self.segments.get(place)
    }

    /// Searches one segment for a peer's next messages above `after`; `loaded` has the parts of index
    /// files that are in memory.
    pub(super) fn pick(
        &self,
        read: &Read,
        after: MessageNumber,
        budget: Budget,
        loaded: impl Fn(u64) -> Option<Arc<Refs>>,
    ) -> Pick {
        if after >= read.through {
            // All that was asked for has been searched, though the segment may hold more.
            return Pick::Nothing;
        }
        let Some(peer) = self.peers.get(&read.peer) else { return Pick::Nothing };
        let after = if read.lane == Lane::Open { after.max(peer.floor) } else { after };
        let from = peer.held.partition_point(|held| held.last() <= after);
        let wanted = |held: &&Held| match read.lane {
            Lane::Open => held.open > 0,
            Lane::Parked => !held.parked().is_empty(),
        };
        let Some(held) = peer.held[from..].iter().find(wanted) else { return Pick::Nothing };
        if held.first > read.through {
            return Pick::Nothing;
        }
        let Some(segment) = self.segment(held.first) else {
            // Lost, and reported when the journal was opened.
            let (segment, first, through) = (0, held.first, held.last());
            return Pick::Found(Picked { segment, first, refs: Vec::new(), through });
        };
        let in_file;
        let refs = match &segment.index {
            Place::Active(index) => index.refs.get(&read.peer),
            Place::Sealed(index) => index.refs.get(&read.peer),
            Place::File => match loaded(segment.id) {
                Some(refs) => {
                    in_file = refs;
                    Some(&*in_file)
                }
                None => return Pick::Load(segment.id),
            },
        };
        let (picked, through) = match refs {
            Some(refs) => held.pick(refs, read, after, budget),
            None => (Vec::new(), held.last()),
        };
        Pick::Found(Picked { segment: segment.id, first: held.first, refs: picked, through })
    }
}

/// Takes `gone` off the live count of the segment that begins with `first`; says whether it is sealed
/// and the count has come to another power of two.
pub(super) fn release(
    segments: &mut [Segment],
    dead: &mut usize,
    first: MessageNumber,
    gone: u64,
) -> bool {
    if gone == 0 {
        return false;
    }
    let Ok(place) = segments.binary_search_by_key(&first, |segment| segment.first) else {
        return false;
    };
    let segment = &mut segments[place];
    let before = segment.live;
    segment.live = before.saturating_sub(gone);
    if segment.next.is_none() {
        return false;
    }
    if segment.live == 0 && before > 0 {
        *dead += 1;
    }
    before.leading_zeros() != segment.live.leading_zeros()
}

impl Peer {
    fn add(&mut self, first: MessageNumber, last: MessageNumber, count: u32, bytes: u64) {
        if self.held.last().is_none_or(|held| held.first != first) {
            self.held.push(Held::new(first));
        }
        if let Some(held) = self.held.last_mut() {
            held.grow(last, count, bytes);
        }
        self.newest = last;
        self.messages += u64::from(count);
        self.bytes += bytes;
    }

    /// Which of the shares a number lies in.
    pub(super) fn place_of(&self, number: MessageNumber) -> Option<usize> {
        let place = self.held.partition_point(|held| held.last() < number);
        self.held.get(place).is_some_and(|held| held.first <= number).then_some(place)
    }

    /// Raises the floor and forgets what lies below it.
    pub(super) fn raise_floor(&mut self, floor: MessageNumber) {
        let from = self.held.partition_point(|held| held.last() <= self.floor);
        self.floor = floor;
        for held in self.held[from..].iter_mut().take_while(|held| held.first <= floor) {
            held.raise_floor(floor);
        }
        let below = self.done.partition_point(|(_, last)| *last <= floor);
        self.done.drain(..below);
    }

    /// Whether everything is done in the segment that begins with `first`, and its share forgotten.
    pub(super) fn is_done_with(&self, first: MessageNumber) -> bool {
        self.done.binary_search_by_key(&first, |(done, _)| *done).is_ok()
    }

    /// Forgets the share of a segment that has been sealed, if everything in it is done.
    pub(super) fn let_go_if_done(&mut self, first: MessageNumber) {
        if let Ok(place) = self.held.binary_search_by_key(&first, |held| held.first)
            && self.held[place].is_done()
        {
            self.let_go(place, self.floor);
        }
    }

    /// Forgets a share of a sealed segment, in which everything is done.
    fn let_go(&mut self, place: usize, floor: MessageNumber) {
        let held = self.held.remove(place);
        if held.last() <= floor {
            return;
        }
        let place = self.done.partition_point(|(first, _)| *first < held.first);
        self.done.insert(place, (held.first, held.last()));
    }

    /// Forgets the shares in which everything is done, and computes the sums anew from the others.
    pub(super) fn recount(&mut self) {
        for place in (0..self.held.len()).rev() {
            if self.held[place].is_done() {
                self.let_go(place, self.floor);
            }
        }
        self.sum();
    }

    /// Computes the sums anew from the shares.
    pub(super) fn sum(&mut self) {
        self.messages = self.held.iter().map(|held| u64::from(held.open)).sum();
        self.bytes = self.held.iter().map(Held::bytes).sum();
        self.parked = self.held.iter().map(|held| u64::from(held.parked().len())).sum();
        self.parked_bytes = self.held.iter().map(Held::parked_bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer with a message each in segments that begin with 100, 200, …, all sealed.
    fn peer(segments: u64) -> Peer {
        let mut peer = Peer::default();
        for nth in 1..=segments {
            peer.add(100 * nth, 100 * nth + 50, 1, 10);
        }
        peer
    }

    #[test]
    fn a_share_is_let_go_once_all_of_it_is_done() {
        let mut peer = peer(9);
        for first in [200, 400, 300, 700] {
            let place = peer.place_of(first + 50).unwrap();
            peer.let_go_if_done(first);
            assert_eq!(peer.held[place].first, first, "it is open");
            peer.held[place].give_up(1);
            peer.let_go_if_done(first);
            assert!(peer.place_of(first + 50).is_none());
        }
        assert_eq!(peer.done, [(200, 250), (300, 350), (400, 450), (700, 750)]);
        for first in [100, 200, 300, 400, 500, 600, 700, 800, 900] {
            assert_eq!(peer.is_done_with(first), [200, 300, 400, 700].contains(&first), "{first}");
        }
        peer.raise_floor(400);
        assert_eq!(peer.done, [(400, 450), (700, 750)]);
    }
}
