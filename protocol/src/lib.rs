//! The pure core of Restante: what is said on the wire, what a node remembers, and the state
//! machine that carries one message to one receiver.
//!
//! Nothing here performs I/O, reads a clock or draws a random number: time and randomness are
//! arguments. `PROTOCOL.md` beside this crate documents every byte on the wire.

pub mod admin;
pub mod anchors;
pub mod codec;
pub mod control;
pub mod delivery;
pub mod forecast;
pub mod frame;
pub mod id;
pub mod job;
pub mod limits;
pub mod message;
pub mod name;
pub mod pace;
pub mod producers;
pub mod record;
pub mod refusal;
pub mod registry;
pub mod shaper;
pub mod state;
pub mod status;
pub mod stored;
pub mod time;
