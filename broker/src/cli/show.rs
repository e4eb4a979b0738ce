//! Times, states and health as people read them.

use super::output::Paint;
use restante_protocol::status::{Blocked, Health, MessageState, PeerStatus, Stall, Taking};
use restante_protocol::time::WallMillis;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) type Cell = (Option<Paint>, String);

pub(super) fn now() -> WallMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// How long ago: `3s`, `4m10s`, `2h5m`, `3d4h`.
pub(super) fn age(then: WallMillis, now: WallMillis) -> String {
    span(now.0.saturating_sub(then.0))
}

/// `in 3s`, or `now`.
pub(super) fn until(then: WallMillis, now: WallMillis) -> String {
    match then.0.saturating_sub(now.0) {
        0 => "now".to_owned(),
        ms => format!("in {}", span(ms)),
    }
}

fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    let two = |big, big_unit, small, small_unit| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        0 => format!("{ms}ms"),
        1..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

pub(super) fn health(health: Health) -> Cell {
    let paint = match health {
        Health::Up => Paint::Green,
        Health::Slow | Health::Refusing | Health::Paused => Paint::Yellow,
        Health::Unreachable | Health::Failed | Health::Crashing => Paint::Red,
    };
    (Some(paint), health.word().to_owned())
}

pub(super) const PEER_HEAD: &[&str] =
    &["NAME", "HEALTH", "SINCE", "WAITING", "UNACKED", "PARKED", "OLDEST", "NEXT", "URL", "WHY"];

/// A peer under [`PEER_HEAD`].
pub(super) fn peer(peer: &PeerStatus, now: WallMillis) -> Vec<Cell> {
    let time = |time: Option<WallMillis>, shown: fn(WallMillis, WallMillis) -> String| {
        time.map_or_else(|| "-".to_owned(), |time| shown(time, now))
    };
    vec![
        (Some(Paint::Bold), peer.name.clone()),
        health(peer.health),
        (None, age(peer.since, now)),
        (None, peer.waiting.to_string()),
        (None, peer.unacked.to_string()),
        ((peer.parked > 0).then_some(Paint::Yellow), peer.parked.to_string()),
        (None, time(peer.oldest, age)),
        (None, time(peer.next_attempt, until)),
        (None, peer.url.to_string()),
        (Some(Paint::Dim), why(peer)),
    ]
}

/// Why a peer is not up; of one that is, what its next message waits for.
fn why(peer: &PeerStatus) -> String {
    let why = match peer.stall {
        Some(what) if peer.why.is_empty() => stall(what),
        _ => &peer.why,
    };
    let taking = match (peer.taking, peer.delayed) {
        (Taking::Open, _) => return why.to_owned(),
        (Taking::Draining, delayed @ 1..) => format!("draining, {delayed} delayed"),
        (taking, _) => taking.word().to_owned(),
    };
    match why {
        "" => taking,
        why => format!("{taking}; {why}"),
    }
}

/// What keeps a peer's next message, in words.
fn stall(stall: Stall) -> &'static str {
    match stall {
        Stall::Paused => "held by an operator",
        Stall::Crashing => "its actor crashes and is held for a while",
        Stall::Link => "no connection",
        Stall::Grant => "the receiver has not asked for more",
        Stall::Window => "the window is full: as much is in flight as may be",
        Stall::Ramp => "fewer at a time, until the receiver has kept up for a while",
        Stall::Suspect => "a message that may have crashed the receiver is tried alone",
        Stall::Rate => {
            "as many have left lately as its rate allows, or that of its class or of the node"
        }
        Stall::Journal => "being read from the journal",
        Stall::Keys => "an earlier message of the same key goes first",
        Stall::Refusals => "refused, and waits for its next try",
        Stall::Ack => "sent, and not acked yet",
    }
}

/// What a message waits for, in words.
pub(super) fn blocked(blocked: &Blocked, now: WallMillis) -> String {
    let mut said = stall(blocked.by).to_owned();
    if let Some(behind) = blocked.behind {
        said += &format!(" ({behind})");
    }
    // Of a pause the words are the reason.
    if !blocked.why.is_empty() && blocked.by != Stall::Paused {
        said += &format!(": {}", blocked.why);
    }
    let next = match blocked.by {
        Stall::Link => "next attempt",
        Stall::Ack => "sent again",
        Stall::Rate => "not before",
        _ => "next try",
    };
    match blocked.until {
        Some(at) => format!("{said}; {next} {}", until(at, now)),
        None => said,
    }
}

/// When a delayed message's time comes.
pub(super) fn delay(until: WallMillis, now: WallMillis) -> String {
    format!("its producer delayed it; due {}", self::until(until, now))
}

/// Until when a message is still sent, as the end of a sentence.
pub(super) fn expiry(expires: WallMillis, now: WallMillis) -> String {
    match expires > now {
        true => format!("; expires {}", until(expires, now)),
        false => "; its time to live has ended, and it expires when its turn comes".to_owned(),
    }
}

/// The stable word of a state, as in JSON.
pub(super) fn state_word(state: &MessageState) -> &'static str {
    match state {
        MessageState::Delayed { .. } => "delayed",
        MessageState::Queued => "queued",
        MessageState::InFlight { .. } => "in_flight",
        MessageState::Retrying { .. } => "retrying",
        MessageState::Acked { .. } => "acked",
        MessageState::Parked { .. } => "parked",
        MessageState::Expired { .. } => "expired",
        MessageState::Purged { .. } => "purged",
        MessageState::Replayed { .. } => "replayed",
        MessageState::Moved { .. } => "moved",
        MessageState::Done => "done",
    }
}

/// A state and what there is to say about it: when, and why or what.
pub(super) fn state(state: &MessageState) -> (Cell, Option<WallMillis>, String) {
    let (paint, at, what) = match state {
        MessageState::Delayed { until } => (Paint::Yellow, Some(*until), String::new()),
        MessageState::Queued => (Paint::Yellow, None, String::new()),
        MessageState::InFlight { since } => (Paint::Yellow, Some(*since), String::new()),
        MessageState::Retrying { next_attempt, reason } => {
            (Paint::Yellow, Some(*next_attempt), reason.clone())
        }
        MessageState::Acked { at, value } => {
            let value = String::from_utf8_lossy(value.as_deref().unwrap_or_default());
            let what = if value.is_empty() { String::new() } else { format!("answered {value:?}") };
            (Paint::Green, Some(*at), what)
        }
        MessageState::Parked { at, reason } => (Paint::Red, Some(*at), reason.clone()),
        MessageState::Expired { at } => (Paint::Red, Some(*at), String::new()),
        MessageState::Purged { at, by } => {
            let what = by.as_ref().map_or_else(String::new, |by| format!("by {by}"));
            (Paint::Red, Some(*at), what)
        }
        MessageState::Replayed { at } => (Paint::Dim, Some(*at), String::new()),
        MessageState::Moved { at, to } => (Paint::Dim, Some(*at), format!("to {to}")),
        MessageState::Done => (Paint::Dim, None, "how is no longer kept".to_owned()),
    };
    ((Some(paint), state_word(state).to_owned()), at, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_waits_for_is_said_with_what_goes_first_and_when() {
        let says = |by, until: Option<u64>, why: &str| {
            let (until, why) = (until.map(WallMillis), why.to_owned());
            blocked(&Blocked { by, behind: None, until, why }, WallMillis(1_000))
        };
        assert_eq!(
            says(Stall::Link, Some(13_000), "connection refused"),
            "no connection: connection refused; next attempt in 12s"
        );
        assert_eq!(
            says(Stall::Refusals, Some(61_000), "busy"),
            "refused, and waits for its next try: busy; next try in 1m"
        );
        assert_eq!(says(Stall::Ack, Some(900), ""), "sent, and not acked yet; sent again now");
        assert_eq!(says(Stall::Paused, None, "held by an operator"), "held by an operator");
    }

    #[test]
    fn ages_have_the_two_units_that_matter() {
        let at = |ms| age(WallMillis(0), WallMillis(ms));
        assert_eq!(
            [at(17), at(59_999), at(60_000), at(250_000), at(7_500_000), at(273_600_000)],
            ["17ms", "59s", "1m", "4m10s", "2h5m", "3d4h"]
        );
        assert_eq!(until(WallMillis(5_000), WallMillis(1_000)), "in 4s");
        assert_eq!(until(WallMillis(5), WallMillis(10)), "now");
    }
}
