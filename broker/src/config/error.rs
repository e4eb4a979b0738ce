//! Why a configuration cannot be used. Nothing has been opened or changed when one of these comes.

use std::fmt;
use std::path::PathBuf;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the documented default.
    Default,
    /// In a file, on this line (from 1).
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line of the key.
        line: usize,
    },
    /// In this environment variable.
    Environment(String),
    /// By this flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(variable) => write!(f, "environment {variable}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {error}; check the path given to --config", .path.display())]
    Unreadable {
        /// The file as it was named.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not TOML: {message}", .path.display())]
    Syntax {
        /// The file as it was named.
        path: PathBuf,
        /// The line of the error.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// No value has this key.
    #[error("{origin}: there is no setting {key:?}{}; `restante config show` lists them all", hint(.nearest))]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be read or lies outside its bounds.
    #[error("{origin}: {key} = {got}: {why}")]
    BadValue {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// The value as given.
        got: String,
        /// What was expected.
        why: String,
    },
    /// Values that are fine alone and not together.
    #[error("{origin}: {key}: {why}")]
    Conflict {
        /// Where the offending one was set.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What was expected.
        why: String,
    },
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |key| format!(" (did you mean {key}?)"))
}
