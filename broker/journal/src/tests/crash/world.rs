//! A journal on a simulated disk without threads, beside a model of what it should know.
//!
//! A [`World`] does what a node would do, one random thing at a time, and remembers every word the
//! journal gave. A watched one leaves a [`Point`] at each step of the disk: the disk as a crash there
//! would find it, and what had been promised by then.

use super::model::{Close, Fate, Model, PEERS};
use super::moves;
use crate::recovery::{self, Engine};
use crate::storage::Disk;
use crate::storage::sim::{Cut, Dice, Fault, SimDisk, Survival};
use crate::{OpenError, Options};
use bytes::Bytes;
use parking_lot::Mutex;
use restante_actors::journal::{Admission, Completion, Lane, LookupError, Read, Stored};
use restante_protocol::id::{MessageNumber, PeerId};
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Room on a disk that is not meant to be full.
pub(crate) const ROOMY: u64 = 1 << 20;
/// How often an opening that fails for a passing reason is tried.
const OPENINGS_MAX: usize = 5;

/// See the module.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) engine: Engine,
    heard: Arc<Mutex<UnboundedReceiver<Completion>>>,
    options: Options,
    temper: Temper,
    pub(crate) model: Arc<Model>,
    watched: bool,
    pub(crate) points: Vec<Point>,
    /// Appends that were refused for want of room, and lives that ended in poison.
    pub(crate) refused: u64,
    pub(crate) poisoned: u64,
}

/// What may go wrong in a world besides crashes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Temper {
    /// Writes and syncs fail now and then.
    pub(crate) sick: bool,
    /// The disk is full now and then.
    pub(crate) tight: bool,
}

/// A moment at which the machine may go down.
#[derive(Clone)]
pub(crate) struct Point {
    pub(crate) cut: Cut,
    model: Arc<Model>,
    options: Options,
}

impl Point {
    /// Opens the journal on the disk that came up after a crash here, and compares.
    pub(crate) fn comes_up(&self, survival: Survival, dice: &mut Dice) -> Result<World, OpenError> {
        self.opens_on(self.cut.after_crash(survival, dice))
    }

    /// Opens the journal on `disk` with what was promised by this moment, and compares.
    pub(crate) fn opens_on(&self, disk: SimDisk) -> Result<World, OpenError> {
        disk.set_capacity(ROOMY);
        World::open(disk, self.options.clone(), Arc::clone(&self.model), false)
    }

    /// The same with a word from each step of the opening.
    pub(crate) fn opens_watched_on(&self, disk: SimDisk) -> Result<World, OpenError> {
        disk.set_capacity(ROOMY);
        World::open(disk, self.options.clone(), Arc::clone(&self.model), true)
    }
}

impl World {
    /// The journal on this disk, whatever is in it: nothing is compared.
    pub(crate) fn new(disk: SimDisk, options: Options) -> Result<World, OpenError> {
        World::start(disk, options, Arc::default(), false)
    }

    /// The journal that is on this disk, compared with what was promised.
    pub(crate) fn found(
        disk: SimDisk,
        options: Options,
        model: Arc<Model>,
    ) -> Result<World, OpenError> {
        World::open(disk, options, model, false)
    }

    /// A new journal on a disk that is watched.
    pub(crate) fn watched(disk: SimDisk, options: Options, temper: Temper) -> World {
        let world = World::open(disk, options, Arc::default(), true);
        World { temper, ..world.expect("opens on a healthy disk") }
    }

    /// Opens the journal, compares with what should be in it, and takes over what is.
    fn open(
        disk: SimDisk,
        options: Options,
        model: Arc<Model>,
        watched: bool,
    ) -> Result<World, OpenError> {
        let mut world = World::start(disk, options, model, watched)?;
        let end = world.end();
        world.know(|model| model.ends_at(end));
        world.hear();
        world.compare(end);
        Ok(world)
    }

    fn start(
        disk: SimDisk,
        options: Options,
        model: Arc<Model>,
        watched: bool,
    ) -> Result<World, OpenError> {
        if watched {
            disk.watch(|| 0);
        }
        let mut engine = recovery::open(Arc::new(disk.clone()), options.clone())?;
        let heard = std::mem::replace(&mut engine.completions, unbounded_channel().1);
        let heard = Arc::new(Mutex::new(heard));
        if watched {
            let heard = Arc::clone(&heard);
            disk.watch(move || heard.lock().len());
        }
        Ok(World {
            disk,
            engine,
            heard,
            options,
            temper: Temper::default(),
            model,
            watched,
            points: Vec::new(),
            refused: 0,
            poisoned: 0,
        })
    }

    /// The number that the epoch record of this opening has: one past what was found.
    fn end(&self) -> MessageNumber {
        self.engine.shared.next_number() - 1
    }

    fn know<T>(&mut self, change: impl FnOnce(&mut Model) -> T) -> T {
        change(Arc::make_mut(&mut self.model))
    }

    /// Opens the journal again on the disk the machine came up with; there is room on it.
    pub(crate) fn come_up(&mut self, disk: SimDisk) -> Result<(), OpenError> {
        disk.set_capacity(ROOMY);
        self.reopen(disk)
    }

    fn reopen(&mut self, disk: SimDisk) -> Result<(), OpenError> {
        let model = Arc::clone(&self.model);
        let mut world = World::open(disk, self.options.clone(), model, self.watched)?;
        world.temper = self.temper;
        world.points = self.points.drain(..).chain(world.points).collect();
        (world.refused, world.poisoned) = (self.refused, self.poisoned);
        *self = world;
        Ok(())
    }

    /// The process ends and another takes over; the machine stays up, and with it everything written.
    fn restart(&mut self) {
        self.poisoned += u64::from(self.engine.shared.is_dead());
        let mut closed = self.model.close == Close::Done;
        // What was never written is gone, and its numbers are given out anew, be it by an opening that
        // fails in the end.
        let there = recovery::open(Arc::new(self.disk.copy()), self.options.clone());
        if let Ok(there) = there {
            let end = there.shared.next_number() - 1;
            self.know(|model| model.ends_at(end));
        }
        for _ in 0..OPENINGS_MAX {
            self.engine.shared.unlock();
            match self.reopen(self.disk.clone()) {
                Ok(()) => {
                    assert!(!closed || self.engine.recovered.clean, "closed in order");
                    return;
                }
                Err(_) if self.disk.has_crashed() => return,
                Err(OpenError::Full { .. }) => self.disk.set_capacity(ROOMY),
                // A fault that was planned strikes once.
                Err(OpenError::Io { .. }) => {}
                Err(error) => panic!("a restart: {error}"),
            }
            // An opening that fails may have begun to write.
            closed = false;
            drop(self.disk.take_cuts());
        }
        panic!("the journal cannot be opened any more");
    }

    /// One random thing a node would do.
    pub(crate) fn act(&mut self, dice: &mut Dice) {
        if self.disk.has_crashed() {
            return;
        }
        if self.engine.shared.is_dead() {
            return self.restart();
        }
        match dice.below(200) {
            0..70 => self.append_some(dice),
            70..110 => self.settle(dice),
            110..120 => self.park(dice),
            120..145 => self.write(),
            145..150 => self.write_late(dice),
            150..168 => self.keep(),
            168..172 => self.flush(),
            172..174 => self.compact(),
            174..180 => self.mark(),
            180..186 => self.read_all(),
            186..190 => self.checkpoint(dice),
            190..192 => self.restart(),
            192..194 => self.close(),
            194..196 if self.temper.sick => self.fall_ill(dice),
            194..200 if self.temper.tight => self.squeeze(dice),
            _ if self.model.checkpoint_due => self.checkpoint(dice),
            _ => self.write(),
        }
    }

    /// Appends a batch of a few messages.
    pub(crate) fn append_some(&mut self, dice: &mut Dice) {
        let (batch, drafts) = self.know(|model| moves::batch(model, dice));
        match self.engine.shared.append(batch) {
            Ok((ticket, first)) => {
                self.know(|model| moves::appended(model, ticket, first, drafts));
            }
            Err(_) => {
                let closed = matches!(self.engine.shared.admission(), Admission::Closed(_));
                self.refused += u64::from(closed);
            }
        }
    }

    pub(crate) fn settle(&mut self, dice: &mut Dice) {
        let peer = 1 + dice.below(PEERS as usize) as u32;
        let Some(settle) = self.know(|model| moves::settle(model, peer, dice)) else { return };
        let first = self.engine.shared.next_number();
        self.engine.shared.settle(settle.clone());
        let records = first..self.engine.shared.next_number();
        self.know(|model| moves::settled(model, &settle, records));
    }

    pub(crate) fn park(&mut self, dice: &mut Dice) {
        let peer = 1 + dice.below(PEERS as usize) as u32;
        let Some(park) = self.know(|model| moves::park(model, peer, dice)) else { return };
        let first = self.engine.shared.next_number();
        self.engine.shared.park(&park);
        let records = first..self.engine.shared.next_number();
        self.know(|model| moves::parked(model, &park, records));
    }

    fn tick(&mut self) -> u64 {
        self.know(|model| {
            model.now_ms += 1;
            model.now_ms
        })
    }

    /// The writer's turn.
    pub(crate) fn write(&mut self) {
        let mut items = Vec::new();
        self.engine.shared.take_work(&mut items);
        self.engine.writer.turn(&mut items);
        self.hear();
    }

    /// The same, while more is settled and parked than the writer takes along.
    fn write_late(&mut self, dice: &mut Dice) {
        let mut items = Vec::new();
        self.engine.shared.take_work(&mut items);
        for _ in 0..3 {
            self.settle(dice);
            self.park(dice);
        }
        self.engine.writer.turn(&mut items);
        self.hear();
    }

    /// The keeper's turn.
    pub(crate) fn keep(&mut self) {
        self.engine.keeper.turn();
        self.hear();
    }

    /// Copies whatever is worth it, as if there were no pauses.
    pub(crate) fn compact(&mut self) {
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
        self.hear();
    }

    /// The writer finds nothing to do.
    pub(crate) fn mark(&mut self) {
        self.engine.writer.mark();
        self.hear();
    }

    pub(crate) fn flush(&mut self) {
        let next = self.engine.shared.next_number();
        let token = self.tick();
        self.know(|model| model.flushes.insert(token, next));
        self.engine.shared.flush(token);
        self.write();
    }

    fn checkpoint(&mut self, dice: &mut Dice) {
        self.know(|model| model.checkpoint_due = false);
        let state: Vec<u8> = (self.model.admin.len() as u64).to_be_bytes().to_vec();
        self.engine.shared.checkpoint(Bytes::from(state));
        match dice.chance(50) {
            true => self.write(),
            false => self.write_late(dice),
        }
        if dice.chance(50) {
            self.keep();
        }
    }

    /// Ends in order and starts again.
    fn close(&mut self) {
        self.know(|model| model.close = Close::Tried);
        self.engine.shared.close();
        self.write();
        self.keep();
        if !self.engine.shared.is_dead() {
            let next = self.engine.shared.next_number();
            self.know(|model| {
                model.close = Close::Done;
                model.sure = model.sure.max(next);
            });
        }
        self.restart();
    }

    /// Something fails soon.
    fn fall_ill(&mut self, dice: &mut Dice) {
        let step = self.disk.steps() + 1 + dice.below(12) as u64;
        self.disk.fault_at(step, [Fault::Failed, Fault::Full, Fault::Short][dice.below(3)]);
    }

    /// Somebody else takes the room, or gives it back.
    fn squeeze(&mut self, dice: &mut Dice) {
        let free = self.disk.free_bytes().unwrap();
        let capacity = match free > ROOMY / 4 {
            true => ROOMY - free + dice.below(12 * 1024) as u64,
            false => ROOMY,
        };
        self.disk.set_capacity(capacity);
    }

    /// Takes note of what the journal said, and of what it had said by each step of the disk.
    fn hear(&mut self) {
        let mut completions = Vec::new();
        while let Ok(completion) = self.heard.lock().try_recv() {
            completions.push(completion);
        }
        let mut heard = 0;
        let cuts = if self.watched { self.disk.take_cuts() } else { Vec::new() };
        for cut in cuts {
            for Completion { ticket, end } in &completions[heard..cut.word.max(heard)] {
                self.know(|model| model.hear(ticket.0, end));
            }
            heard = cut.word.max(heard);
            let (model, options) = (Arc::clone(&self.model), self.options.clone());
            self.points.push(Point { cut, model, options });
        }
        for Completion { ticket, end } in &completions[heard..] {
            self.know(|model| model.hear(ticket.0, end));
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
    pub(crate) fn read_all(&self) {
        for peer in 1..=PEERS {
            let open = self.model.with_fate(peer, |fate| fate == Fate::Open);
            let parked = self.model.with_fate(peer, |fate| matches!(fate, Fate::Parked(_)));
            let small_pages = peer == 1;
            self.check_lane(peer, Lane::Open, &self.lane(peer, Lane::Open, small_pages), &open);
            self.check_lane(peer, Lane::Parked, &self.lane(peer, Lane::Parked, false), &parked);
        }
        self.check_lives();
    }

    fn check_lane(&self, peer: u32, lane: Lane, read: &[Stored], wanted: &[MessageNumber]) {
        assert_eq!(numbers(read), wanted, "{lane:?} messages of peer {peer}");
        for stored in read {
            let body = &self.model.messages[&stored.number].body;
            assert_eq!(stored.body[..], body[..], "body of {}", stored.number);
        }
        let backlog = self.engine.shared.state.lock().backlog(PeerId(peer));
        match lane {
            Lane::Open => {
                assert_eq!(backlog.messages, wanted.len() as u64, "count of peer {peer}");
                let bytes: usize = read.iter().map(|stored| stored.body.len()).sum();
                assert!(backlog.bytes == bytes as u64 || !wanted.is_empty(), "bytes of {peer}");
                let lowest = wanted.first().copied().unwrap_or(MessageNumber::MAX);
                assert!(backlog.floor < lowest, "floor of peer {peer}");
            }
            Lane::Parked => assert_eq!(backlog.parked, wanted.len() as u64, "parked of {peer}"),
        }
    }

    /// Compares what is told of the newest messages and of some older ones.
    fn check_lives(&self) {
        let aged = self.options.history_bytes_max < ROOMY;
        let known = self.model.messages.range(..self.model.sure).rev();
        let some = known.enumerate().filter(|(place, _)| *place < 10 || place % 7 == 0);
        for (number, message) in some.map(|(_, (number, message))| (*number, message)) {
            match self.engine.shared.lookup(number) {
                Ok(life) => self.model.check_life(number, &life, aged),
                Err(LookupError::AgedOut) => {
                    let live = |fate: &Fate| matches!(fate, Fate::Open | Fate::Parked(_));
                    let live = message.fates.iter().flatten().any(live);
                    assert!(aged && !live, "{number} has aged out");
                }
                Err(error) => panic!("{number}: {error}"),
            }
        }
    }

    /// Compares, right after an opening, what the journal found with what it must and may have found.
    fn compare(&mut self, end: MessageNumber) {
        let recovered = &self.engine.recovered;
        let odd = |finding: &&String| !finding.contains("never confirmed and is cut");
        assert_eq!(recovered.findings.iter().find(odd), None, "a crash is no damage");
        assert!(recovered.epoch > self.model.epoch, "the epoch rises");
        let was_open = self.model.epoch > 0 && self.model.close == Close::No;
        assert!(!was_open || !recovered.clean, "it was not closed in order");
        let epoch = recovered.epoch;
        self.compare_admin();
        for peer in 1..=PEERS {
            let open = numbers(&self.lane(peer, Lane::Open, false)).into_iter().collect();
            let parked = numbers(&self.lane(peer, Lane::Parked, false)).into_iter().collect();
            self.know(|model| model.adopt(peer, end, &open, &parked));
        }
        self.know(|model| {
            model.sure = end;
            model.epoch = epoch;
            model.close = Close::No;
            model.checkpoint_due = false;
            model.tickets.clear();
            model.flushes.clear();
        });
        self.read_all();
    }

    fn compare_admin(&self) {
        let recovered = &self.engine.recovered;
        let checkpointed = recovered.checkpoint.as_ref().map_or(0, |state| {
            usize::try_from(u64::from_be_bytes(state[..].try_into().unwrap())).unwrap()
        });
        let bodies: Vec<&[u8]> = self.model.admin.iter().map(|(_, body)| &body[..]).collect();
        assert!(
            checkpointed <= bodies.len(),
            "the checkpoint knows of admin records that are gone"
        );
        let since: Vec<&[u8]> = recovered.admin.iter().map(|body| &body[..]).collect();
        assert_eq!(since, bodies[checkpointed..], "admin records since the checkpoint");
        let messages = &self.model.messages;
        for run in &recovered.published {
            for n in 0..u64::from(run.count) {
                let message = &messages[&(run.first_number + n)];
                assert_eq!(message.sequence, run.first_sequence + n, "sequence in a run");
            }
        }
        if let Some(first) = recovered.published.first().map(|run| run.first_number) {
            let told: u64 = recovered.published.iter().map(|run| u64::from(run.count)).sum();
            assert_eq!(told, messages.range(first..).count() as u64, "published since then");
        }
    }
}

fn numbers(read: &[Stored]) -> Vec<MessageNumber> {
    read.iter().map(|stored| stored.number).collect()
}
