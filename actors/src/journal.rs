//! The seam to whatever makes messages durable. The embedded segmented log of the broker stands
//! behind it today; a replicated log can later.
//!
//! One caller appends, settles and parks (the router, on the data arbiter), so the order of calls is
//! the order of the log. Nothing here blocks on a disk: writing is a thread's work, reading another's.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use restante_protocol::id::{MessageNumber, NodeTag, PeerId};
use restante_protocol::record::{Outcome, ParkRecord, SettleDetail, SettleRecord};
use restante_protocol::refusal::Refusal;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedReceiver;

/// A journal that has been opened: its handle, its completions, and what it remembers.
pub struct Opened {
    /// The handle.
    pub journal: Arc<dyn Journal>,
    /// Ends of tickets, in order. Bounded by [`Caps::append_bytes_max`]: nothing completes that was
    /// not appended.
    pub completions: UnboundedReceiver<Completion>,
    /// What a boot needs to know.
    pub recovered: Recovered,
}

/// What the log said when it was opened.
pub struct Recovered {
    /// This opening's epoch, above every earlier one, already durable.
    pub epoch: u32,
    /// Drawn when the journal was created.
    pub node: NodeTag,
    /// The application state of the newest checkpoint, if there is one.
    pub checkpoint: Option<Bytes>,
    /// Bodies of the admin records after that checkpoint, in order.
    pub admin: Vec<Bytes>,
    /// Producer, sequence and number of the messages after that checkpoint, in order, as runs.
    pub published: Vec<PublishedRun>,
    /// Whether the log had been closed in order.
    pub clean: bool,
    /// What the journal had to cut or set aside, for the log; empty when all was well.
    pub findings: Vec<String>,
    /// What was on disk and cannot be read any more.
    pub damage: Vec<Damage>,
}

/// Records that had been synced and cannot be read any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which file of the journal.
    pub file: String,
    /// The first number concerned.
    pub first: MessageNumber,
    /// One past the last.
    pub next: MessageNumber,
    /// Messages concerned by receiver, as far as anything tells; those that were settled may be
    /// among them.
    pub receivers: Vec<(PeerId, u64)>,
    /// Whether that is all there is to tell; else there may be more, of these and of others.
    pub complete: bool,
}

/// Messages of one producer with consecutive sequences and consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedRun {
    /// The producer's interned number.
    pub producer: u32,
    /// Sequence of the first.
    pub first_sequence: u64,
    /// Number of the first.
    pub first_number: MessageNumber,
    /// How many.
    pub count: u32,
    /// Accepted at, milliseconds since the Unix epoch (all of a run share it).
    pub accepted_ms: u64,
}

/// What an engine can take.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Largest record body, in bytes.
    pub record_bytes_max: usize,
    /// Largest batch, in bytes.
    pub batch_bytes_max: usize,
    /// Most bytes appended and not yet completed; beyond it [`Journal::append`] answers `Full`.
    pub append_bytes_max: usize,
}

/// Records on their way to disk: whole record bodies, each with [`restante_protocol::record::RECORD_HEADER_BYTES`]
/// of room in front, one after the other.
#[derive(Debug, Default)]
pub struct Batch {
    /// Headers (not yet filled in) and bodies.
    pub bytes: BytesMut,
    /// One per record.
    pub records: Vec<BatchRecord>,
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchRecord {
    /// What it is: `Message` or `Admin`.
    pub kind: restante_protocol::record::RecordKind,
    /// Offset of the record's header room in the batch's bytes.
    pub offset: u32,
    /// Bytes of the body alone.
    pub body_len: u32,
    /// Where the payload (or, for admin, nothing) starts within the body: it has a checksum of its
    /// own, so that an erased payload is no corruption.
    pub payload_at: u32,
}

/// Names one append; ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How a ticket ended. `Durable` is prefix-closed: when it comes, everything before it is on disk too.
#[derive(Debug)]
pub struct Completion {
    /// Which append.
    pub ticket: Ticket,
    /// What came of it.
    pub end: End,
}

/// The end of a ticket, or what else the journal has to say to the router.
#[derive(Debug)]
pub enum End {
    /// On disk. The bytes come back, frozen, so that they can be delivered from memory.
    Durable(Bytes),
    /// It may or may not be on disk; nothing later completes until the log has been reopened.
    Unknown(Refusal),
    /// Another process owns the journal.
    Fenced(Refusal),
    /// The journal is poisoned: nothing from this ticket on is confirmed.
    Poisoned(Refusal),
    /// Not the end of a ticket: enough has been written that a checkpoint is due; answer with
    /// [`Journal::checkpoint`]. The ticket is the last one that had been appended.
    CheckpointDue,
    /// Not the end of a ticket: every settle up to [`Journal::flush`] with this token is on disk.
    Flushed(u64),
}

/// Messages of one peer that are done.
#[derive(Clone, Debug)]
pub struct Settle {
    /// What is written. `above` holds only what lies above the floor.
    pub record: SettleRecord,
    /// Every number newly settled by this, ascending, the ones at or below the floor included:
    /// segments are reclaimed by counting.
    pub numbers: Vec<MessageNumber>,
}

impl Settle {
    /// A settle of acked messages without details.
    #[must_use]
    pub fn acked(
        peer: PeerId,
        at_ms: u64,
        floor: MessageNumber,
        numbers: Vec<MessageNumber>,
    ) -> Settle {
        let above = numbers.iter().copied().filter(|number| *number > floor).collect();
        let (outcome, moved_to, details) =
            (Outcome::Acked, PeerId::NONE, Vec::<SettleDetail>::new());
        let record = SettleRecord { peer, at_ms, outcome, moved_to, floor, above, details };
        Settle { record, numbers }
    }
}

/// What to read for a peer.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Whose messages.
    pub peer: PeerId,
    /// Which of them.
    pub lane: Lane,
    /// Only messages above this number.
    pub after: MessageNumber,
    /// Only messages up to this number.
    pub through: MessageNumber,
    /// Stop after this many bytes of bodies; at least one message is returned if there is one.
    pub bytes_max: usize,
    /// Stop after this many messages.
    pub messages_max: usize,
}

/// The queues of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Neither settled nor parked.
    Open,
    /// Parked.
    Parked,
}

/// A stretch of a peer's open messages, in order of number.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The messages.
    pub messages: Vec<Stored>,
    /// Nothing else of this peer and lane lies in `(after, through]`.
    pub through: MessageNumber,
    /// Of the parked lane: by what these messages were parked, as far as that is on disk and still
    /// kept; in order of number.
    pub parks: Vec<ParkRecord>,
}

/// A message as stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its number.
    pub number: MessageNumber,
    /// When it was accepted.
    pub accepted_ms: u64,
    /// See [`restante_protocol::message::Body`]. A copy of its own or a slice of a page's buffer.
    pub body: Bytes,
}

/// Why a read brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal is poisoned or closed, or the disk does not give what is asked for. Nothing may be
    /// taken for done: read again later, from the same place.
    #[error(transparent)]
    Unavailable(Refusal),
    /// The next message of the peer is open and its record is damaged, beyond doubt. It is to be
    /// parked; reading on after its number is possible. A stretch of which nobody knows whose messages
    /// are in it is never reported so.
    #[error("the record of message {number} is damaged: {detail}")]
    Damaged {
        /// Which message.
        number: MessageNumber,
        /// What was found.
        detail: String,
    },
}

/// What waits for a peer, durable messages only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Nothing at or below this number is open.
    pub floor: MessageNumber,
    /// The newest message ever appended for the peer, 0 if there is none.
    pub newest: MessageNumber,
    /// Open messages.
    pub messages: u64,
    /// Bytes of their bodies; an average where some messages of a stretch of the log are done and
    /// others are not.
    pub bytes: u64,
    /// Parked messages.
    pub parked: u64,
    /// Bytes of their bodies, averages as above.
    pub parked_bytes: u64,
}

/// What the journal knows about one message.
#[derive(Clone, Debug)]
pub struct Life {
    /// When it was accepted.
    pub accepted_ms: u64,
    /// Its body, if still stored.
    pub body: Option<Bytes>,
    /// Its receivers in the order of the publish, and how it ended for each; `None`: still open.
    pub receivers: Vec<(PeerId, Option<Ended>)>,
}

/// How and when a message left the open lane of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Settled.
    Settled {
        /// How.
        outcome: Outcome,
        /// When.
        at_ms: u64,
        /// With `Moved`: to whom.
        moved_to: PeerId,
        /// How often it was sent.
        attempts: u16,
        /// The return value, if there was one.
        value: Option<Bytes>,
    },
    /// Parked.
    Parked(ParkRecord),
    /// Settled; the record of how and when is no longer kept.
    Done,
}

impl Ended {
    /// The number of the copy that a message went on as which was handed over, replayed or delayed.
    pub(crate) fn copy_number(&self) -> Option<MessageNumber> {
        match self {
            Ended::Settled { outcome: Outcome::Moved, value: Some(value), .. } => {
                Some(u64::from_be_bytes(value.as_ref().try_into().ok()?))
            }
            Ended::Settled { .. } | Ended::Parked(_) | Ended::Done => None,
        }
    }
}

/// Why a message could not be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The number has not been handed out yet.
    #[error("no such message")]
    Unknown,
    /// Its record was on disk and cannot be read any more.
    #[error("the record is damaged")]
    Damaged,
    /// Its record is gone, as the retention says.
    #[error("the record has aged out")]
    AgedOut,
    /// The journal is poisoned or closed.
    #[error("the journal is unavailable")]
    Unavailable,
}

/// What commits have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commits {
    /// How many have been put on disk since the journal was opened; each took one sync.
    pub count: u64,
    /// How long the slowest took to be written and synced, of those since this was last asked, in
    /// microseconds.
    pub slowest_us: u64,
}

/// A backup that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupTaken {
    /// Files in it.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Every record below this number is in it.
    pub next: MessageNumber,
}

/// Whether publishes can be taken, for the door.
#[derive(Clone, Debug)]
pub enum Admission {
    /// Yes.
    Open,
    /// No, and why; the node tries again with each publish.
    Closed(Refusal),
}

/// See the module.
pub trait Journal: Send + Sync {
    /// What the engine can take.
    fn caps(&self) -> Caps;

    /// Whether to accept publishes now. Cheap: asked once per batch.
    fn admission(&self) -> Admission;

    /// The number the next record will have.
    fn next_number(&self) -> MessageNumber;

    /// No message below this number can be looked up: nothing that is stored speaks of it.
    fn oldest_number(&self) -> MessageNumber;

    /// Queues records for the next commit. Each record takes one number, consecutively; the first
    /// one is returned. Never blocks.
    ///
    /// # Errors
    /// Nothing was queued, and the batch is given back, when the journal is full, poisoned, fenced
    /// or the batch is over [`Caps::batch_bytes_max`].
    fn append(&self, batch: Batch) -> Result<(Ticket, MessageNumber), (Batch, Refusal)>;

    /// Records that messages are done. Takes effect for [`Journal::next`] at once, reaches the disk
    /// with the next commit or after a bounded delay: losing it in a crash only redelivers. Takes a
    /// record number. Silently without effect on a poisoned journal.
    fn settle(&self, settle: Settle);

    /// Records that a message is parked; as lazily as a settle. The message leaves the open lane.
    fn park(&self, park: ParkRecord);

    /// Asks for [`End::Flushed`] once everything settled and parked so far is on disk.
    fn flush(&self, token: u64);

    /// Hands over the application's state as of everything appended so far, to be written as a
    /// checkpoint together with the journal's own.
    fn checkpoint(&self, state: Bytes);

    /// The peer's next messages of a lane, in order. Reflects every settle and park called before.
    fn next(&self, read: Read) -> BoxFuture<'static, Result<Page, ReadError>>;

    /// What waits for a peer.
    fn backlog(&self, peer: PeerId) -> Backlog;

    /// What is known about one message.
    fn lookup(&self, number: MessageNumber) -> BoxFuture<'static, Result<Life, LookupError>>;

    /// Takes a copy of everything that is on disk now into the directory `dir` of this machine, which
    /// must be new or empty, while everything goes on. Not bounded in time.
    fn backup(&self, dir: PathBuf) -> BoxFuture<'static, Result<BackupTaken, Refusal>>;

    /// How many commits there were, and the slowest since the last call.
    fn commits(&self) -> Commits;

    /// Bytes the journal occupies on disk.
    fn disk_bytes(&self) -> u64;

    /// Writes what is pending, marks the log as closed in order, and ends the threads. Blocks; call
    /// it last and off the arbiters.
    fn close(&self);
}
