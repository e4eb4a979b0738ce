//! A node's week on a virtual clock: hundreds of peers, producers and the journal on a simulated disk,
//! while everything happens to them that happens in a week, and a judge who knows what was promised.
//!
//! ```text
//!  producer ─publish─► node: producers, quotas ─Batch─► journal on a disk that crashes ─ durable ─► confirm
//!  (repeats what is       │                                                               │
//!   undecided)            └──────────── core per peer ◄── hand-over, pages ◄──────────────┘
//!                                           │ ▲
//!                                  frames   ▼ │  acks, nacks, nothing
//!                               line (latency, silence, loss) ── receiver (temper, weather)
//! ```
//!
//! What ships and is driven here: [`Delivery`](restante_protocol::delivery::Delivery), one per peer;
//! [`NodeState`](restante_protocol::state::NodeState), the peers and producers, replayed at each boot;
//! the [journal](restante_journal::simulated), all of it but its threads. What stands in for something:
//! [`shell`] for the peer's actor and [`node`] for the router; where the two could differ stands at
//! their top. Nothing here waits, and nothing is random but by the seed: the same seed is the same week.
//!
//! The [`judge`] is told of everything that passes between those parts and believes none of them: what was
//! confirmed, sent, answered and recorded, by message and receiver. It knows nothing of how a core
//! does what it does.

mod judge;
mod net;
mod node;
mod plan;
mod post;
mod producer;
mod receiver;
mod shell;
mod world;

pub use judge::Report;
pub use plan::Scale;

/// Lives through the time that `scale` and `seed` describe, and until everything is done.
///
/// # Panics
/// A promise is broken: with the seed and the last things that happened to the peer concerned.
#[must_use]
pub fn live(seed: u64, scale: Scale) -> Report {
    world::World::new(seed, scale).run()
}
