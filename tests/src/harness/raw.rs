//! A connection without a client: it says whatever bytes it is told to, and hears what comes back.

use super::wait::within;
use bytes::{Buf, BytesMut};
use restante_client::protocol::codec::{
    Limits, Next, next_frame, parse_control, put_control, put_frame,
};
use restante_client::protocol::control::{Control, Credit, Hello, Reply, Request, Welcome};
use restante_client::protocol::frame::{Confirm, Frame, Refuse};
use restante_client::protocol::id::{MessageId, ProducerId};
use restante_client::protocol::limits::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION};
use restante_client::protocol::refusal::Refusal;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What the other side said.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A control frame.
    Control(Box<Control>),
    /// Publishes are durable.
    Confirm(Confirm),
    /// A publish was refused.
    Refuse(Refuse),
    /// A message, on this slot under this tag.
    Deliver {
        /// The attachment.
        slot: u32,
        /// What an ack names.
        tag: u64,
        /// The message.
        id: MessageId,
        /// Whether it may have come before.
        redelivered: bool,
        /// Its body section.
        body: Vec<u8>,
    },
    /// A call has been answered.
    Reply {
        /// That of the publish.
        sequence: u64,
    },
    /// Any other frame, by its kind's name.
    Other(&'static str),
    /// The other side closed the connection.
    Closed,
}

/// See the module.
pub struct Raw {
    stream: TcpStream,
    read: BytesMut,
    requests: u64,
}

impl Raw {
    /// Connects and says nothing.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(addr: SocketAddr) -> Raw {
        let stream = within("a connection", LIMIT, TcpStream::connect(addr)).await;
        Raw::over(stream.expect("a connection"))
    }

    /// A connection that somebody else opened.
    #[must_use]
    pub fn over(stream: TcpStream) -> Raw {
        Raw { stream, read: BytesMut::new(), requests: 0 }
    }

    /// Connects and introduces itself, as a producer if it is given an identity.
    ///
    /// # Panics
    /// When the answer is no welcome.
    pub async fn greeted(addr: SocketAddr, producer: Option<ProducerId>) -> (Raw, Welcome) {
        let mut raw = Raw::connect(addr).await;
        raw.control(&Control::Hello(Raw::hello(producer))).await;
        match raw.hear().await {
            Heard::Control(control) => match *control {
                Control::Welcome(welcome) => (raw, welcome),
                other => panic!("{other:?} in place of a welcome"),
            },
            other => panic!("{other:?} in place of a welcome"),
        }
    }

    /// A hello as it should be.
    #[must_use]
    pub fn hello(producer: Option<ProducerId>) -> Hello {
        Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            agent: "restante-tests-raw".to_owned(),
            producer,
            unused_from: None,
            deliver_as: None,
            node: None,
            login: None,
        }
    }

    /// A welcome as a receiver says it to a node that has dialled.
    #[must_use]
    pub fn welcome() -> Welcome {
        Welcome {
            version: PROTOCOL_VERSION,
            agent: "restante-tests-raw".to_owned(),
            epoch: 0,
            producer_epoch: 0,
            next_sequence: 0,
            credit: Credit::default(),
            payload_bytes_max: 1 << 20,
            heartbeat_ms: 60_000,
            silence_ms_max: 600_000,
            grant: None,
        }
    }

    /// Says bytes. That the other side has closed already is heard, not said.
    pub async fn say(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Says a frame.
    ///
    /// # Panics
    /// When it is none.
    pub async fn frame(&mut self, frame: &Frame<'_>) {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, frame).expect("a frame");
        self.say(&bytes).await;
    }

    /// Says a control frame.
    ///
    /// # Panics
    /// When it is too long.
    pub async fn control(&mut self, control: &Control) {
        let mut bytes = BytesMut::new();
        put_control(&mut bytes, control).expect("a control frame");
        self.say(&bytes).await;
    }

    /// Says a control frame whose body is this value, whether it is one or not.
    ///
    /// # Panics
    /// When the value cannot be encoded.
    pub async fn value(&mut self, value: &serde_json::Value) {
        let body = rmp_serde::to_vec_named(value).expect("a MessagePack value");
        self.frame(&Frame::Control(&body)).await;
    }

    /// Asks and waits for the answer; what is heard before it is dropped.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn ask(&mut self, request: Request) -> Result<Reply, Refusal> {
        self.requests += 1;
        let id = self.requests;
        self.control(&Control::Request { id, request }).await;
        loop {
            match self.hear().await {
                Heard::Control(control) => match *control {
                    Control::Response { id: answered, result } if answered == id => return result,
                    _ => {}
                },
                Heard::Closed => panic!("closed in place of an answer"),
                _ => {}
            }
        }
    }

    /// Says no more; the other side may go on.
    pub async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next frame but heartbeats.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn hear(&mut self) -> Heard {
        within("a frame", LIMIT, self.next(true)).await
    }

    /// The next frame, heartbeats included.
    ///
    /// # Panics
    /// When nothing comes in time.
    pub async fn hear_any(&mut self) -> Heard {
        within("a frame", LIMIT, self.next(false)).await
    }

    /// Waits until the other side closes. The goodbye it said before that, if any.
    ///
    /// # Panics
    /// When it does not close in time.
    pub async fn closed(&mut self) -> Option<Refusal> {
        let mut goodbye = None;
        let close = async {
            loop {
                match self.next(true).await {
                    Heard::Closed => break,
                    Heard::Control(control) => {
                        if let Control::Goodbye(refusal) = *control {
                            goodbye = Some(refusal);
                        }
                    }
                    _ => {}
                }
            }
        };
        within("the other side to close", LIMIT, close).await;
        goodbye
    }

    async fn next(&mut self, skip_heartbeats: bool) -> Heard {
        loop {
            if let Some((heard, consumed)) = front(&self.read) {
                self.read.advance(consumed);
                if !(skip_heartbeats && heard == Heard::Other("heartbeat")) {
                    return heard;
                }
                continue;
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return Heard::Closed,
                Ok(_) => {}
            }
        }
    }
}

fn front(bytes: &[u8]) -> Option<(Heard, usize)> {
    let limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
    let (frame, consumed) = match next_frame(bytes, &limits).expect("the node says frames") {
        Next::Frame { frame, consumed } => (frame, consumed),
        Next::Partial { .. } => return None,
        Next::Refused(publish) => panic!("the node published: {publish:?}"),
    };
    let heard = match frame {
        Frame::Control(body) => {
            Heard::Control(Box::new(parse_control(body).expect("the node says control values")))
        }
        Frame::Confirm(confirm) => Heard::Confirm(confirm),
        Frame::Refuse(refuse) => Heard::Refuse(refuse),
        Frame::Deliver(deliver) => Heard::Deliver {
            slot: deliver.slot,
            tag: deliver.tag,
            id: deliver.id,
            redelivered: deliver.redelivered,
            body: deliver.body.to_vec(),
        },
        Frame::Heartbeat => Heard::Other("heartbeat"),
        Frame::Reply(reply) => Heard::Reply { sequence: reply.sequence },
        other => panic!("the node said {other:?}"),
    };
    Some((heard, consumed))
}
