//! The verdict on a peer: one of six words, since when, and why.
//!
//! ```text
//! paused       an operator holds it
//! failed       late three rounds in a row; stands until it answers or the next dial fails
//! unreachable  no link, one after another that proves nothing, or one that was lost so often lately that
//!              to call it up would be news every other moment; deliveries go on as ever
//! slow         linked, but what is late was not followed by any answer
//! refusing     linked, but the last three answers were refusals
//! up           linked, and none of the above
//! ```

use super::link::Link;
use crate::status::Health;
use crate::time::Time;

/// Refusals in a row at which a peer is called refusing.
pub(super) const REFUSING_AT: u32 = 3;
/// Rounds of late messages in a row at which a peer is called failed.
pub(super) const FAILED_AT: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) health: Health,
    pub(super) since: Time,
    pub(super) why: String,
    /// The first verdict is news even if it is the one a core starts with.
    is_told: bool,
}

impl Verdict {
    pub(super) fn new(now: Time, paused: bool) -> Verdict {
        let health = if paused { Health::Paused } else { Health::Unreachable };
        Verdict { health, since: now, why: String::new(), is_told: paused }
    }

    /// Whether the news should be told.
    pub(super) fn set(&mut self, now: Time, health: Health, why: &str) -> bool {
        if self.why != why {
            why.clone_into(&mut self.why);
        }
        if self.health == health && self.is_told {
            return false;
        }
        if self.health != health {
            self.since = now;
        }
        self.health = health;
        self.is_told = true;
        true
    }
}

/// What follows from what is known.
pub(super) fn judge(now: Time, paused: bool, link: &Link) -> Health {
    match () {
        () if paused => Health::Paused,
        () if link.has_failed => Health::Failed,
        () if !link.is_up() || link.is_flapping => Health::Unreachable,
        () if link.losses.calm_at(now).is_some() => Health::Unreachable,
        () if link.is_stalled => Health::Slow,
        () if link.refusals >= REFUSING_AT => Health::Refusing,
        () => Health::Up,
    }
}
