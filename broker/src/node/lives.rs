//! One life of the node after another.
//!
//! A life ends when somebody stops the node, or when it cannot go on because its journal failed or
//! its router crashed. Then everything in memory is thrown away and the next life begins as every
//! boot does, from the journal; the doors stay bound and callers are told to come back. Only what
//! keeps the very first life from starting ends the program.

use super::life::{self, Ended};
use super::{Addresses, NodeError, announce, signals};
use crate::config::Config;
use crate::listen::tcp;
use actix_rt::System;
use restante_actors::admin::SetLogFilter;
use restante_actors::{clock, events};
use restante_protocol::time::WallMillis;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Wait before the second life; it doubles with each that was short.
const REBIRTH_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const REBIRTH_MAX: Duration = Duration::from_secs(30);
/// A life of this length starts the waits anew.
const LONG_LIFE: Duration = Duration::from_secs(60);

/// How long threads may go on that a life has left behind.
const LEFTOVERS_MAX: Duration = Duration::from_secs(1);

/// What is the same in every life.
pub(super) struct Lasting<'a> {
    pub(super) config: &'a Config,
    pub(super) set_log_filter: &'a SetLogFilter,
    pub(super) addresses: Addresses,
    /// Why the last life ended, and how long to wait before this one; `None` for the first.
    pub(super) reborn: Option<(String, Duration)>,
}

/// Runs the node on this thread until `stopped` holds true. `ready` is called once, when it serves;
/// `stop` is set by signals.
pub(super) fn run(
    config: &Config,
    set_log_filter: &SetLogFilter,
    stopped: &watch::Receiver<bool>,
    stop: Option<&watch::Sender<bool>>,
    ready: impl FnOnce(Addresses),
) -> Result<(), NodeError> {
    let data_dir = config.data_dir.to_string_lossy();
    events::node_starting(env!("CARGO_PKG_VERSION"), &data_dir, std::process::id());
    if let Some(path) = config.addr_file.as_deref() {
        announce::check_addr_file(path)?;
    }
    let door = bind(config)?;
    let tcp = door.local_addr().map_err(NodeError::System)?;
    if !tcp.ip().is_loopback() {
        events::listener_open(tcp);
    }
    let addresses = Addresses { tcp };
    let mut lasting = Lasting { config, set_log_filter, addresses, reborn: None };
    let mut ready = Some(|| {
        let written = config.addr_file.as_deref();
        let written = written.map_or(Ok(()), |path| announce::write_addr_file(path, &addresses));
        written.inspect(|()| {
            announce::ready();
            ready(addresses);
        })
    });
    let mut wait = REBIRTH_MIN;
    loop {
        let born = Instant::now();
        let first = lasting.reborn.is_none();
        let (why, unusable) = match one(&lasting, &door, stopped, stop, &mut ready) {
            Ok(Ended::Stopped) => return Ok(()),
            Err(error) if first => return Err(error),
            Ok(Ended::Failed(why)) => (why, false),
            Err(error) => (error.to_string(), true),
        };
        wait = if born.elapsed() >= LONG_LIFE { REBIRTH_MIN } else { (2 * wait).min(REBIRTH_MAX) };
        if unusable {
            events::journal_unusable(&why, WallMillis(clock::wall_of(clock::now() + wait)));
        }
        lasting.reborn = Some((why, wait));
    }
}

/// Actix and tokio anew for each life, so that nothing of the last one can linger.
fn one(
    lasting: &Lasting<'_>,
    door: &TcpListener,
    stopped: &watch::Receiver<bool>,
    stop: Option<&watch::Sender<bool>>,
    ready: &mut Option<impl FnOnce() -> Result<(), NodeError>>,
) -> Result<Ended, NodeError> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = Arc::new(runtime.enable_all().build().map_err(NodeError::System)?);
    let door = door.try_clone().map_err(NodeError::System)?;
    let system = System::with_tokio_rt(|| Arc::clone(&runtime));
    let ended = system.block_on(async {
        if let Some(stop) = stop {
            actix_rt::spawn(signals::listen(stop.clone()).map_err(NodeError::System)?);
        }
        life::live(lasting, door, stopped.clone(), ready).await
    });
    drop(system);
    // What blocks for longer, a sync of a dying disk or a look-up of a name, is left to itself.
    if let Some(runtime) = Arc::into_inner(runtime) {
        runtime.shutdown_timeout(LEFTOVERS_MAX);
    }
    ended
}

fn bind(config: &Config) -> Result<TcpListener, NodeError> {
    let address = config.tcp;
    tcp::bind(address).map_err(|error| NodeError::Listen { address, error })
}
