//! Classes: changes of them in the running node, and questions about them.

use super::messages::AllClasses;
use super::{Router, events};
use crate::clock;
use actix::prelude::*;
use restante_protocol::registry::Class;
use restante_protocol::shaper::Rates;
use restante_protocol::status::ClassStatus;

impl Router {
    pub(super) fn class_added(&self, class: &Class, by: &str) {
        // One that has been removed again while this was on its way to disk has no peers to limit.
        if self.state.registry.class(&class.name).is_some_and(|there| there.id == class.id) {
            self.shared.shaping.set_class(clock::now(), class);
        }
        let rates = changes(&Rates::default(), &class.rates);
        events::class_added(class.name.as_str(), class.version, &rates, by);
    }

    pub(super) fn class_changed(&self, before: Option<&Class>, class: &Class, by: &str) {
        self.shared.shaping.set_class(clock::now(), class);
        let before = before.map_or_else(Rates::default, |before| before.rates);
        let (name, version) = (class.name.as_str(), class.version);
        events::class_changed(name, version, &changes(&before, &class.rates), by);
    }

    pub(super) fn class_removed(&self, before: Option<&Class>, version: u64, by: &str) {
        if let Some(class) = before {
            self.shared.shaping.remove_class(&class.name);
            events::class_removed(class.name.as_str(), version, by);
        }
    }
}

/// The values that differ, as `name=value` words.
fn changes(before: &Rates, now: &Rates) -> String {
    let mut words = Vec::new();
    before.differences(now, &mut words);
    words.join(" ")
}

impl Handler<AllClasses> for Router {
    type Result = MessageResult<AllClasses>;

    fn handle(&mut self, _: AllClasses, _: &mut Context<Self>) -> Self::Result {
        let classes = self.state.registry.classes().map(|(class, peers)| ClassStatus {
            name: class.name.clone(),
            version: class.version,
            peers: peers as u64,
            rates: class.rates,
        });
        MessageResult(classes.collect())
    }
}
