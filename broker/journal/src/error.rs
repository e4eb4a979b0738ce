//! Why a data directory cannot be used.

use std::io;

/// The journal was not opened. Nothing has been changed in the data directory, except where a
/// variant says so. The program ends with exit code 8.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the lock.
    #[error(
        "the data directory {path} is in use by another process; expected to be its only owner; stop the other node or choose another --data-dir"
    )]
    Locked {
        /// The directory.
        path: String,
    },
    /// The directory or a file in it cannot be written.
    #[error(
        "{path} cannot be written ({detail}); expected a directory this user may write; change its owner or choose another --data-dir"
    )]
    ReadOnly {
        /// What could not be written.
        path: String,
        /// What the system said.
        detail: String,
    },
    /// The files are not a journal's.
    #[error(
        "{path} does not belong to a journal ({detail}); expected an empty directory or one that a node made; choose another --data-dir"
    )]
    Foreign {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// A file was written by a newer version of this program.
    #[error(
        "{path} has format version {version}, this program knows up to {known}; start the version that wrote it, or a newer one"
    )]
    Newer {
        /// The file.
        path: String,
        /// Its version.
        version: u32,
        /// The newest version this program knows.
        known: u32,
    },
    /// A record is sound and says something that this program does not understand: a newer one wrote it.
    #[error(
        "{path} at byte {at}: record {number}, of kind {kind}, is sound and not understood; start the version that wrote it, or a newer one"
    )]
    NotUnderstood {
        /// The segment.
        path: String,
        /// Where the record begins in it.
        at: u64,
        /// The record's number.
        number: u64,
        /// The number of its kind.
        kind: u8,
    },
    /// A file that cannot be done without is damaged. Nothing has been deleted.
    #[error(
        "{path} is damaged ({detail}); expected an intact file; restore it from a backup, or look at the disk"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// No room for the first segments.
    #[error(
        "the disk of {path} has no room for {needed_bytes} bytes of log; free space or choose another --data-dir"
    )]
    Full {
        /// The directory.
        path: String,
        /// How much is needed.
        needed_bytes: u64,
    },
    /// Options that contradict each other.
    #[error("{detail}; see `restante config show`")]
    BadOptions {
        /// Which, and what was expected.
        detail: String,
    },
    /// Anything else the system said.
    #[error("{path}: {source}; look at the disk and the system's log")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    /// A stable word for the kind of this error.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            OpenError::Locked { .. } => "locked",
            OpenError::ReadOnly { .. } => "read_only",
            OpenError::Foreign { .. } => "foreign",
            OpenError::Newer { .. } => "newer",
            OpenError::NotUnderstood { .. } => "not_understood",
            OpenError::Damaged { .. } => "damaged",
            OpenError::Full { .. } => "full",
            OpenError::BadOptions { .. } => "bad_options",
            OpenError::Io { .. } => "io",
        }
    }

    pub(super) fn io(path: &str, source: io::Error) -> OpenError {
        match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::ReadOnly { path: path.to_owned(), detail: source.to_string() }
            }
            io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            // Only a directory is ever asked to be new.
            | io::ErrorKind::AlreadyExists => {
                OpenError::Foreign { path: path.to_owned(), detail: source.to_string() }
            }
            _ => OpenError::Io { path: path.to_owned(), source },
        }
    }
}
