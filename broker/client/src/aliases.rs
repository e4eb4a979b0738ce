//! Receivers' names and the numbers that stand for them in publish frames.
//!
//! An alias keeps its meaning across reconnects, so that frames which wait to be sent again stay
//! valid byte for byte. It is declared on each connection before the first publish that uses it, and
//! once more after the node has called it stale.

use bytes::BytesMut;
use foldhash::fast::RandomState;
use restante_protocol::codec::put_control;
use restante_protocol::control::Control;
use restante_protocol::limits::ALIASES_MAX;
use restante_protocol::name::Name;
use std::collections::HashMap;

#[derive(Debug, Default)]
pub(crate) struct Aliases {
    by_name: HashMap<Name, u32, RandomState>,
    entries: Vec<Entry>,
    /// What has to be declared before the next publish is sent.
    undeclared: Vec<u32>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    /// Declared on this connection, or listed in `undeclared`.
    declared: bool,
    /// The sequence after that of the last publish to it.
    used_until: u64,
}

impl Aliases {
    pub(crate) fn name(&self, alias: u32) -> Option<&Name> {
        self.entries.get(alias as usize).map(|entry| &entry.name)
    }

    /// The alias of a name; a new one if there is none. `None`: there are too many.
    pub(crate) fn intern(&mut self, name: &Name) -> Option<u32> {
        if let Some(alias) = self.by_name.get(name) {
            return Some(*alias);
        }
        let alias = u32::try_from(self.entries.len()).ok().filter(|alias| *alias < ALIASES_MAX)?;
        self.by_name.insert(name.clone(), alias);
        self.entries.push(Entry { name: name.clone(), declared: false, used_until: 0 });
        Some(alias)
    }

    /// The publish with this sequence uses this alias.
    #[inline]
    pub(crate) fn handle_use(&mut self, alias: u32, sequence: u64) {
        if let Some(entry) = self.entries.get_mut(alias as usize) {
            entry.used_until = sequence + 1;
            if !entry.declared {
                entry.declared = true;
                self.undeclared.push(alias);
            }
        }
    }

    /// The node does not know what this alias stands for: tell it again before its next use.
    pub(crate) fn handle_stale(&mut self, alias: u32) {
        if let Some(entry) = self.entries.get_mut(alias as usize) {
            entry.declared = false;
        }
    }

    /// A new connection knows no alias. Those that publishes from `oldest` on use are told again.
    pub(crate) fn handle_welcome(&mut self, oldest: u64) {
        self.undeclared.clear();
        for (alias, entry) in (0..).zip(&mut self.entries) {
            entry.declared = entry.used_until > oldest;
            if entry.declared {
                self.undeclared.push(alias);
            }
        }
    }

    pub(crate) fn transmit(&mut self, out: &mut BytesMut) {
        for alias in self.undeclared.drain(..) {
            let Some(entry) = self.entries.get(alias as usize) else { continue };
            let declare = Control::Alias { alias, name: entry.name.clone() };
            // A name and a number always fit into a control frame.
            let fits = put_control(out, &declare);
            debug_assert!(fits.is_ok(), "an alias fits into a control frame");
        }
    }
}
