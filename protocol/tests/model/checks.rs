//! What must hold, in the simplest words.

use super::world::{End, Link, SCHEDULE_MS, World};
use core::time::Duration;
use restante_protocol::admin::Order;
use restante_protocol::delivery::{
    Expired, Load, Parked, QUEUE_MESSAGES_MIN, QUEUE_WINDOWS, SKIPPED_MAX, Settled, Transmit,
    Whereabouts,
};
use std::sync::Arc;

/// How much later than its end one in flight may be found to end: what has left the queue has it in
/// twentieths of a second from when it was sent.
const EXPIRY_EXACT_TO: Duration = Duration::from_millis(100);

impl World {
    pub(crate) fn check_settled(&mut self, settled: &Settled) {
        let message = self.message(settled.number);
        assert_eq!((settled.attempts, settled.bytes), (message.attempts, message.bytes));
        self.close(settled.number, End::Settled);
    }

    pub(crate) fn check_expired(&mut self, expired: &Expired) {
        let now = self.now;
        assert!(!self.index.flying.contains_key(&expired.number), "{expired:?} is in flight");
        let message = self.message(expired.number);
        assert_eq!((expired.attempts, expired.bytes), (message.attempts, message.bytes));
        let is_over = message.expires.is_some_and(|expires| expires.time() <= now);
        assert!(is_over, "{expired:?} lives: {message:?}");
        self.close(expired.number, End::Expired);
    }

    pub(crate) fn check_parked(&mut self, parked: &Parked) {
        let message = self.message(parked.number);
        assert_eq!((parked.attempts, parked.bytes), (message.attempts, message.bytes));
        let by_rule = match parked.reason.split([' ', ':']).next() {
            Some("poison" | "suspect") => true,
            Some("refused") if parked.reason.starts_with("refused for good") => true,
            Some("refused") => message.refusals > SCHEDULE_MS.len(),
            _ => false,
        };
        assert!(by_rule, "no rule parks {parked:?}");
        self.close(parked.number, End::Parked);
    }

    pub(crate) fn check_transmit(&mut self, transmit: &Transmit<Arc<()>>) {
        let Transmit { tag, number, attempt, redelivered, .. } = *transmit;
        assert_eq!(self.link, Link::Up, "sent without a link");
        assert_eq!(tag, self.next_tag, "tags are dense");
        self.next_tag += 1;
        assert!(self.grant.is_none_or(|grant| tag <= grant), "tag {tag} was not granted");
        self.check_window(number);
        self.check_order(number);
        let (now, maybe_sent) = (self.now, self.maybe_sent);
        let message = self.message(number);
        assert_eq!(message.end, End::Open, "{number} is sent although it is done");
        assert!(message.due <= now, "{number} is sent before it is due");
        let lives = message.expires.is_none_or(|expires| expires.time() > now);
        assert!(lives, "{number} is sent although its time to live has ended");
        message.attempts += 1;
        assert_eq!(attempt, message.attempts);
        assert_eq!(redelivered, attempt > 1 || number <= maybe_sent, "the flag of {number}");
        self.sent_max = self.sent_max.max(number);
    }

    fn check_window(&self, number: u64) {
        let in_flight = self.in_flight.len();
        assert!(in_flight < self.settings.window_messages as usize, "more than the window");
        let bytes = self.index.flying_bytes + u64::from(self.messages[&number].bytes);
        let fits = bytes <= self.settings.window_bytes || in_flight == 0;
        assert!(fits, "more bytes than the window");
        assert!(!self.index.flying.contains_key(&number), "{number} is in flight already");
    }

    fn check_order(&self, number: u64) {
        let key = self.messages[&number].key;
        let is_first = self.messages[&number].attempts == 0;
        let earlier = |sent: bool| {
            let mut waiting = self.index.waiting.range((key, sent, 0)..(key, sent, number));
            waiting.next().map(|(_, _, number)| *number)
        };
        match self.order() {
            Order::None => {}
            Order::Sent if is_first => {
                assert_eq!(earlier(false), None, "a first attempt before that of {number}");
                assert!(key.is_none() || earlier(true).is_none(), "{number} overtakes a retry");
            }
            Order::Sent => {}
            Order::Strict => {
                let busy = self.index.flying_keys.contains_key(&key);
                assert!(!busy, "{number} is sent while another of its key is in flight");
                assert_eq!((earlier(false), earlier(true)), (None, None), "before {number}");
            }
        }
    }

    pub(crate) fn check_load(&self, load: &Load) {
        assert!(self.load.is_none(), "two reads under way");
        assert_eq!(self.link, Link::Up, "nothing is read without a link");
        assert!(load.after < load.through && load.through <= self.newest, "{load:?}");
        assert!(load.messages_max > 0 && load.bytes_max > 0, "{load:?}");
    }

    pub(crate) fn check_whole(&mut self) {
        let snapshot = self.core.snapshot(self.now);
        let (open, bytes) = (self.index.open.len() as u64, self.index.open_bytes);
        assert_eq!((snapshot.waiting, snapshot.waiting_bytes), (open, bytes), "{snapshot:?}");
        assert_eq!(snapshot.unacked, self.in_flight.len() as u64, "{snapshot:?}");
        assert_eq!(snapshot.stall.is_some(), open > snapshot.unacked, "{snapshot:?}");
        self.check_floor();
        self.check_bodies();
        self.check_deadlines(snapshot.next_attempt);
        if let Some(number) = self.index.open.first() {
            let message = &self.messages[number];
            let found = self.core.whereabouts(self.now, *number);
            let right = match found {
                Some(Whereabouts::Unacked { attempts, .. }) => {
                    attempts == message.attempts && self.index.flying.contains_key(number)
                }
                Some(Whereabouts::Retrying { attempts, next_attempt, .. }) => {
                    // With a link, one whose life is over does not wait for its next try.
                    let end = message.expires.map(|end| end.time() + EXPIRY_EXACT_TO);
                    let is_due = self.core.next_deadline().is_some_and(|at| at <= self.now);
                    let lives = end.is_none_or(|end| end > self.now);
                    let waits = self.link != Link::Up || lives || is_due;
                    let is_refused = attempts == message.attempts && message.refusals > 0;
                    is_refused && waits && next_attempt > self.now
                }
                Some(Whereabouts::Queued { attempts }) => attempts == message.attempts,
                None => false,
            };
            assert!(right, "{number} is {message:?} and the core says {found:?}");
        }
    }

    pub(crate) fn check_floor(&mut self) {
        let floor = self.core.floor();
        assert!(floor >= self.floor, "the floor never sinks");
        let lowest = self.index.open.first().copied();
        assert!(lowest.is_none_or(|lowest| floor < lowest), "{lowest:?} is open below {floor}");
        self.floor = floor;
    }

    /// Bodies held by the core: none without a link, and a bounded number with one.
    fn check_bodies(&self) {
        let in_page = self.load.as_ref().map_or(0, |(_, entries)| entries.len());
        let held = Arc::strong_count(&self.body) - 1 - in_page;
        let window = self.settings.window_messages as usize;
        let queue = QUEUE_MESSAGES_MIN.max(QUEUE_WINDOWS * window);
        // The send queue, its tail during a read, what is held for keys, and ready retries.
        let most = 3 * queue.max(QUEUE_WINDOWS * 2_048) + SKIPPED_MAX;
        assert!(held <= if self.link == Link::Up { most } else { 0 }, "{held} bodies held");
    }

    fn check_deadlines(&self, next_attempt: Option<restante_protocol::time::Time>) {
        let deadline = self.core.next_deadline();
        match self.link {
            Link::Down if self.dials && !self.paused => {
                assert!(next_attempt.is_some_and(|at| at > self.now), "the next dial is visible");
                assert_eq!(deadline, next_attempt);
            }
            Link::Down | Link::Dialling => assert_eq!(deadline, None),
            Link::Up if !self.in_flight.is_empty() => {
                assert!(deadline.is_some(), "what is in flight becomes late");
            }
            Link::Up => {}
        }
    }
}
