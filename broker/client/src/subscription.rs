//! Receiving as one peer.

use crate::client::Shared;
use crate::delivery::Delivery;
use crate::error::{AttachError, ReceiveError};
use crate::intake::Attachment;
use crate::slots::{Item, Taken};
use futures_core::Stream;
use restante_protocol::name::Name;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

/// Deliveries taken from the connection's lock at once.
const TAKE_MAX: usize = 64;

/// How a receiver wants to be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// Take so many deliveries, until [`Subscription::grant`] asks for more. `None`: the peer's
    /// window alone limits what is in flight; who needs long for each message grants few, or what
    /// waits for its turn is late before it comes and is delivered again.
    pub grant: Option<u64>,
}

/// An attachment: a stream of deliveries for one receiver.
///
/// It outlives lost connections: the client attaches again, and what was not acked comes again.
/// Deliveries that were buffered and not yet handed out when a connection was lost are dropped, for
/// the same reason. Dropping the subscription detaches: acks given before are sent first, and what is
/// unacked goes back to the queue.
#[derive(Debug)]
pub struct Subscription {
    reader: Reader,
    // Keeps the client running.
    _shared: Arc<Shared>,
}

impl Subscription {
    pub(crate) fn new(attachment: Arc<Attachment>, shared: Arc<Shared>) -> Subscription {
        Subscription { reader: Reader::new(attachment), _shared: shared }
    }

    /// The receiver's name.
    #[must_use]
    pub fn receiver(&self) -> &Name {
        &self.reader.attachment.name
    }

    /// Whether there was no peer of this name and attaching made it, as an open loopback node does.
    #[must_use]
    pub fn created_peer(&self) -> bool {
        self.reader.attachment.created.load(Ordering::Relaxed)
    }

    /// The next delivery. An error is news, not the end: deliveries may follow it. `None` once the
    /// client has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Delivery, ReceiveError>> {
        poll_fn(|cx| self.reader.poll_next(cx)).await
    }

    /// Takes this many deliveries more than granted so far. Without a grant in the options there is
    /// nothing to add to and nothing happens.
    pub fn grant(&self, more: u64) {
        self.reader.attachment.intake.grant(&self.reader.attachment, more);
    }

    pub(crate) async fn attached(&mut self) -> Result<(), AttachError> {
        let attachment = &self.reader.attachment;
        poll_fn(|cx| {
            attachment.reader.listen(cx);
            match attachment.intake.poll_attached(attachment) {
                Some(outcome) => Poll::Ready(outcome),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl Stream for Subscription {
    type Item = Result<Delivery, ReceiveError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reader.poll_next(cx)
    }
}

/// Takes deliveries in batches and hands them out one by one.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) attachment: Arc<Attachment>,
    taken: VecDeque<Item>,
    /// Taken, and dropped because their attachment was lost.
    untaken: u64,
    pub(crate) handed_out: u64,
}

impl Reader {
    pub(crate) fn new(attachment: Arc<Attachment>) -> Reader {
        Reader { attachment, taken: VecDeque::new(), untaken: 0, handed_out: 0 }
    }

    pub(crate) fn poll_next(
        &mut self,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Delivery, ReceiveError>>> {
        loop {
            if let Some(delivery) = self.hand_out() {
                return Poll::Ready(Some(Ok(delivery)));
            }
            self.attachment.reader.listen(cx);
            match self.refill() {
                // They may be void already, if the connection was lost this very moment.
                Taken::Items => {}
                Taken::Nothing => return Poll::Pending,
                Taken::Trouble(error) => return Poll::Ready(Some(Err(error))),
                Taken::Over => return Poll::Ready(None),
            }
        }
    }

    pub(crate) fn refill(&mut self) -> Taken {
        let untaken = std::mem::take(&mut self.untaken);
        self.attachment.intake.take(&self.attachment, TAKE_MAX, untaken, &mut self.taken)
    }

    pub(crate) fn hand_out(&mut self) -> Option<Delivery> {
        let item = self.taken.pop_front()?;
        if item.generation == self.attachment.generation.load(Ordering::Acquire) {
            self.handed_out += 1;
            return Some(Delivery::new(item, &self.attachment));
        }
        self.untaken += 1 + self.taken.len() as u64;
        self.taken.clear();
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.attachment.intake.leave(&self.attachment);
    }
}
