//! One pass over what a read has brought: frames are sorted by where they go.
//!
//! ```text
//! publish ─► items + receivers ─┐ one batch to the router
//! ack, value, nack, grant ─► slots ─► one message per peer
//! control ─► alias: bound here, in the order of the publishes · the rest: in order, after the pass
//! ```
//!
//! A publish costs its parse, a look-up per receiver and a push. What is wrong with one publish is
//! that publish's alone and is told to the router, which records it under its sequence.

use super::aliases::Aliases;
use super::credit::Credit;
use super::slots::Slots;
use bytes::Bytes;
use restante_actors::directory::Directory;
use restante_actors::link::SharedProducer;
use restante_actors::router::{ProducerSession, PublishBatch, PublishItem, Receiver};
use restante_protocol::codec::{
    self, Limits, Next, RefusedPublish, next_frame, next_whole_publish,
};
use restante_protocol::control::Control;
use restante_protocol::frame::{Frame, Publish};
use restante_protocol::id::PeerId;
use restante_protocol::refusal::{Code, Refusal};

/// See the module.
pub(super) struct Intake {
    limits: Limits,
    /// Who publishes here, if anybody does.
    producer: Option<ProducerSession>,
    pub(super) aliases: Aliases,
    pub(super) credit: Credit,
    items: Vec<PublishItem>,
    receivers: Vec<Receiver>,
    /// How many of the items are not refused yet: whether the router needs their bytes.
    good: usize,
    /// Sequences published by one who may not.
    pub(super) unwelcome: Vec<u64>,
    /// What has to be answered or decided, in order.
    pub(super) controls: Vec<Heard>,
    /// Deliveries that acks have named.
    pub(super) settled: u64,
}

/// What has to be answered or decided.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    Control(Box<Control>),
    /// A request with a value that cannot be, such as a bad name, and what is wrong with it.
    Unreadable {
        id: u64,
        why: Refusal,
    },
}

/// How far a pass came.
pub(super) struct Pass {
    /// Bytes of whole frames.
    pub(super) consumed: usize,
    /// Bytes of the frame that has begun behind them, as far as is known.
    pub(super) wanted: usize,
    /// Bytes to come that are to be skipped.
    pub(super) skip: usize,
}

impl Intake {
    /// Whether the other side has a producer identity.
    pub(super) fn publishes(&self) -> bool {
        self.producer.is_some()
    }

    pub(super) fn new(limits: Limits, producer: Option<ProducerSession>, credit: Credit) -> Intake {
        Intake {
            limits,
            producer,
            aliases: Aliases::default(),
            credit,
            items: Vec::new(),
            receivers: Vec::new(),
            good: 0,
            unwelcome: Vec::new(),
            controls: Vec::new(),
            settled: 0,
        }
    }

    /// Takes apart all whole frames of `bytes`.
    ///
    /// # Errors
    /// What came cannot be trusted any further; frames before it have been taken.
    pub(super) fn pass(
        &mut self,
        bytes: &[u8],
        slots: &mut Slots,
        directory: &Directory,
    ) -> Result<Pass, Refusal> {
        let mut at = 0;
        loop {
            while let Some((publish, consumed)) = next_whole_publish(&bytes[at..], &self.limits) {
                at += consumed;
                self.publish(&publish, at, consumed, directory);
            }
            match next_frame(&bytes[at..], &self.limits).map_err(|error| error.refusal())? {
                Next::Frame { frame, consumed } => {
                    at += consumed;
                    self.other(frame, slots, directory)?;
                }
                Next::Refused(refused) => {
                    at += refused.consumed;
                    self.refused(&refused);
                    if refused.skip > 0 {
                        return Ok(Pass { consumed: at, wanted: 0, skip: refused.skip });
                    }
                }
                Next::Partial { bytes } => {
                    return Ok(Pass { consumed: at, wanted: bytes, skip: 0 });
                }
            }
        }
    }

    /// The publishes of the pass as one message, if there were any.
    pub(super) fn take_batch(
        &mut self,
        chunk: Bytes,
        from: impl FnOnce() -> SharedProducer,
    ) -> Option<PublishBatch> {
        let producer = self.producer?;
        if self.items.is_empty() {
            return None;
        }
        // The next read will likely bring as much as this one.
        let (items, receivers) = (self.items.len(), self.receivers.len());
        let chunk = if std::mem::take(&mut self.good) > 0 { chunk } else { Bytes::new() };
        Some(PublishBatch {
            from: from(),
            producer,
            chunk,
            items: std::mem::replace(&mut self.items, Vec::with_capacity(items)),
            receivers: std::mem::replace(&mut self.receivers, Vec::with_capacity(receivers)),
        })
    }

    /// Gives memory back while nothing is published.
    pub(super) fn shrink(&mut self) {
        self.items.shrink_to_fit();
        self.receivers.shrink_to_fit();
        self.controls.shrink_to_fit();
    }

    #[inline]
    fn publish(&mut self, publish: &Publish<'_>, end: usize, bytes: usize, directory: &Directory) {
        if self.producer.is_none() {
            self.unwelcome(publish.sequence);
            return;
        }
        // A frame is at most FRAME_BYTES_MAX, a buffer little more: both fit 32 bits.
        let (body_len, frame_len) = (publish.body.len() as u32, bytes as u32);
        if !self.credit.take(frame_len) {
            self.push_refused(publish.sequence, frame_len, over_credit());
            return;
        }
        let first = self.receivers.len();
        for alias in publish.aliases.chunks_exact(4) {
            let alias = u32::from_be_bytes([alias[0], alias[1], alias[2], alias[3]]);
            let mut peer = self.aliases.get(alias);
            if peer == PeerId::NONE {
                peer = self.look_up(alias, directory);
            }
            self.receivers.push(Receiver { alias, peer });
        }
        self.good += 1;
        self.items.push(PublishItem {
            sequence: publish.sequence,
            flags: publish.flags,
            // The codec takes at most RECEIVERS_MAX, which fits.
            receivers: (self.receivers.len() - first) as u16,
            body_at: end as u32 - body_len,
            body_len,
            frame_len,
            refusal: None,
        });
    }

    fn other(
        &mut self,
        frame: Frame<'_>,
        slots: &mut Slots,
        directory: &Directory,
    ) -> Result<(), Refusal> {
        match frame {
            Frame::Ack(ack) => self.settled = self.settled.saturating_add(slots.ack(ack)),
            Frame::AckValue(value) => {
                self.settled += 1;
                slots.ack_value(&value);
            }
            Frame::Nack(nack) => {
                self.settled += 1;
                slots.nack(&nack);
            }
            Frame::Grant(grant) => slots.grant(&grant),
            Frame::Heartbeat => {}
            Frame::Control(body) => {
                match codec::parse_control(body) {
                    Ok(Control::Alias { alias, name }) => {
                        let receiver = directory.receiver(name.as_str());
                        self.aliases.declare(alias, name, receiver);
                    }
                    Ok(control) => self.controls.push(Heard::Control(Box::new(control))),
                    Err(error) => {
                        // A request that cannot be read, but can be told from others, is answered.
                        let why = error.refusal();
                        let Some(id) = codec::request_number(body) else { return Err(why) };
                        self.controls.push(Heard::Unreadable { id, why });
                    }
                }
            }
            // Publishes have been taken before.
            Frame::Publish(_)
            | Frame::Confirm(_)
            | Frame::Refuse(_)
            | Frame::Deliver(_)
            | Frame::Reply(_) => {
                return Err(Refusal::new(
                    Code::OutOfTurn,
                    "a node is sent no confirms, refusals, deliveries or replies: it sends them",
                ));
            }
        }
        Ok(())
    }

    #[cold]
    fn refused(&mut self, refused: &RefusedPublish) {
        if self.producer.is_none() {
            self.unwelcome(refused.sequence);
            return;
        }
        // The bytes were not kept, but they were sent: they count until the outcome is told.
        let bytes = u32::try_from(refused.consumed + refused.skip).unwrap_or(u32::MAX);
        self.credit.take(bytes);
        self.push_refused(refused.sequence, bytes, refused.fault.refusal());
    }

    /// Without an identity there is no credit, so that many of these end the connection too.
    #[cold]
    fn unwelcome(&mut self, sequence: u64) {
        self.credit.take(0);
        self.unwelcome.push(sequence);
    }

    fn push_refused(&mut self, sequence: u64, frame_len: u32, refusal: Refusal) {
        self.items.push(PublishItem {
            sequence,
            flags: 0,
            receivers: 0,
            body_at: 0,
            body_len: 0,
            frame_len,
            refusal: Some(Box::new(refusal)),
        });
    }

    /// A name that no peer and no group had when its alias was declared may have one now.
    #[cold]
    fn look_up(&mut self, alias: u32, directory: &Directory) -> PeerId {
        let known = self
            .aliases
            .unknown_name(alias)
            .and_then(|name| Some((name.clone(), directory.receiver(name.as_str())?)));
        let Some((name, peer)) = known else { return PeerId::NONE };
        self.aliases.declare(alias, name, Some(peer));
        peer
    }
}

#[cold]
fn over_credit() -> Refusal {
    Refusal::new(Code::OverCredit, "more was published than the credit allows unconfirmed")
}

#[cfg(test)]
mod tests;
