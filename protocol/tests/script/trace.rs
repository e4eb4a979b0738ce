//! Outputs of a delivery core in words. Runs of the same kind become one line.

use restante_protocol::delivery::{
    Blocked, CloseReason, Expired, LinkCommand, Load, Parked, Report, Settled, Snapshot, Transmit,
    Whereabouts,
};
use restante_protocol::time::Time;

/// Lines not taken yet, and the status said last.
#[derive(Default)]
pub(super) struct Trace {
    lines: Vec<String>,
    run: Option<Run>,
    status: String,
}

/// Numbers, and tags if they are sent, that ascend together by one.
struct Run {
    what: &'static str,
    tags: Option<(u64, u64)>,
    numbers: (u64, u64),
    rest: String,
}

impl Trace {
    pub(super) fn say(&mut self, line: String) {
        self.end_run();
        self.lines.push(line);
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        self.end_run();
        std::mem::take(&mut self.lines)
    }

    pub(super) fn settled(&mut self, settled: &Settled) {
        let times = if settled.attempts == 1 { "" } else { &times(settled.attempts) };
        self.extend("done", None, settled.number, times.to_owned());
    }

    pub(super) fn expired(&mut self, expired: &Expired) {
        let Expired { number, attempts, .. } = expired;
        assert_eq!(expired.accepted_ms, *number, "another message's time");
        let times = if *attempts == 0 { "" } else { &times(*attempts) };
        self.extend("expired", None, *number, times.to_owned());
    }

    pub(super) fn parked(&mut self, parked: &Parked) {
        let Parked { number, attempts, reason, .. } = parked;
        self.say(format!("parked {number}{}: {reason}", times(*attempts)));
    }

    pub(super) fn command(&mut self, command: LinkCommand) {
        self.say(match command {
            LinkCommand::Dial => "dial".to_owned(),
            LinkCommand::Close(CloseReason::Late) => "close: late".to_owned(),
            LinkCommand::Close(CloseReason::Paused) => "close: paused".to_owned(),
            LinkCommand::Close(CloseReason::Changed) => "close: changed".to_owned(),
        });
    }

    pub(super) fn transmit(&mut self, transmit: &Transmit<u64>) {
        let Transmit { tag, number, attempt, redelivered, body, .. } = transmit;
        assert_eq!((number, *number), (body, transmit.accepted_ms), "another message's body");
        let mut rest = if *attempt == 1 { String::new() } else { format!(", attempt {attempt}") };
        rest += if *redelivered { ", redelivered" } else { "" };
        self.extend("send", Some(*tag), *number, rest);
    }

    pub(super) fn load(&mut self, load: &Load) {
        let Load { after, through, bytes_max, messages_max } = load;
        let size = match bytes_max {
            0x40_0000 => String::new(),
            _ => format!(", {bytes_max} B"),
        };
        self.say(format!("load {}..{through}, at most {messages_max}{size}", after + 1));
    }

    pub(super) fn report(&mut self, report: &Report) {
        self.say(match report {
            Report::Verdict { health, since, why, next_attempt } => {
                let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
                let next = next_attempt.map(|at| format!(", next try at {}", time(at)));
                format!(
                    "! {} since {}{why}{}",
                    health.word(),
                    time(*since),
                    next.unwrap_or_default()
                )
            }
            Report::DialFailed { failures, why, next_attempt } => {
                format!("! failed {failures} times ({why}), next try at {}", time(*next_attempt))
            }
            Report::Late { messages, first, in_a_row, .. } => {
                format!("! {messages} late from {first} on, round {in_a_row}")
            }
            Report::Refused { number, attempts, next_attempt, reason, .. } => {
                let next = time(*next_attempt);
                format!("! {number} refused{} ({reason}), next try at {next}", times(*attempts))
            }
            Report::OddAck { tag } => format!("! odd ack of tag {tag}"),
        });
    }

    /// Says how things stand, if they have changed.
    pub(super) fn status(&mut self, snapshot: &Snapshot, floor: u64, deadline: Option<Time>) {
        let mut status = format!("= {}", snapshot.health.word());
        if snapshot.waiting > 0 || snapshot.waiting_bytes > 0 {
            status += &format!(", {} waiting", snapshot.waiting);
            if snapshot.waiting_bytes != 100 * snapshot.waiting {
                status += &format!(" ({} B)", snapshot.waiting_bytes);
            }
        }
        if snapshot.unacked > 0 {
            status += &format!(", {} unacked", snapshot.unacked);
        }
        if snapshot.retrying > 0 {
            status += &format!(", {} retrying", snapshot.retrying);
        }
        if let Some(stall) = snapshot.stall {
            status += &format!(", stalled by {}", stall.word());
        }
        if floor > 0 {
            status += &format!(", floor {floor}");
        }
        if let Some(at) = deadline {
            status += &format!(", due at {}", time(at));
        }
        if self.status != status {
            self.status.clone_from(&status);
            self.say(status);
        }
    }

    fn extend(&mut self, what: &'static str, tag: Option<u64>, number: u64, rest: String) {
        if let Some(run) = &mut self.run
            && run.what == what
            && run.rest == rest
            && run.numbers.1 + 1 == number
            && run.tags.is_none_or(|tags| Some(tags.1 + 1) == tag)
        {
            run.numbers.1 = number;
            run.tags = run.tags.map(|tags| (tags.0, tags.1 + 1));
            return;
        }
        self.end_run();
        let tags = tag.map(|tag| (tag, tag));
        self.run = Some(Run { what, tags, numbers: (number, number), rest });
    }

    fn end_run(&mut self) {
        let Some(Run { what, tags, numbers, rest }) = self.run.take() else { return };
        let tags = tags.map(|tags| format!(" as {}", range(tags))).unwrap_or_default();
        self.lines.push(format!("{what} {}{tags}{rest}", range(numbers)));
    }
}

pub(super) fn time(time: Time) -> String {
    match (time.0 / 1_000, time.0 % 1_000) {
        (ms, 0) => format!("{ms} ms"),
        (ms, us) => format!("{ms}.{us:03} ms"),
    }
}

pub(super) fn whereabouts(found: &Whereabouts) -> String {
    match found {
        Whereabouts::Queued { attempts } => format!("queued{}", times(*attempts)),
        Whereabouts::Unacked { attempts, since } => {
            format!("unacked since {}{}", time(*since), times(*attempts))
        }
        Whereabouts::Retrying { attempts, next_attempt, reason } => {
            let next = time(*next_attempt);
            format!("retrying at {next}{}: {reason}", times(*attempts))
        }
    }
}

pub(super) fn blocked(blocked: &Blocked) -> String {
    let mut said = format!("waits for {}", blocked.by.word());
    if let Some((number, _)) = blocked.behind {
        said += &format!(", behind {number}");
    }
    if let Some(until) = blocked.until {
        said += &format!(", until {}", time(until));
    }
    match blocked.why.as_str() {
        "" => said,
        why => format!("{said}: {why}"),
    }
}

pub(super) fn snapshot(snapshot: &Snapshot) -> Vec<String> {
    let Snapshot { health, since, why, .. } = snapshot;
    let mut lines = vec![format!("health {} since {} ({why})", health.word(), time(*since))];
    lines.push(format!("waiting {}, {} B", snapshot.waiting, snapshot.waiting_bytes));
    lines.push(format!("unacked {}, retrying {}", snapshot.unacked, snapshot.retrying));
    lines.push(format!("acked {}, oldest {:?}", snapshot.acked, snapshot.oldest_ms));
    let next = snapshot.next_attempt.map_or("none".to_owned(), time);
    lines.push(format!("dial failures {}, next try {next}", snapshot.dial_failures));
    lines
}

fn range((first, last): (u64, u64)) -> String {
    if first == last { first.to_string() } else { format!("{first}..{last}") }
}

fn times(attempts: u16) -> String {
    match attempts {
        0 => ", never sent".to_owned(),
        1 => ", sent once".to_owned(),
        n => format!(", sent {n} times"),
    }
}
