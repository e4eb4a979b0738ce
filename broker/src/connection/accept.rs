//! A connection that somebody opened to this node.

use super::closing;
use super::credit::Credit;
use super::drive::{Connection, Routing, Writer};
use super::handshake::{self, HandshakeError};
use super::intake::Intake;
use super::net::{Net, Registered, Settings};
use super::pulse::Pulse;
use super::reader::Reader;
use super::requests::Requests;
use super::slots::Slots;
use super::tasks::Tasks;
use bytes::BytesMut;
use restante_actors::events;
use restante_actors::link::SharedProducer;
use restante_actors::router::{OpenProducer, OpenedProducer, ProducerSession};
use restante_protocol::codec::Limits;
use restante_protocol::control::{Control, Credit as Granted, Hello};
use restante_protocol::refusal::{Code, Refusal};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// How long the journal may take to record a producer identity.
const OPEN_PRODUCER_MAX: Duration = Duration::from_secs(10);

/// Serves a connection from its hello to its end.
pub(crate) async fn serve(mut stream: TcpStream, remote: SocketAddr, net: Rc<Net>) {
    let mut buffer = BytesMut::new();
    let hello = tokio::select! {
        hello = timeout(net.settings.hello_max, greet(&mut stream, &mut buffer)) => {
            hello.unwrap_or_else(|_| Err(late_hello(&net.settings).into()))
        }
        () = net.doors_closed() => {
            Err(Refusal::new(Code::ShuttingDown, "the node is stopping").into())
        }
    };
    let (hello, version) = match hello {
        Ok(greeted) => greeted,
        Err(error) => return turn_away(stream, remote, &net, error).await,
    };
    let registered = net.register();
    let producer = match open_producer(&net, &registered, &hello).await {
        Ok(producer) => producer,
        Err(refusal) => return turn_away(stream, remote, &net, refusal.into()).await,
    };
    let settings = &net.settings;
    let welcome = handshake::welcome(settings, version, net.handles.life.epoch, producer);
    let granted = welcome.credit;
    // A welcome is small; what a router says about the identity comes behind it.
    let greeted = handshake::send_control(&mut stream, Control::Welcome(welcome));
    match timeout(settings.hello_max, greeted).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => return,
    }
    let connection = registered.outbox.connection();
    events::connection_opened(connection, remote, &hello.agent, hello.producer);
    let begin = Begin {
        remote,
        agent: &hello.agent,
        producer: producer.map(|opened| opened.session),
        granted,
        heartbeat: Duration::from_millis(u64::from(settings.heartbeat_ms)),
        silence: Duration::from_millis(u64::from(settings.silence_ms_max)),
        slots: Slots::default(),
        rest: buffer,
    };
    begin.connection(stream, registered, Rc::clone(&net)).serve(hello.producer).await;
}

/// Tells somebody who cannot be served why, without hearing what they want.
pub(crate) async fn refuse(mut stream: TcpStream, why: Refusal) {
    closing::say_goodbye(&mut stream, why).await;
}

/// What a connection begins with, however it came about.
pub(super) struct Begin<'a> {
    pub(super) remote: SocketAddr,
    pub(super) agent: &'a str,
    pub(super) producer: Option<ProducerSession>,
    pub(super) granted: Granted,
    pub(super) heartbeat: Duration,
    pub(super) silence: Duration,
    pub(super) slots: Slots,
    /// What was read behind the first frame.
    pub(super) rest: BytesMut,
}

impl Begin<'_> {
    pub(super) fn connection(
        self,
        stream: TcpStream,
        registered: Registered,
        net: Rc<Net>,
    ) -> Connection {
        let now = Instant::now();
        let pulse = Pulse::new(self.heartbeat, self.silence, now);
        let outbox = Arc::clone(&registered.outbox);
        let limits = Limits::with_payload(net.settings.payload_bytes_max);
        Connection {
            stream,
            reader: Reader::with(self.rest),
            intake: Intake::new(limits, self.producer, Credit::new(self.granted)),
            slots: self.slots,
            requests: Requests::new(Rc::clone(&net), outbox, self.agent, self.remote),
            tasks: Tasks::default(),
            routing: Routing::default(),
            writer: Writer::default(),
            timer: Box::pin(sleep_until(pulse.next())),
            pulse,
            registered,
            net,
            remote: self.remote,
        }
    }
}

async fn greet(
    stream: &mut TcpStream,
    buffer: &mut BytesMut,
) -> Result<(Hello, u16), HandshakeError> {
    match handshake::first_control(stream, buffer).await? {
        Control::Hello(hello) => {
            let version = handshake::negotiate(&hello)?;
            Ok((hello, version))
        }
        Control::Goodbye(why) => Err(HandshakeError::Goodbye(why)),
        _ => {
            let detail = "the first frame of whoever dialled must be a hello";
            Err(Refusal::new(Code::OutOfTurn, detail).into())
        }
    }
}

fn late_hello(settings: &Settings) -> Refusal {
    let ms = settings.hello_max.as_millis();
    Refusal::new(Code::TimedOut, format!("no hello came within {ms} ms"))
}

async fn open_producer(
    net: &Net,
    registered: &Registered,
    hello: &Hello,
) -> Result<Option<OpenedProducer>, Refusal> {
    let Some(id) = hello.producer else { return Ok(None) };
    let from = Arc::clone(&registered.outbox) as SharedProducer;
    let open = OpenProducer { id, unused_from: hello.unused_from, from };
    match timeout(OPEN_PRODUCER_MAX, net.handles.router.send(open)).await {
        Ok(Ok(opened)) => opened.map(Some),
        Ok(Err(error)) => Err(Refusal::new(Code::Internal, format!("no router: {error}"))),
        Err(_) => Err(Refusal::new(
            Code::TimedOut,
            format!("the identity could not be recorded within {OPEN_PRODUCER_MAX:?}"),
        )),
    }
}

async fn turn_away(mut stream: TcpStream, remote: SocketAddr, net: &Net, error: HandshakeError) {
    let HandshakeError::Refused(refusal) = error else { return };
    net.admit(remote, "connection_refused", |suppressed| {
        events::connection_refused(remote, refusal.code, &refusal.detail, suppressed);
    });
    closing::say_goodbye(&mut stream, refusal).await;
}
