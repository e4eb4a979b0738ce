//! Messages under suspicion: one that crashes or hangs its receiver must not block the rest for ever.
//!
//! A message that was alone in flight when the link was lost, or when no ack came and nothing else was
//! answered since it was sent, is under suspicion from then on: it is sent alone, and after an outage
//! others go first, so that what the receiver does with them tells the message from the receiver.
//! (One that stays unanswered while others are acked hangs nothing: it is just sent again. And where a link
//! is silent already, what is sent after that tells nothing of itself.) While no other message has been
//! acked since its first loss, its losses count as one: an absent receiver condemns nothing, however
//! long it is away. At [`SUSPECT_LOSSES`] in a row the message is parked.

use super::retries::SUSPECTS_MAX;
use super::*;

/// Losses in a row, alone in flight, at which a message is parked.
pub const SUSPECT_LOSSES: u8 = 5;

impl<B> Delivery<B> {
    /// The link is being lost: was one message alone in flight?
    pub(super) fn note_loss_if_alone(&mut self) {
        if self.unacked.live() != 1 || self.link.is_stalled {
            return;
        }
        let alone = self.unacked.iter().next().map(|(tag, slot)| (tag, slot.number));
        let Some((tag, number)) = alone else { return };
        if let Some(slot) = self.unacked.take(tag) {
            self.unacked.settle_front();
            self.take_back(&slot);
        }
        self.note_loss(number);
    }

    /// A message, by now wanted again, was alone in flight at a loss.
    pub(super) fn note_loss(&mut self, number: MessageNumber) {
        let (acked, has_room) = (self.acked, self.retries.suspects() < SUSPECTS_MAX);
        let mut losses = 0;
        self.retries.update(number, |retry| {
            if retry.losses == 0 && has_room {
                (retry.losses, retry.acked_before) = (1, acked);
            } else if retry.losses > 0 && acked > retry.acked_before {
                retry.losses += 1;
            }
            losses = retry.losses;
        });
        if losses >= SUSPECT_LOSSES {
            let reason = format!(
                "suspect: alone in flight at {losses} lost links or timeouts in a row, while others \
                 were acked"
            );
            self.park_retry(number, reason);
        }
    }
}
