//! Amounts of messages and bytes, and the buckets that count them out.

use super::Rates;
use super::bucket::Bucket;
use crate::time::Time;

/// The longest turn, in messages and in bytes. A turn is a hundredth of a second of what its lender may
/// send, so that nobody waits long for the others' turns.
const TURN_MESSAGES_MAX: u64 = 256;
const TURN_BYTES_MAX: u64 = 64 * 1024;
const TURNS_PER_SECOND: u64 = 100;

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// How many.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

impl Amount {
    pub(super) fn less(self, used: Amount) -> Amount {
        Amount {
            messages: self.messages.saturating_sub(used.messages),
            bytes: self.bytes.saturating_sub(used.bytes),
        }
    }

    pub(super) fn at_most(self, most: Amount) -> Amount {
        Amount { messages: self.messages.min(most.messages), bytes: self.bytes.min(most.bytes) }
    }

    pub(super) fn at_least(self, least: Amount) -> Amount {
        Amount { messages: self.messages.max(least.messages), bytes: self.bytes.max(least.bytes) }
    }
}

/// Buckets in both units; what is not limited has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Meter {
    pub(super) fn ceil(now: Time, rates: &Rates) -> Meter {
        let mut meter = Meter { messages: None, bytes: None };
        meter.set_ceil(now, rates);
        meter
    }

    pub(super) fn set_ceil(&mut self, now: Time, rates: &Rates) {
        set(&mut self.messages, now, rates.messages.ceil, rates.messages.burst);
        set(&mut self.bytes, now, rates.bytes.ceil, rates.bytes.burst);
    }

    /// Whether anything is limited at all.
    pub(super) fn limits(&self) -> bool {
        self.messages.is_some() || self.bytes.is_some()
    }

    pub(super) fn has(&mut self, now: Time, cost: Amount) -> bool {
        let messages = self.messages.as_mut().is_none_or(|b| b.has(now, cost.messages));
        let bytes = self.bytes.as_mut().is_none_or(|b| b.has(now, cost.bytes));
        messages && bytes
    }

    /// When it has; `None`: never.
    pub(super) fn ready_at(&self, cost: Amount) -> Option<Time> {
        let messages =
            self.messages.as_ref().map_or(Some(Time::ZERO), |b| b.ready_at(cost.messages));
        let bytes = self.bytes.as_ref().map_or(Some(Time::ZERO), |b| b.ready_at(cost.bytes));
        Some(messages?.max(bytes?))
    }

    pub(super) fn available(&self) -> Amount {
        Amount {
            messages: self.messages.as_ref().map_or(u64::MAX, Bucket::available),
            bytes: self.bytes.as_ref().map_or(u64::MAX, Bucket::available),
        }
    }

    pub(super) fn take(&mut self, now: Time, amount: Amount) {
        self.messages.iter_mut().for_each(|b| b.take(now, amount.messages));
        self.bytes.iter_mut().for_each(|b| b.take(now, amount.bytes));
    }

    pub(super) fn put_back(&mut self, now: Time, amount: Amount) {
        self.messages.iter_mut().for_each(|b| b.put_back(now, amount.messages));
        self.bytes.iter_mut().for_each(|b| b.put_back(now, amount.bytes));
    }
}

/// The buckets of a guaranteed rate. Where none is set, nothing is guaranteed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guarantee(Meter);

impl Guarantee {
    pub(super) fn new(now: Time, rates: &Rates) -> Guarantee {
        let mut guarantee = Guarantee(Meter { messages: None, bytes: None });
        guarantee.set(now, rates);
        guarantee
    }

    pub(super) fn set(&mut self, now: Time, rates: &Rates) {
        set(&mut self.0.messages, now, rates.messages.rate, rates.messages.burst);
        set(&mut self.0.bytes, now, rates.bytes.rate, rates.bytes.burst);
    }

    pub(super) fn has(&mut self, now: Time, cost: Amount) -> bool {
        self.0.limits() && self.0.has(now, cost)
    }

    /// When it has again; `None`: never.
    pub(super) fn ready_at(&self, cost: Amount) -> Option<Time> {
        self.0.limits().then(|| self.0.ready_at(cost)).flatten()
    }

    pub(super) fn available(&self) -> Amount {
        self.0.available()
    }

    pub(super) fn take(&mut self, now: Time, amount: Amount) {
        self.0.take(now, amount);
    }

    pub(super) fn put_back(&mut self, now: Time, amount: Amount) {
        self.0.put_back(now, amount);
    }
}

/// How long turns are below one lender, and in which unit: messages where only those are limited.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    Messages(u64),
    Bytes(u64),
}

impl Turn {
    pub(super) fn under(lender: &Rates) -> Turn {
        let turn = |ceil: u64, max: u64| match ceil {
            0 => max,
            _ => (ceil / TURNS_PER_SECOND).clamp(1, max),
        };
        match (lender.messages.ceil, lender.bytes.ceil) {
            (messages, 0) if messages > 0 => Turn::Messages(turn(messages, TURN_MESSAGES_MAX)),
            (_, bytes) => Turn::Bytes(turn(bytes, TURN_BYTES_MAX)),
        }
    }

    /// The most that is granted at once.
    pub(super) fn size(self) -> Amount {
        match self {
            Turn::Messages(messages) => Amount { messages, bytes: u64::MAX },
            Turn::Bytes(bytes) => Amount { messages: u64::MAX, bytes },
        }
    }

    /// Whether costs are counted in the same unit.
    pub(super) fn is_like(self, other: Turn) -> bool {
        matches!(self, Turn::Messages(_)) == matches!(other, Turn::Messages(_))
    }

    pub(super) fn cost(self, amount: Amount) -> u64 {
        match self {
            Turn::Messages(_) => amount.messages,
            Turn::Bytes(_) => amount.bytes,
        }
    }
}

fn set(bucket: &mut Option<Bucket>, now: Time, per_second: u64, burst: u64) {
    match bucket {
        _ if per_second == 0 => *bucket = None,
        Some(bucket) => bucket.set(now, per_second, burst),
        None => *bucket = Some(Bucket::new(now, per_second, burst)),
    }
}
