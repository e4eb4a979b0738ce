//! What is promised of order (P2) and of rates, held against each message that leaves.

use super::*;

const MILLION: u64 = 1_000_000;

impl Judge {
    /// A message of this key leaves, for the first time by this core or again.
    pub(super) fn check_order(
        &mut self,
        peer: usize,
        key: u32,
        number: MessageNumber,
        is_first: bool,
    ) {
        let order = self.peers[peer].settings.order;
        if order == Order::None {
            return;
        }
        let newest = self.peers[peer].newest_sent.get(&key).copied();
        if is_first && newest.is_some_and(|newest| newest > number) {
            self.fail(Some(peer), format_args!("{number} leaves after {newest:?} of its key"));
        }
        let is_bound = order == Order::Strict || (is_first && key != 0);
        if is_bound && let Some(earlier) = self.earlier_waiting(peer, key, number) {
            self.fail(Some(peer), format_args!("{number} overtakes {earlier} of its key"));
        }
        if is_first {
            self.peers[peer].newest_sent.insert(key, number);
        }
    }

    /// Never more than the ceil allows, and the burst.
    pub(super) fn check_rate(&mut self, peer: usize, number: MessageNumber, now: Time) {
        let rate = self.peers[peer].settings.rates.resolved().messages;
        if rate.ceil == 0 {
            return;
        }
        // What is granted leaves a moment later, and one more with it by then.
        let most = (rate.burst + 1) * MILLION;
        let (allowed, as_of) = self.peers[peer].allowed;
        let since_us = now.0.saturating_sub(as_of.0);
        let allowed = allowed.saturating_add(since_us.saturating_mul(rate.ceil)).min(most);
        if allowed < MILLION {
            self.fail(Some(peer), format_args!("{number} is sent above {rate:?}"));
        }
        self.peers[peer].allowed = (allowed - MILLION, now);
    }

    /// An earlier message of the key that this one has to wait for: under strict order any that is open,
    /// else one that has been sent and is not in flight.
    fn earlier_waiting(
        &mut self,
        peer: usize,
        key: u32,
        number: MessageNumber,
    ) -> Option<MessageNumber> {
        let is_strict = self.peers[peer].settings.order == Order::Strict;
        let mut earlier = self.peers[peer].keys.get(&key)?.range(..number).copied();
        if is_strict {
            return earlier.next_back();
        }
        let earlier: Vec<MessageNumber> = earlier.collect();
        earlier.into_iter().find(|earlier| {
            let witness = &self.peers[peer];
            let token = witness.open[earlier];
            let ends = witness.answered.contains(&token) || witness.leaving.contains(&token);
            !ends && self.fate(peer, token).flying.is_none()
        })
    }
}
