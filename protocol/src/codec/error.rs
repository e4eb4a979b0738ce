//! What can be wrong with a frame.

use crate::limits::RECEIVERS_MAX;
use crate::message::BodyError;
use crate::name::NameError;
use crate::refusal::{Code, Refusal, code_of};

/// The other side does not speak this protocol. State is untouched: frames before this one stand,
/// nothing after it is read. Say goodbye with [`FrameError::refusal`] and close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of zero.
    #[error("a frame of no bytes; expected at least its type")]
    Empty,
    /// A type of a later version, or no frame at all.
    #[error("frame type 0x{0:02x} is unknown")]
    UnknownKind(u8),
    /// Longer than a frame of this type may be.
    #[error("a frame of type 0x{kind:02x} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong {
        /// The frame's type.
        kind: u8,
        /// Its length, or that of its variable part.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Shorter than its fixed fields or counts say.
    #[error("a frame of type 0x{0:02x} ends before its fields do")]
    Truncated(u8),
    /// Longer than its fixed fields.
    #[error("a frame of type 0x{0:02x} has bytes after its last field")]
    Trailing(u8),
    /// A count that disagrees with the length.
    #[error(
        "a frame of type 0x{kind:02x} counts {count} entries, which is not what its length says"
    )]
    CountMismatch {
        /// The frame's type.
        kind: u8,
        /// The count.
        count: usize,
    },
    /// More entries than allowed.
    #[error("a frame of type 0x{kind:02x} has {count} entries, at most {count_max} are allowed")]
    TooMany {
        /// The frame's type.
        kind: u8,
        /// The count.
        count: usize,
        /// The limit.
        count_max: usize,
    },
    /// Flag bits of a later version.
    #[error(
        "the flags 0x{flags:02x} of frame type 0x{kind:02x} have bits this version does not know"
    )]
    UnknownFlags {
        /// The frame's type.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// A field with a value it cannot have.
    #[error("{value} is no value of the field '{field}' of frame type 0x{kind:02x}")]
    BadValue {
        /// The frame's type.
        kind: u8,
        /// The field.
        field: &'static str,
        /// What stood there.
        value: u8,
    },
    /// A refusal code of a later version.
    #[error("{0} is no refusal code of this version")]
    UnknownCode(u16),
    /// An ack range whose end lies before its start.
    #[error("the ack range {first} to {last} ends before it starts")]
    BadRange {
        /// First tag.
        first: u64,
        /// Last tag.
        last: u64,
    },
    /// An ack range that does not lie above the one before it: each tag is named once, so that a frame
    /// costs no more than what it acks.
    #[error("the ack range from {first} follows one that goes to {before}")]
    RangesOutOfOrder {
        /// Last tag of the range before.
        before: u64,
        /// First tag.
        first: u64,
    },
    /// A confirm of no message, or past the last sequence.
    #[error("a confirm of {count} messages from sequence {first_sequence} is no run")]
    BadRun {
        /// First sequence.
        first_sequence: u64,
        /// How many.
        count: u32,
    },
    /// A name that names may not be.
    #[error("a name in a frame of type 0x{kind:02x} is none: {error}")]
    BadName {
        /// The frame's type.
        kind: u8,
        /// What is wrong with it.
        error: NameError,
    },
    /// A text that is not UTF-8.
    #[error("the text in a frame of type 0x{0:02x} is not UTF-8")]
    NotUtf8(u8),
    /// A control frame that does not hold the one value it should.
    #[error("a control frame cannot be read: {0}")]
    Control(String),
}

impl FrameError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            FrameError::TooLong { .. } | FrameError::TooMany { .. } => Code::TooLarge,
            FrameError::UnknownKind(_)
            | FrameError::UnknownFlags { .. }
            | FrameError::UnknownCode(_) => Code::Unsupported,
            FrameError::Control(text) => code_of(text).unwrap_or(Code::Malformed),
            _ => Code::Malformed,
        }
    }

    /// What to say in the goodbye.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.code(), self.to_string())
    }
}

/// Why a publish that is whole as a frame is not taken. Nothing was stored; its sequence is consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishFault {
    /// More payload than this node takes.
    #[error("the payload has at least {bytes_min} bytes, this node takes at most {bytes_max}")]
    PayloadTooLarge {
        /// A lower bound where the frame was refused before it was read.
        bytes_min: usize,
        /// The node's limit.
        bytes_max: usize,
    },
    /// Flag bits of a later version.
    #[error("the publish flags 0x{0:02x} have bits this version does not know")]
    UnknownFlags(u8),
    /// The body section is not one.
    #[error(transparent)]
    Body(BodyError),
    /// An original id, which only a node sets when it hands a message over, or a delay that is over.
    #[error(
        "the body claims an original id, or to have been delayed; producers leave those flags out"
    )]
    OriginalId,
    /// Receivers in the body, which only a node sets for a message that waits for its time.
    #[error("the body's options name receivers; producers leave that option out")]
    Receivers,
    /// No receiver is named.
    #[error("the publish names no receiver, expected 1 to {RECEIVERS_MAX}")]
    NoReceiver,
    /// More receivers than one publish may name.
    #[error("the publish names {0} receivers, expected 1 to {RECEIVERS_MAX}")]
    TooManyReceivers(usize),
}

impl PublishFault {
    /// The stable code of this fault.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            PublishFault::PayloadTooLarge { .. }
            | PublishFault::TooManyReceivers(_)
            | PublishFault::Body(BodyError::HeadersTooLong(_)) => Code::TooLarge,
            PublishFault::UnknownFlags(_)
            | PublishFault::Body(BodyError::UnknownFlags(_) | BodyError::UnknownOptions(_)) => {
                Code::Unsupported
            }
            PublishFault::Body(
                BodyError::Truncated
                | BodyError::EmptyKey
                | BodyError::NoOptions
                | BodyError::BadTtl(_)
                | BodyError::BadDelay(_)
                | BodyError::BadDeliverAt(_)
                | BodyError::DelayedTwice,
            )
            | PublishFault::Receivers
            | PublishFault::OriginalId => Code::Malformed,
            PublishFault::NoReceiver => Code::NoReceiver,
        }
    }

    /// What to say in the refuse frame.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.code(), self.to_string())
    }
}
