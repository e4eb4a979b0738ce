//! What a message says: who sent it and which number it is, then random bytes that the receiver holds
//! against its own copy.
//!
//! ```text
//! u16 producer | u48 number, from 0 | random bytes
//! ```
//!
//! The payloads are made once and used in turn, so that a message costs the stamp and one copy.

use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Bytes of the stamp: the smallest payload there is.
pub(crate) const STAMP_BYTES: usize = 8;
/// Most payloads, and most bytes of all of them (one always): they stay in the processor's cache.
const PAYLOADS_MAX: usize = 64;
const PAYLOADS_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Payloads(Vec<Vec<u8>>);

impl Payloads {
    /// Payloads of `size` bytes, at least [`STAMP_BYTES`].
    pub(crate) fn random(size: usize) -> Payloads {
        let count = (PAYLOADS_BYTES_MAX / size.max(1)).clamp(1, PAYLOADS_MAX);
        let mut random = StdRng::seed_from_u64(size as u64);
        let mut payload = || {
            let mut payload = vec![0; size.max(STAMP_BYTES)];
            random.fill_bytes(&mut payload);
            payload
        };
        Payloads(std::iter::repeat_with(&mut payload).take(count).collect())
    }

    /// A message's payload.
    #[inline]
    pub(crate) fn stamped(&mut self, producer: u16, number: u64) -> &[u8] {
        let at = self.turn(number);
        let payload = &mut self.0[at];
        let stamp = u64::from(producer) << 48 | number;
        payload[..STAMP_BYTES].copy_from_slice(&stamp.to_be_bytes());
        payload
    }

    /// The producer and the number of a payload, if the rest of it is what was sent.
    #[inline]
    pub(crate) fn check(&self, payload: &[u8]) -> Option<(u16, u64)> {
        let (stamp, rest) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let stamp = u64::from_be_bytes(*stamp);
        let number = stamp & (u64::MAX >> 16);
        let sent = &self.0[self.turn(number)][STAMP_BYTES..];
        // The upper 16 bits.
        (rest == sent).then_some(((stamp >> 48) as u16, number))
    }

    #[inline]
    fn turn(&self, number: u64) -> usize {
        // The remainder is below the number of payloads.
        (number % self.0.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_and_a_changed_byte_does_not() {
        let mut payloads = Payloads::random(40);
        let mut payload = payloads.stamped(7, 1 << 40).to_vec();
        assert_eq!(payload.len(), 40);
        assert_eq!(payloads.check(&payload), Some((7, 1 << 40)));
        *payload.last_mut().unwrap() ^= 1;
        assert_eq!(payloads.check(&payload), None);
        assert_eq!(payloads.check(&payload[..STAMP_BYTES - 1]), None);
    }
}
