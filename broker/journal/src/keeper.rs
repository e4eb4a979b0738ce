//! The keeper: everything on disk that no commit should wait for. It writes the indexes of sealed
//! segments and the checkpoints, gives segments back, compacts, makes the next ones ready, and judges whether
//! there is room.
//!
//! A segment goes when the newest durable checkpoint says that nothing of it is live: then the
//! settles that made it so are durable, and so is everything else it held.

use super::checkpoint::{self, Snapshot, Straddled};
use super::compact::Compactor;
use super::format::{FileHeader, FileKind};
use super::index::IndexFacts;
use super::rebuild::Sealed;
use super::room::Purpose;
use super::segment;
use super::shared::{CheckpointJob, Ready, Shared, Spare};
use super::state::{Place, Segment};
use super::storage::{DiskFile, is_full, is_missing, is_shortage, remove};
use foldhash::HashSet;
use restante_actors::events;
use restante_actors::journal::{End, Ticket};
use restante_protocol::id::MessageNumber;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a full disk is looked at again.
const FULL_RETRY_DELAY: Duration = Duration::from_secs(1);
/// How long what a checkpoint could not let go is a reason for none.
const LEFT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// A checkpoint is written when there is this many times as much log since the last one: so all of
/// them together cost at most 2 % of what is written,
const LOG_PER_CHECKPOINT: u64 = 50;
/// but no later than after this many times [`checkpoint_bytes`](super::Options::checkpoint_bytes), or as much log as the
/// checkpoint has bytes, however large that is: a restart reads all of it.
const TAIL_PER_CHECKPOINT: u64 = 4;

/// Names of the checkpoint file and of its copy: the one file that nothing else could replace.
pub(super) const CHECKPOINT_PATHS: [&str; 2] = ["checkpoint", "checkpoint.copy"];

/// See the module.
pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) full: bool,
    pub(super) compactor: Compactor,
    /// Where the log was at the position of the newest checkpoint. After an opening nobody knows.
    straddled: Straddled,
    /// What it could not let go, and when that was.
    left: (usize, Instant),
    /// Whether what was left has been looked at again since the log came to rest.
    looked_again: bool,
    /// After what pause compaction goes on, if it has something to do.
    rest: Option<Duration>,
    /// Whether to compact at once whatever is worth it at all, as tests do.
    pub(super) eager: bool,
}

impl Keeper {
    /// A keeper of a journal whose newest checkpoint was taken at `covered`.
    pub(super) fn new(shared: Arc<Shared>, covered: MessageNumber) -> Keeper {
        let compactor = Compactor::new(covered);
        let straddled = Straddled::default();
        let left = (0, Instant::now());
        let (rest, looked_again) = (None, false);
        Keeper { shared, full: false, compactor, straddled, left, looked_again, rest, eager: false }
    }

    /// The thread: looks around when asked to, every so often while the disk is full, and after each
    /// pause while something is being compacted.
    pub(super) fn run(mut self) {
        loop {
            let full = self.full.then_some(FULL_RETRY_DELAY);
            let pause = self.rest.or(full).or_else(|| self.look_again_after());
            let closing = {
                let mut work = self.shared.keeper.lock();
                while !work.wake && !work.closing {
                    let wake = &self.shared.keeper_wake;
                    match pause {
                        Some(pause) if wake.wait_for(&mut work, pause).timed_out() => break,
                        Some(_) => {}
                        None => wake.wait(&mut work),
                    }
                }
                work.wake = false;
                work.closing
            };
            self.turn();
            if closing {
                return;
            }
        }
    }

    /// At rest nobody else would come back to what the last checkpoint left: what was still live when it
    /// was taken is looked at once more, and no oftener, for it may have to stay.
    pub(super) fn look_again_after(&mut self) -> Option<Duration> {
        if !self.shared.rests.load(Ordering::Relaxed) {
            self.looked_again = false;
            return None;
        }
        let is_due = self.left.0 > 0 && !std::mem::replace(&mut self.looked_again, true);
        is_due.then_some(LEFT_RETRY_DELAY)
    }

    /// Does all there is to do.
    pub(super) fn turn(&mut self) {
        if self.shared.is_dead() {
            return;
        }
        let steps: [fn(&mut Keeper) -> io::Result<()>; 7] = [
            |keeper| keeper.write_indexes(),
            |keeper| keeper.write_checkpoint(),
            |keeper| keeper.make_way(),
            |keeper| keeper.shared.drop_old_history(),
            |keeper| keeper.shared.make_ready(),
            |keeper| keeper.compact(),
            |keeper| keeper.shared.give_up_surplus_spares(),
        ];
        let mut starved = false;
        for step in steps {
            match step(self) {
                Ok(()) => {}
                // What comes after may be what makes room.
                Err(error) if is_full(&error) => starved = true,
                // Nothing was opened, so nothing has failed that was begun: another turn does it.
                Err(error) if is_shortage(&error) => {}
                Err(error) => {
                    self.shared.poison("keeping the journal's files", &error);
                    return;
                }
            }
        }
        self.shared.pool.lock().starved = starved;
        self.judge_room();
        self.ask_if_due();
    }

    /// Does a slice of compaction.
    pub(super) fn compact(&mut self) -> io::Result<()> {
        self.rest = None;
        // A segment that the writer waits for is not given up for a copy.
        let is_waited_for = self.shared.keeper.lock().stalled;
        if is_waited_for && !self.shared.pool.lock().ready.is_empty() {
            return Ok(());
        }
        self.rest = self.compactor.turn(&self.shared, Instant::now(), self.eager)?;
        while self.eager && self.rest.is_some() {
            self.rest = self.compactor.turn(&self.shared, Instant::now(), true)?;
        }
        Ok(())
    }

    /// Writes the index of every sealed segment that has none yet.
    fn write_indexes(&self) -> io::Result<()> {
        loop {
            let next = {
                let state = self.shared.state.lock();
                state.segments.iter().find_map(|segment| match (&segment.index, segment.next) {
                    (Place::Sealed(index), Some(next)) => Some((
                        IndexFacts {
                            id: segment.id,
                            first: segment.first,
                            next,
                            data_end: segment.data_end,
                        },
                        Arc::clone(index),
                    )),
                    _ => None,
                })
            };
            let Some((facts, index)) = next else { return Ok(()) };
            let bytes = index.encode(&self.shared.header(FileKind::Index, facts.id), &facts);
            self.shared.put_file(Purpose::Index, &Shared::index_path(facts.id), &bytes)?;
            self.shared.disk.sync_dir("segments")?;
            let mut state = self.shared.state.lock();
            if let Some(segment) = state.segments.iter_mut().find(|s| s.id == facts.id) {
                segment.index = Place::File;
                segment.index_bytes = bytes.len() as u64;
            }
        }
    }

    fn write_checkpoint(&mut self) -> io::Result<()> {
        let Some(job) = self.shared.keeper.lock().checkpoint.take() else { return Ok(()) };
        let CheckpointJob { mut snapshot, application, mut moves, straddled } = job;
        let next_segment = self.shared.pool.lock().next_segment;
        {
            let state = self.shared.state.lock();
            if moves != state.moves {
                // It names what is gone, or not what stands for it.
                snapshot = Snapshot::of(&state, snapshot.position, straddled, next_segment);
                moves = state.moves;
            }
            snapshot.keep_unindexed(&state);
        }
        if let Err(error) = self.put_checkpoint(&snapshot, &application) {
            // It is tried again, unless a newer one comes first.
            let job = CheckpointJob { snapshot, application, moves, straddled };
            self.shared.keeper.lock().checkpoint.get_or_insert(job);
            return Err(error);
        }
        self.straddled = straddled;
        self.let_go(&snapshot)
    }

    /// Lets segments go for a writer that waits for room, if there are any that may: the checkpoint that
    /// would say so waits behind what the writer waits with. The last one is written again instead, with
    /// what is known now of the log before its position.
    fn make_way(&mut self) -> io::Result<()> {
        if !self.shared.keeper.lock().stalled || self.shared.pins.any() {
            return Ok(());
        }
        let covered = self.compactor.covered;
        let may_go = |s: &Segment| is_done(s) && s.next.is_some_and(|next| next <= covered);
        let is_any = !self.shared.pool.lock().retired.is_empty()
            || self.shared.state.lock().segments.iter().any(may_go);
        if !is_any {
            return Ok(());
        }
        let Some(last) = checkpoint::newest(&*self.shared.disk, &CHECKPOINT_PATHS)? else {
            return Ok(());
        };
        let next_segment = self.shared.pool.lock().next_segment;
        let snapshot = {
            let state = self.shared.state.lock();
            let position = last.snapshot.position;
            let mut snapshot = Snapshot::of(&state, position, self.straddled, next_segment);
            snapshot.keep_unindexed(&state);
            snapshot
        };
        self.put_checkpoint(&snapshot, &last.application)?;
        self.let_go(&snapshot)
    }

    /// Writes both copies of a checkpoint.
    fn put_checkpoint(&mut self, snapshot: &Snapshot, application: &[u8]) -> io::Result<()> {
        let header = self.shared.header(FileKind::Checkpoint, snapshot.position);
        let bytes = checkpoint::encode(&header, snapshot, application);
        let kept = kept_by(snapshot);
        let frees = !self.shared.pool.lock().retired.is_empty()
            || self.shared.state.lock().segments.iter().any(|s| is_let_go(s, snapshot, &kept));
        let purpose = if frees { Purpose::Reclaim } else { Purpose::Checkpoint };
        // Nothing goes before both are durable: either of them and the log behind it are enough.
        let put = |path: &&str| self.shared.put_file(purpose, path, &bytes);
        match CHECKPOINT_PATHS.iter().try_for_each(put) {
            Err(error)
                if is_full(&error) && frees && self.shared.give_up_copy(bytes.len() as u64)? =>
            {
                CHECKPOINT_PATHS.iter().try_for_each(put)?;
            }
            written => written?,
        }
        let size = (bytes.len() * CHECKPOINT_PATHS.len()) as u64;
        self.shared.checkpoint_bytes.store(size, Ordering::Relaxed);
        self.shared.disk.sync_dir("")?;
        self.compactor.covered = snapshot.position;
        Ok(())
    }

    /// Gives back what a durable checkpoint does not name.
    fn let_go(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let kept = kept_by(snapshot);
        let gone: Vec<u64> = {
            let state = self.shared.state.lock();
            let let_go = state.segments.iter().filter(|s| is_let_go(s, snapshot, &kept));
            let_go.map(|segment| segment.id).collect()
        };
        gone.into_iter().try_for_each(|id| self.shared.reclaim(id))?;
        self.shared.remove_retired(|id| kept.contains(&id))?;
        self.left = (self.waiting(), Instant::now());
        Ok(())
    }

    /// What waits for a checkpoint to be given back; sources of a copy count twice.
    fn waiting(&self) -> usize {
        let retired = self.shared.pool.lock().retired.len();
        self.shared.state.lock().dead + 2 * retired
    }

    /// Adds up what is on disk.
    pub(super) fn measure(&self) -> u64 {
        let segments: u64 = {
            let state = self.shared.state.lock();
            state.segments.iter().map(|segment| segment.file_bytes + segment.index_bytes).sum()
        };
        let (pool, history) = {
            let pool = self.shared.pool.lock();
            let retired =
                pool.retired.iter().map(|retired| retired.file_bytes + retired.index_bytes);
            let retired: u64 = retired.sum();
            let ready: u64 = pool.ready.iter().map(|ready| ready.bytes).sum();
            let spares = pool.spares.len() as u64 * self.shared.options.segment_bytes;
            (ready + spares + retired, pool.history.iter().map(|note| note.bytes).sum::<u64>())
        };
        let checkpoint = self.shared.checkpoint_bytes.load(Ordering::Relaxed);
        let used = segments + pool + history + checkpoint;
        self.shared.disk_bytes.store(used, Ordering::Relaxed);
        used
    }

    /// Asks for a checkpoint when segments wait for one to be given back, a single one once there is time for
    /// it, and when one has been sealed: a restart then reads no more of the log than the segment that was
    /// being written.
    fn ask_if_due(&self) {
        if self.shared.pins.any() {
            return;
        }
        let sealed =
            self.shared.state.lock().segments.iter().rev().find_map(|segment| segment.next);
        // What the last one could not let go would have one follow the other.
        let (left, since) = self.left;
        let dead = match self.waiting() {
            waiting if waiting <= left && since.elapsed() < LEFT_RETRY_DELAY => 0,
            waiting => waiting,
        };
        let is_uncovered = sealed.is_some_and(|next| next > self.compactor.covered);
        let written = self.shared.since_checkpoint.load(Ordering::Relaxed);
        let worth_it = written >= self.shared.options.segment_bytes / 8;
        let rests = self.shared.rests.load(Ordering::Relaxed);
        if dead >= 2
            || (dead == 1 && (worth_it || self.full || rests))
            || (is_uncovered && self.shared.can_afford_checkpoint())
        {
            self.shared.ask_for_checkpoint();
        }
    }
}

/// Whether a segment may go once this snapshot is durable. A cold one that has been made since it was
/// taken is not named by it either, and is live; and one whose index has been built again since then
/// has to wait until that is in its file.
fn is_let_go(segment: &Segment, snapshot: &Snapshot, kept: &HashSet<u64>) -> bool {
    segment.next.is_some_and(|next| next <= snapshot.position)
        && is_done(segment)
        && !kept.contains(&segment.id)
}

/// Whether nothing of a segment is live, and its index is where its history is made of it.
fn is_done(segment: &Segment) -> bool {
    segment.live == 0 && matches!(segment.index, Place::File)
}

fn kept_by(snapshot: &Snapshot) -> HashSet<u64> {
    snapshot.segments.iter().map(|note| note.id).collect()
}

impl Shared {
    pub(super) fn header(&self, kind: FileKind, id: u64) -> FileHeader {
        let created_ms = (self.options.now_ms)();
        let Shared { epoch, node, seed, .. } = *self;
        FileHeader { kind, epoch, node, id, created_ms, seed }
    }

    /// Whether there is so much log since the last checkpoint that another one is cheap, or a restart
    /// would read too much.
    pub(super) fn can_afford_checkpoint(&self) -> bool {
        let size = self.checkpoint_bytes.load(Ordering::Relaxed);
        let tail = TAIL_PER_CHECKPOINT.saturating_mul(self.options.checkpoint_bytes).max(size);
        let enough = LOG_PER_CHECKPOINT.saturating_mul(size).min(tail);
        self.since_checkpoint.load(Ordering::Relaxed) >= enough
    }

    /// Asks for a checkpoint, once until it comes.
    pub(super) fn ask_for_checkpoint(&self) {
        if !self.checkpoint_asked.swap(true, Ordering::AcqRel) {
            let ticket = Ticket(self.intake.lock().next_ticket - 1);
            self.tell(ticket, End::CheckpointDue);
        }
    }

    /// A segment to write to: one that is ready, or else one made now. Its id is above those of all
    /// that were taken before: recovery takes a segment for let go that a checkpoint does not name
    /// although it names a younger one.
    pub(super) fn take_ready(&self) -> io::Result<Ready> {
        if let Some(ready) = self.pool.lock().ready.pop_front() {
            return Ok(ready);
        }
        // The keeper may be making one, which comes first.
        let _making = self.making.lock();
        if let Some(ready) = self.pool.lock().ready.pop_front() {
            return Ok(ready);
        }
        self.prepare_one()
    }

    /// Makes segments ready until there are as many as there should be.
    pub(super) fn make_ready(&self) -> io::Result<()> {
        loop {
            let _making = self.making.lock();
            if self.pool.lock().ready.len() >= self.options.ready_segments {
                break;
            }
            let ready = self.prepare_one()?;
            self.pool.lock().ready.push_back(ready);
        }
        Ok(())
    }

    fn prepare_one(&self) -> io::Result<Ready> {
        let id = self.next_segment_id();
        let header = self.header(FileKind::Segment, id);
        let spare = self.open_spare()?;
        segment::prepare(&*self.disk, &header, self.options.segment_bytes, spare).map_err(
            |(error, spare)| {
                self.pool.lock().spares.extend(spare);
                error
            },
        )
    }

    /// A spare segment to be used, if there is one. One that cannot be opened is forgotten: there is
    /// nothing in it.
    fn open_spare(&self) -> io::Result<Option<(Spare, Arc<dyn DiskFile>)>> {
        loop {
            let Some(spare) = self.pool.lock().spares.pop() else { return Ok(None) };
            match self.disk.open(&spare.path) {
                Ok(file) => return Ok(Some((spare, file))),
                Err(error) if is_shortage(&error) => {
                    self.pool.lock().spares.push(spare);
                    return Err(error);
                }
                Err(error) => {
                    let path = spare.path;
                    events::journal_finding(&format!("{path} is not written again: {error}"));
                }
            }
        }
    }

    /// Gives the room of a segment back: nothing in it is live, and a checkpoint says so. Its file
    /// becomes a spare one or is removed, its index becomes history. The history comes first: at no
    /// moment is a message in neither, as whoever looks it up then would be told that it has aged out.
    pub(super) fn reclaim(&self, id: u64) -> io::Result<()> {
        // While a backup is taken it stays, and goes with the next checkpoint after that.
        let Some(_leave) = self.pins.removal() else { return Ok(()) };
        let indexed = {
            let state = self.state.lock();
            let segment = state.segments.iter().find(|segment| segment.id == id);
            segment.and_then(|segment| match segment.index {
                Place::File => Some(Sealed {
                    id,
                    first: segment.first,
                    next: segment.next?,
                    data_end: segment.data_end,
                }),
                Place::Active(_) | Place::Sealed(_) => None,
            })
        };
        // Its index has just been built again, and has to be written first.
        let Some(sealed) = indexed else { return Ok(()) };
        if !self.keep_history(sealed)? {
            return Ok(());
        }
        let segment = {
            let mut state = self.state.lock();
            let Some(place) = state.segments.iter().position(|segment| segment.id == id) else {
                return Ok(());
            };
            let segment = state.segments.remove(place);
            state.dead = state.dead.saturating_sub(1);
            state.moves += 1;
            segment
        };
        self.free_file(id, segment.file_bytes)
    }

    /// Makes a segment's file a spare one, or removes it.
    pub(super) fn free_file(&self, id: u64, file_bytes: u64) -> io::Result<()> {
        self.forget_file(id);
        let path = Shared::segment_path(id);
        let wanted = self.pool.lock().spares.len() < self.options.spare_segments_max;
        if wanted && file_bytes == self.options.segment_bytes {
            let spare = format!("segments/{id:012x}.spare");
            match self.disk.rename(&path, &spare) {
                // Somebody has removed it.
                Err(error) if is_missing(&error) => return Ok(()),
                renamed => renamed?,
            }
            // Before its header may be written anew, its old name must be gone for good.
            self.disk.sync_dir("segments")?;
            self.pool.lock().spares.push(Spare { path: spare, filled: true });
            return Ok(());
        }
        remove(&*self.disk, &path)
    }
}
