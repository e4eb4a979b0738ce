//! Names of receivers, interned per connection, so that a publish names them by number.

use restante_protocol::id::PeerId;
use restante_protocol::name::Name;
use std::collections::HashMap;

/// Stands for an alias that was never declared. No peer and no group has this id, so that the router
/// refuses it as stale.
pub(super) const UNDECLARED: PeerId = PeerId(u32::MAX);

/// Names of unknown receivers that are kept to be looked up again. Beyond it an alias of an unknown
/// name has to be declared again once its peer exists.
const UNKNOWN_NAMES_MAX: usize = 1_024;

const PAGE: usize = 256;

/// A table in pages: as large as what was declared, not as the highest number that was.
#[derive(Default)]
pub(super) struct Aliases {
    pages: Vec<Option<Box<[PeerId; PAGE]>>>,
    unknown: HashMap<u32, Name, foldhash::fast::RandomState>,
}

impl Aliases {
    /// Binds an alias, below [`restante_protocol::limits::ALIASES_MAX`] as the codec has checked, to
    /// a peer or group, or to a name that none has yet.
    pub(super) fn declare(&mut self, alias: u32, name: Name, peer: Option<PeerId>) {
        let (page, place) = split(alias);
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([UNDECLARED; PAGE]));
        page[place] = peer.unwrap_or(PeerId::NONE);
        if peer.is_some() {
            self.unknown.remove(&alias);
        } else if self.unknown.len() < UNKNOWN_NAMES_MAX || self.unknown.contains_key(&alias) {
            self.unknown.insert(alias, name);
        }
    }

    /// What an alias stands for: a peer, a group, [`PeerId::NONE`] or [`UNDECLARED`].
    #[inline]
    pub(super) fn get(&self, alias: u32) -> PeerId {
        let (page, place) = split(alias);
        match self.pages.get(page) {
            Some(Some(page)) => page[place],
            _ => UNDECLARED,
        }
    }

    /// The name of an alias that stood for no peer when it was declared.
    pub(super) fn unknown_name(&self, alias: u32) -> Option<&Name> {
        self.unknown.get(&alias)
    }
}

#[inline]
fn split(alias: u32) -> (usize, usize) {
    let alias = alias as usize;
    (alias / PAGE, alias % PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::limits::ALIASES_MAX;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_never_declared_is_undeclared() {
        let mut aliases = Aliases::default();
        assert_eq!(aliases.get(0), UNDECLARED);
        aliases.declare(300, name("a"), Some(PeerId(7)));
        assert_eq!(aliases.get(300), PeerId(7));
        assert_eq!(aliases.get(301), UNDECLARED);
        assert_eq!(aliases.get(u32::MAX), UNDECLARED);
    }

    #[test]
    fn an_unknown_name_is_kept_until_it_is_known() {
        let mut aliases = Aliases::default();
        aliases.declare(1, name("later"), None);
        assert_eq!(aliases.get(1), PeerId::NONE);
        assert_eq!(aliases.unknown_name(1), Some(&name("later")));
        aliases.declare(1, name("later"), Some(PeerId(3)));
        assert_eq!(aliases.get(1), PeerId(3));
        assert_eq!(aliases.unknown_name(1), None);
    }

    #[test]
    fn unknown_names_are_kept_up_to_a_bound() {
        let mut aliases = Aliases::default();
        for alias in 0..ALIASES_MAX {
            aliases.declare(alias, name("nobody"), None);
        }
        assert_eq!(aliases.unknown.len(), UNKNOWN_NAMES_MAX);
        assert_eq!(aliases.get(ALIASES_MAX - 1), PeerId::NONE);
        aliases.declare(0, name("somebody"), None);
        assert_eq!(aliases.unknown_name(0), Some(&name("somebody")), "a known place is rebound");
    }

    #[test]
    fn a_high_number_costs_one_page() {
        let mut aliases = Aliases::default();
        aliases.declare(ALIASES_MAX - 1, name("a"), Some(PeerId(1)));
        assert_eq!(aliases.pages.iter().flatten().count(), 1);
    }
}
