//! What the generator's messages say: who sent them, which number they are, when they were meant to
//! be sent, and random bytes that the receiver holds against its own copy.
//!
//! ```text
//! u16 producer | u48 number, from 0 | u64 intended time, ns since the run began | random bytes
//! ```
//!
//! The bodies are made once and used in turn, so that a message costs the stamp and one copy.

use rand::RngCore;

/// Bytes of the stamp: the smallest payload there is.
pub(super) const STAMP_BYTES: usize = 16;
/// Most bodies, and most bytes of all of them (one body always): they stay in the processor's cache.
const BODIES_MAX: usize = 64;
const BODIES_BYTES_MAX: usize = 256 * 1024;
/// A body without key and headers is its flags and the payload.
const FLAGS_BYTES: usize = 1;

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) producer: u16,
    pub(super) number: u64,
    pub(super) intended_ns: u64,
}

/// The bodies of all messages of a run.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    bodies: Vec<Vec<u8>>,
}

impl Bodies {
    /// For payloads of `size` bytes, at least [`STAMP_BYTES`].
    pub(super) fn random(size: usize, random: &mut impl RngCore) -> Bodies {
        let count = (BODIES_BYTES_MAX / size.max(1)).clamp(1, BODIES_MAX);
        let mut body = || {
            let mut body = vec![0; FLAGS_BYTES + size];
            random.fill_bytes(&mut body[FLAGS_BYTES..]);
            body
        };
        Bodies { bodies: std::iter::repeat_with(&mut body).take(count).collect() }
    }

    /// The body of a message, stamped.
    #[inline]
    pub(super) fn stamped(&mut self, stamp: Stamp) -> &[u8] {
        let at = self.turn(stamp.number);
        let body = &mut self.bodies[at];
        let head = u64::from(stamp.producer) << 48 | stamp.number;
        body[FLAGS_BYTES..FLAGS_BYTES + 8].copy_from_slice(&head.to_be_bytes());
        body[FLAGS_BYTES + 8..FLAGS_BYTES + 16].copy_from_slice(&stamp.intended_ns.to_be_bytes());
        body
    }

    /// The stamp of a payload, if the rest of it is what was sent.
    #[inline]
    pub(super) fn check(&self, payload: &[u8]) -> Option<Stamp> {
        let (stamp, rest) = payload.split_first_chunk::<STAMP_BYTES>()?;
        let [p0, p1, n0, n1, n2, n3, n4, n5, t @ ..] = *stamp;
        let number = u64::from_be_bytes([0, 0, n0, n1, n2, n3, n4, n5]);
        let sent = &self.bodies[self.turn(number)][FLAGS_BYTES + STAMP_BYTES..];
        (rest == sent).then(|| Stamp {
            producer: u16::from_be_bytes([p0, p1]),
            number,
            intended_ns: u64::from_be_bytes(t),
        })
    }

    #[inline]
    fn turn(&self, number: u64) -> usize {
        // The remainder is below the number of bodies.
        (number % self.bodies.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn a_stamp_survives_and_a_changed_byte_does_not() {
        let mut bodies = Bodies::random(40, &mut StdRng::seed_from_u64(1));
        let stamp = Stamp { producer: 7, number: 1 << 40, intended_ns: u64::MAX };
        let mut payload = bodies.stamped(stamp)[FLAGS_BYTES..].to_vec();
        assert_eq!(payload.len(), 40);
        assert_eq!(bodies.check(&payload), Some(stamp));
        *payload.last_mut().unwrap() ^= 1;
        assert_eq!(bodies.check(&payload), None);
        assert_eq!(bodies.check(&payload[..STAMP_BYTES - 1]), None);
    }

    #[test]
    fn the_smallest_payload_is_a_stamp_alone() {
        let mut bodies = Bodies::random(STAMP_BYTES, &mut StdRng::seed_from_u64(1));
        let stamp = Stamp { producer: 0, number: 3, intended_ns: 9 };
        let payload = bodies.stamped(stamp)[FLAGS_BYTES..].to_vec();
        assert_eq!(bodies.check(&payload), Some(stamp));
    }
}
