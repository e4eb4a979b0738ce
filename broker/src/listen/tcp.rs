//! The door of the native protocol.
//!
//! The task that accepts owns the tasks of the connections: ending it ends them, and none is left
//! behind. Past the bound a caller is told so and sent away; at a further bound, without a word.

use crate::connection::{self, Net};
use restante_actors::events::SWEEP_EVERY;
use restante_protocol::refusal::{Code, Refusal};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

/// Callers that are being told that there is no room for them.
const REFUSALS_MAX: usize = 256;
/// How long to wait when the system has no more sockets.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(100);
/// Connections the system keeps for us until they are accepted.
const BACKLOG: i32 = 4_096;

/// Binds the door, to stay bound through all lives of the node.
///
/// # Errors
/// As the system says.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old connections to fade.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Tells callers why they are not served yet. Never ends.
pub(crate) async fn turn_away(listener: &TcpListener, why: &Refusal) {
    let mut refusals = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if refusals.len() < REFUSALS_MAX => match accepted {
                Ok((stream, _)) => {
                    refusals.spawn_local(connection::refuse(stream, why.clone()));
                }
                Err(error) => if is_exhausted(&error) { sleep(EXHAUSTED_WAIT).await },
            },
            Some(_) = refusals.join_next() => {}
        }
    }
}

/// Accepts until the doors close, then serves on until all connections have ended.
pub(crate) async fn run(listener: TcpListener, net: Rc<Net>) {
    let mut connections = JoinSet::new();
    let mut refusals = JoinSet::new();
    let mut sweeps = interval(SWEEP_EVERY);
    loop {
        tokio::select! {
            _ = sweeps.tick() => net.tell_unsaid(),
            accepted = listener.accept() => match accepted {
                Ok((stream, remote)) => {
                    let under = connections.len() < net.settings.connections_max;
                    if under {
                        connections.spawn_local(serve(stream, remote, Rc::clone(&net)));
                    } else if refusals.len() < REFUSALS_MAX {
                        refusals.spawn_local(connection::refuse(stream, full(&net)));
                    }
                }
                // One caller's failure, or too many open files: neither ends the door.
                Err(error) => if is_exhausted(&error) { sleep(EXHAUSTED_WAIT).await },
            },
            // A connection that panicked has told its peers while it was dropped.
            Some(_) = connections.join_next() => {}
            Some(_) = refusals.join_next() => {}
            () = net.doors_closed() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, remote: SocketAddr, net: Rc<Net>) {
    // Small frames must not wait for others; on failure they do.
    let _ = stream.set_nodelay(true);
    connection::serve(stream, remote, net).await;
}

fn full(net: &Net) -> Refusal {
    let detail = format!("the node serves {} connections already", net.settings.connections_max);
    Refusal::new(Code::LimitReached, detail)
}

/// Whether trying again at once would fail again.
fn is_exhausted(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
