//! A connection that this node opened, because a peer's URL says where its receiver is.

use super::accept::Begin;
use super::closing;
use super::handshake::{self, HandshakeError};
use super::net::Net;
use super::outbox::OutboxLink;
use super::slots::Slots;
use actix::Addr;
use bytes::BytesMut;
use restante_actors::events;
use restante_actors::link::DialTarget;
use restante_actors::peer::{LinkUp, Peer};
use restante_protocol::control::{Control, Credit, NodeLife, Welcome};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// A receiver that has said welcome.
pub(crate) struct Introduced {
    stream: TcpStream,
    remote: SocketAddr,
    welcome: Welcome,
    /// What was read behind the welcome.
    rest: BytesMut,
}

/// Introduces the node to a receiver.
///
/// # Errors
/// The receiver does not speak the protocol, refuses, or takes too long (`TimedOut`).
pub(crate) async fn introduce(
    mut stream: TcpStream,
    target: &DialTarget,
    node: NodeLife,
    deadline: Instant,
) -> io::Result<Introduced> {
    let mut rest = BytesMut::new();
    match timeout_at(deadline, greet(&mut stream, &mut rest, target, node)).await {
        Ok(Ok(welcome)) => {
            let remote = stream.peer_addr()?;
            Ok(Introduced { stream, remote, welcome, rest })
        }
        Ok(Err(HandshakeError::Io(error))) => Err(error),
        Ok(Err(error)) => {
            let why = error.to_string();
            if let HandshakeError::Refused(refusal) = error {
                // It may read it or not; nobody waits.
                let goodbye = handshake::send_control(&mut stream, Control::Goodbye(refusal));
                let _ = timeout_at(deadline, goodbye).await;
            }
            Err(io::Error::other(why))
        }
        Err(_) => {
            let detail = "connected, but no welcome came in time";
            Err(io::Error::new(io::ErrorKind::TimedOut, detail))
        }
    }
}

impl Introduced {
    /// Offers the link to its peer and serves the connection to its end. The peer hears of that
    /// end, unless it did not want the link any more.
    pub(crate) async fn serve(mut self, target: &DialTarget, peer: Addr<Peer>, net: Rc<Net>) {
        let registered = net.register();
        let connection = registered.outbox.connection();
        let link = OutboxLink::dialled(&registered.outbox, target.link);
        let mut slots = Slots::default();
        slots.insert_dialled(Arc::clone(&link), peer.clone());
        let grant = self.welcome.grant;
        let up = LinkUp { link, number: target.link, dialled: true, grant };
        match peer.send(up).await {
            Ok(Ok(_first_tag)) => {}
            Ok(Err(refusal)) => {
                slots.remove(0, target.link);
                return closing::say_goodbye(&mut self.stream, refusal).await;
            }
            // The peer is gone.
            Err(_) => return,
        }
        let Introduced { stream, remote, welcome, rest } = self;
        events::connection_opened(connection, remote, &welcome.agent, None);
        let (heartbeat, silence) = pulse(&welcome, &net);
        let begin = Begin {
            remote,
            agent: &welcome.agent,
            producer: None,
            granted: Credit::default(),
            heartbeat,
            silence,
            slots,
            rest,
        };
        begin.connection(stream, registered, Rc::clone(&net)).serve(None).await;
    }
}

async fn greet(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
    target: &DialTarget,
    node: NodeLife,
) -> Result<Welcome, HandshakeError> {
    let hello = Control::Hello(handshake::hello_as(target.name.clone(), node));
    handshake::send_control(stream, hello).await?;
    handshake::check_welcome(handshake::first_control(stream, buffer).await?)
}

/// The receiver's times, within what this node allows itself: at least a tenth of a second between
/// heartbeats, and silence for no longer than its own limit or ten minutes.
fn pulse(welcome: &Welcome, net: &Net) -> (Duration, Duration) {
    let silence_ms_max = net.settings.silence_ms_max.max(600_000);
    let silence_ms = welcome.silence_ms_max.clamp(200, silence_ms_max);
    let heartbeat_ms = welcome.heartbeat_ms.clamp(100, silence_ms / 2);
    let ms = |ms: u32| Duration::from_millis(u64::from(ms));
    (ms(heartbeat_ms), ms(silence_ms))
}
