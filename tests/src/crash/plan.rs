//! What is published, by whom and for whom: a function of the seed alone.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A receiver that does not exist; some messages name it beside real ones.
pub const GHOST: &str = "ghost";

/// Bytes of a payload that say which message it is.
const HEAD_BYTES: usize = 9;
/// Most bytes after them.
const FILL_BYTES_MAX: usize = 400;
/// Ordering keys of each producer.
const KEYS: u8 = 12;

/// The size of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Decides everything that is drawn.
    pub seed: u64,
    /// Messages, over all producers.
    pub messages: u64,
    /// Producers.
    pub producers: u8,
    /// Receivers.
    pub receivers: usize,
    /// How often the node is killed.
    pub kills: u32,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Its receivers, by number, each once.
    pub receivers: Vec<usize>,
    /// Whether it names [`GHOST`] too.
    pub ghost: bool,
    /// Its ordering key.
    pub key: Option<u8>,
    /// What it says.
    pub payload: Vec<u8>,
}

impl Plan {
    /// How many messages a producer publishes, numbered from 0.
    #[must_use]
    pub fn share(&self, producer: u8) -> u64 {
        let producers = u64::from(self.producers);
        self.messages / producers + u64::from(u64::from(producer) < self.messages % producers)
    }

    /// The message of this number of a producer.
    #[must_use]
    pub fn post(&self, producer: u8, serial: u64) -> Post {
        let mut draw = self.draw(&[1, u64::from(producer), serial]);
        let fan_out = draw.random_range(1..=5.min(self.receivers));
        let mut receivers = Vec::with_capacity(fan_out);
        while receivers.len() < fan_out {
            let receiver = draw.random_range(0..self.receivers);
            if !receivers.contains(&receiver) {
                receivers.push(receiver);
            }
        }
        let key = draw.random_bool(0.6).then(|| draw.random_range(0..KEYS));
        let ghost = draw.random_ratio(1, 50);
        let mut payload = vec![0; HEAD_BYTES + draw.random_range(0..=FILL_BYTES_MAX)];
        payload[0] = producer;
        payload[1..HEAD_BYTES].copy_from_slice(&serial.to_be_bytes());
        draw.fill(&mut payload[HEAD_BYTES..]);
        Post { receivers, ghost, key, payload }
    }

    /// Which message a payload is, if it is one of this plan, unharmed and for this receiver.
    #[must_use]
    pub fn recognise(&self, receiver: usize, payload: &[u8]) -> Option<(u8, u64)> {
        let (&producer, rest) = payload.split_first()?;
        let serial = u64::from_be_bytes(*rest.first_chunk()?);
        if producer >= self.producers || serial >= self.share(producer) {
            return None;
        }
        let post = self.post(producer, serial);
        (post.payload == payload && post.receivers.contains(&receiver))
            .then_some((producer, serial))
    }

    /// The name of a receiver.
    #[must_use]
    pub fn name(&self, receiver: usize) -> String {
        format!("receiver-{receiver:02}")
    }

    /// Random numbers for one purpose.
    #[must_use]
    pub fn draw(&self, purpose: &[u64]) -> StdRng {
        let mix = |state: u64, part: &u64| {
            // The finaliser of splitmix64, so that neighbouring purposes share nothing.
            let mut z = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        StdRng::seed_from_u64(purpose.iter().fold(mix(self.seed, &0), mix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 7, messages: 1_000, producers: 3, receivers: 20, kills: 1 };

    #[test]
    fn shares_add_up() {
        assert_eq!((0..3).map(|producer| PLAN.share(producer)).sum::<u64>(), 1_000);
    }

    #[test]
    fn a_post_is_the_same_whenever_it_is_asked_and_no_other() {
        assert_eq!(PLAN.post(1, 5), PLAN.post(1, 5));
        assert_ne!(PLAN.post(1, 5).payload, PLAN.post(2, 5).payload);
        assert_ne!(PLAN.post(1, 5).payload, PLAN.post(1, 6).payload);
        assert_ne!(PLAN.post(1, 5).payload, Plan { seed: 8, ..PLAN }.post(1, 5).payload);
    }

    #[test]
    fn only_an_unharmed_payload_at_the_right_door_is_recognised() {
        let post = PLAN.post(2, 77);
        let (inside, outside): (Vec<usize>, Vec<usize>) =
            (0..20).partition(|receiver| post.receivers.contains(receiver));
        assert_eq!(PLAN.recognise(inside[0], &post.payload), Some((2, 77)));
        assert_eq!(PLAN.recognise(outside[0], &post.payload), None);
        let mut harmed = post.payload.clone();
        *harmed.last_mut().unwrap() ^= 1;
        assert_eq!(PLAN.recognise(inside[0], &harmed), None);
        assert_eq!(PLAN.recognise(inside[0], &post.payload[..4]), None);
        assert_eq!(PLAN.recognise(inside[0], b""), None);
    }
}
