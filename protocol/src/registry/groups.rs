//! Groups: names for sets of peers.
//!
//! A group stands in the place of a receiver and is resolved when a message is accepted. Groups do not
//! hold groups. Its id is a receiver's id above [`PeerId::LAST_PEER`], given once and never again.

use super::{AdminEvent, Registry, expect_version};
use crate::admin::AdminDone;
use crate::id::PeerId;
use crate::limits::GROUP_MEMBERS_MAX;
use crate::name::Name;
use crate::refusal::{Code, Refusal};
use crate::state::StateError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Most groups of a node.
pub const GROUPS_MAX: usize = 10_000;
/// Most members of all groups together, a peer counted in each group it is in: a checkpoint holds them.
pub const MEMBERSHIPS_MAX: usize = 262_144;

/// A named set of peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its durable identity, above those of peers.
    pub id: PeerId,
    /// Its name; no peer has it.
    pub name: Name,
    /// Ascends by one with every change; 1 at first. That a member was removed is a change too.
    pub version: u64,
    /// Peers that are there, ascending.
    pub members: Vec<PeerId>,
}

/// The groups of a node, as a checkpoint holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Groups {
    /// The highest id ever given.
    last_id: PeerId,
    there: BTreeMap<PeerId, Group>,
}

impl Default for Groups {
    fn default() -> Groups {
        Groups { last_id: PeerId::LAST_PEER, there: BTreeMap::new() }
    }
}

/// What follows from the groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    by_name: BTreeMap<Name, PeerId>,
    /// Each member with each group it is in.
    memberships: BTreeSet<(PeerId, PeerId)>,
}

impl Index {
    fn enter(&mut self, group: &Group) {
        self.by_name.insert(group.name.clone(), group.id);
        self.memberships.extend(group.members.iter().map(|member| (*member, group.id)));
    }

    fn leave(&mut self, group: &Group) {
        self.by_name.remove(&group.name);
        for member in &group.members {
            self.memberships.remove(&(*member, group.id));
        }
    }

    fn of(&self, peer: PeerId) -> impl Iterator<Item = PeerId> {
        let all = (peer, PeerId::NONE)..=(peer, PeerId::LAST_GROUP);
        self.memberships.range(all).map(|(_, group)| *group)
    }
}

impl Registry {
    /// The group with this id, if it is there.
    #[must_use]
    pub fn group(&self, id: PeerId) -> Option<&Group> {
        self.durable.groups.there.get(&id)
    }

    /// The group of this name, if it is there.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&Group> {
        self.group(*self.groups.by_name.get(name)?)
    }

    /// The groups whose names come behind this one, by name; all without one.
    pub fn groups_behind(&self, after: Option<&Name>) -> impl Iterator<Item = &Group> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = self.groups.by_name.range::<Name, _>((from, Bound::Unbounded));
        ids.filter_map(|(_, id)| self.group(*id))
    }

    /// The groups that a peer is in.
    pub fn groups_of(&self, peer: PeerId) -> impl Iterator<Item = PeerId> {
        self.groups.of(peer)
    }

    pub(super) fn check_group_add(
        &self,
        name: &Name,
        members: &[Name],
    ) -> Result<AdminEvent, Refusal> {
        self.check_name_is_free(name)?;
        if self.durable.groups.there.len() >= GROUPS_MAX {
            let detail = format!("there are {GROUPS_MAX} groups, which is the limit");
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        let last_id = self.durable.groups.last_id;
        let id = Some(PeerId(last_id.0.saturating_add(1))).filter(|id| id.is_group());
        let id = id.ok_or_else(|| {
            Refusal::new(Code::LimitReached, "all 2,147,483,647 group ids have been given")
        })?;
        expect_few(members)?;
        let members = self.resolve(members)?.into_iter().collect();
        let group = Group { id, name: name.clone(), version: 1, members };
        self.check_size(&group, 0)?;
        Ok(AdminEvent::GroupAdded(group))
    }

    pub(super) fn check_group_set(
        &self,
        name: &Name,
        if_version: Option<u64>,
        add: &[Name],
        remove: &[Name],
    ) -> Result<AdminEvent, Refusal> {
        let group = self.expect_group(name, if_version)?;
        expect_few(add)?;
        expect_few(remove)?;
        let leaving: BTreeSet<&Name> = remove.iter().collect();
        if let Some(both) = add.iter().find(|name| leaving.contains(name)) {
            let detail = format!("'{both}' is to be added and removed at the same time");
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        let mut members: BTreeSet<PeerId> = group.members.iter().copied().collect();
        for (member, id) in remove.iter().zip(self.resolve_each(remove)) {
            if !members.remove(&id?) {
                let detail = format!("'{member}' is no member of group '{name}'");
                return Err(Refusal::new(Code::NotFound, detail));
            }
        }
        members.extend(self.resolve(add)?);
        let members = members.into_iter().collect();
        let changed = Group { version: group.version + 1, members, ..group.clone() };
        self.check_size(&changed, group.members.len())?;
        Ok(AdminEvent::GroupChanged(changed))
    }

    pub(super) fn check_group_remove(
        &self,
        name: &Name,
        if_version: Option<u64>,
    ) -> Result<AdminEvent, Refusal> {
        let group = self.expect_group(name, if_version)?;
        Ok(AdminEvent::GroupRemoved { id: group.id, version: group.version + 1 })
    }

    /// Neither a peer nor a group may have the name of another.
    pub(super) fn check_name_is_free(&self, name: &Name) -> Result<(), Refusal> {
        let detail = match (self.named(name.as_str()), self.group_named(name.as_str())) {
            (Some(peer), _) => format!("a peer '{name}' exists, at {}", peer.url),
            (None, Some(group)) => {
                format!("a group '{name}' exists, with {} members", group.members.len())
            }
            (None, None) => return Ok(()),
        };
        Err(Refusal::new(Code::NameTaken, detail))
    }

    fn expect_group(&self, name: &Name, if_version: Option<u64>) -> Result<&Group, Refusal> {
        let group = self
            .group_named(name.as_str())
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no group '{name}'")))?;
        expect_version(format_args!("group '{name}'"), group.version, if_version)?;
        Ok(group)
    }

    fn resolve(&self, names: &[Name]) -> Result<BTreeSet<PeerId>, Refusal> {
        self.resolve_each(names).collect()
    }

    fn resolve_each(&self, names: &[Name]) -> impl Iterator<Item = Result<PeerId, Refusal>> {
        names.iter().map(|name| self.expect(name, None).map(|peer| peer.id))
    }

    /// `had`: the members that are counted for it already.
    fn check_size(&self, group: &Group, had: usize) -> Result<(), Refusal> {
        let members = group.members.len();
        if members > GROUP_MEMBERS_MAX {
            let detail = format!("{members} members, a group has at most {GROUP_MEMBERS_MAX}");
            return Err(Refusal::new(Code::TooLarge, detail));
        }
        if self.groups.memberships.len() - had + members > MEMBERSHIPS_MAX {
            let detail =
                format!("all groups together would have more than {MEMBERSHIPS_MAX} members");
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        Ok(())
    }

    pub(super) fn apply_group_added(&mut self, group: &Group) -> Result<AdminDone, StateError> {
        let groups = &mut self.durable.groups;
        let is_known = self.by_name.contains_key(&group.name)
            || self.groups.by_name.contains_key(&group.name)
            || group.id <= groups.last_id;
        let are_there = group.members.iter().all(|id| self.durable.peers.contains_key(id));
        if is_known || !group.id.is_group() || !are_there {
            return Err(out_of_order(group.id));
        }
        groups.last_id = group.id;
        groups.there.insert(group.id, group.clone());
        self.groups.enter(group);
        Ok(done(group.id, group.version))
    }

    pub(super) fn apply_group_changed(&mut self, changed: &Group) -> Result<AdminDone, StateError> {
        let are_there = changed.members.iter().all(|id| self.durable.peers.contains_key(id));
        let group = self
            .durable
            .groups
            .there
            .get_mut(&changed.id)
            .filter(|group| group.name == changed.name && group.version < changed.version)
            .filter(|_| are_there)
            .ok_or_else(|| out_of_order(changed.id))?;
        self.groups.leave(group);
        group.clone_from(changed);
        self.groups.enter(group);
        Ok(done(changed.id, changed.version))
    }

    pub(super) fn apply_group_removed(
        &mut self,
        id: PeerId,
        version: u64,
    ) -> Result<AdminDone, StateError> {
        let group = self.durable.groups.there.remove(&id).ok_or_else(|| out_of_order(id))?;
        self.groups.leave(&group);
        Ok(done(id, version))
    }

    /// A removed peer leaves its groups, each of which has changed by that.
    pub(super) fn leave_groups(&mut self, peer: PeerId) {
        let left: Vec<PeerId> = self.groups.of(peer).collect();
        for id in left {
            self.groups.memberships.remove(&(peer, id));
            if let Some(group) = self.durable.groups.there.get_mut(&id) {
                group.members.retain(|member| *member != peer);
                group.version += 1;
            }
        }
    }

    /// What follows from the groups of a snapshot.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub(super) fn index_groups(&mut self) -> Result<(), StateError> {
        let groups = &self.durable.groups;
        for (id, group) in &groups.there {
            let are_there = group.members.iter().all(|peer| self.durable.peers.contains_key(peer));
            let is_known = self.by_name.contains_key(&group.name)
                || self.groups.by_name.contains_key(&group.name);
            if is_known || !are_there || group.id != *id || *id > groups.last_id || !id.is_group() {
                return Err(out_of_order(*id));
            }
            self.groups.enter(group);
        }
        Ok(())
    }
}

fn done(id: PeerId, version: u64) -> AdminDone {
    AdminDone { id, version, messages: 0, job: None }
}

fn out_of_order(id: PeerId) -> StateError {
    StateError::OutOfOrder { what: "group", id: id.0 }
}

/// Bounds a list of names before anything is done for each of them.
fn expect_few(names: &[Name]) -> Result<(), Refusal> {
    if names.len() <= GROUP_MEMBERS_MAX {
        return Ok(());
    }
    let named = names.len();
    let detail = format!("{named} names, a command has at most {GROUP_MEMBERS_MAX}");
    Err(Refusal::new(Code::TooLarge, detail))
}

#[cfg(test)]
mod tests;
