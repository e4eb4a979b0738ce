//! Planted faults, for the crash tests. Compiled only with the feature `faults`, which release
//! builds do not have.

use restante_protocol::name::Name;
use std::sync::OnceLock;

/// A delivery whose body contains the bytes of this environment variable panics its peer's actor.
pub const PANIC_ON: &str = "RESTANTE_FAULT_PANIC_ON";

/// Panics if the message is one that was chosen to.
///
/// # Panics
/// On purpose.
pub fn before_transmit(peer: &Name, body: &[u8]) {
    static MARK: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    let mark = MARK.get_or_init(|| std::env::var(PANIC_ON).ok().map(String::into_bytes));
    let Some(mark) = mark.as_deref().filter(|mark| !mark.is_empty()) else { return };
    let hit = body.windows(mark.len()).any(|window| window == mark);
    assert!(!hit, "planted fault: a message to {peer} carries the mark");
}
