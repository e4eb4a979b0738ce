//! Receivers on one connection: everything one read brings is counted and acked by one range per
//! receiver.

use super::super::{Exit, Failure};
use super::producer::{Phase, Shared};
use super::wire::{Link, unexpected};
use restante_protocol::codec::put_ack;
use restante_protocol::control::{AttachAs, Reply, Request};
use restante_protocol::frame::{Deliver, Frame, TagRange};
use restante_protocol::message::Body;
use restante_protocol::name::Name;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

pub(super) struct Receiver {
    link: Link,
    /// By slot.
    slots: Vec<Slot>,
    /// Slots that have something to ack.
    touched: Vec<u32>,
}

struct Slot {
    /// Which receiver of the run this is.
    receiver: u32,
    /// Taken and not acked.
    open: Option<TagRange>,
}

impl Receiver {
    /// Attaches as receivers `first`, `first + 1`, …
    pub(super) async fn attach(
        server: &str,
        first: u32,
        names: &[Name],
    ) -> Result<Receiver, Failure> {
        let mut link = Link::dial(server, None).await?;
        let receivers = (0..)
            .zip(names)
            .map(|(slot, name)| AttachAs { slot, name: name.clone(), grant: None })
            .collect();
        let Reply::Attached(results) = link.ask_one(Request::Attach { receivers }).await? else {
            return Err(Failure::new(Exit::Failed, "the node answers attach with something else"));
        };
        if let Some(refusal) = results.into_iter().find_map(|result| result.refusal) {
            return Err(refusal.into());
        }
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        Ok(Receiver::of(link, first..first.saturating_add(count)))
    }

    /// On a connection that the node has dialled for this receiver.
    pub(super) fn dialled(link: Link, receiver: u32) -> Receiver {
        Receiver::of(link, receiver..receiver + 1)
    }

    fn of(link: Link, receivers: std::ops::Range<u32>) -> Receiver {
        let slots: Vec<Slot> = receivers.map(|receiver| Slot { receiver, open: None }).collect();
        Receiver { link, touched: Vec::with_capacity(slots.len()), slots }
    }

    /// Receives until the run is done; then awaits the node's word that every ack is on disk.
    pub(super) async fn run(mut self, shared: Rc<Shared>) -> Result<(), Failure> {
        let mut phase = shared.phase.clone();
        // The first deliveries may have come in one piece with the answer to the attach.
        self.take(&shared)?;
        {
            let mut done = pin!(phase.wait_for(|phase| *phase == Phase::Done));
            poll_fn(|cx| match self.poll(cx, &shared) {
                Poll::Pending => done.as_mut().poll(cx).map(|_| Ok(())),
                Poll::Ready(failure) => Poll::Ready(Err(failure)),
            })
            .await?;
        }
        self.link.ask_one(Request::Flush).await.map(drop)
    }

    fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Failure> {
        loop {
            let idle = match self.link.poll_fill(cx) {
                Poll::Ready(Err(failure)) => return Poll::Ready(failure),
                Poll::Ready(Ok(())) => match self.take(shared) {
                    Err(failure) => return Poll::Ready(failure),
                    Ok(()) => false,
                },
                Poll::Pending => {
                    self.link.poll_beat(cx);
                    true
                }
            };
            if let Poll::Ready(Err(failure)) = self.link.poll_drain(cx) {
                return Poll::Ready(failure);
            }
            if idle {
                return Poll::Pending;
            }
        }
    }

    /// The deliveries of one read.
    fn take(&mut self, shared: &Shared) -> Result<(), Failure> {
        let now_ns = shared.now_ns();
        let mut tally = shared.tally.borrow_mut();
        let bodies = shared.bodies.borrow();
        while let Some(frame) = self.link.input.next()? {
            let Deliver { slot, tag, redelivered, body, .. } = match frame {
                Frame::Deliver(deliver) => deliver,
                Frame::Heartbeat => continue,
                frame => return Err(unexpected(&frame)),
            };
            let at = slot as usize;
            let Some(Slot { receiver, open }) = self.slots.get_mut(at) else {
                let what = format!("a delivery for slot {slot}, which is not attached");
                return Err(Failure::new(Exit::Failed, what));
            };
            match open {
                Some(range) if range.last + 1 == tag => range.last = tag,
                Some(range) => {
                    put_ack(&mut self.link.out, slot, &[*range]);
                    *range = TagRange { first: tag, last: tag };
                }
                None => {
                    *open = Some(TagRange { first: tag, last: tag });
                    self.touched.push(slot);
                }
            }
            match Body::parse(body).ok().and_then(|body| bodies.check(body.payload)) {
                Some(stamp) => tally.delivered(stamp, *receiver, redelivered, now_ns),
                None => tally.counts.foreign += 1,
            }
        }
        for slot in self.touched.drain(..) {
            if let Some(range) = self.slots[slot as usize].open.take() {
                put_ack(&mut self.link.out, slot, &[range]);
            }
        }
        Ok(())
    }
}
