//! What a producer may have unconfirmed, and what it has.

use restante_protocol::control;

/// Over-credit publishes a connection may send in its life before it is closed: each is answered by
/// a refusal, so a client that ignores its credit must not be able to make the node talk for ever.
pub(super) const OVER_CREDIT_MAX: u32 = 1_024;

/// Every publish is counted when it is read and given back when its outcome is told, the refused
/// ones included, so that the two sums always meet.
#[derive(Debug)]
pub(super) struct Credit {
    granted: control::Credit,
    messages: u64,
    bytes: u64,
    over: u32,
}

impl Credit {
    pub(super) fn new(granted: control::Credit) -> Credit {
        Credit { granted, messages: 0, bytes: 0, over: 0 }
    }

    /// Counts a publish frame. `false`: it goes beyond what was granted.
    #[inline]
    pub(super) fn take(&mut self, frame_bytes: u32) -> bool {
        self.messages += 1;
        self.bytes += u64::from(frame_bytes);
        let within =
            self.messages <= u64::from(self.granted.messages) && self.bytes <= self.granted.bytes;
        self.over += u32::from(!within);
        within
    }

    /// The outcomes of so many publishes have been told.
    pub(super) fn give_back(&mut self, messages: u64, bytes: u64) {
        debug_assert!(messages <= self.messages && bytes <= self.bytes, "told more than was asked");
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether the producer ignores its credit.
    pub(super) fn is_abused(&self) -> bool {
        self.over > OVER_CREDIT_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credit(messages: u32, bytes: u64) -> Credit {
        Credit::new(control::Credit { messages, bytes })
    }

    #[test]
    fn messages_and_bytes_are_both_bounds() {
        let mut by_messages = credit(2, 1_000);
        assert!(by_messages.take(10) && by_messages.take(10));
        assert!(!by_messages.take(10));
        let mut by_bytes = credit(100, 1_000);
        assert!(by_bytes.take(600));
        assert!(!by_bytes.take(600));
    }

    #[test]
    fn credit_comes_back_with_the_outcomes_of_refused_publishes_too() {
        let mut credit = credit(1, 1_000);
        assert!(credit.take(10));
        assert!(!credit.take(10));
        credit.give_back(1, 10);
        assert!(!credit.take(10), "the refused one is still to be told");
        credit.give_back(2, 20);
        assert!(credit.take(10));
    }

    #[test]
    fn only_ignoring_the_credit_for_long_is_abuse() {
        let mut credit = credit(1, 1_000_000);
        credit.take(10);
        for _ in 0..OVER_CREDIT_MAX {
            credit.take(10);
            assert!(!credit.is_abused());
        }
        credit.take(10);
        assert!(credit.is_abused());
    }
}
