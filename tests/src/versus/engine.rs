//! The load generator: every connection of a run on one thread, over epoll.
//!
//! Constraints: it shares the cores with the broker it measures, so it must be cheap and the same for
//! all: no allocation, lock or syscall per message; one read takes what a socket has, everything it
//! brings is acked in one write, and a producer puts all that it may send into one write.
//!
//! The open loop is kept by a timer of [`BEAT`]: message `k` is due at `k / rate`, whether or not the
//! broker keeps up, and the wait for the beat is part of its latency.

use super::failure::{Failure, Result, failure};
use super::payload::Payloads;
use super::session::{Event, Session, To};
use super::shape::{Pace, Shape};
use super::tally::{Counts, Tally};
use bytes::BytesMut;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A connection and its protocol, as a broker hands it over: the bytes were read while greeting.
pub(crate) type Connected = (TcpStream, Vec<u8>, Box<dyn Session>);

/// First size of a read buffer; it grows to the largest message.
const READ_BYTES: usize = 128 * 1024;
const READ_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A producer says no more while this much is still to be written.
const OUT_BYTES_MAX: usize = 256 * 1024;
/// Shortest time between two looks at the open loop's schedule.
const BEAT: Duration = Duration::from_micros(50);
/// Messages in a row that are one producer's in the open loop, so that one write carries several.
const RUN: u64 = 16;
/// How often conditions and signs of life are looked at when nothing happens.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);
/// Most that may be confirmed and not delivered: a broker whose receivers fall behind for good is not
/// given more. In messages and in bytes of payload.
const BEHIND_MAX: u64 = 100_000;
const BEHIND_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Most bytes of payload that all producers together have unconfirmed.
const UNDER_WAY_BYTES_MAX: u64 = 64 * 1024 * 1024;
const TIMER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    start: usize,
    end: usize,
    out: BytesMut,
    written: usize,
    /// Whether epoll says when there is room to write.
    awaits_room: bool,
    session: Box<dyn Session>,
    /// Which producer this is, if it is one.
    producer: Option<u16>,
}

/// A producer's place in its messages.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    connection: usize,
    sent: u64,
    unconfirmed: u64,
    /// What the broker and the bytes under way allow.
    unconfirmed_max: u64,
}

/// A run under way.
pub(crate) struct Engine {
    shape: Shape,
    pub(crate) tally: Tally,
    payloads: Payloads,
    epoll: OwnedFd,
    timer: Option<OwnedFd>,
    connections: Vec<Connection>,
    producers: Vec<Place>,
    origin: Instant,
    /// When the open loop's message 0 was due, ns since `origin`.
    loop_from_ns: u64,
    publishing: bool,
    beat_at: Instant,
    events: Vec<epoll::Event>,
}

impl Engine {
    pub(crate) fn new(shape: &Shape) -> Result<Engine> {
        Ok(Engine {
            shape: *shape,
            tally: Tally::new(shape)?,
            payloads: Payloads::random(shape.size),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            timer: None,
            connections: Vec::new(),
            producers: Vec::new(),
            origin: Instant::now(),
            loop_from_ns: 0,
            publishing: false,
            beat_at: Instant::now() + SIGN_OF_LIFE,
            events: Vec::with_capacity(1_024),
        })
    }

    pub(crate) fn add_producer(&mut self, connected: Connected) -> Result<()> {
        let producer = u16::try_from(self.producers.len()).map_err(|_| failure!("too many"))?;
        let under_way = UNDER_WAY_BYTES_MAX / self.shape.size as u64;
        let fair = (under_way / u64::from(self.shape.producers)).max(1);
        let unconfirmed_max = connected.2.unconfirmed_max(self.shape.size).min(fair);
        let connection = self.add(connected, Some(producer))?;
        self.producers.push(Place { connection, unconfirmed_max, ..Place::default() });
        Ok(())
    }

    pub(crate) fn add_receiver(&mut self, connected: Connected) -> Result<()> {
        let at = self.add(connected, None)?;
        // What came while greeting.
        self.take(at)
    }

    fn add(&mut self, connected: Connected, producer: Option<u16>) -> Result<usize> {
        let (stream, read, session) = connected;
        let mut input = vec![0; READ_BYTES.max(read.len())];
        input[..read.len()].copy_from_slice(&read);
        let at = self.connections.len();
        let data = epoll::EventData::new_u64(at as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN)?;
        self.connections.push(Connection {
            stream,
            input,
            start: 0,
            end: read.len(),
            out: BytesMut::with_capacity(READ_BYTES),
            written: 0,
            awaits_room: false,
            session,
            producer,
        });
        Ok(at)
    }

    /// Closes every connection; what has been counted stays.
    pub(crate) fn hang_up(&mut self) {
        self.connections.clear();
        self.producers.clear();
        self.publishing = false;
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts
    }

    #[inline]
    pub(crate) fn now_ns(&self) -> u64 {
        // 584 years.
        self.origin.elapsed().as_nanos() as u64
    }

    /// Begins to publish.
    pub(crate) fn publish(&mut self) -> Result<()> {
        self.publishing = true;
        self.loop_from_ns = self.now_ns();
        if let Pace::Open(_) = self.shape.pace {
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
            let beat = Timespec { tv_sec: 0, tv_nsec: i64::from(BEAT.subsec_nanos()) };
            let every = Itimerspec { it_interval: beat, it_value: beat };
            timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
            let data = epoll::EventData::new_u64(TIMER);
            epoll::add(&self.epoll, &timer, data, epoll::EventFlags::IN)?;
            self.timer = Some(timer);
        }
        Ok(())
    }

    /// Lets so many messages be published altogether.
    pub(crate) fn allow(&mut self, messages: u64) {
        self.shape.messages = messages;
    }

    /// Publishes nothing more.
    pub(crate) fn stop(&mut self) {
        self.publishing = false;
        self.timer = None;
    }

    /// Runs for a time.
    pub(crate) fn run_for(&mut self, time: Duration) -> Result<()> {
        self.run_until(time, |_| false).map(drop)
    }

    /// Runs until something is so, or for `time`; whether it was so.
    pub(crate) fn run_until(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&Counts) -> bool,
    ) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            if done(&self.tally.counts) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            self.turn()?;
        }
    }

    /// Waits for something to happen and does what follows from it.
    fn turn(&mut self) -> Result<()> {
        if Instant::now() >= self.beat_at {
            self.beat_at = Instant::now() + SIGN_OF_LIFE;
            for at in 0..self.connections.len() {
                let connection = &mut self.connections[at];
                connection.session.beat(&mut connection.out);
                self.write(at)?;
            }
        }
        self.produce()?;
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, Some(&LOOK)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let at = event.data.u64();
            if at == TIMER {
                if let Some(timer) = &self.timer {
                    let _ = rustix::io::read(timer, &mut [0; 8]);
                }
                continue;
            }
            // One of ours.
            let (at, flags) = (at as usize, event.flags);
            if flags.contains(epoll::EventFlags::OUT) {
                self.write(at)?;
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP) {
                self.read(at)?;
            }
        }
        self.events = events;
        Ok(())
    }

    fn read(&mut self, at: usize) -> Result<()> {
        let connection = &mut self.connections[at];
        match connection.fill() {
            Ok(0) => return Err(failure!("the broker closed a connection")),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.take(at)
    }

    /// Everything that has been read.
    fn take(&mut self, at: usize) -> Result<()> {
        let now = self.now_ns();
        let Engine { connections, producers, tally, payloads, .. } = self;
        let connection = &mut connections[at];
        while let Some((consumed, event)) =
            connection.session.next(&connection.input[connection.start..connection.end])?
        {
            match event {
                Event::Nothing => {}
                Event::Confirmed { first, count } => {
                    let producer = connection.producer;
                    let producer = producer.ok_or_else(|| failure!("a receiver is confirmed"))?;
                    tally.confirmed(producer, first, count, now)?;
                    producers[usize::from(producer)].unconfirmed -= count;
                }
                Event::Delivered { receiver, payload } => {
                    tally.delivered(payloads.check(payload), receiver, now);
                }
            }
            connection.start += consumed;
        }
        connection.session.read_end(&mut connection.out);
        self.write(at)
    }

    fn write(&mut self, at: usize) -> Result<()> {
        let connection = &mut self.connections[at];
        let drained = connection.drain()?;
        if drained == connection.awaits_room {
            connection.awaits_room = !drained;
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::OUT, !drained);
            let data = epoll::EventData::new_u64(at as u64);
            epoll::modify(&self.epoll, &connection.stream, data, flags)?;
        }
        Ok(())
    }

    /// Lets every producer say what it may.
    fn produce(&mut self) -> Result<()> {
        if !self.publishing {
            return Ok(());
        }
        for producer in 0..self.producers.len() {
            loop {
                let room = self.room(producer);
                if room == 0 {
                    break;
                }
                let more = self.put(producer, room)?;
                let at = self.producers[producer].connection;
                self.write(at)?;
                if !more || self.connections[at].awaits_room {
                    break;
                }
            }
        }
        Ok(())
    }

    /// How many messages a producer may send now.
    fn room(&self, producer: usize) -> u64 {
        let counts = &self.tally.counts;
        let place = &self.producers[producer];
        if self.connections[place.connection].awaits_room {
            return 0;
        }
        let behind_max = BEHIND_MAX.min(BEHIND_BYTES_MAX / self.shape.size as u64);
        let left = self.shape.messages - counts.published;
        let allowed = place.unconfirmed_max.saturating_sub(place.unconfirmed);
        match self.shape.pace {
            Pace::Closed(outstanding) if counts.missing() < behind_max => {
                outstanding.saturating_sub(place.unconfirmed).min(left).min(allowed)
            }
            Pace::Lone if counts.unconfirmed() == 0 && counts.missing() == 0 => left.min(1),
            Pace::Closed(_) | Pace::Lone => 0,
            Pace::Open(rate) => {
                let elapsed = (self.now_ns() - self.loop_from_ns) as f64 / 1e9;
                let due = ((elapsed * rate) as u64 + 1).min(self.shape.messages);
                due_of(due, producer as u64, self.producers.len() as u64)
                    .saturating_sub(place.sent)
                    .min(allowed)
            }
        }
    }

    /// Puts messages; whether there are more than now fit.
    fn put(&mut self, producer: usize, room: u64) -> Result<bool> {
        let now = self.now_ns();
        let producers = self.producers.len() as u64;
        let Engine { connections, producers: places, tally, payloads, shape, .. } = self;
        let place = &mut places[producer];
        let connection = &mut connections[place.connection];
        // Below the number of producers.
        let index = producer as u16;
        for _ in 0..room {
            if connection.out.len() > OUT_BYTES_MAX {
                return Ok(true);
            }
            let number = place.sent;
            let intended = match shape.pace {
                Pace::Open(rate) => {
                    let place = place_of(number, producer as u64, producers);
                    self.loop_from_ns + (place as f64 * 1e9 / rate) as u64
                }
                Pace::Closed(_) | Pace::Lone => now,
            };
            let to = To::new(shape.routing, tally.first_receiver(index, number));
            let payload = payloads.stamped(index, number);
            connection.session.publish(number, to, payload, &mut connection.out)?;
            tally.published(index, intended);
            place.sent += 1;
            place.unconfirmed += 1;
        }
        Ok(false)
    }
}

impl Connection {
    fn fill(&mut self) -> std::io::Result<usize> {
        // At most the beginning of one message is moved.
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.end == self.input.len() {
            if self.end >= READ_BYTES_MAX {
                return Err(ErrorKind::FileTooLarge.into());
            }
            self.input.resize(2 * self.end, 0);
        }
        let read = self.stream.read(&mut self.input[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// Writes what is to be said; whether all of it went.
    fn drain(&mut self) -> Result<bool> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(Failure::from(error)),
            }
        }
        self.written = 0;
        self.out.clear();
        Ok(true)
    }
}

/// The place in the open loop of a producer's message.
fn place_of(number: u64, producer: u64, producers: u64) -> u64 {
    (number / RUN * producers + producer) * RUN + number % RUN
}

/// How many of a producer's messages are due when `due` of all are.
fn due_of(due: u64, producer: u64, producers: u64) -> u64 {
    let round = RUN * producers;
    let begun = (due % round).saturating_sub(RUN * producer);
    due / round * RUN + begun.min(RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_loop_gives_every_place_to_one_producer() {
        for due in 0..300 {
            assert_eq!((0..3).map(|producer| due_of(due, producer, 3)).sum::<u64>(), due);
        }
        let mut places: Vec<u64> =
            (0..3).flat_map(|p| (0..32).map(move |n| place_of(n, p, 3))).collect();
        places.sort_unstable();
        assert!(places.into_iter().eq(0..96));
    }
}
