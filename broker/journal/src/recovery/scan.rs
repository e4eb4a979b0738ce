//! Reading the part of the log that the checkpoint does not cover, record by record, and deciding
//! what its end is.

use super::super::checkpoint::Snapshot;
use super::super::error::OpenError;
use super::super::format::{FLAG_FIRST, RecordHeader, Seed, be_u32, record_bytes};
use super::super::index::SegmentIndex;
use super::super::rebuild::named_by;
use super::super::segment::{FIRST_RECORD_AT, Found, Walk};
use super::super::shared::Shared;
use super::super::state::Stage;
use super::super::storage::around::Around;
use super::super::storage::{Disk, DiskFile};
use super::super::survey::{is_mark, understand};
use super::Owner;
use super::aside::keep_aside;
use super::inventory::{FoundSegment, Inventory, open_in};
use bytes::Bytes;
use restante_actors::journal::{BatchRecord, Damage, PublishedRun};
use restante_protocol::id::{MessageNumber, PeerId};
use restante_protocol::record::{MessageRecord, ParkRecord, RecordKind, SettleRecord};
use std::io::{self, IoSlice};
use std::sync::Arc;

/// What the tail of the log said.
#[derive(Default)]
pub(super) struct Tail {
    /// Segments that were read through, with their indexes.
    pub(super) segments: Vec<Scanned>,
    /// Settles and parks since the checkpoint, in order.
    pub(super) replay: Vec<Replay>,
    pub(super) admin: Vec<Bytes>,
    pub(super) published: Vec<PublishedRun>,
    /// One past the last record.
    pub(super) next: MessageNumber,
    pub(super) epoch: u32,
    pub(super) clean: bool,
    pub(super) findings: Vec<String>,
    /// What was synced and cannot be read any more.
    pub(super) damage: Vec<Damage>,
    /// Numbers that should be there and are not, between two segments: first, and one past the last.
    pub(super) gaps: Vec<(MessageNumber, MessageNumber)>,
    /// Why the journal is not to be opened, if so: a sound record is not understood. The rest is what was
    /// read before it.
    pub(super) refusal: Option<OpenError>,
}

/// A segment that was read through.
pub(super) struct Scanned {
    pub(super) id: u64,
    pub(super) next: MessageNumber,
    pub(super) data_end: u64,
    pub(super) file_bytes: u64,
    pub(super) index: SegmentIndex,
}

/// A segment in which there is no record.
pub(super) struct Emptied {
    pub(super) id: u64,
    /// Why it is not to be written again, if so.
    pub(super) why_kept: Option<String>,
}

/// Something to be done again.
pub(super) enum Replay {
    Settle(SettleRecord),
    Park(PeerId, MessageNumber),
}

/// Reads every segment that the checkpoint does not cover wholly or that has no index, and cuts the
/// end of the log. When it fails, what it has found is left with the inventory.
pub(super) fn scan(
    disk: &Arc<dyn Disk>,
    owner: Owner,
    snapshot: &Snapshot,
    inventory: &mut Inventory,
) -> io::Result<Tail> {
    let mut tail = Tail { next: snapshot.position.max(1), ..Tail::default() };
    match scan_into(&mut tail, disk, owner, snapshot, inventory) {
        Ok(()) => Ok(tail),
        Err(error) => {
            inventory.findings.append(&mut tail.findings);
            Err(error)
        }
    }
}

fn scan_into(
    tail: &mut Tail,
    disk: &Arc<dyn Disk>,
    owner: Owner,
    snapshot: &Snapshot,
    inventory: &mut Inventory,
) -> io::Result<()> {
    let mut emptied = Vec::new();
    // Behind the checkpoint's position segments follow each other without a gap.
    let mut next = snapshot.position.max(1);
    for place in 0..inventory.segments.len() {
        let (head, rest) = inventory.segments.split_at_mut(place + 1);
        let Some(found) = head.last_mut() else { break };
        if found.headless.is_some() {
            // Segments follow each other without a gap.
            found.first = tail.next;
        }
        if found.first > next {
            tail.gaps.push((next, found.first));
        }
        let following = rest.first();
        let covered = found.directory.is_some()
            && found.facts.is_some_and(|facts| facts.next <= snapshot.position)
            && following.is_some();
        if covered {
            continue;
        }
        let mut scan = Scan::new(disk, owner, snapshot, found, following)?;
        scan.run(tail)?;
        if tail.refusal.is_some() {
            return Ok(());
        }
        emptied.extend(scan.finish(snapshot, tail)?);
        next = next.max(tail.next);
    }
    tail.damage.append(&mut inventory.damage);
    for (first, next) in &tail.gaps {
        let (file, receivers, complete) = ("segments".to_owned(), Vec::new(), false);
        tail.damage.push(Damage { file, first: *first, next: *next, receivers, complete });
        tail.findings
            .push(format!("records {first} to {} are missing with their segment", next - 1));
    }
    for empty in emptied {
        inventory.take_out(&**disk, &empty)?;
    }
    Ok(())
}

/// One segment being read.
struct Scan<'a> {
    disk: &'a Arc<dyn Disk>,
    found: &'a FoundSegment,
    file: Arc<Around>,
    walk: Walk,
    /// Only records from here on are replayed.
    position: MessageNumber,
    /// One past the last number of this one, or the first of the next: all of this one is synced.
    following: Option<MessageNumber>,
    /// Whether no other comes behind it.
    is_last: bool,
    /// Every lower number is known to have been synced.
    synced: MessageNumber,
    /// The number the next record should have.
    expected: MessageNumber,
    stage: Stage,
    /// Where the last commit that was read begins: everything before it is known to be synced.
    unsure_from: u64,
    /// End of the last record that was read.
    data_end: u64,
}

impl<'a> Scan<'a> {
    fn new(
        disk: &'a Arc<dyn Disk>,
        owner: Owner,
        snapshot: &Snapshot,
        found: &'a FoundSegment,
        following: Option<&FoundSegment>,
    ) -> io::Result<Scan<'a>> {
        let seed = Seed::new(owner.seed, found.id);
        let file = found.open(&**disk)?;
        let readable: Arc<dyn DiskFile> = Arc::clone(&file) as Arc<dyn DiskFile>;
        let mut walk = Walk::new(readable, seed, FIRST_RECORD_AT)?;
        if let Some(facts) = found.facts {
            walk.end_at(facts.data_end);
        }
        let synced = following.map_or(0, |next| next.headless.unwrap_or(next.first));
        let synced = synced.max(found.facts.map_or(0, |facts| facts.next));
        Ok(Scan {
            disk,
            found,
            file,
            walk,
            position: snapshot.position,
            is_last: following.is_none(),
            following: found.facts.map(|facts| facts.next).or_else(|| {
                following.filter(|next| next.headless.is_none()).map(|next| next.first)
            }),
            synced: synced.max(snapshot.synced).max(found.headless.unwrap_or(0)),
            expected: found.first,
            stage: Stage::default(),
            unsure_from: FIRST_RECORD_AT,
            data_end: FIRST_RECORD_AT,
        })
    }

    fn run(&mut self, tail: &mut Tail) -> io::Result<()> {
        loop {
            match self.walk.look()? {
                Found::Record(header) if self.is_next(&header) => {
                    if !self.take(&header, tail) {
                        return Ok(());
                    }
                }
                Found::BadPayload(header)
                    if self.is_next(&header)
                        && header.kind == RecordKind::Message as u8
                        && self.is_synced(&header)? =>
                {
                    tail.findings.push(format!(
                        "{}: the payload of record {} is damaged",
                        Shared::segment_path(self.found.id),
                        header.number
                    ));
                    tail.damage.push(self.bad_payload(&header));
                    if !self.take(&header, tail) {
                        return Ok(());
                    }
                }
                _ => {
                    if !self.pass_damage(tail)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn is_next(&self, header: &RecordHeader) -> bool {
        header.number == self.expected
    }

    /// Takes over an intact record. One that is not understood is left where it is, and with it all of the
    /// log: says whether it was.
    fn take(&mut self, header: &RecordHeader, tail: &mut Tail) -> bool {
        let (offset, number) = (self.walk.at, header.number);
        if !is_mark(header) {
            let body = self.walk.body(header);
            let Some(kind) = understand(header, body) else {
                let path = self.disk.describe(&Shared::segment_path(self.found.id));
                let (at, kind) = (offset, header.kind);
                tail.refusal = Some(OpenError::NotUnderstood { path, at, number, kind });
                return false;
            };
            let record = BatchRecord {
                kind,
                offset: 0,
                body_len: header.length,
                payload_at: u32::from(header.payload_at),
            };
            self.stage.note(&record, number - self.found.first, offset, body);
            if number >= self.position {
                tail.replay(kind, number, body);
            }
            self.expected = number + 1;
        }
        if header.flags & FLAG_FIRST != 0 {
            self.synced = self.synced.max(number);
            self.unsure_from = offset;
        }
        self.walk.step(header);
        self.data_end = self.walk.at;
        true
    }

    /// Whether a record is known to have been synced: by what is known already, or by what follows it.
    fn is_synced(&mut self, header: &RecordHeader) -> io::Result<bool> {
        if self.synced > header.number {
            return Ok(true);
        }
        let at = self.walk.at;
        self.look_ahead()?;
        self.walk.at = at;
        // Back to the record itself, which is taken next.
        self.walk.look()?;
        Ok(self.synced > header.number)
    }

    /// Reads on behind the present place for records that say what was synced. Returns where the
    /// first record behind it is, with its number, and where the last one ends.
    fn look_ahead(&mut self) -> io::Result<Option<(u64, MessageNumber, u64)>> {
        let highest = self.expected + (self.walk.end() / record_bytes(0) as u64) + 1;
        let mut ahead = None;
        while let Some(header) = self.walk.search(self.expected..=highest)? {
            if header.flags & FLAG_FIRST != 0 {
                self.synced = self.synced.max(header.number);
            }
            let at = self.walk.at;
            let end = at + record_bytes(header.length as usize) as u64;
            let (first_at, first_number, _) = *ahead.get_or_insert((at, header.number, end));
            ahead = Some((first_at, first_number, end));
            // Go on right behind it; the search begins one byte further.
            self.walk.at = end - 1;
        }
        Ok(ahead)
    }

    /// Decides about a place where the next record is not. Says whether there is more to read.
    fn pass_damage(&mut self, tail: &mut Tail) -> io::Result<bool> {
        // The ordinary ends: where the next segment goes on, where the index says, after a close.
        let complete = self.following == Some(self.expected)
            || (self.following.is_none() && tail.clean && self.expected == tail.next);
        if complete {
            return Ok(false);
        }
        let at = self.walk.at;
        let torn = self.walk.peek()?.filter(|header| self.is_next(header));
        let ahead = self.look_ahead()?;
        self.walk.at = at;
        // What lay between this segment and the next may have been given back, and only its index,
        // which is gone, would know.
        let let_go = self.found.facts.is_none()
            && self.following.is_some_and(|following| following <= self.position);
        if let_go && ahead.is_none() && torn.is_none() {
            return Ok(false);
        }
        if !self.is_last && self.following.is_none() && ahead.is_none() {
            // The front of the next one is damaged, so that nobody knows where this one ends. What is
            // missing between the two is named there.
            if torn.is_some() {
                let what = format!("record {} is damaged", self.expected);
                self.set_aside(at, self.walk.end(), &what, tail)?;
                tail.damage.push(self.damage(self.expected, self.expected + 1));
                self.expected += 1;
            }
            return Ok(false);
        }
        if self.expected < self.synced {
            let (to, number) = match ahead {
                Some((to, number, _)) => (to, number),
                None => (self.walk.end(), self.following.unwrap_or(self.synced)),
            };
            let what = format!("records {} to {} are damaged", self.expected, number.max(1) - 1);
            self.set_aside(at, to, &what, tail)?;
            tail.damage.push(self.damage(self.expected, number));
            self.expected = number;
            self.walk.at = to;
            return Ok(ahead.is_some());
        }
        let end = match (ahead, torn) {
            (Some((_, _, end)), _) => Some(end),
            (None, Some(header)) => Some(at + record_bytes(header.length as usize) as u64),
            (None, None) => None,
        };
        if let Some(end) = end {
            let end = end.min(self.walk.end());
            self.set_aside(at, end, "the end of the log was never confirmed and is cut", tail)?;
        }
        Ok(false)
    }

    /// What is damaged where these records should be: the index says whose they are, if there is one.
    fn damage(&self, first: MessageNumber, next: MessageNumber) -> Damage {
        let file = Shared::segment_path(self.found.id);
        let messages = named_by(&**self.disk, self.found.id).ok().flatten();
        let (receivers, complete) = match messages {
            Some(messages) => (messages.receivers(self.found.first, first, next), true),
            None => (Vec::new(), false),
        };
        Damage { file, first, next, receivers, complete }
    }

    /// A message whose receivers are known and whose payload is not.
    fn bad_payload(&self, header: &RecordHeader) -> Damage {
        let (first, next) = (header.number, header.number + 1);
        let file = Shared::segment_path(self.found.id);
        let message = MessageRecord::parse(self.walk.body(header));
        let receivers = message.map(|message| message.peers().map(|peer| (peer, 1)).collect());
        let (receivers, complete) = (receivers.unwrap_or_default(), true);
        Damage { file, first, next, receivers, complete }
    }

    /// Copies bytes that are passed over to the quarantine, and says so.
    fn set_aside(&self, from: u64, to: u64, what: &str, tail: &mut Tail) -> io::Result<()> {
        let to = to.max(from);
        let bytes = self.walk.bytes(from, to)?;
        let name = format!("{:012x}-{from}.cut", self.found.id);
        let aside = keep_aside(&**self.disk, &name, &bytes)?;
        tail.findings.push(format!(
            "{} at byte {from}: {what}; {} bytes are kept as {aside}",
            Shared::segment_path(self.found.id),
            to - from
        ));
        Ok(())
    }

    /// Makes the end of the log what it was found to be. What was read of the last commit may be in
    /// memory only, because the process that wrote it died before the sync or of it: after a sync that
    /// failed, only bytes that are written again are written at all. Returns the file's length.
    fn make_durable(&self, is_cut: bool) -> io::Result<u64> {
        let last_commit = self.walk.bytes(self.unsure_from, self.data_end)?;
        self.file.write_at(&[IoSlice::new(&last_commit)], self.unsure_from)?;
        let is_cut = is_cut && self.data_end < self.found.file_bytes;
        if is_cut {
            self.file.truncate(self.data_end)?;
        }
        self.file.sync()?;
        Ok(if is_cut { self.data_end } else { self.found.file_bytes })
    }

    /// Where the log ends in something that cannot be read, confirmed records may be in it: their
    /// numbers are not used again, and the file is left as it is, should it be readable another time.
    /// Says whether it is so.
    fn pass_unreadable_end(&mut self, tail: &mut Tail) -> bool {
        let Some((from, ..)) = self.file.unreadable(self.data_end) else { return false };
        let records_max = (self.walk.end() - self.data_end) / record_bytes(0) as u64;
        let (first, next) = (self.expected, self.expected + records_max);
        tail.findings.push(format!(
            "{} cannot be read from byte {from} on: records from {first} on may have been there; the log goes on at {next}",
            Shared::segment_path(self.found.id)
        ));
        tail.damage.push(self.damage(first, next));
        tail.next = tail.next.max(next);
        true
    }

    /// Cuts the segment behind its last record and hands it over; or says that there is none in it.
    fn finish(mut self, snapshot: &Snapshot, tail: &mut Tail) -> io::Result<Option<Emptied>> {
        let id = self.found.id;
        tail.findings.extend(self.file.report(&Shared::segment_path(id)));
        if self.expected == self.found.first {
            return Ok(Some(self.empty(snapshot, tail)));
        }
        tail.next = tail.next.max(self.expected);
        let mut file_bytes = self.found.file_bytes;
        if self.is_last && self.following.is_none() {
            let is_cut = !self.pass_unreadable_end(tail);
            file_bytes = self.make_durable(is_cut)?;
        }
        let mut index = SegmentIndex::default();
        index.absorb(&mut self.stage);
        tail.segments.push(Scanned {
            id,
            next: self.following.map_or(self.expected, |next| next.min(self.expected)),
            data_end: self.data_end,
            file_bytes,
            index,
        });
        Ok(None)
    }

    /// Nothing is in it. Where the checkpoint knows of something, or not all of it can be read, it is
    /// not written again.
    fn empty(&mut self, snapshot: &Snapshot, tail: &mut Tail) -> Emptied {
        let FoundSegment { id, first, noted_live, .. } = *self.found;
        let mut why_kept = None;
        if noted_live > 0 {
            let why =
                format!("none of the {noted_live} deliveries that were open in it can be read");
            let next = self.following.unwrap_or(snapshot.position).max(first + 1);
            let named = self.damage(first, next);
            let receivers = match named.complete {
                true => named.receivers,
                false => open_in(snapshot, first),
            };
            tail.damage.push(Damage { receivers, ..named });
            why_kept = Some(why);
        } else if self.file.unreadable(0).is_some() {
            self.pass_unreadable_end(tail);
            why_kept = Some("no record in it can be read".to_owned());
        }
        Emptied { id, why_kept }
    }
}

impl Tail {
    fn replay(&mut self, kind: RecordKind, number: MessageNumber, body: &[u8]) {
        self.clean = kind == RecordKind::Close;
        self.next = number + 1;
        match kind {
            RecordKind::Message => {
                if let Some(message) = MessageRecord::parse(body) {
                    self.note_published(&message, number);
                }
            }
            RecordKind::Settle => {
                self.replay.extend(SettleRecord::parse(body).map(Replay::Settle));
            }
            RecordKind::Park => {
                let park = ParkRecord::parse(body);
                self.replay.extend(park.map(|park| Replay::Park(park.peer, park.number)));
            }
            RecordKind::Admin => self.admin.push(Bytes::copy_from_slice(body)),
            RecordKind::Epoch => self.epoch = self.epoch.max(be_u32(body)),
            // There is no reference that is understood.
            RecordKind::Close | RecordKind::Reference => {}
        }
    }

    fn note_published(&mut self, message: &MessageRecord<'_>, number: MessageNumber) {
        if message.producer == 0 {
            return;
        }
        if let Some(run) = self.published.last_mut()
            && run.producer == message.producer
            && run.accepted_ms == message.accepted_ms
            && run.first_sequence + u64::from(run.count) == message.sequence
            && run.first_number + u64::from(run.count) == number
        {
            run.count += 1;
            return;
        }
        self.published.push(PublishedRun {
            producer: message.producer,
            first_sequence: message.sequence,
            first_number: number,
            count: 1,
            accepted_ms: message.accepted_ms,
        });
    }
}
