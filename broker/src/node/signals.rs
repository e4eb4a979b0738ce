//! SIGTERM and SIGINT: the first asks the node to stop, the second ends the process.

use std::io;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// What a process that was ended by the second signal exits with.
const EXIT_CUT_SHORT: i32 = 1;

/// Listens for signals until the node has ended.
///
/// # Errors
/// The system does not let us.
pub(super) fn listen(stop: watch::Sender<bool>) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {}
                Some(()) = interrupt.recv() => {}
                else => return,
            }
            if stop.send_replace(true) {
                std::process::exit(EXIT_CUT_SHORT);
            }
        }
    })
}
