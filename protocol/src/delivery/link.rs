//! What is known of the link: whether there is one, and what it has proved.

use super::window::Ramp;
use crate::time::Time;
use core::time::Duration;

/// How long a link has to stay up, with nothing unanswered, to count as proof without any answer.
pub(super) const STABLE_US: u64 = 10_000_000;

/// The grant of a receiver that has not granted anything: the window alone counts.
const UNGRANTED: u64 = u64::MAX;

/// Whether there is a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkState {
    /// No; the next dial, if one is due, is in the backoff.
    Down,
    /// The shell is dialling.
    Dialling,
    /// Yes.
    Up,
}

/// See the module. What an answer of the receiver resets is reset in one place,
/// `Delivery::recover`, and [`Link::is_steady`] says when that has nothing to do.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) state: LinkState,
    pub(super) up_since: Time,
    /// Deliveries up to this tag are granted.
    pub(super) grant: u64,
    /// An ack or nack came, or it stayed up: the backoff starts afresh.
    pub(super) is_proven: bool,
    /// A message was acked since the link came up or went silent.
    pub(super) is_probed: bool,
    /// A message under suspicion is in flight.
    pub(super) is_alone: bool,
    /// The window is still opening.
    pub(super) ramp: Option<Ramp>,
    /// When the receiver last answered.
    pub(super) last_answer: Time,
    /// Rounds of late messages without an answer.
    pub(super) late_rounds: u32,
    /// A late message counts as a new round if it was sent at this time or later.
    pub(super) round_from: Time,
    /// When lateness last shrank the window.
    pub(super) shrunk_at: Time,
    /// Late messages, and nothing answered since they were sent.
    pub(super) is_stalled: bool,
    /// Nacks without an ack between them.
    pub(super) refusals: u32,

    // What outlives one link.
    /// It was given up for lateness and has proved nothing since.
    pub(super) has_failed: bool,
    /// The last link was lost before it proved anything.
    pub(super) is_flapping: bool,
    /// There was an outage since the last proof: the next link starts with a probe.
    pub(super) had_outage: bool,
    /// When it was lost lately after it had proved something.
    pub(super) losses: Losses,
}

/// Losses of a link that had proved something, within [`FLAPPING_WITHIN`], at which what comes and goes is
/// called flapping. One that proves nothing is not called up in the first place.
pub(super) const FLAPPING_AT: usize = 6;
/// See [`FLAPPING_AT`].
pub(super) const FLAPPING_WITHIN: Duration = Duration::from_secs(60);

/// When a link was lost, the last times.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    at: [Option<Time>; FLAPPING_AT],
    /// The place of the oldest, which the next one takes.
    next: usize,
}

impl Losses {
    pub(super) fn note(&mut self, now: Time) {
        self.at[self.next] = Some(now);
        self.next = (self.next + 1) % FLAPPING_AT;
    }

    /// Until when there have been too many, if that is later than now.
    pub(super) fn calm_at(&self, now: Time) -> Option<Time> {
        let oldest = self.at[self.next]?;
        Some(oldest + FLAPPING_WITHIN).filter(|calm| *calm > now)
    }
}

impl Link {
    pub(super) fn new() -> Link {
        Link {
            state: LinkState::Down,
            up_since: Time::ZERO,
            grant: 0,
            is_proven: false,
            is_probed: false,
            is_alone: false,
            ramp: None,
            last_answer: Time::ZERO,
            late_rounds: 0,
            round_from: Time::ZERO,
            shrunk_at: Time::ZERO,
            is_stalled: false,
            refusals: 0,
            has_failed: false,
            is_flapping: false,
            had_outage: false,
            losses: Losses::default(),
        }
    }

    #[inline]
    pub(super) fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// A link came up.
    pub(super) fn open(&mut self, now: Time, grant: Option<u64>, probe: bool) {
        *self = Link {
            state: LinkState::Up,
            up_since: now,
            grant: grant.map_or(UNGRANTED, granted),
            ramp: probe.then_some(Ramp::PROBE),
            last_answer: now,
            has_failed: self.has_failed,
            is_flapping: self.is_flapping,
            had_outage: self.had_outage,
            losses: self.losses,
            ..Link::new()
        };
    }

    /// Deliveries up to this tag are granted, and those that were before; a first grant bounds what
    /// nothing bounded.
    pub(super) fn raise_grant(&mut self, tag: u64) {
        let before = if self.grant == UNGRANTED { 0 } else { self.grant };
        self.grant = before.max(granted(tag));
    }

    /// The link is gone, whoever ended it.
    pub(super) fn close(&mut self) {
        *self = Link {
            has_failed: self.has_failed,
            is_flapping: self.is_flapping,
            had_outage: true,
            losses: self.losses,
            ..Link::new()
        };
    }

    /// Whether an ack changes nothing but the time of the last answer.
    #[inline]
    pub(super) fn is_steady(&self) -> bool {
        self.is_proven
            && self.is_probed
            && !self.is_alone
            && self.ramp.is_none()
            && self.late_rounds == 0
            && self.refusals == 0
    }

    /// When staying up becomes proof, if that would change anything. Ask only with nothing in flight.
    pub(super) fn stable_at(&self) -> Option<Time> {
        let matters = self.is_up() && !self.is_proven && (self.is_flapping || self.has_failed);
        matters.then_some(Time(self.up_since.0.saturating_add(STABLE_US)))
    }

    /// The receiver proved itself.
    pub(super) fn prove(&mut self) {
        self.is_proven = true;
        self.has_failed = false;
        self.is_flapping = false;
        self.had_outage = false;
    }
}

/// A grant of everything is one too, and never taken back. No tag comes as far.
fn granted(tag: u64) -> u64 {
    tag.min(UNGRANTED - 1)
}
