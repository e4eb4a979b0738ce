//! What goes into a delivery core and what comes out of it.

use super::expiry::Expiry;
use crate::id::MessageNumber;
use crate::message::KeyHash;
use crate::record::Outcome;
use crate::status::{Health, Stall};
use crate::time::Time;

/// What a core is told about its peer's past when it is built, at first boot and after a crash alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// Nothing of the peer at or below this number is open.
    pub floor: MessageNumber,
    /// The newest message of the peer, 0 if there is none.
    pub newest: MessageNumber,
    /// Open messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whatever lies at or below this number may have been sent before and is flagged redelivered.
    pub maybe_sent: MessageNumber,
    /// Whether an operator holds the peer.
    pub paused: bool,
    /// Whether the node opens the connection (`tcp://`) or waits for the receiver (`attach:`).
    pub dials: bool,
    /// What the core cannot see beyond, if it is not the peer's first: "the node started". As long as
    /// no link has come up, it says that it knows only since then.
    pub knows_since: Option<&'static str>,
}

/// A message as the core knows it. `B` is a handle to its body, opaque to the core.
#[derive(Clone, Debug)]
pub struct Entry<B> {
    /// Its number.
    pub number: MessageNumber,
    /// When it was accepted, milliseconds since the Unix epoch; passed through.
    pub accepted_ms: u64,
    /// Bytes of its body.
    pub bytes: u32,
    /// Its ordering key's digest, if it has a key.
    pub key: Option<KeyHash>,
    /// When its time to live ends, if it does.
    pub expires: Option<Expiry>,
    /// Where its body is.
    pub body: B,
}

/// A message that leaves past the send queue: an [`Entry`] without its body.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Its number.
    pub number: MessageNumber,
    /// See [`Entry::accepted_ms`].
    pub accepted_ms: u64,
    /// Bytes of its body.
    pub bytes: u32,
    /// Its ordering key's digest, if it has a key.
    pub key: Option<KeyHash>,
}

/// A message to be sent now. It is unacked from here on.
#[derive(Clone, Debug)]
pub struct Transmit<B> {
    /// Dense and ascending per link, from the `first_tag` of [`super::Delivery::handle_link_up`].
    pub tag: u64,
    /// The message.
    pub number: MessageNumber,
    /// See [`Entry::accepted_ms`].
    pub accepted_ms: u64,
    /// 1 for the first attempt this core knows of.
    pub attempt: u16,
    /// Whether it may have been sent before.
    pub redelivered: bool,
    /// Its body.
    pub body: B,
}

/// A message that is done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Which.
    pub number: MessageNumber,
    /// How: [`Outcome::Acked`].
    pub outcome: Outcome,
    /// How often it was sent.
    pub attempts: u16,
    /// Bytes of its body.
    pub bytes: u32,
}

/// What has a message set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParkCause {
    /// Its receiver: it refused the message for good or too often, or was lost with it too often.
    Receiver,
    /// Its handling crashed the peer's actor too often.
    Poison,
    /// It cannot be read.
    Unreadable,
}

/// A message that is set aside for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Which.
    pub number: MessageNumber,
    /// When it was accepted, 0 if the core never held it; with the number it makes the id.
    pub accepted_ms: u64,
    /// How often it was sent.
    pub attempts: u16,
    /// Bytes of its body.
    pub bytes: u32,
    /// What has it set aside.
    pub cause: ParkCause,
    /// Why, one line.
    pub reason: String,
}

/// What the core wants done about its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkCommand {
    /// Dial the receiver; answered by `handle_link_up` or `handle_link_down`.
    Dial,
    /// Close the link; the core already regards it as gone.
    Close(CloseReason),
}

/// Why a core gives a link up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// No ack in time, several times in a row.
    Late,
    /// An operator paused the peer.
    Paused,
    /// The peer's address changed or it was removed.
    Changed,
}

/// What health and log should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The verdict on the peer changed.
    Verdict {
        /// The new one.
        health: Health,
        /// Since when.
        since: Time,
        /// Why, one line; empty when up.
        why: String,
        /// When the link is tried next, if it is.
        next_attempt: Option<Time>,
    },
    /// A dial failed again; the verdict is unchanged.
    DialFailed {
        /// Failed attempts in a row.
        failures: u32,
        /// Why, one line.
        why: String,
        /// When the next one is due.
        next_attempt: Time,
    },
    /// Messages went unacked for too long and are sent again.
    Late {
        /// How many.
        messages: u32,
        /// The first of them.
        first: MessageNumber,
        /// When that one was accepted; with the number it makes the id.
        accepted_ms: u64,
        /// How many times in a row without progress.
        in_a_row: u32,
    },
    /// The receiver refused a message for now.
    Refused {
        /// Which.
        number: MessageNumber,
        /// When it was accepted; with the number it makes the id.
        accepted_ms: u64,
        /// Sent this often.
        attempts: u16,
        /// When it is tried again.
        next_attempt: Time,
        /// What the receiver said.
        reason: String,
    },
    /// An ack or nack that names no message in flight: a tag never sent on this link. Those of an
    /// earlier link or seen twice are ignored without a word.
    OddAck {
        /// The tag.
        tag: u64,
    },
}

/// A stretch of the peer's queue the core wants read from the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Open messages above this number,
    pub after: MessageNumber,
    /// up to this one,
    pub through: MessageNumber,
    /// of about this many bytes,
    pub bytes_max: usize,
    /// and this many messages.
    pub messages_max: usize,
}

/// What the core answers about itself, for admin, watch and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The verdict.
    pub health: Health,
    /// Since when.
    pub since: Time,
    /// Why.
    pub why: String,
    /// Accepted and not done, in flight included, parked not.
    pub waiting: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// In flight.
    pub unacked: u64,
    /// Refused and waiting for their next try.
    pub retrying: u64,
    /// Failed dials in a row.
    pub dial_failures: u32,
    /// When the link is tried next.
    pub next_attempt: Option<Time>,
    /// Acceptance time of the oldest open message, if the core holds it.
    pub oldest_ms: Option<u64>,
    /// Messages acked through this core.
    pub acked: u64,
    /// What keeps the next message from being sent, if one waits.
    pub stall: Option<Stall>,
}

/// The one thing that keeps a message from being sent, or done, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// What.
    pub by: Stall,
    /// The message it waits for, of those this peer has, and when that was accepted.
    pub behind: Option<(MessageNumber, u64)>,
    /// When something happens by itself: the next dial, the next try, the end of the ack timeout.
    pub until: Option<Time>,
    /// What the other side or the operator said; empty if there is nothing to say.
    pub why: String,
}

/// Why a message could not be excluded. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotExcluded {
    /// It is done, parked, or was never this peer's.
    #[error("the message is not open for this peer")]
    NotOpen,
    /// Too many numbers ahead of the queue are excluded already; the peer has to read on first.
    #[error("too many messages are excluded ahead of the queue")]
    TooMany,
}

/// Where one message is, as far as the core holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// Waiting to be sent, here or in the journal only.
    Queued {
        /// Sent this often so far.
        attempts: u16,
    },
    /// In flight.
    Unacked {
        /// Sent this often, this one included.
        attempts: u16,
        /// When.
        since: Time,
    },
    /// Refused, waiting for its next try.
    Retrying {
        /// Sent this often.
        attempts: u16,
        /// When it is due; never in the past.
        next_attempt: Time,
        /// The last reason.
        reason: String,
    },
}
