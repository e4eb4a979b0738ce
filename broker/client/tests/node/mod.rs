//! A node that does what a test tells it: it speaks the protocol over a real socket and judges
//! nothing. Every wait is bounded, so that a test that would hang fails instead.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use bytes::{Buf, BytesMut};
use restante_client::protocol::codec::{
    Limits, Next, next_frame, parse_control, put_confirm, put_control, put_deliver, put_refuse,
    put_reply,
};
use restante_client::protocol::control::{
    AttachAs, AttachResult, Control, Credit, Hello, Reply, Request, Welcome,
};
use restante_client::protocol::frame::{
    Ack, Confirm, Deliver, Frame, Refuse, Reply as Answer, ReplyKind,
};
use restante_client::protocol::id::{MessageId, NodeTag};
use restante_client::protocol::message::Body;
use restante_client::protocol::refusal::{Code, Refusal};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Far longer than anything here takes.
pub const LONG: Duration = Duration::from_secs(20);

/// Fails the test instead of letting it hang.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("this should not take so long")
}

pub struct FakeNode {
    listener: TcpListener,
    pub addr: String,
}

impl FakeNode {
    pub async fn start() -> FakeNode {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        FakeNode { listener, addr }
    }

    /// The next connection and its hello, not yet welcomed.
    pub async fn hello(&self) -> (Peer, Hello) {
        let (stream, _) = soon(self.listener.accept()).await.unwrap();
        let mut peer = Peer::new(stream);
        match peer.heard().await {
            Heard::Control(Control::Hello(hello)) => (peer, hello),
            other => panic!("expected a hello, got {other:?}"),
        }
    }

    /// The next connection, welcomed with generous credit.
    pub async fn accept(&self, next_sequence: u64) -> Peer {
        let (mut peer, _) = self.hello().await;
        peer.say(&Control::Welcome(Welcome { next_sequence, ..welcome() })).await;
        peer
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        version: 1,
        agent: "fake-node".to_owned(),
        epoch: 1,
        producer_epoch: 1,
        next_sequence: 1,
        credit: Credit { messages: 1_000_000, bytes: 1 << 30 },
        payload_bytes_max: 1 << 20,
        heartbeat_ms: 60_000,
        silence_ms_max: 180_000,
        grant: None,
    }
}

/// The other end of one connection.
pub struct Peer {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
    aliases: Vec<(u32, String)>,
}

/// What a client says, owned.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Publish {
        sequence: u64,
        to: Vec<String>,
        payload: String,
        key: Option<String>,
        flags: u8,
        reply: bool,
    },
    Ack(u32, Vec<(u64, u64)>),
    Value(u32, u64, String),
    Nack {
        slot: u32,
        tag: u64,
        permanent: bool,
        retry_after_ms: u32,
        reason: String,
    },
    Grant(u32, u64),
    Heartbeat,
    Control(Control),
    Closed,
}

impl Peer {
    pub fn new(stream: TcpStream) -> Peer {
        let (read, write) = (BytesMut::new(), BytesMut::new());
        Peer { stream, read, write, aliases: Vec::new() }
    }

    pub async fn dial(addr: std::net::SocketAddr) -> Peer {
        Peer::new(TcpStream::connect(addr).await.unwrap())
    }

    /// The next frame, aliases aside, which are remembered.
    pub async fn heard(&mut self) -> Heard {
        loop {
            match next_frame(&self.read, &Limits::default()).unwrap() {
                Next::Frame { frame, consumed } => {
                    let heard = own(&frame, &self.aliases);
                    self.read.advance(consumed);
                    match heard {
                        Heard::Control(Control::Alias { alias, name }) => {
                            self.aliases.retain(|(known, _)| *known != alias);
                            self.aliases.push((alias, name.to_string()));
                        }
                        heard => return heard,
                    }
                }
                Next::Partial { .. } => match soon(self.stream.read_buf(&mut self.read)).await {
                    Ok(0) | Err(_) => return Heard::Closed,
                    Ok(_) => {}
                },
                Next::Refused(refused) => panic!("not to be taken: {refused:?}"),
            }
        }
    }

    pub async fn publish(&mut self) -> (u64, Vec<String>, String) {
        match self.heard().await {
            Heard::Publish { sequence, to, payload, .. } => (sequence, to, payload),
            other => panic!("expected a publish, got {other:?}"),
        }
    }

    pub async fn request(&mut self) -> (u64, Request) {
        match self.heard().await {
            Heard::Control(Control::Request { id, request }) => (id, request),
            other => panic!("expected a request, got {other:?}"),
        }
    }

    /// Takes the next request, which is an attach, and attaches all it asks for.
    pub async fn attach(&mut self) -> Vec<AttachAs> {
        let (id, request) = self.request().await;
        let Request::Attach { receivers } = request else { panic!("expected an attach") };
        let attached = receivers.iter().map(|to| AttachResult {
            slot: to.slot,
            first_tag: 1,
            created: false,
            refusal: None,
        });
        self.answer(id, Reply::Attached(attached.collect())).await;
        receivers
    }

    /// Takes the next request, which must be a flush, and answers it.
    pub async fn flush(&mut self) {
        let (id, request) = self.request().await;
        assert_eq!(request, Request::Flush);
        self.answer(id, Reply::Done).await;
    }

    /// As a node whose peers have been removed: aliases must be declared again.
    pub fn forget_aliases(&mut self) {
        self.aliases.clear();
    }

    pub async fn closed(&mut self) {
        assert_eq!(self.heard().await, Heard::Closed);
    }

    pub async fn send(&mut self) {
        let mut bytes = self.write.split();
        // The client may have gone, which is for the test to find out by reading.
        let _ = soon(self.stream.write_all_buf(&mut bytes)).await;
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        self.write.extend_from_slice(bytes);
        self.send().await;
    }

    pub async fn say(&mut self, control: &Control) {
        put_control(&mut self.write, control).unwrap();
        self.send().await;
    }

    pub async fn answer(&mut self, id: u64, reply: Reply) {
        self.say(&Control::Response { id, result: Ok(reply) }).await;
    }

    pub async fn decline(&mut self, id: u64, code: Code) {
        let result = Err(Refusal::new(code, "declined"));
        self.say(&Control::Response { id, result }).await;
    }

    pub async fn goodbye(&mut self, code: Code) {
        self.say(&Control::Goodbye(Refusal::new(code, "goodbye"))).await;
    }

    pub async fn confirm(&mut self, first_sequence: u64, count: u32) {
        let first_id = id(first_sequence);
        put_confirm(&mut self.write, &Confirm { first_sequence, count, first_id });
        self.send().await;
    }

    pub async fn refuse(&mut self, sequence: u64, accepted: bool, code: Code, who: &[(u32, Code)]) {
        let refuse = Refuse {
            sequence,
            id: accepted.then(|| id(sequence)),
            code,
            receivers: who.iter().copied().collect(),
            members: Vec::new(),
            detail: "because".to_owned(),
        };
        put_refuse(&mut self.write, &refuse);
        self.send().await;
    }

    pub async fn reply(&mut self, sequence: u64, kind: ReplyKind, value: &[u8]) {
        put_reply(&mut self.write, &Answer { sequence, kind, value }).unwrap();
        self.send().await;
    }

    pub async fn deliver(&mut self, slot: u32, tags: std::ops::RangeInclusive<u64>) {
        for tag in tags {
            let payload = format!("message {tag}");
            let body = Body { payload: payload.as_bytes(), ..Body::default() };
            self.put_deliver(slot, tag, 1, &body);
        }
        self.send().await;
    }

    pub fn put_deliver(&mut self, slot: u32, tag: u64, epoch: u32, body: &Body<'_>) {
        let mut bytes = BytesMut::new();
        body.encode(&mut bytes);
        let (redelivered, attempt) = (false, 1);
        let deliver = Deliver { redelivered, attempt, slot, tag, epoch, id: id(tag), body: &bytes };
        put_deliver(&mut self.write, &deliver);
    }
}

pub fn id(number: u64) -> MessageId {
    MessageId::new(1_000, NodeTag(7), 0, number)
}

fn own(frame: &Frame<'_>, aliases: &[(u32, String)]) -> Heard {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match frame {
        Frame::Publish(publish) => {
            let body = Body::parse(publish.body).unwrap();
            let name = |alias| {
                let known = aliases.iter().find(|(known, _)| *known == alias);
                known.expect("declared before it is used").1.clone()
            };
            Heard::Publish {
                sequence: publish.sequence,
                to: publish.receivers().map(name).collect(),
                payload: text(body.payload),
                key: body.key.map(text),
                flags: publish.flags,
                reply: body.reply,
            }
        }
        Frame::Ack(Ack { slot, ranges }) => {
            Heard::Ack(*slot, ranges.iter().map(|range| (range.first, range.last)).collect())
        }
        Frame::AckValue(ack) => Heard::Value(ack.slot, ack.tag, text(ack.value)),
        Frame::Nack(nack) => Heard::Nack {
            slot: nack.slot,
            tag: nack.tag,
            permanent: nack.permanent,
            retry_after_ms: nack.retry_after_ms,
            reason: nack.reason.to_owned(),
        },
        Frame::Grant(grant) => Heard::Grant(grant.slot, grant.messages),
        Frame::Heartbeat => Heard::Heartbeat,
        Frame::Control(body) => Heard::Control(parse_control(body).unwrap()),
        other => panic!("a client does not say {other:?}"),
    }
}
