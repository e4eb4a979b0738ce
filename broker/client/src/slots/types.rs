//! The phases of an attachment, and what goes in and out of the slots.

use crate::error::ReceiveError;
use bytes::Bytes;
use restante_protocol::control::AttachAs;
use restante_protocol::id::MessageId;
use restante_protocol::refusal::Refusal;
use std::time::Instant;

#[derive(Debug)]
pub(super) enum Phase {
    Wanted {
        not_before: Option<Instant>,
    },
    Asked {
        dropped: bool,
    },
    Attached,
    /// The first attach was refused; its caller takes the slot away.
    Refused(Refusal),
    /// Dropped by its owner; `asked`: the node has been told.
    Leaving {
        asked: bool,
        not_before: Option<Instant>,
    },
}

/// A delivery that waits to be taken.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) generation: u32,
    pub(crate) tag: u64,
    pub(crate) id: MessageId,
    pub(crate) epoch: u32,
    pub(crate) attempt: u16,
    pub(crate) redelivered: bool,
    /// The length of the chunk that the body is part of, if it is the first of that chunk here.
    pub(crate) pins: u32,
    pub(crate) body: Bytes,
}

/// What the driver asks the node for on behalf of the attachments.
#[derive(Debug, PartialEq)]
pub(crate) enum Ask {
    Attach(Vec<AttachAs>),
    Detach { slot: u32 },
}

/// What a reader finds.
#[derive(Debug)]
pub(crate) enum Taken {
    Items,
    Nothing,
    Trouble(ReceiveError),
    Over,
}
