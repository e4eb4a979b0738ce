//! A receiver that nodes dial: it listens, lets them introduce themselves, and yields what they
//! deliver.
//!
//! Each connection is one attachment, on slot 0, as the peer the node says it delivers as. A lost
//! connection is the node's to restore; what was not acked comes again.
//!
//! A node that dials again has given its earlier connection up, though what it had sent there may
//! still be on the way. That is void from then on: read beside the new connection, it could come
//! behind its own repetition, and without the flag that the repetition carries.

use crate::delivery::Delivery;
use crate::desk::Desk;
use crate::doorbell::{Doorbell, Wakes};
use crate::driver::{deliver_run, out_of_turn};
use crate::epochs::Epochs;
use crate::error::{BindError, EndReason, RequestError};
use crate::intake::{Attachment, Intake};
use crate::options::Reconnect;
use crate::slots::Taken;
use crate::subscription::Reader;
use crate::wire::{Loss, Side, Wire, after, not_a_frame};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use parking_lot::Mutex;
use restante_protocol::codec::{Limits, Next, next_frame, parse_control};
use restante_protocol::control::{Control, Credit, Hello, NodeLife, Reply, Request, Welcome};
use restante_protocol::frame::Frame;
use restante_protocol::id::NodeTag;
use restante_protocol::limits::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION};
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// How long a node that has connected may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that may be about to introduce themselves; one more is closed without a word.
const GREETINGS_MAX: usize = 64;
/// Wait after a failed accept (out of file descriptors, say) before the next.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// How a listener serves.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// The receivers it is; deliveries for others are declined. Empty: whatever a node says.
    pub names: Vec<Name>,
    /// Take so many deliveries, until [`Listener::grant`] asks for more. Each connection is granted
    /// what of them has not been handed out: several nodes that are connected at a time may each have
    /// so many in flight. `None`: the peer's window alone limits what is in flight.
    pub grant: Option<u64>,
    /// What the node's log calls this program; at most 128 bytes.
    pub agent: String,
    /// Most connections at a time. Default 64.
    pub connections_max: usize,
    /// A side that has sent nothing for this long sends a heartbeat. Default 5 s.
    pub heartbeat: Duration,
    /// A side that has been silent for this long is taken for dead. Default 15 s.
    pub silence_max: Duration,
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions {
            names: Vec::new(),
            grant: None,
            agent: concat!("restante-client/", env!("CARGO_PKG_VERSION")).to_owned(),
            connections_max: 64,
            heartbeat: Duration::from_secs(5),
            silence_max: Duration::from_secs(15),
        }
    }
}

/// A receiver that nodes dial, as peers with a `tcp://` URL: a stream of deliveries.
///
/// Dropping it closes its socket and, after a last write of at most a second, its connections.
#[derive(Debug)]
pub struct Listener {
    hub: Arc<Hub>,
    local_addr: SocketAddr,
    readers: Vec<Reader>,
    /// Which reader is asked first.
    turn: usize,
}

/// What the listener and its connections share.
#[derive(Debug)]
struct Hub {
    options: ListenOptions,
    epochs: Arc<Epochs>,
    /// Rung when a connection has something to take, has come or has gone.
    reader: Arc<Doorbell>,
    connections: Mutex<Vec<Arc<Link>>>,
    /// Connections the listener has not looked at yet.
    arrived: Mutex<Vec<Reader>>,
    /// Deliveries that have been asked for, if there is a grant; and handed out.
    wanted: AtomicU64,
    handed_out: AtomicU64,
    /// A connection was lost with acks that no flush has covered.
    acks_lost: AtomicBool,
    closing: AtomicBool,
    close_asked: Notify,
}

/// One node's connection.
#[derive(Debug)]
struct Link {
    bell: Arc<Doorbell>,
    attachment: Arc<Attachment>,
    /// What the node is told of the grant by the welcome.
    granted: Option<u64>,
    desk: Desk,
    /// Who is at the other end, if it said so.
    node: Option<NodeLife>,
    /// The same node has dialled again.
    superseded: AtomicBool,
}

impl Listener {
    /// Listens on `host:port`; port 0 lets the system choose.
    ///
    /// # Errors
    /// The address cannot be resolved or bound.
    pub async fn bind(addr: &str, options: ListenOptions) -> Result<Listener, BindError> {
        let failed = |source| BindError::Io { addr: addr.to_owned(), source };
        let socket = TcpListener::bind(addr).await.map_err(failed)?;
        let local_addr = socket.local_addr().map_err(failed)?;
        let hub = Arc::new(Hub {
            wanted: AtomicU64::new(options.grant.unwrap_or_default()),
            handed_out: AtomicU64::new(0),
            options,
            epochs: Arc::new(Epochs::default()),
            reader: Arc::new(Doorbell::default()),
            connections: Mutex::default(),
            arrived: Mutex::default(),
            acks_lost: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            close_asked: Notify::new(),
        });
        tokio::spawn(accept(hub.clone(), socket));
        Ok(Listener { hub, local_addr, readers: Vec::new(), turn: 0 })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// How many nodes are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.hub.connections.lock().len()
    }

    /// The next delivery, from whichever connection has one, in turn. Cancel-safe. It never ends by
    /// itself: nodes come and go.
    pub async fn next(&mut self) -> Delivery {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// Takes this many deliveries more than asked for so far. Without a grant in the options there is
    /// nothing to add to and nothing happens.
    pub fn grant(&self, more: u64) {
        let add = |wanted: u64| Some(wanted.saturating_add(more));
        // Cannot fail: there is always a sum.
        let _ = self.hub.wanted.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        let arrived = self.hub.arrived.lock();
        for reader in self.readers.iter().chain(arrived.iter()) {
            self.hub.grant_what_is_left(reader);
        }
    }

    /// Waits until every node has recorded the acks given to it before.
    ///
    /// # Errors
    /// The first node's that did not: its messages may be delivered again.
    /// [`RequestError::Disconnected`] also if a connection was lost since the last flush, and acks
    /// with it.
    pub async fn flush(&self, timeout: Duration) -> Result<(), RequestError> {
        let deadline = after(tokio::time::Instant::now(), timeout);
        let links: Vec<_> = self.hub.connections.lock().clone();
        let mut asked = Vec::with_capacity(links.len());
        for link in &links {
            let given = link.attachment.intake.begin_flush()?;
            asked.push((link, given, link.desk.ask(Request::Flush)?));
        }
        if self.hub.acks_lost.swap(false, Ordering::AcqRel) {
            return Err(RequestError::Disconnected);
        }
        for (link, given, answer) in asked {
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(Ok(Reply::Done))) => link.attachment.intake.end_flush(given),
                Ok(Ok(Ok(_))) => return Err(RequestError::WrongReply),
                Ok(Ok(Err(RequestError::Ended(_))) | Err(_)) => {
                    self.hub.acks_lost.store(false, Ordering::Release);
                    return Err(RequestError::Disconnected);
                }
                Ok(Ok(Err(error))) => return Err(error),
                Err(_) => return Err(RequestError::TimedOut { timeout }),
            }
        }
        Ok(())
    }

    /// Whether acks were given that no flush has covered: they are on their way, or were lost.
    #[must_use]
    pub fn has_unflushed(&self) -> bool {
        let is_unflushed = |link: &Arc<Link>| link.attachment.intake.has_unflushed();
        self.hub.acks_lost.load(Ordering::Acquire)
            || self.hub.connections.lock().iter().any(is_unflushed)
    }

    fn poll_delivery(&mut self, cx: &Context<'_>) -> Poll<Delivery> {
        self.hub.reader.listen(cx);
        let arrived = std::mem::take(&mut *self.hub.arrived.lock());
        self.readers.extend(arrived);
        let mut looked = 0;
        while looked < self.readers.len() {
            if self.turn >= self.readers.len() {
                self.turn = 0;
            }
            let reader = &mut self.readers[self.turn];
            if let Some(delivery) = reader.hand_out() {
                // Written by this task alone.
                let handed_out = self.hub.handed_out.load(Ordering::Relaxed) + 1;
                self.hub.handed_out.store(handed_out, Ordering::Release);
                return Poll::Ready(delivery);
            }
            match reader.refill() {
                // They are void if the connection was lost this very moment; then it is over next.
                Taken::Items => {}
                Taken::Nothing => {
                    self.turn += 1;
                    looked += 1;
                }
                Taken::Trouble(_) | Taken::Over => drop(self.readers.swap_remove(self.turn)),
            }
        }
        Poll::Pending
    }
}

impl Stream for Listener {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll_delivery(cx).map(Some)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.hub.closing.store(true, Ordering::Release);
        self.hub.close_asked.notify_one();
        for link in self.hub.connections.lock().iter() {
            link.bell.ring();
        }
    }
}

async fn accept(hub: Arc<Hub>, socket: TcpListener) {
    let greetings = Arc::new(Semaphore::new(GREETINGS_MAX));
    while !hub.closing.load(Ordering::Acquire) {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = hub.close_asked.notified() => return,
        };
        match accepted {
            Ok((stream, from)) => match greetings.clone().try_acquire_owned() {
                Ok(greeting) => drop(tokio::spawn(serve(hub.clone(), stream, from, greeting))),
                Err(_) => tracing::debug!(%from, "too many connections have not said hello"),
            },
            Err(error) => {
                tracing::debug!(%error, "cannot accept");
                tokio::time::sleep(ACCEPT_WAIT).await;
            }
        }
    }
}

/// One connection from its first byte to its last.
async fn serve(hub: Arc<Hub>, stream: TcpStream, from: SocketAddr, greeting: OwnedSemaphorePermit) {
    let Ok(mut wire) = Wire::new(stream) else { return };
    let entry = match tokio::time::timeout(HELLO_TIMEOUT, introduce(&hub, &mut wire)).await {
        Ok(Ok(entry)) => entry,
        Ok(Err(loss)) => {
            tracing::debug!(%from, ?loss, "declined a connection");
            wire.farewell(&loss).await;
            return;
        }
        Err(_) => {
            tracing::debug!(%from, "no hello in time");
            return;
        }
    };
    drop(greeting);
    let mut side = ReceiverSide {
        hub: &hub,
        link: &entry.0,
        wakes: Wakes::default(),
        questions: BytesMut::new(),
    };
    let loss = wire.drive(&mut side).await;
    tracing::debug!(%from, ?loss, "a node's connection ended");
    drop(entry);
    wire.farewell(&loss).await;
}

/// Hears the hello and answers it.
async fn introduce(hub: &Arc<Hub>, wire: &mut Wire) -> Result<Entry, Loss> {
    let hello = match wire.hear().await? {
        Control::Hello(hello) => hello,
        _ => return Err(out_of_turn("frame before a hello")),
    };
    let entry = match hub.enter(&hello) {
        Ok(entry) => entry,
        Err(refusal) => {
            wire.say(&Control::Goodbye(refusal.clone())).await?;
            return Err(Loss::Goodbye(refusal));
        }
    };
    let options = &hub.options;
    let millis = |wait: Duration| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
    let welcome = Welcome {
        version: PROTOCOL_VERSION,
        agent: options.agent.clone(),
        epoch: 0,
        producer_epoch: 0,
        next_sequence: 0,
        credit: Credit::default(),
        payload_bytes_max: PAYLOAD_BYTES_MAX as u64,
        heartbeat_ms: millis(options.heartbeat),
        silence_ms_max: millis(options.silence_max),
        grant: entry.0.granted,
    };
    wire.begin(welcome.heartbeat_ms, welcome.silence_ms_max);
    wire.say(&Control::Welcome(welcome)).await?;
    let reader = Reader::new(entry.0.attachment.clone());
    let mut arrived = hub.arrived.lock();
    // More may have been asked for since the welcome was written down.
    hub.grant_what_is_left(&reader);
    arrived.push(reader);
    drop(arrived);
    hub.reader.ring();
    Ok(entry)
}

/// A connection's place among the others; dropping it ends the attachment.
struct Entry(Arc<Link>, Arc<Hub>);

impl Drop for Entry {
    fn drop(&mut self) {
        let Entry(link, hub) = self;
        hub.connections.lock().retain(|other| !Arc::ptr_eq(other, link));
        hub.end(link);
    }
}

impl Hub {
    /// Enters a connection, in place of the one its node has given up by dialling again.
    fn enter(self: &Arc<Self>, hello: &Hello) -> Result<Entry, Refusal> {
        let name = self.check_hello(hello)?;
        let mut connections = self.connections.lock();
        let earlier = connections.iter().position(|link| link.is_earlier_of(hello.node, name));
        match (earlier, hello.node) {
            (Some(at), Some(node)) => connections[at].check_epoch(node)?,
            _ if connections.len() >= self.options.connections_max => {
                let detail = "this receiver has enough connections";
                return Err(Refusal::new(Code::LimitReached, detail));
            }
            _ => {}
        }
        let link = Arc::new(self.link(name.clone(), hello.node)?);
        let earlier = earlier.map(|at| connections.swap_remove(at));
        connections.push(link.clone());
        drop(connections);
        if let Some(earlier) = earlier {
            earlier.superseded.store(true, Ordering::Release);
            self.end(&earlier);
            earlier.bell.ring();
        }
        Ok(Entry(link, self.clone()))
    }

    fn check_hello<'a>(&self, hello: &'a Hello) -> Result<&'a Name, Refusal> {
        if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
            let detail = format!("this receiver speaks version {PROTOCOL_VERSION}");
            return Err(Refusal::new(Code::VersionMismatch, detail));
        }
        let Some(name) = &hello.deliver_as else {
            return Err(Refusal::new(Code::OutOfTurn, "this is a receiver, not a node"));
        };
        let names = &self.options.names;
        if !names.is_empty() && !names.contains(name) {
            return Err(Refusal::new(
                Code::UnknownReceiver,
                format!("this receiver is not {name}"),
            ));
        }
        Ok(name)
    }

    fn link(&self, name: Name, node: Option<NodeLife>) -> Result<Link, Refusal> {
        let bell = Arc::new(Doorbell::default());
        let intake = Intake::new(bell.clone(), Reconnect::never(), self.epochs.clone());
        let granted = self.options.grant.map(|_| self.left());
        let attachment = Arc::new(intake).open(name, granted, self.reader.clone());
        // A new intake has room for one attachment.
        let attachment =
            attachment.map_err(|error| Refusal::new(Code::LimitReached, error.to_string()))?;
        attachment.intake.lock().adopt(attachment.slot);
        let (desk, superseded) = (Desk::new(bell.clone()), AtomicBool::new(false));
        Ok(Link { bell, attachment, granted, desk, node, superseded })
    }

    /// Deliveries that have been asked for and not been handed out.
    fn left(&self) -> u64 {
        let handed_out = self.handed_out.load(Ordering::Acquire);
        self.wanted.load(Ordering::Acquire).saturating_sub(handed_out)
    }

    fn grant_what_is_left(&self, reader: &Reader) {
        let left = self.left();
        reader.attachment.intake.grant_up_to(&reader.attachment, reader.handed_out + left);
    }

    /// What came by this connection and was not acked is void.
    fn end(&self, link: &Link) {
        if link.attachment.intake.has_unflushed() {
            self.acks_lost.store(true, Ordering::Release);
        }
        let mut wakes = Wakes::default();
        link.desk.end(&EndReason::Closed, &mut wakes);
        let mut intake = link.attachment.intake.lock();
        intake.end(EndReason::Closed);
        // The slot points to its intake and must not keep it alive.
        intake.leave(&link.attachment);
        Intake::release(intake);
        wakes.wake_all();
    }
}

impl Link {
    /// Whether a connection of `node` as `name` takes the place of this one.
    fn is_earlier_of(&self, node: Option<NodeLife>, name: &Name) -> bool {
        let tag = |node: NodeLife| node.tag;
        node.is_some() && node.map(tag) == self.node.map(tag) && self.attachment.name == *name
    }

    fn check_epoch(&self, node: NodeLife) -> Result<(), Refusal> {
        match self.node {
            Some(newer) if newer.epoch > node.epoch => {
                let (NodeTag(tag), newer) = (node.tag, newer.epoch);
                let detail = format!("node {tag:04x} is in epoch {newer}, not {}", node.epoch);
                Err(Refusal::new(Code::Fenced, detail))
            }
            _ => Ok(()),
        }
    }
}

/// What a node's frames mean to a receiver it has dialled.
struct ReceiverSide<'a> {
    hub: &'a Hub,
    link: &'a Link,
    wakes: Wakes,
    questions: BytesMut,
}

impl ReceiverSide<'_> {
    fn handle_other(&mut self, frame: Frame<'_>) -> Result<(), Loss> {
        let control = match frame {
            Frame::Heartbeat => return Ok(()),
            Frame::Control(body) => parse_control(body).map_err(not_a_frame)?,
            _ => return Err(out_of_turn("frame that is not for a receiver")),
        };
        match control {
            Control::Response { id, result } => {
                self.link.desk.handle_response(id, result, &mut self.wakes)?;
                Ok(())
            }
            Control::Goodbye(refusal) => Err(Loss::Goodbye(refusal)),
            _ => Err(out_of_turn("control frame that is not for a receiver")),
        }
    }
}

impl Side for ReceiverSide<'_> {
    fn handle_frames(
        &mut self,
        frames: &Bytes,
        limits: &Limits,
        _now: Instant,
    ) -> Result<(), Loss> {
        if self.link.superseded.load(Ordering::Acquire) {
            return Err(Loss::Closed);
        }
        let mut at = 0;
        loop {
            let (end, delivered) = deliver_run(&self.link.attachment.intake, frames, at, limits);
            at = end;
            delivered?;
            if at >= frames.len() {
                break;
            }
            match next_frame(&frames[at..], limits).map_err(not_a_frame)? {
                Next::Frame { frame, consumed } => {
                    at += consumed;
                    self.handle_other(frame)?;
                }
                _ => return Err(out_of_turn("publish")),
            }
        }
        self.wakes.wake_all();
        Ok(())
    }

    fn transmit(&mut self, out: &mut BytesMut, _now: Instant) {
        // As for a client: questions are collected before acks and written after them.
        self.link.desk.transmit(&mut self.questions);
        self.link.attachment.intake.lock().transmit(out);
        if !self.questions.is_empty() {
            out.unsplit(self.questions.split());
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }

    fn is_closing(&self) -> bool {
        self.hub.closing.load(Ordering::Acquire) || self.link.superseded.load(Ordering::Acquire)
    }

    fn bell(&self) -> &Doorbell {
        &self.link.bell
    }
}
