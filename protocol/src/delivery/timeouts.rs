//! The peer's one deadline, and what is due when it passes.

use super::verdict::FAILED_AT;
use super::*;

impl<B> Delivery<B> {
    /// When [`Delivery::handle_timeout`] is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        if !self.link.is_up() {
            return self.backoff.next_attempt;
        }
        let calm = self.calm_at;
        let stable = self.link.stable_at().filter(|_| self.unacked.live() == 0);
        let late = self.unacked.late_at(self.terms.ack_timeout);
        let due = self.retries.next_due();
        let held = self.held_due();
        [late, due, stable, calm, self.load_retry_at, held].into_iter().flatten().min()
    }

    /// Time has passed. Harmless when nothing is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if !self.link.is_up() {
            if self.backoff.next_attempt.is_some_and(|at| at <= now) {
                self.dial();
            }
            return;
        }
        self.retries.wake(now);
        self.let_held_expire(now);
        if self.load_retry_at.is_some_and(|at| at <= now) {
            self.load_retry_at = None;
        }
        self.expire(now);
        if self.calm_at.is_some_and(|at| at <= now) {
            self.judge(now);
        }
        let stable_at = self.link.stable_at().filter(|_| self.unacked.live() == 0);
        if stable_at.is_some_and(|at| at <= now) {
            self.link.prove();
            self.backoff.reset();
            self.judge(now);
        }
    }

    /// Deliveries unanswered for the ack timeout go back to be sent again.
    ///
    /// Lates are counted in rounds: only a message sent after the last round was counted begins
    /// another, so that three messages sent together and late together count once.
    fn expire(&mut self, now: Time) {
        let Some(limit) = now.0.checked_sub(self.terms.ack_timeout.as_micros() as u64) else {
            return;
        };
        let in_flight = self.unacked.live();
        let (was_alone, was_stalled) = (in_flight == 1, self.link.is_stalled);
        let (mut messages, mut is_round, mut is_stalled) = (0_u32, false, false);
        let mut is_late_since_shrinking = false;
        let (mut first, mut accepted_ms) = (0, 0);
        while let Some(slot) = self.unacked.take_sent_by(Time(limit)) {
            if messages == 0 {
                (first, accepted_ms) = (slot.number, slot.accepted_ms);
            }
            messages += 1;
            is_round |= slot.sent_at >= self.link.round_from;
            is_stalled |= slot.sent_at >= self.link.last_answer;
            is_late_since_shrinking |= slot.sent_at >= self.link.shrunk_at;
            self.take_back(&slot);
        }
        if messages == 0 {
            return;
        }
        if is_round {
            self.link.late_rounds += 1;
            self.link.round_from = now;
        }
        if is_late_since_shrinking && !is_stalled {
            self.shrink_window(now, in_flight);
        }
        if is_stalled {
            // Nothing came back since they were sent: ask with one message, not with all again.
            self.link.is_stalled = true;
            self.link.is_probed = false;
            self.link.ramp = Some(window::Ramp::PROBE);
        }
        let in_a_row = self.link.late_rounds;
        self.reports.push_back(Report::Late { messages, first, accepted_ms, in_a_row });
        if was_alone && is_stalled && !was_stalled {
            self.note_loss(first);
        }
        if in_a_row >= FAILED_AT {
            self.fail(now);
        } else {
            self.after_removal();
            self.judge(now);
        }
    }

    /// Some answers come too late: less is to be in flight than was, if the window may shrink. What was sent
    /// before it did says nothing of the smaller one.
    fn shrink_window(&mut self, now: Time, in_flight: u32) {
        let Terms { window_messages, window_messages_min: min, .. } = self.terms;
        let window = self.link.ramp.map_or(window_messages, |ramp| ramp.window());
        if min > 0 && window > min {
            let had = window.min(window_messages).min(in_flight);
            self.link.ramp = Some(window::Ramp::halved(had, min));
            self.link.shrunk_at = now;
        }
    }
}
