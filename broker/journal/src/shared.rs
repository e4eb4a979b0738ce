//! What the handle and the threads share: the state, the segments made ready, and the one word that
//! says whether all is well; and the [`intake`](super::intake) of records to be written.
//!
//! Locks, in the order they may be taken: making, intake, state, pool, trouble; all others are held alone.
//! The intake is held for a push; the state for a batch of settles, a commit's counters or a page of
//! positions; over a disk access only `making`, against who else might make a segment ready, and leave
//! to remove (`pins`), which a backup waits for.

use super::backup::Pins;
use super::cache::Reading;
use super::checkpoint::{Snapshot, Straddled};
use super::history::HistoryNote;
use super::intake::Intake;
use super::options::Options;
use super::state::State;
use super::storage::{Disk, DiskFile};
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use restante_actors::journal::{Admission, Caps, Completion, End, Ticket};
use restante_protocol::id::{MessageNumber, NodeTag};
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use tokio::sync::mpsc::UnboundedSender;

/// See the module.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) caps: Caps,
    pub(super) disk: Arc<dyn Disk>,
    /// Held until the journal is closed.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
    pub(super) node: NodeTag,
    pub(super) epoch: u32,
    /// See [`Options::seed`]; that of the journal's creation.
    pub(super) seed: u32,
    pub(super) intake: Mutex<Intake>,
    pub(super) writer_wake: Condvar,
    pub(super) state: Mutex<State>,
    pub(super) pool: Mutex<Pool>,
    /// Held while a segment is made ready, so that ids ascend in the order in which segments are used.
    pub(super) making: Mutex<()>,
    pub(super) reading: Reading,
    /// Holds off all removals while a backup is taken.
    pub(super) pins: Pins,
    pub(super) keeper: Mutex<KeeperWork>,
    pub(super) keeper_wake: Condvar,
    pub(super) completions: UnboundedSender<Completion>,
    /// Bytes appended and not completed.
    pub(super) outstanding: AtomicUsize,
    /// Copy of the intake's next number, for readers without the lock.
    pub(super) next_number: AtomicU64,
    /// One of [`OPEN`], [`FULL`], [`DEAD`].
    gate: AtomicU8,
    /// Why the gate is not open.
    trouble: Mutex<Option<Refusal>>,
    /// See [`Commits`](restante_actors::journal::Commits).
    pub(super) commits: AtomicU64,
    pub(super) slowest_us: AtomicU64,
    /// Bytes of all files.
    pub(super) disk_bytes: AtomicU64,
    /// A checkpoint has been asked for and not been handed over yet.
    pub(super) checkpoint_asked: AtomicBool,
    /// Bytes of log since the last checkpoint was handed over.
    pub(super) since_checkpoint: AtomicU64,
    /// Bytes of the last checkpoint.
    pub(super) checkpoint_bytes: AtomicU64,
    /// Number of the last settle or park that was queued.
    pub(super) last_lazy: AtomicU64,
    /// Settles and parks that the state may know of already and that are not queued yet.
    pub(super) lazy_under_way: AtomicU64,
    /// Nothing has been written for a while.
    pub(super) rests: AtomicBool,
    /// Nobody who asks is answered any more: the journal is being closed.
    closing: AtomicBool,
}

const OPEN: u8 = 0;
const FULL: u8 = 1;
const DEAD: u8 = 2;

/// Segments that are ready to be written to, and used ones that may become so.
#[derive(Default)]
pub(super) struct Pool {
    pub(super) ready: VecDeque<Ready>,
    /// Used segments of full size.
    pub(super) spares: Vec<Spare>,
    /// What is left of segments that are gone, in no order.
    pub(super) history: Vec<HistoryNote>,
    /// Segments that a cold one has taken the place of, until a checkpoint says so.
    pub(super) retired: Vec<Retired>,
    pub(super) next_segment: u64,
    /// Allocating another one failed for want of room.
    pub(super) starved: bool,
}

/// A segment that a cold one has taken the place of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retired {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    /// Where its records end.
    pub(super) data_end: u64,
    pub(super) file_bytes: u64,
    pub(super) index_bytes: u64,
}

/// A segment with its header written and synced, its name durable, its room allocated.
pub(super) struct Ready {
    pub(super) id: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    /// Everything below has been written to before: syncing a write there is twice as fast as where
    /// room is only allocated.
    pub(super) filled: u64,
}

/// A used segment that may be written again.
#[derive(Clone, Debug)]
pub(super) struct Spare {
    pub(super) path: String,
    /// Whether all of it is known to have been written.
    pub(super) filled: bool,
}

/// Orders for the keeper.
#[derive(Default)]
pub(super) struct KeeperWork {
    pub(super) checkpoint: Option<CheckpointJob>,
    pub(super) wake: bool,
    pub(super) closing: bool,
    /// The writer waits for room, and so does every checkpoint behind what it waits with.
    pub(super) stalled: bool,
}

/// A checkpoint to be written.
pub(super) struct CheckpointJob {
    pub(super) snapshot: Snapshot,
    pub(super) application: Bytes,
    /// [`State::moves`] when the snapshot was taken.
    pub(super) moves: u64,
    /// Where the log was when its position was chosen.
    pub(super) straddled: Straddled,
}

/// What a `Shared` is made of besides its options.
pub(super) struct Parts {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) lock: Box<dyn Send + Sync>,
    pub(super) node: NodeTag,
    pub(super) epoch: u32,
    pub(super) seed: u32,
    pub(super) state: State,
    pub(super) pool: Pool,
    pub(super) next_number: MessageNumber,
    pub(super) disk_bytes: u64,
    pub(super) completions: UnboundedSender<Completion>,
}

impl Shared {
    pub(super) fn new(options: Options, parts: Parts) -> Shared {
        Shared {
            caps: options.caps(),
            options,
            disk: parts.disk,
            lock: Mutex::new(Some(parts.lock)),
            node: parts.node,
            epoch: parts.epoch,
            seed: parts.seed,
            intake: Mutex::new(Intake::new(parts.next_number)),
            writer_wake: Condvar::new(),
            state: Mutex::new(parts.state),
            pool: Mutex::new(parts.pool),
            making: Mutex::new(()),
            reading: Reading::default(),
            pins: Pins::default(),
            keeper: Mutex::new(KeeperWork::default()),
            keeper_wake: Condvar::new(),
            completions: parts.completions,
            outstanding: AtomicUsize::new(0),
            next_number: AtomicU64::new(parts.next_number),
            gate: AtomicU8::new(OPEN),
            trouble: Mutex::new(None),
            commits: AtomicU64::new(0),
            slowest_us: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(parts.disk_bytes),
            checkpoint_asked: AtomicBool::new(false),
            since_checkpoint: AtomicU64::new(0),
            checkpoint_bytes: AtomicU64::new(0),
            last_lazy: AtomicU64::new(0),
            lazy_under_way: AtomicU64::new(0),
            rests: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn admission(&self) -> Admission {
        if self.gate.load(Ordering::Acquire) == OPEN {
            return Admission::Open;
        }
        match self.trouble.lock().clone() {
            Some(refusal) => Admission::Closed(refusal),
            None => Admission::Open,
        }
    }

    pub(super) fn next_number(&self) -> MessageNumber {
        self.next_number.load(Ordering::Acquire)
    }

    /// Lets another process, or this one again, open the journal. Nothing is written after this.
    pub(super) fn unlock(&self) {
        *self.lock.lock() = None;
    }

    /// Lets questions that wait for an answer go without one: however many there are, no closing waits
    /// for them.
    pub(super) fn end_answers(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether questions get no answers any more.
    pub(super) fn has_ended_answers(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Has the keeper end after a last look around.
    pub(super) fn close_keeper(&self) {
        self.keeper.lock().closing = true;
        self.keeper_wake.notify_one();
    }

    /// Asks the keeper to look around.
    pub(super) fn wake_keeper(&self) {
        let mut work = self.keeper.lock();
        if !work.wake {
            work.wake = true;
            drop(work);
            self.keeper_wake.notify_one();
        }
    }

    /// An append of `bytes` bytes has ended.
    pub(super) fn complete(&self, ticket: Ticket, bytes: usize, end: End) {
        self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
        self.tell(ticket, end);
    }

    /// Says something to the router. It may have gone away; then no one is left to be told.
    pub(super) fn tell(&self, ticket: Ticket, end: End) {
        let _ = self.completions.send(Completion { ticket, end });
    }

    /// Whether the journal can no longer write.
    pub(super) fn is_dead(&self) -> bool {
        self.gate.load(Ordering::Acquire) == DEAD
    }

    /// Why the journal refuses, if it does.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.trouble.lock().clone()
    }

    /// Nothing is confirmed from here on, and the router is told so, whether it waits for anything or
    /// not. The first reason stays.
    pub(super) fn poison(&self, what: &str, error: &std::io::Error) -> Refusal {
        let mut trouble = self.trouble.lock();
        if self.gate.swap(DEAD, Ordering::AcqRel) == DEAD
            && let Some(refusal) = &*trouble
        {
            return refusal.clone();
        }
        let refusal = Refusal::new(Code::JournalPoisoned, format!("{what} failed: {error}"));
        *trouble = Some(refusal.clone());
        drop(trouble);
        self.tell(Ticket(0), End::Poisoned(refusal.clone()));
        refusal
    }

    /// Refuses publishes for want of room, or takes them again.
    pub(super) fn set_full(&self, full: Option<Refusal>) {
        let mut trouble = self.trouble.lock();
        if self.gate.load(Ordering::Acquire) != DEAD {
            self.gate.store(if full.is_some() { FULL } else { OPEN }, Ordering::Release);
            *trouble = full;
        }
    }

    /// The name of a segment's file.
    pub(super) fn segment_path(id: u64) -> String {
        format!("segments/{id:012x}.seg")
    }

    /// The name of a segment's index file.
    pub(super) fn index_path(id: u64) -> String {
        format!("segments/{id:012x}.idx")
    }
}
