//! What the handle and the threads share: the intake of records to be written, the state, the
//! segments made ready, and the one word that says whether all is well.
//!
//! Locks, in the order they may be taken: making, intake, state, pool, trouble; all others are held alone.
//! The intake is held for a push; the state for a batch of settles, a commit's counters or a page of
//! positions; over a disk access only `making`, against who else might make a segment ready, and leave
//! to remove (`pins`), which a backup waits for.

use super::backup::Pins;
use super::cache::Reading;
use super::format::{RecordHeader, record_bytes};
use super::history::HistoryNote;
use super::options::Options;
use super::state::State;
use super::storage::{Disk, DiskFile};
use bytes::{Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use restante_actors::journal::{
    Admission, Batch, BatchRecord, Caps, Completion, End, Settle, Ticket,
};
use restante_protocol::id::{MessageNumber, NodeTag};
use restante_protocol::record::{
    MessageRecord, ParkRecord, RECORD_HEADER_BYTES, RecordKind, SettleRecord,
};
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
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
    outstanding: AtomicUsize,
    /// Copy of the intake's next number, for readers without the lock.
    next_number: AtomicU64,
    /// One of [`OPEN`], [`FULL`], [`DEAD`].
    gate: AtomicU8,
    /// Why the gate is not open.
    trouble: Mutex<Option<Refusal>>,
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
}

const OPEN: u8 = 0;
const FULL: u8 = 1;
const DEAD: u8 = 2;

/// Records and orders on their way to the writer.
pub(super) struct Intake {
    queue: Vec<Item>,
    pub(super) next_number: MessageNumber,
    pub(super) next_ticket: u64,
    /// Something in the queue wants to be written now.
    urgent: bool,
    /// When the oldest thing that may wait was queued, if anything waits.
    lazy_since: Option<Instant>,
    lazy_bytes: usize,
    writer_sleeps: bool,
    closing: bool,
}

/// One thing for the writer to do.
pub(super) enum Item {
    /// Records with their first number; of an append with its ticket, of settles and parks without.
    Records { ticket: Option<Ticket>, first: MessageNumber, batch: Batch },
    /// Answer with [`End::Flushed`] once all before is durable.
    Flush(u64),
    /// Take a snapshot here.
    Checkpoint(Bytes),
    /// Write the closing record and stop.
    Close,
}

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
    pub(super) snapshot: super::checkpoint::Snapshot,
    pub(super) application: Bytes,
    /// [`State::moves`] when the snapshot was taken.
    pub(super) moves: u64,
}

/// What the writer's wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Work,
    Idle,
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
        let intake = Intake {
            queue: Vec::new(),
            next_number: parts.next_number,
            next_ticket: 1,
            urgent: false,
            lazy_since: None,
            lazy_bytes: 0,
            writer_sleeps: false,
            closing: false,
        };
        Shared {
            caps: options.caps(),
            options,
            disk: parts.disk,
            lock: Mutex::new(Some(parts.lock)),
            node: parts.node,
            epoch: parts.epoch,
            seed: parts.seed,
            intake: Mutex::new(intake),
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
            disk_bytes: AtomicU64::new(parts.disk_bytes),
            checkpoint_asked: AtomicBool::new(false),
            since_checkpoint: AtomicU64::new(0),
            checkpoint_bytes: AtomicU64::new(0),
            last_lazy: AtomicU64::new(0),
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

    /// See [`restante_actors::journal::Journal::append`].
    pub(super) fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)> {
        if let Err(refusal) = self.check_batch(&batch) {
            return Err((batch, refusal));
        }
        let len = batch.bytes.len();
        let outstanding = self.outstanding.fetch_add(len, Ordering::AcqRel);
        if outstanding + len > self.caps.append_bytes_max && outstanding > 0 {
            self.outstanding.fetch_sub(len, Ordering::AcqRel);
            let detail = format!(
                "{outstanding} bytes wait for the disk, at most {} may",
                self.caps.append_bytes_max
            );
            return Err((batch, Refusal::new(Code::Overloaded, detail)));
        }
        let mut intake = self.intake.lock();
        if intake.closing {
            drop(intake);
            self.outstanding.fetch_sub(len, Ordering::AcqRel);
            return Err((batch, Refusal::new(Code::ShuttingDown, "the journal is closed")));
        }
        let first = intake.number(batch.records.len());
        self.next_number.store(intake.next_number, Ordering::Release);
        let ticket = Ticket(intake.next_ticket);
        intake.next_ticket += 1;
        intake.queue.push(Item::Records { ticket: Some(ticket), first, batch });
        self.wake_writer(intake);
        Ok((ticket, first))
    }

    /// Refuses what cannot be written as it is: the writer has no one to give it back to.
    fn check_batch(&self, batch: &Batch) -> Result<(), Refusal> {
        // Changes of the node's own state go on with a full disk: they may be what makes room.
        let publishes = || batch.records.iter().any(|record| record.kind == RecordKind::Message);
        if let Admission::Closed(refusal) = self.admission()
            && (self.is_dead() || publishes())
        {
            return Err(refusal);
        }
        if batch.bytes.len() > self.caps.batch_bytes_max {
            let (len, max) = (batch.bytes.len(), self.caps.batch_bytes_max);
            let detail = format!("a batch of {len} bytes, at most {max} are taken");
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        let mut at = 0;
        for record in &batch.records {
            let end = at + record_bytes(record.body_len as usize);
            let sound = record.offset as usize == at
                && record.payload_at <= record.body_len.min(u32::from(u16::MAX))
                && record.body_len as usize <= self.caps.record_bytes_max
                && end <= batch.bytes.len()
                && match record.kind {
                    RecordKind::Admin => true,
                    RecordKind::Message => {
                        MessageRecord::parse(&batch.bytes[at + RECORD_HEADER_BYTES..end]).is_some()
                    }
                    _ => false,
                };
            if !sound {
                let detail =
                    format!("the record at byte {at} of a batch is not laid out as it says");
                return Err(Refusal::new(Code::Internal, detail));
            }
            at = end;
        }
        if at != batch.bytes.len() || batch.records.is_empty() {
            let detail = "a batch must consist of its records and nothing else";
            return Err(Refusal::new(Code::Internal, detail));
        }
        Ok(())
    }

    /// See [`restante_actors::journal::Journal::settle`].
    pub(super) fn settle(&self, mut settle: Settle) {
        if self.is_dead() {
            return;
        }
        let emptied = self.state.lock().settle(&mut settle.record, &settle.numbers);
        if emptied {
            self.wake_keeper();
        }
        self.push_settle(&settle.record);
    }

    /// Queues a settle; one that is too long for a record becomes several, the floor in the last. Too
    /// long is also what one checksum does not cover: see [`RecordHeader::payload_at`].
    fn push_settle(&self, record: &SettleRecord) {
        let mut body = Vec::with_capacity(64);
        record.encode(&mut body);
        let max = self.caps.record_bytes_max.min(usize::from(u16::MAX));
        if body.len() <= max {
            return self.push_lazy(RecordKind::Settle, &body);
        }
        let details = record.details.iter().map(|detail| detail.number);
        let mut numbers: Vec<_> = record.above.iter().copied().chain(details).collect();
        numbers.sort_unstable();
        numbers.dedup();
        if numbers.len() < 2 {
            return self.push_lazy(RecordKind::Settle, &body);
        }
        // Both lists are cut at one number: whoever finds a message in a half finds all that is said
        // of it. A floor in the first would hide the details of the second from the ledger; without
        // one, what has details stands there by its number.
        let middle = numbers.len() / 2;
        let from = numbers[middle];
        numbers.truncate(middle);
        let (mut low, mut high) = (record.clone(), record.clone());
        low.floor = 0;
        low.above = numbers;
        low.details.retain(|detail| detail.number < from);
        high.above.retain(|number| *number >= from);
        high.details.retain(|detail| detail.number >= from);
        self.push_settle(&low);
        self.push_settle(&high);
    }

    /// See [`restante_actors::journal::Journal::park`].
    pub(super) fn park(&self, park: &ParkRecord) {
        if self.is_dead() {
            return;
        }
        self.state.lock().park(park.peer, park.number);
        let mut body = Vec::with_capacity(64);
        park.encode(&mut body);
        self.push_lazy(RecordKind::Park, &body);
    }

    fn push_lazy(&self, kind: RecordKind, body: &[u8]) {
        let room = record_bytes(body.len());
        if body.len() > self.caps.record_bytes_max {
            // Only a value or reason longer than a whole segment gets here; segments of the sizes a
            // node can be configured with are larger.
            return;
        }
        let mut intake = self.intake.lock();
        let number = intake.number(1);
        self.last_lazy.store(number, Ordering::Release);
        self.next_number.store(intake.next_number, Ordering::Release);
        let max = self.caps.batch_bytes_max;
        let batch = match intake.queue.last_mut() {
            Some(Item::Records { ticket: None, batch, .. }) if batch.bytes.len() + room <= max => {
                batch
            }
            _ => {
                let batch = Batch { bytes: BytesMut::with_capacity(1024), records: Vec::new() };
                intake.queue.push(Item::Records { ticket: None, first: number, batch });
                match intake.queue.last_mut() {
                    Some(Item::Records { batch, .. }) => batch,
                    _ => return,
                }
            }
        };
        let record = BatchRecord {
            kind,
            offset: batch.bytes.len() as u32,
            body_len: body.len() as u32,
            payload_at: (body.len() as u32).min(u32::from(u16::MAX)),
        };
        batch.records.push(record);
        batch.bytes.resize(batch.bytes.len() + RECORD_HEADER_BYTES, 0);
        batch.bytes.extend_from_slice(body);
        intake.lazy_bytes += room;
        let first = intake.lazy_since.is_none();
        if first {
            intake.lazy_since = Some(Instant::now());
        }
        // The writer is woken once to look at the clock, and again when enough waits.
        if intake.lazy_bytes >= self.options.lazy_bytes_max {
            self.wake_writer(intake);
        } else if first && intake.writer_sleeps {
            drop(intake);
            self.writer_wake.notify_one();
        }
    }

    pub(super) fn flush(&self, token: u64) {
        self.order(Item::Flush(token));
    }

    pub(super) fn checkpoint(&self, state: Bytes) {
        self.since_checkpoint.store(0, Ordering::Relaxed);
        self.checkpoint_asked.store(false, Ordering::Release);
        self.order(Item::Checkpoint(state));
    }

    fn order(&self, item: Item) {
        let mut intake = self.intake.lock();
        if !intake.closing {
            intake.queue.push(item);
            self.wake_writer(intake);
        }
    }

    /// Closes the door and asks the writer to end.
    pub(super) fn close(&self) {
        let mut intake = self.intake.lock();
        if !intake.closing {
            intake.closing = true;
            intake.queue.push(Item::Close);
            self.wake_writer(intake);
        }
    }

    /// Has the threads end without writing anything more.
    pub(super) fn abandon(&self) {
        if !self.intake.lock().closing {
            let gone = std::io::Error::other("the journal was dropped without being closed");
            self.poison("going on", &gone);
        }
    }

    /// Lets another process, or this one again, open the journal. Nothing is written after this.
    pub(super) fn unlock(&self) {
        *self.lock.lock() = None;
    }

    /// Has the keeper end after a last look around.
    pub(super) fn close_keeper(&self) {
        self.keeper.lock().closing = true;
        self.keeper_wake.notify_one();
    }

    fn wake_writer(&self, mut intake: parking_lot::MutexGuard<'_, Intake>) {
        intake.urgent = true;
        let sleeps = intake.writer_sleeps;
        drop(intake);
        if sleeps {
            self.writer_wake.notify_one();
        }
    }

    /// Takes everything queued without waiting: the writer's turn in a test without threads.
    #[cfg(test)]
    pub(super) fn take_work(&self, items: &mut Vec<Item>) {
        self.intake.lock().take(items);
    }

    /// Waits until something is to be written and takes everything; or until `idle` has passed with
    /// nothing to do, if that is wanted.
    pub(super) fn wait_for_work(&self, items: &mut Vec<Item>, idle: Option<Duration>) -> Wake {
        let idle_at = idle.map(|idle| Instant::now() + idle);
        let mut intake = self.intake.lock();
        loop {
            let lazy_at = intake.lazy_since.map(|since| since + self.options.lazy_delay);
            if intake.urgent || lazy_at.is_some_and(|at| at <= Instant::now()) {
                intake.take(items);
                return Wake::Work;
            }
            intake.writer_sleeps = true;
            let timed_out = match lazy_at.or(idle_at) {
                Some(until) => self.writer_wake.wait_until(&mut intake, until).timed_out(),
                None => {
                    self.writer_wake.wait(&mut intake);
                    false
                }
            };
            intake.writer_sleeps = false;
            if timed_out && lazy_at.is_none() && intake.queue.is_empty() {
                return Wake::Idle;
            }
        }
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

impl Intake {
    /// Hands out `count` numbers.
    fn number(&mut self, count: usize) -> MessageNumber {
        let first = self.next_number;
        self.next_number += count as u64;
        first
    }

    fn take(&mut self, items: &mut Vec<Item>) {
        items.append(&mut self.queue);
        self.urgent = false;
        self.lazy_since = None;
        self.lazy_bytes = 0;
    }
}

/// The header of record `number`, as a batch describes it.
pub(super) fn header_of(record: &BatchRecord, number: MessageNumber, flags: u8) -> RecordHeader {
    RecordHeader {
        length: record.body_len,
        kind: record.kind as u8,
        flags,
        payload_at: record.payload_at as u16,
        number,
    }
}
