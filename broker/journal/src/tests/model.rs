//! What the journal should know, kept the naive way, and the comparison.
//!
//! A [`World`] drives the journal's own state machines on a simulated disk without threads, and
//! remembers every word the journal gave. After a crash it opens the journal again, compares, and
//! goes on with what it found.

use super::super::recovery::{self, Engine};
use super::super::storage::sim::{Dice, SimDisk};
use super::super::{OpenError, Options};
use super::{Draft, push_admin, push_message};
use bytes::{Bytes, BytesMut};
use restante_actors::journal::{Batch, End, Ended, Lane, LookupError, Read, Settle, Stored};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{Outcome, ParkRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(super) const PEERS: u32 = 4;

/// How sure we are that something is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sure {
    No,
    Yes,
}

/// What should be known of one message.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) body: Vec<u8>,
    pub(super) sequence: u64,
    pub(super) receivers: BTreeMap<u32, Fate>,
    pub(super) sure: Sure,
}

/// What should be known of it for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Parked(Sure),
    Settled(Sure),
    /// Parked for certain, then settled without certainty.
    ParkedThenSettled,
}

/// See the module.
pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) engine: Engine,
    options: Options,
    pub(super) messages: BTreeMap<MessageNumber, Message>,
    /// Every admin record so far with its number, and whether it is sure.
    admin: Vec<(MessageNumber, Vec<u8>, Sure)>,
    tickets: BTreeMap<u64, Vec<MessageNumber>>,
    next_sequence: u64,
    next_token: u64,
    pub(super) checkpoint_due: bool,
    pub(super) epoch: u32,
}

impl World {
    pub(super) fn new(disk: SimDisk, options: Options) -> Result<World, OpenError> {
        let engine = recovery::open(Arc::new(disk.clone()), options.clone())?;
        let epoch = engine.recovered.epoch;
        Ok(World {
            disk,
            engine,
            options,
            messages: BTreeMap::new(),
            admin: Vec::new(),
            tickets: BTreeMap::new(),
            next_sequence: 1,
            next_token: 1,
            checkpoint_due: false,
            epoch,
        })
    }

    /// One random thing a node would do.
    pub(super) fn act(&mut self, dice: &mut Dice) {
        match dice.below(22) {
            0..=6 => self.append_some(dice),
            7..=10 => self.settle(dice),
            11 => self.park(dice),
            12..=14 => self.write(),
            15..=16 => self.engine.keeper.turn(),
            17 => self.flush(),
            18 => self.engine.writer.mark(),
            19..=20 => self.compact(),
            _ if self.checkpoint_due || dice.chance(30) => self.checkpoint(),
            _ => self.read_all(),
        }
    }

    /// Appends a batch of a few messages.
    pub(super) fn append_some(&mut self, dice: &mut Dice) {
        let mut batch = Batch { bytes: BytesMut::new(), records: Vec::new() };
        let mut drafts = Vec::new();
        for _ in 0..=dice.below(4) {
            if dice.chance(10) {
                let body = format!("admin {}", self.admin.len() + drafts.len()).into_bytes();
                push_admin(&mut batch, &body);
                drafts.push(Err(body));
                continue;
            }
            let receivers: BTreeSet<u32> =
                (0..dice.below(3) + 1).map(|_| 1 + dice.below(PEERS as usize) as u32).collect();
            let receivers: Vec<u32> = receivers.into_iter().collect();
            let mut body = vec![0u8];
            let len = if dice.chance(5) { 900 } else { dice.below(120) };
            body.extend((0..len).map(|_| dice.roll() as u8));
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            push_message(
                &mut batch,
                &Draft { producer: 1, sequence, receivers: &receivers, body: &body },
            );
            let receivers = receivers.into_iter().map(|peer| (peer, Fate::Open)).collect();
            drafts.push(Ok(Message { body, sequence, receivers, sure: Sure::No }));
        }
        let Ok((ticket, first)) = self.engine.shared.append(batch) else { return };
        let mut numbers = Vec::new();
        for (number, draft) in (first..).zip(drafts) {
            numbers.push(number);
            match draft {
                Ok(message) => drop(self.messages.insert(number, message)),
                Err(body) => self.admin.push((number, body, Sure::No)),
            }
        }
        self.tickets.insert(ticket.0, numbers);
    }

    /// Numbers of a peer's durable messages with this fate.
    fn with_fate(&self, peer: u32, wanted: impl Fn(Fate) -> bool) -> Vec<MessageNumber> {
        self.messages
            .iter()
            .filter(|(_, message)| message.sure == Sure::Yes)
            .filter(|(_, message)| message.receivers.get(&peer).is_some_and(|fate| wanted(*fate)))
            .map(|(number, _)| *number)
            .collect()
    }

    fn set_fate(&mut self, peer: u32, number: MessageNumber, fate: Fate) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.receivers.insert(peer, fate);
        }
    }

    fn settle(&mut self, dice: &mut Dice) {
        let peer = 1 + dice.below(PEERS as usize) as u32;
        let open = self.with_fate(peer, |fate| fate == Fate::Open);
        let parked = self.with_fate(peer, |fate| matches!(fate, Fate::Parked(_)));
        let mut numbers: Vec<MessageNumber> = if dice.chance(70) {
            open.iter().copied().take(1 + dice.below(8)).collect()
        } else {
            open.iter().copied().filter(|_| dice.chance(30)).take(8).collect()
        };
        numbers.extend(parked.iter().copied().filter(|_| dice.chance(20)));
        numbers.sort_unstable();
        if numbers.is_empty() {
            return;
        }
        for number in &numbers {
            let was = self.messages[number].receivers[&peer];
            let fate = match was {
                Fate::Parked(Sure::Yes) => Fate::ParkedThenSettled,
                _ => Fate::Settled(Sure::No),
            };
            self.set_fate(peer, *number, fate);
        }
        // As the delivery core would: just below the lowest that is still open, among those it has.
        let still = self.with_fate(peer, |fate| fate == Fate::Open);
        let newest = self.engine.shared.state.lock().backlog(PeerId(peer)).newest;
        let floor = still.first().map_or(newest, |lowest| lowest - 1).min(newest);
        let floor = if dice.chance(15) { 0 } else { floor };
        self.engine.shared.settle(Settle::acked(PeerId(peer), 5, floor, numbers));
    }

    /// Settles all that is open or parked.
    pub(super) fn settle_all(&mut self) {
        for peer in 1..=PEERS {
            let numbers = self.with_fate(peer, |fate| matches!(fate, Fate::Open | Fate::Parked(_)));
            let Some(last) = numbers.last().copied() else { continue };
            for number in &numbers {
                let was = self.messages[number].receivers[&peer];
                let fate = match was {
                    Fate::Parked(Sure::Yes) => Fate::ParkedThenSettled,
                    _ => Fate::Settled(Sure::No),
                };
                self.set_fate(peer, *number, fate);
            }
            self.engine.shared.settle(Settle::acked(PeerId(peer), 5, last, numbers));
        }
    }

    fn park(&mut self, dice: &mut Dice) {
        let peer = 1 + dice.below(PEERS as usize) as u32;
        let open = self.with_fate(peer, |fate| fate == Fate::Open);
        let Some(number) = open.get(dice.below(open.len().max(1))).copied() else { return };
        self.set_fate(peer, number, Fate::Parked(Sure::No));
        let park = ParkRecord {
            peer: PeerId(peer),
            number,
            at_ms: 6,
            attempts: 3,
            reason: "no".to_owned(),
        };
        self.engine.shared.park(&park);
    }

    /// The writer's turn.
    pub(super) fn write(&mut self) {
        let mut items = Vec::new();
        self.engine.shared.take_work(&mut items);
        self.engine.writer.turn(&mut items);
        self.hear();
    }

    fn flush(&mut self) {
        let token = self.next_token;
        self.next_token += 1;
        self.engine.shared.flush(token);
        self.write();
    }

    pub(super) fn checkpoint(&mut self) {
        self.checkpoint_due = false;
        let state: Vec<u8> = (self.admin.len() as u64).to_be_bytes().to_vec();
        self.engine.shared.checkpoint(Bytes::from(state));
        self.write();
        if self.engine.shared.next_number().is_multiple_of(2) {
            self.engine.keeper.turn();
        }
    }

    /// What a running node would do by itself: write, look after the files, hand over checkpoints.
    pub(super) fn round(&mut self) {
        self.write();
        self.engine.keeper.turn();
        self.write();
        if std::mem::take(&mut self.checkpoint_due) {
            self.checkpoint();
        }
        self.engine.keeper.turn();
    }

    /// Copies whatever is worth it, as if there were no pauses.
    pub(super) fn compact(&mut self) {
        self.engine.keeper.eager = true;
        if self.engine.shared.next_number().is_multiple_of(2) {
            self.engine.keeper.turn();
        } else if !self.engine.shared.is_dead()
            // A checkpoint that was taken before may be written after it.
            && let Err(error) = self.engine.keeper.compact()
        {
            self.engine.shared.poison("compacting", &error);
        }
        self.engine.keeper.eager = false;
    }

    /// Takes note of what the journal says.
    fn hear(&mut self) {
        while let Ok(completion) = self.engine.completions.try_recv() {
            match completion.end {
                End::Durable(_) => {
                    for number in self.tickets.remove(&completion.ticket.0).unwrap_or_default() {
                        self.make_sure(number);
                    }
                }
                End::Flushed(_) => self.settles_are_sure(),
                End::CheckpointDue => self.checkpoint_due = true,
                End::Poisoned(_) | End::Unknown(_) | End::Fenced(_) => {}
            }
        }
    }

    fn make_sure(&mut self, number: MessageNumber) {
        if let Some(message) = self.messages.get_mut(&number) {
            message.sure = Sure::Yes;
        }
        for admin in &mut self.admin {
            if admin.0 == number {
                admin.2 = Sure::Yes;
            }
        }
    }

    fn settles_are_sure(&mut self) {
        for message in self.messages.values_mut() {
            for fate in message.receivers.values_mut() {
                *fate = match *fate {
                    Fate::Parked(_) => Fate::Parked(Sure::Yes),
                    Fate::Settled(_) | Fate::ParkedThenSettled => Fate::Settled(Sure::Yes),
                    Fate::Open => Fate::Open,
                };
            }
        }
    }

    fn lane(&self, peer: u32, lane: Lane, small_pages: bool) -> Vec<Stored> {
        let (mut after, mut all) = (0, Vec::new());
        let (bytes_max, messages_max) = if small_pages { (300, 3) } else { (1 << 20, 1_000) };
        loop {
            let peer = PeerId(peer);
            let through = u64::MAX;
            let read = Read { peer, lane, after, through, bytes_max, messages_max };
            let page = self.engine.shared.next(read).unwrap();
            assert!(page.through >= after, "pages go forward");
            let done = page.messages.is_empty();
            after = page.through;
            all.extend(page.messages);
            if done {
                return all;
            }
        }
    }

    /// Compares, while the journal is open, what it gives with what it should.
    pub(super) fn read_all(&self) {
        for peer in 1..=PEERS {
            let open = self.with_fate(peer, |fate| fate == Fate::Open);
            let parked = self.with_fate(peer, |fate| matches!(fate, Fate::Parked(_)));
            let read = self.lane(peer, Lane::Open, true);
            self.check_bodies(&read);
            assert_eq!(numbers(&read), open, "open messages of peer {peer}");
            let read = self.lane(peer, Lane::Parked, false);
            assert_eq!(numbers(&read), parked, "parked messages of peer {peer}");
            let backlog = self.engine.shared.state.lock().backlog(PeerId(peer));
            assert_eq!(backlog.messages, open.len() as u64, "count of peer {peer}");
            assert_eq!(backlog.parked, parked.len() as u64, "parked count of peer {peer}");
            assert_eq!(backlog.parked_bytes > 0, !parked.is_empty(), "parked bytes of {peer}");
        }
    }

    fn check_bodies(&self, read: &[Stored]) {
        for stored in read {
            let message = self.messages.get(&stored.number).expect("a message we sent");
            assert_eq!(&stored.body[..], message.body, "body of {}", stored.number);
        }
    }

    /// Opens the journal on the disk that came up, and compares: what was sure is there, what was not
    /// may be, in whole prefixes. Takes over what it finds.
    pub(super) fn reopen(&mut self, disk: SimDisk) -> Result<(), OpenError> {
        let engine = recovery::open(Arc::new(disk.clone()), self.options.clone())?;
        self.engine = engine;
        self.disk = disk;
        let findings = &self.engine.recovered.findings;
        let bad = |finding: &&String| finding.contains("damaged") || finding.contains("missing");
        assert_eq!(findings.iter().find(bad), None, "a crash is no damage");
        assert!(self.engine.recovered.epoch > self.epoch, "the epoch rises");
        self.epoch = self.engine.recovered.epoch;
        self.tickets.clear();
        self.checkpoint_due = false;
        self.compare_numbers();
        self.compare_admin();
        self.compare_lanes();
        self.compare_lives();
        self.read_all();
        Ok(())
    }

    /// Which numbers survived: everything sure, and of the rest a prefix.
    fn compare_numbers(&mut self) {
        // The epoch record has the first number of this opening.
        let end = self.engine.shared.next_number() - 1;
        for (number, message) in &self.messages {
            assert!(
                message.sure == Sure::No || *number < end,
                "{number} was confirmed, {end} is next"
            );
        }
        self.messages.retain(|number, _| *number < end);
        self.admin.retain(|(number, _, sure)| {
            assert!(*sure == Sure::No || *number < end, "admin {number} was confirmed");
            *number < end
        });
        for message in self.messages.values_mut() {
            message.sure = Sure::Yes;
        }
        for admin in &mut self.admin {
            admin.2 = Sure::Yes;
        }
        let highest = self.messages.values().map(|message| message.sequence).max();
        self.next_sequence = highest.unwrap_or(0).max(self.next_sequence - 1) + 1;
    }

    fn compare_admin(&self) {
        let recovered = &self.engine.recovered;
        let checkpointed = recovered.checkpoint.as_ref().map_or(0, |state| {
            usize::try_from(u64::from_be_bytes(state[..].try_into().unwrap())).unwrap()
        });
        let bodies: Vec<&[u8]> = self.admin.iter().map(|(_, body, _)| &body[..]).collect();
        assert!(
            checkpointed <= bodies.len(),
            "the checkpoint knows of admin records that are gone"
        );
        let since: Vec<&[u8]> = recovered.admin.iter().map(|body| &body[..]).collect();
        assert_eq!(since, bodies[checkpointed..], "admin records since the checkpoint");
        for run in &recovered.published {
            for n in 0..u64::from(run.count) {
                let message = &self.messages[&(run.first_number + n)];
                assert_eq!(message.sequence, run.first_sequence + n, "sequence in a run");
            }
        }
        if let Some(first) = recovered.published.first().map(|run| run.first_number) {
            let told: u64 = recovered.published.iter().map(|run| u64::from(run.count)).sum();
            assert_eq!(told, self.messages.range(first..).count() as u64, "published since then");
        }
    }

    /// Which settles survived: everything sure, and of the rest any.
    fn compare_lanes(&mut self) {
        for peer in 1..=PEERS {
            let open: BTreeSet<_> =
                numbers(&self.lane(peer, Lane::Open, false)).into_iter().collect();
            let parked: BTreeSet<_> =
                numbers(&self.lane(peer, Lane::Parked, false)).into_iter().collect();
            for (number, message) in &mut self.messages {
                let Some(fate) = message.receivers.get_mut(&peer) else {
                    assert!(!open.contains(number) && !parked.contains(number), "not for {peer}");
                    continue;
                };
                let now = match (open.contains(number), parked.contains(number)) {
                    (true, false) => Fate::Open,
                    (false, true) => Fate::Parked(Sure::Yes),
                    (false, false) => Fate::Settled(Sure::Yes),
                    (true, true) => panic!("{number} is open and parked for {peer}"),
                };
                let allowed = match *fate {
                    Fate::Open => now == Fate::Open,
                    Fate::Parked(Sure::Yes) => matches!(now, Fate::Parked(_)),
                    Fate::Parked(Sure::No) => matches!(now, Fate::Parked(_) | Fate::Open),
                    Fate::Settled(Sure::Yes) => matches!(now, Fate::Settled(_)),
                    Fate::Settled(Sure::No) => true,
                    Fate::ParkedThenSettled => now != Fate::Open,
                };
                assert!(allowed, "{number} for {peer} was {fate:?} and is {now:?}");
                *fate = now;
            }
        }
    }

    fn compare_lives(&self) {
        for (number, message) in self.messages.iter().rev().take(40) {
            let is_done = |fate: &Fate| matches!(fate, Fate::Settled(_) | Fate::ParkedThenSettled);
            let life = match self.engine.shared.lookup(*number) {
                // Where next to no history is kept, it may be gone once nothing waits for it.
                Err(LookupError::AgedOut)
                    if self.options.history_bytes_max <= 2 * 1024
                        && message.receivers.values().all(is_done) =>
                {
                    continue;
                }
                life => life.unwrap(),
            };
            assert_eq!(life.receivers.len(), message.receivers.len());
            for (peer, ended) in life.receivers {
                let agrees = match message.receivers[&peer.0] {
                    Fate::Open => ended.is_none(),
                    Fate::Parked(_) => matches!(ended, Some(Ended::Parked(_))),
                    // A checkpoint may know of a settle whose record was never written.
                    _ => matches!(
                        ended,
                        Some(Ended::Settled { outcome: Outcome::Acked, .. } | Ended::Done)
                    ),
                };
                assert!(agrees, "life of {number} for {peer:?}: {ended:?}");
            }
        }
    }
}

fn numbers(read: &[Stored]) -> Vec<MessageNumber> {
    read.iter().map(|stored| stored.number).collect()
}
