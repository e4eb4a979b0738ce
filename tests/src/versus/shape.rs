//! What a load looks like, whichever broker carries it.

use std::time::Duration;

/// Who a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Routing {
    /// One receiver, in turn.
    One,
    /// Every receiver.
    All,
}

/// When a message is due.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// When one before it has been confirmed, with so many unconfirmed at most per producer.
    Closed(u64),
    /// When all before it have been confirmed and delivered.
    Lone,
    /// So many a second over all producers, whether or not the broker keeps up.
    Open(f64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) producers: u16,
    pub(crate) receivers: u32,
    /// The receivers from 0 up to this one are connected; the others are known and absent.
    pub(crate) present: u32,
    /// Receivers that share a connection.
    pub(crate) receivers_per_connection: u32,
    pub(crate) routing: Routing,
    /// Bytes of a payload.
    pub(crate) size: usize,
    pub(crate) pace: Pace,
    /// No more than so many messages altogether.
    pub(crate) messages: u64,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            producers: 8,
            receivers: 10,
            present: 10,
            receivers_per_connection: 1,
            routing: Routing::One,
            size: 256,
            pace: Pace::Closed(1_000),
            messages: u64::MAX,
        }
    }
}

impl Shape {
    /// Receivers of a message.
    pub(crate) fn fanout(&self) -> u32 {
        match self.routing {
            Routing::One => 1,
            Routing::All => self.receivers,
        }
    }

    /// The receivers of each receiving connection, those that are absent apart from the others.
    pub(crate) fn connections(&self, receivers: std::ops::Range<u32>) -> Vec<std::ops::Range<u32>> {
        let step = self.receivers_per_connection.max(1);
        let end = receivers.end;
        receivers.step_by(step as usize).map(|first| first..(first + step).min(end)).collect()
    }
}

/// How long things are measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warmup: Duration,
    pub(crate) window: Duration,
    /// How long what was published may take to arrive afterwards.
    pub(crate) drain: Duration,
}
