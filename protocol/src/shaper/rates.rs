//! Rates as operators set them: of a peer, of a class, of the node.

use crate::refusal::{Code, Refusal};
use core::ops::RangeInclusive;
use serde::{Deserialize, Serialize};

/// [`Rate::rate`], [`Rate::ceil`] and [`Rate::burst`] of messages: up to 10⁹.
pub const RATE_MESSAGES: RangeInclusive<u64> = 0..=1_000_000_000;
/// [`Rate::rate`], [`Rate::ceil`] and [`Rate::burst`] of bytes: up to 1 TiB.
pub const RATE_BYTES: RangeInclusive<u64> = 0..=1 << 40;
/// A burst that is not set is what comes at the ceil in a second, divided by this.
const BURSTS_PER_SECOND: u64 = 10;

/// How fast deliveries may go, in one unit: messages, or bytes of their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rate {
    /// Guaranteed, per second, whatever others want. Default 0: nothing is, everything is borrowed.
    pub rate: u64,
    /// Never more than this, per second. Default 0: the rate; without one, no limit.
    pub ceil: u64,
    /// What may be saved up. Default 0: what comes at the ceil within a tenth of a second.
    pub burst: u64,
}

/// How fast deliveries may go, in both units. Where both are set, both hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// In messages.
    pub messages: Rate,
    /// In bytes of bodies.
    pub bytes: Rate,
}

/// A change to some values of a [`Rate`]: what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RatePatch {
    /// See [`Rate::rate`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// See [`Rate::ceil`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceil: Option<u64>,
    /// See [`Rate::burst`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// A change to some values of [`Rates`]: what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RatesPatch {
    /// See [`Rates::messages`].
    #[serde(skip_serializing_if = "RatePatch::is_empty")]
    pub messages: RatePatch,
    /// See [`Rates::bytes`].
    #[serde(skip_serializing_if = "RatePatch::is_empty")]
    pub bytes: RatePatch,
}

impl Rate {
    /// With what follows from the values that are set in the place of those that are not.
    fn resolved(self) -> Rate {
        let ceil = if self.ceil == 0 { self.rate } else { self.ceil };
        let burst = match self.burst {
            0 => (ceil / BURSTS_PER_SECOND).max(1),
            burst => burst,
        };
        Rate { rate: self.rate, ceil, burst }
    }

    fn check(self, unit: &str, bounds: &RangeInclusive<u64>) -> Result<(), Refusal> {
        let Rate { rate, ceil, burst } = self;
        for (what, value) in [("rate", rate), ("ceil", ceil), ("burst", burst)] {
            if !bounds.contains(&value) {
                let most = bounds.end();
                let detail = format!("the {what} in {unit} is {value}, expected at most {most}");
                return Err(Refusal::new(Code::BadSetting, detail));
            }
        }
        if ceil != 0 && rate > ceil {
            let detail =
                format!("the rate is {rate} {unit} a second, expected at most the ceil, {ceil}");
            return Err(Refusal::new(Code::BadSetting, detail));
        }
        Ok(())
    }

    fn differences(self, new: Rate, unit: &str, words: &mut Vec<String>) {
        let pairs = [
            ("rate", self.rate, new.rate),
            ("ceil", self.ceil, new.ceil),
            ("burst", self.burst, new.burst),
        ];
        let changed = pairs.into_iter().filter(|(_, before, now)| before != now);
        words.extend(changed.map(|(what, _, now)| format!("{what}_{unit}={now}")));
    }
}

impl Rates {
    /// Whether they limit anything.
    #[must_use]
    pub fn are_limits(&self) -> bool {
        self.messages.resolved().ceil > 0 || self.bytes.resolved().ceil > 0
    }

    /// With what follows from the values that are set in the place of those that are not.
    #[must_use]
    pub fn resolved(&self) -> Rates {
        Rates { messages: self.messages.resolved(), bytes: self.bytes.resolved() }
    }

    /// Holds every value against its bounds.
    ///
    /// # Errors
    /// [`Code::BadSetting`], naming the first bad value and what is expected.
    pub fn check(&self) -> Result<(), Refusal> {
        self.messages.check("messages", &RATE_MESSAGES)?;
        self.bytes.check("bytes", &RATE_BYTES)
    }

    /// Puts the values of `new` that differ from these, as `name=value` words, to the others.
    pub fn differences(&self, new: &Rates, words: &mut Vec<String>) {
        self.messages.differences(new.messages, "messages", words);
        self.bytes.differences(new.bytes, "bytes", words);
    }
}

impl RatePatch {
    fn is_empty(&self) -> bool {
        *self == RatePatch::default()
    }

    fn applied_to(self, rate: Rate) -> Rate {
        Rate {
            rate: self.rate.unwrap_or(rate.rate),
            ceil: self.ceil.unwrap_or(rate.ceil),
            burst: self.burst.unwrap_or(rate.burst),
        }
    }
}

impl RatesPatch {
    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == RatesPatch::default()
    }

    /// `rates` with what the patch sets.
    #[must_use]
    pub fn applied_to(&self, rates: &Rates) -> Rates {
        Rates {
            messages: self.messages.applied_to(rates.messages),
            bytes: self.bytes.applied_to(rates.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_alone_is_the_limit_too_and_a_burst_follows_from_it() {
        let resolved = |rate, ceil, burst| Rate { rate, ceil, burst }.resolved();
        assert_eq!(resolved(50, 0, 0), Rate { rate: 50, ceil: 50, burst: 5 });
        assert_eq!(resolved(50, 200, 0), Rate { rate: 50, ceil: 200, burst: 20 });
        assert_eq!(resolved(0, 3, 0), Rate { rate: 0, ceil: 3, burst: 1 });
        assert_eq!(resolved(0, 3, 7).burst, 7);
        assert!(!Rates::default().are_limits());
        let rated = Rates { messages: Rate { rate: 1, ..Rate::default() }, ..Rates::default() };
        assert!(rated.are_limits());
    }

    #[test]
    fn what_is_above_a_bound_or_above_its_ceil_is_refused() {
        let of =
            |rate, ceil, burst| Rates { bytes: Rate { rate, ceil, burst }, ..Rates::default() };
        assert_eq!(of(10, 10, 1 << 40).check(), Ok(()));
        assert_eq!(of(10, 0, 0).check(), Ok(()));
        for bad in [of(11, 10, 0), of(0, (1 << 40) + 1, 0), of(0, 0, u64::MAX)] {
            assert_eq!(bad.check().unwrap_err().code, Code::BadSetting, "{bad:?}");
        }
    }
}
