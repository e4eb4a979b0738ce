//! A client that says exactly what a test wants said, byte by byte, and hears exactly what comes.
use bytes::{Buf, BytesMut};
use restante::config::Config;
use restante::node::Node;
use restante_protocol::codec::{
    Limits, Next, next_frame, parse_control, put_ack, put_control, put_grant, put_message,
};
use restante_protocol::control::{AttachAs, AttachResult, Control, Hello, Reply, Request, Welcome};
use restante_protocol::frame::{Frame, Grant, TagRange};
use restante_protocol::id::ProducerId;
use restante_protocol::message::Body;
use restante_protocol::refusal::Refusal;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use tempfile::TempDir;

/// Longer than anything here takes; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node with its own data directory.
pub(crate) struct Bench {
    pub(crate) node: Option<Node>,
    pub(crate) dir: TempDir,
    config: Config,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench::with(|_| {})
    }

    /// With a configuration of its own. Segments are small so that tests need little disk.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            data_dir: dir.path().join("data"),
            tcp: ([127, 0, 0, 1], 0).into(),
            journal_segment_bytes: 4 * 1024 * 1024,
            disk_free_bytes_min: 0,
            disk_free_bytes_resume: 0,
            shutdown_ms_max: 2_000,
            ..Config::default()
        };
        change(&mut config);
        let node = Some(Node::start(config.clone()).unwrap());
        Bench { node, dir, config }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.node.as_ref().unwrap().tcp()
    }

    /// Stops the node in order and starts it again on the same data.
    pub(crate) fn restart(&mut self) {
        self.node.take().unwrap().stop().unwrap();
        self.node = Some(Node::start(self.config.clone()).unwrap());
    }

    /// A connection that has said nothing yet.
    pub(crate) fn connect(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address()).unwrap())
    }

    /// A connection that has said hello without an identity.
    pub(crate) fn guest(&self) -> Wire {
        let mut wire = self.connect();
        wire.hello(None);
        wire
    }

    /// A connection that publishes as `id`, with aliases 0, 1, … for these names.
    pub(crate) fn producer(&self, id: u128, names: &[&str]) -> Wire {
        let mut wire = self.connect();
        wire.hello(Some(ProducerId(id)));
        for (alias, name) in (0..).zip(names) {
            wire.say(&Control::Alias { alias, name: name.parse().unwrap() });
        }
        wire
    }

    /// A connection attached as these names, on slots 0, 1, …
    pub(crate) fn receiver(&self, names: &[&str]) -> Wire {
        let mut wire = self.guest();
        for result in wire.attach(names) {
            assert_eq!(result.refusal, None);
        }
        wire
    }
}

/// What was heard, one short line a frame, so that a test reads like a conversation.
pub(crate) type Line = String;

/// See the module.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    heard: BytesMut,
    requests: u64,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Wire { stream, heard: BytesMut::new(), requests: 0 }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub(crate) fn say(&mut self, control: &Control) {
        let mut bytes = BytesMut::new();
        put_control(&mut bytes, control).unwrap();
        self.send(&bytes);
    }

    pub(crate) fn hello(&mut self, producer: Option<ProducerId>) -> Welcome {
        self.say(&Control::Hello(hello(producer)));
        match self.control() {
            Some(Control::Welcome(welcome)) => welcome,
            other => panic!("no welcome: {other:?}"),
        }
    }

    pub(crate) fn publish(&mut self, sequence: u64, aliases: &[u32], payload: &[u8]) {
        self.send(&publish(sequence, aliases, payload));
    }

    pub(crate) fn ack(&mut self, slot: u32, first: u64, last: u64) {
        let mut bytes = BytesMut::new();
        put_ack(&mut bytes, slot, &[TagRange { first, last }]);
        self.send(&bytes);
    }

    pub(crate) fn grant(&mut self, slot: u32, messages: u64) {
        let mut bytes = BytesMut::new();
        put_grant(&mut bytes, &Grant { slot, messages });
        self.send(&bytes);
    }

    /// Asks and waits for the answer; nothing else may come before it.
    pub(crate) fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.requests += 1;
        let asked = self.requests;
        self.say(&Control::Request { id: asked, request });
        match self.control() {
            Some(Control::Response { id, result }) if id == asked => result,
            other => panic!("no answer: {other:?}"),
        }
    }

    /// The answer to the last question, with whatever is delivered before it.
    pub(crate) fn ask_amid(&mut self, request: Request) -> (Vec<Line>, Result<Reply, Refusal>) {
        self.requests += 1;
        let asked = self.requests;
        self.say(&Control::Request { id: asked, request });
        let mut before = Vec::new();
        loop {
            let answer = self.frame(|frame| match frame {
                Frame::Control(body) => Some(parse_control(body).unwrap()),
                other => {
                    before.push(line(&other));
                    None
                }
            });
            match answer.expect("an answer") {
                None => {}
                Some(Control::Response { id, result }) if id == asked => return (before, result),
                other => panic!("no answer: {other:?}"),
            }
        }
    }

    pub(crate) fn attach(&mut self, names: &[&str]) -> Vec<AttachResult> {
        let receivers = (0..)
            .zip(names)
            .map(|(slot, name)| AttachAs { slot, name: name.parse().unwrap(), grant: None })
            .collect();
        match self.ask(Request::Attach { receivers }) {
            Ok(Reply::Attached(results)) => results,
            other => panic!("not attached: {other:?}"),
        }
    }

    /// The next frame that is no heartbeat; `None` once the node has closed the connection.
    pub(crate) fn frame<T>(&mut self, take: impl FnOnce(Frame<'_>) -> T) -> Option<T> {
        let limits = Limits::with_payload(16 * 1024 * 1024);
        loop {
            match next_frame(&self.heard, &limits).unwrap() {
                Next::Frame { frame: Frame::Heartbeat, consumed } => self.heard.advance(consumed),
                Next::Frame { frame, consumed } => {
                    let taken = take(frame);
                    self.heard.advance(consumed);
                    return Some(taken);
                }
                Next::Refused(_) => panic!("a node publishes nothing"),
                Next::Partial { .. } => {
                    let mut piece = [0; 64 * 1024];
                    match self.stream.read(&mut piece) {
                        Ok(0) => return None,
                        Ok(count) => self.heard.extend_from_slice(&piece[..count]),
                        Err(error) => panic!("nothing more is heard: {error}"),
                    }
                }
            }
        }
    }

    pub(crate) fn control(&mut self) -> Option<Control> {
        self.frame(|frame| match frame {
            Frame::Control(body) => parse_control(body).unwrap(),
            other => panic!("expected a control frame, heard {}", line(&other)),
        })
    }

    /// The next frame as a line; `"closed"` at the end.
    pub(crate) fn line(&mut self) -> Line {
        self.frame(|frame| line(&frame)).unwrap_or_else(|| "closed".to_owned())
    }

    pub(crate) fn lines(&mut self, count: usize) -> Vec<Line> {
        (0..count).map(|_| self.line()).collect()
    }

    /// Confirms until `count` messages are confirmed; how many there were, nothing else may come.
    pub(crate) fn confirmed(&mut self, count: u64) {
        let mut confirmed = 0;
        while confirmed < count {
            confirmed += self
                .frame(|frame| match frame {
                    Frame::Confirm(confirm) => u64::from(confirm.count),
                    other => panic!("expected a confirm, heard {}", line(&other)),
                })
                .expect("confirms");
        }
        assert_eq!(confirmed, count);
    }

    /// Reads on to the goodbye and the end behind it.
    pub(crate) fn goodbye(&mut self) -> Refusal {
        loop {
            let heard = self.frame(|frame| match frame {
                Frame::Control(body) => Some(parse_control(body).unwrap()),
                _ => None,
            });
            if let Some(Control::Goodbye(why)) = heard.expect("a goodbye before the end") {
                assert_eq!(self.line(), "closed");
                return why;
            }
        }
    }
}

pub(crate) fn hello(producer: Option<ProducerId>) -> Hello {
    Hello {
        version_min: 1,
        version_max: 1,
        agent: "test".to_owned(),
        producer,
        unused_from: None,
        deliver_as: None,
        node: None,
        login: None,
    }
}

pub(crate) fn publish(sequence: u64, aliases: &[u32], payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_message(&mut bytes, 0, sequence, aliases, &Body { payload, ..Body::default() });
    bytes
}

/// A receiver that waits to be dialled.
pub(crate) struct Door(TcpListener);

impl Door {
    pub(crate) fn new() -> Door {
        Door(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub(crate) fn url(&self) -> String {
        format!("tcp://{}", self.0.local_addr().unwrap())
    }

    /// Accepts the node's connection and hears its hello.
    pub(crate) fn accept(&self) -> (Wire, Hello) {
        let mut wire = Wire::new(self.0.accept().unwrap().0);
        match wire.control() {
            Some(Control::Hello(hello)) => (wire, hello),
            other => panic!("no hello: {other:?}"),
        }
    }
}

pub(crate) fn welcome(grant: Option<u64>) -> Control {
    Control::Welcome(Welcome {
        version: 1,
        agent: "test".to_owned(),
        epoch: 0,
        producer_epoch: 0,
        next_sequence: 0,
        credit: Default::default(),
        payload_bytes_max: 1024 * 1024,
        heartbeat_ms: 10_000,
        silence_ms_max: 30_000,
        grant,
    })
}

fn line(frame: &Frame<'_>) -> Line {
    match frame {
        Frame::Confirm(confirm) => format!("confirm {}+{}", confirm.first_sequence, confirm.count),
        Frame::Refuse(refuse) => match refuse.receivers.is_empty() {
            true => format!("refuse {} {}", refuse.sequence, refuse.code),
            false => format!("refuse {} {:?}", refuse.sequence, refuse.receivers),
        },
        Frame::Deliver(deliver) => {
            let payload = Body::parse(deliver.body).unwrap().payload;
            let again = if deliver.redelivered { " again" } else { "" };
            let payload = match payload.len() {
                0..=64 => String::from_utf8_lossy(payload).into_owned(),
                bytes => format!("({bytes} bytes)"),
            };
            format!("deliver {} {} {payload}{again}", deliver.slot, deliver.tag)
        }
        Frame::Control(body) => match parse_control(body).unwrap() {
            Control::Goodbye(why) => format!("goodbye {}", why.code),
            Control::Detached { slot, reason } => format!("detached {slot} {}", reason.code),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}
