//! Names of peers, checked once at the door so that no log line, path or table need fear them.

use crate::limits::NAME_BYTES_MAX;
use crate::refusal::{Code, named};
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Deserializer, Serialize};
use std::sync::Arc;

/// The name of a receiver: 1 to 128 bytes of ASCII letters, digits, `.`, `_`, `-`, `@`, `:` and `+`,
/// starting with a letter or a digit.
///
/// `#` is reserved for removed peers (`name#id`), `/` and `,` for addresses. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(Arc<str>);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a name must have at least one character")]
    Empty,
    /// The text is longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most 128 bytes, this one has {bytes}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// A character that names do not have.
    #[error(
        "a name is made of letters, digits and . _ - @ : + and starts with a letter or digit; the byte at {at} is 0x{byte:02x}"
    )]
    BadByte {
        /// Offset of the first bad byte.
        at: usize,
        /// Its value.
        byte: u8,
    },
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong { bytes: text.len() });
        }
        for (at, byte) in text.bytes().enumerate() {
            let good = byte.is_ascii_alphanumeric() || (at > 0 && b"._-@:+".contains(&byte));
            if !good {
                return Err(NameError::BadByte { at, byte });
            }
        }
        Ok(Name(Arc::from(text)))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(|error| named(Code::BadName, &error))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl core::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}
