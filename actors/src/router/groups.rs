//! Groups: publishes that name them, changes of them, and questions about them.

use super::messages::{FindGroup, GroupsBehind, Receiver};
use super::publish::Split;
use super::repeats::{Groups, OldRepeat};
use super::{Router, events};
use actix::prelude::*;
use restante_protocol::control::GroupPage;
use restante_protocol::id::PeerId;
use restante_protocol::limits::{GROUP_PAGE_MAX, RECEIVERS_MAX};
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use restante_protocol::registry::Group;
use restante_protocol::status::{GroupInfo, GroupStatus};

/// Members that a line of the log names; of more it says how many.
const NAMED_MAX: usize = 20;

impl Router {
    /// Sorts the members of a group as [`Router::split`] does receivers, as it is now; `false` if the
    /// receiver is none. With the `others` that are still to come the publish may have
    /// [`RECEIVERS_MAX`] receivers.
    #[cold]
    pub(super) fn split_group(
        &mut self,
        split: &mut Split,
        receiver: Receiver,
        place: u16,
        others: usize,
        bytes: u64,
    ) -> bool {
        let registry = &self.state.registry;
        let Some(group) = registry.group(receiver.peer) else { return false };
        if group.members.is_empty() {
            split.refuse(place, receiver, Code::NoReceiver);
            split.explain(|| format!("group '{}' has no members", group.name));
            return true;
        }
        let named = split.accepted.len() + others;
        let mut members = group.members.len();
        if named + members > RECEIVERS_MAX {
            // Those that have been named before count once.
            let (slots, this) = (&mut self.slots, self.publishes);
            let is_more = |id: &&PeerId| slots.get_mut(**id).is_some_and(|s| s.named_by != this);
            members = group.members.iter().filter(is_more).count();
        }
        let receivers = named + members;
        if receivers > RECEIVERS_MAX {
            split.refuse(place, receiver, Code::TooLarge);
            split.explain(|| {
                let name = &group.name;
                format!("with group '{name}' {receivers} receivers, expected {RECEIVERS_MAX}")
            });
            return true;
        }
        for member in &group.members {
            let Some(peer) = registry.get(*member) else { continue };
            // One whose record is on its way to disk has no slot yet.
            let Some(slot) = self.slots.get_mut(*member) else {
                split.refuse_member(place, receiver, peer.name.clone(), Code::UnknownReceiver);
                continue;
            };
            if slot.named_by == self.publishes {
                continue;
            }
            slot.named_by = self.publishes;
            match slot.over_quota(bytes) {
                None => split.accepted.push(*member),
                Some(over) => {
                    split.refuse_member(place, receiver, peer.name.clone(), over.code());
                    split.explain(|| format!("{}: {over}", peer.name));
                }
            }
        }
        true
    }

    /// The members of the groups that these repeats name.
    pub(super) fn groups_of(&self, repeats: &[OldRepeat]) -> Groups {
        let registry = &self.state.registry;
        let mut groups = Groups::new();
        for receiver in repeats.iter().flat_map(|repeat| &repeat.receivers) {
            let Some(group) = registry.group(receiver.peer) else { continue };
            groups.entry(group.id).or_insert_with(|| {
                let members = group.members.iter().filter_map(|id| registry.get(*id));
                members.map(|peer| (peer.id, peer.name.clone())).collect()
            });
        }
        groups
    }

    /// A group is there, for whoever names it from now on.
    pub(super) fn group_added(&self, group: &Group, by: &str) {
        // One that has been removed again while this was on its way to disk is not named any more.
        if self.state.registry.group(group.id).is_some() {
            self.shared.directory.insert_group(group.name.clone(), group.id);
        }
        let (joined, members) = (self.labels("+", &group.members), group.members.len() as u64);
        events::group_added(group.name.as_str(), group.version, &joined, members, by);
    }

    pub(super) fn group_changed(&self, before: Option<&Group>, group: &Group, by: &str) {
        let had = before.map_or(&[][..], |before| &before.members);
        let without = |of: &[PeerId], others: &[PeerId]| -> Vec<PeerId> {
            of.iter().filter(|id| others.binary_search(id).is_err()).copied().collect()
        };
        let added = self.labels("+", &without(&group.members, had));
        let removed = self.labels("-", &without(had, &group.members));
        let between = if added.is_empty() || removed.is_empty() { "" } else { " " };
        let (name, members) = (group.name.as_str(), group.members.len() as u64);
        events::group_changed(
            name,
            group.version,
            &format!("{added}{between}{removed}"),
            members,
            by,
        );
    }

    /// Peers as words, the first of them by name.
    fn labels(&self, sign: &str, peers: &[PeerId]) -> String {
        let label = |id: &PeerId| format!("{sign}{}", self.state.registry.label(*id));
        let mut words: Vec<String> = peers.iter().take(NAMED_MAX).map(label).collect();
        if peers.len() > NAMED_MAX {
            words.push(format!("{sign}{} more", peers.len() - NAMED_MAX));
        }
        words.join(" ")
    }
}

impl Handler<FindGroup> for Router {
    type Result = MessageResult<FindGroup>;

    fn handle(&mut self, asked: FindGroup, _: &mut Context<Self>) -> Self::Result {
        let registry = &self.state.registry;
        MessageResult(registry.group_named(asked.0.as_str()).map(|group| {
            let members = group.members.iter().filter_map(|id| registry.get(*id));
            let members: Vec<Name> = members.map(|peer| peer.name.clone()).collect();
            GroupInfo { name: group.name.clone(), version: group.version, members }
        }))
    }
}

impl Handler<GroupsBehind> for Router {
    type Result = MessageResult<GroupsBehind>;

    fn handle(&mut self, asked: GroupsBehind, _: &mut Context<Self>) -> Self::Result {
        let mut behind = self.state.registry.groups_behind(asked.0.as_ref());
        let groups = behind.by_ref().take(GROUP_PAGE_MAX).map(|group| GroupStatus {
            name: group.name.clone(),
            version: group.version,
            members: u32::try_from(group.members.len()).unwrap_or(u32::MAX),
        });
        let groups = groups.collect();
        MessageResult(GroupPage { groups, more: behind.next().is_some() })
    }
}
