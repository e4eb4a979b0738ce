//! What became of every message.
//!
//! A delivery counts once its receiver has acked it *and* its publish is confirmed, whichever comes
//! last: only then has the broker both made it durable (as far as it does) and carried it. A second
//! delivery of the same message to the same receiver is a duplicate; what a confirmed message still
//! owes at the end is lost. Latency runs from the time a message was *meant* to be sent, so that a
//! stall is charged to everything that waited behind it.
//!
//! Memory: 16 bytes per message that is not settled.

use super::failure::{Result, failure};
use super::shape::Shape;
use hdrhistogram::Histogram;
use std::collections::VecDeque;

const CONFIRMED: u64 = 1 << 63;
/// Most receivers of one message: their bits and the confirm's are a word.
pub(crate) const FANOUT_MAX: u32 = 63;
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Everything counted since the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) published: u64,
    pub(crate) confirmed: u64,
    /// Deliveries that count: see the module.
    pub(crate) delivered: u64,
    /// Deliveries that confirmed messages owe, those to absent receivers included.
    pub(crate) owed: u64,
    /// Of those, the ones to receivers that are absent.
    pub(crate) owed_absent: u64,
    /// Deliveries taken, counted or not.
    pub(crate) taken: u64,
    pub(crate) duplicates: u64,
    /// Deliveries with other bytes than were sent, or to the wrong receiver.
    pub(crate) foreign: u64,
}

impl Counts {
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.published - self.confirmed
    }

    /// Deliveries that are owed to receivers that are there.
    pub(crate) fn missing(&self) -> u64 {
        (self.owed - self.owed_absent).saturating_sub(self.delivered)
    }
}

#[derive(Debug)]
struct Message {
    intended_ns: u64,
    /// Who has it, by place, and whether it is confirmed.
    seen: u64,
}

/// One producer's messages that are not settled.
#[derive(Debug, Default)]
struct Sent {
    floor: u64,
    open: VecDeque<Message>,
}

/// The ledger of a run.
#[derive(Debug)]
pub(crate) struct Tally {
    receivers: u64,
    fanout: u64,
    present: u64,
    sent: Vec<Sent>,
    pub(crate) counts: Counts,
    /// Messages meant to be sent from here on are in the histograms.
    pub(crate) window_ns: std::ops::Range<u64>,
    /// From the intended time to the confirm, ns.
    pub(crate) confirm: Histogram<u64>,
    /// From the intended time to the delivery, ns.
    pub(crate) deliver: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new(shape: &Shape) -> Result<Tally> {
        let histogram = || {
            Histogram::new_with_bounds(100, LATENCY_NS_MAX, 3)
                .map_err(|error| failure!("{error:?}"))
        };
        if shape.fanout() > FANOUT_MAX {
            return Err(failure!("at most {FANOUT_MAX} receivers a message"));
        }
        Ok(Tally {
            receivers: u64::from(shape.receivers),
            fanout: u64::from(shape.fanout()),
            present: u64::from(shape.present),
            sent: (0..shape.producers).map(|_| Sent::default()).collect(),
            counts: Counts::default(),
            window_ns: u64::MAX..u64::MAX,
            confirm: histogram()?,
            deliver: histogram()?,
        })
    }

    /// The first receiver of a message; the others follow it.
    #[inline]
    pub(crate) fn first_receiver(&self, producer: u16, number: u64) -> u32 {
        // A remainder of a `u32`.
        ((number * self.fanout + u64::from(producer)) % self.receivers) as u32
    }

    /// From now on every receiver is there.
    pub(crate) fn all_present(&mut self) {
        self.present = self.receivers;
        self.counts.owed_absent = 0;
    }

    /// A producer's next message is on its way.
    #[inline]
    pub(crate) fn published(&mut self, producer: u16, intended_ns: u64) {
        self.sent[usize::from(producer)].open.push_back(Message { intended_ns, seen: 0 });
        self.counts.published += 1;
    }

    /// A broker has taken over a run of messages.
    #[inline]
    pub(crate) fn confirmed(
        &mut self,
        producer: u16,
        first: u64,
        count: u64,
        now: u64,
    ) -> Result<()> {
        for number in first..first + count {
            let to_present = u64::from(self.first_receiver(producer, number)) < self.present;
            let sent = &mut self.sent[usize::from(producer)];
            let message = index(number, sent.floor).and_then(|at| sent.open.get_mut(at));
            let Some(message) = message.filter(|message| message.seen & CONFIRMED == 0) else {
                return Err(failure!("a confirm of message {number}, which is not open"));
            };
            // What came before the confirm counts from here on.
            self.counts.delivered += u64::from(message.seen.count_ones());
            message.seen |= CONFIRMED;
            let intended = message.intended_ns;
            self.counts.confirmed += 1;
            self.counts.owed += self.fanout;
            self.counts.owed_absent += u64::from(!to_present);
            self.settle(producer);
            if self.window_ns.contains(&intended) {
                self.confirm.saturating_record(now.saturating_sub(intended));
            }
        }
        Ok(())
    }

    /// A receiver has a message and acks it.
    #[inline]
    pub(crate) fn delivered(&mut self, message: Option<(u16, u64)>, receiver: u32, now: u64) {
        self.counts.taken += 1;
        let Some((producer, number)) = message.filter(|(p, _)| usize::from(*p) < self.sent.len())
        else {
            self.counts.foreign += 1;
            return;
        };
        let first = u64::from(self.first_receiver(producer, number));
        let place = (u64::from(receiver) + self.receivers - first) % self.receivers;
        let sent = &mut self.sent[usize::from(producer)];
        if place >= self.fanout || number >= sent.floor + sent.open.len() as u64 {
            self.counts.foreign += 1;
            return;
        }
        let bit = 1 << place;
        let open = index(number, sent.floor).and_then(|at| sent.open.get_mut(at));
        let Some(message) = open.filter(|message| message.seen & bit == 0) else {
            self.counts.duplicates += 1;
            return;
        };
        message.seen |= bit;
        let intended = message.intended_ns;
        self.counts.delivered += u64::from(message.seen & CONFIRMED != 0);
        self.settle(producer);
        if self.window_ns.contains(&intended) {
            self.deliver.saturating_record(now.saturating_sub(intended));
        }
    }

    /// Forgets the messages in front that are done.
    #[inline]
    fn settle(&mut self, producer: u16) {
        let whole = CONFIRMED | ((1 << self.fanout) - 1);
        let sent = &mut self.sent[usize::from(producer)];
        while sent.open.front().is_some_and(|message| message.seen == whole) {
            sent.open.pop_front();
            sent.floor += 1;
        }
    }
}

#[inline]
fn index(number: u64, floor: u64) -> Option<usize> {
    number.checked_sub(floor).and_then(|place| usize::try_from(place).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versus::shape::Routing;

    fn tally(receivers: u32, present: u32, routing: Routing) -> Tally {
        let shape = Shape { receivers, present, routing, producers: 2, ..Shape::default() };
        Tally::new(&shape).unwrap()
    }

    #[test]
    fn a_delivery_counts_once_acked_and_confirmed() {
        let mut tally = tally(3, 3, Routing::All);
        tally.published(0, 5);
        tally.delivered(Some((0, 0)), 2, 10);
        assert_eq!(tally.counts.delivered, 0);
        tally.confirmed(0, 0, 1, 10).unwrap();
        assert_eq!((tally.counts.delivered, tally.counts.missing()), (1, 2));
        tally.delivered(Some((0, 0)), 2, 10);
        tally.delivered(Some((0, 0)), 0, 10);
        tally.delivered(Some((0, 0)), 1, 10);
        tally.delivered(Some((0, 0)), 1, 10);
        assert_eq!((tally.counts.missing(), tally.counts.duplicates), (0, 2));
        assert!(tally.confirmed(0, 0, 1, 10).is_err(), "confirmed twice");
    }

    #[test]
    fn what_was_never_sent_or_goes_astray_is_foreign() {
        let mut tally = tally(3, 3, Routing::One);
        tally.published(1, 0);
        tally.delivered(Some((1, 0)), 0, 1);
        tally.delivered(Some((1, 1)), 2, 1);
        tally.delivered(Some((9, 0)), 0, 1);
        tally.delivered(None, 0, 1);
        assert_eq!((tally.counts.foreign, tally.counts.taken), (4, 4));
    }

    #[test]
    fn an_absent_receiver_is_owed_and_not_waited_for() {
        let mut tally = tally(2, 1, Routing::One);
        for number in 0..2 {
            tally.published(0, 0);
            tally.confirmed(0, number, 1, 1).unwrap();
        }
        tally.delivered(Some((0, 0)), 0, 1);
        assert_eq!(tally.counts.missing(), 0);
        tally.all_present();
        assert_eq!(tally.counts.missing(), 1);
    }
}
