//! Building an index again from its segment, when its file turns out to be damaged. The keeper then
//! writes it anew.
//!
//! The segment may be damaged too. What its records cannot tell any more, the old index may still: then
//! the messages stay in the index, and are found damaged by name when their turn comes. Otherwise nobody
//! knows their numbers, and they leave the counts; either way it is told whose they were.
//!
//! That is said only of bytes that were read and are wrong. Where the disk gives none, they may be there
//! again in a moment: nothing is built then from what is left, and whoever asks is told to come back.

use super::format::Seed;
use super::index::{IndexError, IndexFile, SegmentIndex};
use super::refs::{MessageEntry, Messages, Ref, Refs};
use super::shared::Shared;
use super::state::{Place, State, release};
use super::storage::around::Around;
use super::storage::{Disk, DiskFile, is_missing, is_shortage};
use super::survey::{Flaw, FlawKind, survey};
use super::trouble::Spot;
use restante_actors::events;
use restante_actors::journal::Damage;
use restante_protocol::id::{MessageNumber, PeerId};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Receivers of damaged messages that are logged by name while the journal is open.
const DAMAGED_PEERS_MAX: usize = 64;

/// An index that was built again.
pub(super) struct Rebuilt {
    pub(super) index: Arc<SegmentIndex>,
    /// Numbers whose records are not there any more.
    lost: Vec<Range<MessageNumber>>,
    /// What the old index says about their receivers, one for each of `lost`; they are in `index` then.
    named: Option<Vec<Vec<(PeerId, u64)>>>,
}

/// A sealed segment whose index is to be built again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub(super) id: u64,
    pub(super) first: MessageNumber,
    pub(super) next: MessageNumber,
    pub(super) data_end: u64,
}

/// What else than its records speaks of a segment.
pub(super) struct Witness {
    /// The messages of its old index.
    pub(super) old: Option<Messages>,
    /// Whether what neither can tell is gone for good, and not merely out of reach for now.
    pub(super) is_final: bool,
}

impl Rebuilt {
    /// Reads a segment through; without `file` there is none any more.
    ///
    /// # Errors
    /// What the disk said; also when something is missing that may come back.
    pub(super) fn read(
        file: Option<&Arc<dyn DiskFile>>,
        witness: &Witness,
        journal_seed: u32,
        sealed: Sealed,
    ) -> io::Result<Rebuilt> {
        let Sealed { id, first, next, data_end } = sealed;
        let (mut index, mut lost) = (SegmentIndex::default(), Vec::new());
        match file {
            Some(file) => {
                let seed = Seed::new(journal_seed, id);
                let found = survey(file, seed, Some(first), Some(data_end), |_| {})?;
                index = found.index;
                let ranges = found.flaws.iter().filter_map(|flaw| lost_in(flaw, sealed));
                lost.extend(ranges.filter(|range| range.start >= first && range.start < range.end));
            }
            None => lost.push(first..next),
        }
        let old = witness.old.as_ref().filter(|_| !lost.is_empty());
        if !lost.is_empty() && old.is_none() && !witness.is_final {
            return Err(io::Error::other("what is missing in it may be out of reach only for now"));
        }
        let named = old.map(|old| {
            let ranges = lost.iter();
            ranges.map(|range| take_over(&mut index, old, first, range.clone())).collect()
        });
        Ok(Rebuilt { index: Arc::new(index), lost, named })
    }

    /// Whether it says of every message of the segment whose it was.
    pub(super) fn is_whole(&self) -> bool {
        self.lost.is_empty() || self.named.is_some()
    }

    /// Puts the counts right, and says what is damaged, if anything is.
    pub(super) fn account(&self, state: &mut State, sealed: Sealed) -> Vec<Damage> {
        let file = Shared::segment_path(sealed.id);
        if let Some(named) = &self.named {
            let told = self.lost.iter().zip(named).map(|(range, receivers)| Damage {
                file: file.clone(),
                first: range.start,
                next: range.end,
                receivers: receivers.clone(),
                complete: true,
            });
            return told.collect();
        }
        let (Some(first), Some(last)) = (self.lost.first(), self.lost.last()) else {
            return Vec::new();
        };
        let receivers = state.forget_missing(sealed.first, &self.index);
        let (first, next) = (first.start, last.end);
        vec![Damage { file, first, next, receivers, complete: false }]
    }
}

/// The numbers that a flaw in a segment leaves unknown.
fn lost_in(flaw: &Flaw, sealed: Sealed) -> Option<Range<MessageNumber>> {
    match flaw.what {
        // At the end the segment's own last number is what would have followed.
        FlawKind::Hole { to, first: from, next: to_number } => {
            let at_end = from == to_number && to >= sealed.data_end;
            Some(from..if at_end { sealed.next } else { to_number })
        }
        FlawKind::Strange { number, .. } | FlawKind::Misplaced { number } => {
            Some(number..number + 1)
        }
        // Its receivers are known; it is found when it is read.
        FlawKind::BadPayload(_) => None,
    }
}

/// The messages of an index whose other parts may be damaged; none where these are too, or there is
/// no index.
///
/// # Errors
/// What the disk said: they may be sound.
pub(super) fn named_by(disk: &dyn Disk, id: u64) -> io::Result<Option<Messages>> {
    let index = match IndexFile::open(disk, &Shared::index_path(id)) {
        Ok(index) if index.facts.id == id => index,
        Err(IndexError::Io(error)) if !is_missing(&error) => return Err(error),
        Ok(_) | Err(_) => return Ok(None),
    };
    match index.messages() {
        Ok(messages) => Ok(Some(messages)),
        Err(IndexError::Io(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Adds what an old index knows of messages whose records are gone; says for whom they were.
pub(super) fn take_over(
    index: &mut SegmentIndex,
    old: &Messages,
    first: MessageNumber,
    lost: Range<MessageNumber>,
) -> Vec<(PeerId, u64)> {
    let relative = |number: MessageNumber| u32::try_from(number - first).unwrap_or(u32::MAX);
    let gone: Vec<MessageEntry> =
        old.between(relative(lost.start), relative(lost.end - 1)).collect();
    let mut all: Vec<MessageEntry> = index.messages.between(0, u32::MAX).collect();
    all.extend(gone.iter().cloned());
    all.sort_by_key(|entry| entry.number);
    all.dedup_by_key(|entry| entry.number);
    let (mut messages, mut offset) = (Messages::default(), 0);
    for entry in all {
        offset = entry.offset.max(offset);
        messages.push(entry.number, offset, entry.accepted_ms, entry.receivers.into_iter());
    }
    index.messages = messages;
    let mut by_peer: BTreeMap<PeerId, Vec<Ref>> = BTreeMap::new();
    for MessageEntry { number, offset, receivers, .. } in gone {
        for peer in receivers {
            // How long it was nobody knows; there is no record to be read anyway.
            by_peer.entry(PeerId(peer)).or_default().push(Ref { number, offset, length: 0 });
        }
    }
    let mut counts = Vec::new();
    for (peer, missing) in by_peer {
        counts.push((peer, missing.len() as u64));
        let refs = index.refs.entry(peer).or_default();
        let (mut all, bytes): (Vec<Ref>, u64) = (refs.from(0).collect(), refs.body_bytes);
        all.extend(missing);
        all.sort_by_key(|entry| entry.number);
        all.dedup_by_key(|entry| entry.number);
        let (mut merged, mut offset) = (Refs::default(), 0);
        for entry in all {
            offset = entry.offset.max(offset);
            merged.push(Ref { offset, ..entry }, 0);
        }
        merged.body_bytes = bytes;
        *refs = merged;
    }
    counts
}

impl State {
    /// Takes messages that the index of a segment does not know out of the counts of everybody who has
    /// something in it; says how many there were for whom.
    fn forget_missing(&mut self, first: MessageNumber, index: &SegmentIndex) -> Vec<(PeerId, u64)> {
        let (mut missing, mut gone) = (Vec::new(), 0);
        for (id, peer) in &mut self.peers {
            let floor = peer.floor;
            let Ok(place) = peer.held.binary_search_by_key(&first, |held| held.first) else {
                continue;
            };
            let held = &mut peer.held[place];
            let refs = index.refs.get(id);
            let absent = held.total.saturating_sub(refs.map_or(0, Refs::count));
            if absent == 0 {
                continue;
            }
            missing.push((*id, u64::from(absent)));
            let before = held.open;
            match refs {
                Some(refs) => held.count(floor, Some(refs)),
                None => held.set_open(0, 0),
            }
            held.total -= absent;
            gone += u64::from(before.saturating_sub(held.open));
            peer.let_go_if_done(first);
            peer.sum();
        }
        release(&mut self.segments, &mut self.dead, first, gone);
        missing.sort_unstable();
        missing
    }
}

impl Shared {
    /// Replaces the index of a segment, which cannot be used, as `why` says, for a search for `receiver`;
    /// look-ups and copies search for nobody.
    ///
    /// # Errors
    /// What the disk said. Nothing has changed, and nothing is taken for lost: it is to be tried again.
    /// What cannot be read although it is there counts as damage only where that has lasted, and where
    /// something names the messages concerned. It lasts for a receiver, which waits longer each time; how
    /// often somebody else has asked says nothing.
    pub(super) fn rebuild_index(
        &self,
        id: u64,
        receiver: Option<PeerId>,
        why: IndexError,
    ) -> io::Result<()> {
        // Given back in the meantime, or built already.
        let Some(sealed) = self.unindexed(id) else { return Ok(()) };
        let (told, troubles) = (why.to_string(), &self.reading.troubles);
        let spot = receiver.map(|peer| Spot { segment: id, peer, number: 0 });
        let rebuilt = match why {
            IndexError::Io(error) if is_shortage(&error) => Err(error),
            _ => self.read_anew(sealed, spot.is_some_and(|spot| troubles.has_lasted(spot))),
        };
        let rebuilt = rebuilt.inspect_err(|error| match spot {
            Some(spot) => drop(troubles.is_lasting(spot, error)),
            None => troubles.note(id, error),
        })?;
        self.put_in_place(sealed, rebuilt, &told);
        Ok(())
    }

    /// Builds the index of a segment from its records; `has_lasted` is whether what of it cannot be read
    /// counts as damage.
    pub(super) fn read_anew(&self, sealed: Sealed, has_lasted: bool) -> io::Result<Rebuilt> {
        let old = named_by(&*self.disk, sealed.id);
        let is_final = old.is_ok();
        let mut witness = Witness { old: old.unwrap_or_default(), is_final };
        let file = match self.segment_file(sealed.id) {
            Ok(file) => Some(file),
            Err(error) if is_missing(&error) => None,
            Err(error) => return Err(error),
        };
        let error = match Rebuilt::read(file.as_ref(), &witness, self.seed, sealed) {
            Err(error) if witness.old.is_some() && !is_shortage(&error) => error,
            read => return read,
        };
        let Some(file) = file.filter(|_| has_lasted) else {
            return Err(error);
        };
        witness.is_final = false;
        let around: Arc<dyn DiskFile> = Around::new(file);
        Rebuilt::read(Some(&around), &witness, self.seed, sealed)
    }

    fn put_in_place(&self, sealed: Sealed, rebuilt: Rebuilt, why: &str) {
        let path = Shared::index_path(sealed.id);
        self.forget_index(sealed.id);
        let told = {
            let mut state = self.state.lock();
            let segment = state.segments.iter().position(|segment| segment.id == sealed.id);
            let in_file = |place: &usize| matches!(state.segments[*place].index, Place::File);
            let Some(place) = segment.filter(in_file) else { return };
            let told = rebuilt.account(&mut state, sealed);
            state.segments[place].index = Place::Sealed(rebuilt.index);
            told.iter().for_each(|damage| state.lose(damage.first, damage.next));
            told
        };
        events::journal_finding(&format!("{path} is built again from its segment: {why}"));
        told.iter().for_each(tell);
        self.wake_keeper();
    }

    /// A sealed segment whose index is nowhere but in its file.
    fn unindexed(&self, id: u64) -> Option<Sealed> {
        let state = self.state.lock();
        let segment = state.segments.iter().find(|segment| segment.id == id)?;
        let sealed = matches!(segment.index, Place::File);
        let (first, next, data_end) = (segment.first, segment.next?, segment.data_end);
        sealed.then_some(Sealed { id, first, next, data_end })
    }
}

/// Logs damage that was found while the journal is open. Peers have only numbers here.
fn tell(damage: &Damage) {
    let Damage { file, first, next, receivers, complete } = damage;
    let last = next.saturating_sub(1).max(*first);
    events::journal_damaged(file, *first, last, receivers.len() as u64, *complete);
    for (peer, messages) in receivers.iter().take(DAMAGED_PEERS_MAX) {
        events::journal_damaged_peer(file, &format!("#{}", peer.0), *messages, !complete);
    }
}
