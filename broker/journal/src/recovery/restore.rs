//! From the checkpoint, the indexes and the replayed records to the state: who has how much open in
//! which segment.
//!
//! Floors and sets are made first; the counts follow from them, so that they cannot drift. A share
//! that nothing touched takes its counts from the index's directory, one that the checkpoint knows
//! takes them from there, and only those that the replay changed are counted anew.

use super::super::checkpoint::{PeerNote, Snapshot, TouchedNote};
use super::super::held::Held;
use super::super::index::{DirectoryEntry, IndexError, IndexFile, SegmentIndex};
use super::super::rebuild::{Rebuilt, Sealed, Witness, named_by};
use super::super::refs::{Ref, Refs};
use super::super::shared::Shared;
use super::super::state::{Place, Segment, State};
use super::super::storage::around::Around;
use super::super::storage::{Disk, DiskFile, is_shortage};
use super::inventory::{FoundSegment, Inventory};
use super::scan::{Replay, Scanned};
use foldhash::{HashMap, HashSet};
use restante_actors::journal::Damage;
use restante_protocol::id::{MessageNumber, PeerId};
use std::io;
use std::sync::Arc;

/// Shares whose counts have to be made anew: peer and first number of the segment.
type Dirty = HashSet<(PeerId, MessageNumber)>;

/// The state, and what was found on the way to it.
pub(super) struct Restored {
    pub(super) state: State,
    pub(super) findings: Vec<String>,
    pub(super) damage: Vec<Damage>,
}

pub(super) fn restore(
    disk: &dyn Disk,
    seed: u32,
    snapshot: &Snapshot,
    inventory: &mut Inventory,
    scanned: Vec<Scanned>,
    replay: Vec<Replay>,
    told: &[Damage],
) -> io::Result<Restored> {
    let mut state = State::default();
    let mut dirty = Dirty::default();
    for note in &snapshot.peers {
        let peer = state.peers.entry(note.peer).or_default();
        peer.floor = note.floor;
        peer.newest = note.newest;
        peer.done.clone_from(&note.done);
    }
    let notes: HashMap<PeerId, &PeerNote> =
        snapshot.peers.iter().map(|note| (note.peer, note)).collect();
    let mut scanned: HashMap<u64, Scanned> =
        scanned.into_iter().map(|scanned| (scanned.id, scanned)).collect();
    let mut segments: Vec<FoundSegment> = inventory.segments.drain(..).collect();
    segments.append(&mut inventory.cold);
    segments.sort_unstable_by_key(|found| found.first);
    for found in segments {
        let mut segment = Segment {
            id: found.id,
            first: found.first,
            next: None,
            live: 0,
            total: 0,
            data_end: 0,
            file_bytes: found.file_bytes,
            index_bytes: found.index_bytes,
            index: Place::File,
        };
        if let Some(scanned) = scanned.remove(&found.id) {
            state.add_scanned(&mut segment, scanned, &notes, &mut dirty);
        } else if let (Some(directory), Some(facts)) = (&found.directory, found.facts) {
            segment.next = Some(facts.next);
            segment.data_end = facts.data_end;
            segment.total = directory.iter().map(|entry| u64::from(entry.count)).sum();
            state.add_indexed(&segment, directory, &notes);
        }
        state.segments.push(segment);
    }
    let findings = state.doubt(snapshot, &mut dirty);
    let damage = state.missing(snapshot, told);
    for replay in replay {
        state.replay(replay, &mut dirty);
    }
    let mut restored = Restored { state, findings, damage };
    restored.count(disk, seed, &dirty)?;
    Ok(restored)
}

impl State {
    /// Shares of a segment that the checkpoint covers.
    fn add_indexed(
        &mut self,
        segment: &Segment,
        directory: &[DirectoryEntry],
        notes: &HashMap<PeerId, &PeerNote>,
    ) {
        for entry in directory {
            let last = segment.first + u64::from(entry.last);
            let peer = self.peers.entry(entry.peer).or_default();
            let note = note_of(notes, entry.peer, segment.first);
            if note.is_none() && (last <= peer.floor || peer.is_done_with(segment.first)) {
                continue;
            }
            let mut held = Held::new(segment.first);
            held.grow(last, entry.count, entry.body_bytes);
            if let Some(note) = note {
                held.set_open(note.open, note.bytes);
                held.set_marks(note.settled.clone(), note.parked.clone(), note.parked_bytes);
            }
            peer.held.push(held);
        }
    }

    /// Shares of a segment that was read through; all are counted anew.
    fn add_scanned(
        &mut self,
        segment: &mut Segment,
        scanned: Scanned,
        notes: &HashMap<PeerId, &PeerNote>,
        dirty: &mut Dirty,
    ) {
        segment.next = Some(scanned.next);
        segment.data_end = scanned.data_end;
        segment.file_bytes = scanned.file_bytes;
        segment.index_bytes = 0;
        segment.total = scanned.index.refs.values().map(|refs| u64::from(refs.count())).sum();
        for (peer_id, refs) in &scanned.index.refs {
            let peer = self.peers.entry(*peer_id).or_default();
            let last = segment.first + u64::from(refs.last());
            peer.newest = peer.newest.max(last);
            let mut held = Held::new(segment.first);
            held.grow(last, refs.count(), refs.body_bytes);
            if let Some(note) = note_of(notes, *peer_id, segment.first) {
                held.set_marks(note.settled.clone(), note.parked.clone(), note.parked_bytes);
            } else if peer.is_done_with(segment.first) {
                continue;
            }
            peer.held.push(held);
            dirty.insert((*peer_id, segment.first));
        }
        segment.index = Place::Sealed(Arc::new(scanned.index));
    }

    fn replay(&mut self, replay: Replay, dirty: &mut Dirty) {
        match replay {
            Replay::Settle(settle) => {
                let Some(peer) = self.peers.get_mut(&settle.peer) else { return };
                let floor = peer.floor.max(settle.floor);
                for number in settle.above {
                    let Some(place) = peer.place_of(number) else { continue };
                    let held = &mut peer.held[place];
                    let relative = held.relative(number);
                    held.unmark_parked(relative);
                    if number > floor {
                        held.mark_settled(relative);
                    }
                    dirty.insert((settle.peer, held.first));
                }
                let from = peer.held.partition_point(|held| held.last() <= peer.floor);
                let passed = peer.held[from..].iter().take_while(|held| held.first <= floor);
                dirty.extend(passed.map(|held| (settle.peer, held.first)));
                peer.raise_floor(floor);
            }
            Replay::Park(peer_id, number) => {
                let Some(peer) = self.peers.get_mut(&peer_id) else { return };
                let Some(place) = peer.place_of(number) else { return };
                let held = &mut peer.held[place];
                let relative = held.relative(number);
                if !held.settled().contains(relative) {
                    held.mark_parked(relative);
                    dirty.insert((peer_id, held.first));
                }
            }
        }
    }

    /// Holds what the checkpoint says is live of a segment against what it says of the peers and what
    /// the index has: a checkpoint with a sound checksum may still be wrong. Shares of which anything
    /// disagrees are counted anew.
    fn doubt(&mut self, snapshot: &Snapshot, dirty: &mut Dirty) -> Vec<String> {
        let mut findings = Vec::new();
        let State { peers, segments, .. } = self;
        for note in &snapshot.segments {
            let Ok(place) = segments.binary_search_by_key(&note.first, |segment| segment.first)
            else {
                continue;
            };
            // One that was read through is counted anyway.
            if !matches!(segments[place].index, Place::File) {
                continue;
            }
            let (mut live, mut shares, mut impossible) = (0, Vec::new(), false);
            for (id, peer) in &*peers {
                let Ok(place) = peer.held.binary_search_by_key(&note.first, |held| held.first)
                else {
                    continue;
                };
                let held = &peer.held[place];
                let here = u64::from(held.open) + u64::from(held.parked().len());
                impossible |= here > u64::from(held.total);
                live += here;
                shares.push((*id, note.first));
            }
            if live == note.live && !impossible {
                continue;
            }
            let path = Shared::segment_path(note.id);
            findings.push(format!(
                "the checkpoint says that {} deliveries are open in {path}, and of its receivers \
                 together {live}; they are counted anew",
                note.live
            ));
            dirty.extend(shares);
        }
        findings
    }
}

impl State {
    /// Holds what was found in segments that were read through for want of an index against what the
    /// checkpoint says was live in them: of what is missing at the end of one nothing else tells. `told` is
    /// known already.
    fn missing(&self, snapshot: &Snapshot, told: &[Damage]) -> Vec<Damage> {
        let mut damage = Vec::new();
        for note in snapshot.segments.iter().filter(|note| note.live > 0) {
            let Some(segment) = self.segment(note.first) else { continue };
            let Place::Sealed(index) = &segment.index else { continue };
            let file = Shared::segment_path(note.id);
            let mut named = 0;
            let here = told.iter().filter(|damage| damage.file == file);
            if here.clone().any(|damage| !damage.complete) {
                continue;
            }
            here.for_each(|damage| named += damage.receivers.iter().map(|(_, n)| n).sum::<u64>());
            let live_of = |peer| self.live_before(peer, note.first, index, snapshot.position);
            let live: u64 = index.refs.keys().map(|peer| live_of(*peer)).sum();
            if live + named >= note.live {
                continue;
            }
            let touched = |peer: &PeerNote| {
                let touched = peer.touched.iter().find(|touched| touched.first == note.first)?;
                let was = u64::from(touched.open) + u64::from(touched.parked.len());
                let missing = was.saturating_sub(live_of(peer.peer));
                (missing > 0).then_some((peer.peer, missing))
            };
            let receivers: Vec<_> = snapshot.peers.iter().filter_map(touched).collect();
            let all = note.live - live - named;
            let complete = receivers.iter().map(|(_, missing)| missing).sum::<u64>() == all;
            let place = self.segments.partition_point(|other| other.first <= note.first);
            let following = self.segments.get(place).map_or(snapshot.position, |s| s.first);
            let first = segment.next.unwrap_or(note.first);
            let next = following.max(first + 1);
            damage.push(Damage { file, first, next, receivers, complete });
        }
        damage
    }

    /// How much of a peer's share of a segment is live, of the records below `position`.
    fn live_before(
        &self,
        peer: PeerId,
        first: MessageNumber,
        index: &SegmentIndex,
        position: MessageNumber,
    ) -> u64 {
        let Some(refs) = index.refs.get(&peer) else { return 0 };
        let Some(peer) = self.peers.get(&peer) else { return 0 };
        let Ok(place) = peer.held.binary_search_by_key(&first, |held| held.first) else { return 0 };
        let held = &peer.held[place];
        let is_live = |entry: &Ref| {
            let number = first + u64::from(entry.number);
            let is_open = number > peer.floor && !held.settled().contains(entry.number);
            number < position && (is_open || held.parked().contains(entry.number))
        };
        refs.from(0).filter(is_live).count() as u64
    }
}

impl Restored {
    /// Counts what is open, and forgets what is done.
    fn count(&mut self, disk: &dyn Disk, seed: u32, dirty: &Dirty) -> io::Result<()> {
        let State { peers, segments, .. } = &mut self.state;
        let mut rebuilt = Vec::new();
        // By segment, so that its index is opened once, however many are in it.
        let mut shares: Vec<_> = dirty.iter().map(|(peer, first)| (*first, *peer)).collect();
        shares.sort_unstable();
        let mut opened: Option<(u64, Opened)> = None;
        for (first, peer_id) in shares {
            let Some(peer) = peers.get_mut(&peer_id) else { continue };
            let floor = peer.floor;
            let Ok(place) = peer.held.binary_search_by_key(&first, |held| held.first) else {
                continue;
            };
            let held = &mut peer.held[place];
            if held.last() <= floor {
                held.set_open(0, 0);
                continue;
            }
            let Ok(at) = segments.binary_search_by_key(&first, |segment| segment.first) else {
                continue;
            };
            let segment = &mut segments[at];
            if matches!(segment.index, Place::File) {
                let refs = match &opened {
                    Some((id, index)) if *id == segment.id => index.refs(peer_id),
                    _ => Opened::open(disk, segment.id)
                        .and_then(|index| opened.insert((segment.id, index)).1.refs(peer_id)),
                };
                match refs {
                    Ok(refs) => {
                        held.count(floor, refs.as_ref());
                        continue;
                    }
                    Err(IndexError::Io(error)) if is_shortage(&error) => return Err(error),
                    Err(why) => {
                        // The segment knows it, unless it is damaged too.
                        let file = disk.open(&Shared::segment_path(segment.id))?;
                        let Segment { id, first, data_end, .. } = *segment;
                        let next = segment.next.unwrap_or(first);
                        let sealed = Sealed { id, first, next, data_end };
                        let file: Arc<dyn DiskFile> = Around::new(file);
                        let old = named_by(disk, id).unwrap_or_default();
                        let witness = Witness { old, is_final: true };
                        let built = Rebuilt::read(Some(&file), &witness, seed, sealed)?;
                        segment.index = Place::Sealed(Arc::clone(&built.index));
                        let path = Shared::index_path(id);
                        self.findings
                            .push(format!("{path} is built again from its segment: {why}"));
                        rebuilt.push((built, sealed));
                    }
                }
            }
            match &segment.index {
                Place::Active(index) => held.count(floor, index.refs.get(&peer_id)),
                Place::Sealed(index) => held.count(floor, index.refs.get(&peer_id)),
                Place::File => {}
            }
        }
        for (built, sealed) in rebuilt {
            self.damage.extend(built.account(&mut self.state, sealed));
        }
        let State { peers, segments, .. } = &mut self.state;
        for peer in peers.values_mut() {
            peer.recount();
            for held in &peer.held {
                if let Ok(at) = segments.binary_search_by_key(&held.first, |s| s.first) {
                    segments[at].live += u64::from(held.open) + u64::from(held.parked().len());
                }
            }
        }
        let dead = segments.iter().filter(|segment| segment.live == 0).count();
        self.state.dead = dead;
        Ok(())
    }
}

fn note_of<'a>(
    notes: &HashMap<PeerId, &'a PeerNote>,
    peer: PeerId,
    first: MessageNumber,
) -> Option<&'a TouchedNote> {
    let touched = &notes.get(&peer)?.touched;
    let place = touched.binary_search_by_key(&first, |touched| touched.first).ok()?;
    touched.get(place)
}

/// An index file with its directory.
struct Opened {
    file: IndexFile,
    directory: Vec<DirectoryEntry>,
}

impl Opened {
    fn open(disk: &dyn Disk, id: u64) -> Result<Opened, IndexError> {
        let file = IndexFile::open(disk, &Shared::index_path(id))?;
        let directory = file.directory()?;
        Ok(Opened { file, directory })
    }

    /// A peer's messages.
    fn refs(&self, peer: PeerId) -> Result<Option<Refs>, IndexError> {
        let Ok(place) = self.directory.binary_search_by_key(&peer, |entry| entry.peer) else {
            return Ok(None);
        };
        let mut refs = self.file.refs(&self.directory[place])?;
        refs.body_bytes = self.directory[place].body_bytes;
        Ok(Some(refs))
    }
}
