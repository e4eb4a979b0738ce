//! What a shell asks before it hands messages over, and how it hands over those that need no place in
//! the send queue: messages that leave at once, and mere counts. Bodies that cannot be sent at once
//! cost memory, and the shell decides whether there is any.

use super::*;

impl<B> Delivery<B> {
    /// Fresh messages, durable, of which the shell has no bodies to give: `messages` of them, up to
    /// `newest`, above every earlier one. They are read from the journal when their turn comes.
    pub fn handle_missed(&mut self, _now: Time, newest: MessageNumber, messages: u64, bytes: u64) {
        if self.queue.count(newest) {
            // What a read under way keeps of the tail would have a gap.
            self.queue.abandon_read();
            self.waiting += messages;
            self.waiting_bytes += bytes;
        }
    }

    /// Whether all of so many messages from `first` on would leave at once, as first attempts, if they
    /// were enqueued now.
    #[must_use]
    pub fn takes_at_once(&self, first: MessageNumber, messages: usize, bytes: u64) -> bool {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let granted = self.tag_max.saturating_sub(self.unacked.next_tag() - 1);
        self.link.is_up()
            && first > self.queue.newest().max(self.maybe_sent)
            && self.queue.is_attached()
            && self.queue.len() == 0
            && self.held.is_empty()
            && self.retries.is_empty()
            && self.unacked.live().saturating_add(messages) <= self.allowance
            && u64::from(messages) <= granted
            && self.unacked.bytes().saturating_add(bytes) <= self.bytes_max
            && self.terms.order != Order::Strict
    }

    /// Fresh messages without a time to live, of which [`Delivery::takes_at_once`] has just said that
    /// they leave at once: they have left, past the send queue and without a body, under consecutive
    /// tags from the one returned on. Comes to the same as enqueueing and transmitting them.
    #[inline]
    pub fn handle_sent(&mut self, now: Time, messages: impl Iterator<Item = Sent>) -> u64 {
        let first_tag = self.unacked.next_tag();
        let bytes_before = self.unacked.bytes();
        for Sent { number, accepted_ms, bytes, key } in messages {
            let (line, left) = (Line::Straight, Left::of(None, now));
            let slot = Slot { number, sent_at: now, accepted_ms, key, bytes, line, left };
            self.unacked.push(slot, self.terms.window_messages);
            self.queue.pass(number);
        }
        self.waiting += self.unacked.next_tag() - first_tag;
        self.waiting_bytes += self.unacked.bytes() - bytes_before;
        first_tag
    }

    /// Whether bodies enqueued now would be kept, rather than only counted.
    #[must_use]
    pub fn keeps_bodies(&self) -> bool {
        self.link.is_up() && self.queue.keeps()
    }

    /// Bytes of bodies held here.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.queue.all_bytes() + self.held.bytes() + self.retries.ready_bytes()
    }

    /// Open messages: accepted and not done, in flight included, parked not.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.waiting
    }

    /// Their bytes.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: MessageNumber = 5;

    /// A core with a link, and with earlier messages up to `newest`, none of them open.
    fn core(newest: MessageNumber) -> Delivery<()> {
        let start = Start { newest, floor: newest, dials: true, ..Start::default() };
        let mut core = Delivery::new(Time::ZERO, &PeerSettings::default(), start, 7);
        assert_eq!(core.poll_link(), Some(LinkCommand::Dial));
        core.handle_link_up(Time(1), 1, None);
        core
    }

    fn sent() -> impl Iterator<Item = Sent> {
        (FIRST..FIRST + 3).map(|number| Sent { number, accepted_ms: 9, bytes: 10, key: None })
    }

    #[test]
    fn what_leaves_at_once_leaves_the_core_as_if_it_had_been_queued() {
        let (mut past_the_queue, mut through_it) = (core(1), core(1));
        assert!(past_the_queue.takes_at_once(FIRST, 3, 30));
        let first_tag = past_the_queue.handle_sent(Time(2), sent());
        let entries = sent().map(|sent| {
            let Sent { number, accepted_ms, bytes, key } = sent;
            Entry { number, accepted_ms, bytes, key, expires: None, body: () }
        });
        through_it.handle_enqueue(Time(2), entries);
        let tags: Vec<u64> = core::iter::from_fn(|| through_it.poll_transmit(Time(2)))
            .map(|sent| sent.tag)
            .collect();
        assert_eq!(tags, [first_tag, first_tag + 1, first_tag + 2]);
        assert_eq!(format!("{past_the_queue:?}"), format!("{through_it:?}"));
    }

    #[test]
    fn only_what_is_new_and_fits_leaves_at_once() {
        let mut core = core(FIRST);
        assert!(!core.takes_at_once(FIRST, 1, 10), "it has been counted before");
        assert!(core.takes_at_once(FIRST + 1, 1, 10));
        assert!(!core.takes_at_once(FIRST + 1, 1, u64::MAX), "more than the window");
        assert!(!core.takes_at_once(FIRST + 1, usize::MAX, 10), "more than the window");
        let (number, accepted_ms, bytes) = (FIRST + 1, 9, 10);
        let queued = Entry { number, accepted_ms, bytes, key: None, expires: None, body: () };
        core.handle_enqueue(Time(2), [queued]);
        assert!(!core.takes_at_once(FIRST + 2, 1, 10), "another is to leave first");
        assert!(core.poll_transmit(Time(2)).is_some());
        assert!(core.takes_at_once(FIRST + 2, 1, 10));
        core.handle_link_down(Time(3), "lost", true);
        assert!(!core.takes_at_once(FIRST + 2, 1, 10), "there is no link");
    }
}
