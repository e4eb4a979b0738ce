//! Redis Streams: a stream and a consumer group for each receiver.
//!
//! Configuration: the append-only file, synced every second (the default, and what most run) or
//! before each answer (`always`, the only mode comparable to a synced confirm); snapshots off, because
//! the file is what survives. A receiver acks with `XACK` and then deletes with `XDEL`, since a stream
//! keeps what is acked and memory would grow for ever; with many groups on one stream (each message to
//! all) nobody may delete, and producers cap the stream instead (`MAXLEN ~`), as Redis documents it.
//! The cap is above all that this load leaves undelivered.

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::failure;
use crate::versus::server::{Launch, data_dir, find_program, free_port};
use crate::versus::session::{Event, Greeting, Session, To, decimal, garbage, line, put_decimal};
use crate::versus::shape::Routing;
use bytes::BytesMut;

/// Entries of each stream in one `XREADGROUP`.
const READ_COUNT: u32 = 500;
/// The cap of a stream that has many groups.
const STREAM_MAX: &str = "200000";

#[derive(Debug)]
pub(crate) struct Redis {
    name: &'static str,
    sync: &'static str,
}

impl Redis {
    pub(crate) const ALWAYS: Redis = Redis { name: "Redis, AOF always", sync: "always" };
    pub(crate) const EVERYSEC: Redis = Redis { name: "Redis, AOF everysec", sync: "everysec" };
}

impl Subject for Redis {
    fn name(&self) -> &'static str {
        self.name
    }

    fn confirms(&self) -> Confirms {
        if self.sync == "always" { Confirms::Synced } else { Confirms::Unsynced }
    }

    fn missing(&self) -> Option<String> {
        find_program("redis-server").is_none().then(|| "apt-get install redis-server".to_owned())
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (data, port) = (data_dir(&scratch)?, free_port()?.to_string());
        let data = data.display().to_string();
        let launch = Launch::new(
            find_program("redis-server").ok_or_else(|| failure!("not installed"))?,
            &[
                ["--port", &port],
                ["--bind", "127.0.0.1"],
                ["--dir", &data],
                ["--save", ""],
                ["--appendonly", "yes"],
                ["--appendfsync", self.sync],
                ["--loglevel", "warning"],
            ]
            .concat(),
        );
        let port = port.parse().map_err(|error| failure!("{error}"))?;
        Server::start(scratch, port, launch, None)
    }

    fn prepare(&self, port: u16, shape: &Shape) -> Result<()> {
        let mut greeting = Greeting::dial(port)?;
        for receiver in 0..shape.receivers {
            let stream = stream(shape.routing, receiver);
            let group = group(shape.routing, receiver);
            put(&mut greeting.out, &[b"XGROUP", b"CREATE", &stream, &group, b"0", b"MKSTREAM"]);
            greeting.ask(|input| Ok(simple(input)?.map(|consumed| (consumed, ()))))?;
        }
        Ok(())
    }

    fn producer(&self, port: u16, shape: &Shape, _: u16) -> Result<Connected> {
        let mut all = BytesMut::new();
        put_head(&mut all, 8);
        for word in [&b"XADD"[..], b"all", b"MAXLEN", b"~", STREAM_MAX.as_bytes(), b"*", b"m"] {
            put_bulk(&mut all, word);
        }
        let one = |receiver| {
            let mut head = BytesMut::new();
            put_head(&mut head, 5);
            let stream = stream(Routing::One, receiver);
            [&b"XADD"[..], &stream, b"*", b"m"].iter().for_each(|word| put_bulk(&mut head, word));
            head
        };
        let heads = (0..shape.receivers).map(one).collect();
        let (stream, read) = Greeting::dial(port)?.finish()?;
        Ok((stream, read, Box::new(Producer { heads, all, confirmed: 0 })))
    }

    fn receivers(&self, port: u16, shape: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let mut greeting = Greeting::dial(port)?;
        let first = receivers.start;
        let group = group(shape.routing, first);
        let streams: Vec<Vec<u8>> =
            receivers.map(|receiver| stream(shape.routing, receiver)).collect();
        let count = READ_COUNT.to_string();
        let mut words: Vec<&[u8]> = vec![b"XREADGROUP", b"GROUP", &group, b"c"];
        words.extend([&b"COUNT"[..], count.as_bytes(), b"BLOCK", b"0", b"STREAMS"]);
        words.extend(streams.iter().map(Vec::as_slice));
        words.extend(streams.iter().map(|_| &b">"[..]));
        let mut read = BytesMut::new();
        put(&mut read, &words);
        greeting.out.extend_from_slice(&read);
        let acks = vec![(0, BytesMut::new()); streams.len()];
        let delete = shape.routing == Routing::One;
        let state = State::Answer;
        let session = Receiver { first, group, streams, read, acks, delete, state, whole: false };
        let (stream, rest) = greeting.finish()?;
        Ok((stream, rest, Box::new(session)))
    }

    fn unable(&self, shape: &Shape) -> Option<&'static str> {
        let many = shape.routing == Routing::All && shape.receivers_per_connection > 1;
        many.then_some("one group a connection")
    }
}

fn stream(routing: Routing, receiver: u32) -> Vec<u8> {
    match routing {
        Routing::One => format!("r{receiver}").into_bytes(),
        Routing::All => b"all".to_vec(),
    }
}

fn group(routing: Routing, receiver: u32) -> Vec<u8> {
    match routing {
        Routing::One => b"g".to_vec(),
        Routing::All => format!("g{receiver}").into_bytes(),
    }
}

fn put_head(out: &mut BytesMut, words: u64) {
    out.extend_from_slice(b"*");
    put_decimal(out, words);
    out.extend_from_slice(b"\r\n");
}

fn put_bulk(out: &mut BytesMut, word: &[u8]) {
    out.extend_from_slice(b"$");
    put_decimal(out, word.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

fn put(out: &mut BytesMut, words: &[&[u8]]) {
    put_head(out, words.len() as u64);
    words.iter().for_each(|word| put_bulk(out, word));
}

/// The length of an answer of one line, if it is all there and no error.
fn simple(input: &[u8]) -> Result<Option<usize>> {
    match line(input) {
        Some((line, _)) if line.starts_with(b"-") => Err(garbage("an answer", line)),
        Some((_, end)) => Ok(Some(end)),
        None => Ok(None),
    }
}

/// A cursor over an answer that may not be there as a whole yet.
struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The number of a line that begins with `kind`.
    #[inline]
    fn number(&mut self, kind: u8) -> Result<Option<u64>> {
        let Some((line, end)) = line(&self.input[self.at..]) else { return Ok(None) };
        match line.split_first() {
            Some((first, digits)) if *first == kind => {
                self.at += end;
                decimal(digits).map(Some)
            }
            _ => Err(garbage("another kind of value", line)),
        }
    }

    #[inline]
    fn bulk(&mut self) -> Result<Option<&'a [u8]>> {
        let Some(length) = self.number(b'$')? else { return Ok(None) };
        let end = self.at.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        if self.input.len() < end.saturating_add(2) {
            return Ok(None);
        }
        let bulk = &self.input[self.at..end];
        self.at = end + 2;
        Ok(Some(bulk))
    }
}

struct Producer {
    /// What a message to each receiver begins with.
    heads: Vec<BytesMut>,
    all: BytesMut,
    confirmed: u64,
}

impl Session for Producer {
    fn publish(&mut self, _: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        out.extend_from_slice(match to {
            To::One(receiver) => &self.heads[receiver as usize],
            To::All => &self.all,
        });
        put_bulk(out, payload);
        Ok(())
    }

    /// The ids of new entries, in the order of the commands.
    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        if input.first().is_some_and(|kind| *kind != b'$') {
            return Err(garbage("an id", input));
        }
        let mut cursor = Cursor { input, at: 0 };
        if cursor.bulk()?.is_none() {
            return Ok(None);
        }
        let first = self.confirmed;
        self.confirmed += 1;
        Ok(Some((cursor.at, Event::Confirmed { first, count: 1 })))
    }
}

/// Where in an answer to `XREADGROUP` the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before an answer, of whatever command.
    Answer,
    /// So many streams to come.
    Streams(u64),
    /// So many entries to come of a stream, and then so many streams.
    Entries { stream: usize, entries: u64, streams: u64 },
}

struct Receiver {
    first: u32,
    group: Vec<u8>,
    streams: Vec<Vec<u8>>,
    /// The command that awaits more.
    read: BytesMut,
    /// By stream: how many ids, and the ids as a command's words.
    acks: Vec<(u64, BytesMut)>,
    delete: bool,
    state: State,
    /// A whole answer has been read, so that the next may be asked for.
    whole: bool,
}

impl Receiver {
    fn enter(&mut self, stream: usize, entries: u64, streams: u64) {
        self.state = match (entries, streams) {
            (0, 0) => {
                self.whole = true;
                State::Answer
            }
            (0, streams) => State::Streams(streams),
            (entries, streams) => State::Entries { stream, entries, streams },
        };
    }
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let mut cursor = Cursor { input, at: 0 };
        match self.state {
            State::Answer if input.first() == Some(&b'*') => {
                let Some(streams) = cursor.number(b'*')? else { return Ok(None) };
                self.state = State::Streams(streams);
                Ok(Some((cursor.at, Event::Nothing)))
            }
            // What XACK and XDEL say.
            State::Answer => Ok(simple(input)?.map(|consumed| (consumed, Event::Nothing))),
            State::Streams(streams) => {
                let Some(2) = cursor.number(b'*')? else { return Ok(None) };
                let Some(name) = cursor.bulk()? else { return Ok(None) };
                let Some(entries) = cursor.number(b'*')? else { return Ok(None) };
                let stream = match self.streams.len() {
                    1 => 0,
                    _ => {
                        let receiver = decimal(name.get(1..).unwrap_or_default())?;
                        let place = receiver.wrapping_sub(u64::from(self.first));
                        usize::try_from(place).unwrap_or(usize::MAX)
                    }
                };
                if stream >= self.streams.len() {
                    return Err(garbage("a stream that was asked for", name));
                }
                self.enter(stream, entries, streams - 1);
                Ok(Some((cursor.at, Event::Nothing)))
            }
            State::Entries { stream, entries, streams } => {
                let Some(2) = cursor.number(b'*')? else { return Ok(None) };
                let Some(id) = cursor.bulk()? else { return Ok(None) };
                let Some(2) = cursor.number(b'*')? else { return Ok(None) };
                let Some(_) = cursor.bulk()? else { return Ok(None) };
                let Some(payload) = cursor.bulk()? else { return Ok(None) };
                let (count, ids) = &mut self.acks[stream];
                *count += 1;
                put_bulk(ids, id);
                self.enter(stream, entries - 1, streams);
                // Below the number of streams of one connection.
                let receiver = self.first + stream as u32;
                Ok(Some((cursor.at, Event::Delivered { receiver, payload })))
            }
        }
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        if !std::mem::take(&mut self.whole) {
            return;
        }
        for (stream, (count, ids)) in self.streams.iter().zip(&mut self.acks) {
            if *count > 0 {
                put_head(out, 3 + *count);
                [b"XACK", &stream[..], &self.group].iter().for_each(|word| put_bulk(out, word));
                out.extend_from_slice(ids);
                if self.delete {
                    put_head(out, 2 + *count);
                    [b"XDEL", &stream[..]].iter().for_each(|word| put_bulk(out, word));
                    out.extend_from_slice(ids);
                }
                ids.clear();
                *count = 0;
            }
        }
        out.extend_from_slice(&self.read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_wherever_it_is_cut() {
        let answer =
            b"*2\r\n*2\r\n$2\r\nr4\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nm\r\n$2\r\nab\r\n\
            *2\r\n$2\r\nr5\r\n*1\r\n*2\r\n$3\r\n2-0\r\n*2\r\n$1\r\nm\r\n$1\r\nc\r\n:1\r\n";
        for cut in 1..answer.len() {
            let mut session = Receiver {
                first: 4,
                group: b"g".to_vec(),
                streams: vec![b"r4".to_vec(), b"r5".to_vec()],
                read: BytesMut::from(&b"READ"[..]),
                acks: vec![(0, BytesMut::new()); 2],
                delete: false,
                state: State::Answer,
                whole: false,
            };
            let (mut at, mut got) = (0, Vec::new());
            let mut out = BytesMut::new();
            for end in [cut, answer.len()] {
                while let Some((consumed, event)) = session.next(&answer[at..end]).unwrap() {
                    at += consumed;
                    if let Event::Delivered { receiver, payload } = event {
                        got.push((receiver, payload.to_vec()));
                    }
                }
                session.read_end(&mut out);
            }
            assert_eq!(got, [(4, b"ab".to_vec()), (5, b"c".to_vec())], "cut at {cut}");
            assert_eq!(at, answer.len());
            let said = String::from_utf8_lossy(&out).into_owned();
            assert_eq!(said.matches("XACK").count(), 2, "{said}");
            assert!(said.ends_with("READ"), "{said}");
        }
    }
}
