//! Mosquitto: MQTT 3.1.1, QoS 1, a persistent session for each receiving connection.
//!
//! Configuration: persistence on (it writes its memory out every half hour and at a stop; it never
//! syncs before a confirm), no limits on what waits for a session, since a limit there drops messages
//! silently. A receiver is a topic; receivers of one connection share its session.

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::failure;
use crate::versus::server::{Launch, data_dir, find_program, free_port};
use crate::versus::session::{Event, Greeting, Session, To, decimal, garbage};
use crate::versus::shape::Routing;
use bytes::{BufMut, BytesMut};

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH_QOS_1: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
/// Packet ids that there are: from 1 to 65,535.
const IDS: u64 = 65_535;

#[derive(Debug)]
pub(crate) struct Mosquitto;

impl Subject for Mosquitto {
    fn name(&self) -> &'static str {
        "Mosquitto, QoS 1"
    }

    fn confirms(&self) -> Confirms {
        Confirms::Unsynced
    }

    fn missing(&self) -> Option<String> {
        find_program("mosquitto").is_none().then(|| "apt-get install mosquitto".to_owned())
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (data, port) = (data_dir(&scratch)?, free_port()?);
        // It gives up the rights of a superuser unless told otherwise; the directory is ours alone.
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser {user}\nset_tcp_nodelay true\n\
             persistence true\npersistence_location {}/\n\
             max_inflight_messages 1000\nmax_queued_messages 0\nmax_queued_bytes 0\n",
            data.display()
        );
        let path = scratch.path().join("mosquitto.conf");
        std::fs::write(&path, config)?;
        let program = find_program("mosquitto").ok_or_else(|| failure!("not installed"))?;
        let launch = Launch::new(program, &["-c", &path.display().to_string()]);
        Server::start(scratch, port, launch, None)
    }

    fn prepare(&self, port: u16, shape: &Shape) -> Result<()> {
        for receivers in shape.connections(0..shape.receivers) {
            self.subscribe(port, shape, receivers)?;
        }
        Ok(())
    }

    fn producer(&self, port: u16, _: &Shape, index: u16) -> Result<Connected> {
        let (stream, read) = greet(port, &format!("p{index}"), true)?.finish()?;
        Ok((stream, read, Box::new(Producer { confirmed: 0, ahead: 0 })))
    }

    fn receivers(&self, port: u16, shape: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let only = receivers.start;
        let (stream, read) = self.subscribe(port, shape, receivers)?.finish()?;
        let all = (shape.routing == Routing::All).then_some(only);
        Ok((stream, read, Box::new(Receiver { all, acks: BytesMut::new() })))
    }

    fn unable(&self, shape: &Shape) -> Option<&'static str> {
        let many = shape.routing == Routing::All && shape.receivers_per_connection > 1;
        many.then_some("one session a connection")
    }
}

impl Mosquitto {
    fn subscribe(&self, port: u16, shape: &Shape, receivers: Range<u32>) -> Result<Greeting> {
        let mut greeting = greet(port, &format!("r{}", receivers.start), false)?;
        for receiver in receivers {
            let topic = match shape.routing {
                Routing::One => format!("w/{receiver}"),
                Routing::All => "w/all".to_owned(),
            };
            let mut body = BytesMut::new();
            body.put_u16(1);
            put_text(&mut body, topic.as_bytes())?;
            body.put_u8(1);
            put_packet(&mut greeting.out, SUBSCRIBE, &[&body]);
        }
        Ok(greeting)
    }
}

/// Connects; what the session missed may come at once.
fn greet(port: u16, client: &str, clean: bool) -> Result<Greeting> {
    let mut greeting = Greeting::dial(port)?;
    let mut body = BytesMut::new();
    put_text(&mut body, b"MQTT")?;
    body.put_u8(4);
    body.put_u8(u8::from(clean) << 1);
    // No keep-alive: the run itself is bounded.
    body.put_u16(0);
    put_text(&mut body, client.as_bytes())?;
    put_packet(&mut greeting.out, CONNECT, &[&body]);
    greeting.ask(|input| match packet(input)? {
        Some((CONNACK, [_, 0], consumed)) => Ok(Some((consumed, ()))),
        Some((_, body, _)) => Err(garbage("a CONNACK", body)),
        None => Ok(None),
    })?;
    Ok(greeting)
}

fn put_text(out: &mut BytesMut, text: &[u8]) -> Result<()> {
    let length = u16::try_from(text.len()).map_err(|_| failure!("a text is too long"))?;
    out.put_u16(length);
    out.put_slice(text);
    Ok(())
}

fn put_packet(out: &mut BytesMut, kind: u8, parts: &[&[u8]]) {
    out.put_u8(kind);
    let mut length: usize = parts.iter().map(|part| part.len()).sum();
    loop {
        // Seven bits.
        let low = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.put_u8(low);
            break;
        }
        out.put_u8(low | 0x80);
    }
    parts.iter().for_each(|part| out.put_slice(part));
}

/// The packet at the front: its first byte, its body, its length.
#[inline]
fn packet(input: &[u8]) -> Result<Option<(u8, &[u8], usize)>> {
    let Some((kind, rest)) = input.split_first() else { return Ok(None) };
    let mut length = 0;
    for (place, byte) in rest.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let begin = 2 + place;
            let body = input.get(begin..begin + length);
            return Ok(body.map(|body| (*kind, body, begin + length)));
        }
    }
    match rest.len() {
        0..4 => Ok(None),
        _ => Err(garbage("a packet", input)),
    }
}

struct Producer {
    /// Every message below it is confirmed.
    confirmed: u64,
    /// Of those from there on, one bit each, the first 128.
    ahead: u128,
}

impl Session for Producer {
    fn publish(&mut self, number: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        let mut topic = BytesMut::with_capacity(16);
        topic.put_u16(0);
        topic.put_slice(b"w/");
        match to {
            To::One(receiver) => crate::versus::session::put_decimal(&mut topic, receiver.into()),
            To::All => topic.put_slice(b"all"),
        }
        let length = u16::try_from(topic.len() - 2).map_err(|_| failure!("a topic is too long"))?;
        topic[..2].copy_from_slice(&length.to_be_bytes());
        // Below IDS.
        let id = ((number % IDS) as u16 + 1).to_be_bytes();
        put_packet(out, PUBLISH_QOS_1, &[&topic, &id, payload]);
        Ok(())
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let (id, consumed) = match packet(input)? {
            Some((PUBACK, [high, low], consumed)) => (u16::from_be_bytes([*high, *low]), consumed),
            Some((_, body, _)) => return Err(garbage("a PUBACK", body)),
            None => return Ok(None),
        };
        // Far fewer than all ids are open, so the distance from the floor tells which one is meant.
        let at = self.confirmed % IDS;
        let distance = (u64::from(id) + 2 * IDS - 1 - at) % IDS;
        if distance >= 128 {
            return Err(failure!("a PUBACK {distance} ahead of the first open one"));
        }
        let first = self.confirmed + distance;
        self.ahead |= 1 << distance;
        let run = self.ahead.trailing_ones();
        self.ahead = self.ahead.checked_shr(run).unwrap_or(0);
        self.confirmed += u64::from(run);
        Ok(Some((consumed, Event::Confirmed { first, count: 1 })))
    }
}

struct Receiver {
    /// Who every message is for, when each goes to all.
    all: Option<u32>,
    acks: BytesMut,
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((kind, body, consumed)) = packet(input)? else { return Ok(None) };
        if kind & 0xf0 == SUBACK & 0xf0 {
            return Ok(Some((consumed, Event::Nothing)));
        }
        let publish = || {
            let (length, rest) = body.split_first_chunk::<2>()?;
            let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
            let (id, payload) = rest.split_first_chunk::<2>()?;
            Some((topic, id, payload))
        };
        let Some((topic, id, payload)) = publish().filter(|_| kind & 0xf6 == PUBLISH_QOS_1) else {
            return Err(garbage("a PUBLISH", body));
        };
        put_packet(&mut self.acks, PUBACK, &[id]);
        let receiver = match self.all {
            Some(receiver) => receiver,
            None => u32::try_from(decimal(topic.get(2..).unwrap_or_default())?).unwrap_or(u32::MAX),
        };
        Ok(Some((consumed, Event::Delivered { receiver, payload })))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.acks);
        self.acks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_all_lengths_come_back() {
        for length in [0, 127, 128, 20_000] {
            let body = vec![7; length];
            let mut out = BytesMut::new();
            put_packet(&mut out, PUBACK, &[&body]);
            assert_eq!(packet(&out).unwrap(), Some((PUBACK, &body[..], out.len())));
            assert_eq!(packet(&out[..out.len() - 1]).unwrap(), None);
        }
    }

    #[test]
    fn an_id_that_came_round_is_the_message_that_is_open() {
        let mut producer = Producer { confirmed: IDS - 1, ahead: 0 };
        let mut confirm = |id: u16| {
            let mut packet = BytesMut::new();
            put_packet(&mut packet, PUBACK, &[&id.to_be_bytes()]);
            match producer.next(&packet).unwrap() {
                Some((_, Event::Confirmed { first, count: 1 })) => first,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(confirm(1), IDS, "out of order");
        assert_eq!(confirm(65_535), IDS - 1);
        assert_eq!(confirm(2), IDS + 1);
    }
}
