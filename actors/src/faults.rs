//! Planted faults, for the crash tests. Compiled only with the feature `faults`, which release
//! builds do not have.

use parking_lot::Mutex;
use restante_protocol::id::MessageNumber;
use restante_protocol::name::Name;
use std::collections::HashSet;
use std::sync::OnceLock;

/// A message whose body contains the bytes of this environment variable panics its peer's actor; in
/// [`Place::Change`] a change to a peer whose name contains them.
pub const PANIC_ON: &str = "RESTANTE_FAULT_PANIC_ON";
/// Where it does: a [`Place`] in lower case; while it is made ready to be sent if this is not set.
pub const PANIC_IN: &str = "RESTANTE_FAULT_PANIC_IN";

/// What a peer's actor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Making a message ready to be sent.
    Transmit,
    /// Taking messages over from the router, or from the journal after that failed.
    Enqueue,
    /// Taking messages over from the journal.
    Load,
    /// Handing messages to the link.
    Send,
    /// Taking an ack.
    Ack,
    /// Recording what is done.
    Settle,
    /// Taking over what an operator has changed.
    Change,
}

struct Plan {
    mark: Vec<u8>,
    place: Place,
    /// Marked messages that have been sent: their acks have no body.
    sent: Mutex<HashSet<MessageNumber>>,
}

/// A message with this body is being handled here.
///
/// # Panics
/// If the message is one that was chosen to, and this the place.
pub fn with_body(place: Place, peer: &Name, body: &[u8]) {
    let Some(plan) = plan() else { return };
    let is_here = plan.place == place || (plan.place, place) == (Place::Enqueue, Place::Load);
    assert!(!(is_here && plan.hits(body)), "planted fault: a message to {peer} carries the mark");
}

/// This message is being made ready to be sent.
///
/// # Panics
/// If the message is one that was chosen to.
pub fn before_transmit(peer: &Name, number: MessageNumber, body: &[u8]) {
    with_body(Place::Transmit, peer, body);
    if let Some(plan) = plan().filter(|plan| plan.hits(body)) {
        plan.sent.lock().insert(number);
    }
}

/// A message that has been sent is being handled here.
///
/// # Panics
/// If the message is one that was chosen to, and this the place.
pub fn with_number(place: Place, peer: &Name, number: MessageNumber) {
    let Some(plan) = plan().filter(|plan| plan.place == place) else { return };
    let hit = plan.sent.lock().contains(&number);
    assert!(!hit, "planted fault: a message to {peer} carried the mark");
}

/// A change to this peer is being taken over.
///
/// # Panics
/// If the peer was chosen, and this the place.
pub fn on_change(peer: &Name) {
    let is_here = plan()
        .is_some_and(|plan| plan.place == Place::Change && plan.hits(peer.as_str().as_bytes()));
    assert!(!is_here, "planted fault: {peer} carries the mark");
}

fn plan() -> Option<&'static Plan> {
    static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
    let read = || {
        let mark = std::env::var(PANIC_ON).ok().filter(|mark| !mark.is_empty())?.into_bytes();
        let place = match std::env::var(PANIC_IN).as_deref() {
            Ok("enqueue") => Place::Enqueue,
            Ok("load") => Place::Load,
            Ok("send") => Place::Send,
            Ok("ack") => Place::Ack,
            Ok("settle") => Place::Settle,
            Ok("change") => Place::Change,
            _ => Place::Transmit,
        };
        Some(Plan { mark, place, sent: Mutex::default() })
    };
    PLAN.get_or_init(read).as_ref()
}

impl Plan {
    fn hits(&self, body: &[u8]) -> bool {
        body.windows(self.mark.len()).any(|window| window == self.mark)
    }
}
