//! Reading a segment from front to back whatever is wrong in it: every record, every byte of it
//! checked, and what lies between them. Nothing is changed.

use super::format::{FLAG_FIRST, KIND_MARK, RecordHeader, Seed};
use super::index::SegmentIndex;
use super::segment::{FIRST_RECORD_AT, Found, Walk};
use super::state::Stage;
use super::storage::DiskFile;
use restante_actors::journal::BatchRecord;
use restante_protocol::id::{MessageNumber, NUMBER_BITS};
use restante_protocol::record::{
    MESSAGE_FIXED_BYTES, MessageRecord, ParkRecord, RecordKind, SettleRecord,
};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// What a segment was found to hold.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Number of the first record, 0 if there is none.
    pub(super) first: MessageNumber,
    /// One past the number of the last record.
    pub(super) next: MessageNumber,
    pub(super) records: u64,
    pub(super) messages: u64,
    /// Where the last record ends.
    pub(super) data_end: u64,
    /// Every record with a lower number is synced, says a record in here.
    pub(super) synced: MessageNumber,
    pub(super) flaws: Vec<Flaw>,
    pub(super) index: SegmentIndex,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Where.
    pub(super) at: u64,
    pub(super) what: FlawKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FlawKind {
    /// No record up to this byte, where the next one begins; these numbers would have been there.
    Hole { to: u64, first: MessageNumber, next: MessageNumber },
    /// A message whose payload does not match its checksum.
    BadPayload(MessageNumber),
    /// A sound record that this program does not understand.
    Strange { number: MessageNumber, kind: u8 },
    /// A sound record whose number does not belong in this place.
    Misplaced { number: MessageNumber },
}

/// One record as it is passed by.
pub(super) struct Passed<'a> {
    pub(super) at: u64,
    pub(super) header: RecordHeader,
    pub(super) body: &'a [u8],
    pub(super) bad_payload: bool,
}

/// Reads the segment in `file`; its numbers are relative to `first` where that is known. Goes no
/// further than `end`, where the index says that the records end.
pub(super) fn survey(
    file: &Arc<dyn DiskFile>,
    seed: Seed,
    first: Option<MessageNumber>,
    end: Option<u64>,
    mut each: impl FnMut(&Passed<'_>),
) -> io::Result<Survey> {
    let mut walk = Walk::new(Arc::clone(file), seed, FIRST_RECORD_AT)?;
    if let Some(end) = end {
        walk.end_at(end);
    }
    let mut survey = Survey {
        first: first.unwrap_or(0),
        next: first.unwrap_or(0),
        data_end: FIRST_RECORD_AT,
        ..Survey::default()
    };
    let mut stage = Stage::default();
    loop {
        let (header, bad_payload) = match walk.look()? {
            Found::Record(header) => (header, false),
            Found::BadPayload(header) => (header, true),
            Found::Nothing => {
                let at = walk.at;
                let Some(header) = walk.search(0..=(1 << NUMBER_BITS))? else { break };
                let what = FlawKind::Hole { to: walk.at, first: survey.next, next: header.number };
                survey.flaws.push(Flaw { at, what });
                continue;
            }
        };
        let (at, body) = (walk.at, walk.body(&header));
        each(&Passed { at, header, body, bad_payload });
        survey.pass(&mut stage, &Passed { at, header, body, bad_payload });
        walk.step(&header);
        survey.data_end = walk.at;
    }
    if let Some(end) = end.filter(|end| survey.data_end < *end) {
        // The index knows of more.
        let (first, next) = (survey.next, survey.next);
        let flaw = Flaw { at: survey.data_end, what: FlawKind::Hole { to: end, first, next } };
        survey.flaws.push(flaw);
    }
    survey.index.absorb(&mut stage);
    Ok(survey)
}

impl Survey {
    fn pass(&mut self, stage: &mut Stage, passed: &Passed<'_>) {
        let Passed { at, header, body, bad_payload } = *passed;
        if header.flags & FLAG_FIRST != 0 {
            self.synced = self.synced.max(header.number);
        }
        if is_mark(&header) {
            return;
        }
        if self.first == 0 {
            self.first = header.number;
        }
        let relative = header.number.checked_sub(self.first).and_then(|n| u32::try_from(n).ok());
        let Some(relative) = relative.filter(|_| header.number >= self.next) else {
            let what = FlawKind::Misplaced { number: header.number };
            return self.flaws.push(Flaw { at, what });
        };
        self.next = header.number + 1;
        self.records += 1;
        if bad_payload {
            let what = FlawKind::BadPayload(header.number);
            self.flaws.push(Flaw { at, what });
        }
        let Some(kind) = understand(&header, body) else {
            let what = FlawKind::Strange { number: header.number, kind: header.kind };
            return self.flaws.push(Flaw { at, what });
        };
        self.messages += u64::from(kind == RecordKind::Message);
        let record = BatchRecord {
            kind,
            offset: 0,
            body_len: header.length,
            payload_at: u32::from(header.payload_at),
        };
        stage.note(&record, u64::from(relative), at, body);
    }
}

/// Whether a record is a mark, and as this program writes them.
pub(super) fn is_mark(header: &RecordHeader) -> bool {
    header.kind == KIND_MARK && header.flags & !FLAG_FIRST == 0 && header.length == 0
}

/// The kind of a sound record, if this program understands all of it. What a newer one writes may have
/// another kind or flag, or one that is known may say something that is not.
pub(super) fn understand(header: &RecordHeader, body: &[u8]) -> Option<RecordKind> {
    let kind = RecordKind::from_number(header.kind).filter(|_| header.flags & !FLAG_FIRST == 0)?;
    let is_understood = match kind {
        RecordKind::Message => {
            MessageRecord::parse(body).is_some()
                && body.get(MESSAGE_ZERO).is_some_and(|zero| zero == [0; 2])
        }
        RecordKind::Settle => SettleRecord::parse(body).is_some(),
        RecordKind::Park => ParkRecord::parse(body).is_some(),
        // What it says is for the application to understand.
        RecordKind::Admin => true,
        RecordKind::Epoch => body.len() == size_of::<u32>(),
        RecordKind::Close => body.len() == size_of::<u64>(),
        // Reserved; nothing writes it yet.
        RecordKind::Reference => false,
    };
    is_understood.then_some(kind)
}

/// Where a message has zeroes as yet.
const MESSAGE_ZERO: Range<usize> = MESSAGE_FIXED_BYTES - 2..MESSAGE_FIXED_BYTES;
