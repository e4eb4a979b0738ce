//! The brokers that are compared, and the bare relay that is the limit of this machine's loopback.
//!
//! A subject knows how its server is started, how receivers are made known to it, and how a producer
//! and a receiver greet it; everything else is the same for all. Each file says how its server is
//! configured and why that is what its users would do for this job: no message may be forgotten
//! before its receiver has acked it.

pub(crate) mod mosquitto;
pub(crate) mod nats;
pub(crate) mod rabbit;
pub(crate) mod redis;
pub(crate) mod relay;
pub(crate) mod restante;

use super::engine::Connected;
use super::failure::Result;
use super::server::{Scratch, Server};
use super::shape::Shape;
use std::ops::Range;

/// What a confirm is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confirms {
    /// It comes after the sync to disk.
    Synced,
    /// It comes before.
    Unsynced,
    /// There is no disk: a limit, not a broker.
    Nothing,
}

/// A broker in one configuration.
pub(crate) trait Subject {
    /// As the table calls it.
    fn name(&self) -> &'static str;

    fn confirms(&self) -> Confirms;

    /// How its program is installed, if it is not there.
    fn missing(&self) -> Option<String>;

    /// A server on a fresh directory.
    fn start(&self, scratch: Scratch) -> Result<Server>;

    /// Makes all receivers known, so that what is published before one of them is there waits for it.
    fn prepare(&self, port: u16, shape: &Shape) -> Result<()>;

    /// Connects producer `index`.
    fn producer(&self, port: u16, shape: &Shape, index: u16) -> Result<Connected>;

    /// Connects receivers, which then receive.
    fn receivers(&self, port: u16, shape: &Shape, receivers: Range<u32>) -> Result<Connected>;

    /// Why it cannot carry a load, if it cannot.
    fn unable(&self, shape: &Shape) -> Option<&'static str> {
        let _ = shape;
        None
    }
}

/// Every subject, in the order of the table.
pub(crate) fn all(restante: &std::path::Path) -> Vec<Box<dyn Subject>> {
    vec![
        Box::new(restante::Restante::new(restante)),
        Box::new(redis::Redis::ALWAYS),
        Box::new(redis::Redis::EVERYSEC),
        Box::new(nats::Nats::ALWAYS),
        Box::new(nats::Nats::DEFAULT),
        Box::new(rabbit::Rabbit::QUORUM),
        Box::new(rabbit::Rabbit::CLASSIC),
        Box::new(mosquitto::Mosquitto),
        Box::new(relay::Relay),
    ]
}
