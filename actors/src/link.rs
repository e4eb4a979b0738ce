//! The seam to the network: how peers reach their receivers and the router its producers.
//!
//! Everything here is called on the data arbiter and must not block. Implementations copy what they
//! are given into a buffer of the connection and flush once per turn of the event loop.

use crate::directory::Marks;
use crate::peer::Peer;
use actix::Addr;
use restante_protocol::admin::PeerUrl;
use restante_protocol::frame::{Confirm, Refuse, ReplyKind};
use restante_protocol::id::{MessageId, PeerId};
use restante_protocol::name::Name;
use restante_protocol::refusal::Refusal;
use std::sync::Arc;

/// A delivery as a link sends it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// See [`restante_protocol::frame::Deliver::tag`].
    pub tag: u64,
    /// See [`restante_protocol::frame::Deliver::attempt`].
    pub attempt: u16,
    /// See [`restante_protocol::frame::Deliver::redelivered`].
    pub redelivered: bool,
    /// See [`restante_protocol::frame::Deliver::id`].
    pub id: MessageId,
    /// See [`restante_protocol::message::Body`].
    pub body: &'a [u8],
}

/// One transport's connection to a receiver, as its peer actor uses it. A connection that carries
/// several receivers is several links.
pub trait Link: Send + Sync {
    /// Bytes this link takes now; what goes beyond is the caller's to hold back. A link that is
    /// congested answers 0 and sends the peer [`crate::peer::Writable`] once there is room again.
    fn room(&self) -> usize;

    /// Takes deliveries, in order. One that is larger than the room is taken all the same, if
    /// there was any room at all.
    fn transmit(&self, batch: &mut dyn Iterator<Item = Outgoing<'_>>);

    /// Ends the link. The receiver is told why, where the transport can say so. No
    /// [`crate::peer::LinkDown`] follows for a link its peer has closed.
    fn close(&self, why: &Refusal);
}

/// Opens links for peers whose URL says where to dial.
pub trait Dialer: Send + Sync {
    /// Starts one attempt. It ends in a [`crate::peer::LinkUp`] to `peer`, or in a
    /// [`crate::peer::LinkDown`], carrying the same link number. A link that its peer takes lives
    /// until it is closed. Bounded in time by the implementation.
    fn dial(&self, target: DialTarget, peer: Addr<Peer>);
}

/// What to dial.
#[derive(Clone)]
pub struct DialTarget {
    /// Who asks.
    pub id: PeerId,
    /// Under which name it is known.
    pub name: Name,
    /// Where it is.
    pub url: PeerUrl,
    /// Number of this attempt; the link's events carry it.
    pub link: u64,
    /// Where it says so while the attempt has to wait for its turn.
    pub marks: Arc<Marks>,
}

/// A connection that publishes, as the router uses it: where outcomes go.
///
/// Each call gives back the credit of the publishes it decides.
pub trait ProducerLink: Send + Sync {
    /// A run of messages is durable. `bytes` is the sum of their publish frames.
    fn confirm(&self, confirm: Confirm, bytes: u64);

    /// A publish was refused, wholly or in part.
    fn refuse(&self, refuse: &Refuse, bytes: u64);

    /// The end of a call: see [`restante_protocol::frame::Reply`].
    fn reply(&self, sequence: u64, kind: ReplyKind, value: &[u8]);

    /// A newer connection speaks for this producer: say so and close.
    fn supersede(&self);

    /// The outcome of this connection's undecided publishes cannot be told now: say why and close,
    /// so that the producer repeats them under the same sequences later.
    fn abandon(&self, why: &Refusal);

    /// Whether the connection is gone, so that nothing more need be said to it.
    fn is_closed(&self) -> bool;
}

/// A link or producer shared between its connection and an actor.
pub type SharedLink = Arc<dyn Link>;
/// See [`ProducerLink`].
pub type SharedProducer = Arc<dyn ProducerLink>;
