//! The journal with its threads on the simulated disk: appends, settles and reads while a write or a
//! sync fails, or the machine goes down, at a step nobody chose. What the threads make of each other is
//! not repeatable; what must hold whatever they do is.
//!
//! `RESTANTE_STRESS_LIVES` sets how many lives the journals have together, `RESTANTE_SEED` where the
//! seeds start.

use super::super::storage::sim::{Dice, Fault, SimDisk};
use super::super::{Options, open_on};
use super::crash::model::{Close, Fate, Model, PEERS};
use super::crash::moves;
use super::crash::world::{ROOMY, World};
use super::small;
use bytes::Bytes;
use restante_actors::journal::{Completion, End, Journal, Lane, Opened, Read, ReadError};
use restante_protocol::id::PeerId;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

const LIVES_DEFAULT: u64 = 160;
/// Lives of one journal, one after the other.
const LIVES_EACH: u64 = 4;
const ACTIONS: usize = 120;

fn options() -> Options {
    Options {
        spare_segments_max: 1,
        checkpoint_bytes: 6 * 1024,
        lazy_delay: Duration::from_micros(200),
        now_ms: || 1_000,
        ..small(4 * 1024)
    }
}

fn knob(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_confirmed_is_lost_whatever_fails_under_the_threads() {
    let first = knob("RESTANTE_SEED", 1);
    let mut ends = [0u64; 3];
    for seed in first..first + knob("RESTANTE_STRESS_LIVES", LIVES_DEFAULT) / LIVES_EACH {
        let context = Context(seed);
        journal(seed, &mut ends);
        drop(context);
    }
    let [whole, sick, down] = ends;
    eprintln!("lives that ended in order: {whole}, in poison: {sick}, with the machine: {down}");
    assert!(whole > 0 && sick > 0 && down > 0, "every kind of end came: {ends:?}");
}

/// Says where it was when a check fails.
struct Context(u64);

impl Drop for Context {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("try again with RESTANTE_SEED={}", self.0);
        }
    }
}

/// Some lives of one journal, each compared with what was promised in it.
fn journal(seed: u64, ends: &mut [u64; 3]) {
    let mut dice = Dice(seed);
    let mut disk = SimDisk::new(4 * ROOMY);
    let mut model = Arc::<Model>::default();
    for _ in 0..LIVES_EACH {
        let step = disk.steps() + 20 + dice.below(400) as u64;
        match dice.below(4) {
            0 => {}
            1 => disk.crash_at(step),
            2 => disk.fault_at(step, Fault::Failed),
            _ => disk.fault_at(step, Fault::Short),
        }
        if let Ok(opened) = open_on(Arc::new(disk.clone()), options()) {
            let life = Life::begin(opened, Arc::unwrap_or_clone(model), disk.clone());
            let (after, end) = life.run(&mut dice);
            model = Arc::new(after);
            ends[end] += 1;
        }
        if disk.has_crashed() || dice.chance(50) {
            disk = disk.after_crash(None, &mut dice);
        }
        // Whatever was planned and has not come does not come any more.
        disk.crash_at(u64::MAX);
        disk.fault_at(u64::MAX, Fault::Failed);
        let world = World::found(disk.clone(), options(), model).expect("opens again");
        model = Arc::clone(&world.model);
        world.engine.shared.unlock();
        drop(world);
        disk = disk.copy();
    }
}

/// One opening, from its begin to whatever end it comes to.
struct Life {
    journal: Arc<dyn Journal>,
    completions: UnboundedReceiver<Completion>,
    model: Model,
    disk: SimDisk,
    runtime: Runtime,
    poisoned: bool,
}

impl Life {
    fn begin(opened: Opened, mut model: Model, disk: SimDisk) -> Life {
        let Opened { journal, completions, recovered } = opened;
        assert!(recovered.epoch > model.epoch, "the epoch rises");
        model.epoch = recovered.epoch;
        // What an earlier opening found and compared is still there; this one's epoch comes behind.
        model.sure = journal.next_number();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        Life { journal, completions, model, disk, runtime, poisoned: false }
    }

    /// Returns what was promised, and how it ended: in order, in poison, with the machine.
    fn run(mut self, dice: &mut Dice) -> (Model, usize) {
        for _ in 0..ACTIONS {
            if self.poisoned {
                break;
            }
            self.act(dice);
            while let Ok(completion) = self.completions.try_recv() {
                self.hear(&completion);
            }
        }
        // Everything that was begun has an end.
        while !self.model.tickets.is_empty() {
            let completion = self.completions.blocking_recv().expect("every append ends");
            self.hear(&completion);
        }
        if dice.chance(50) {
            self.model.close = Close::Tried;
            self.journal.close();
        }
        drop(self.journal);
        while let Ok(completion) = self.completions.try_recv() {
            if let End::Durable(_) | End::Flushed(_) = completion.end {
                self.model.hear(completion.ticket.0, &completion.end);
            }
        }
        let end = if self.disk.has_crashed() { 2 } else { usize::from(self.poisoned) };
        (self.model, end)
    }

    fn act(&mut self, dice: &mut Dice) {
        let peer = 1 + dice.below(PEERS as usize) as u32;
        match dice.below(20) {
            0..=9 => {
                let (batch, drafts) = moves::batch(&mut self.model, dice);
                if let Ok((ticket, first)) = self.journal.append(batch) {
                    moves::appended(&mut self.model, ticket, first, drafts);
                }
            }
            10..=14 => {
                if let Some(settle) = moves::settle(&mut self.model, peer, dice) {
                    let first = self.journal.next_number();
                    self.journal.settle(settle.clone());
                    moves::settled(&mut self.model, &settle, first..self.journal.next_number());
                }
            }
            15 => {
                if let Some(park) = moves::park(&mut self.model, peer, dice) {
                    let first = self.journal.next_number();
                    self.journal.park(park.clone());
                    moves::parked(&mut self.model, &park, first..self.journal.next_number());
                }
            }
            16 => {
                self.model.now_ms += 1;
                let token = self.model.now_ms;
                self.model.flushes.insert(token, self.journal.next_number());
                self.journal.flush(token);
            }
            17..=18 => self.read(peer),
            _ if !self.model.tickets.is_empty() => {
                let completion = self.completions.blocking_recv().expect("every append ends");
                self.hear(&completion);
            }
            _ => {}
        }
    }

    fn hear(&mut self, completion: &Completion) {
        match &completion.end {
            End::CheckpointDue => {
                let state = (self.model.admin.len() as u64).to_be_bytes();
                self.journal.checkpoint(Bytes::copy_from_slice(&state));
            }
            End::Poisoned(_) => {
                self.poisoned = true;
                self.model.tickets.remove(&completion.ticket.0);
            }
            end => self.model.hear(completion.ticket.0, end),
        }
    }

    /// What is read is what was sent and is open; what was confirmed and is open is read.
    fn read(&mut self, peer: u32) {
        let read = Read {
            peer: PeerId(peer),
            lane: Lane::Open,
            after: 0,
            through: u64::MAX,
            bytes_max: 1 << 20,
            messages_max: 10_000,
        };
        let page = match self.runtime.block_on(self.journal.next(read)) {
            Ok(page) => page,
            Err(ReadError::Unavailable(_)) => {
                self.poisoned = true;
                return;
            }
            // The machine goes down under the reader's hands.
            Err(ReadError::Damaged { .. }) if self.disk.has_crashed() => return,
            Err(error) => panic!("{error}"),
        };
        let is_open = |fate| fate == Fate::Open;
        for stored in &page.messages {
            let message = self.model.messages.get(&stored.number).expect("a message we sent");
            assert_eq!(stored.body[..], message.body[..], "body of {}", stored.number);
            let fate = message.fates[peer as usize];
            assert!(fate.is_some_and(is_open), "{} is {fate:?} for {peer}", stored.number);
        }
        assert!(page.messages.is_sorted_by(|a, b| a.number < b.number), "in order, each once");
        for number in self.model.with_fate(peer, is_open) {
            let there = page.messages.iter().any(|stored| stored.number == number);
            assert!(there || number > page.through, "{number} was confirmed to {peer}");
        }
    }
}
