//! What the receiver says: acks, nacks, grants.
//!
//! A tag never sent on this link is reported and changes nothing, also as part of a range: who acks
//! what it never got is not to be believed. Tags of an earlier link, and tags answered before, are
//! ignored without a word: both happen to honest receivers.

use super::unacked::Old;
use super::*;

/// Longest wait a receiver can ask for in a nack.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl<B> Delivery<B> {
    /// The messages of a closed range of tags are done.
    #[inline]
    pub fn handle_ack(&mut self, now: Time, first_tag: u64, last_tag: u64) {
        if !self.knows(first_tag, last_tag) {
            return;
        }
        let acked_before = self.acked;
        let base = self.unacked.base();
        if first_tag < base && self.unacked.remembers_old() {
            self.settle_old(first_tag, last_tag.min(base - 1));
        }
        if first_tag <= base && last_tag >= base {
            self.settle_run(last_tag);
        }
        for tag in first_tag.max(self.unacked.base())..=last_tag {
            if let Some(slot) = self.unacked.take(tag) {
                self.settle_slot(slot);
            }
        }
        self.unacked.settle_front();
        let acked = self.acked - acked_before;
        if acked > 0 {
            self.answered(now, u32::try_from(acked).unwrap_or(u32::MAX));
        }
    }

    /// As [`Delivery::handle_ack`] for one tag that came with a return value. The message it
    /// settles, if it does: whose value this is.
    pub fn handle_ack_value(&mut self, now: Time, tag: u64) -> Option<MessageNumber> {
        let settled_before = self.settled.len();
        self.handle_ack(now, tag, tag);
        self.settled.get(settled_before).map(|settled| settled.number)
    }

    /// The receiver refuses a message: for good, or until it is tried again as the schedule says
    /// or after `retry_after` (at most 24 h).
    pub fn handle_nack(
        &mut self,
        now: Time,
        tag: u64,
        permanent: bool,
        retry_after: Option<Duration>,
        reason: &str,
    ) {
        if !self.knows(tag, tag) {
            return;
        }
        let Some(number) = self.take_nacked(tag, permanent) else { return };
        let reason = self.keep_reason(reason);
        self.refuse(now, number, permanent, retry_after, &reason);
        self.link.refusals = self.link.refusals.saturating_add(1);
        self.answered(now, 0);
        self.judge(now);
    }

    /// The receiver takes deliveries up to this tag. A grant is never taken back.
    pub fn handle_grant(&mut self, _now: Time, cumulative_tag: u64) {
        if self.link.is_up() {
            self.link.raise_grant(cumulative_tag);
            self.set_allowance();
        }
    }

    /// Whether an answer is about deliveries of this link.
    #[inline]
    fn knows(&mut self, first_tag: u64, last_tag: u64) -> bool {
        if !self.link.is_up() {
            return false;
        }
        if last_tag >= self.unacked.next_tag() || first_tag > last_tag {
            self.reports.push_back(Report::OddAck { tag: last_tag });
            return false;
        }
        true
    }

    /// The usual case: the tags from the front on, first attempts all, as one stretch. It ends at
    /// the first that is anything else.
    #[inline]
    fn settle_run(&mut self, last_tag: u64) {
        let bytes_before = self.unacked.bytes();
        let run = self.unacked.take_straight_run(last_tag);
        let (messages, outcome) = (run.len() as u64, Outcome::Acked);
        self.settled.extend(run.map(|slot| {
            let Slot { number, bytes, .. } = slot;
            Settled { number, outcome, attempts: 1, bytes }
        }));
        self.acked += messages;
        self.waiting = self.waiting.saturating_sub(messages);
        let bytes = bytes_before - self.unacked.bytes();
        self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
    }

    /// A delivery was acked.
    fn settle_slot(&mut self, slot: Slot) {
        match slot.line {
            Line::Straight => {
                self.settle(slot.number, slot.bytes, 1);
                if self.terms.order == Order::Strict {
                    self.unblock(slot.key);
                }
            }
            Line::Retry => self.settle_retry(slot.number),
            Line::Done => {}
        }
    }

    fn settle(&mut self, number: MessageNumber, bytes: u32, attempts: u16) {
        self.count_out(bytes);
        self.acked += 1;
        self.settled.push_back(Settled { number, outcome: Outcome::Acked, attempts, bytes });
    }

    /// A message off the line was acked, under its current tag or one that had been given up. If
    /// the latter, it may wait to be sent again or be in flight again: it is done all the same.
    fn settle_retry(&mut self, number: MessageNumber) {
        let Some(retry) = self.retries.remove(number) else { return };
        if let State::Unacked { tag, .. } = retry.state {
            self.unacked.take(tag);
        }
        self.queue.done_ahead(number);
        self.settle(number, retry.bytes, retry.attempts);
        self.unblock(retry.key);
    }

    #[cold]
    fn settle_old(&mut self, first_tag: u64, last_tag: u64) {
        while let Some(old) = self.unacked.take_old(first_tag, last_tag) {
            match old {
                Old::InFlight(slot) => self.settle_slot(slot),
                Old::GivenUp(number) => self.settle_retry(number),
            }
        }
    }

    /// The message a nack is about, out of flight and off the line. A nack of a delivery that was
    /// given up counts unless the message is in flight again: then its next answer does.
    fn take_nacked(&mut self, tag: u64, permanent: bool) -> Option<MessageNumber> {
        if let Some(slot) = self.unacked.take(tag) {
            self.unacked.settle_front();
            if slot.line == Line::Straight {
                self.retries.insert(slot.number, Retry::of_slot(&slot));
            }
            return Some(slot.number);
        }
        let number = self.unacked.given_up(tag)?;
        match self.retries.get(number)?.state {
            State::Unacked { tag, .. } if permanent => {
                self.unacked.take(tag);
                self.unacked.settle_front();
                Some(number)
            }
            State::Unacked { .. } | State::Refused { .. } => None,
            State::Wanted | State::Ready(_) => Some(number),
        }
    }

    /// Schedules the next try of a message off the line, or parks it.
    fn refuse(
        &mut self,
        now: Time,
        number: MessageNumber,
        permanent: bool,
        retry_after: Option<Duration>,
        reason: &Arc<str>,
    ) {
        let Some(retry) = self.retries.get(number) else { return };
        let (accepted_ms, attempts, refusals) = (retry.accepted_ms, retry.attempts, retry.refusals);
        let scheduled = self.terms.retry_schedule.get(usize::from(refusals)).copied();
        let Some(wait) = scheduled.filter(|_| !permanent) else {
            let reason = match permanent {
                true => format!("refused for good: {reason}"),
                false if refusals == 0 => format!("refused once: {reason}"),
                false => format!("refused {} times: {reason}", refusals.saturating_add(1)),
            };
            self.park_retry(number, reason);
            return;
        };
        let next_attempt = now + retry_after.map_or(wait, |after| after.min(RETRY_AFTER_MAX));
        self.retries.set(number, State::Refused { due: next_attempt, reason: Arc::clone(reason) });
        self.retries.update(number, |retry| {
            retry.refusals = refusals.saturating_add(1);
            retry.losses = 0;
        });
        let reason = reason.as_ref().to_owned();
        let report = Report::Refused { number, accepted_ms, attempts, next_attempt, reason };
        self.reports.push_back(report);
    }

    /// A message off the line and out of flight is parked.
    pub(super) fn park_retry(&mut self, number: MessageNumber, reason: String) {
        let Some(retry) = self.retries.remove(number) else { return };
        self.queue.done_ahead(number);
        self.set_aside(number, &Out::of_retry(&retry), ParkCause::Receiver, reason);
        self.unblock(retry.key);
    }

    /// Receivers repeat themselves; thousands of refused messages share one reason.
    fn keep_reason(&mut self, reason: &str) -> Arc<str> {
        let mut end = reason.len().min(crate::limits::REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        if *self.refusal_why != reason[..end] {
            self.refusal_why = Arc::from(&reason[..end]);
        }
        Arc::clone(&self.refusal_why)
    }

    /// The receiver answered; that alone is health.
    #[inline]
    fn answered(&mut self, now: Time, acked: u32) {
        self.link.last_answer = now;
        if !self.link.is_steady() {
            self.recover(now, acked);
        }
    }

    /// Takes back whatever its silence or refusals had led to.
    #[cold]
    fn recover(&mut self, now: Time, acked: u32) {
        if !self.link.is_proven {
            self.link.prove();
            self.backoff.reset();
        }
        self.link.late_rounds = 0;
        self.link.round_from = Time::ZERO;
        self.link.is_stalled = false;
        if acked > 0 {
            self.link.refusals = 0;
            self.link.is_probed = true;
        }
        if self.unacked.live() == 0 {
            self.link.is_alone = false;
        }
        let window = self.terms.window_messages;
        self.link.ramp = self.link.ramp.and_then(|ramp| ramp.grow(acked.max(1), window));
        self.set_allowance();
        self.judge(now);
    }
}
