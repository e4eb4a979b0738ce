//! Compaction: what is still live of segments that are mostly done is copied into a *cold* segment, so
//! that the few messages of a receiver that stays away do not hold the room of everybody else's.
//!
//! ```text
//! segments   [====..=...] [=....==...] [==========]      one run of neighbours is chosen ([`plan`])
//!                 └──── copy ────┘                       record by record, in slices ([`copy`])
//! segments   [ cold: ======= ]         [==========]      the state changes over ([`merge`])
//!            checkpoint, durable                         names the cold one instead of its sources
//!            sources removed, their indexes are history
//! ```
//!
//! A cold segment stands for all the numbers of its sources: the segments' ranges of numbers stay
//! apart and in order, and everything that finds messages by their number, reads pages, settles,
//! parks, takes checkpoints or recovers does the same as with any other segment. In it the numbers
//! ascend and are not dense, its index lists a message only for the receivers it was live for, and it
//! is never replayed. Its id has a bit of its own ([`COLD_BIT`]).
//!
//! The checkpoint decides: a cold segment counts when the checkpoint names it, and then its sources,
//! should a crash have left them, do not; one that is not named is a copy that was never finished and
//! is removed. So a message is never in two segments, and never in none.
//!
//! What a receiver is just working through is left to it: a segment is copied only when it has lost
//! little for a while ([`cooling`](super::Options::cooling)).
//!
//! Runs on the keeper's thread, a slice at a time with a pause after each that is as long as the
//! slice took: half of what the disk gives at most, and a commit waits for one slice at most.

mod copy;
mod merge;
mod plan;

use super::format::{COLD_BIT, FileKind};
use super::index::IndexFacts;
use super::rebuild::Sealed;
use super::room::Purpose;
use super::shared::{Retired, Shared};
use super::state::{Place, Segment};
use super::storage::{is_full, remove};
use copy::{Copying, Live, Unmovable};
use foldhash::{HashMap, HashSet};
use merge::Share;
use plan::Candidate;
use restante_actors::events;
use restante_protocol::id::MessageNumber;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Segments measured in one turn at most: their indexes have to be read.
const MEASURES_MAX: usize = 4;
/// What the sets of settled numbers of all receivers may come to in a segment that stands for several: it is
/// in memory, and in every checkpoint.
const MARKS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// When a segment that could not be copied is looked at again, in milliseconds: what could not be
/// read may have been for want of a file handle.
const UNMOVABLE_RETRY_MS: u64 = 15 * 60 * 1000;
/// Longest pause between two slices.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The keeper's part that compacts.
pub(super) struct Compactor {
    job: Option<Box<Copying>>,
    measured: HashMap<u64, Measure>,
    /// Segments that could not be copied, and when that was tried, in milliseconds since the Unix
    /// epoch. They stay as they are.
    unmovable: HashMap<u64, u64>,
    /// Everything below is covered by a durable checkpoint.
    pub(super) covered: MessageNumber,
}

/// Whether there is more to do, in the order of haste.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum More {
    Nothing,
    /// What there is may be done by itself soon.
    Cooling,
    Work,
}

/// What of a segment was live when it was looked at.
#[derive(Clone, Copy)]
struct Measure {
    at: Instant,
    /// Deliveries.
    live: u64,
    /// Bytes of their records, each message once.
    bytes: u64,
}

/// What to copy into one, so much of a run that the sets of what is settled in it stay bounded.
fn choose_bounded(
    shared: &Shared,
    candidates: &mut [Candidate],
    segment_bytes: u64,
    eager: bool,
) -> Option<Range<usize>> {
    loop {
        let mut run = plan::choose(candidates, segment_bytes, eager)?;
        while run.len() > 1 {
            let numbers = candidates[run.start].first..candidates[run.end - 1].next;
            if shared.state.lock().marks_of(&numbers) <= MARKS_BYTES_MAX {
                return Some(run);
            }
            run.end = run.start + run.len() / 2;
        }
        let alone = &mut candidates[run.start];
        if alone.is_thin() {
            return Some(run);
        }
        // Nothing is won by copying it alone: it stays apart from its neighbours.
        alone.movable = false;
    }
}

impl Compactor {
    pub(super) fn new(covered: MessageNumber) -> Compactor {
        Compactor {
            job: None,
            measured: HashMap::default(),
            unmovable: HashMap::default(),
            covered,
        }
    }

    /// Whether a copy is under way.
    #[cfg(test)]
    pub(super) fn is_at_work(&self) -> bool {
        self.job.is_some()
    }

    /// Does a slice of work if there is any; says after which pause to go on, if there is more.
    /// `eager` takes whatever is worth it at all, without waiting until enough has come together.
    ///
    /// # Errors
    /// What the disk said to a write, sync or rename. A full one is no error: the copy that was under
    /// way is given up, and begun anew another time. Nor is a segment that cannot be read: it stays as
    /// it is, and whoever reads it hears of that.
    pub(super) fn turn(
        &mut self,
        shared: &Shared,
        now: Instant,
        eager: bool,
    ) -> io::Result<Option<Duration>> {
        let since = Instant::now();
        match self.slice(shared, now, eager) {
            Ok(More::Nothing) => Ok(None),
            Ok(More::Cooling) => Ok(Some(shared.options.cooling)),
            Ok(More::Work) => Ok(Some(since.elapsed().min(PAUSE_MAX))),
            Err(error) if is_full(&error) => {
                self.give_up(shared);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn slice(&mut self, shared: &Shared, now: Instant, eager: bool) -> io::Result<More> {
        let mut job = match self.job.take() {
            Some(job) => job,
            None => {
                let (sources, bytes) = match self.choose(shared, now, eager) {
                    Ok(chosen) => chosen,
                    Err(more) => return Ok(more),
                };
                let id = COLD_BIT | shared.next_segment_id();
                match Copying::begin(shared, id, sources, bytes) {
                    Ok(job) => Box::new(job),
                    Err(Unmovable::Io(error)) => return Err(error),
                    Err(Unmovable::Source(id, why)) => {
                        self.leave(shared, id, &why);
                        return Ok(More::Work);
                    }
                }
            }
        };
        match job.slice(shared) {
            Ok(false) => self.job = Some(job),
            Ok(true) => self.finish(shared, job)?,
            Err(Unmovable::Io(error)) => {
                self.job = Some(job);
                return Err(error);
            }
            Err(Unmovable::Source(id, why)) => {
                self.leave(shared, id, &why);
                self.job = Some(job);
                self.give_up(shared);
            }
        }
        Ok(More::Work)
    }

    /// Leaves a segment that cannot be copied as it is; said once.
    fn leave(&mut self, shared: &Shared, id: u64, why: &str) {
        if self.unmovable.insert(id, (shared.options.now_ms)()).is_none() {
            let path = Shared::segment_path(id);
            events::journal_finding(&format!("{path} is not compacted but kept whole: {why}"));
        }
    }

    /// Ends a copy that cannot be finished. Its file would be removed by the next opening too.
    fn give_up(&mut self, shared: &Shared) {
        if let Some(job) = self.job.take() {
            let _ = shared.disk.unlink(&job.temporary);
        }
    }

    /// Which segments to copy into one, and how many bytes that takes at most; if none are worth it,
    /// whether some may be later.
    fn choose(
        &mut self,
        shared: &Shared,
        now: Instant,
        eager: bool,
    ) -> Result<(Vec<u64>, u64), More> {
        let (segment_bytes, now_ms) = (shared.options.segment_bytes, (shared.options.now_ms)());
        let mut candidates: Vec<Candidate> = {
            let state = shared.state.lock();
            let candidate = |s: &Segment| self.candidate(s, segment_bytes, now_ms);
            state.segments.iter().filter_map(candidate).collect()
        };
        if self.measured.len() + self.unmovable.len() > 2 * candidates.len() {
            let there: HashSet<u64> = candidates.iter().map(|candidate| candidate.id).collect();
            self.measured.retain(|id, _| there.contains(id));
            self.unmovable.retain(|id, _| there.contains(id));
        }
        let mut measures = 0;
        let mut more = More::Nothing;
        for candidate in &mut candidates {
            if !candidate.movable {
                continue;
            }
            if !eager && self.is_cooling(candidate, now, shared.options.cooling) {
                candidate.movable = false;
                more = more.max(More::Cooling);
                continue;
            }
            if !self.is_due(candidate) {
                continue;
            }
            if measures == MEASURES_MAX {
                more = More::Work;
                break;
            }
            measures += 1;
            let live = match Live::load(shared, candidate.id) {
                Ok(live) => live,
                Err(why) => {
                    // Should its index be damaged, the next opening builds it anew.
                    self.leave(shared, candidate.id, &why.to_string());
                    candidate.movable = false;
                    continue;
                }
            };
            let bytes = live.map_or(0, |live| live.record_bytes());
            self.measured.insert(candidate.id, Measure { at: now, live: candidate.live, bytes });
            candidate.live_bytes = bytes;
            if !eager && self.is_cooling(candidate, now, shared.options.cooling) {
                candidate.movable = false;
                more = more.max(More::Cooling);
            }
        }
        let run = choose_bounded(shared, &mut candidates, segment_bytes, eager).ok_or(more)?;
        let bytes = candidates[run.clone()].iter().map(|candidate| candidate.live_bytes).sum();
        Ok((candidates[run].iter().map(|candidate| candidate.id).collect(), bytes))
    }

    fn candidate(&self, segment: &Segment, segment_bytes: u64, now_ms: u64) -> Option<Candidate> {
        let next = segment.next?;
        let is_left = |tried_ms: &u64| now_ms.saturating_sub(*tried_ms) < UNMOVABLE_RETRY_MS;
        let known = self.measured.get(&segment.id).map(|measure| measure.bytes);
        Some(Candidate {
            id: segment.id,
            first: segment.first,
            next,
            bytes: segment.file_bytes,
            live: segment.live,
            total: segment.total,
            live_bytes: known.unwrap_or(segment.data_end).min(segment_bytes),
            movable: segment.live > 0
                && matches!(segment.index, Place::File)
                && next <= self.covered
                && !self.unmovable.get(&segment.id).is_some_and(is_left),
        })
    }

    /// Whether it is too early to say that nobody works through this segment.
    fn is_cooling(&self, candidate: &Candidate, now: Instant, cooling: Duration) -> bool {
        let measure = self.measured.get(&candidate.id);
        measure.is_some_and(|measure| now.duration_since(measure.at) < cooling)
    }

    /// Whether enough has changed that a segment should be measured.
    fn is_due(&self, candidate: &Candidate) -> bool {
        match self.measured.get(&candidate.id) {
            Some(measure) => candidate.live * 8 <= measure.live * 7,
            None => candidate.live * 10 <= candidate.total * 9,
        }
    }

    /// Gives the copy its name and its index, lets the state change over, and retires the sources.
    fn finish(&mut self, shared: &Shared, job: Box<Copying>) -> io::Result<()> {
        let Copying { id, first, next, written, .. } = *job;
        let facts = IndexFacts { id, first, next, data_end: written };
        let bytes = job.index.encode(&shared.header(FileKind::Index, id), &facts);
        if let Err(error) = shared.put_file(Purpose::Copy, &Shared::index_path(id), &bytes) {
            // Still a copy under way, whose file goes when it is given up.
            self.job = Some(job);
            return Err(error);
        }
        let Copying { temporary, index, sources: copied, .. } = *job;
        shared.disk.rename(&temporary, &Shared::segment_path(id))?;
        shared.disk.sync_dir("segments")?;
        let shares: HashMap<_, _> = index
            .refs
            .iter()
            .map(|(peer, refs)| (*peer, Share { total: refs.count(), last: refs.last() }))
            .collect();
        let cold = Segment {
            id,
            first,
            next: Some(next),
            live: 0,
            total: shares.values().map(|share| u64::from(share.total)).sum(),
            data_end: written,
            file_bytes: written,
            index_bytes: bytes.len() as u64,
            index: Place::File,
        };
        let sources: Vec<Retired> = {
            let state = shared.state.lock();
            let inside = state.segments.iter().filter(|s| (first..next).contains(&s.first));
            inside.filter_map(Retired::of).collect()
        };
        // At every moment they are in the state or among the retired, so that a lookup finds them.
        shared.pool.lock().retired.extend(&sources);
        if shared.state.lock().replace(cold, &shares) {
            return Ok(());
        }
        // Something is open that was not copied, or nothing is any more: the sources stay.
        shared.pool.lock().retired.retain(|retired| !copied.contains(&retired.id));
        let now_ms = (shared.options.now_ms)();
        self.unmovable.extend(copied.into_iter().map(|id| (id, now_ms)));
        remove(&*shared.disk, &Shared::index_path(id))?;
        remove(&*shared.disk, &Shared::segment_path(id))
    }
}

impl Shared {
    /// A number that no segment has had.
    pub(super) fn next_segment_id(&self) -> u64 {
        let mut pool = self.pool.lock();
        let id = pool.next_segment;
        pool.next_segment += 1;
        id
    }

    /// Removes the sources of cold segments that a durable checkpoint has let go: all that `kept` does
    /// not name.
    pub(super) fn remove_retired(&self, kept: impl Fn(u64) -> bool) -> io::Result<()> {
        loop {
            // A running backup may name them; they go with the next checkpoint after it.
            let Some(_leave) = self.pins.removal() else { return Ok(()) };
            let retired = self.pool.lock().retired.iter().find(|r| !kept(r.id)).copied();
            let Some(retired) = retired else { return Ok(()) };
            let Retired { id, first, next, data_end, file_bytes, .. } = retired;
            if !self.keep_history(Sealed { id, first, next, data_end })? {
                // With the next checkpoint, as all behind it.
                return Ok(());
            }
            self.pool.lock().retired.retain(|retired| retired.id != id);
            self.free_file(id, file_bytes)?;
        }
    }
}

impl Retired {
    fn of(segment: &Segment) -> Option<Retired> {
        let Segment { id, first, next, data_end, file_bytes, index_bytes, .. } = *segment;
        Some(Retired { id, first, next: next?, data_end, file_bytes, index_bytes })
    }
}
