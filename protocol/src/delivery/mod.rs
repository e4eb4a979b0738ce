//! The delivery core: the state machine that carries messages to one peer.

pub mod types;
