//! The async Rust client of Restante, a message broker that never drops a message.
//!
//! A [`Client`] is one connection to a node that restores itself: it publishes, receives, calls,
//! watches and administers. A [`Listener`] is a receiver that nodes dial. Both need a tokio runtime
//! and nothing else.
//!
//! # A quick start
//!
//! ```no_run
#![doc = include_str!("../examples/quick_start.rs")]
//! ```

mod acks;
mod aliases;
mod call;
mod client;
mod delivery;
mod desk;
mod doorbell;
mod driver;
mod epochs;
pub mod error;
mod intake;
mod listener;
mod options;
mod outbox;
mod producer;
mod publish;
mod slots;
mod subscription;
mod watch;
mod wire;

pub use client::{Client, LinkState, Stored};
pub use delivery::{Delivery, Nack};
pub use error::{
    AttachError, CallError, ConnectError, DrainError, EndReason, PublishError, ReceiveError,
    Refused, RequestError, WatchError,
};
pub use intake::Settled;
pub use listener::{ListenOptions, Listener};
pub use options::{BufferBounds, Builder, Reconnect};
pub use publish::{Confirmed, Publish, Receipt, Route};
pub use subscription::{AttachOptions, Subscription};
pub use watch::Watch;

pub use bytes::Bytes;
pub use restante_protocol as protocol;
