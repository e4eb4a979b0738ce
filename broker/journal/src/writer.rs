//! The writer: takes everything queued, fills in headers and checksums, and puts it on disk with one
//! write and one sync per commit.
//!
//! ```text
//! intake ─► commit (checksums, positions) ─► write ─► sync ─► state ─► completions
//!                     └ segment full: seal it, take a ready one
//! ```
//!
//! A lone append is a commit of its own, at once; while a sync runs the next commit gathers, so that
//! load makes large ones. Nothing here waits for a clock. The first record of each commit is flagged:
//! everything with a lower number is synced. A failed write or sync poisons the journal: no file is
//! synced again, every ticket from there on ends as poisoned.

use super::checkpoint::{Snapshot, Straddled};
use super::format::{
    FLAG_FIRST, KIND_MARK, RecordHeader, SEGMENT_HEADER_BYTES, Seed, record_bytes,
};
use super::intake::{Item, Wake, header_of};
use super::refs::Ref;
use super::shared::{CheckpointJob, Ready, Shared};
use super::state::{Place, Segment, Stage};
use super::storage::{is_full, is_shortage};
use bytes::Bytes;
use restante_actors::journal::{Batch, BatchRecord, End, Ticket};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{
    MESSAGE_FIXED_BYTES, MessageRecord, RECORD_HEADER_BYTES, RecordKind,
};
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// After this long without work, the log gets a mark that its last commit is synced.
const IDLE_DELAY: Duration = Duration::from_millis(100);
/// How often a writer without room looks whether there is some.
const STALL_DELAY: Duration = Duration::from_millis(200);

/// A commit up to this size, in room that was only allocated, is followed by zeroes up to
/// [`FILL_BYTES`]: the next ones go to room that has been written, where a sync takes half the time.
/// Larger commits come from load, when the log is better off without the additional bytes.
const FILL_COMMIT_BYTES_MAX: usize = 16 * 1024;
/// See [`FILL_COMMIT_BYTES_MAX`].
const FILL_BYTES: u64 = 256 * 1024;
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// See the module. Owns the active segment.
pub(super) struct Writer {
    shared: Arc<Shared>,
    active: Ready,
    seed: Seed,
    /// The active segment's first number.
    first: MessageNumber,
    /// Where the next commit goes.
    offset: u64,
    /// The number after the last record of the commit being gathered.
    next: MessageNumber,
    commit: Vec<Pending>,
    commit_bytes: usize,
    stage: Stage,
    /// Whether the log ends with a mark.
    marked: bool,
    /// Whether nothing has been written since the log was at rest.
    rests: bool,
    last_ticket: Ticket,
    /// What has to wait until there is another segment; empty unless the reserve is used up and the
    /// disk is full, or no file can be opened.
    stalled: VecDeque<Item>,
    /// What there is no segment for want of.
    want: Option<io::Error>,
    closed: bool,
}

/// A batch within the commit being gathered.
struct Pending {
    ticket: Option<Ticket>,
    batch: Batch,
}

impl Writer {
    /// A writer that begins with the ready segment `active`, which the state already knows as its last.
    pub(super) fn new(shared: Arc<Shared>, active: Ready, first: MessageNumber) -> Writer {
        Writer {
            seed: Seed::new(shared.seed, active.id),
            shared,
            active,
            first,
            offset: SEGMENT_HEADER_BYTES,
            next: first,
            commit: Vec::new(),
            commit_bytes: 0,
            stage: Stage::default(),
            marked: true,
            rests: false,
            last_ticket: Ticket(0),
            stalled: VecDeque::new(),
            want: None,
            closed: false,
        }
    }

    /// The thread: waits, writes, until the journal is closed.
    pub(super) fn run(mut self) {
        let mut items = Vec::new();
        while !self.closed {
            let idle = match self.stalled.is_empty() {
                true => (!self.marked).then_some(IDLE_DELAY),
                false => Some(STALL_DELAY),
            };
            match self.shared.wait_for_work(&mut items, idle) {
                Wake::Idle if self.stalled.is_empty() => {
                    self.mark();
                    self.rest();
                }
                Wake::Work | Wake::Idle => self.turn(&mut items),
            }
        }
    }

    /// Writes everything in `items`, after what had to wait before. Where there is no room, the rest
    /// waits.
    pub(super) fn turn(&mut self, items: &mut Vec<Item>) {
        let mut stalled = std::mem::take(&mut self.stalled);
        let was_stalled = !stalled.is_empty();
        if was_stalled {
            stalled.extend(items.drain(..));
            self.work(&mut stalled.drain(..));
        } else {
            self.work(&mut items.drain(..));
        }
        if !self.stalled.is_empty() {
            self.stay_stalled();
        } else if was_stalled {
            self.shared.keeper.lock().stalled = false;
        }
    }

    fn work(&mut self, items: &mut impl Iterator<Item = Item>) {
        for item in items.by_ref() {
            match item {
                Item::Records { ticket, first, batch } => {
                    if let Err(item) = self.gather(ticket, first, batch) {
                        self.stalled.push_back(item);
                        break;
                    }
                }
                Item::Flush(token) => {
                    self.commit();
                    let end = match self.shared.is_dead() {
                        false => End::Flushed(token),
                        true => End::Poisoned(self.why_dead()),
                    };
                    self.shared.tell(self.last_ticket, end);
                }
                Item::Checkpoint(application) => {
                    self.commit();
                    self.snapshot(application);
                }
                Item::Close => {
                    self.commit();
                    self.close();
                }
            }
        }
        self.commit();
        self.stalled.extend(items);
    }

    /// There is no room, and the reserve is used up. Nothing is confirmed meanwhile, while the keeper
    /// makes what room it can; and nothing waits for ever: a journal that is to be closed or has too
    /// much in hand gives up by name.
    fn stay_stalled(&mut self) {
        let waiting = self.stalled.iter().map(|item| match item {
            Item::Records { batch, .. } => batch.bytes.len(),
            _ => 0,
        });
        let too_much = waiting.sum::<usize>() > 2 * self.shared.caps.append_bytes_max;
        let closing = self.stalled.iter().any(|item| matches!(item, Item::Close));
        if too_much || closing {
            let full = || io::ErrorKind::StorageFull.into();
            let want = self.want.take().unwrap_or_else(full);
            self.shared.poison("allocating a segment", &want);
            let mut stalled = std::mem::take(&mut self.stalled);
            return self.work(&mut stalled.drain(..));
        }
        self.shared.keeper.lock().stalled = true;
        self.shared.wake_keeper();
    }

    /// Adds a batch to the commit, and begins another commit or segment where it does not fit. Gives
    /// it back when there is no room for another segment.
    fn gather(
        &mut self,
        ticket: Option<Ticket>,
        first: MessageNumber,
        mut batch: Batch,
    ) -> Result<(), Item> {
        let len = batch.bytes.len();
        if self.commit_bytes > 0 && self.commit_bytes + len > self.shared.options.commit_bytes_max {
            self.commit();
        }
        let end = self.offset + (self.commit_bytes + len) as u64;
        if end > self.active.bytes && !self.shared.is_dead() {
            self.commit();
            if !self.shared.is_dead() && !self.next_segment(first) {
                return Err(Item::Records { ticket, first, batch });
            }
        }
        if self.shared.is_dead() {
            self.fail(ticket, len);
            return Ok(());
        }
        let at = self.offset + self.commit_bytes as u64;
        let mut flags = if self.commit.is_empty() { FLAG_FIRST } else { 0 };
        for (number, record) in (first..).zip(&batch.records) {
            let from = record.offset as usize;
            let to = from + record_bytes(record.body_len as usize);
            header_of(record, number, flags).seal(self.seed, &mut batch.bytes[from..to]);
            flags = 0;
            let body = &batch.bytes[from + RECORD_HEADER_BYTES..to];
            self.stage.note(record, number - self.first, at + from as u64, body);
        }
        self.next = first + batch.records.len() as u64;
        self.commit_bytes += len;
        self.commit.push(Pending { ticket, batch });
        Ok(())
    }

    /// Puts the gathered commit on disk and tells everybody.
    fn commit(&mut self) {
        if self.commit.is_empty() {
            return;
        }
        let mut slices: Vec<IoSlice<'_>> =
            self.commit.iter().map(|pending| IoSlice::new(&pending.batch.bytes)).collect();
        let end = self.offset + self.commit_bytes as u64;
        let zeroes = if end > self.active.filled && self.commit_bytes <= FILL_COMMIT_BYTES_MAX {
            FILL_BYTES.min(self.active.bytes - end)
        } else {
            0
        };
        slices.extend((0..zeroes).step_by(ZEROES.len()).map(|at| {
            let len = (zeroes - at).min(ZEROES.len() as u64) as usize;
            IoSlice::new(&ZEROES[..len])
        }));
        self.active.filled = self.active.filled.max(end + zeroes);
        let begun = Instant::now();
        let written = self.active.file.write_at(&slices, self.offset);
        if let Err(error) = written.and_then(|()| self.active.file.sync()) {
            self.shared.poison("writing the log", &error);
            for pending in std::mem::take(&mut self.commit) {
                self.fail(pending.ticket, pending.batch.bytes.len());
            }
            self.commit_bytes = 0;
            return;
        }
        let took = begun.elapsed().as_micros() as u64;
        self.shared.slowest_us.fetch_max(took, Ordering::Relaxed);
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        self.offset += self.commit_bytes as u64;
        self.marked = false;
        if std::mem::take(&mut self.rests) {
            self.shared.rests.store(false, Ordering::Relaxed);
        }
        self.shared.state.lock().commit(&mut self.stage, self.next);
        for Pending { ticket, batch } in self.commit.drain(..) {
            if let Some(ticket) = ticket {
                let len = batch.bytes.len();
                self.last_ticket = ticket;
                self.shared.complete(ticket, len, End::Durable(batch.bytes.freeze()));
            }
        }
        let written = std::mem::take(&mut self.commit_bytes) as u64;
        let since = &self.shared.since_checkpoint;
        let before = since.fetch_add(written, Ordering::Relaxed);
        if before + written >= self.shared.options.checkpoint_bytes
            && self.shared.can_afford_checkpoint()
        {
            self.shared.ask_for_checkpoint();
        }
    }

    fn fail(&mut self, ticket: Option<Ticket>, bytes: usize) {
        if let Some(ticket) = ticket {
            let refusal = self.why_dead();
            self.last_ticket = ticket;
            self.shared.complete(ticket, bytes, End::Poisoned(refusal));
        }
    }

    fn why_dead(&self) -> Refusal {
        self.shared
            .refusal()
            .unwrap_or_else(|| Refusal::new(Code::JournalPoisoned, "an earlier write failed"))
    }

    /// Seals the active segment, whose last commit is synced, and goes on in a ready one. Says whether
    /// it does; if not, there is none for the moment or the journal is poisoned.
    fn next_segment(&mut self, first: MessageNumber) -> bool {
        let ready = match self.shared.take_ready() {
            Ok(ready) => ready,
            // Nothing has failed that was begun: it is tried again.
            Err(error) if is_full(&error) || is_shortage(&error) => {
                self.want = Some(error);
                return false;
            }
            Err(error) => {
                self.shared.poison("allocating a segment", &error);
                return false;
            }
        };
        let data_end = self.offset;
        self.active = ready;
        self.seed = Seed::new(self.shared.seed, self.active.id);
        self.first = first;
        self.offset = SEGMENT_HEADER_BYTES;
        self.stage = Stage::default();
        self.shared.state.lock().seal(data_end, Segment::active(&self.active, first));
        self.shared.wake_keeper();
        true
    }

    /// Says in the log that its last commit is synced: a record damaged later is then known to be
    /// damaged and not torn.
    pub(super) fn mark(&mut self) {
        self.marked = true;
        let room = record_bytes(0);
        if self.shared.is_dead() || self.offset + room as u64 > self.active.bytes {
            return;
        }
        let mut record = vec![0; room];
        let header = RecordHeader {
            length: 0,
            kind: KIND_MARK,
            flags: FLAG_FIRST,
            payload_at: 0,
            number: self.next,
        };
        header.seal(self.seed, &mut record);
        if let Err(error) = self.write(&record) {
            self.shared.poison("writing the log", &error);
        }
    }

    /// Says that nothing is written for the moment, so that the keeper gives back what is only there for
    /// haste.
    pub(super) fn rest(&mut self) {
        self.rests = true;
        self.shared.rests.store(true, Ordering::Relaxed);
        let dead = self.shared.state.lock().dead;
        if dead > 0 || self.shared.has_surplus_spares() {
            self.shared.wake_keeper();
        }
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        self.active.file.write_at(&[IoSlice::new(record)], self.offset)?;
        self.active.file.sync()?;
        self.offset += record.len() as u64;
        Ok(())
    }

    /// Hands what is known here, and the application's state of this moment, to the keeper.
    fn snapshot(&mut self, application: Bytes) {
        if self.shared.is_dead() {
            return;
        }
        let next_segment = self.shared.pool.lock().next_segment;
        let oldest = self.shared.oldest_number();
        let (snapshot, moves, straddled) = {
            let mut state = self.shared.state.lock();
            state.forget_peers(oldest);
            let straddled = Straddled::of(&state);
            let snapshot = Snapshot::of(&state, self.next, straddled, next_segment);
            (snapshot, state.moves, straddled)
        };
        let mut keeper = self.shared.keeper.lock();
        keeper.checkpoint = Some(CheckpointJob { snapshot, application, moves, straddled });
        keeper.wake = true;
        drop(keeper);
        self.shared.keeper_wake.notify_one();
    }

    /// Writes a single record of the journal's own with its number.
    pub(super) fn write_own(&mut self, kind: RecordKind, body: &[u8]) -> io::Result<()> {
        let room = record_bytes(body.len());
        let fits = self.offset + room as u64 <= self.active.bytes;
        if !fits && !self.shared.is_dead() && !self.next_segment(self.next) {
            return Err(self.want.take().unwrap_or_else(|| io::ErrorKind::StorageFull.into()));
        }
        if self.shared.is_dead() {
            return Err(io::Error::other("the journal is poisoned"));
        }
        let mut record = vec![0; RECORD_HEADER_BYTES];
        record.extend_from_slice(body);
        let header = RecordHeader {
            length: body.len() as u32,
            kind: kind as u8,
            flags: FLAG_FIRST,
            payload_at: body.len() as u16,
            number: self.next,
        };
        header.seal(self.seed, &mut record);
        self.write(&record)?;
        self.next += 1;
        self.shared.state.lock().durable_next = self.next;
        Ok(())
    }

    fn close(&mut self) {
        self.closed = true;
        let now = (self.shared.options.now_ms)();
        if !self.shared.is_dead()
            && let Err(error) = self.write_own(RecordKind::Close, &now.to_be_bytes())
        {
            self.shared.poison("closing the log", &error);
        }
    }
}

impl Segment {
    /// A segment that has just become the active one.
    pub(super) fn active(ready: &Ready, first: MessageNumber) -> Segment {
        Segment {
            id: ready.id,
            first,
            next: None,
            live: 0,
            total: 0,
            data_end: 0,
            file_bytes: ready.bytes,
            index_bytes: 0,
            index: Place::Active(Box::default()),
        }
    }
}

impl Stage {
    /// Notes where a record is and whom it concerns. Offsets within a segment and numbers relative to
    /// its first fit 32 bits: a segment has at most a GiB.
    pub(super) fn note(&mut self, record: &BatchRecord, number: u64, offset: u64, body: &[u8]) {
        let (number, offset) = (number as u32, offset as u32);
        match record.kind {
            RecordKind::Message => {
                let Some(message) = MessageRecord::parse(body) else { return };
                let fixed = MESSAGE_FIXED_BYTES + message.receivers.len();
                let entry = Ref { number, offset, length: record.body_len };
                for peer in message.peers() {
                    self.note_ref(peer, entry, record.body_len - fixed as u32);
                }
                let peers = message.peers().map(|peer| peer.0);
                self.messages.push(number, offset, message.accepted_ms, peers);
            }
            RecordKind::Settle | RecordKind::Park => self.settles.push(record.kind, body),
            _ => {}
        }
    }

    fn note_ref(&mut self, peer: PeerId, entry: Ref, body_bytes: u32) {
        let refs = self.refs.entry(peer).or_default();
        // A receiver named twice in one message gets it once.
        if refs.count() > 0 && refs.last() == entry.number {
            return;
        }
        if refs.is_absorbed() {
            self.touched.push(peer);
        }
        refs.push(entry, body_bytes);
    }
}
