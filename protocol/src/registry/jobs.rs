//! Jobs over a peer's messages: which there are, and which may begin.

use super::{AdminEvent, Found, Peer, Registry, expect_version};
use crate::admin::AdminDone;
use crate::id::PeerId;
use crate::job::{Copies, Job, Work};
use crate::name::Name;
use crate::pace;
use crate::refusal::{Code, Refusal};
use crate::state::StateError;
use crate::stored::Filter;
use crate::time::WallMillis;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most jobs of a node at a time.
pub const JOBS_MAX: usize = 64;

/// The jobs under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Jobs {
    /// The highest number given.
    last: u64,
    under_way: BTreeMap<u64, Job>,
}

impl Registry {
    /// The jobs under way, in the order they began: what a boot goes on with.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.durable.jobs.under_way.values()
    }

    /// This job, if it is under way.
    #[must_use]
    pub fn job(&self, number: u64) -> Option<&Job> {
        self.durable.jobs.under_way.get(&number)
    }

    /// The job over this peer's messages, if one is under way.
    #[must_use]
    pub fn job_of(&self, peer: PeerId) -> Option<&Job> {
        self.jobs().find(|job| job.peer == peer)
    }

    /// The jobs that end when this peer is removed: over its messages, or into its queue.
    pub fn jobs_about(&self, peer: PeerId) -> impl Iterator<Item = &Job> {
        self.jobs().filter(move |job| job.peer == peer || job.to() == Some(peer))
    }

    /// Peers that more is coming for by itself: by replays under way, and what removed ones are still to
    /// hand over. One pass over all that is removed.
    #[must_use]
    pub fn given_to(&self) -> BTreeSet<PeerId> {
        let heirs = self.unfinished().filter_map(|removed| removed.disposition.heir());
        self.jobs().filter_map(Job::to).chain(heirs).collect()
    }

    /// What a replay is to do.
    pub(super) fn check_replay(
        &self,
        name: &str,
        to: Option<&Name>,
        rate: Option<u32>,
    ) -> Result<Work, Refusal> {
        if let Some(rate) = rate.filter(|rate| !pace::RATE.contains(rate)) {
            let (low, high) = (pace::RATE.start(), pace::RATE.end());
            let detail = format!("rate is {rate}, expected {low} to {high} messages a second");
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        let to = match (to, self.find(name)) {
            (Some(to), _) => self.expect_taking(to)?.id,
            (None, Some(Found::Present(peer))) => self.expect_taking(&peer.name)?.id,
            (None, Some(Found::Removed(_))) => {
                let detail = format!("'{name}' has been removed: say who is to get them (--to)");
                return Err(Refusal::new(Code::NoReceiver, detail));
            }
            (None, None) => return Err(unknown(name)),
        };
        Ok(Work::Replay { to, rate })
    }

    pub(super) fn check_job(
        &self,
        name: &str,
        if_version: Option<u64>,
        filter: &Filter,
        work: Work,
        at: WallMillis,
        by: &str,
    ) -> Result<AdminEvent, Refusal> {
        filter.check()?;
        let found = self.find(name).ok_or_else(|| unknown(name))?;
        let peer = found.peer();
        expect_version(format_args!("peer '{name}'"), peer.version, if_version)?;
        // What an earlier removal could not purge or hand over has stayed, and is parked like the rest.
        if let Found::Removed(removed) = found
            && !removed.disposition.is_done()
        {
            let detail = format!("what waits for '{name}' is being purged or handed over");
            return Err(Refusal::new(Code::JobUnderWay, detail));
        }
        if let Some(job) = self.job_of(peer.id) {
            let detail = format!("job {} of {} is under way for '{name}'", job.number, job.by);
            return Err(Refusal::new(Code::JobUnderWay, detail));
        }
        if self.durable.jobs.under_way.len() >= JOBS_MAX {
            let detail = format!("{JOBS_MAX} jobs are under way, which is the limit");
            return Err(Refusal::new(Code::Overloaded, detail));
        }
        let (number, peer, filter) = (self.durable.jobs.last + 1, peer.id, filter.clone());
        let (through, by, messages, copies) = (0, by.to_owned(), 0, None);
        let job = Job { number, peer, work, filter, through, by, at, messages, copies };
        Ok(AdminEvent::JobBegun(job))
    }

    pub(super) fn check_cancel(&self, name: &str) -> Result<AdminEvent, Refusal> {
        let peer = self.find(name).ok_or_else(|| unknown(name))?.peer().id;
        let job = self.job_of(peer).ok_or_else(|| {
            Refusal::new(Code::NotFound, format!("no job is under way for '{name}'"))
        })?;
        Ok(AdminEvent::JobEnded { number: job.number, messages: job.messages })
    }
}

impl<'a> Found<'a> {
    /// Its record, as it is or was.
    #[must_use]
    pub const fn peer(self) -> &'a Peer {
        match self {
            Found::Present(peer) => peer,
            Found::Removed(removed) => &removed.peer,
        }
    }
}

impl Jobs {
    pub(super) fn begin(&mut self, job: &Job) -> Result<AdminDone, StateError> {
        if job.number <= self.last {
            return Err(out_of_order(job.number));
        }
        self.last = job.number;
        self.under_way.insert(job.number, job.clone());
        Ok(done(job))
    }

    pub(super) fn note(
        &mut self,
        number: u64,
        messages: u64,
        copies: Option<&Copies>,
    ) -> Result<AdminDone, StateError> {
        let job = self.under_way.get_mut(&number).ok_or_else(|| out_of_order(number))?;
        job.messages = messages;
        job.copies = copies.cloned();
        Ok(done(job))
    }

    pub(super) fn end(&mut self, number: u64) -> Result<AdminDone, StateError> {
        self.under_way.remove(&number).map(|job| done(&job)).ok_or_else(|| out_of_order(number))
    }

    /// A peer is gone, and what was to be done with it.
    pub(super) fn drop_peer(&mut self, peer: PeerId) {
        self.under_way.retain(|_, job| job.peer != peer && job.to() != Some(peer));
    }

    /// Whether a job still needs this peer.
    pub(super) fn need(&self, peer: PeerId) -> bool {
        self.under_way.values().any(|job| job.peer == peer || job.to() == Some(peer))
    }
}

fn done(job: &Job) -> AdminDone {
    AdminDone { id: job.peer, version: 0, messages: 0, job: Some(job.number) }
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(Code::NotFound, format!("there is no peer '{name}'"))
}

fn out_of_order(number: u64) -> StateError {
    StateError::OutOfOrder { what: "job", id: u32::try_from(number).unwrap_or(u32::MAX) }
}
