//! The node as a whole: from a configuration to open doors, and back.
//!
//! ```text
//! run, Node::start ─► lives.rs: one life after another ─► life.rs: boot, serve, stop
//!                         │ the doors stay bound              │ journal off the arbiters
//!                         │ between them                      │ router, peers, connections here
//!                         └ a journal that failed ends        │ admin, observer, health on the
//!                           a life, not the node              │ second arbiter
//! ```
//!
//! The thread that runs it is the data arbiter. A program may start several nodes, each on a thread
//! of its own.

mod announce;
mod life;
mod lives;
pub(crate) mod open_files;
mod signals;
mod sizing;
mod watchdog;

use crate::config::Config;
use restante_actors::admin::SetLogFilter;
use restante_journal::OpenError;
pub(crate) use sizing::options as journal_options;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Where a running node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The native protocol.
    pub tcp: SocketAddr,
}

/// Why a node did not start or did not stop in order. Nothing that was confirmed is lost.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used; nothing in it was changed.
    #[error(transparent)]
    DataDir(#[from] OpenError),
    /// What the data directory holds cannot be understood; nothing in it was changed.
    #[error("the node's state cannot be restored: {0}")]
    State(String),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address}: {error}; {}, or choose another address (port 0 takes a free one)",
        listen_remedy(.error)
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The file for the addresses cannot be written.
    #[error("cannot write the addresses to {}: {error}; choose another --addr-file", .path.display())]
    AddrFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The system gives no threads, timers or sockets.
    #[error("the system refuses what a node needs: {0}; look at its limits")]
    System(#[source] io::Error),
    /// A defect: the node's thread ended without a word.
    #[error("the node's thread ended by itself; look at the log before this and report it")]
    Defect,
}

fn listen_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there",
        io::ErrorKind::PermissionDenied => {
            "give the node the right to it (below 1024: CAP_NET_BIND_SERVICE)"
        }
        io::ErrorKind::AddrNotAvailable => "use an address that this machine has",
        _ => "look at the system's log",
    }
}

impl NodeError {
    /// A stable word for the kind of this error.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            NodeError::DataDir(error) => error.word(),
            NodeError::State(_) => "bad_state",
            NodeError::Listen { .. } => "cannot_listen",
            NodeError::AddrFile { .. } => "cannot_write_addr_file",
            NodeError::System(_) => "system",
            NodeError::Defect => "defect",
        }
    }

    /// Whether it is the data directory that cannot be used: exit code 8.
    #[must_use]
    pub fn is_data_dir(&self) -> bool {
        matches!(self, NodeError::DataDir(_) | NodeError::State(_))
    }
}

/// Runs a node on this thread until SIGTERM or SIGINT, then stops it in order. A second signal ends
/// the process at once. Raises the process's limit of open files as far as it may be.
///
/// # Errors
/// The node could not be started.
pub fn run(config: Config, set_log_filter: SetLogFilter) -> Result<(), NodeError> {
    open_files::raise_limit();
    let (stop, stopped) = watch::channel(false);
    lives::run(&config, &set_log_filter, &stopped, Some(&stop), |_| {})
}

/// A node inside a program, on a thread of its own. Dropping it stops it in order.
///
/// ```
/// use restante::config::Config;
/// use restante::node::Node;
/// use restante_client::{AttachOptions, Client, Publish};
/// use std::error::Error;
///
/// fn main() -> Result<(), Box<dyn Error>> {
///     let dir = tempfile::tempdir()?;
///     let node = Node::start(Config {
///         data_dir: dir.path().join("data"),
///         tcp: ([127, 0, 0, 1], 0).into(),
///         journal_segment_bytes: 4 * 1024 * 1024,
///         ..Config::default()
///     })?;
///     let addr = node.tcp().to_string();
///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
///     runtime.block_on(async {
///         let client = Client::connect(addr).await?;
///         let mut inbox = client.attach("inbox", AttachOptions::default()).await?;
///         client.publish(Publish::to(["inbox"]).payload("hello")).await?.await?;
///         let delivery = inbox.next().await.ok_or("the client has ended")??;
///         assert_eq!(delivery.payload, "hello");
///         delivery.ack();
///         client.flush().await?;
///         Ok::<_, Box<dyn Error>>(())
///     })?;
///     node.stop()?;
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Node {
    addresses: Addresses,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<Result<(), NodeError>>>,
}

impl Node {
    /// Starts a node and waits until it serves. Its log goes wherever the program's does; signals
    /// are the program's own.
    ///
    /// # Errors
    /// The node could not be started; nothing of it is left running.
    pub fn start(config: Config) -> Result<Node, NodeError> {
        let (stop, stopped) = watch::channel(false);
        let (ready, started) = mpsc::sync_channel(1);
        let serve = move || {
            let set_log_filter: SetLogFilter =
                Arc::new(|_| Err("this node logs through the program it runs in".to_owned()));
            let tell = move |addresses| {
                // The starter waits for it, or has gone.
                let _ = ready.try_send(addresses);
            };
            lives::run(&config, &set_log_filter, &stopped, None, tell)
        };
        let thread = std::thread::Builder::new()
            .name("restante-node".to_owned())
            .spawn(serve)
            .map_err(NodeError::System)?;
        match started.recv() {
            Ok(addresses) => Ok(Node { addresses, stop, thread: Some(thread) }),
            // It ended before it was ready.
            Err(_) => Err(join(thread).err().unwrap_or(NodeError::Defect)),
        }
    }

    /// Where it is reached.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Where the native protocol is spoken.
    #[must_use]
    pub fn tcp(&self) -> SocketAddr {
        self.addresses.tcp
    }

    /// Stops it in order and waits for that: at most a little longer than `shutdown_ms_max`.
    ///
    /// # Errors
    /// The node had ended by itself.
    pub fn stop(mut self) -> Result<(), NodeError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), NodeError> {
        self.stop.send_replace(true);
        self.thread.take().map_or(Ok(()), join)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whoever wants to know calls stop.
        let _ = self.end();
    }
}

fn join(thread: JoinHandle<Result<(), NodeError>>) -> Result<(), NodeError> {
    thread.join().unwrap_or(Err(NodeError::Defect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_a_port_depends_on_what_is_wrong_with_it() {
        let address = ([127, 0, 0, 1], 80).into();
        for (kind, remedy) in [
            (io::ErrorKind::AddrInUse, "stop what listens there"),
            (io::ErrorKind::PermissionDenied, "give the node the right to it"),
            (io::ErrorKind::AddrNotAvailable, "an address that this machine has"),
        ] {
            let said = NodeError::Listen { address, error: kind.into() }.to_string();
            assert!(said.contains(remedy) && said.contains("127.0.0.1:80"), "{said}");
        }
    }
}
