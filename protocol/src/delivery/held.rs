//! Messages stepped over in the send queue because an earlier one of their key has to go first.
//!
//! Bounded by number and bytes: at a bound the send queue waits instead of stepping over more, until a key
//! is free or one of those that are here has expired. When a key is free again it is released, and its messages go before newer ones of any key.

use super::expiry::Expiry;
use super::types::Entry;
use crate::id::MessageNumber;
use crate::message::KeyHash;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Messages stepped over for busy keys at which the peer waits ([`crate::status::Stall::Keys`]).
pub const SKIPPED_MAX: usize = 4_096;

/// See the module.
#[derive(Debug)]
pub(super) struct Held<B> {
    keys: BTreeMap<Option<KeyHash>, OfKey<B>>,
    numbers: BTreeSet<MessageNumber>,
    /// Of those that have a time to live: when it ends, and their keys.
    ends: BTreeMap<(Expiry, MessageNumber), Option<KeyHash>>,
    /// Keys to be looked at, in the order of their release; each at most once.
    released: VecDeque<Option<KeyHash>>,
    bytes: u64,
}

#[derive(Debug)]
struct OfKey<B> {
    entries: VecDeque<Entry<B>>,
    released: bool,
}

impl<B> OfKey<B> {
    fn remove(&mut self, number: MessageNumber) -> Option<Entry<B>> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
        self.entries.remove(at)
    }
}

impl<B> Held<B> {
    pub(super) fn new() -> Held<B> {
        Held {
            keys: BTreeMap::new(),
            numbers: BTreeSet::new(),
            ends: BTreeMap::new(),
            released: VecDeque::new(),
            bytes: 0,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a later message of this key has to queue up behind one that is here.
    pub(super) fn contains_key(&self, key: Option<KeyHash>) -> bool {
        self.keys.contains_key(&key)
    }

    /// Steps over a message. Those of one key come in order of number.
    pub(super) fn push(&mut self, entry: Entry<B>) {
        self.bytes += u64::from(entry.bytes);
        self.numbers.insert(entry.number);
        if let Some(expires) = entry.expires {
            self.ends.insert((expires, entry.number), entry.key);
        }
        let fresh = || OfKey { entries: VecDeque::new(), released: false };
        self.keys.entry(entry.key).or_insert_with(fresh).entries.push_back(entry);
    }

    /// The messages of this key may be looked at again.
    pub(super) fn release(&mut self, key: Option<KeyHash>) {
        if let Some(of_key) = self.keys.get_mut(&key)
            && !of_key.released
        {
            of_key.released = true;
            self.released.push_back(key);
        }
    }

    /// All of them may.
    pub(super) fn release_all(&mut self) {
        let keys: Vec<_> = self.keys.keys().copied().collect();
        keys.into_iter().for_each(|key| self.release(key));
    }

    /// The key released first.
    pub(super) fn first_released(&self) -> Option<Option<KeyHash>> {
        self.released.front().copied()
    }

    /// The keys that were released, in that order.
    pub(super) fn released(&self) -> impl Iterator<Item = Option<KeyHash>> {
        self.released.iter().copied()
    }

    /// It turned out to be busy again: its next release is to come.
    pub(super) fn unrelease_first(&mut self) {
        if let Some(key) = self.released.pop_front()
            && let Some(of_key) = self.keys.get_mut(&key)
        {
            of_key.released = false;
        }
    }

    /// Bytes of the next message of a key.
    pub(super) fn next_bytes(&self, key: Option<KeyHash>) -> Option<u32> {
        self.keys.get(&key)?.entries.front().map(|entry| entry.bytes)
    }

    /// The next message of a key leaves to be sent.
    pub(super) fn pop(&mut self, key: Option<KeyHash>) -> Option<Entry<B>> {
        let entry = self.keys.get_mut(&key)?.entries.pop_front()?;
        self.forget(&entry);
        Some(entry)
    }

    /// One message leaves for another reason.
    pub(super) fn remove(&mut self, number: MessageNumber) -> Option<Entry<B>> {
        if !self.numbers.contains(&number) {
            return None;
        }
        let entry = self.keys.values_mut().find_map(|of_key| of_key.remove(number))?;
        self.forget(&entry);
        Some(entry)
    }

    /// When the first time to live of those that are here ends.
    pub(super) fn first_end(&self) -> Option<Expiry> {
        self.ends.first_key_value().map(|((expires, _), _)| *expires)
    }

    /// The message whose time to live ends first leaves.
    pub(super) fn pop_first_end(&mut self) -> Option<Entry<B>> {
        let ((_, number), key) = self.ends.first_key_value()?;
        let entry = self.keys.get_mut(key)?.remove(*number)?;
        self.forget(&entry);
        Some(entry)
    }

    /// The lowest number.
    pub(super) fn first(&self) -> Option<MessageNumber> {
        self.numbers.first().copied()
    }

    /// A message that is here.
    pub(super) fn find(&self, number: MessageNumber) -> Option<&Entry<B>> {
        if !self.numbers.contains(&number) {
            return None;
        }
        self.keys.values().find_map(|of_key| {
            let entries = &of_key.entries;
            let at = entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
            entries.get(at)
        })
    }

    /// The message of this key that goes first.
    pub(super) fn first_of(&self, key: Option<KeyHash>) -> Option<&Entry<B>> {
        self.keys.get(&key)?.entries.front()
    }

    fn forget(&mut self, entry: &Entry<B>) {
        self.bytes -= u64::from(entry.bytes);
        self.numbers.remove(&entry.number);
        if let Some(expires) = entry.expires {
            self.ends.remove(&(expires, entry.number));
        }
        if self.keys.get(&entry.key).is_some_and(|of_key| of_key.entries.is_empty()) {
            self.keys.remove(&entry.key);
            self.released.retain(|key| *key != entry.key);
        }
    }
}
