//! What the router hands over: sent at once where that goes, else kept while there is memory for it,
//! else only counted, to be read from the journal when its turn comes.
//!
//! A receiver that keeps up is the usual case, and then a body is copied once: from the batch as it went
//! to disk into the link's buffer. The core is told that the messages have left, and never holds them.

use super::drain::FRAME_BYTES;
use super::{Enqueue, EnqueuedMessage, Peer};
use crate::clock;
#[cfg(feature = "faults")]
use crate::faults::{self, Place};
use crate::link::Outgoing;
use bytes::Bytes;
use restante_protocol::delivery::types::{Entry, Sent};
use restante_protocol::id::{MessageId, MessageNumber};
use restante_protocol::message::{Body, body_flags};
use restante_protocol::time::Time;

/// What the processors there are fetch at a time.
const CACHE_LINE_BYTES: usize = 64;
/// Bytes of one body that are asked for ahead; a longer copy is fetched ahead by the processor itself.
const WARM_BYTES_MAX: usize = 16 * CACHE_LINE_BYTES;
/// Flags of a body with which more is to be done than to send it.
const SPECIAL: u8 = body_flags::REPLY | body_flags::ORIGINAL_ID | body_flags::OPTIONS;

impl Enqueue {
    fn number(&self, message: &EnqueuedMessage) -> MessageNumber {
        self.first_number + u64::from(message.index)
    }

    fn body(&self, message: &EnqueuedMessage) -> &[u8] {
        &self.chunk[message.range()]
    }
}

impl EnqueuedMessage {
    fn range(&self) -> std::ops::Range<usize> {
        let at = self.body_at as usize;
        at..at + self.body_len as usize
    }
}

impl Peer {
    /// Takes over what an [`Enqueue`] brings. What cannot be sent at once is copied: a slice pins the
    /// whole batch.
    pub(super) fn enqueue(&mut self, enqueue: &Enqueue) {
        let now = clock::now();
        let (missed, count) = (enqueue.missed, enqueue.messages.len());
        let bytes: u64 = enqueue.messages.iter().map(|message| u64::from(message.body_len)).sum();
        self.taken.add(missed.messages + count as u64, missed.bytes + bytes);
        if missed.messages > 0 {
            self.core.handle_missed(now, missed.newest, missed.messages, missed.bytes);
        }
        let messages = &enqueue.messages;
        let (Some(first), Some(last)) = (messages.first(), messages.last()) else { return };
        let (first, newest) = (enqueue.number(first), enqueue.number(last));
        let room = self.link.as_ref().map_or(0, |attachment| attachment.link.room());
        let fits = room as u64 >= bytes + (FRAME_BYTES * count) as u64;
        // What has fallen due comes first: it may change what the receiver is given.
        let is_due = self.core.next_deadline().is_some_and(|due| due <= now);
        let at_once = fits && !is_due && self.core.takes_at_once(first, count, bytes);
        if !at_once {
            let room = self.core.keeps_bodies() && self.take_budget(bytes);
            if !room {
                self.core.handle_missed(now, newest, count as u64, bytes);
                return;
            }
        }
        let flags = self.look_over(enqueue);
        if at_once && flags & SPECIAL == 0 && now >= self.careful_until {
            return self.send_at_once(now, enqueue);
        }
        let (chunk, accepted_ms) = (&enqueue.chunk, enqueue.accepted_ms);
        let (marks, shared) = (&self.marks, &self.shared);
        let entries = enqueue.messages.iter().map(|message| {
            let (number, range) = (enqueue.number(message), message.range());
            marks.take_in_hand(number, accepted_ms);
            let body =
                if at_once { chunk.slice(range) } else { Bytes::copy_from_slice(&chunk[range]) };
            let expires = if message.has_options {
                let options = Body::parse(&body).unwrap_or_default();
                shared.expiry(number, accepted_ms, &options)
            } else {
                None
            };
            let (bytes, key) = (message.body_len, message.key);
            Entry { number, accepted_ms, bytes, key, expires, body }
        });
        self.core.handle_enqueue(now, marks.then_put_down(entries));
    }

    /// Takes each message in hand and looks at its body; the flags that any of them has.
    ///
    /// The bodies were written a while ago and have been read by the journal's thread since, and a copy
    /// of each would wait for one cache line after the other: here many are asked for at a time.
    fn look_over(&self, enqueue: &Enqueue) -> u8 {
        let (mut flags, mut lines) = (0, 0);
        for message in &enqueue.messages {
            self.marks.take_in_hand(enqueue.number(message), enqueue.accepted_ms);
            let body = enqueue.body(message);
            #[cfg(feature = "faults")]
            faults::with_body(Place::Enqueue, &self.config.name, body);
            flags |= body.first().copied().unwrap_or(0);
            let warmed = &body[..body.len().min(WARM_BYTES_MAX)];
            lines = warmed.iter().step_by(CACHE_LINE_BYTES).fold(lines, |all, line| all ^ line);
        }
        std::hint::black_box(lines);
        self.marks.put_down();
        flags
    }

    /// Hands the link messages that have been looked over, and of which the core takes all at once.
    fn send_at_once(&mut self, now: Time, enqueue: &Enqueue) {
        let Some(attachment) = &mut self.link else { return };
        #[cfg(feature = "faults")]
        for message in &enqueue.messages {
            let (number, body) = (enqueue.number(message), enqueue.body(message));
            self.marks.take_in_hand(number, enqueue.accepted_ms);
            faults::before_transmit(&self.config.name, number, body);
            self.marks.put_down();
            faults::with_body(Place::Send, &self.config.name, body);
        }
        let (accepted_ms, messages) = (enqueue.accepted_ms, &enqueue.messages);
        let first_tag = self.core.handle_sent(
            now,
            messages.iter().map(|message| Sent {
                number: enqueue.number(message),
                accepted_ms,
                bytes: message.body_len,
                key: message.key,
            }),
        );
        let (node, partition) = (self.shared.node, self.shared.partition);
        attachment.link.transmit(&mut (first_tag..).zip(messages).map(|(tag, message)| {
            let id = MessageId::new(accepted_ms, node, partition, enqueue.number(message));
            let body = enqueue.body(message);
            Outgoing { tag, attempt: 1, redelivered: false, id, body }
        }));
        // Not before they have left, as in a drain.
        attachment.next_tag = first_tag + messages.len() as u64;
    }

    fn take_budget(&mut self, bytes: u64) -> bool {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let taken = self.shared.queued_bytes.take(bytes);
        if taken {
            self.budgeted += bytes;
        }
        taken
    }
}
