//! Receivers' names and the numbers that stand for them in publish frames.
//!
//! An alias keeps its meaning while a publish that uses it waits for its outcome, across reconnects,
//! so that frames which wait to be sent again stay valid byte for byte. It is declared on each
//! connection before the first publish that uses it, and once more after the node has called it
//! stale. When all numbers are taken, those that no waiting publish uses are given to new names.

use bytes::BytesMut;
use foldhash::fast::RandomState;
use restante_protocol::codec::put_control;
use restante_protocol::control::Control;
use restante_protocol::limits::ALIASES_MAX;
use restante_protocol::name::Name;
use std::collections::HashMap;

#[derive(Debug)]
pub(crate) struct Aliases {
    by_name: HashMap<Name, u32, RandomState>,
    entries: Vec<Entry>,
    /// What has to be declared before the next publish is sent.
    undeclared: Vec<u32>,
    entries_max: u32,
    /// Where the search for a number to reuse goes on.
    hand: usize,
    /// How often a number was given to another name.
    reuses: u64,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    /// Declared on this connection, or listed in `undeclared`.
    declared: bool,
    /// The sequence after that of the last publish to it.
    used_until: u64,
}

impl Default for Aliases {
    fn default() -> Aliases {
        Aliases::new(ALIASES_MAX)
    }
}

impl Aliases {
    fn new(entries_max: u32) -> Aliases {
        Aliases {
            by_name: HashMap::default(),
            entries: Vec::new(),
            undeclared: Vec::new(),
            entries_max,
            hand: 0,
            reuses: 0,
        }
    }

    pub(crate) fn name(&self, alias: u32) -> Option<&Name> {
        self.entries.get(alias as usize).map(|entry| &entry.name)
    }

    /// While this does not change, numbers that were looked up stay valid.
    pub(crate) fn reuses(&self) -> u64 {
        self.reuses
    }

    /// The alias of a name, for the publish with the sequence `next`; a new one if there is none.
    /// `oldest`: the lowest sequence without an outcome. `None`: all are in use.
    pub(crate) fn intern(&mut self, name: &Name, oldest: u64, next: u64) -> Option<u32> {
        let alias = match self.by_name.get(name) {
            Some(alias) => *alias,
            None => self.assign(name, oldest)?,
        };
        if let Some(entry) = self.entries.get_mut(alias as usize) {
            // Not to be reused for another receiver of the same publish.
            entry.used_until = next + 1;
        }
        Some(alias)
    }

    fn assign(&mut self, name: &Name, oldest: u64) -> Option<u32> {
        let entry = Entry { name: name.clone(), declared: false, used_until: 0 };
        let alias = if self.entries.len() < self.entries_max as usize {
            self.entries.push(entry);
            // Below entries_max.
            (self.entries.len() - 1) as u32
        } else {
            let alias = self.reusable(oldest)?;
            let slot = self.entries.get_mut(alias as usize)?;
            self.by_name.remove(&slot.name);
            *slot = entry;
            self.reuses += 1;
            alias
        };
        self.by_name.insert(name.clone(), alias);
        Some(alias)
    }

    /// The next number, in turn, that no waiting publish uses.
    fn reusable(&mut self, oldest: u64) -> Option<u32> {
        for _ in 0..self.entries.len() {
            self.hand = (self.hand + 1) % self.entries.len();
            if self.entries[self.hand].used_until <= oldest {
                return Some(self.hand as u32);
            }
        }
        None
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

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::codec::{Limits, Next, next_frame, parse_control};
    use restante_protocol::frame::Frame;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// What is declared now: `NUMBER NAME`.
    fn declared(aliases: &mut Aliases) -> Vec<String> {
        let mut out = BytesMut::new();
        aliases.transmit(&mut out);
        let mut declared = Vec::new();
        let mut at = 0;
        while at < out.len() {
            let Next::Frame { frame: Frame::Control(body), consumed } =
                next_frame(&out[at..], &Limits::default()).unwrap()
            else {
                panic!("not a control frame");
            };
            at += consumed;
            match parse_control(body).unwrap() {
                Control::Alias { alias, name } => declared.push(format!("{alias} {name}")),
                other => panic!("not an alias: {other:?}"),
            }
        }
        declared
    }

    /// Publishes to `to` under `sequence`.
    fn publish(aliases: &mut Aliases, to: &str, oldest: u64, sequence: u64) -> Option<u32> {
        let alias = aliases.intern(&name(to), oldest, sequence)?;
        aliases.handle_use(alias, sequence);
        Some(alias)
    }

    #[test]
    fn an_alias_is_declared_before_its_first_use_on_each_connection() {
        let mut aliases = Aliases::default();
        assert_eq!(publish(&mut aliases, "a", 1, 1), Some(0));
        assert_eq!(publish(&mut aliases, "a", 1, 2), Some(0));
        assert_eq!(publish(&mut aliases, "b", 1, 3), Some(1));
        assert_eq!(declared(&mut aliases), ["0 a", "1 b"]);
        aliases.handle_welcome(3);
        assert_eq!(declared(&mut aliases), ["1 b"], "what waits uses b alone");
        publish(&mut aliases, "a", 3, 4);
        assert_eq!(declared(&mut aliases), ["0 a"]);
        aliases.handle_stale(0);
        assert_eq!(declared(&mut aliases), [] as [&str; 0]);
        publish(&mut aliases, "a", 3, 5);
        assert_eq!(declared(&mut aliases), ["0 a"]);
    }

    #[test]
    fn a_number_is_reused_only_when_no_publish_that_waits_uses_it() {
        let mut aliases = Aliases::new(2);
        assert_eq!(publish(&mut aliases, "a", 1, 1), Some(0));
        assert_eq!(publish(&mut aliases, "b", 1, 2), Some(1));
        assert_eq!(publish(&mut aliases, "c", 1, 3), None, "both wait for their outcomes");
        assert_eq!(publish(&mut aliases, "c", 2, 3), Some(0), "the publish to a has its outcome");
        assert_eq!((aliases.reuses(), aliases.name(0)), (1, Some(&name("c"))));
        assert_eq!(declared(&mut aliases), ["0 c", "1 b", "0 c"], "rebound before its next use");
        assert_eq!(publish(&mut aliases, "a", 3, 4), Some(1));
        assert_eq!(declared(&mut aliases), ["1 a"]);
    }

    #[test]
    fn receivers_of_one_publish_do_not_take_each_others_numbers() {
        let mut aliases = Aliases::new(2);
        publish(&mut aliases, "a", 1, 1);
        publish(&mut aliases, "b", 1, 2);
        let both = [name("c"), name("d")].map(|to| aliases.intern(&to, 3, 3));
        assert_ne!(both[0], both[1]);
        assert_eq!(aliases.intern(&name("e"), 3, 3), None);
    }
}
