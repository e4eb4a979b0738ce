//! Tags that are done and not yet told to the node, as ascending ranges that do not touch.

use restante_protocol::frame::TagRange;

#[derive(Debug, Default)]
pub(crate) struct Acks {
    ranges: Vec<TagRange>,
}

impl Acks {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn ranges(&self) -> &[TagRange] {
        &self.ranges
    }

    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Adds one tag. In order: O(1); else a binary search.
    pub(crate) fn insert(&mut self, tag: u64) {
        match self.ranges.last_mut() {
            Some(last) if last.last.checked_add(1) == Some(tag) => last.last = tag,
            Some(last) if tag <= last.last => self.insert_between(tag),
            _ => self.ranges.push(TagRange { first: tag, last: tag }),
        }
    }

    fn insert_between(&mut self, tag: u64) {
        // The first range that ends at or after the tag; there is one.
        let at = self.ranges.partition_point(|range| range.last < tag);
        let Some(next) = self.ranges.get(at).copied() else { return };
        if next.first <= tag {
            return;
        }
        let joins_next = next.first == tag + 1;
        let joins_before = at > 0 && self.ranges[at - 1].last + 1 == tag;
        match (joins_before, joins_next) {
            (true, true) => {
                self.ranges[at - 1].last = next.last;
                self.ranges.remove(at);
            }
            (true, false) => self.ranges[at - 1].last = tag,
            (false, true) => self.ranges[at].first = tag,
            (false, false) => self.ranges.insert(at, TagRange { first: tag, last: tag }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hold_what_was_inserted_and_never_touch(tags in prop::collection::vec(1u64..64, 0..80)) {
            let mut acks = Acks::default();
            for tag in &tags {
                acks.insert(*tag);
            }
            let held: Vec<u64> = acks.ranges().iter().flat_map(|r| r.first..=r.last).collect();
            let expected: Vec<u64> = tags.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
            prop_assert_eq!(held, expected);
            prop_assert!(acks.ranges().windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
        }
    }
}
