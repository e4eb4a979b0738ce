//! The link comes and goes, and the operator says whether it should.

use super::link::STABLE_US;
use super::*;

impl<B> Delivery<B> {
    /// The shell has a link to the receiver. Tags count from `first_tag`; with a `grant`, deliveries
    /// up to that tag may be sent, without one the window alone counts.
    pub fn handle_link_up(&mut self, now: Time, first_tag: u64, grant: Option<u64>) {
        if self.paused {
            self.commands.push_back(LinkCommand::Close(CloseReason::Paused));
            return;
        }
        if self.link.is_up() {
            // The receiver came again before its old connection was found dead: no outage.
            self.disconnect();
        }
        self.knows_since = None;
        let probe = self.link.had_outage || self.waiting > 0;
        self.link.open(now, grant, probe);
        self.unacked.open(first_tag);
        self.backoff.next_attempt = None;
        self.retries.wake(now);
        self.set_allowance();
        self.judge(now);
    }

    /// A dial failed (`connected` is false), or a link that was up was lost. What was in flight goes
    /// back, in order of number, and no message has used up an attempt of its schedule. Ignored when
    /// it is about a link the core has given up already.
    pub fn handle_link_down(&mut self, now: Time, why: &str, connected: bool) {
        let expected = if connected { LinkState::Up } else { LinkState::Dialling };
        if self.link.state != expected {
            return;
        }
        if connected {
            self.note_loss_if_alone();
            self.weigh_lost_link(now);
            self.disconnect();
        } else {
            self.backoff.fail();
            self.link.close();
        }
        self.link.has_failed = false;
        why.clone_into(&mut self.link_why);
        self.schedule_dial(now);
        self.tell_of_failure(now);
    }

    /// The operator holds the peer: its messages wait.
    pub fn handle_pause(&mut self, now: Time) {
        if self.paused {
            return;
        }
        self.paused = true;
        self.knows_since = None;
        self.give_up_link(CloseReason::Paused);
        self.judge(now);
    }

    /// The operator lets the peer go on: it is dialled at once.
    pub fn handle_resume(&mut self, now: Time) {
        if !self.paused {
            return;
        }
        self.paused = false;
        self.knows_since = None;
        "resumed, not connected yet".clone_into(&mut self.link_why);
        self.dial();
        self.judge(now);
    }

    /// The peer is to be reached elsewhere: the link is given up and the new address dialled at
    /// once. `dials` is whether the node opens connections to it.
    pub fn handle_address_changed(&mut self, now: Time, dials: bool) {
        self.dials = dials;
        self.give_up_link(CloseReason::Changed);
        self.link.has_failed = false;
        self.link.is_flapping = false;
        self.link.losses = link::Losses::default();
        self.backoff.reset();
        "its address changed".clone_into(&mut self.link_why);
        self.dial();
        self.judge(now);
    }

    /// Three rounds late: the link is given up and dialled again after a wait.
    pub(super) fn fail(&mut self, now: Time) {
        self.weigh_lost_link(now);
        self.give_up_link(CloseReason::Late);
        self.link.has_failed = true;
        "given up for lateness".clone_into(&mut self.link_why);
        self.schedule_dial(now);
        self.judge(now);
    }

    /// Asks for a dial, unless the receiver comes by itself or is held.
    pub(super) fn dial(&mut self) {
        self.backoff.next_attempt = None;
        if self.dials && !self.paused {
            self.link.state = LinkState::Dialling;
            self.commands.push_back(LinkCommand::Dial);
        }
    }

    /// Closes the link, or calls back a dial.
    fn give_up_link(&mut self, reason: CloseReason) {
        if self.link.state != LinkState::Down {
            self.commands.push_back(LinkCommand::Close(reason));
        }
        self.backoff.next_attempt = None;
        self.disconnect();
    }

    /// Everything in flight goes back; every body is dropped.
    fn disconnect(&mut self) {
        for slot in self.unacked.drain() {
            self.take_back(&slot);
        }
        self.retries.detach();
        self.queue.detach(self.held.first());
        self.held = Held::new();
        if let Some(loading) = &mut self.loading {
            loading.is_stale = true;
        }
        self.load_retry_at = None;
        self.link.close();
        self.set_allowance();
    }

    /// A delivery that was not answered: its message is to be sent again.
    pub(super) fn take_back(&mut self, slot: &Slot) {
        if slot.line == Line::Straight {
            self.retries.insert(slot.number, Retry::of_slot(slot));
        } else {
            self.retries.set(slot.number, State::Wanted);
        }
    }

    /// Whether the link that is ending had proved anything.
    fn weigh_lost_link(&mut self, now: Time) {
        let was_stable = now.0.saturating_sub(self.link.up_since.0) >= STABLE_US;
        if self.link.is_proven || (was_stable && self.unacked.live() == 0) {
            self.link.is_flapping = false;
            self.link.losses.note(now);
            self.backoff.reset();
        } else {
            self.link.is_flapping = true;
            self.backoff.fail();
        }
    }

    fn schedule_dial(&mut self, now: Time) {
        if self.dials && !self.paused {
            self.backoff.schedule(now);
        }
    }

    /// A new verdict, or the old one with one more failure.
    fn tell_of_failure(&mut self, now: Time) {
        if !self.judge(now)
            && let Some(next_attempt) = self.backoff.next_attempt
        {
            let (failures, why) = (self.backoff.tries(), self.link_why.clone());
            self.reports.push_back(Report::DialFailed { failures, why, next_attempt });
        }
    }
}
