//! Classes: names for rates that several peers share.
//!
//! A peer is in one class or in none, by its settings. A class that has peers is not removed.

use super::{AdminEvent, Peer, Registry};
use crate::admin::AdminDone;
use crate::id::PeerId;
use crate::name::Name;
use crate::refusal::{Code, Refusal};
use crate::shaper::{self, ClassId, Rates, RatesPatch};
use crate::state::StateError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most classes of a node; one more is that of peers without one.
pub const CLASSES_MAX: usize = shaper::CLASSES_MAX - 1;

/// A name for rates that several peers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Its number among those that are there, from 1. Given again once the class has gone.
    pub id: ClassId,
    /// Its name, unique among classes.
    pub name: Name,
    /// Ascends by one with every change; 1 at first.
    pub version: u64,
    /// How fast messages to its peers may go, all together.
    pub rates: Rates,
}

/// The classes of a node, as a checkpoint holds them.
pub(super) type Classes = BTreeMap<Name, Class>;

/// How many peers are in each class that has some; follows from the peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts(BTreeMap<Name, usize>);

impl Counts {
    pub(super) fn enter(&mut self, peer: &Peer) {
        if let Some(class) = &peer.settings.class {
            *self.0.entry(class.clone()).or_insert(0) += 1;
        }
    }

    pub(super) fn leave(&mut self, peer: &Peer) {
        let Some(class) = &peer.settings.class else { return };
        if let Some(count) = self.0.get_mut(class) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(class);
            }
        }
    }
}

impl Registry {
    /// The class of this name, if it is there.
    #[must_use]
    pub fn class(&self, name: &Name) -> Option<&Class> {
        self.durable.classes.get(name)
    }

    /// The classes, by name, and how many peers are in each.
    pub fn classes(&self) -> impl Iterator<Item = (&Class, usize)> {
        self.durable.classes.values().map(|class| (class, self.in_class(&class.name)))
    }

    fn in_class(&self, name: &Name) -> usize {
        self.class_counts.0.get(name).copied().unwrap_or(0)
    }

    pub(super) fn check_class_add(
        &self,
        name: &Name,
        rates: &RatesPatch,
    ) -> Result<AdminEvent, Refusal> {
        let classes = &self.durable.classes;
        if classes.contains_key(name) {
            return Err(Refusal::new(Code::NameTaken, format!("a class '{name}' exists")));
        }
        if classes.len() >= CLASSES_MAX {
            let detail = format!("there are {CLASSES_MAX} classes, which is the limit");
            return Err(Refusal::new(Code::LimitReached, detail));
        }
        let is_free = |id: &u16| classes.values().all(|class| class.id.0 != *id);
        let id = ClassId((1..u16::MAX).find(is_free).unwrap_or(u16::MAX));
        let rates = rates.applied_to(&Rates::default());
        rates.check()?;
        Ok(AdminEvent::ClassAdded(Class { id, name: name.clone(), version: 1, rates }))
    }

    pub(super) fn check_class_set(
        &self,
        name: &Name,
        if_version: Option<u64>,
        rates: &RatesPatch,
    ) -> Result<AdminEvent, Refusal> {
        let class = self.expect_class(name, if_version)?;
        let rates = rates.applied_to(&class.rates);
        rates.check()?;
        let version = class.version + 1;
        Ok(AdminEvent::ClassChanged(Class { version, rates, ..class.clone() }))
    }

    pub(super) fn check_class_remove(
        &self,
        name: &Name,
        if_version: Option<u64>,
    ) -> Result<AdminEvent, Refusal> {
        let class = self.expect_class(name, if_version)?;
        match self.in_class(name) {
            0 => Ok(AdminEvent::ClassRemoved { name: name.clone(), version: class.version + 1 }),
            peers => {
                let detail = format!("{peers} peers are in class '{name}'");
                Err(Refusal::new(Code::ClassInUse, detail))
            }
        }
    }

    /// A peer may be put only into a class that is there.
    pub(super) fn check_class_of(&self, class: Option<&Name>) -> Result<(), Refusal> {
        class.map_or(Ok(()), |name| self.expect_class(name, None).map(drop))
    }

    fn expect_class(&self, name: &Name, if_version: Option<u64>) -> Result<&Class, Refusal> {
        let class = self
            .class(name)
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("there is no class '{name}'")))?;
        match if_version {
            Some(version) if version != class.version => {
                let now = class.version;
                let detail = format!("class '{name}' is at version {now}, expected {version}");
                Err(Refusal::new(Code::VersionConflict, detail))
            }
            _ => Ok(class),
        }
    }

    /// Whether the class of a peer is there, if it has one.
    pub(super) fn has_class_of(&self, peer: &Peer) -> bool {
        peer.settings.class.as_ref().is_none_or(|class| self.class(class).is_some())
    }

    pub(super) fn apply_class_added(&mut self, class: &Class) -> Result<AdminDone, StateError> {
        let classes = &mut self.durable.classes;
        let is_known = |there: &Class| there.name == class.name || there.id == class.id;
        if class.id == ClassId::NONE || classes.values().any(is_known) {
            return Err(out_of_order(class));
        }
        classes.insert(class.name.clone(), class.clone());
        Ok(done(class.version))
    }

    pub(super) fn apply_class_changed(&mut self, changed: &Class) -> Result<AdminDone, StateError> {
        let class = self
            .durable
            .classes
            .get_mut(&changed.name)
            .filter(|class| class.id == changed.id && class.version < changed.version)
            .ok_or_else(|| out_of_order(changed))?;
        class.clone_from(changed);
        Ok(done(changed.version))
    }

    pub(super) fn apply_class_removed(
        &mut self,
        name: &Name,
        version: u64,
    ) -> Result<AdminDone, StateError> {
        let peers = self.in_class(name);
        match self.durable.classes.remove(name) {
            Some(_) if peers == 0 => Ok(done(version)),
            Some(class) => {
                let error = out_of_order(&class);
                self.durable.classes.insert(class.name.clone(), class);
                Err(error)
            }
            None => Err(StateError::OutOfOrder { what: "class", id: 0 }),
        }
    }

    /// What follows from the classes of a snapshot and its peers.
    ///
    /// # Errors
    /// The snapshot contradicts itself.
    pub(super) fn count_classes(&mut self) -> Result<(), StateError> {
        let mut ids = std::collections::BTreeSet::from([ClassId::NONE]);
        for (name, class) in &self.durable.classes {
            if *name != class.name || !ids.insert(class.id) {
                return Err(out_of_order(class));
            }
        }
        for peer in self.durable.peers.values() {
            if !self.has_class_of(peer) {
                return Err(StateError::OutOfOrder { what: "peer", id: peer.id.0 });
            }
            self.class_counts.enter(peer);
        }
        Ok(())
    }
}

/// Classes have no durable ids.
fn done(version: u64) -> AdminDone {
    AdminDone { id: PeerId::NONE, version, messages: 0, job: None }
}

fn out_of_order(class: &Class) -> StateError {
    StateError::OutOfOrder { what: "class", id: u32::from(class.id.0) }
}

#[cfg(test)]
mod tests;
