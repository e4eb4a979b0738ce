//! The peers of a node, their groups and classes: a state machine of commands, events and nothing else.
//!
//! ```text
//! command ─check─► event ─journal─► durable ─apply─► the peers ─► answer
//!                                      │
//!                           boot: snapshot + replay ─apply─►  the same peers
//! ```
//!
//! [`Registry::check`] judges a command against the present state and changes nothing; the event it
//! returns holds the outcome whole (all settings, the new version), so that replaying it in a later
//! release with other defaults gives the same peers. [`Registry::apply`] is the only way state changes.
//!
//! An id is given once and never again, also when its peer has gone: messages are stored under it. A
//! removed peer is remembered as `name#id` together with what is to become of its messages; purging
//! and handing over take time, so they are marked done by an event of their own, and what a restart
//! finds undone it goes on with. It is forgotten, by an event again, once nothing stored speaks of it.
//! A peer added under an old name is a new peer.

mod classes;
mod groups;
mod jobs;
mod removed;

pub use classes::{CLASSES_MAX, Class};
pub use groups::{GROUPS_MAX, Group, MEMBERSHIPS_MAX};
pub use jobs::JOBS_MAX;
pub use removed::{Destination, Disposition, Removed};

use crate::admin::{AdminCommand, AdminDone, PeerPatch, PeerSettings, PeerUrl, Waiting};
use crate::id::PeerId;
use crate::job::{Copies, Job, Work};
use crate::name::Name;
use crate::refusal::{Code, Refusal};
use crate::state::StateError;
use crate::time::WallMillis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;

/// Most peers of a node unless configured otherwise; as many removed ones are remembered.
pub const PEERS_MAX_DEFAULT: usize = 100_000;

/// A receiver as the node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its durable identity.
    pub id: PeerId,
    /// Its name, unique among the peers and groups that are there.
    pub name: Name,
    /// Ascends by one with every change; 1 at first.
    pub version: u64,
    /// Whether an operator holds it.
    pub paused: bool,
    /// Whether nothing new is accepted for it.
    pub draining: bool,
    /// Where it is reached.
    pub url: PeerUrl,
    /// How it is served.
    pub settings: PeerSettings,
}

impl Peer {
    /// Whether nothing but the version differs.
    #[must_use]
    pub fn is_as(&self, other: &Peer) -> bool {
        let of = |peer: &Peer| (peer.id, peer.paused, peer.draining);
        of(self) == of(other)
            && (&self.name, &self.url, &self.settings) == (&other.name, &other.url, &other.settings)
    }
}

/// A change of the registry, as journaled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminEvent {
    /// A peer is new.
    PeerAdded(Peer),
    /// A peer is as this record says: its settings, address, pause and version.
    PeerChanged(Peer),
    /// A peer is gone.
    PeerRemoved {
        /// Which.
        id: PeerId,
        /// Its last version.
        version: u64,
        /// What is to become of its messages.
        disposition: Disposition,
        /// When.
        at: WallMillis,
        /// Who asked for it: agent and address.
        by: String,
    },
    /// What was to become of a removed peer's messages has.
    DispositionDone {
        /// Which.
        id: PeerId,
    },
    /// A group is new.
    GroupAdded(Group),
    /// A group is as this record says: its members and version.
    GroupChanged(Group),
    /// A group is gone.
    GroupRemoved {
        /// Which.
        id: PeerId,
        /// Its last version.
        version: u64,
    },
    /// A class is new.
    ClassAdded(Class),
    /// A class is as this record says: its rates and version.
    ClassChanged(Class),
    /// A class is gone.
    ClassRemoved {
        /// Which.
        name: Name,
        /// Its last version.
        version: u64,
    },
    /// A job over a peer's messages has begun.
    JobBegun(Job),
    /// A job has come so far.
    JobNoted {
        /// Which.
        number: u64,
        /// Messages it has done, those that are copied behind this record included.
        messages: u64,
        /// Of a replay: what is copied behind this record.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        copies: Option<Copies>,
    },
    /// A job has ended, by itself or by an operator.
    JobEnded {
        /// Which.
        number: u64,
        /// Messages it has done.
        messages: u64,
    },
    /// Nothing of a removed peer is stored any more; its name and id are forgotten.
    PeerForgotten {
        /// Which.
        id: PeerId,
    },
}

/// A peer that is there or was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// It is there.
    Present(&'a Peer),
    /// It has been removed.
    Removed(&'a Removed),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    peers_max: usize,
    defaults: PeerSettings,
    durable: Snapshot,
    /// Of the peers that are there; follows from `durable`.
    by_name: BTreeMap<Name, PeerId>,
    /// The same of groups.
    groups: groups::Index,
    /// How many of the peers are in each class.
    class_counts: classes::Counts,
}

/// The part of a registry that a checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Snapshot {
    /// The highest id ever given.
    last_id: u32,
    peers: BTreeMap<PeerId, Peer>,
    removed: BTreeMap<PeerId, Removed>,
    jobs: jobs::Jobs,
    groups: groups::Groups,
    classes: classes::Classes,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new(PEERS_MAX_DEFAULT)
    }
}

impl Registry {
    /// A registry without peers that takes up to `peers_max`.
    #[must_use]
    pub fn new(peers_max: usize) -> Registry {
        Registry {
            peers_max,
            defaults: PeerSettings::default(),
            durable: Snapshot::default(),
            by_name: BTreeMap::new(),
            groups: groups::Index::default(),
            class_counts: classes::Counts::default(),
        }
    }

    /// What a peer that is added from here on has where its command is silent.
    ///
    /// # Errors
    /// A value is outside its bounds; nothing has changed.
    pub fn set_defaults(&mut self, defaults: PeerSettings) -> Result<(), Refusal> {
        defaults.check()?;
        self.defaults = defaults;
        Ok(())
    }

    /// Judges a command that is given `now`, by `by`. `waiting` tells how many messages wait for a peer,
    /// those accepted and not yet durable included; it is asked for removals only.
    ///
    /// Adding a peer on attach is an ordinary [`AdminCommand::PeerAdd`]. Of a job that may begin the
    /// caller fills in what had been stored by then.
    ///
    /// # Errors
    /// The command cannot be carried out as things are; nothing has changed.
    pub fn check(
        &self,
        command: &AdminCommand,
        now: WallMillis,
        by: &str,
        waiting: impl Fn(PeerId) -> u64,
    ) -> Result<AdminEvent, Refusal> {
        match command {
            AdminCommand::PeerAdd { name, url, settings } => self.check_add(name, url, settings),
            AdminCommand::PeerSet { name, if_version, url, settings } => {
                let peer = self.expect(name, *if_version)?;
                let changed = Peer {
                    url: url.as_ref().unwrap_or(&peer.url).clone(),
                    settings: settings.applied_to(&peer.settings),
                    ..next_version(peer)
                };
                check_url(&changed.url)?;
                changed.settings.check()?;
                self.check_class_of(changed.settings.class.as_ref())?;
                Ok(AdminEvent::PeerChanged(changed))
            }
            AdminCommand::PeerPause { name, if_version } => {
                let peer = self.expect(name, *if_version)?;
                Ok(AdminEvent::PeerChanged(Peer { paused: true, ..next_version(peer) }))
            }
            AdminCommand::PeerResume { name, if_version } => {
                let peer = self.expect(name, *if_version)?;
                let (paused, draining) = (false, false);
                Ok(AdminEvent::PeerChanged(Peer { paused, draining, ..next_version(peer) }))
            }
            AdminCommand::PeerDrain { name, if_version } => {
                let peer = self.expect(name, *if_version)?;
                Ok(AdminEvent::PeerChanged(Peer { draining: true, ..next_version(peer) }))
            }
            AdminCommand::PeerRemove { name, if_version, waiting: wish } => {
                let peer = self.expect(name, *if_version)?;
                let disposition = self.check_remove(peer, wish.as_ref(), waiting(peer.id))?;
                let (id, version, by) = (peer.id, peer.version + 1, by.to_owned());
                Ok(AdminEvent::PeerRemoved { id, version, disposition, at: now, by })
            }
            AdminCommand::PeerReplay { name, if_version, to, filter, rate } => {
                let work = self.check_replay(name, to.as_ref(), *rate)?;
                self.check_job(name, *if_version, filter, work, now, by)
            }
            AdminCommand::PeerPurge { name, if_version, filter } => {
                self.check_job(name, *if_version, filter, Work::Purge, now, by)
            }
            AdminCommand::PeerCancel { name } => self.check_cancel(name),
            AdminCommand::GroupAdd { name, members } => self.check_group_add(name, members),
            AdminCommand::GroupSet { name, if_version, add, remove } => {
                self.check_group_set(name, *if_version, add, remove)
            }
            AdminCommand::GroupRemove { name, if_version } => {
                self.check_group_remove(name, *if_version)
            }
            AdminCommand::ClassAdd { name, rates } => self.check_class_add(name, rates),
            AdminCommand::ClassSet { name, if_version, rates } => {
                self.check_class_set(name, *if_version, rates)
            }
            AdminCommand::ClassRemove { name, if_version } => {
                self.check_class_remove(name, *if_version)
            }
        }
    }

    fn check_add(
        &self,
        name: &Name,
        url: &PeerUrl,
        settings: &PeerPatch,
    ) -> Result<AdminEvent, Refusal> {
        self.check_name_is_free(name)?;
        if self.durable.peers.len() >= self.peers_max {
            let detail = format!("there are {} peers, which is the limit", self.peers_max);
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        let id = PeerId(self.durable.last_id.saturating_add(1));
        if id > PeerId::LAST_PEER {
            let detail = format!("all {} peer ids have been given", PeerId::LAST_PEER.0);
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        check_url(url)?;
        let settings = settings.applied_to(&self.defaults);
        settings.check()?;
        self.check_class_of(settings.class.as_ref())?;
        let (name, url) = (name.clone(), url.clone());
        let (version, paused, draining) = (1, false, false);
        let peer = Peer { id, name, version, paused, draining, url, settings };
        Ok(AdminEvent::PeerAdded(peer))
    }

    fn check_remove(
        &self,
        peer: &Peer,
        wish: Option<&Waiting>,
        waiting: u64,
    ) -> Result<Disposition, Refusal> {
        if self.is_memory_full() {
            let detail = format!(
                "messages are parked for {} removed peers, which is the limit; say --purge or --hand-to",
                self.peers_max
            );
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        Ok(match wish {
            None if waiting > 0 => {
                let detail = format!("{waiting} messages wait for peer '{}'", peer.name);
                return Err(Refusal::new(Code::MessagesWaiting, detail));
            }
            None | Some(Waiting::Park) => Disposition::Park,
            Some(Waiting::Purge) => Disposition::Purge { done: waiting == 0 },
            Some(Waiting::HandTo(name)) => {
                let to = self.expect_taking(name)?.id;
                if to == peer.id {
                    let detail = format!("peer '{name}' cannot be handed its own messages");
                    return Err(Refusal::new(Code::BadSetting, detail));
                }
                Disposition::HandTo { to, done: waiting == 0 }
            }
        })
    }

    /// One that is to get messages.
    fn expect_taking(&self, name: &Name) -> Result<&Peer, Refusal> {
        let peer = self.expect(name, None)?;
        if peer.draining {
            let detail = format!("peer '{name}' takes nothing new until it is resumed");
            return Err(Refusal::new(Code::Draining, detail));
        }
        Ok(peer)
    }

    fn expect(&self, name: &Name, if_version: Option<u64>) -> Result<&Peer, Refusal> {
        let peer =
            self.named(name.as_str()).ok_or_else(|| match self.group_named(name.as_str()) {
                Some(_) => Refusal::new(Code::IsGroup, format!("'{name}' is a group, no peer")),
                None => Refusal::new(Code::NotFound, format!("there is no peer '{name}'")),
            })?;
        expect_version(format_args!("peer '{name}'"), peer.version, if_version)?;
        Ok(peer)
    }

    /// Carries an event out. The answer's `messages` is 0: only the shell knows how many waited.
    ///
    /// # Errors
    /// The event does not follow from this state; nothing has changed. After a [`Registry::check`] on
    /// the same state that cannot happen; in a replay it means that the journal is not this node's.
    pub fn apply(&mut self, event: &AdminEvent) -> Result<AdminDone, StateError> {
        let out_of_order = |id: PeerId| StateError::OutOfOrder { what: "peer", id: id.0 };
        if let AdminEvent::PeerAdded(peer) | AdminEvent::PeerChanged(peer) = event
            && !self.has_class_of(peer)
        {
            return Err(out_of_order(peer.id));
        }
        let state = &mut self.durable;
        let (id, version) = match event {
            AdminEvent::PeerAdded(peer) => {
                let is_known = self.by_name.contains_key(&peer.name)
                    || self.group_named(peer.name.as_str()).is_some();
                if peer.id.0 <= self.durable.last_id || is_known {
                    return Err(out_of_order(peer.id));
                }
                let state = &mut self.durable;
                state.last_id = peer.id.0;
                self.by_name.insert(peer.name.clone(), peer.id);
                self.class_counts.enter(peer);
                state.peers.insert(peer.id, peer.clone());
                (peer.id, peer.version)
            }
            AdminEvent::PeerChanged(changed) => {
                let peer = state
                    .peers
                    .get_mut(&changed.id)
                    .filter(|peer| peer.name == changed.name && peer.version < changed.version)
                    .ok_or_else(|| out_of_order(changed.id))?;
                self.class_counts.leave(peer);
                self.class_counts.enter(changed);
                peer.clone_from(changed);
                (changed.id, changed.version)
            }
            AdminEvent::PeerRemoved { id, version, disposition, at, by } => {
                let mut peer = state.peers.remove(id).ok_or_else(|| out_of_order(*id))?;
                self.by_name.remove(&peer.name);
                self.class_counts.leave(&peer);
                peer.version = *version;
                state.jobs.drop_peer(*id);
                let (disposition, at, by) = (*disposition, *at, by.clone());
                state.removed.insert(*id, Removed { peer, disposition, at, by });
                self.leave_groups(*id);
                (*id, *version)
            }
            AdminEvent::DispositionDone { id } => {
                let removed = state.removed.get_mut(id).ok_or_else(|| out_of_order(*id))?;
                match &mut removed.disposition {
                    Disposition::Park => {}
                    Disposition::Purge { done } | Disposition::HandTo { done, .. } => *done = true,
                }
                (*id, removed.peer.version)
            }
            AdminEvent::PeerForgotten { id } => {
                let removed = state.removed.remove(id).ok_or_else(|| out_of_order(*id))?;
                state.jobs.drop_peer(*id);
                (*id, removed.peer.version)
            }
            AdminEvent::GroupAdded(group) => return self.apply_group_added(group),
            AdminEvent::GroupChanged(group) => return self.apply_group_changed(group),
            AdminEvent::GroupRemoved { id, version } => {
                return self.apply_group_removed(*id, *version);
            }
            AdminEvent::ClassAdded(class) => return self.apply_class_added(class),
            AdminEvent::ClassChanged(class) => return self.apply_class_changed(class),
            AdminEvent::ClassRemoved { name, version } => {
                return self.apply_class_removed(name, *version);
            }
            AdminEvent::JobBegun(job) => return state.jobs.begin(job),
            AdminEvent::JobNoted { number, messages, copies } => {
                return state.jobs.note(*number, *messages, copies.as_ref());
            }
            AdminEvent::JobEnded { number, .. } => return state.jobs.end(*number),
        };
        Ok(AdminDone { id, version, messages: 0, job: None })
    }

    /// The peer of this name, if it is there.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Peer> {
        self.get(*self.by_name.get(name)?)
    }

    /// The peer with this id, if it is there.
    #[must_use]
    pub fn get(&self, id: PeerId) -> Option<&Peer> {
        self.durable.peers.get(&id)
    }

    /// The peer a person names: `name`, or `name#id` for a removed one.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<Found<'_>> {
        let Some((name, id)) = text.split_once('#') else {
            return self.named(text).map(Found::Present);
        };
        let removed = self.removed(PeerId(id.parse().ok()?))?;
        (removed.peer.name.as_str() == name).then_some(Found::Removed(removed))
    }

    /// What to call this peer in an answer: its name, `name#id` once removed, `#id` once forgotten; or a
    /// group that is there. Delayed messages are the node's: `#delayed`.
    #[must_use]
    pub fn label(&self, id: PeerId) -> String {
        match (self.get(id), self.removed(id)) {
            (Some(peer), _) => peer.name.to_string(),
            (None, Some(removed)) => removed.label(),
            (None, None) => match self.group(id) {
                Some(group) => group.name.to_string(),
                None if id == PeerId::DELAYED => "#delayed".to_owned(),
                None => format!("#{}", id.0),
            },
        }
    }

    /// The peers that are there, by id.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Peer> {
        self.durable.peers.values()
    }

    /// The peers above this id, by id.
    pub fn peers_above(&self, after: PeerId) -> impl Iterator<Item = &Peer> {
        let above = (Bound::Excluded(after), Bound::Unbounded);
        self.durable.peers.range(above).map(|(_, peer)| peer)
    }

    /// How many peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.durable.peers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.durable.peers.is_empty()
    }

    /// Everything a restart needs, for a checkpoint.
    ///
    /// # Errors
    /// Never in practice: the state is made of what MessagePack can hold.
    pub fn snapshot(&self) -> Result<Vec<u8>, StateError> {
        rmp_serde::to_vec(&self.durable).map_err(StateError::unwritable)
    }

    /// The registry as it was when [`Registry::snapshot`] was taken. A limit below the number of
    /// peers that are there takes none away.
    ///
    /// # Errors
    /// The bytes are no snapshot, or one that contradicts itself.
    pub fn restore(bytes: &[u8], peers_max: usize) -> Result<Registry, StateError> {
        let durable: Snapshot = rmp_serde::from_slice(bytes).map_err(StateError::unreadable)?;
        let mut by_name = BTreeMap::new();
        for (id, peer) in &durable.peers {
            let known =
                durable.removed.contains_key(id) || peer.id != *id || id.0 > durable.last_id;
            if known || by_name.insert(peer.name.clone(), *id).is_some() {
                return Err(StateError::OutOfOrder { what: "peer", id: id.0 });
            }
        }
        let mut registry = Registry { durable, by_name, ..Registry::new(peers_max) };
        registry.index_groups()?;
        registry.count_classes()?;
        Ok(registry)
    }
}

/// Refuses a change of something that has changed since whoever asks has looked at it.
fn expect_version(
    what: std::fmt::Arguments<'_>,
    version: u64,
    expected: Option<u64>,
) -> Result<(), Refusal> {
    match expected.filter(|expected| *expected != version) {
        None => Ok(()),
        Some(expected) => {
            let detail = format!("{what} is at version {version}, expected {expected}");
            Err(Refusal::new(Code::VersionConflict, detail))
        }
    }
}

fn next_version(peer: &Peer) -> Peer {
    Peer { version: peer.version + 1, ..peer.clone() }
}

/// A [`PeerUrl`] that was built instead of parsed may hold anything.
fn check_url(url: &PeerUrl) -> Result<(), Refusal> {
    match url.to_string().parse::<PeerUrl>() {
        Ok(parsed) if parsed == *url => Ok(()),
        Ok(_) => Err(Refusal::new(Code::BadUrl, format!("'{url}' reads as another address"))),
        Err(error) => Err(Refusal::new(Code::BadUrl, error.to_string())),
    }
}

#[cfg(test)]
mod tests;
