//! Changes by operators: checked, journaled, in effect, answered; in this order.

use super::batch::Outcome;
use super::drain::Look;
use super::{AdminEffect, PeerRecordView, PeerRecords, Router, answered};
use crate::clock;
use crate::directory::Seat;
use crate::events;
use crate::peer::{Reconfigure, Retire};
use crate::router::Administer;
use actix::prelude::*;
use restante_protocol::admin::{About, AdminCommand, AdminDone};
use restante_protocol::id::PeerId;
use restante_protocol::job::Job;
use restante_protocol::limits::PEER_PAGE_MAX;
use restante_protocol::refusal::Refusal;
use restante_protocol::registry::{
    AdminEvent, Class, Disposition, Found, Peer as PeerRecord, Registry, Removed,
};
use restante_protocol::state::StateEvent;
use restante_protocol::status::Taking;
use restante_protocol::time::WallMillis;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::oneshot;

impl Handler<Administer> for Router {
    type Result = ResponseFuture<Result<AdminDone, Refusal>>;

    fn handle(&mut self, ask: Administer, _: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        match self.administer(&ask.command, &ask.by) {
            Ok((done, effect)) => {
                let effect = effect.map(Box::new);
                self.once_durable(Outcome::Administered { reply, done, effect });
            }
            Err(why) => {
                self.log_refusal(&ask, &why);
                let _ = reply.send(Err(why));
            }
        }
        answered(answer)
    }
}

impl Router {
    /// Limited per peer; what is said of peers that there are not shares one budget.
    fn log_refusal(&mut self, ask: &Administer, why: &Refusal) {
        let name = ask.command.subject();
        let subject = match self.state.registry.find(name) {
            Some(Found::Present(record)) => record.id,
            Some(Found::Removed(_)) | None => PeerId::NONE,
        };
        let admitted = self.limiter.admit(subject, "admin_refused", clock::now());
        if let Some(suppressed) = admitted {
            let (verb, by) = (verb(&ask.command), &ask.by);
            let about = ask.command.about();
            let [peer, group, class] = [About::Peer, About::Group, About::Class]
                .map(|what| Some(name).filter(|_| what == about));
            events::admin_refused(verb, peer, group, class, why.code, &why.detail, by, suppressed);
        }
    }

    fn administer(
        &mut self,
        command: &AdminCommand,
        by: &str,
    ) -> Result<(AdminDone, Option<AdminEffect>), Refusal> {
        // What is gathered waits for its peer too.
        self.append_building();
        if matches!(command, AdminCommand::PeerRemove { .. }) {
            self.make_room_for_another();
        }
        let (registry, now) = (&self.state.registry, WallMillis(clock::wall_ms()));
        let mut event = registry.check(command, now, by, |id| self.kept_for(id))?;
        if let AdminEvent::JobBegun(job) = &mut event {
            job.through = self.journal.next_number() - 1;
        }
        let ended = self.ended_by(&event);
        let Subject { id, version, job } = self.subject(&event);
        let before = self.state.registry.get(id).cloned();
        let group_before = self.state.registry.group(id).cloned();
        let class_before = self.class_of(&event).cloned();
        let as_it_is = match &event {
            AdminEvent::PeerChanged(now) => {
                before.as_ref().filter(|before| now.is_as(before)).map(|before| before.version)
            }
            AdminEvent::GroupChanged(now) => {
                let before = group_before.as_ref();
                before.filter(|before| now.members == before.members).map(|before| before.version)
            }
            AdminEvent::ClassChanged(now) => {
                let before = class_before.as_ref();
                before.filter(|before| now.rates == before.rates).map(|before| before.version)
            }
            _ => None,
        };
        if let Some(version) = as_it_is {
            // Already so, like pausing twice: nothing to record, nothing to log.
            return Ok((AdminDone { id, version, messages: 0, job: None }, None));
        }
        let removes = matches!(event, AdminEvent::PeerRemoved { .. });
        let waiting = if removes { self.kept_for(id) } else { 0 };
        let groups = self.state.registry.groups_of(id).count() as u64;
        self.append_state(&StateEvent::Admin(event.clone()))?;
        if removes {
            // Nothing more is accepted for it; what was is in the log before its removal.
            if let Some(mut slot) = self.slots.remove(id) {
                self.shared.kept.fetch_sub(slot.kept() as i64, Relaxed);
                self.delays.peer_removed(id, slot.delayed());
            }
            self.leaving.extend(self.shared.directory.remove(id).map(|seat| (id, seat)));
        }
        if let (AdminEvent::GroupRemoved { .. }, Some(group)) = (&event, &group_before) {
            self.shared.directory.remove_group(group.name.as_str(), id);
        }
        let done = AdminDone { id, version, messages: waiting, job };
        let by = by.to_owned();
        let effect =
            AdminEffect { event, before, group_before, class_before, groups, by, waiting, ended };
        Ok((done, Some(effect)))
    }

    /// The change is durable: let the node follow it.
    pub(super) fn take_effect(&mut self, effect: AdminEffect, ctx: &mut Context<Self>) {
        let AdminEffect { event, before, group_before, class_before, groups, by, waiting, ended } =
            effect;
        for job in &ended {
            let why = match &event {
                AdminEvent::PeerRemoved { id, .. } => {
                    format!("{} was removed by {by}", self.state.registry.label(*id))
                }
                _ => format!("cancelled by {by}"),
            };
            self.job_ended(job, &why);
        }
        match event {
            AdminEvent::PeerAdded(record) => {
                // One that has been removed again while this was on its way to disk gets no actor:
                // nobody would ever stop it.
                if self.state.registry.get(record.id).is_some() {
                    self.seat(&record, None);
                }
                let (name, url) = (record.name.as_str(), record.url.to_string());
                events::peer_added(name, record.id, &url, record.version, &by);
            }
            AdminEvent::PeerChanged(record) => {
                self.reconfigure(&record);
                log_change(before.as_ref(), &record, self.waiting(record.id), &by);
            }
            AdminEvent::PeerRemoved { id, disposition, .. } => {
                if let Some(removed) = self.state.registry.removed(id) {
                    let (peer, fate) = (removed.peer.name.as_str(), self.fate(disposition));
                    events::peer_removed(peer, id, &fate, waiting, groups, &by);
                }
                self.retire(id, by, ctx);
            }
            AdminEvent::GroupAdded(group) => self.group_added(&group, &by),
            AdminEvent::GroupChanged(group) => {
                self.group_changed(group_before.as_ref(), &group, &by);
            }
            AdminEvent::GroupRemoved { version, .. } => {
                if let Some(group) = group_before {
                    events::group_removed(group.name.as_str(), version, &by);
                }
            }
            AdminEvent::ClassAdded(class) => self.class_added(&class, &by),
            AdminEvent::ClassChanged(class) => {
                self.class_changed(class_before.as_ref(), &class, &by);
            }
            AdminEvent::ClassRemoved { version, .. } => {
                self.class_removed(class_before.as_ref(), version, &by);
            }
            AdminEvent::JobBegun(job) => self.begin_job(job.number, ctx),
            AdminEvent::DispositionDone { .. }
            | AdminEvent::PeerForgotten { .. }
            | AdminEvent::JobNoted { .. }
            | AdminEvent::JobEnded { .. } => {}
        }
    }

    fn reconfigure(&mut self, record: &PeerRecord) {
        let Some(slot) = self.slots.get_mut(record.id) else { return };
        let was_draining = slot.is_draining();
        slot.configure(record.settings.quota(self.limits.peer_share), record.draining);
        match (was_draining, record.draining) {
            (false, true) => self.drains.begin(record.id),
            (true, false) => self.drains.end(record.id),
            // What has been told of it is not told again.
            (true, true) | (false, false) => {}
        }
        let change = Reconfigure {
            url: record.url.clone(),
            settings: record.settings.clone(),
            paused: record.paused,
            version: record.version,
        };
        // Awaited in a task of its own: a full mailbox must not lose it, and nobody waits here.
        let request = slot.addr.send(change);
        actix_rt::spawn(async move {
            let _ = request.await;
        });
    }

    /// Stops the actor of a removed peer, then sees to what waited for it.
    fn retire(&mut self, id: PeerId, by: String, ctx: &mut Context<Self>) {
        let Some(seat) = self.leaving.remove(&id) else { return self.dispose(id, by, ctx) };
        let retired = seat.addr.send(Retire).into_actor(self);
        ctx.spawn(retired.map(move |_, router, ctx| router.dispose(id, by, ctx)));
    }

    fn waiting(&self, id: PeerId) -> u64 {
        self.journal.backlog(id).messages
    }

    /// Messages that wait or are parked for a peer, and those that are delayed.
    pub(super) fn kept_for(&self, id: PeerId) -> u64 {
        let slot = self.slots.get(id);
        self.stored_for(id) + slot.map_or_else(|| self.delays.left_by(id), |slot| slot.delayed())
    }

    /// Messages that wait or are parked for a peer, those on their way to disk included: the journal
    /// counts a message only once it is there.
    pub(super) fn stored_for(&self, id: PeerId) -> u64 {
        let backlog = self.journal.backlog(id);
        let hand_offs = self.pending.iter().flat_map(|pending| &pending.hand_offs);
        let on_its_way = hand_offs.filter(|(peer, _)| *peer == id).map(|(_, new)| new.len() as u64);
        backlog.messages + backlog.parked + on_its_way.sum::<u64>()
    }

    fn fate(&self, disposition: Disposition) -> String {
        match disposition {
            Disposition::Park => "parked".to_owned(),
            Disposition::Purge { .. } => "purged".to_owned(),
            Disposition::HandTo { to, .. } => {
                format!("handed to {}", self.state.registry.label(to))
            }
        }
    }
}

impl Handler<PeerRecords> for Router {
    type Result = MessageResult<PeerRecords>;

    fn handle(&mut self, asked: PeerRecords, _: &mut Context<Self>) -> Self::Result {
        let above = self.state.registry.peers_above(asked.after).take(PEER_PAGE_MAX);
        let mut look = Look::new(&self.slots, &self.state.registry, &self.delays);
        MessageResult(above.map(|record| PeerRecordView::present(record, &mut look)).collect())
    }
}

impl Handler<super::FindPeer> for Router {
    type Result = MessageResult<super::FindPeer>;

    fn handle(&mut self, asked: super::FindPeer, _: &mut Context<Self>) -> Self::Result {
        let registry = &self.state.registry;
        let mut look = Look::new(&self.slots, registry, &self.delays);
        let found = registry.find(&asked.0);
        MessageResult(found.map(|found| PeerRecordView::of(found, registry, &mut look)))
    }
}

impl Handler<super::Barrier> for Router {
    type Result = ();

    fn handle(&mut self, _: super::Barrier, _: &mut Context<Self>) {}
}

impl Handler<super::PeerLabels> for Router {
    type Result = MessageResult<super::PeerLabels>;

    fn handle(&mut self, asked: super::PeerLabels, _: &mut Context<Self>) -> Self::Result {
        let registry = &self.state.registry;
        MessageResult(asked.0.into_iter().map(|id| registry.label(id)).collect())
    }
}

impl PeerRecordView {
    fn of(found: Found<'_>, registry: &Registry, look: &mut Look<'_>) -> PeerRecordView {
        match found {
            Found::Present(record) => PeerRecordView::present(record, look),
            Found::Removed(removed) => PeerRecordView::removed(removed, registry, look),
        }
    }

    fn present(record: &PeerRecord, look: &mut Look<'_>) -> PeerRecordView {
        PeerRecordView {
            id: record.id,
            name: record.name.to_string(),
            url: record.url.clone(),
            settings: record.settings.clone(),
            version: record.version,
            paused: record.paused,
            taking: look.taking(record),
            delayed: look.delayed(record.id),
            removed: false,
            parked_at: None,
            removed_by: None,
        }
    }

    fn removed(removed: &Removed, registry: &Registry, look: &mut Look<'_>) -> PeerRecordView {
        let label = removed.label();
        let record = PeerRecordView::present(&removed.peer, look);
        let parked_at = registry.parked_since(removed.peer.id);
        let (taking, removed_by) = (Taking::Open, Some(removed.by.clone()));
        PeerRecordView { name: label, taking, removed: true, parked_at, removed_by, ..record }
    }
}

/// Peers that have been removed and whose actors have not ended yet.
pub(super) type Leaving = std::collections::HashMap<PeerId, Arc<Seat>>;

/// What an answer says a change was about.
struct Subject {
    id: PeerId,
    version: u64,
    job: Option<u64>,
}

impl Router {
    /// The jobs that a change ends.
    fn ended_by(&self, event: &AdminEvent) -> Vec<Job> {
        let registry = &self.state.registry;
        match event {
            AdminEvent::PeerRemoved { id, .. } => registry.jobs_about(*id).cloned().collect(),
            AdminEvent::JobEnded { number, .. } => {
                registry.job(*number).cloned().into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The class that a change is about, as it is before it.
    fn class_of(&self, event: &AdminEvent) -> Option<&Class> {
        match event {
            AdminEvent::ClassChanged(Class { name, .. })
            | AdminEvent::ClassRemoved { name, .. } => self.state.registry.class(name),
            _ => None,
        }
    }

    fn subject(&self, event: &AdminEvent) -> Subject {
        let registry = &self.state.registry;
        let of = |id: PeerId, job: Option<u64>| {
            let removed = || registry.removed(id).map(|removed| &removed.peer);
            let version = registry.get(id).or_else(removed).map_or(0, |peer| peer.version);
            Subject { id, version, job }
        };
        match event {
            AdminEvent::PeerAdded(record) | AdminEvent::PeerChanged(record) => {
                Subject { id: record.id, version: record.version, job: None }
            }
            AdminEvent::PeerRemoved { id, version, .. }
            | AdminEvent::GroupRemoved { id, version } => {
                Subject { id: *id, version: *version, job: None }
            }
            AdminEvent::GroupAdded(group) | AdminEvent::GroupChanged(group) => {
                Subject { id: group.id, version: group.version, job: None }
            }
            AdminEvent::ClassAdded(Class { version, .. })
            | AdminEvent::ClassChanged(Class { version, .. })
            | AdminEvent::ClassRemoved { version, .. } => {
                Subject { id: PeerId::NONE, version: *version, job: None }
            }
            AdminEvent::DispositionDone { id } | AdminEvent::PeerForgotten { id } => of(*id, None),
            AdminEvent::JobBegun(job) => of(job.peer, Some(job.number)),
            AdminEvent::JobNoted { number, .. } | AdminEvent::JobEnded { number, .. } => {
                of(registry.job(*number).map_or(PeerId::NONE, |job| job.peer), Some(*number))
            }
        }
    }
}

fn verb(command: &AdminCommand) -> &'static str {
    match command {
        AdminCommand::PeerAdd { .. } => "peer add",
        AdminCommand::PeerSet { .. } => "peer set",
        AdminCommand::PeerPause { .. } => "peer pause",
        AdminCommand::PeerDrain { .. } => "peer drain",
        AdminCommand::PeerResume { .. } => "peer resume",
        AdminCommand::PeerRemove { .. } => "peer rm",
        AdminCommand::PeerReplay { .. } => "peer replay",
        AdminCommand::PeerPurge { .. } => "peer purge",
        AdminCommand::PeerCancel { .. } => "peer cancel",
        AdminCommand::GroupAdd { .. } => "group add",
        AdminCommand::GroupSet { .. } => "group set",
        AdminCommand::GroupRemove { .. } => "group rm",
        AdminCommand::ClassAdd { .. } => "class add",
        AdminCommand::ClassSet { .. } => "class set",
        AdminCommand::ClassRemove { .. } => "class rm",
    }
}

fn log_change(before: Option<&PeerRecord>, now: &PeerRecord, waiting: u64, by: &str) {
    let (name, version) = (now.name.as_str(), now.version);
    match before {
        Some(before) if before.paused != now.paused && now.paused => {
            events::peer_paused(name, version, waiting, by);
        }
        Some(before) if before.draining != now.draining && now.draining => {
            events::peer_draining(name, version, waiting, by);
        }
        Some(before) if before.paused != now.paused || before.draining != now.draining => {
            events::peer_resumed(name, version, waiting, by);
        }
        _ => {
            let changed = before.map_or_else(String::new, |before| changes(before, now));
            events::peer_changed(name, version, &changed, by);
        }
    }
}

/// The values that differ, as `name=value` words.
fn changes(before: &PeerRecord, now: &PeerRecord) -> String {
    let mut words = before.settings.differences(&now.settings);
    if before.url != now.url {
        words.insert(0, format!("url={}", now.url));
    }
    words.join(" ")
}
