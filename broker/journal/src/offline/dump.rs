//! The records of a data directory, one after the other, for people and programs to read.

use super::super::error::OpenError;
use super::super::format::{KIND_MARK, Seed};
use super::super::shared::Shared;
use super::super::survey::{FlawKind, Passed, is_mark, survey, understand};
use super::Offline;
use restante_protocol::id::{MessageId, MessageNumber, NodeTag, PeerId};
use restante_protocol::message::Body;
use restante_protocol::record::{MessageRecord, Outcome, ParkRecord, RecordKind, SettleRecord};
use std::ops::RangeInclusive;
use std::path::Path;

/// Which records are wanted.
#[derive(Clone, Debug)]
pub struct Filter {
    /// Only those that concern this peer.
    pub peer: Option<PeerId>,
    /// Only these numbers.
    pub numbers: RangeInclusive<MessageNumber>,
    /// Only of this kind, by its word.
    pub kind: Option<String>,
}

/// One record.
#[derive(Clone, Debug)]
pub struct Record {
    /// The segment's id.
    pub segment: u64,
    /// Where it begins.
    pub at: u64,
    /// Its number.
    pub number: MessageNumber,
    /// The word for its kind; `damaged` where there is none.
    pub kind: &'static str,
    /// Bytes of its body, or of the stretch that is damaged.
    pub bytes: u64,
    /// What it says.
    pub says: Says,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Says {
    /// A message.
    Message {
        /// Its id.
        id: MessageId,
        /// Its receivers.
        receivers: Vec<PeerId>,
        /// Its key.
        key: Option<String>,
        /// Bytes of its payload.
        payload_bytes: u64,
        /// Whether the payload is as it was written.
        sound: bool,
    },
    /// Messages of a peer are done.
    Settle {
        /// Whose.
        peer: PeerId,
        /// How.
        outcome: Outcome,
        /// Nothing up to here is open.
        floor: MessageNumber,
        /// Nor are these.
        above: Vec<MessageNumber>,
    },
    /// A message is set aside.
    Park {
        /// Whose.
        peer: PeerId,
        /// Which.
        message: MessageNumber,
        /// Why.
        reason: String,
    },
    /// A number: an epoch, a time.
    Number(u64),
    /// Something that this program does not understand: a newer one wrote it.
    NotUnderstood {
        /// The number of its kind.
        kind: u8,
    },
    /// Nothing that can be told here.
    Nothing,
}

/// The words for the kinds of records.
pub const KINDS: &[&str] = &[
    "message",
    "settle",
    "park",
    "admin",
    "epoch",
    "close",
    "reference",
    "mark",
    "damaged",
    "unknown",
];

/// Hands every record of `dir` that passes the filter to `each`, in the order of the log, until it
/// says stop.
///
/// # Errors
/// As [`super::check::check`].
pub fn dump(
    dir: &Path,
    filter: &Filter,
    each: impl FnMut(&Record) -> bool,
) -> Result<(), OpenError> {
    dump_on(&Offline::read_only(dir)?, filter, each)
}

/// See [`dump`].
pub(crate) fn dump_on(
    offline: &Offline,
    filter: &Filter,
    mut each: impl FnMut(&Record) -> bool,
) -> Result<(), OpenError> {
    let (ids, _) = offline.ids("segments", "seg")?;
    let mut goes_on = true;
    for id in ids {
        let path = Shared::segment_path(id);
        let io = |error| OpenError::io(&offline.disk.describe(&path), error);
        let file = offline.disk.open(&path).map_err(io)?;
        let seed = Seed::new(offline.seed, id);
        let mut give = |record: Record| {
            if goes_on && filter.wants(&record) {
                goes_on = each(&record);
            }
        };
        let found = survey(&file, seed, None, None, |passed| {
            give(record(offline.node, id, passed));
        });
        for flaw in found.map_err(io)?.flaws {
            if let FlawKind::Hole { to, first, .. } = flaw.what {
                let (at, number, kind) = (flaw.at, first, "damaged");
                give(Record { segment: id, at, number, kind, bytes: to - at, says: Says::Nothing });
            }
        }
        if !goes_on {
            break;
        }
    }
    Ok(())
}

impl Filter {
    fn wants(&self, record: &Record) -> bool {
        let concerns = |peer: PeerId| match &record.says {
            Says::Message { receivers, .. } => receivers.contains(&peer),
            Says::Settle { peer: of, .. } | Says::Park { peer: of, .. } => *of == peer,
            Says::Number(_) | Says::NotUnderstood { .. } | Says::Nothing => false,
        };
        self.numbers.contains(&record.number)
            && self.kind.as_ref().is_none_or(|kind| kind == record.kind)
            && self.peer.is_none_or(concerns)
    }
}

fn record(node: NodeTag, segment: u64, passed: &Passed<'_>) -> Record {
    let Passed { at, header, body, bad_payload } = *passed;
    let number = header.number;
    let kind = RecordKind::from_number(header.kind);
    let says = match kind {
        Some(RecordKind::Message) => MessageRecord::parse(body).map(|message| {
            let parts = Body::parse(message.body).unwrap_or_default();
            Says::Message {
                id: MessageId::new(message.accepted_ms, node, 0, number),
                receivers: message.peers().collect(),
                key: parts.key.map(|key| String::from_utf8_lossy(key).into_owned()),
                payload_bytes: parts.payload.len() as u64,
                sound: !bad_payload,
            }
        }),
        Some(RecordKind::Settle) => SettleRecord::parse(body).map(|settle| {
            let SettleRecord { peer, outcome, floor, above, .. } = settle;
            Says::Settle { peer, outcome, floor, above }
        }),
        Some(RecordKind::Park) => ParkRecord::parse(body).map(|park| {
            let ParkRecord { peer, number: message, reason, .. } = park;
            Says::Park { peer, message, reason }
        }),
        Some(RecordKind::Epoch | RecordKind::Close) => {
            Some(Says::Number(body.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))))
        }
        _ => None,
    };
    let is_understood = is_mark(&header) || understand(&header, body).is_some();
    let says = match is_understood {
        true => says.unwrap_or(Says::Nothing),
        false => Says::NotUnderstood { kind: header.kind },
    };
    let kind = match kind {
        Some(kind) => KINDS.get(kind as usize - 1).copied().unwrap_or("unknown"),
        None if header.kind == KIND_MARK => "mark",
        None => "unknown",
    };
    Record { segment, at, number, kind, bytes: u64::from(header.length), says }
}
