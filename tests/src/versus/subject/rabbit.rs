//! RabbitMQ: a durable queue for each receiver, persistent messages, publisher confirms, AMQP 0-9-1.
//!
//! Configuration: classic queues (a confirm comes after the write, not after a sync that it can rely
//! on) or quorum queues (a Raft log, synced before a confirm, here of one node). A consumer takes up
//! to 1,000 unacked messages and acks with `multiple`. Each message to all goes through a fanout
//! exchange. The node has a name server (`epmd`) of its own, so that none is left behind.

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::{Failure, failure};
use crate::versus::server::{Launch, Process, data_dir, find_program, free_port};
use crate::versus::session::{Event, Greeting, Session, To, garbage};
use crate::versus::shape::Routing;
use bytes::{Buf, BufMut, BytesMut};

/// The script that becomes the server; the one in `PATH` changes the user first.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
const PREFETCH: u16 = 1_000;
/// Larger than the default, so that a payload of a mebibyte is one frame.
const FRAME_BYTES_MAX: u32 = 2_097_152;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;

/// Class and method of what is said here, as they stand in a frame.
mod method {
    pub(super) const START: u32 = 10 << 16 | 10;
    pub(super) const START_OK: u32 = 10 << 16 | 11;
    pub(super) const TUNE: u32 = 10 << 16 | 30;
    pub(super) const TUNE_OK: u32 = 10 << 16 | 31;
    pub(super) const OPEN: u32 = 10 << 16 | 40;
    pub(super) const OPEN_OK: u32 = 10 << 16 | 41;
    pub(super) const CHANNEL_OPEN: u32 = 20 << 16 | 10;
    pub(super) const CHANNEL_OPEN_OK: u32 = 20 << 16 | 11;
    pub(super) const EXCHANGE_DECLARE: u32 = 40 << 16 | 10;
    pub(super) const EXCHANGE_DECLARE_OK: u32 = 40 << 16 | 11;
    pub(super) const QUEUE_DECLARE: u32 = 50 << 16 | 10;
    pub(super) const QUEUE_DECLARE_OK: u32 = 50 << 16 | 11;
    pub(super) const QUEUE_BIND: u32 = 50 << 16 | 20;
    pub(super) const QUEUE_BIND_OK: u32 = 50 << 16 | 21;
    pub(super) const QOS: u32 = 60 << 16 | 10;
    pub(super) const QOS_OK: u32 = 60 << 16 | 11;
    pub(super) const CONSUME: u32 = 60 << 16 | 20;
    pub(super) const CONSUME_OK: u32 = 60 << 16 | 21;
    pub(super) const PUBLISH: u32 = 60 << 16 | 40;
    pub(super) const DELIVER: u32 = 60 << 16 | 60;
    pub(super) const ACK: u32 = 60 << 16 | 80;
    pub(super) const CONFIRM_SELECT: u32 = 85 << 16 | 10;
    pub(super) const CONFIRM_SELECT_OK: u32 = 85 << 16 | 11;
}

#[derive(Debug)]
pub(crate) struct Rabbit {
    name: &'static str,
    queue: &'static str,
}

impl Rabbit {
    pub(crate) const QUORUM: Rabbit = Rabbit { name: "RabbitMQ, quorum", queue: "quorum" };
    pub(crate) const CLASSIC: Rabbit = Rabbit { name: "RabbitMQ, classic", queue: "classic" };
}

impl Subject for Rabbit {
    fn name(&self) -> &'static str {
        self.name
    }

    fn confirms(&self) -> Confirms {
        if self.queue == "quorum" { Confirms::Synced } else { Confirms::Unsynced }
    }

    fn missing(&self) -> Option<String> {
        find_program(PROGRAM).is_none().then(|| "apt-get install rabbitmq-server".to_owned())
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (data, port) = (data_dir(&scratch)?, free_port()?);
        let (names, distribution) = (free_port()?.to_string(), free_port()?.to_string());
        let at = |name: &str| data.join(name).display().to_string();
        let names_on = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = vec![
            names_on("ERL_EPMD_PORT", &names),
            names_on("ERL_EPMD_ADDRESS", "127.0.0.1"),
            names_on("RABBITMQ_DIST_PORT", &distribution),
            names_on("RABBITMQ_NODENAME", "versus@localhost"),
            names_on("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1"),
            names_on("RABBITMQ_NODE_PORT", &port.to_string()),
            names_on("RABBITMQ_MNESIA_BASE", &at("mnesia")),
            names_on("RABBITMQ_LOG_BASE", &at("log")),
            names_on("RABBITMQ_PID_FILE", &at("pid")),
            names_on("RABBITMQ_ENABLED_PLUGINS_FILE", &at("plugins")),
            names_on("RABBITMQ_CONFIG_FILE", &at("rabbitmq")),
            names_on("RABBITMQ_CONF_ENV_FILE", &at("env")),
            // The cookie that a node keeps in its home.
            names_on("HOME", &data.display().to_string()),
        ];
        std::fs::write(data.join("plugins"), "[].\n")?;
        let config = format!("log.file.level = error\nframe_max = {FRAME_BYTES_MAX}\n");
        std::fs::write(data.join("rabbitmq.conf"), config)?;
        std::fs::write(data.join("env"), "")?;
        let epmd = find_program("epmd").ok_or_else(|| failure!("epmd is not installed"))?;
        let mut name_server = Launch::new(epmd, &["-port", &names, "-address", "127.0.0.1"]);
        name_server.environment.clone_from(&environment);
        let beside = Process::start(&name_server, &scratch.path().join("epmd.log"))?;
        let mut launch = Launch::new(PROGRAM, &[]);
        launch.environment = environment;
        Server::start(scratch, port, launch, Some(beside))
    }

    fn prepare(&self, port: u16, shape: &Shape) -> Result<()> {
        let mut link = Link::dial(port)?;
        if shape.routing == Routing::All {
            link.ask(method::EXCHANGE_DECLARE, method::EXCHANGE_DECLARE_OK, |out| {
                out.put_u16(0);
                put_short(out, "all");
                put_short(out, "fanout");
                // Durable.
                out.put_u8(2);
                out.put_u32(0);
            })?;
        }
        for receiver in 0..shape.receivers {
            link.ask(method::QUEUE_DECLARE, method::QUEUE_DECLARE_OK, |out| {
                out.put_u16(0);
                put_short(out, &queue(receiver));
                out.put_u8(2);
                let mut table = BytesMut::new();
                put_short(&mut table, "x-queue-type");
                table.put_u8(b'S');
                put_long(&mut table, self.queue.as_bytes());
                put_long(out, &table);
            })?;
            if shape.routing == Routing::All {
                link.ask(method::QUEUE_BIND, method::QUEUE_BIND_OK, |out| {
                    out.put_u16(0);
                    put_short(out, &queue(receiver));
                    put_short(out, "all");
                    put_short(out, "");
                    out.put_u8(0);
                    out.put_u32(0);
                })?;
            }
        }
        Ok(())
    }

    fn producer(&self, port: u16, shape: &Shape, _: u16) -> Result<Connected> {
        let mut link = Link::dial(port)?;
        link.ask(method::CONFIRM_SELECT, method::CONFIRM_SELECT_OK, |out| out.put_u8(0))?;
        let head = |exchange: &str, key: &str| {
            let mut out = BytesMut::new();
            put_method(&mut out, method::PUBLISH, |out| {
                out.put_u16(0);
                put_short(out, exchange);
                put_short(out, key);
                out.put_u8(0);
            });
            out
        };
        let heads = (0..shape.receivers).map(|receiver| head("", &queue(receiver))).collect();
        let session = Producer { heads, all: head("all", ""), open: Vec::new(), floor: 0 };
        let (stream, read) = link.0.finish()?;
        Ok((stream, read, Box::new(session)))
    }

    fn receivers(&self, port: u16, _: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let mut link = Link::dial(port)?;
        link.ask(method::QOS, method::QOS_OK, |out| {
            out.put_u32(0);
            out.put_u16(PREFETCH);
            out.put_u8(0);
        })?;
        for receiver in receivers {
            // Deliveries may come before the next answer, so it is not awaited.
            put_method(&mut link.0.out, method::CONSUME, |out| {
                out.put_u16(0);
                put_short(out, &queue(receiver));
                put_short(out, &receiver.to_string());
                out.put_u8(0);
                out.put_u32(0);
            });
        }
        let (stream, read) = link.0.finish()?;
        Ok((stream, read, Box::new(Receiver { tag: None })))
    }
}

fn queue(receiver: u32) -> String {
    format!("r{receiver}")
}

fn put_short(out: &mut BytesMut, text: &str) {
    // Ours are short.
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

fn put_long(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_frame(out: &mut BytesMut, kind: u8, channel: u16, content: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    out.put_u16(channel);
    let at = out.len();
    out.put_u32(0);
    content(out);
    let length = (out.len() - at - 4) as u32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    out.put_u8(FRAME_END);
}

fn put_method(out: &mut BytesMut, method: u32, arguments: impl FnOnce(&mut BytesMut)) {
    let channel = u16::from(method >> 16 != 10);
    put_frame(out, METHOD, channel, |out| {
        out.put_u32(method);
        arguments(out);
    });
}

/// The frame at the front: its kind, its content, its length.
#[inline]
fn frame(input: &[u8]) -> Result<Option<(u8, &[u8], usize)>> {
    let Some((head, rest)) = input.split_first_chunk::<7>() else { return Ok(None) };
    let [kind, _, _, a, b, c, d] = *head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    match (rest.get(..length), rest.get(length)) {
        (Some(content), Some(&FRAME_END)) => Ok(Some((kind, content, length + 8))),
        (_, Some(_)) => Err(garbage("a frame", input)),
        _ => Ok(None),
    }
}

fn method_of(content: &[u8]) -> Option<(u32, &[u8])> {
    let (method, arguments) = content.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*method), arguments))
}

fn unexpected(content: &[u8]) -> Failure {
    let method = method_of(content).map(|(method, _)| (method >> 16, method & 0xffff));
    garbage(&format!("another method than {method:?}"), content)
}

/// A connection while it is set up, with its one channel.
struct Link(Greeting);

impl Link {
    fn dial(port: u16) -> Result<Link> {
        let mut link = Link(Greeting::dial(port)?);
        link.0.out.put_slice(b"AMQP\0\0\x09\x01");
        link.hear(method::START)?;
        put_method(&mut link.0.out, method::START_OK, |out| {
            out.put_u32(0);
            put_short(out, "PLAIN");
            put_long(out, b"\0guest\0guest");
            put_short(out, "en_US");
        });
        link.hear(method::TUNE)?;
        put_method(&mut link.0.out, method::TUNE_OK, |out| {
            out.put_u16(2_047);
            out.put_u32(FRAME_BYTES_MAX);
            // No heartbeats: the run itself is bounded.
            out.put_u16(0);
        });
        link.ask(method::OPEN, method::OPEN_OK, |out| {
            put_short(out, "/");
            out.put_u16(0);
        })?;
        link.ask(method::CHANNEL_OPEN, method::CHANNEL_OPEN_OK, |out| out.put_u8(0))?;
        Ok(link)
    }

    fn ask(&mut self, say: u32, expect: u32, arguments: impl FnOnce(&mut BytesMut)) -> Result<()> {
        put_method(&mut self.0.out, say, arguments);
        self.hear(expect)
    }

    fn hear(&mut self, expect: u32) -> Result<()> {
        self.0.ask(|input| match frame(input)? {
            Some((METHOD, content, consumed)) => match method_of(content) {
                Some((method, _)) if method == expect => Ok(Some((consumed, ()))),
                _ => Err(unexpected(content)),
            },
            Some((_, content, _)) => Err(garbage("a method", content)),
            None => Ok(None),
        })
    }
}

struct Producer {
    heads: Vec<BytesMut>,
    all: BytesMut,
    /// From message `floor` on: whether each is still unconfirmed, so that an ack of many can leave out
    /// those that were acked alone before.
    open: Vec<bool>,
    floor: u64,
}

impl Session for Producer {
    fn publish(&mut self, _: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        out.put_slice(match to {
            To::One(receiver) => &self.heads[receiver as usize],
            To::All => &self.all,
        });
        put_frame(out, HEADER, 1, |out| {
            out.put_u16(60);
            out.put_u16(0);
            out.put_u64(payload.len() as u64);
            // Only the delivery mode: persistent.
            out.put_u16(1 << 12);
            out.put_u8(2);
        });
        put_frame(out, BODY, 1, |out| out.put_slice(payload));
        Ok(())
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((kind, content, consumed)) = frame(input)? else { return Ok(None) };
        if kind == HEARTBEAT {
            return Ok(Some((consumed, Event::Nothing)));
        }
        let Some((method::ACK, mut arguments)) = method_of(content) else {
            return Err(unexpected(content));
        };
        if arguments.len() != 9 {
            return Err(garbage("an ack", content));
        }
        // Tags are numbers from 1.
        let last = arguments.get_u64() - 1;
        let first = if arguments.get_u8() & 1 == 0 { last } else { self.floor };
        let run = self.take(first, last);
        // An ack of many can hold several runs: it is read again until none of it is open.
        let event = match run {
            Some((first, count)) => Event::Confirmed { first, count },
            None => Event::Nothing,
        };
        Ok(Some((if run.is_some() { 0 } else { consumed }, event)))
    }
}

impl Producer {
    /// Takes the first run of messages that are open in a range, if any is.
    fn take(&mut self, first: u64, last: u64) -> Option<(u64, u64)> {
        let end = usize::try_from((last + 1).checked_sub(self.floor)?).ok()?;
        if self.open.len() < end {
            self.open.resize(end, true);
        }
        let from = first.saturating_sub(self.floor) as usize;
        let begin = from + self.open.get(from..end)?.iter().position(|open| *open)?;
        let run = self.open[begin..end].iter().take_while(|open| **open).count();
        self.open[begin..begin + run].fill(false);
        let taken = (self.floor + begin as u64, run as u64);
        let settled = self.open.iter().take_while(|open| !**open).count();
        self.open.drain(..settled);
        self.floor += settled as u64;
        Some(taken)
    }
}

struct Receiver {
    /// The last tag that has come and is not acked.
    tag: Option<u64>,
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    /// A delivery's frames (method, header, body) are taken together.
    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((kind, content, mut at)) = frame(input)? else { return Ok(None) };
        if kind == HEARTBEAT {
            return Ok(Some((at, Event::Nothing)));
        }
        let mut arguments = match method_of(content) {
            Some((method::DELIVER, arguments)) => arguments,
            Some((method::CONSUME_OK, _)) => return Ok(Some((at, Event::Nothing))),
            _ => return Err(unexpected(content)),
        };
        let receiver = (|| {
            let length = usize::from(arguments.try_get_u8().ok()?);
            let (name, rest) = arguments.split_at_checked(length)?;
            arguments = rest;
            std::str::from_utf8(name).ok()?.parse().ok()
        })();
        let receiver: u32 = receiver.ok_or_else(|| garbage("a consumer", content))?;
        let tag = arguments.try_get_u64().map_err(|_| garbage("a tag", content))?;
        let Some((HEADER, mut header, length)) = frame(&input[at..])? else { return Ok(None) };
        at += length;
        header.advance(4.min(header.len()));
        let size = header.try_get_u64().map_err(|_| garbage("a header", content))? as usize;
        let mut payload: &'a [u8] = &[];
        if size > 0 {
            let Some((BODY, body, length)) = frame(&input[at..])? else { return Ok(None) };
            (payload, at) = (body, at + length);
        }
        if payload.len() != size {
            return Err(failure!("a body of {size} bytes came in several frames"));
        }
        self.tag = Some(tag);
        Ok(Some((at, Event::Delivered { receiver, payload })))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        if let Some(tag) = self.tag.take() {
            put_method(out, method::ACK, |out| {
                out.put_u64(tag);
                out.put_u8(1);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acked(producer: &mut Producer, tag: u64, multiple: bool) -> Vec<(u64, u64)> {
        let mut ack = BytesMut::new();
        put_method(&mut ack, method::ACK, |out| {
            out.put_u64(tag);
            out.put_u8(u8::from(multiple));
        });
        let mut runs = Vec::new();
        loop {
            match producer.next(&ack).unwrap() {
                Some((0, Event::Confirmed { first, count })) => runs.push((first, count)),
                Some((consumed, Event::Nothing)) if consumed == ack.len() => return runs,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_ack_of_many_leaves_out_what_was_acked_alone() {
        let (heads, all) = (Vec::new(), BytesMut::new());
        let mut producer = Producer { heads, all, open: Vec::new(), floor: 0 };
        assert_eq!(acked(&mut producer, 3, false), [(2, 1)]);
        assert_eq!(acked(&mut producer, 5, true), [(0, 2), (3, 2)]);
        assert_eq!(acked(&mut producer, 5, true), []);
        assert_eq!(acked(&mut producer, 6, false), [(5, 1)]);
        assert_eq!((producer.floor, producer.open.len()), (6, 0));
    }
}
