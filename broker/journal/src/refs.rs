//! Compact lists of where things are in a segment, in memory and on disk the same bytes: a peer's
//! messages ([`Refs`]), and all messages with their receivers ([`Messages`]).
//!
//! Both are runs of varint differences with an anchor every [`ANCHOR_EVERY`] entries, at which
//! reading can start. Numbers are relative to the segment's first.

use restante_protocol::id::PeerId;
use restante_protocol::record::{put_varint, take_varint};
use std::collections::BTreeMap;

/// Entries between two places where reading can start.
const ANCHOR_EVERY: u32 = 128;
/// Bytes of an anchor on disk.
const ANCHOR_BYTES: usize = 20;

/// Bytes of a list without entries on disk.
pub(super) const EMPTY_RUN_BYTES: usize = 8;

/// Where one message of a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Ref {
    /// Number, relative to the segment's first.
    pub(super) number: u32,
    /// Offset of the record in the segment.
    pub(super) offset: u32,
    /// Bytes of the record's body.
    pub(super) length: u32,
}

/// The state of a reader just before an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Anchor {
    /// Of the entry before.
    number: u32,
    offset: u32,
    ms: u64,
    /// Where the entry's bytes start.
    at: u32,
}

/// The varint bytes and anchors that both lists consist of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Run {
    bytes: Vec<u8>,
    anchors: Vec<Anchor>,
    count: u32,
    /// The last entry, from which the next one's differences are taken.
    last: Anchor,
}

impl Run {
    fn anchor_if_due(&mut self) {
        if self.count.is_multiple_of(ANCHOR_EVERY) {
            self.anchors.push(Anchor { at: self.bytes.len() as u32, ..self.last });
        }
        self.count += 1;
    }

    /// Appends the entries of `tail`, which continues this run, and empties it to continue further.
    fn absorb(&mut self, tail: &mut Run) {
        let shift = self.bytes.len() as u32;
        self.anchors.extend(tail.anchors.drain(..).map(|a| Anchor { at: a.at + shift, ..a }));
        self.bytes.append(&mut tail.bytes);
        self.count = tail.count;
        self.last = tail.last;
    }

    /// The last anchor before which every number is below `number`.
    fn anchor_before(&self, number: u32) -> Anchor {
        let place = self.anchors.partition_point(|anchor| anchor.number < number);
        match place.checked_sub(1) {
            Some(place) => self.anchors[place],
            None => Anchor::default(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_be_bytes());
        out.extend_from_slice(&(self.anchors.len() as u32).to_be_bytes());
        for anchor in &self.anchors {
            out.extend_from_slice(&anchor.number.to_be_bytes());
            out.extend_from_slice(&anchor.offset.to_be_bytes());
            out.extend_from_slice(&anchor.ms.to_be_bytes());
            out.extend_from_slice(&anchor.at.to_be_bytes());
        }
        out.extend_from_slice(&self.bytes);
    }

    fn decode(bytes: &[u8]) -> Option<Run> {
        use super::format::{be_u32, be_u64};
        let (head, rest) = bytes.split_at_checked(EMPTY_RUN_BYTES)?;
        let (count, anchors) = (be_u32(head), be_u32(&head[4..]) as usize);
        let (anchors, bytes) = rest.split_at_checked(anchors.checked_mul(ANCHOR_BYTES)?)?;
        let anchors: Vec<Anchor> = anchors
            .chunks_exact(ANCHOR_BYTES)
            .map(|a| Anchor {
                number: be_u32(a),
                offset: be_u32(&a[4..]),
                ms: be_u64(&a[8..]),
                at: be_u32(&a[16..]),
            })
            .collect();
        let inside = anchors.iter().all(|anchor| anchor.at as usize <= bytes.len());
        // What was read back is never appended to, so the last entry need not be known.
        inside.then(|| Run { bytes: bytes.to_vec(), anchors, count, last: Anchor::default() })
    }
}

/// A peer's messages within one segment, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refs {
    run: Run,
    /// Sum of the message bodies; not stored here but in the index's directory.
    pub(super) body_bytes: u64,
}

impl Refs {
    /// How many entries, those that this list continues included.
    pub(super) fn count(&self) -> u32 {
        self.run.count
    }

    /// Whether there is nothing in it beyond what it continues.
    pub(super) fn is_absorbed(&self) -> bool {
        self.run.bytes.is_empty()
    }

    /// The newest number; meaningful only in lists that are being built.
    pub(super) fn last(&self) -> u32 {
        self.run.last.number
    }

    /// Adds an entry above all others; of its record, `body_bytes` are the message's body.
    pub(super) fn push(&mut self, entry: Ref, body_bytes: u32) {
        self.run.anchor_if_due();
        put_varint(&mut self.run.bytes, u64::from(entry.number - self.run.last.number));
        put_varint(&mut self.run.bytes, u64::from(entry.offset - self.run.last.offset));
        put_varint(&mut self.run.bytes, u64::from(entry.length));
        self.run.last.number = entry.number;
        self.run.last.offset = entry.offset;
        self.body_bytes += u64::from(body_bytes);
    }

    /// Appends the entries of `tail`, which continues this list, and leaves it continuing further.
    pub(super) fn absorb(&mut self, tail: &mut Refs) {
        self.run.absorb(&mut tail.run);
        self.body_bytes += std::mem::take(&mut tail.body_bytes);
    }

    /// Entries from `number` on.
    pub(super) fn from(&self, number: u32) -> impl Iterator<Item = Ref> + '_ {
        let anchor = self.run.anchor_before(number);
        let mut rest = self.run.bytes.get(anchor.at as usize..).unwrap_or_default();
        let mut last = Ref { number: anchor.number, offset: anchor.offset, length: 0 };
        std::iter::from_fn(move || {
            last.number = last.number.checked_add(take_u32(&mut rest)?)?;
            last.offset = last.offset.checked_add(take_u32(&mut rest)?)?;
            last.length = take_u32(&mut rest)?;
            Some(last)
        })
        .skip_while(move |entry| entry.number < number)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.run.encode(out);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Refs> {
        Some(Refs { run: Run::decode(bytes)?, body_bytes: 0 })
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.run.bytes.capacity() + self.run.anchors.capacity() * size_of::<Anchor>()
    }
}

/// One message of a segment, for the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MessageEntry {
    pub(super) number: u32,
    pub(super) offset: u32,
    pub(super) accepted_ms: u64,
    pub(super) receivers: Vec<u32>,
}

/// Every message of a segment with when it was accepted and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Messages {
    run: Run,
}

impl Messages {
    /// Adds a message above all others.
    pub(super) fn push(
        &mut self,
        number: u32,
        offset: u32,
        accepted_ms: u64,
        receivers: impl ExactSizeIterator<Item = u32>,
    ) {
        self.run.anchor_if_due();
        let run = &mut self.run;
        put_varint(&mut run.bytes, u64::from(number - run.last.number));
        put_varint(&mut run.bytes, u64::from(offset - run.last.offset));
        // Time may go backwards between two messages: zigzag.
        let difference = accepted_ms.wrapping_sub(run.last.ms) as i64;
        put_varint(&mut run.bytes, ((difference << 1) ^ (difference >> 63)) as u64);
        put_varint(&mut run.bytes, receivers.len() as u64);
        for peer in receivers {
            put_varint(&mut run.bytes, u64::from(peer));
        }
        run.last.number = number;
        run.last.offset = offset;
        run.last.ms = accepted_ms;
    }

    /// Appends the messages of `tail`, which continues this list, and leaves it continuing further.
    pub(super) fn absorb(&mut self, tail: &mut Messages) {
        self.run.absorb(&mut tail.run);
    }

    /// The message with this number.
    pub(super) fn find(&self, number: u32) -> Option<MessageEntry> {
        self.from(number).next().filter(|entry| entry.number == number)
    }

    /// The messages with these numbers, both included.
    pub(super) fn between(&self, first: u32, last: u32) -> impl Iterator<Item = MessageEntry> + '_ {
        self.from(first).take_while(move |entry| entry.number <= last)
    }

    /// How many of the messages from number `from` up to `next` are for whom; `first` is the
    /// segment's first number.
    pub(super) fn receivers(&self, first: u64, from: u64, next: u64) -> Vec<(PeerId, u64)> {
        let relative =
            |number: u64| u32::try_from(number.saturating_sub(first)).unwrap_or(u32::MAX);
        let mut counts = BTreeMap::new();
        if from < next {
            for entry in self.between(relative(from), relative(next - 1)) {
                for peer in entry.receivers {
                    *counts.entry(PeerId(peer)).or_insert(0) += 1;
                }
            }
        }
        counts.into_iter().collect()
    }

    /// Messages from `number` on.
    fn from(&self, number: u32) -> impl Iterator<Item = MessageEntry> + '_ {
        let anchor = self.run.anchor_before(number);
        let mut rest = self.run.bytes.get(anchor.at as usize..).unwrap_or_default();
        let mut last = anchor;
        std::iter::from_fn(move || {
            loop {
                last.number = last.number.checked_add(take_u32(&mut rest)?)?;
                last.offset = last.offset.checked_add(take_u32(&mut rest)?)?;
                let zigzag = take_varint(&mut rest)?;
                let difference = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
                last.ms = last.ms.wrapping_add(difference as u64);
                let count = take_u32(&mut rest)? as usize;
                if count > rest.len() {
                    return None;
                }
                let wanted = last.number >= number;
                let mut receivers = Vec::with_capacity(if wanted { count } else { 0 });
                for _ in 0..count {
                    let peer = take_u32(&mut rest)?;
                    if wanted {
                        receivers.push(peer);
                    }
                }
                if wanted {
                    let (number, offset, accepted_ms) = (last.number, last.offset, last.ms);
                    return Some(MessageEntry { number, offset, accepted_ms, receivers });
                }
            }
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.run.encode(out);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Messages> {
        Some(Messages { run: Run::decode(bytes)? })
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    u32::try_from(take_varint(rest)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Ref> {
        (0..1_000u32)
            .map(|n| Ref { number: n * n % 7 + n * 7, offset: 512 + n * 300, length: n % 290 })
            .collect()
    }

    #[test]
    fn reading_can_start_at_any_number() {
        let entries = entries();
        let mut refs = Refs::default();
        let mut tail = Refs::default();
        for (at, entry) in entries.iter().enumerate() {
            tail.push(*entry, entry.length);
            if at % 37 == 0 {
                refs.absorb(&mut tail);
            }
        }
        refs.absorb(&mut tail);
        assert_eq!(refs.count(), 1_000);
        assert_eq!(refs.body_bytes, entries.iter().map(|e| u64::from(e.length)).sum::<u64>());
        let mut bytes = Vec::new();
        refs.encode(&mut bytes);
        let back = Refs::decode(&bytes).unwrap();
        for number in (0..7_010).step_by(13) {
            let expected: Vec<Ref> =
                entries.iter().copied().filter(|e| e.number >= number).collect();
            assert_eq!(refs.from(number).collect::<Vec<_>>(), expected, "from {number}");
            assert_eq!(back.from(number).collect::<Vec<_>>(), expected, "from {number}");
        }
    }

    #[test]
    fn a_message_is_found_with_its_receivers() {
        let (mut messages, mut tail) = (Messages::default(), Messages::default());
        for n in 0..1_000u32 {
            let ms = 1_700_000_000_000 + u64::from(n) - u64::from(n % 5) * 3;
            tail.push(n * 3, n * 50, ms, [n, 7].into_iter());
            if n % 100 == 3 {
                messages.absorb(&mut tail);
            }
        }
        messages.absorb(&mut tail);
        let mut bytes = Vec::new();
        messages.encode(&mut bytes);
        let back = Messages::decode(&bytes).unwrap();
        for n in 0..1_000u32 {
            let found = back.find(n * 3).unwrap();
            let ms = 1_700_000_000_000 + u64::from(n) - u64::from(n % 5) * 3;
            assert_eq!((found.offset, found.accepted_ms), (n * 50, ms));
            assert_eq!(found.receivers, [n, 7]);
            assert_eq!(messages.find(n * 3 + 1), None);
        }
        assert_eq!(Messages::decode(&bytes[..9]), None);
    }
}
