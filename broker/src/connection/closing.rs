//! How a connection ends: with a reason, and without taking anybody's time.

use super::End;
use super::drive::Connection;
use super::handshake::send_control;
use bytes::BytesMut;
use restante_actors::events;
use restante_protocol::control::Control;
use restante_protocol::id::ProducerId;
use restante_protocol::refusal::{Code, Refusal};
use std::future::poll_fn;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// How long the last words may take to be sent.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// How long, and for how many bytes, the other side is listened to after that. Closing a socket with
/// unread bytes resets the connection, and a reset overtakes the goodbye.
const LINGER_MAX: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Writes down why a connection ended.
pub(super) fn report(connection: &Connection, producer: Option<ProducerId>, end: &End) {
    let (net, remote) = (&connection.net, connection.remote);
    let number = connection.registered.outbox.connection();
    match (end, producer) {
        (End::Refused(Refusal { code: Code::ProducerSuperseded, .. }), Some(producer)) => {
            net.admit(remote, "producer_superseded", |suppressed| {
                events::producer_superseded(producer, number, remote, suppressed);
            });
        }
        (End::Refused(refusal), _) if is_fault(refusal.code) => {
            net.admit(remote, "bad_frame", |suppressed| {
                events::bad_frame(number, remote, &refusal.to_string(), suppressed);
            });
        }
        _ => {}
    }
    let why = end.why();
    net.admit(remote, "connection_closed", |suppressed| {
        events::connection_closed(number, remote, &why, suppressed);
    });
}

/// Whether the other side broke a rule of the protocol. Any other end is the node's own, or an operator's.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Malformed
            | Code::TooLarge
            | Code::OutOfTurn
            | Code::OverCredit
            | Code::Unsupported
            | Code::VersionMismatch
    )
}

/// Tells the peers at once, then the other side if it may still listen.
pub(super) async fn close(mut connection: Connection, end: End) {
    connection.slots.end(&end.why());
    let End::Refused(why) = end else { return };
    // A goodbye fits a control frame, and if not, closing says enough.
    let _ = connection.registered.outbox.say(&Control::Goodbye(why));
    let flush = poll_fn(|cx| connection.poll_flush(cx, Instant::now()));
    if matches!(timeout(FLUSH_MAX, flush).await, Ok(Ok(()))) {
        linger(&mut connection.stream).await;
    }
}

/// The same for somebody who was not let in.
pub(super) async fn say_goodbye(stream: &mut TcpStream, why: Refusal) {
    let said = send_control(stream, Control::Goodbye(why));
    if matches!(timeout(FLUSH_MAX, said).await, Ok(Ok(()))) {
        linger(stream).await;
    }
}

async fn linger(stream: &mut TcpStream) {
    let drain = async {
        stream.shutdown().await?;
        // On the heap: what an async function holds over an await, every connection would.
        let (mut waste, mut drained) = (BytesMut::with_capacity(4096), 0);
        while drained < LINGER_BYTES_MAX {
            waste.clear();
            match stream.read_buf(&mut waste).await? {
                0 => break,
                count => drained += count,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // Whoever keeps talking is cut off.
    let _ = timeout(LINGER_MAX, drain).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_accused_of_what_the_node_or_an_operator_does() {
        for code in [Code::Malformed, Code::VersionMismatch, Code::OverCredit] {
            assert!(is_fault(code), "{code:?}");
        }
        for code in [Code::Paused, Code::NotFound, Code::Overloaded, Code::OutcomeEvicted] {
            assert!(!is_fault(code), "{code:?}");
        }
    }
}
