//! What a shell asks before it hands messages over, and how it hands over mere counts: bodies that
//! cannot be sent at once cost memory, and the shell decides whether there is any.

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

    /// Whether all of so many fresh messages would leave at once if they were enqueued now.
    #[must_use]
    pub fn takes_at_once(&self, messages: usize, bytes: u64) -> bool {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        let granted = self.link.grant.saturating_sub(self.unacked.next_tag() - 1);
        self.link.is_up()
            && self.queue.is_attached()
            && self.queue.len() == 0
            && self.held.is_empty()
            && self.retries.is_empty()
            && self.unacked.live().saturating_add(messages) <= self.allowance
            && u64::from(messages) <= granted
            && self.unacked.bytes().saturating_add(bytes) <= self.terms.window_bytes
            && self.terms.order != Order::Strict
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
