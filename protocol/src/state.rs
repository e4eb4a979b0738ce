//! What a node remembers beside its messages: events on their way to the journal, and the state that
//! checkpoints hold.

/// Why stored state cannot be taken. Nothing has changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Written by a later release.
    #[error(
        "the state is of format {format}, this release reads up to {format_max}; start the release that wrote it"
    )]
    Newer {
        /// What was found.
        format: u8,
        /// What is understood.
        format_max: u8,
    },
    /// Not what was written.
    #[error("the state cannot be read: {0}")]
    Unreadable(String),
    /// Cannot be written.
    #[error("the state cannot be written: {0}")]
    Unwritable(String),
    /// An event about a peer that does not follow from the state before it.
    #[error("an event about peer #{} does not follow from the state before it", .peer.0)]
    OutOfOrder {
        /// The peer.
        peer: crate::id::PeerId,
    },
}

impl StateError {
    pub(crate) fn unreadable(error: rmp_serde::decode::Error) -> StateError {
        StateError::Unreadable(error.to_string())
    }

    pub(crate) fn unwritable(error: rmp_serde::encode::Error) -> StateError {
        StateError::Unwritable(error.to_string())
    }
}
