//! Jobs over parked messages: replay and purge, begun by an operator, carried out by the node.
//!
//! A job reads what is parked a page at a time between the router's other turns and holds nothing
//! else, whatever their number. A replayed message is copied to the end of its queue under its id and
//! settled where it lay, once the copy is on disk. Ahead of the copies stands, in the same batch, of
//! what they are copies: a crash in between leaves messages that lie in both places, and the next start
//! settles those before it goes on. What is settled leaves the parked lane, so a job that goes on
//! begins at the front and finds what is left.

use super::Router;
use super::batch::Outcome;
use super::disposal::{Life, copy_room};
use crate::aside::{self, Aside, Look};
use crate::clock;
use crate::events;
use crate::journal::{Journal, LookupError, ReadError, Settle, Stored};
use crate::peer::Recount;
use actix::prelude::*;
use restante_protocol::id::{MessageId, MessageNumber, NodeTag, PeerId};
use restante_protocol::job::{Copies, Job, JobStatus, Work};
use restante_protocol::message::Body;
use restante_protocol::pace::Pace;
use restante_protocol::record::{
    Outcome as End, RecordKind, SettleDetail, SettleRecord, put_record,
};
use restante_protocol::refusal::Refusal;
use restante_protocol::registry::AdminEvent;
use restante_protocol::state::StateEvent;
use restante_protocol::time::WallMillis;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Messages and bytes worked on in one turn.
const PAGE_MESSAGES: usize = 1_024;
const PAGE_BYTES: usize = 1024 * 1024;
/// Messages looked at in one turn by a job that chooses among them, however few may go.
const CHOICE_MESSAGES_MIN: usize = 256;
/// How long to wait after the journal could not be read or written, or the queue had no room.
const RETRY: Duration = Duration::from_secs(1);
/// Most bytes of the note that stands before the copies of a page: a number of a page, nine bytes each,
/// and the rest.
const NOTE_BYTES_MAX: usize = 16 * 1024;
/// Jobs that have ended and can still be asked about.
const ENDED_MAX: usize = 256;

/// How jobs stand, beyond what is journaled of them.
#[derive(Default)]
pub(super) struct Jobs {
    /// Those under way, and those whose end is on its way to disk.
    stands: HashMap<u64, Stand>,
    /// The newest last.
    ended: VecDeque<(PeerId, JobStatus)>,
}

struct Stand {
    job: Job,
    /// What it has done.
    messages: u64,
    waits_for: String,
}

impl Jobs {
    /// The last job of this peer that ended.
    fn last_of(&self, peer: PeerId) -> Option<JobStatus> {
        let last = self.ended.iter().rev().find(|(of, _)| *of == peer);
        last.map(|(_, status)| status.clone())
    }
}

/// A job on its way through the parked messages.
pub(super) struct Running {
    number: u64,
    after: MessageNumber,
    pace: Option<Pace>,
    /// How many may go in this turn.
    allowed: usize,
}

/// What waits for its batch to be durable.
pub(super) enum Step {
    /// Copies of a page: the originals are settled now.
    Replayed { run: Running, from: PeerId, to: PeerId, moved: Vec<SettleDetail> },
    /// The note of a purged page.
    Purged { run: Running },
    /// The end of a job, before its time if there is a reason.
    Over { job: Job, why: String },
}

impl Router {
    /// Begins.
    pub(super) fn begin_job(&mut self, number: u64, ctx: &mut Context<Self>) {
        if let Some(run) = self.stand_by(number) {
            self.job_turn(run, ctx);
        }
    }

    /// Goes on after a restart: first with what was copied by then.
    pub(super) fn resume_job(&mut self, number: u64, ctx: &mut Context<Self>) {
        if let Some(run) = self.stand_by(number) {
            self.settle_copied(run, ctx);
        }
    }

    fn stand_by(&mut self, number: u64) -> Option<Running> {
        let registry = &self.state.registry;
        let job = registry.job(number)?;
        let (peer, filter, messages) =
            (registry.label(job.peer), job.filter.to_string(), job.messages);
        match job.work {
            Work::Replay { to, rate } => {
                let to = registry.label(to);
                events::peer_replay_started(&peer, &to, &filter, rate, messages, &job.by);
            }
            Work::Purge => events::peer_purge_started(&peer, &filter, messages, &job.by),
        }
        let pace = job.rate().map(|rate| Pace::new(rate, clock::now()));
        let stand = Stand { job: job.clone(), messages, waits_for: String::new() };
        self.jobs.stands.insert(number, stand);
        Some(Running { number, after: 0, pace, allowed: 0 })
    }

    /// A job that is to go on. One that was ended is not; of a node that stops, the next start goes on.
    fn job_under_way(&self, number: u64) -> Option<&Job> {
        self.state.registry.job(number).filter(|_| !self.draining)
    }

    fn settle_copied(&mut self, run: Running, ctx: &mut Context<Self>) {
        let Some(job) = self.job_under_way(run.number) else { return };
        let (Some(copies), Work::Replay { to, .. }) = (job.copies.clone(), job.work) else {
            return self.job_turn(run, ctx);
        };
        let (from, noted) = (job.peer, copies.originals.len() as u64);
        let look = self.look(job, 0, PAGE_MESSAGES);
        let (journal, node) = (Arc::clone(&self.journal), self.shared.node);
        let found = async move { copied(&*journal, node, look, &copies).await }.into_actor(self);
        ctx.spawn(found.map(move |found, router, ctx| match found {
            Ok(Copied { open, done }) => {
                if let Some(stand) = router.jobs.stands.get_mut(&run.number) {
                    stand.messages -= (noted - done).min(stand.messages);
                }
                router.settle_aside(from, open, End::Moved, to);
                router.job_turn(run, ctx);
            }
            Err(why) => {
                router.job_waits(run.number, why.to_string());
                ctx.run_later(RETRY, move |router, ctx| router.settle_copied(run, ctx));
            }
        }));
    }

    fn job_turn(&mut self, mut run: Running, ctx: &mut Context<Self>) {
        let Some(job) = self.job_under_way(run.number) else { return };
        let allowance = run.pace.as_mut().map(|pace| (pace.allowance(clock::now()), pace.wait()));
        if let Some((0, wait)) = allowance {
            return Self::job_later(run, wait, ctx);
        }
        run.allowed = allowance.map_or(PAGE_MESSAGES, |(allowed, _)| allowed.min(PAGE_MESSAGES));
        let messages_max = match job.filter.is_empty() {
            true => run.allowed,
            false => run.allowed.max(CHOICE_MESSAGES_MIN),
        };
        let (look, work, from) = (self.look(job, run.after, messages_max), job.work, job.peer);
        if let Some(waits_for) = self.no_room(work, from) {
            self.job_waits(run.number, waits_for);
            return Self::job_later(run, RETRY, ctx);
        }
        let journal = Arc::clone(&self.journal);
        let page = async move { aside::next(&*journal, look).await }.into_actor(self);
        ctx.spawn(page.map(move |found, router, ctx| router.job_page(run, found, ctx)));
    }

    fn job_later(run: Running, wait: Duration, ctx: &mut Context<Self>) {
        ctx.run_later(wait, move |router, ctx| router.job_turn(run, ctx));
    }

    /// Says what it waits for, until it goes on.
    fn job_waits(&mut self, number: u64, why: String) {
        if let Some(stand) = self.jobs.stands.get_mut(&number) {
            stand.waits_for = why;
        }
    }

    fn look(&self, job: &Job, after: MessageNumber, messages_max: usize) -> Look {
        Look {
            peer: job.peer,
            removed_at: self.state.registry.parked_since(job.peer),
            after,
            through: job.through,
            messages_max,
            // The copies have to fit a batch.
            bytes_max: PAGE_BYTES.min(self.journal.caps().batch_bytes_max / 4),
        }
    }

    /// Why nothing can be replayed now, if so. Within one peer nothing is added: it has them already.
    fn no_room(&mut self, work: Work, from: PeerId) -> Option<String> {
        let Work::Replay { to, .. } = work else { return None };
        if let Some(why) = self.door() {
            return Some(why.to_string());
        }
        if to == from {
            return None;
        }
        let over = self.slots.get_mut(to)?.over_quota(0)?;
        Some(format!("{}: {over}", self.state.registry.label(to)))
    }

    fn job_page(
        &mut self,
        mut run: Running,
        found: Result<(Vec<Aside>, MessageNumber), ReadError>,
        ctx: &mut Context<Self>,
    ) {
        // It may have been ended while the page was read.
        let Some(job) = self.job_under_way(run.number).cloned() else { return };
        let (asides, looked_through) = match found {
            Ok(found) => found,
            Err(ReadError::Damaged { number, detail }) => {
                self.pass_damaged(&job, number, &detail);
                (Vec::new(), number)
            }
            Err(ReadError::Unavailable(why)) => {
                self.job_waits(run.number, why.to_string());
                return Self::job_later(run, RETRY, ctx);
            }
        };
        let (mut chosen, mut through) = choose(&job, asides, looked_through, run.allowed);
        if let Work::Replay { .. } = job.work {
            (chosen, through) = self.copyable(chosen, through);
        }
        if chosen.is_empty() {
            run.after = through;
            return self.job_goes_on(run, &job, ctx);
        }
        let before = run.after;
        run.after = through;
        match job.work {
            Work::Replay { to, .. } => {
                if let Err((mut run, why)) = self.replay(run, &job, to, &chosen) {
                    run.after = before;
                    self.job_waits(run.number, why);
                    Self::job_later(run, RETRY, ctx);
                }
            }
            Work::Purge => {
                self.purge_parked(&job, &chosen);
                // One that is not noted is noted with the next; a crash only counts too few. The next
                // page waits for the disk: settles are not bounded by themselves.
                let messages = self.jobs.stands.get(&run.number).map_or(0, |stand| stand.messages);
                let number = run.number;
                let note = AdminEvent::JobNoted { number, messages, copies: None };
                match self.append_state(&StateEvent::Admin(note)) {
                    Ok(_) => self.once_durable(Outcome::OfJob(Box::new(Step::Purged { run }))),
                    Err(why) => {
                        self.job_waits(number, why.to_string());
                        Self::job_later(run, RETRY, ctx);
                    }
                }
            }
        }
    }

    /// As many of them as fit one batch as copies, and up to where that is. One that is too large for a
    /// copy, which has its id in front, stays parked and is named.
    fn copyable(&self, chosen: Vec<Aside>, through: MessageNumber) -> (Vec<Aside>, MessageNumber) {
        let mut left = self.caps.batch_bytes_max.saturating_sub(NOTE_BYTES_MAX);
        // The batch holds the note too.
        let max = self.caps.record_bytes_max.min(left);
        let mut fitting = Vec::with_capacity(chosen.len());
        for aside in chosen {
            let (number, bytes) = (aside.stored.number, copy_room(&aside.stored));
            if bytes > max {
                let why = format!("a copy has {bytes} bytes, a record takes {max}");
                events::journal_finding(&format!("message {number} stays parked: {why}"));
            } else if bytes > left && !fitting.is_empty() {
                return (fitting, number - 1);
            } else {
                left = left.saturating_sub(bytes);
                fitting.push(aside);
            }
        }
        (fitting, through)
    }

    /// The next page, or the end.
    fn job_goes_on(&mut self, run: Running, job: &Job, ctx: &mut Context<Self>) {
        let messages = match self.jobs.stands.get_mut(&run.number) {
            Some(stand) => {
                stand.waits_for.clear();
                stand.messages
            }
            None => return,
        };
        if run.after < job.through {
            return self.job_turn(run, ctx);
        }
        let ended = AdminEvent::JobEnded { number: run.number, messages };
        match self.append_state(&StateEvent::Admin(ended)) {
            Ok(_) => {
                let (job, why) = (job.clone(), String::new());
                self.once_durable(Outcome::OfJob(Box::new(Step::Over { job, why })));
            }
            Err(why) => {
                self.job_waits(run.number, why.to_string());
                Self::job_later(run, RETRY, ctx);
            }
        }
    }

    /// Something of a job is on disk.
    pub(super) fn job_step(&mut self, step: Step, ctx: &mut Context<Self>) {
        match step {
            Step::Replayed { run, from, to, moved } => {
                let count = moved.len() as u64;
                self.settle_aside(from, moved, End::Moved, to);
                if let Some(stand) = self.jobs.stands.get_mut(&run.number) {
                    stand.messages += count;
                }
                if let Some(job) = self.job_under_way(run.number).cloned() {
                    self.job_goes_on(run, &job, ctx);
                }
            }
            Step::Purged { run } => {
                if let Some(job) = self.job_under_way(run.number).cloned() {
                    self.job_goes_on(run, &job, ctx);
                }
            }
            Step::Over { job, why } => self.job_ended(&job, &why),
        }
    }

    /// A message that is damaged on disk stays parked, unless everything is to be purged.
    fn pass_damaged(&mut self, job: &Job, number: MessageNumber, detail: &str) {
        let purged = job.work == Work::Purge && job.filter.is_empty();
        let fate = if purged { "is purged" } else { "stays parked" };
        events::journal_finding(&format!("message {number} {fate}: {detail}"));
        if purged {
            self.purge_numbers(job, vec![(number, 0)]);
        }
    }

    /// Appends copies of messages to the end of a queue, behind a note of what they are copies of.
    ///
    /// # Errors
    /// The journal did not take them, and nothing has changed.
    fn replay(
        &mut self,
        mut run: Running,
        job: &Job,
        to: PeerId,
        chosen: &[Aside],
    ) -> Result<(), (Running, String)> {
        self.append_building();
        let done = self.jobs.stands.get(&run.number).map_or(job.messages, |stand| stand.messages);
        let accepted_ms = self.accepted_now();
        // The note stands first in the batch. Nobody else takes a number in this turn.
        let first = self.journal.next_number() + 1;
        let originals: Vec<MessageNumber> =
            chosen.iter().map(|aside| aside.stored.number).collect();
        let copies = Some(Copies { first, accepted_ms, originals });
        let (number, messages) = (run.number, done + chosen.len() as u64);
        let note = StateEvent::Admin(AdminEvent::JobNoted { number, messages, copies });
        let encoded = match note.encode() {
            Ok(encoded) => encoded,
            Err(why) => return Err((run, why.to_string())),
        };
        self.building.accepted_ms = accepted_ms;
        let placed = put_record(&mut self.building.bytes, &encoded);
        self.building.place(RecordKind::Admin, placed);
        for aside in chosen {
            let id = self.id(aside.stored.accepted_ms, aside.stored.number);
            // Who has it replayed wants it delivered, however long it lay.
            self.building.copy_to(to, id, &aside.stored, Life::New);
        }
        self.gather_copies(to);
        let begins = match self.append_gathered() {
            Ok(begins) => begins,
            Err(why) => return Err((run, why.to_string())),
        };
        debug_assert_eq!(begins, Some(first - 1), "the note stands before its copies");
        if let Err(why) = self.state.apply(&note) {
            // What it follows from was looked up in this very turn.
            events::journal_finding(&format!("a note of a replay: {why}"));
        }
        if let Some(pace) = &mut run.pace {
            pace.take(chosen.len());
        }
        let moved = chosen.iter().zip(first..).map(|(aside, copy)| moved(aside, copy)).collect();
        let step = Step::Replayed { run, from: job.peer, to, moved };
        self.once_durable(Outcome::OfJob(Box::new(step)));
        Ok(())
    }

    fn purge_parked(&mut self, job: &Job, chosen: &[Aside]) {
        let numbers = chosen.iter().map(|aside| (aside.stored.number, attempts_of(aside)));
        self.purge_numbers(job, numbers.collect());
    }

    /// Each keeps a record of who did it.
    fn purge_numbers(&mut self, job: &Job, numbers: Vec<(MessageNumber, u16)>) {
        let by = job.by.as_bytes();
        let detail = |(number, attempts)| SettleDetail { number, attempts, value: by.to_vec() };
        let details: Vec<SettleDetail> = numbers.into_iter().map(detail).collect();
        if let Some(stand) = self.jobs.stands.get_mut(&job.number) {
            stand.messages += details.len() as u64;
        }
        self.settle_aside(job.peer, details, End::Purged, PeerId::NONE);
    }

    /// Settles parked messages, each by its number: others below stay.
    fn settle_aside(
        &mut self,
        peer: PeerId,
        details: Vec<SettleDetail>,
        outcome: End,
        moved_to: PeerId,
    ) {
        if details.is_empty() {
            return;
        }
        let numbers: Vec<MessageNumber> = details.iter().map(|detail| detail.number).collect();
        let (at_ms, above, count) = (clock::wall_ms(), numbers.clone(), numbers.len());
        let record = SettleRecord { peer, at_ms, outcome, moved_to, floor: 0, above, details };
        self.journal.settle(Settle { record, numbers });
        match self.slots.get_mut(peer) {
            Some(slot) => {
                let left = self.journal.backlog(peer);
                slot.marks.parked.store(left.parked, Relaxed);
                slot.marks.parked_bytes.store(left.parked_bytes, Relaxed);
                // One whose mailbox is full tells its counts soon anyway.
                let _ = slot.addr.try_send(Recount);
            }
            None => drop(self.shared.kept.fetch_sub(count as i64, Relaxed)),
        }
    }

    /// A job is over, and that is on record; `why` it was before its end.
    pub(super) fn job_ended(&mut self, job: &Job, why: &str) {
        let mut status = self.status_of(job);
        self.jobs.stands.remove(&job.number);
        status.ended = Some(WallMillis(clock::wall_ms()));
        why.clone_into(&mut status.why);
        let by = &job.by;
        let why = Some(why).filter(|why| !why.is_empty());
        match &status.to {
            Some(to) => {
                events::peer_replay_ended(&status.peer, to, status.messages, why, by);
            }
            None => events::messages_purged(&status.peer, status.messages, why, by),
        }
        self.jobs.ended.retain(|(peer, _)| *peer != job.peer);
        self.jobs.ended.push_back((job.peer, status));
        if self.jobs.ended.len() > ENDED_MAX {
            self.jobs.ended.pop_front();
        }
    }

    fn status_of(&self, job: &Job) -> JobStatus {
        let registry = &self.state.registry;
        let stand = self.jobs.stands.get(&job.number);
        JobStatus {
            job: job.number,
            peer: registry.label(job.peer),
            to: job.to().map(|to| registry.label(to)),
            rate: job.rate(),
            filter: job.filter.to_string(),
            by: job.by.clone(),
            began: job.at,
            messages: stand.map_or(job.messages, |stand| stand.messages),
            ended: None,
            why: stand.map_or_else(String::new, |stand| stand.waits_for.clone()),
        }
    }
}

impl Handler<super::FindJob> for Router {
    type Result = MessageResult<super::FindJob>;

    fn handle(&mut self, asked: super::FindJob, _: &mut Context<Self>) -> Self::Result {
        let mut under_way = self.jobs.stands.values();
        let found = match under_way.find(|stand| stand.job.peer == asked.0) {
            Some(stand) => Some(self.status_of(&stand.job)),
            None => self.jobs.last_of(asked.0),
        };
        MessageResult(found)
    }
}

/// The first so many that the filter lets through, and up to where everything has been looked at. What
/// is not laid out as a message stays parked, unless all are meant.
fn choose(
    job: &Job,
    asides: Vec<Aside>,
    looked_through: MessageNumber,
    most: usize,
) -> (Vec<Aside>, MessageNumber) {
    let mut chosen = Vec::with_capacity(most.min(asides.len()));
    for aside in asides {
        let is_chosen = match Body::parse(&aside.stored.body) {
            Ok(body) => job.filter.chooses_parked(&aside.parking, body.key),
            Err(_) => job.work == Work::Purge && job.filter.is_empty(),
        };
        if is_chosen {
            if chosen.len() == most {
                return (chosen, aside.stored.number - 1);
            }
            chosen.push(aside);
        }
    }
    (chosen, looked_through)
}

/// What was copied before a crash.
struct Copied {
    /// Still parked: to be settled.
    open: Vec<SettleDetail>,
    /// How many there are copies of, those settled by then included.
    done: u64,
}

/// Looks for the copies that a note speaks of: the end of a log may have been cut off behind it.
async fn copied(
    journal: &dyn Journal,
    node: NodeTag,
    look: Look,
    copies: &Copies,
) -> Result<Copied, Refusal> {
    let (Some(first), Some(last)) = (copies.originals.first(), copies.originals.last()) else {
        return Ok(Copied { open: Vec::new(), done: 0 });
    };
    let mut open = Vec::new();
    let mut missing = 0;
    let mut look = Look { after: first - 1, through: *last, ..look };
    while look.after < look.through {
        let (asides, through) = match aside::next(journal, look).await {
            Ok(found) => found,
            Err(ReadError::Damaged { number, .. }) => (Vec::new(), number),
            Err(ReadError::Unavailable(why)) => return Err(why),
        };
        for aside in asides {
            let Some(copy) = copies.of(aside.stored.number) else { continue };
            if is_copy(journal, node, &aside.stored, copy, copies.accepted_ms).await? {
                open.push(moved(&aside, copy));
            } else {
                missing += 1;
            }
        }
        look.after = through;
    }
    Ok(Copied { open, done: copies.originals.len() as u64 - missing })
}

/// Whether the record of this number is a copy of this message, and not one that took the number after
/// the end of the log had been cut off.
pub(super) async fn is_copy(
    journal: &dyn Journal,
    node: NodeTag,
    stored: &Stored,
    copy: MessageNumber,
    accepted_ms: u64,
) -> Result<bool, Refusal> {
    match journal.lookup(copy).await {
        Ok(life) => {
            let own = MessageId::new(stored.accepted_ms, node, 0, stored.number);
            let id = Body::parse(&stored.body).ok().and_then(|body| body.original_id);
            let is_of_it = |body: &bytes::Bytes| {
                let copied = Body::parse(body).ok().and_then(|body| body.original_id);
                copied == Some(id.unwrap_or(own))
            };
            // Of one that is done by now perhaps only its record is left.
            Ok(life.accepted_ms == accepted_ms && life.body.as_ref().is_none_or(is_of_it))
        }
        Err(LookupError::Unavailable) => {
            let detail = "the journal cannot be read now";
            Err(Refusal::new(restante_protocol::refusal::Code::JournalPoisoned, detail))
        }
        // Better twice, flagged, than not at all.
        Err(LookupError::Unknown | LookupError::AgedOut | LookupError::Damaged) => Ok(false),
    }
}

/// The ledger's word of a replayed message: the number of its copy, so that a trace can follow it.
fn moved(aside: &Aside, copy: MessageNumber) -> SettleDetail {
    let value = copy.to_be_bytes().to_vec();
    SettleDetail { number: aside.stored.number, attempts: attempts_of(aside), value }
}

fn attempts_of(aside: &Aside) -> u16 {
    u16::try_from(aside.parking.attempts).unwrap_or(u16::MAX)
}
