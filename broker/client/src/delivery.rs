//! What a receiver is handed, and how it answers.

use crate::error::ValueTooLarge;
use crate::intake::{Attachment, Refuse, Settled};
use crate::slots::Item;
use bytes::Bytes;
use restante_protocol::id::MessageId;
use restante_protocol::limits::RETURN_BYTES_MAX;
use restante_protocol::message::{Body, decode_headers};
use restante_protocol::name::Name;
use std::sync::Arc;
use std::time::Duration;

/// One message for one receiver.
///
/// Settle it by [`ack`](Delivery::ack), [`ack_value`](Delivery::ack_value) or
/// [`nack`](Delivery::nack). Dropping it says nothing to the node: the message stays in flight, and
/// takes room in the peer's window, until the peer's ack timeout has passed or the attachment ends;
/// then it is delivered again. So what a crashed handler had in hand is never lost.
///
/// The same message may come more than once: after a lost connection, a late ack, a restart of the
/// node. It then carries the same id and is flagged as redelivered.
#[derive(Debug)]
pub struct Delivery {
    /// The message's id; the same on every delivery of it.
    pub id: MessageId,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// 1 for the first attempt; a lower bound after a restart of the node.
    pub attempt: u16,
    /// The journal epoch of the node that sent it.
    pub epoch: u32,
    /// What the message says. It shares the memory of the read it came by (about 64 KiB): copy what
    /// is kept for long.
    pub payload: Bytes,
    /// Key and headers as they stand before the payload.
    head: Bytes,
    attachment: Arc<Attachment>,
    generation: u32,
    tag: u64,
}

/// A refusal of a delivery by its receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// Never try again: the message is parked. Else it is tried again later.
    pub permanent: bool,
    /// Not before this time from now; `None`: as the peer's retry schedule says.
    pub retry_after: Option<Duration>,
    /// One line for people, at most 1,024 bytes.
    pub reason: String,
}

impl Nack {
    /// Try again, as the peer's retry schedule says.
    pub fn transient(reason: impl Into<String>) -> Nack {
        Nack { permanent: false, retry_after: None, reason: reason.into() }
    }

    /// Never try again.
    pub fn permanent(reason: impl Into<String>) -> Nack {
        Nack { permanent: true, retry_after: None, reason: reason.into() }
    }

    /// Not before this time from now.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Nack {
        self.retry_after = Some(wait);
        self
    }
}

impl Delivery {
    pub(crate) fn new(item: Item, attachment: &Arc<Attachment>) -> Delivery {
        let Item { generation, tag, id, epoch, attempt, redelivered, body, .. } = item;
        // The node relays bodies as it accepted them; one that cannot be taken apart is handed on whole.
        let payload_at = Body::parse(&body).map_or(0, |parts| body.len() - parts.payload.len());
        // Flags of zero say that there is neither key nor header and that no answer is awaited.
        let head = if body.first() == Some(&0) { Bytes::new() } else { body.slice(..payload_at) };
        Delivery {
            id,
            redelivered,
            attempt,
            epoch,
            payload: body.slice(payload_at..),
            head,
            attachment: attachment.clone(),
            generation,
            tag,
        }
    }

    /// The receiver this is for.
    #[must_use]
    pub fn receiver(&self) -> &Name {
        &self.attachment.name
    }

    /// The ordering key, if there is one.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.parts().key
    }

    /// The headers in the producer's order; empty without any.
    #[must_use]
    pub fn headers(&self) -> Vec<(String, String)> {
        // What is no map of strings was not encoded by a client of this protocol.
        self.parts().headers.and_then(|headers| decode_headers(headers).ok()).unwrap_or_default()
    }

    /// Whether the producer awaits a return value, see [`Delivery::ack_value`].
    #[must_use]
    pub fn is_call(&self) -> bool {
        self.parts().reply
    }

    fn parts(&self) -> Body<'_> {
        Body::parse(&self.head).unwrap_or_default()
    }

    /// The message is done. Acks are coalesced and sent with the next write.
    pub fn ack(self) -> Settled {
        self.attachment.intake.ack(&self.attachment, self.generation, self.tag)
    }

    /// The message is done, and this is the answer to a call; kept with the ledger's record.
    ///
    /// # Errors
    /// The value has more than 64 KiB. Nothing was sent; the error holds the delivery.
    pub fn ack_value(self, value: impl AsRef<[u8]>) -> Result<Settled, ValueTooLarge> {
        let value = value.as_ref();
        if value.len() > RETURN_BYTES_MAX {
            let (bytes, max) = (value.len(), RETURN_BYTES_MAX);
            return Err(ValueTooLarge { bytes, max, delivery: Box::new(self) });
        }
        let intake = &self.attachment.intake;
        Ok(intake.ack_value(&self.attachment, self.generation, self.tag, value))
    }

    /// The message is refused: tried again later, or parked if the nack is permanent.
    pub fn nack(self, nack: Nack) -> Settled {
        let wait = nack.retry_after.unwrap_or_default().as_millis();
        let refuse = Refuse {
            permanent: nack.permanent,
            retry_after_ms: u32::try_from(wait).unwrap_or(u32::MAX),
            reason: &nack.reason,
        };
        self.attachment.intake.nack(&self.attachment, self.generation, self.tag, &refuse)
    }
}
