//! Control frames: one named MessagePack value each.

use super::LENGTH_BYTES;
use super::error::FrameError;
use crate::control::Control;
use crate::frame::{HEADER_BYTES, kind};
use crate::limits::{AGENT_BYTES_MAX, ALIASES_MAX, CONTROL_BYTES_MAX};
use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Deepest nesting of a control value. The deepest one of this version has 9 levels; unknown fields of
/// a later one are skipped down to here.
const DEPTH_MAX: usize = 32;

/// Appends a control frame.
///
/// # Errors
/// Nothing was appended: the value is over [`CONTROL_BYTES_MAX`].
pub fn put_control(out: &mut BytesMut, control: &Control) -> Result<(), FrameError> {
    let start = out.len();
    out.put_slice(&[0, 0, 0, 0, kind::CONTROL]);
    let written = rmp_serde::encode::write_named(&mut out.writer(), control);
    let bytes = out.len() - start - HEADER_BYTES;
    let outcome = match written {
        Err(error) => Err(FrameError::Control(error.to_string())),
        Ok(()) if bytes > CONTROL_BYTES_MAX => {
            Err(FrameError::TooLong { kind: kind::CONTROL, bytes, bytes_max: CONTROL_BYTES_MAX })
        }
        // At most CONTROL_BYTES_MAX + 1, which fits.
        Ok(()) => Ok((bytes + HEADER_BYTES - LENGTH_BYTES) as u32),
    };
    match outcome {
        Ok(length) => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Reads the body of a control frame. Unknown fields are skipped, unknown variants are an error.
///
/// # Errors
/// The bytes are not exactly one control value within its limits. Fatal to the connection, unless
/// [`request_number`] finds a request to be answered.
pub fn parse_control(body: &[u8]) -> Result<Control, FrameError> {
    if body.len() > CONTROL_BYTES_MAX {
        let (kind, bytes, bytes_max) = (kind::CONTROL, body.len(), CONTROL_BYTES_MAX);
        return Err(FrameError::TooLong { kind, bytes, bytes_max });
    }
    let mut unread = body;
    let control: Control =
        read(&mut unread).map_err(|error| FrameError::Control(error.to_string()))?;
    if !unread.is_empty() {
        return Err(FrameError::Control(format!("{} bytes follow the value", unread.len())));
    }
    check(&control)?;
    Ok(control)
}

/// The number of a request that [`parse_control`] could not read: an unknown one, or one with a value
/// that cannot be, such as a bad name. The asker can then be answered by name instead of being cut off.
#[must_use]
pub fn request_number(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Envelope {
        Request {
            id: u64,
            #[serde(rename = "request")]
            _request: serde::de::IgnoredAny,
        },
    }
    let Envelope::Request { id, .. } = read(&mut &body[..]).ok()?;
    Some(id)
}

/// Takes one value off the front of `bytes`.
fn read<T: DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, rmp_serde::decode::Error> {
    let mut deserializer = rmp_serde::Deserializer::new(bytes);
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut deserializer)
}

/// The bounds of what is not answered, so that breaking them can only end the connection.
fn check(control: &Control) -> Result<(), FrameError> {
    let agent = match control {
        Control::Hello(hello) => &hello.agent,
        Control::Welcome(welcome) => &welcome.agent,
        Control::Alias { alias, .. } if *alias >= ALIASES_MAX => {
            let detail = format!("alias {alias} is not below {ALIASES_MAX}");
            return Err(FrameError::Control(detail));
        }
        _ => return Ok(()),
    };
    if agent.len() > AGENT_BYTES_MAX || agent.chars().any(char::is_control) {
        let detail = format!("the agent is not at most {AGENT_BYTES_MAX} bytes of printable text");
        return Err(FrameError::Control(detail));
    }
    Ok(())
}
