//! A message as its producer made it: what it says follows from its place among all messages, so that
//! whoever holds one knows whether it is whole.

use super::plan::{MINUTE, SECOND, Temper};
use core::num::NonZeroU64;
use rand::Rng;
use rand::rngs::StdRng;
use restante_protocol::message::Body;
use restante_protocol::time::Time;

/// Ordering keys; 0 stands for none.
const KEYS: u32 = 8;

/// What a message does to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Poison {
    None,
    /// The receiver drops its connection when it comes.
    Crash,
    /// The receiver answers nothing any more until its connection is closed.
    Hang,
    /// It is refused for good.
    Refused,
    /// It is refused each time.
    RefusedAlways,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) token: u64,
    pub(super) producer: usize,
    /// Set when it is queued to be published.
    pub(super) sequence: u64,
    pub(super) receivers: Vec<usize>,
    pub(super) key: u32,
    pub(super) ttl_ms: Option<u64>,
    pub(super) poison: Poison,
}

impl Post {
    /// Draws one for these receivers.
    pub(super) fn draw(
        draw: &mut StdRng,
        token: u64,
        producer: usize,
        receivers: Vec<usize>,
        gets_poison: &[bool],
    ) -> Post {
        let key = if draw.random_ratio(3, 4) { draw.random_range(1..KEYS) } else { 0 };
        let ttl_ms = draw.random_ratio(1, 20).then(|| {
            let longest = [10 * SECOND, 30 * MINUTE, 48 * 60 * MINUTE][draw.random_range(0..3)];
            draw.random_range(500_000..longest) / 1_000
        });
        // Drawn for all, so that nothing else hangs on it.
        let poison = match draw.random_range(0..600) {
            0 => Poison::Crash,
            1 => Poison::Hang,
            2..6 => Poison::Refused,
            6..10 => Poison::RefusedAlways,
            _ => Poison::None,
        };
        let harms = receivers.iter().any(|receiver| gets_poison[*receiver]);
        let poison = if harms { poison } else { Poison::None };
        Post { token, producer, sequence: 0, receivers, key, ttl_ms, poison }
    }

    /// One that does no harm and waits for no other's key, of the first producer.
    pub(super) fn harmless(token: u64, sequence: u64, receiver: usize) -> Post {
        let (producer, receivers, key) = (0, vec![receiver], KEYS + token as u32);
        let (ttl_ms, poison) = (None, Poison::None);
        Post { token, producer, sequence, receivers, key, ttl_ms, poison }
    }

    /// What it does to this receiver.
    pub(super) fn poison_for(&self, temper: &Temper) -> Poison {
        if temper.gets_poison { self.poison } else { Poison::None }
    }

    /// Its bytes.
    pub(super) fn body(&self) -> Vec<u8> {
        let key = self.key.to_be_bytes();
        let payload = payload(self.token);
        let body = Body {
            key: (self.key != 0).then_some(&key[..]),
            ttl_ms: self.ttl_ms.and_then(NonZeroU64::new),
            payload: &payload,
            ..Body::default()
        };
        let mut bytes = Vec::with_capacity(body.encoded_len());
        body.encode(&mut bytes);
        bytes
    }

    /// When it must not be sent any more, counted from its acceptance.
    pub(super) fn end_of_life(&self, accepted_at: Time) -> Option<Time> {
        self.ttl_ms.map(|ms| Time(accepted_at.0 + ms * 1_000))
    }
}

/// What the message of this place says: its place, and bytes that follow from it.
fn payload(token: u64) -> Vec<u8> {
    let length = (token.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 57) as usize;
    let mut payload = token.to_be_bytes().to_vec();
    payload.extend((0..length).map(|at| (token as usize + at) as u8));
    payload
}

/// The place of the message whose body this is, if it is whole.
pub(super) fn token_of(body: &Body<'_>) -> Option<u64> {
    let token = u64::from_be_bytes(*body.payload.first_chunk::<8>()?);
    (payload(token) == body.payload).then_some(token)
}
