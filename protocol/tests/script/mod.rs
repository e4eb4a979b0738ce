//! Drives one delivery core by words, and says in words what it does.

mod trace;

use core::num::NonZeroU64;
use core::time::Duration;
use restante_protocol::admin::{Order, PeerSettings};
use restante_protocol::delivery::{Delivery, Entry, Expiry, Load, ParkCause, Start};
use restante_protocol::message::KeyHash;
use restante_protocol::shaper::{Amount, Demand};
use restante_protocol::time::Time;
use std::collections::BTreeMap;
use trace::Trace;

/// A message as the scenario's journal keeps it.
#[derive(Clone, Copy)]
struct Stored {
    bytes: u32,
    key: Option<u64>,
    expires: Option<Expiry>,
    done: bool,
}

/// One scenario after the other; `> new` begins the next.
#[derive(Default)]
pub(super) struct Session {
    core: Option<Delivery<u64>>,
    now: Time,
    settings: PeerSettings,
    journal: BTreeMap<u64, Stored>,
    load: Option<Load>,
    trace: Trace,
}

impl Session {
    /// One line of a script.
    pub(super) fn input(&mut self, line: &str) -> Vec<String> {
        let mut words = line.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        match verb {
            "new" => self.begin(&rest),
            "restart" => self.restart(&rest),
            "wait" => return self.wait(duration(rest[0])),
            "explain" => return vec![self.explain(number(rest[0]))],
            "where" => return vec![self.whereabouts(number(rest[0]))],
            "show" => return self.show(),
            _ => self.event(verb, &rest),
        }
        self.drain()
    }

    fn core(&mut self) -> &mut Delivery<u64> {
        self.core.as_mut().expect("a scenario begins with `> new`")
    }

    fn begin(&mut self, words: &[&str]) {
        *self = Session::default();
        set(&mut self.settings, words);
        let dials = !words.contains(&"attach");
        let start = Start { dials, paused: words.contains(&"paused"), ..Start::default() };
        self.core = Some(Delivery::new(self.now, &self.settings, start, 1));
        self.core().handle_limited(words.contains(&"limited"));
    }

    fn restart(&mut self, words: &[&str]) {
        set(&mut self.settings, words);
        let open = || self.journal.iter().filter(|(_, message)| !message.done);
        let newest = self.journal.keys().last().copied().unwrap_or(0);
        let start = Start {
            floor: open().next().map_or(newest, |(number, _)| number - 1),
            newest,
            messages: open().count() as u64,
            bytes: open().map(|(_, message)| u64::from(message.bytes)).sum(),
            maybe_sent: option(words, "maybe").map_or(0, number),
            paused: words.contains(&"paused"),
            dials: true,
            knows_since: Some("the node started"),
        };
        self.load = None;
        self.core = Some(Delivery::new(self.now, &self.settings, start, 1));
        self.core().handle_limited(words.contains(&"limited"));
    }

    /// Time passes; the core is called at each of its deadlines, as a shell would.
    fn wait(&mut self, duration: Duration) -> Vec<String> {
        let until = self.now + duration;
        let mut lines = Vec::new();
        for _ in 0..1_000 {
            let Some(at) = self.core().next_deadline().filter(|at| *at <= until) else {
                self.now = until;
                return lines;
            };
            self.now = self.now.max(at);
            let now = self.now;
            self.core().handle_timeout(now);
            lines.push(format!("at {}", trace::time(now)));
            lines.extend(self.drain());
        }
        panic!("a core that is due a thousand times is never done");
    }

    fn event(&mut self, verb: &str, words: &[&str]) {
        let now = self.now;
        let first = words.first().copied().unwrap_or_default();
        match verb {
            "enqueue" => self.enqueue(words),
            "missed" => self.missed(words),
            "loaded" => self.loaded(words),
            "load-failed" => {
                self.load = None;
                self.core().handle_load_failed(now);
            }
            "up" => {
                let tag = option(words, "tag").map_or(1, number);
                self.core().handle_link_up(now, tag, option(words, "grant").map(number));
            }
            "lost" => self.core().handle_link_down(now, &words.join(" "), true),
            "dial-failed" => self.core().handle_link_down(now, &words.join(" "), false),
            "ack" => {
                let (first, last) = range(first);
                self.core().handle_ack(now, first, last);
            }
            "value" => {
                let settled = self.core().handle_ack_value(now, number(first));
                self.trace.say(match settled {
                    Some(number) => format!("the value is of {number}"),
                    None => "the value is of nothing".to_owned(),
                });
            }
            "nack" => self.nack(words),
            "grant" => self.core().handle_grant(now, number(first)),
            "timeout" => self.core().handle_timeout(now),
            "policy" => {
                set(&mut self.settings, words);
                let settings = self.settings.clone();
                self.core().handle_policy(now, &settings);
            }
            "pause" => self.core().handle_pause(now),
            "resume" => self.core().handle_resume(now),
            "address" => self.core().handle_address_changed(now, first == "dials"),
            "exclude" => {
                let bytes = self.journal.get(&number(first)).map_or(0, |message| message.bytes);
                let reason = words[1..].join(" ");
                let end = self.core().handle_exclude(
                    now,
                    number(first),
                    bytes,
                    ParkCause::Poison,
                    &reason,
                );
                end.unwrap_or_else(|error| self.trace.say(format!("not excluded: {error}")));
            }
            "end-elsewhere" => {
                self.journal.get_mut(&number(first)).expect("it was enqueued").done = true;
            }
            "limited" => self.core().handle_limited(true),
            "unlimited" => self.core().handle_limited(false),
            "demand" => {
                let Demand { amount, first_bytes } = self.core().poll_demand(now);
                let Amount { messages, bytes } = amount;
                self.trace.say(match messages {
                    0 => "wants nothing".to_owned(),
                    _ => format!("wants {messages}, {bytes} B, the first {first_bytes} B"),
                });
            }
            "leave" => {
                let bytes = option(words, "bytes").map_or(u64::MAX, number);
                self.leave(Amount { messages: number(first), bytes });
            }
            "trim" => self.core().trim(),
            _ => panic!("what is {verb:?}?"),
        }
    }

    fn store(&mut self, words: &[&str]) -> Vec<Entry<u64>> {
        let (first, last) = range(words[0]);
        let bytes = option(words, "bytes").map_or(100, number) as u32;
        let key = option(words, "key").map(key);
        let ttl = option(words, "ttl").map(duration);
        let expires = ttl.and_then(|ttl| Expiry::at(self.now + ttl));
        let message = Stored { bytes, key, expires, done: false };
        self.journal.extend((first..=last).map(|number| (number, message)));
        (first..=last).map(|number| entry(number, &message)).collect()
    }

    fn enqueue(&mut self, words: &[&str]) {
        let entries = self.store(words);
        let now = self.now;
        self.core().handle_enqueue(now, entries);
    }

    fn missed(&mut self, words: &[&str]) {
        let entries = self.store(words);
        let now = self.now;
        let newest = entries.last().map_or(0, |entry| entry.number);
        let bytes = entries.iter().map(|entry| u64::from(entry.bytes)).sum();
        self.core().handle_missed(now, newest, entries.len() as u64, bytes);
    }

    /// Answers the read under way as a journal does; `through=n` ends the page early.
    fn loaded(&mut self, words: &[&str]) {
        let Some(load) = self.load.take() else {
            return self.trace.say("no read is under way".to_owned());
        };
        let through = option(words, "through").map_or(load.through, number);
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut end = through;
        let within = |number: &u64| *number > load.after && *number <= through;
        for (number, message) in self.journal.iter().filter(|(number, _)| within(number)) {
            let is_full = entries.len() >= load.messages_max || bytes >= load.bytes_max;
            if is_full && !entries.is_empty() {
                end = number - 1;
                break;
            }
            if !message.done {
                bytes += message.bytes as usize;
                entries.push(entry(*number, message));
            }
        }
        let now = self.now;
        self.core().handle_loaded(now, entries, end);
    }

    fn nack(&mut self, words: &[&str]) {
        let permanent = words.contains(&"permanent");
        let retry_after = option(words, "after").map(duration);
        let is_option = |word: &&&str| **word != "permanent" && !word.contains('=');
        let reason: Vec<&str> = words[1..].iter().filter(is_option).copied().collect();
        let now = self.now;
        let tag = number(words[0]);
        self.core().handle_nack(now, tag, permanent, retry_after, &reason.join(" "));
    }

    /// Leave to send for one drain.
    fn leave(&mut self, amount: Amount) {
        let now = self.now;
        self.core().handle_leave(amount);
        while let Some(transmit) = self.core().poll_transmit(now) {
            self.trace.transmit(&transmit);
        }
        let Amount { messages, bytes } = self.core().end_leave();
        self.trace.say(format!("used {messages}, {bytes} B"));
    }

    fn explain(&mut self, number: u64) -> String {
        let now = self.now;
        let found = self.core().explain(now, number);
        "= ".to_owned() + &found.map_or("nothing".to_owned(), |found| trace::blocked(&found))
    }

    fn whereabouts(&mut self, number: u64) -> String {
        let now = self.now;
        let found = self.core().whereabouts(now, number);
        "= ".to_owned() + &found.map_or("nowhere".to_owned(), |found| trace::whereabouts(&found))
    }

    fn show(&mut self) -> Vec<String> {
        let now = self.now;
        trace::snapshot(&self.core().snapshot(now))
    }

    /// Everything that comes out, in the documented order of calls.
    fn drain(&mut self) -> Vec<String> {
        let now = self.now;
        let Some(core) = &mut self.core else { return Vec::new() };
        while let Some(settled) = core.poll_settled() {
            self.journal.get_mut(&settled.number).expect("it was enqueued").done = true;
            self.trace.settled(&settled);
        }
        while let Some(parked) = core.poll_parked() {
            self.journal.get_mut(&parked.number).expect("it was enqueued").done = true;
            self.trace.parked(&parked);
        }
        while let Some(command) = core.poll_link() {
            self.trace.command(command);
        }
        while let Some(transmit) = core.poll_transmit(now) {
            self.trace.transmit(&transmit);
        }
        while let Some(expired) = core.poll_expired() {
            self.journal.get_mut(&expired.number).expect("it was enqueued").done = true;
            self.trace.expired(&expired);
        }
        if let Some(load) = core.poll_load() {
            assert!(self.load.replace(load).is_none(), "two reads under way");
            self.trace.load(&load);
        }
        while let Some(report) = core.poll_report() {
            self.trace.report(&report);
        }
        self.trace.status(&core.snapshot(now), core.floor(), core.next_deadline());
        self.trace.take()
    }
}

fn entry(number: u64, message: &Stored) -> Entry<u64> {
    let key = message.key.and_then(NonZeroU64::new).map(KeyHash);
    let Stored { bytes, expires, .. } = *message;
    Entry { number, accepted_ms: number, bytes, key, expires, body: number }
}

/// `name=value` among the words.
fn option<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// `3` or `3..5`, both ends included.
fn range(text: &str) -> (u64, u64) {
    let (first, last) = text.split_once("..").unwrap_or((text, text));
    (number(first), number(last))
}

fn key(text: &str) -> u64 {
    text.bytes().fold(0, |key, byte| key << 8 | u64::from(byte))
}

fn duration(text: &str) -> Duration {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count = number(&text[..at]);
    match &text[at..] {
        "us" => Duration::from_micros(count),
        "ms" => Duration::from_millis(count),
        "s" => Duration::from_secs(count),
        "m" => Duration::from_secs(60 * count),
        "h" => Duration::from_secs(3_600 * count),
        unit => panic!("{unit:?} is no unit of time"),
    }
}

fn set(settings: &mut PeerSettings, words: &[&str]) {
    let ms = |text: &str| duration(text).as_millis() as u64;
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
        match name {
            "window" => settings.window_messages = number(value) as u32,
            "window-min" => settings.window_messages_min = number(value) as u32,
            "window-bytes" => settings.window_bytes = number(value),
            "timeout" => settings.ack_timeout_ms = ms(value),
            "backoff" => {
                let (min, max) = value.split_once("..").unwrap_or((value, value));
                (settings.backoff_ms_min, settings.backoff_ms_max) = (ms(min), ms(max));
            }
            "schedule" => {
                let waits = value.split(',').filter(|wait| !wait.is_empty());
                settings.retry_schedule_ms = waits.map(ms).collect();
            }
            "order" => {
                settings.order = match value {
                    "sent" => Order::Sent,
                    "strict" => Order::Strict,
                    "none" => Order::None,
                    _ => panic!("{value:?} is no order"),
                };
            }
            "maybe" => {}
            _ => panic!("{name:?} is no setting"),
        }
    }
}
