//! A set of small numbers: which of a peer's messages within one segment are settled out of order.
//!
//! Mostly it holds next to nothing, because acks come in order and the floor follows; a message that
//! is refused for hours makes it fill up behind that message. So it is a short sorted list first and
//! a bitmap later: never more than a bit for each number between the lowest and the highest, which for
//! a segment that stands for others is bounded by what compaction puts together.

use restante_protocol::record::{put_varint, take_varint};
use std::collections::VecDeque;

/// Longest list before it becomes a bitmap.
const LIST_MAX: usize = 64;

/// A set of `u32`, ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NumberSet {
    /// Ascending.
    List(Vec<u32>),
    /// Bit `n` of word `w` stands for `64 * (base + w) + n`.
    Bits { base: u32, words: VecDeque<u64>, count: u32 },
}

impl Default for NumberSet {
    fn default() -> NumberSet {
        NumberSet::EMPTY
    }
}

impl NumberSet {
    pub(super) const EMPTY: NumberSet = NumberSet::List(Vec::new());

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> u32 {
        match self {
            NumberSet::List(list) => list.len() as u32,
            NumberSet::Bits { count, .. } => *count,
        }
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        match self {
            NumberSet::List(list) => list.binary_search(&number).is_ok(),
            NumberSet::Bits { base, words, .. } => (number / 64)
                .checked_sub(*base)
                .and_then(|word| words.get(word as usize))
                .is_some_and(|word| word & (1 << (number % 64)) != 0),
        }
    }

    /// Adds `number`; `false` if it was there.
    pub(super) fn insert(&mut self, number: u32) -> bool {
        match self {
            NumberSet::List(list) => {
                let place = match list.last() {
                    Some(last) if *last >= number => match list.binary_search(&number) {
                        Ok(_) => return false,
                        Err(place) => place,
                    },
                    _ => list.len(),
                };
                if list.len() < LIST_MAX {
                    list.insert(place, number);
                    return true;
                }
                self.insert_word(number / 64, 1 << (number % 64)) > 0
            }
            NumberSet::Bits { .. } => self.insert_word(number / 64, 1 << (number % 64)) > 0,
        }
    }

    /// Adds every number from `first` to `last`, a word at a time.
    pub(super) fn insert_range(&mut self, first: u32, last: u32) {
        if first > last {
            return;
        }
        if let NumberSet::List(list) = self
            && (last - first) as usize + list.len() < LIST_MAX
        {
            for number in first..=last {
                self.insert(number);
            }
            return;
        }
        let (from, to) = (first / 64, last / 64);
        for word in from..=to {
            let low = if word == from { u64::MAX << (first % 64) } else { u64::MAX };
            let high = if word == to { u64::MAX >> (63 - last % 64) } else { u64::MAX };
            self.insert_word(word, low & high);
        }
    }

    /// Adds every number of `other`, each `shift` higher, a word at a time.
    pub(super) fn insert_all(&mut self, other: &NumberSet, shift: u32) {
        match other {
            NumberSet::List(list) => {
                for number in list {
                    self.insert(number + shift);
                }
            }
            NumberSet::Bits { base, words, .. } => {
                let (at, bits) = (base + shift / 64, shift % 64);
                for (word, set) in (at..).zip(words) {
                    self.insert_word(word, set << bits);
                    if bits > 0 {
                        self.insert_word(word + 1, set >> (64 - bits));
                    }
                }
            }
        }
    }

    /// Adds the numbers that `set` stands for as a word of a bitmap, which the set becomes unless that
    /// is none; says how many were not there.
    fn insert_word(&mut self, word: u32, set: u64) -> u32 {
        if set == 0 {
            return 0;
        }
        if let NumberSet::List(list) = self {
            let list = std::mem::take(list);
            let base = list.first().map_or(word, |first| word.min(first / 64));
            *self = NumberSet::Bits { base, words: VecDeque::new(), count: 0 };
            for number in list {
                self.insert(number);
            }
        }
        let NumberSet::Bits { base, words, count } = self else { return 0 };
        while word < *base {
            words.push_front(0);
            *base -= 1;
        }
        let place = (word - *base) as usize;
        if place >= words.len() {
            words.resize(place + 1, 0);
        }
        let new = (set & !words[place]).count_ones();
        words[place] |= set;
        *count += new;
        new
    }

    /// Takes `number` out; `false` if it was not there.
    pub(super) fn remove(&mut self, number: u32) -> bool {
        match self {
            NumberSet::List(list) => match list.binary_search(&number) {
                Ok(place) => {
                    list.remove(place);
                    true
                }
                Err(_) => false,
            },
            NumberSet::Bits { base, words, count } => {
                let Some(word) =
                    (number / 64).checked_sub(*base).and_then(|word| words.get_mut(word as usize))
                else {
                    return false;
                };
                let bit = 1 << (number % 64);
                let was = *word & bit != 0;
                *word &= !bit;
                *count -= u32::from(was);
                if *count == 0 {
                    *self = NumberSet::default();
                }
                was
            }
        }
    }

    /// Forgets every number up to and including `through`.
    pub(super) fn drop_through(&mut self, through: u32) {
        match self {
            NumberSet::List(list) => {
                let gone = list.partition_point(|number| *number <= through);
                list.drain(..gone);
            }
            NumberSet::Bits { base, words, count } => {
                while *base < through / 64 {
                    let Some(word) = words.pop_front() else { break };
                    *count -= word.count_ones();
                    *base += 1;
                }
                if *base == through / 64
                    && let Some(word) = words.front_mut()
                {
                    let gone = *word & (u64::MAX >> (63 - through % 64));
                    *word &= !gone;
                    *count -= gone.count_ones();
                }
                if *count == 0 {
                    *self = NumberSet::default();
                }
            }
        }
    }

    pub(super) fn iter(&self) -> Box<dyn Iterator<Item = u32> + '_> {
        match self {
            NumberSet::List(list) => Box::new(list.iter().copied()),
            NumberSet::Bits { base, words, .. } => {
                let from = *base;
                Box::new(words.iter().enumerate().flat_map(move |(at, word)| {
                    let first = 64 * (from + at as u32);
                    (0..64).filter(move |bit| word & (1 << bit) != 0).map(move |bit| first + bit)
                }))
            }
        }
    }

    /// Appends the set: varint 0, count, deltas; or varint 1, base, word count, the words.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            NumberSet::List(list) => {
                put_varint(out, 0);
                put_varint(out, list.len() as u64);
                let mut before = 0;
                for number in list {
                    put_varint(out, u64::from(number - before));
                    before = *number;
                }
            }
            NumberSet::Bits { base, words, .. } => {
                put_varint(out, 1);
                put_varint(out, u64::from(*base));
                put_varint(out, words.len() as u64);
                for word in words {
                    out.extend_from_slice(&word.to_be_bytes());
                }
            }
        }
    }

    /// Reads what [`NumberSet::encode`] wrote; `None` when the bytes are not that.
    pub(super) fn decode(rest: &mut &[u8]) -> Option<NumberSet> {
        match take_varint(rest)? {
            0 => {
                let len = usize::try_from(take_varint(rest)?).ok()?;
                if len > LIST_MAX {
                    return None;
                }
                let mut list = Vec::with_capacity(len);
                let mut before = 0u32;
                for _ in 0..len {
                    before = before.checked_add(u32::try_from(take_varint(rest)?).ok()?)?;
                    list.push(before);
                }
                Some(NumberSet::List(list))
            }
            1 => {
                let base = u32::try_from(take_varint(rest)?).ok()?;
                let len = usize::try_from(take_varint(rest)?).ok()?;
                let (bytes, after) = rest.split_at_checked(len.checked_mul(8)?)?;
                *rest = after;
                let words: VecDeque<u64> =
                    bytes.chunks_exact(8).map(super::format::be_u64).collect();
                let count = words.iter().map(|word| word.count_ones()).sum();
                Some(NumberSet::Bits { base, words, count })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u32),
        Remove(u32),
        DropThrough(u32),
        InsertRange(u32, u32),
        InsertAll(Vec<u32>, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0u32..3_000).prop_map(Step::Insert),
            2 => (0u32..3_000).prop_map(Step::Remove),
            1 => (0u32..600).prop_map(Step::DropThrough),
            1 => (0u32..2_000, 0u32..300).prop_map(|(from, more)| Step::InsertRange(from, from + more)),
            1 => (prop::collection::vec(0u32..1_500, 0..150), 0u32..1_500)
                .prop_map(|(numbers, shift)| Step::InsertAll(numbers, shift)),
        ]
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_tree(steps in prop::collection::vec(step(), 0..400)) {
            let (mut set, mut tree) = (NumberSet::default(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(n) => prop_assert_eq!(set.insert(n), tree.insert(n)),
                    Step::Remove(n) => prop_assert_eq!(set.remove(n), tree.remove(&n)),
                    Step::DropThrough(n) => {
                        set.drop_through(n);
                        tree.retain(|m| *m > n);
                    }
                    Step::InsertRange(first, last) => {
                        set.insert_range(first, last);
                        tree.extend(first..=last);
                    }
                    Step::InsertAll(numbers, shift) => {
                        let mut other = NumberSet::default();
                        for n in &numbers {
                            other.insert(*n);
                        }
                        set.insert_all(&other, shift);
                        tree.extend(numbers.iter().map(|n| n + shift));
                    }
                }
                prop_assert_eq!(set.len() as usize, tree.len());
            }
            prop_assert!(set.iter().eq(tree.iter().copied()));
            for n in 0..3_000 {
                prop_assert_eq!(set.contains(n), tree.contains(&n));
            }
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            let mut rest = &bytes[..];
            let decoded = NumberSet::decode(&mut rest).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert!(decoded.iter().eq(set.iter()));
        }
    }
}
