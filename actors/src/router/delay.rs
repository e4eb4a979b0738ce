//! Delayed messages: accepted and confirmed now, in their receivers' queues later.
//!
//! A delayed message is stored for the node itself ([`PeerId::DELAYED`]); its body says for whom it is
//! meant, groups taken apart as of acceptance. It stands in no receiver's queue and holds up no receiver's
//! floor, and nothing delivers it early, however often the node is killed: what brings it is another
//! record (release.rs), which does not exist before.
//!
//! Held in memory are times and numbers, at most `delayed_max`; a restart reads them from the log. A delay
//! is counted on the monotonic clock, so that a wall clock that is set changes nothing; a time of delivery
//! is one of the wall clock, and is looked at again and again.

use super::Router;
use super::messages::{PublishBatch, PublishItem};
use crate::clock;
use actix::SpawnHandle;
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::limits::DELAY_MS_MAX;
use restante_protocol::message::{Body, Delay, body_flags};
use restante_protocol::record::{RecordKind, put_message_record};
use restante_protocol::refusal::{Code, Refusal};
use restante_protocol::registry::{Destination, Registry};
use restante_protocol::time::Time;
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// How often the wall clock is looked at while something waits for a time of it: it may have been set.
const WALL_LOOK: Duration = Duration::from_secs(5);
/// The most that a note of one copy takes in a batch.
pub(super) const NOTE_BYTES: usize = 256;
/// What a delayed message takes more than another one of the same body, at most: as it is stored now one
/// more receiver and the count of the real ones, and later its original id and the note in front of it.
pub(super) const DELAYED_BYTES: usize = 4 + 2 + 16 + NOTE_BYTES;

/// A message of the batch being built that waits for its time.
pub(super) struct DelayedSlot {
    index: u32,
    at: At,
    bytes: u32,
    /// For whom.
    peers: SmallVec<[PeerId; 4]>,
}

/// When a delay is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    /// On the monotonic clock.
    Time(Time),
    /// On the wall clock, in milliseconds since the Unix epoch.
    Wall(u64),
}

/// When a message enters its receivers' queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) at: At,
    pub(super) number: MessageNumber,
    /// Of its body as stored.
    pub(super) bytes: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Delays {
    /// Those whose time has not come, by when it does: on the one clock, and on the other.
    timed: BTreeSet<Due>,
    dated: BTreeSet<Due>,
    /// Not settled yet: those, and what is being released.
    open: BTreeSet<MessageNumber>,
    /// The newest there has been.
    newest: MessageNumber,
    /// Of peers that have been removed since: how many were accepted for them.
    left: HashMap<PeerId, u64>,
    /// Removed peers of which it is not counted yet what they have left.
    retiring: HashSet<PeerId>,
    /// Whether all that an earlier process has left have been read.
    is_read: bool,
    /// Whether some are being released. They go one lot after the other: a restart asks about the last.
    pub(super) is_releasing: bool,
    /// After something failed: nothing is released before.
    pub(super) not_before: Time,
    /// When the timer goes off, and how to stop it.
    pub(super) timer: Option<(Time, SpawnHandle)>,
}

impl Delays {
    pub(super) fn insert(&mut self, due: Due) {
        self.open.insert(due.number);
        self.newest = self.newest.max(due.number);
        self.put_back(due);
    }

    /// One that was taken and not released.
    pub(super) fn put_back(&mut self, due: Due) {
        match due.at {
            At::Time(_) => self.timed.insert(due),
            At::Wall(_) => self.dated.insert(due),
        };
    }

    /// One that is settled, or set aside.
    pub(super) fn close(&mut self, number: MessageNumber) {
        self.open.remove(&number);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn are_read(&self) -> bool {
        self.is_read
    }

    /// All that an earlier process has left up to this number are there.
    pub(super) fn have_been_read(&mut self, newest: MessageNumber) {
        self.is_read = true;
        self.newest = self.newest.max(newest);
    }

    /// The next whose time has come, at most so many messages and bytes.
    pub(super) fn take_due(
        &mut self,
        (now, wall_ms): (Time, u64),
        messages_max: usize,
        bytes_max: u64,
    ) -> Vec<Due> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        for (waiting, now) in
            [(&mut self.timed, At::Time(now)), (&mut self.dated, At::Wall(wall_ms))]
        {
            while let Some(due) = waiting.first().copied()
                && due.at <= now
                && taken.len() < messages_max
                && (taken.is_empty() || bytes + u64::from(due.bytes) <= bytes_max)
            {
                bytes += u64::from(due.bytes);
                waiting.remove(&due);
                taken.push(due);
            }
        }
        taken
    }

    /// When to look for the next.
    pub(super) fn next_look(&self, now: Time, wall_ms: u64) -> Option<Time> {
        let of = |waiting: &BTreeSet<Due>| {
            Some(match waiting.first()?.at {
                At::Time(at) => at,
                At::Wall(ms) => {
                    now + Duration::from_millis(ms.saturating_sub(wall_ms)).min(WALL_LOOK)
                }
            })
        };
        [of(&self.timed), of(&self.dated)].into_iter().flatten().min()
    }

    /// Nothing at or below this number waits any more.
    pub(super) fn floor(&self) -> MessageNumber {
        match (self.is_read, self.open.first()) {
            (false, _) => 0,
            (true, Some(lowest)) => lowest - 1,
            (true, None) => self.newest,
        }
    }

    /// A peer has been removed for which so many were accepted.
    pub(super) fn peer_removed(&mut self, peer: PeerId, messages: u64) {
        self.retiring(peer);
        if messages > 0 {
            *self.left.entry(peer).or_default() += messages;
        }
    }

    /// How many were accepted for a peer that has been removed since.
    pub(super) fn left_by(&self, peer: PeerId) -> u64 {
        self.left.get(&peer).copied().unwrap_or(0)
    }

    /// It is still to be counted what a removed peer has left.
    pub(super) fn retiring(&mut self, peer: PeerId) {
        self.retiring.insert(peer);
    }

    /// It has been.
    pub(super) fn retired(&mut self, peer: PeerId) {
        self.retiring.remove(&peer);
    }

    pub(super) fn is_retiring(&self, peer: PeerId) -> bool {
        self.retiring.contains(&peer)
    }

    /// Peers that get what was accepted for removed ones.
    pub(super) fn heirs(&self, registry: &Registry) -> impl Iterator<Item = PeerId> {
        self.left.keys().filter_map(|peer| match registry.destination(*peer)? {
            Destination::Peer(heir) => Some(heir),
            Destination::Park | Destination::Purge => None,
        })
    }
}

impl Router {
    /// Until when a publish is to be delayed, if it is; looked at only where its body says so.
    ///
    /// # Errors
    /// It may not be delayed so, or not now.
    #[cold]
    pub(super) fn delay_of(&self, flags: u8, body: &[u8]) -> Result<Option<At>, Refusal> {
        let body = Body::parse(body).unwrap_or_default();
        let Some(delay) = body.delay else { return Ok(None) };
        if flags & body_flags::REPLY != 0 {
            return Err(Refusal::new(Code::Unsupported, "a call cannot be delayed"));
        }
        let wall_ms = clock::wall_ms();
        let waits_ms = delay.end_ms(wall_ms).saturating_sub(wall_ms);
        if waits_ms > DELAY_MS_MAX {
            let detail =
                format!("a message is delayed for at most 365 days, not for {waits_ms} ms");
            return Err(Refusal::new(Code::Malformed, detail));
        }
        if body.ttl_ms.is_some_and(|ttl| ttl.get() <= waits_ms) {
            let detail = "its time to live, which begins now, ends before its delay is over";
            return Err(Refusal::new(Code::Malformed, detail));
        }
        let max = self.limits.delayed_max;
        if self.delayed() >= max {
            let detail = format!("{max} messages wait for their time, which is the limit");
            return Err(Refusal::new(Code::DelayedQuota, detail));
        }
        Ok(Some(match delay {
            Delay::For(ms) => At::Time(clock::now() + Duration::from_millis(ms.get())),
            Delay::Until(ms) => At::Wall(ms.get()),
        }))
    }

    /// How many messages wait for their time, those on their way to disk included.
    fn delayed(&self) -> usize {
        let coming: usize = self.pending.iter().map(|pending| pending.delayed.len()).sum();
        let known = match self.delays.is_read {
            true => self.delays.len(),
            // Some are still to be read.
            false => {
                let stored = self.journal.backlog(PeerId::DELAYED).messages;
                usize::try_from(stored).unwrap_or(usize::MAX)
            }
        };
        known.saturating_add(coming + self.building.delayed.len())
    }

    /// Writes the record of a delayed message; returns its index in the batch.
    #[cold]
    pub(super) fn accept_delayed(
        &mut self,
        batch: &PublishBatch,
        item: &PublishItem,
        body: &[u8],
        at: At,
        peers: &[PeerId],
    ) -> u32 {
        if self.building.accepted_ms == 0 {
            self.building.accepted_ms = self.accepted_now();
        }
        let receivers: Vec<u8> = peers.iter().flat_map(|peer| peer.0.to_be_bytes()).collect();
        let body = Body { receivers: Some(&receivers), ..Body::parse(body).unwrap_or_default() };
        let mut stored = Vec::with_capacity(body.encoded_len());
        body.encode(&mut stored);
        let building = &mut self.building;
        let index = building.next_index();
        let placed = put_message_record(
            &mut building.bytes,
            building.accepted_ms,
            batch.producer.index,
            item.sequence,
            &[PeerId::DELAYED],
            &stored,
        );
        building.place(RecordKind::Message, placed);
        building.deliveries += peers.len() as u64;
        let bytes = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        building.delayed.push(DelayedSlot { index, at, bytes, peers: peers.into() });
        self.hold(peers.iter().copied(), bytes);
        index
    }

    /// Counts a delayed message against what its receivers may take.
    pub(super) fn hold(&mut self, peers: impl Iterator<Item = PeerId>, bytes: u32) {
        for peer in peers {
            match self.slots.get_mut(peer) {
                Some(slot) => slot.hold(u64::from(bytes)),
                None => *self.delays.left.entry(peer).or_default() += 1,
            }
        }
    }

    /// A delayed message is one no more.
    pub(super) fn let_go(&mut self, peers: impl Iterator<Item = PeerId>, bytes: u32) {
        for peer in peers {
            if let Some(slot) = self.slots.get_mut(peer) {
                slot.let_go(u64::from(bytes));
            } else if let Some(left) = self.delays.left.get_mut(&peer) {
                *left -= 1;
                if *left == 0 {
                    self.delays.left.remove(&peer);
                }
            }
        }
    }

    /// The journal has not taken the batch with these.
    pub(super) fn forget_delayed(&mut self, delayed: Vec<DelayedSlot>) {
        for DelayedSlot { peers, bytes, .. } in delayed {
            self.let_go(peers.into_iter(), bytes);
        }
    }

    /// The delayed messages of a batch that is durable.
    pub(super) fn remember_delayed(&mut self, delayed: &[DelayedSlot], first: MessageNumber) {
        for DelayedSlot { index, at, bytes, .. } in delayed {
            let number = first + u64::from(*index);
            self.delays.insert(Due { at: *at, number, bytes: *bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed(at_ms: u64, number: MessageNumber, bytes: u32) -> Due {
        Due { at: At::Time(Time::from_millis(at_ms)), number, bytes }
    }

    fn dated(at_ms: u64, number: MessageNumber) -> Due {
        Due { at: At::Wall(at_ms), number, bytes: 1 }
    }

    /// The numbers of those that are due, at most ten messages of a hundred bytes.
    fn take(delays: &mut Delays, now_ms: u64, wall_ms: u64) -> Vec<MessageNumber> {
        let taken = delays.take_due((Time::from_millis(now_ms), wall_ms), 10, 100);
        taken.iter().map(|due| due.number).collect()
    }

    #[test]
    fn what_is_due_goes_in_the_order_of_its_time_and_nothing_else() {
        let mut delays = Delays::default();
        for one in [timed(30, 1, 1), timed(10, 2, 1), timed(20, 3, 1), timed(10, 4, 1)] {
            delays.insert(one);
        }
        assert_eq!(take(&mut delays, 9, u64::MAX), []);
        assert_eq!(take(&mut delays, 20, 0), [2, 4, 3]);
        assert_eq!(take(&mut delays, 99, 0), [1]);
    }

    #[test]
    fn a_time_of_delivery_is_one_of_the_wall_clock_and_a_delay_is_not() {
        let mut delays = Delays::default();
        delays.insert(dated(1_000, 1));
        delays.insert(timed(50, 2, 1));
        let look = |delays: &Delays, wall_ms| delays.next_look(Time::from_millis(40), wall_ms);
        assert_eq!(look(&delays, 995), Some(Time::from_millis(45)));
        assert_eq!(look(&delays, 900), Some(Time::from_millis(50)));
        // The wall clock is set back, and then beyond the time.
        assert_eq!(take(&mut delays, 49, 0), []);
        assert_eq!(take(&mut delays, 49, 1_000), [1]);
        assert_eq!(take(&mut delays, 50, 0), [2]);
        assert_eq!(look(&delays, 0), None);
        delays.insert(dated(1 << 40, 3));
        assert_eq!(look(&delays, 0), Some(Time::from_millis(40) + WALL_LOOK), "it may be set");
    }

    #[test]
    fn a_turn_is_bounded_and_a_large_message_goes_alone() {
        let mut delays = Delays::default();
        (1..=15).for_each(|number| delays.insert(timed(1, number, 1)));
        for one in [timed(2, 16, u32::MAX), timed(2, 17, 1), dated(1, 18)] {
            delays.insert(one);
        }
        assert_eq!(take(&mut delays, 5, 5).len(), 10);
        assert_eq!(take(&mut delays, 5, 5), [11, 12, 13, 14, 15, 18]);
        assert_eq!(take(&mut delays, 5, 5), [16]);
        assert_eq!(take(&mut delays, 5, 5), [17]);
    }

    #[test]
    fn the_floor_stays_below_everything_that_waits_or_is_under_way() {
        let mut delays = Delays::default();
        (5..=7).for_each(|number| delays.insert(timed(number, number, 1)));
        assert_eq!(delays.floor(), 0, "older ones may not have been read yet");
        delays.have_been_read(6);
        assert_eq!(take(&mut delays, 5, 0), [5]);
        assert_eq!(delays.floor(), 4, "it is not settled yet");
        delays.close(6);
        assert_eq!(delays.floor(), 4);
        delays.close(5);
        assert_eq!(delays.floor(), 6);
        delays.close(7);
        assert_eq!(delays.floor(), 7);
    }
}
