//! One producer: keeps its share of messages unconfirmed (closed loop) or sends what is due (open
//! loop), many in one write.

use super::super::{Exit, Failure};
use super::pace::Beat;
use super::payload::{Bodies, Stamp};
use super::tally::{NotOpen, Tally};
use super::wire::{Link, OUT_BYTES_MAX, unexpected};
use super::{Load, Loop};
use restante_protocol::codec::put_publish;
use restante_protocol::control::Control;
use restante_protocol::frame::{Frame, Publish};
use restante_protocol::id::ProducerId;
use restante_protocol::name::Name;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::watch;

/// What the tasks of a run share.
pub(super) struct Shared {
    pub(super) tally: RefCell<Tally>,
    pub(super) bodies: RefCell<Bodies>,
    /// When the run began.
    pub(super) origin: Instant,
    /// Whether producers publish, receivers receive, or all are done.
    pub(super) phase: watch::Receiver<Phase>,
}

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Producers publish.
    Publishing,
    /// What was published comes in.
    Draining,
    /// Everybody stops.
    Done,
}

impl Shared {
    #[inline]
    pub(super) fn now_ns(&self) -> u64 {
        // 584 years.
        self.origin.elapsed().as_nanos() as u64
    }
}

/// When a producer may send.
pub(super) enum Pace {
    Closed,
    Open(Arc<Beat>),
}

pub(super) struct Producer {
    link: Link,
    index: u16,
    /// The node's sequence of message 0.
    first_sequence: u64,
    /// Messages sent.
    sent: u64,
    unconfirmed: u64,
    unconfirmed_max: u64,
    fanout: usize,
    /// Aliases as they stand in a frame, twice round, so that those of any message are a slice.
    aliases: Vec<u8>,
    pace: Pace,
}

impl Producer {
    /// Connects under an identity of its own and declares the receivers.
    pub(super) async fn connect(
        server: &str,
        index: u16,
        receivers: &[Name],
        load: &Load,
        pace: Pace,
    ) -> Result<Producer, Failure> {
        let identity = ProducerId(rand::random());
        let mut link = Link::dial(server, Some(identity)).await?;
        let aliases = (0..).zip(receivers);
        link.tell(aliases.map(|(alias, name)| Control::Alias { alias, name: name.clone() }))
            .await?;
        let credit = link.welcome.credit;
        let frame_bytes = load.frame_bytes();
        let by_credit = u64::from(credit.messages).min(credit.bytes / frame_bytes);
        if by_credit == 0 {
            let credit =
                format!("the node grants {} bytes, a message has {frame_bytes}", credit.bytes);
            return Err(Failure::new(Exit::Usage, credit));
        }
        let count = u32::try_from(receivers.len()).unwrap_or(u32::MAX);
        Ok(Producer {
            index,
            first_sequence: link.welcome.next_sequence,
            sent: 0,
            unconfirmed: 0,
            unconfirmed_max: match load.pace() {
                Loop::Closed => by_credit.min(u64::from(load.outstanding)),
                Loop::Open(_) => by_credit,
            },
            fanout: load.fanout as usize,
            aliases: (0..count).chain(0..count).flat_map(u32::to_be_bytes).collect(),
            link,
            pace,
        })
    }

    pub(super) fn first_sequence(&self) -> u64 {
        self.first_sequence
    }

    /// Publishes until everything is confirmed that was sent before publishing ended.
    pub(super) async fn run(mut self, shared: Rc<Shared>) -> Result<(), Failure> {
        let mut phase = shared.phase.clone();
        let mut done = pin!(phase.wait_for(|phase| *phase == Phase::Done));
        poll_fn(|cx| match self.poll(cx, &shared) {
            Poll::Pending => done.as_mut().poll(cx).map(|_| Ok(())),
            Poll::Ready(failure) => Poll::Ready(Err(failure)),
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, shared: &Shared) -> Poll<Failure> {
        loop {
            let step = match self.link.poll_fill(cx) {
                Poll::Ready(Ok(())) => self.take(shared),
                Poll::Ready(Err(failure)) => Err(failure),
                Poll::Pending => {
                    self.link.poll_beat(cx);
                    let more = self.publish(cx, shared);
                    match self.link.poll_drain(cx) {
                        Poll::Ready(Ok(())) if more => Ok(()),
                        Poll::Ready(Err(failure)) => Err(failure),
                        _ => return Poll::Pending,
                    }
                }
            };
            if let Err(failure) = step {
                return Poll::Ready(failure);
            }
        }
    }

    /// Confirms and refusals of one read.
    fn take(&mut self, shared: &Shared) -> Result<(), Failure> {
        let now_ns = shared.now_ns();
        let mut tally = shared.tally.borrow_mut();
        while let Some(frame) = self.link.input.next()? {
            let decided = match frame {
                Frame::Confirm(confirm) => tally.confirmed(self.index, &confirm, now_ns),
                Frame::Refuse(refuse) => tally.refused(self.index, &refuse, now_ns).map(|()| 1),
                Frame::Heartbeat => Ok(0),
                frame => return Err(unexpected(&frame)),
            };
            let decided = decided.map_err(|NotOpen { sequence }| {
                let what = format!("the node decided sequence {sequence}, which was not open");
                Failure::new(Exit::Failed, what)
            })?;
            self.unconfirmed = self.unconfirmed.saturating_sub(u64::from(decided));
        }
        Ok(())
    }

    /// How many messages may be sent now.
    fn room(&self, cx: &Context<'_>, shared: &Shared) -> u64 {
        let room = self.unconfirmed_max.saturating_sub(self.unconfirmed);
        match &self.pace {
            Pace::Closed if *shared.phase.borrow() == Phase::Publishing => room,
            Pace::Closed => 0,
            // What was due in time is sent, however late.
            Pace::Open(beat) => room.min(beat.poll_due(self.index, cx).saturating_sub(self.sent)),
        }
    }

    /// Puts what may be sent now into the connection's buffer; whether there is more than it takes.
    fn publish(&mut self, cx: &Context<'_>, shared: &Shared) -> bool {
        let room = self.room(cx, shared);
        if room == 0 {
            return false;
        }
        let now_ns = shared.now_ns();
        let mut tally = shared.tally.borrow_mut();
        let mut bodies = shared.bodies.borrow_mut();
        for _ in 0..room {
            if self.link.out.len() > OUT_BYTES_MAX {
                return true;
            }
            let number = self.sent;
            let intended_ns = match &self.pace {
                Pace::Closed => now_ns,
                Pace::Open(beat) => beat.schedule.due_ns(self.index, number),
            };
            let first = 4 * tally.first_receiver(self.index, number) as usize;
            let stamp = Stamp { producer: self.index, number, intended_ns };
            let publish = Publish {
                flags: 0,
                sequence: self.first_sequence + number,
                aliases: &self.aliases[first..first + 4 * self.fanout],
                body: bodies.stamped(stamp),
            };
            put_publish(&mut self.link.out, &publish);
            tally.published(self.index, intended_ns);
            self.sent += 1;
            self.unconfirmed += 1;
        }
        false
    }
}
