//! Restante: `restante serve` with its defaults. A receiver is a peer, a confirm is synced.

use super::{Confirms, Connected, Range, Result, Scratch, Server, Shape, Subject};
use crate::versus::failure::{Context, failure};
use crate::versus::server::{Launch, data_dir, free_port};
use crate::versus::session::{Event, Greeting, Session, To};
use bytes::BytesMut;
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerUrl};
use restante_protocol::codec::{
    Limits, Next, next_frame, parse_control, put_ack, put_control, put_heartbeat, put_message,
};
use restante_protocol::control::{AttachAs, Control, Credit, Hello, Reply, Request};
use restante_protocol::frame::{Frame, PUBLISH_FIXED_BYTES, TagRange};
use restante_protocol::id::ProducerId;
use restante_protocol::limits::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION};
use restante_protocol::message::Body;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Requests under way at once; the node takes 64.
const REQUESTS_MAX: usize = 32;
/// How long a node may say that it is starting, and how often it is asked.
const STARTING_MAX: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Restante {
    program: PathBuf,
}

impl Restante {
    pub(crate) fn new(program: &Path) -> Restante {
        Restante { program: program.to_owned() }
    }
}

impl Subject for Restante {
    fn name(&self) -> &'static str {
        "Restante"
    }

    fn confirms(&self) -> Confirms {
        Confirms::Synced
    }

    fn missing(&self) -> Option<String> {
        (!self.program.is_file()).then(|| "cargo build --release".to_owned())
    }

    fn start(&self, scratch: Scratch) -> Result<Server> {
        let (data, port) = (data_dir(&scratch)?, free_port()?);
        let mut launch = Launch::new(
            &self.program,
            &["serve", "--log-format", "human", "--tcp", &format!("127.0.0.1:{port}")],
        );
        launch.arguments.extend(["--data-dir".to_owned(), data.display().to_string()]);
        Server::start(scratch, port, launch, None)
    }

    fn prepare(&self, port: u16, shape: &Shape) -> Result<()> {
        let mut link = Link::dial(port, None)?;
        let names: Vec<Name> = (0..shape.receivers).map(name).collect::<Result<_>>()?;
        for names in names.chunks(REQUESTS_MAX) {
            for (id, name) in (0..).zip(names) {
                let (url, settings) = (PeerUrl::Attach, PeerPatch::default());
                let add = AdminCommand::PeerAdd { name: name.clone(), url, settings };
                link.say(&Control::Request { id, request: Request::Admin(add) })?;
            }
            for _ in names {
                link.answer()?;
            }
        }
        Ok(())
    }

    fn producer(&self, port: u16, shape: &Shape, _: u16) -> Result<Connected> {
        let mut link = Link::dial(port, Some(ProducerId(rand::random())))?;
        for alias in 0..shape.receivers {
            link.say(&Control::Alias { alias, name: name(alias)? })?;
        }
        let all = (0..shape.receivers).collect();
        let session = Producer { first: link.next_sequence, credit: link.credit, all };
        let (stream, read) = link.greeting.finish()?;
        Ok((stream, read, Box::new(session)))
    }

    fn receivers(&self, port: u16, _: &Shape, receivers: Range<u32>) -> Result<Connected> {
        let mut link = Link::dial(port, None)?;
        let attach = |(slot, receiver)| Ok(AttachAs { slot, name: name(receiver)?, grant: None });
        let receivers_as = (0..).zip(receivers.clone()).map(attach).collect::<Result<_>>()?;
        link.say(&Control::Request {
            id: 0,
            request: Request::Attach { receivers: receivers_as },
        })?;
        match link.answer()? {
            Reply::Attached(results) => {
                if let Some(refusal) = results.into_iter().find_map(|result| result.refusal) {
                    return Err(failure!("{refusal:?}"));
                }
            }
            _ => return Err(failure!("the node answers attach with something else")),
        }
        let slots = vec![None; receivers.len()];
        let session =
            Receiver { first: receivers.start, slots, touched: Vec::new(), acks: Vec::new() };
        let (stream, read) = link.greeting.finish()?;
        Ok((stream, read, Box::new(session)))
    }
}

fn name(receiver: u32) -> Result<Name> {
    format!("r{receiver}").parse().map_err(|error| failure!("{error}"))
}

/// A connection while it is set up.
struct Link {
    greeting: Greeting,
    next_sequence: u64,
    credit: Credit,
}

impl Link {
    /// Greets a node, again and again while it is starting. It says so and closes; what it says can be
    /// lost to the reset that its close is while our hello has not been read.
    fn dial(port: u16, producer: Option<ProducerId>) -> Result<Link> {
        let end = Instant::now() + STARTING_MAX;
        loop {
            let failure = match Link::greet(port, producer) {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(refusal)) if refusal.code == Code::Overloaded => {
                    failure!("{}", refusal.detail)
                }
                Ok(Err(refusal)) => return Err(failure!("{}: {}", refusal.code, refusal.detail)),
                Err(failure) => failure,
            };
            if Instant::now() > end {
                return Err(failure);
            }
            std::thread::sleep(RETRY);
        }
    }

    fn greet(
        port: u16,
        producer: Option<ProducerId>,
    ) -> Result<std::result::Result<Link, Refusal>> {
        let (greeting, credit) = (Greeting::dial(port)?, Credit::default());
        let mut link = Link { greeting, next_sequence: 0, credit };
        link.say(&Control::Hello(Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            agent: "versus".to_owned(),
            producer,
            unused_from: None,
            deliver_as: None,
            node: None,
            login: None,
        }))?;
        match link.hear()? {
            Control::Welcome(welcome) => {
                (link.next_sequence, link.credit) = (welcome.next_sequence, welcome.credit);
            }
            Control::Goodbye(refusal) => return Ok(Err(refusal)),
            other => return Err(failure!("instead of a welcome came {other:?}")),
        }
        Ok(Ok(link))
    }

    fn say(&mut self, control: &Control) -> Result<()> {
        put_control(&mut self.greeting.out, control).context("a control frame")
    }

    fn hear(&mut self) -> Result<Control> {
        self.greeting.ask(|input| match frame(input)? {
            Some((Frame::Control(body), consumed)) => {
                Ok(Some((consumed, parse_control(body).context("a control frame")?)))
            }
            Some((frame, _)) => Err(failure!("{frame:?} comes too early")),
            None => Ok(None),
        })
    }

    fn answer(&mut self) -> Result<Reply> {
        match self.hear()? {
            Control::Response { result: Ok(reply), .. } => Ok(reply),
            other => Err(failure!("the node answers {other:?}")),
        }
    }
}

/// The frame at the front.
#[inline]
fn frame(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>> {
    const LIMITS: Limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
    match next_frame(input, &LIMITS).context("a frame")? {
        Next::Frame { frame, consumed } => Ok(Some((frame, consumed))),
        Next::Partial { .. } => Ok(None),
        Next::Refused(_) => Err(failure!("a publish came")),
    }
}

/// The node's sequence of message 0, and every alias.
struct Producer {
    first: u64,
    credit: Credit,
    all: Vec<u32>,
}

impl Session for Producer {
    fn publish(&mut self, number: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()> {
        let body = Body { payload, ..Body::default() };
        match to {
            To::One(receiver) => put_message(out, 0, self.first + number, &[receiver], &body),
            To::All => put_message(out, 0, self.first + number, &self.all, &body),
        }
        Ok(())
    }

    fn unconfirmed_max(&self, payload_bytes: usize) -> u64 {
        // One alias, or all of them: the upper bound costs nothing at a thousand receivers.
        let aliases = self.all.len().min(64);
        let frame_bytes = PUBLISH_FIXED_BYTES + 4 * aliases + 1 + payload_bytes;
        u64::from(self.credit.messages).min(self.credit.bytes / frame_bytes as u64)
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((frame, consumed)) = frame(input)? else { return Ok(None) };
        let event = match frame {
            Frame::Confirm(confirm) => Event::Confirmed {
                first: confirm.first_sequence - self.first,
                count: u64::from(confirm.count),
            },
            Frame::Heartbeat => Event::Nothing,
            Frame::Refuse(refuse) => return Err(failure!("refused: {}", refuse.detail)),
            Frame::Control(body) => return Err(failure!("{:?}", parse_control(body))),
            frame => return Err(failure!("{frame:?} out of turn")),
        };
        Ok(Some((consumed, event)))
    }

    fn beat(&mut self, out: &mut BytesMut) {
        put_heartbeat(out);
    }
}

struct Receiver {
    /// The receiver of slot 0.
    first: u32,
    /// What is to be acked of each slot.
    slots: Vec<Option<TagRange>>,
    touched: Vec<u32>,
    /// Ranges that another one of their slot has followed.
    acks: Vec<(u32, TagRange)>,
}

impl Session for Receiver {
    fn publish(&mut self, _: u64, _: To, _: &[u8], _: &mut BytesMut) -> Result<()> {
        Err(failure!("a receiver does not publish"))
    }

    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>> {
        let Some((frame, consumed)) = frame(input)? else { return Ok(None) };
        let deliver = match frame {
            Frame::Deliver(deliver) => deliver,
            Frame::Heartbeat => return Ok(Some((consumed, Event::Nothing))),
            Frame::Control(body) => return Err(failure!("{:?}", parse_control(body))),
            frame => return Err(failure!("{frame:?} out of turn")),
        };
        let (slot, tag) = (deliver.slot, deliver.tag);
        let open = self.slots.get_mut(slot as usize);
        let open = open.ok_or_else(|| failure!("slot {slot} is not attached"))?;
        match open {
            Some(range) if range.last + 1 == tag => range.last = tag,
            Some(range) => {
                self.acks.push((slot, *range));
                *range = TagRange { first: tag, last: tag };
            }
            None => {
                *open = Some(TagRange { first: tag, last: tag });
                self.touched.push(slot);
            }
        }
        let body = Body::parse(deliver.body).context("a body")?;
        Ok(Some((
            consumed,
            Event::Delivered { receiver: self.first + slot, payload: body.payload },
        )))
    }

    fn read_end(&mut self, out: &mut BytesMut) {
        for (slot, range) in self.acks.drain(..) {
            put_ack(out, slot, &[range]);
        }
        for slot in self.touched.drain(..) {
            if let Some(range) = self.slots[slot as usize].take() {
                put_ack(out, slot, &[range]);
            }
        }
    }

    fn beat(&mut self, out: &mut BytesMut) {
        put_heartbeat(out);
    }
}
