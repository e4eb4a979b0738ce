//! A bare relay: no broker, no disk, nothing kept. It takes what producers send, hands it to the
//! receivers' sockets in one write per socket and turn, and says how many it has handed on. With the
//! same sockets, sizes and writes as a broker it shows what the loopback and the generator allow.
//!
//! ```text
//! producer → relay   u32 length | u32 receiver (or all) | payload
//! relay → producer   u32 how many were handed on
//! receiver → relay   u32 first | u32 count    once, then one byte per read, as an ack
//! relay → receiver   u32 length | u32 receiver | payload
//! ```

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::failure;
use crate::versus::server::{Launch, data_dir, free_port};
use crate::versus::session::{Event, Greeting, Session, To};
use bytes::{Buf, BufMut, BytesMut};
use rustix::event::epoll;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

/// The first argument by which this program becomes a relay.
pub(crate) const RELAY: &str = "relay";
const ALL: u32 = u32::MAX;
const HEAD_BYTES: usize = 8;
const READ_BYTES: usize = 128 * 1024;
/// A receiver's first word, so that it is told from a producer: longer than any message.
const RECEIVER: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Relay;

impl Subject for Relay {
    fn name(&self) -> &'static str {
        "bare relay"
    }

    fn confirms(&self) -> Confirms {
        Confirms::Nothing
    }

    fn missing(&self) -> Option<String> {
        None
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (_, port) = (data_dir(&scratch)?, free_port()?);
        let launch = Launch::new(std::env::current_exe()?, &[RELAY, &port.to_string()]);
        Server::start(scratch, port, launch, None)
    }

    fn prepare(&self, _: u16, _: &Shape) -> Result<()> {
        Ok(())
    }

    fn producer(&self, port: u16, _: &Shape, _: u16) -> Result<Connected> {
        let (stream, read) = Greeting::dial(port)?.finish()?;
        Ok((stream, read, Box::new(Producer { confirmed: 0 })))
    }

    fn receivers(&self, port: u16, _: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let mut greeting = Greeting::dial(port)?;
        for word in [RECEIVER, receivers.start, receivers.end] {
            greeting.out.put_u32(word);
        }
        greeting.ask(|input| Ok((!input.is_empty()).then_some((1, ()))))?;
        let (stream, read) = greeting.finish()?;
        Ok((stream, read, Box::new(Receiver { taken: false })))
    }

    fn unable(&self, shape: &Shape) -> Option<&'static str> {
        (shape.present < shape.receivers).then_some("keeps nothing")
    }
}

struct Producer {
    confirmed: u64,
}

impl Session for Producer {
    fn publish(&mut self, _: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        let to = match to {
            To::One(receiver) => receiver,
            To::All => ALL,
        };
        put(out, to, payload)
    }

    fn next<'a>(&mut self, mut input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        if input.len() < 4 {
            return Ok(None);
        }
        let (first, count) = (self.confirmed, u64::from(input.get_u32()));
        self.confirmed += count;
        Ok(Some((4, Event::Confirmed { first, count })))
    }
}

struct Receiver {
    taken: bool,
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((receiver, payload)) = take(input) else { return Ok(None) };
        self.taken = true;
        Ok(Some((HEAD_BYTES + payload.len(), Event::Delivered { receiver, payload })))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        if std::mem::take(&mut self.taken) {
            out.put_u8(1);
        }
    }
}

fn put(out: &mut BytesMut, to: u32, payload: &[u8]) -> Result<()> {
    out.put_u32(u32::try_from(payload.len()).map_err(|_| failure!("too long"))?);
    out.put_u32(to);
    out.put_slice(payload);
    Ok(())
}

#[inline]
fn take(mut input: &[u8]) -> Option<(u32, &[u8])> {
    if input.len() < HEAD_BYTES {
        return None;
    }
    let (length, to) = (input.get_u32() as usize, input.get_u32());
    Some((to, input.get(..length)?))
}

/// One connection of a running relay.
struct Peer {
    stream: TcpStream,
    input: BytesMut,
    out: BytesMut,
    /// The receivers it serves, once it has said so.
    receivers: Option<Range<u32>>,
    /// Whether it is in the list of those to write to.
    touched: bool,
    /// Whether epoll says when there is room to write.
    awaits_room: bool,
}

/// Relays on a port until it is killed.
pub(crate) fn run(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    listener.set_nonblocking(true)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let new = epoll::EventData::new_u64(u64::MAX);
    epoll::add(&poll, &listener, new, epoll::EventFlags::IN)?;
    let mut peers: Vec<Option<Peer>> = Vec::new();
    // By receiver: its connection.
    let mut routes: Vec<usize> = Vec::new();
    let mut events = Vec::with_capacity(1_024);
    let mut touched: Vec<usize> = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            if event.data.u64() == u64::MAX {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    let data = epoll::EventData::new_u64(peers.len() as u64);
                    epoll::add(&poll, &stream, data, epoll::EventFlags::IN)?;
                    let (input, out) = (BytesMut::new(), BytesMut::new());
                    let (receivers, touched, awaits_room) = (None, false, false);
                    peers.push(Some(Peer { stream, input, out, receivers, touched, awaits_room }));
                }
                continue;
            }
            let (at, flags) = (event.data.u64() as usize, event.flags);
            if flags.contains(epoll::EventFlags::OUT) {
                touch(&mut peers, &mut touched, at);
            }
            let Some(peer) = peers.get_mut(at).and_then(Option::as_mut) else { continue };
            match peer.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => peers[at] = None,
                Ok(read) => {
                    peer.input.extend_from_slice(&chunk[..read]);
                    relay(&mut peers, &mut routes, &mut touched, at)?;
                }
            }
        }
        for at in touched.drain(..) {
            let Some(peer) = peers[at].as_mut() else { continue };
            peer.touched = false;
            let written = peer.stream.write(&peer.out).unwrap_or(0);
            peer.out.advance(written);
            if peer.awaits_room == peer.out.is_empty() {
                peer.awaits_room = !peer.awaits_room;
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, peer.awaits_room);
                let data = epoll::EventData::new_u64(at as u64);
                epoll::modify(&poll, &peer.stream, data, flags)?;
            }
        }
    }
}

fn touch(peers: &mut [Option<Peer>], touched: &mut Vec<usize>, at: usize) {
    if let Some(peer) = peers.get_mut(at).and_then(Option::as_mut)
        && !std::mem::replace(&mut peer.touched, true)
    {
        touched.push(at);
    }
}

/// What one connection has said.
fn relay(
    peers: &mut [Option<Peer>],
    routes: &mut Vec<usize>,
    touched: &mut Vec<usize>,
    from: usize,
) -> Result<()> {
    let Some(peer) = peers[from].as_mut() else { return Ok(()) };
    if peer.receivers.is_some() {
        // Acks.
        peer.input.clear();
        return Ok(());
    }
    let mut input = std::mem::take(&mut peer.input);
    if input.len() >= 12 && (&input[..4]).get_u32() == RECEIVER {
        let (first, end) = ((&input[4..8]).get_u32(), (&input[8..12]).get_u32());
        routes.resize(routes.len().max(end as usize), from);
        routes[first as usize..end as usize].fill(from);
        peer.receivers = Some(first..end);
        peer.out.put_u8(0);
        touch(peers, touched, from);
        return Ok(());
    }
    let mut count = 0;
    let mut at = 0;
    while let Some((to, payload)) = take(&input[at..]) {
        let all = 0..u32::try_from(routes.len()).unwrap_or(u32::MAX);
        for receiver in if to == ALL { all } else { to..to + 1 } {
            let Some(route) = routes.get(receiver as usize).copied() else { continue };
            if let Some(peer) = peers[route].as_mut() {
                put(&mut peer.out, receiver, payload)?;
                touch(peers, touched, route);
            }
        }
        at += HEAD_BYTES + payload.len();
        count += 1;
    }
    input.advance(at);
    if let Some(peer) = peers[from].as_mut() {
        peer.input = input;
        if count > 0 {
            peer.out.put_u32(count);
            touch(peers, touched, from);
        }
    }
    Ok(())
}
