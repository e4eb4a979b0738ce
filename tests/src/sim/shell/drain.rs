//! Emptying a core: what it wants sent, recorded, read and woken up for.

use super::*;

impl Shell {
    /// Takes out of the core all it has to give.
    pub(super) fn drain(&mut self, shared: &mut Shared, out: &mut Outside) {
        self.dirty = false;
        let now = out.now;
        if self.core.next_deadline().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now);
        }
        self.obey(shared, out);
        match self.is_limited {
            true => self.transmit_by_leave(shared, out),
            false => self.transmit(out),
        }
        self.record_parked(shared, out);
        self.record_settled(shared, out);
        // Records of what was answered before it are known by now.
        self.tell_sent(out);
        out.judge.drained(self.peer, self.core.waiting());
        self.check_reports(out);
        self.return_budget(shared);
        if let Some(load) = self.core.poll_load() {
            self.load(load, shared, out);
        }
        self.check_bodies(out);
        self.arm(out);
    }

    /// As [`Shell::transmit`], as far as there is leave to.
    fn transmit_by_leave(&mut self, shared: &mut Shared, out: &mut Outside) {
        let (now, id) = (out.now, self.id);
        let demand = self.demand(now);
        shared.asks_leave = true;
        let granted = shared.shaper.granted(id);
        match granted {
            Some(leave) if demand.is_met_by(leave) => {
                self.core.handle_leave(leave);
                self.transmit(out);
                let used = self.core.end_leave();
                let demand = self.demand(now);
                shared.shaper.handle_used(now, id, used, demand);
            }
            // It was for something else: for a smaller message, or for a link that is gone.
            Some(_) => shared.shaper.handle_used(now, id, Amount::default(), demand),
            None => shared.shaper.handle_demand(now, id, demand),
        }
    }

    /// What it would send if there were leave to; nothing while the link has no room.
    fn demand(&mut self, now: Time) -> Demand {
        match &self.link {
            Some(attachment) if attachment.room() > 0 => self.core.poll_demand(now),
            Some(_) | None => Demand::default(),
        }
    }

    fn transmit(&mut self, out: &mut Outside) {
        let now = out.now;
        let Some(attachment) = &mut self.link else { return };
        let (mut room, mut leaving) = (attachment.room(), Vec::new());
        while room > 0 {
            let Some(transmit) = self.core.poll_transmit(now) else { break };
            let Transmit { tag, number, attempt, redelivered, ref body, .. } = transmit;
            room = room.saturating_sub(body.bytes as usize + FRAME_BYTES);
            let (at, token, bytes) = (now, body.token, body.bytes);
            leaving.push((Sending { at, tag, number, token, attempt, redelivered }, bytes));
        }
        self.send(&leaving, out);
    }

    fn record_parked(&mut self, shared: &mut Shared, out: &mut Outside) {
        while let Some(parked) = self.core.poll_parked() {
            out.judge.parked(self.peer, &parked);
            let Parked { number, attempts, reason, .. } = parked;
            let (peer, at_ms) = (self.id, out.wall_ms());
            shared.journal.park(&ParkRecord { peer, number, at_ms, attempts, reason });
            shared.has_news = true;
        }
    }

    fn record_settled(&mut self, shared: &mut Shared, out: &mut Outside) {
        let mut settled: Vec<Settled> = Vec::new();
        while let Some(one) = self.core.poll_settled() {
            out.judge.settled(self.peer, &one);
            settled.push(one);
        }
        settled.sort_unstable_by_key(|settled| settled.number);
        let mut expired: Vec<Expired> = Vec::new();
        while let Some(one) = self.core.poll_expired() {
            out.judge.expired(self.peer, &one);
            expired.push(one);
        }
        expired.sort_unstable_by_key(|expired| expired.number);
        let floor = self.core.floor();
        let details = expired.iter().filter(|one| one.attempts > 0);
        let details = details.map(|one| (one.number, one.attempts)).collect();
        let numbers: Vec<MessageNumber> = expired.iter().map(|one| one.number).collect();
        let low = if settled.is_empty() { floor } else { 0 };
        self.record(Outcome::Expired, low, numbers.clone(), numbers, details, shared, out);
        let details = settled.iter().filter(|one| one.attempts > 1);
        let details = details.map(|one| (one.number, one.attempts)).collect();
        let numbers: Vec<MessageNumber> = settled.iter().map(|one| one.number).collect();
        let above = numbers.iter().copied().filter(|number| *number > floor).collect();
        self.record(Outcome::Acked, floor, above, numbers, details, shared, out);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn record(
        &self,
        outcome: Outcome,
        floor: MessageNumber,
        above: Vec<MessageNumber>,
        numbers: Vec<MessageNumber>,
        details: Vec<(MessageNumber, u16)>,
        shared: &mut Shared,
        out: &Outside,
    ) {
        if numbers.is_empty() {
            return;
        }
        let detail = |(number, attempts)| SettleDetail { number, attempts, value: Vec::new() };
        let (peer, at_ms, moved_to) = (self.id, out.wall_ms(), PeerId::NONE);
        let details = details.into_iter().map(detail).collect();
        let record = SettleRecord { peer, at_ms, outcome, moved_to, floor, above, details };
        shared.journal.settle(Settle { record, numbers });
        shared.has_news = true;
    }

    /// The next attempt is never in the past.
    fn check_reports(&mut self, out: &Outside) {
        while let Some(report) = self.core.poll_report() {
            let next = match &report {
                Report::DialFailed { next_attempt, .. } | Report::Refused { next_attempt, .. } => {
                    Some(*next_attempt)
                }
                Report::Verdict { next_attempt, .. } => *next_attempt,
                Report::Late { .. } => None,
                Report::OddAck { .. } => {
                    out.judge.fail(Some(self.peer), format_args!("{report:?}"));
                }
            };
            if next.is_some_and(|next| next < out.now) {
                out.judge.fail(Some(self.peer), format_args!("in the past: {report:?}"));
            }
        }
    }

    fn return_budget(&mut self, shared: &Shared) {
        let held = self.core.held_bytes() as usize;
        if self.budgeted > held {
            shared.queued_bytes.give(self.budgeted - held);
            self.budgeted = held;
        }
    }

    fn load(&mut self, load: Load, shared: &Shared, out: &mut Outside) {
        let Load { after, through, bytes_max, messages_max } = load;
        out.judge.see(self.peer, Seen::Load { after, through });
        let (peer, lane) = (self.id, Lane::Open);
        let read = Read { peer, lane, after, through, bytes_max, messages_max };
        let page = match out.peer_dice[self.peer].random_bool(0.5) {
            true => Reading::Done(shared.journal.next(read)),
            false => Reading::Due(read),
        };
        let wait = out.peer_dice[self.peer].random_range(200..20_000);
        let (peer, core, page) = (self.peer, self.core_number, Box::new(page));
        out.after(wait, Event::Page { peer, core, page });
    }

    /// No bodies without a link, and with one no more than the bounds say.
    fn check_bodies(&self, out: &mut Outside) {
        let window = self.settings.window_messages as usize;
        let queue = QUEUE_MESSAGES_MIN.max(QUEUE_WINDOWS * window);
        // The send queue, its tail during a read, ready retries, and what is held for keys.
        let most = if self.link.is_some() { 3 * queue + SKIPPED_MAX } else { 0 };
        let held = self.copies.get();
        if held > most {
            out.judge.fail(Some(self.peer), format_args!("{held} bodies are held, {most} may be"));
        }
        out.judge.tally.bodies_max = out.judge.tally.bodies_max.max(held);
    }

    fn arm(&mut self, out: &mut Outside) {
        let (now, due) = (out.now, self.core.next_deadline());
        let is_visible = self.link.is_some() || self.dialling.is_some() || due.is_some();
        if due.is_some_and(|due| due <= now) || (self.dials && !self.paused && !is_visible) {
            let what =
                format_args!("the next thing happens at {due:?}: {:?}", self.core.snapshot(now));
            out.judge.fail(Some(self.peer), what);
        }
        if let Some(due) = due.filter(|due| self.armed.is_none_or(|armed| armed > *due)) {
            self.armed = Some(due);
            out.at(due, Event::Timer(self.peer));
        }
    }
}
