//! The first frame of each side.
//!
//! ```text
//! dialler                      acceptor
//!    │ ── hello(versions) ────►   │  within `hello_ms_max`
//!    │                            │  identity opened, epoch assigned
//!    │ ◄──── welcome(version) ──  │  or goodbye(refusal) and close
//! ```

use super::Settings;
use bytes::{Buf, BytesMut};
use restante_actors::router::OpenedProducer;
use restante_protocol::codec::{self, Limits, Next, next_frame};
use restante_protocol::control::{Control, Credit, Hello, NodeLife, Welcome};
use restante_protocol::frame::Frame;
use restante_protocol::limits::PROTOCOL_VERSION;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What this program calls itself in hellos and welcomes.
pub(crate) const AGENT: &str = concat!("restante/", env!("CARGO_PKG_VERSION"));

/// Room for one read of a connection that has not introduced itself.
const FIRST_READ_BYTES: usize = 1_024;

/// Why two sides did not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// What the other side said is not acceptable; it is to be told.
    #[error("{0}")]
    Refused(Refusal),
    /// The other side has said goodbye.
    #[error("the other side refuses: {0}")]
    Goodbye(Refusal),
    /// The other side closed the connection or the socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Refusal> for HandshakeError {
    fn from(refusal: Refusal) -> HandshakeError {
        HandshakeError::Refused(refusal)
    }
}

/// Reads the first frame of the other side, which must be a control frame. What was read behind it
/// stays in `buffer`.
pub(super) async fn first_control(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<Control, HandshakeError> {
    loop {
        match next_frame(buffer, &Limits::BEFORE_HELLO).map_err(|error| error.refusal())? {
            Next::Frame { frame: Frame::Control(body), consumed } => {
                let control = codec::parse_control(body).map_err(|error| error.refusal())?;
                buffer.advance(consumed);
                return Ok(control);
            }
            Next::Frame { frame: Frame::Heartbeat, consumed } => buffer.advance(consumed),
            Next::Frame { .. } | Next::Refused(_) => return Err(out_of_turn().into()),
            Next::Partial { .. } => {
                buffer.reserve(FIRST_READ_BYTES);
                if stream.read_buf(buffer).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
    }
}

fn out_of_turn() -> Refusal {
    Refusal::new(Code::OutOfTurn, "the first frame must be a hello, or a welcome in answer to it")
}

/// Sends one control frame and waits until the socket has taken it.
pub(super) async fn send_control(stream: &mut TcpStream, control: Control) -> io::Result<()> {
    let mut frame = BytesMut::new();
    codec::put_control(&mut frame, &control).map_err(io::Error::other)?;
    stream.write_all(&frame).await
}

/// Checks a hello, as an acceptor. The version to be spoken.
pub(super) fn negotiate(hello: &Hello) -> Result<u16, Refusal> {
    if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
        return Err(Refusal::new(
            Code::VersionMismatch,
            format!(
                "this node speaks protocol version {PROTOCOL_VERSION}, the hello offers {} to {}",
                hello.version_min, hello.version_max
            ),
        ));
    }
    if hello.deliver_as.is_some() {
        return Err(Refusal::new(
            Code::Unsupported,
            "deliver_as is for receivers that are dialled, this is a node",
        ));
    }
    if hello.login.is_some() {
        return Err(Refusal::new(Code::Unsupported, "this node has no logins; leave login out"));
    }
    Ok(PROTOCOL_VERSION)
}

/// The answer to a hello that was accepted.
pub(super) fn welcome(
    settings: &Settings,
    version: u16,
    epoch: u32,
    producer: Option<OpenedProducer>,
) -> Welcome {
    Welcome {
        version,
        agent: AGENT.to_owned(),
        epoch,
        producer_epoch: producer.map_or(0, |opened| opened.session.epoch),
        next_sequence: producer.map_or(0, |opened| opened.next_sequence),
        credit: if producer.is_some() { settings.credit } else { Credit::default() },
        payload_bytes_max: settings.payload_bytes_max as u64,
        heartbeat_ms: settings.heartbeat_ms,
        silence_ms_max: settings.silence_ms_max,
        grant: None,
    }
}

/// What a node says to a receiver it has dialled.
pub(super) fn hello_as(name: Name, node: NodeLife) -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        agent: AGENT.to_owned(),
        producer: None,
        unused_from: None,
        deliver_as: Some(name),
        node: Some(node),
        login: None,
    }
}

/// Checks a dialled receiver's answer.
pub(super) fn check_welcome(control: Control) -> Result<Welcome, HandshakeError> {
    match control {
        Control::Welcome(welcome) if welcome.version == PROTOCOL_VERSION => Ok(welcome),
        Control::Welcome(welcome) => {
            let detail = format!(
                "the welcome chose protocol version {}, the hello offered {PROTOCOL_VERSION}",
                welcome.version
            );
            Err(Refusal::new(Code::VersionMismatch, detail).into())
        }
        Control::Goodbye(refusal) => Err(HandshakeError::Goodbye(refusal)),
        _ => Err(out_of_turn().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_protocol::id::NodeTag;

    fn hello(version_min: u16, version_max: u16) -> Hello {
        let node = NodeLife { tag: NodeTag(7), epoch: 1 };
        let hello = hello_as("x".parse().unwrap(), node);
        Hello { version_min, version_max, deliver_as: None, node: None, ..hello }
    }

    fn refused(hello: &Hello) -> Code {
        negotiate(hello).unwrap_err().code
    }

    #[test]
    fn versions_must_overlap() {
        assert_eq!(negotiate(&hello(1, 1)), Ok(1));
        assert_eq!(negotiate(&hello(0, 9)), Ok(1));
        assert_eq!(refused(&hello(2, 9)), Code::VersionMismatch);
        assert_eq!(refused(&hello(0, 0)), Code::VersionMismatch);
        assert_eq!(refused(&hello(9, 0)), Code::VersionMismatch);
    }

    #[test]
    fn what_this_node_has_not_is_refused_by_name() {
        let login = Hello { login: Some("secret".into()), ..hello(1, 1) };
        assert_eq!(refused(&login), Code::Unsupported);
        let receiver = Hello { deliver_as: Some("a".parse().unwrap()), ..hello(1, 1) };
        assert_eq!(refused(&receiver), Code::Unsupported);
    }

    #[test]
    fn a_goodbye_in_place_of_a_welcome_is_told_as_such() {
        let goodbye = Control::Goodbye(Refusal::new(Code::Overloaded, "later"));
        assert!(matches!(check_welcome(goodbye), Err(HandshakeError::Goodbye(_))));
        let odd = Control::Hello(hello(1, 1));
        assert!(matches!(check_welcome(odd), Err(HandshakeError::Refused(_))));
    }
}
