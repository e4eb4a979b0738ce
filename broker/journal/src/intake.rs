//! The intake: records and orders on their way to the writer, numbered as they come.
//!
//! What must be on disk soon wakes the writer at once; settles and parks may wait for company, for a
//! bounded time and number of bytes.

use super::format::{RecordHeader, record_bytes};
use super::shared::Shared;
use bytes::{Bytes, BytesMut};
use restante_actors::journal::{Admission, Batch, BatchRecord, Settle, Ticket};
use restante_protocol::id::MessageNumber;
use restante_protocol::record::{
    MessageRecord, ParkRecord, RECORD_HEADER_BYTES, RecordKind, SettleRecord,
};
use restante_protocol::refusal::{Code, Refusal};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
    /// When it wakes by itself, if it sleeps and does.
    writer_wakes_at: Option<Instant>,
    closing: bool,
}

/// One thing for the writer to do.
pub(super) enum Item {
    /// Records with their first number; of an append with its ticket, of settles and parks without.
    Records { ticket: Option<Ticket>, first: MessageNumber, batch: Batch },
    /// Answer with [`End::Flushed`](restante_actors::journal::End::Flushed) once all before is durable.
    Flush(u64),
    /// Take a snapshot here.
    Checkpoint(Bytes),
    /// Write the closing record and stop.
    Close,
}

/// What the writer's wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    Work,
    Idle,
}

impl Intake {
    /// An empty one that goes on at `next_number`.
    pub(super) fn new(next_number: MessageNumber) -> Intake {
        Intake {
            queue: Vec::new(),
            next_number,
            next_ticket: 1,
            urgent: false,
            lazy_since: None,
            lazy_bytes: 0,
            writer_sleeps: false,
            writer_wakes_at: None,
            closing: false,
        }
    }

    /// Whether the writer has to be woken to look at the clock at `at`: not if it will by then.
    fn oversleeps(&self, at: Instant) -> bool {
        self.writer_sleeps && self.writer_wakes_at.is_none_or(|wakes_at| wakes_at > at)
    }

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

impl Shared {
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
        let _under_way = self.lazy_under_way();
        let emptied = self.state.lock().settle(&mut settle.record, &settle.numbers);
        if emptied {
            self.wake_keeper();
        }
        self.push_settle(&settle.record);
    }

    /// Says, until it is dropped, that the state may know of something of which there is no record yet.
    /// A look-up in between must not take the record for lost.
    fn lazy_under_way(&self) -> LazyUnderWay<'_> {
        self.lazy_under_way.fetch_add(1, Ordering::AcqRel);
        LazyUnderWay(self)
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
        let _under_way = self.lazy_under_way();
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
        let is_first = intake.lazy_since.is_none();
        let since = *intake.lazy_since.get_or_insert_with(Instant::now);
        // The writer is woken once to look at the clock, and again when enough waits. Behind a lone message it
        // is about to look anyway, and its acks need no thread to be woken.
        if intake.lazy_bytes >= self.options.lazy_bytes_max {
            self.wake_writer(intake);
        } else if is_first && intake.oversleeps(since + self.options.lazy_delay) {
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

    fn wake_writer(&self, mut intake: parking_lot::MutexGuard<'_, Intake>) {
        intake.urgent = true;
        let sleeps = intake.writer_sleeps;
        drop(intake);
        if sleeps {
            self.writer_wake.notify_one();
        }
    }

    /// Takes everything queued without waiting: the writer's turn where there are no threads.
    #[cfg(any(test, feature = "sim"))]
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
            intake.writer_wakes_at = lazy_at.or(idle_at);
            let timed_out = match intake.writer_wakes_at {
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
}

/// See [`Shared::lazy_under_way`].
struct LazyUnderWay<'a>(&'a Shared);

impl Drop for LazyUnderWay<'_> {
    fn drop(&mut self) {
        self.0.lazy_under_way.fetch_sub(1, Ordering::AcqRel);
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
