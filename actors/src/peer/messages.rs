//! What is said to a peer actor.

use crate::link::SharedLink;
use actix::Message;
use bytes::Bytes;
use restante_protocol::admin::{PeerSettings, PeerUrl};
use restante_protocol::delivery::types::{Blocked, Snapshot, Whereabouts};
use restante_protocol::frame::TagRange;
use restante_protocol::id::MessageNumber;
use restante_protocol::message::KeyHash;
use restante_protocol::refusal::Refusal;
use smallvec::SmallVec;

/// Durable messages for this peer, from one batch of the journal.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Enqueue {
    /// The batch as it went to disk; bodies are ranges of it.
    pub chunk: Bytes,
    /// Number of the batch's first record.
    pub first_number: MessageNumber,
    /// When the batch was accepted.
    pub accepted_ms: u64,
    /// The messages, ascending.
    pub messages: Vec<EnqueuedMessage>,
    /// What an earlier hand-off to this peer could not say, because its mailbox was full.
    pub missed: Missed,
}

/// One message of an [`Enqueue`].
#[derive(Clone, Copy, Debug)]
pub struct EnqueuedMessage {
    /// Its number, counted from the batch's first.
    pub index: u32,
    /// Where its body starts in the chunk.
    pub body_at: u32,
    /// Bytes of its body.
    pub body_len: u32,
    /// Its ordering key's digest.
    pub key: Option<KeyHash>,
    /// Whether its body has options, which are to be looked at.
    pub has_options: bool,
}

// There is one for each message and receiver of a batch.
const _: () = assert!(size_of::<EnqueuedMessage>() == 24);

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// How many.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Taken {
    /// Counts some more.
    pub fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }

    /// Counts some less.
    pub fn take(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Messages the peer was not told about one by one: it reads them from the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// The newest of them, 0 for none.
    pub newest: MessageNumber,
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A connection offers to carry the peer's messages: answered with the first tag it will see.
///
/// Refused when the peer is attached elsewhere, or when a dialled link is no longer wanted.
#[derive(Message)]
#[rtype(result = "Result<u64, Refusal>")]
pub struct LinkUp {
    /// The link.
    pub link: SharedLink,
    /// For a dialled link the number of the dial; for an attachment a number from
    /// [`crate::link_number`], unique in this process.
    pub number: u64,
    /// Whether the peer dialled this link.
    pub dialled: bool,
    /// Deliveries up to this tag (counted from the first tag of this link as 1) until granted more.
    pub grant: Option<u64>,
}

/// A link is gone or a dial failed.
#[derive(Message)]
#[rtype(result = "()")]
pub struct LinkDown {
    /// Which.
    pub number: u64,
    /// Why, one line.
    pub why: String,
}

/// Acks of one read of a connection.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Acked {
    /// On which link.
    pub number: u64,
    /// What is done.
    pub ranges: SmallVec<[TagRange; 2]>,
}

/// An ack with a return value.
#[derive(Message)]
#[rtype(result = "()")]
pub struct AckedValue {
    /// On which link.
    pub number: u64,
    /// The delivery.
    pub tag: u64,
    /// The return value; a copy, not a slice of a read buffer.
    pub value: Bytes,
}

/// A refusal by the receiver.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Nacked {
    /// On which link.
    pub number: u64,
    /// The delivery.
    pub tag: u64,
    /// Never try again.
    pub permanent: bool,
    /// Earliest next try, milliseconds from now; 0: as the schedule says.
    pub retry_after_ms: u32,
    /// One line.
    pub reason: String,
}

/// The receiver takes more.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Granted {
    /// On which link.
    pub number: u64,
    /// Cumulative, as in the frame.
    pub messages: u64,
}

/// A congested link has room again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Writable {
    /// Which link.
    pub number: u64,
}

/// There is leave to send, to be asked for in the next drain.
#[derive(Message)]
#[rtype(result = "()")]
pub struct MaySend;

/// The peer's record changed. Takes effect at once, also for what is queued.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reconfigure {
    /// Where it is reached.
    pub url: PeerUrl,
    /// How it is served.
    pub settings: PeerSettings,
    /// Whether an operator holds it.
    pub paused: bool,
    /// Version of the record; of two changes that overtake each other the newer one holds.
    pub version: u64,
}

/// The peer is removed: close the link, record what has been answered by now, stop.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Retire;

/// Answered once everything that was said to the actor before it has been dealt with.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Barrier;

/// Parked messages of this peer have been settled: it is to tell its counts anew.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Recount;

/// Asks how the peer is, exactly and now.
#[derive(Message)]
#[rtype(result = "Option<Snapshot>")]
pub struct Inspect;

/// Asks where a message is and what it waits for; `None` when the peer does not hold it as open.
#[derive(Message)]
#[rtype(result = "Option<(Whereabouts, Blocked)>")]
pub struct Locate(pub MessageNumber);
