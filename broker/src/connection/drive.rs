//! The loop of a connection: one task, woken by its socket, its outbox, its timer and the answers
//! it waits for.
//!
//! Each turn does a bounded share of everything in the same order: news, reads, answers, timer,
//! writes. What actors say during the turn of the event loop is then written in one piece.

use super::End;
use super::closing;
use super::intake::{Heard, Intake};
use super::net::{Net, Registered};
use super::outbox::News;
use super::pulse::{Beat, Pulse};
use super::reader::Reader;
use super::requests::Requests;
use super::slots::Slots;
use super::tasks::{Done, Tasks};
use actix::dev::ToEnvelope;
use actix::prelude::{Handler, Message, SendError};
use bytes::{Bytes, BytesMut};
use restante_actors::events;
use restante_actors::link::{ProducerLink, SharedProducer};
use restante_actors::router::{CancelCall, PublishBatch, Router};
use restante_protocol::control::Control;
use restante_protocol::frame::Refuse;
use restante_protocol::id::ProducerId;
use restante_protocol::limits::CALLS_MAX;
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Reads of one turn; then others get theirs.
const READS_PER_TURN: usize = 4;
/// Answers handled in one turn.
const ANSWERS_PER_TURN: usize = 128;
/// A batch up to this size that has to wait is copied, so that it does not hold on to a read buffer.
const COPIED_BYTES_MAX: usize = 32 * 1024;

/// See the module.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) remote: SocketAddr,
    pub(super) net: Rc<Net>,
    pub(super) registered: Registered,
    pub(super) reader: Reader,
    pub(super) intake: Intake,
    pub(super) slots: Slots,
    pub(super) requests: Requests,
    pub(super) tasks: Tasks,
    pub(super) routing: Routing,
    pub(super) writer: Writer,
    pub(super) pulse: Pulse,
    pub(super) timer: Pin<Box<Sleep>>,
}

/// What is on the way to a router whose mailbox is full: one waits there for its turn, the others
/// here. Batches are bounded by the producer's credit, cancelled calls by [`CALLS_MAX`].
#[derive(Default)]
pub(super) struct Routing {
    waiting: bool,
    behind: VecDeque<Routed>,
    /// Cancelled calls among those.
    cancels: usize,
}

/// What a producer has to say to the router.
enum Routed {
    Publishes(PublishBatch),
    Cancel(CancelCall),
}

/// What is being written.
#[derive(Default)]
pub(super) struct Writer {
    buffer: BytesMut,
    written: usize,
}

impl Connection {
    /// Serves the connection to its end.
    pub(super) async fn serve(mut self, producer: Option<ProducerId>) {
        let end = self.run().await;
        closing::report(&self, producer, &end);
        closing::close(self, end).await;
    }

    async fn run(&mut self) -> End {
        // What followed the hello was read with it.
        if !self.reader.is_empty()
            && let Err(end) = self.digest(Source::Unread)
        {
            return end;
        }
        poll_fn(|cx| match self.turn(cx) {
            Ok(()) => Poll::Pending,
            Err(end) => Poll::Ready(end),
        })
        .await
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let now = Instant::now();
        let news = self.registered.outbox.listen(cx.waker());
        self.hear(news)?;
        self.read(cx, now)?;
        // After the reads: what they asked is polled for the first time here.
        self.collect_answers(cx)?;
        self.tick(cx, now)?;
        self.write(cx, now)
    }

    fn hear(&mut self, news: News) -> Result<(), End> {
        let (messages, bytes) = news.told;
        if messages > 0 {
            self.intake.credit.give_back(messages, bytes);
        }
        if let Some((count, first)) = news.refused {
            self.log_refused(count, &first);
        }
        for closed in news.closed {
            self.slots.remove(closed.slot, closed.number);
            self.registered.outbox.forgive_unsettled();
        }
        news.end.map_or(Ok(()), |why| Err(End::Refused(why)))
    }

    #[cold]
    fn log_refused(&self, count: u64, first: &Refuse) {
        let (alias, code) = match first.receivers.first() {
            Some((alias, code)) => (Some(*alias), *code),
            None => (None, first.code),
        };
        let name =
            alias.and_then(|alias| self.intake.aliases.unknown_name(alias)).map(Name::as_str);
        let seat = alias.and_then(|a| self.net.handles.directory.seat(self.intake.aliases.get(a)));
        let peer = name.or(seat.as_ref().map(|seat| seat.name.as_str()));
        let connection = self.registered.outbox.connection();
        self.net.admit(self.remote, "publish_refused", |suppressed| {
            let reason = &first.detail;
            events::publish_refused(connection, peer, code, reason, count, suppressed);
        });
    }

    fn collect_answers(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..ANSWERS_PER_TURN {
            let Poll::Ready(done) = self.tasks.poll_next(cx) else { return Ok(()) };
            match done {
                Done::Answered { id, result } => self.requests.answer(id, result),
                Done::Attached { id, attached } => {
                    self.requests.attached(id, attached, &mut self.slots);
                    self.slots.forward(&mut self.tasks)?;
                }
                Done::Left { id, slot, number } => {
                    self.slots.remove(slot, number);
                    self.registered.outbox.forgive_unsettled();
                    self.requests.answer(id, Ok(restante_protocol::control::Reply::Done));
                }
                Done::Watching { id, result, watcher } => {
                    self.requests.watching(id, result, &watcher);
                }
                Done::Sent { slot, number } => self.slots.sent(slot, number, &mut self.tasks),
                Done::Routed => {
                    self.routing.waiting = false;
                    while !self.routing.waiting
                        && let Some(next) = self.routing.behind.pop_front()
                    {
                        match next {
                            Routed::Publishes(batch) => self.route(batch)?,
                            Routed::Cancel(cancel) => {
                                self.routing.cancels -= 1;
                                self.cancel(cancel)?;
                            }
                        }
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn read(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        for _ in 0..READS_PER_TURN {
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => return Ok(()),
            }
            let Some(framed) = self.digest(Source::Socket(cx))? else { return Ok(()) };
            self.pulse.read(now, framed, self.reader.total());
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Reads once and deals with what came: whether whole frames did. `None`: nothing came after all.
    fn digest(&mut self, source: Source<'_, '_>) -> Result<Option<bool>, End> {
        let net = Rc::clone(&self.net);
        let mut filled = match source {
            Source::Unread => self.reader.unread(),
            Source::Socket(cx) => match self.reader.poll_fill(cx, &mut self.stream, &net.scratch) {
                Poll::Pending => return Ok(None),
                Poll::Ready(Ok(Some(filled))) => filled,
                Poll::Ready(Ok(None)) => {
                    return Err(End::Left("the other side closed the connection".to_owned()));
                }
                Poll::Ready(Err(error)) => return Err(End::Broken(error)),
            },
        };
        let bytes = filled.front();
        let (all, pass) =
            (bytes.len(), self.intake.pass(bytes, &mut self.slots, &net.handles.directory));
        match pass {
            Ok(pass) => {
                let chunk = filled.take(pass.consumed, pass.wanted, pass.skip);
                self.forward(chunk)?;
                Ok(Some(pass.consumed > 0))
            }
            Err(refusal) => {
                // What came before it stands.
                let chunk = filled.take(all, 0, 0);
                self.forward(chunk)?;
                Err(End::Refused(refusal))
            }
        }
    }

    /// Sends on what one pass has found.
    fn forward(&mut self, chunk: Bytes) -> Result<(), End> {
        let outbox = &self.registered.outbox;
        let from = || Arc::clone(outbox) as SharedProducer;
        if let Some(batch) = self.intake.take_batch(chunk, from) {
            self.route(batch)?;
        }
        self.slots.forward(&mut self.tasks)?;
        let settled = std::mem::take(&mut self.intake.settled);
        if settled > 0 {
            self.registered.outbox.note_settled(settled);
        }
        if !self.intake.unwelcome.is_empty() {
            self.refuse_unwelcome();
        }
        if self.intake.credit.is_abused() {
            let detail = "the connection keeps publishing beyond its credit";
            return Err(Refusal::new(Code::OverCredit, detail).into());
        }
        for heard in std::mem::take(&mut self.intake.controls) {
            match heard {
                Heard::Control(control) => self.control(*control)?,
                Heard::Unreadable { id, why } => self.requests.answer(id, Err(why)),
            }
        }
        Ok(())
    }

    fn route(&mut self, mut batch: PublishBatch) -> Result<(), End> {
        if self.routing.waiting {
            if batch.chunk.len() <= COPIED_BYTES_MAX {
                batch.chunk = Bytes::copy_from_slice(&batch.chunk);
            }
            self.routing.behind.push_back(Routed::Publishes(batch));
            return Ok(());
        }
        self.send(batch)
    }

    /// Not ahead of the publish it is about.
    #[cold]
    fn cancel(&mut self, cancel: CancelCall) -> Result<(), End> {
        if !self.routing.waiting {
            return self.send(cancel);
        }
        // More are passed over: those calls keep their places until they have ended.
        if self.routing.cancels < CALLS_MAX {
            self.routing.cancels += 1;
            self.routing.behind.push_back(Routed::Cancel(cancel));
        }
        Ok(())
    }

    fn send<M>(&mut self, message: M) -> Result<(), End>
    where
        M: Message<Result = ()> + Send + 'static,
        Router: Handler<M>,
        actix::Context<Router>: ToEnvelope<Router, M>,
    {
        let router = &self.net.handles.router;
        match router.try_send(message) {
            Ok(()) => Ok(()),
            Err(SendError::Full(message)) => {
                let request = router.send(message);
                self.routing.waiting = true;
                self.tasks.spawn(async move {
                    // A router that is gone shows with the next batch.
                    let _ = request.await;
                    Done::Routed
                });
                Ok(())
            }
            Err(SendError::Closed(_)) => {
                Err(Refusal::new(Code::ShuttingDown, "the node takes no more publishes").into())
            }
        }
    }

    #[cold]
    fn refuse_unwelcome(&mut self) {
        for sequence in self.intake.unwelcome.drain(..) {
            let refuse = Refuse {
                sequence,
                id: None,
                code: Code::OutOfTurn,
                receivers: Default::default(),
                members: Vec::new(),
                detail: "to publish, say hello with a producer identity; a receiver that was \
                         dialled opens a connection of its own for it"
                    .to_owned(),
            };
            self.registered.outbox.refuse(&refuse, 0);
        }
    }

    fn control(&mut self, control: Control) -> Result<(), End> {
        match control {
            Control::Request { id, request } => {
                self.requests.handle(id, request, &mut self.slots, &mut self.tasks);
                Ok(())
            }
            Control::CancelCall { sequence } if self.intake.publishes() => {
                let from = Arc::clone(&self.registered.outbox) as SharedProducer;
                self.cancel(CancelCall { from, sequence })
            }
            Control::Goodbye(why) => Err(End::Left(format!("the other side left: {why}"))),
            _ => Err(Refusal::new(
                Code::OutOfTurn,
                "after the hello a node is sent aliases, cancelled calls, requests and a goodbye, no \
                 other control",
            )
            .into()),
        }
    }

    fn tick(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let ms = self.pulse.silence().as_millis();
            match self.pulse.due(now) {
                Beat::Nothing => {}
                Beat::Heartbeat => {
                    self.shrink();
                    self.registered.outbox.heartbeat();
                    // It goes out at the end of this turn.
                    self.pulse.wrote(now, false);
                }
                Beat::Silent => {
                    let detail = format!("nothing was heard for {ms} ms, not even a heartbeat");
                    return Err(Refusal::new(Code::TimedOut, detail).into());
                }
                Beat::Stalled => {
                    let detail = format!("nothing that was sent has been read for {ms} ms");
                    return Err(Refusal::new(Code::TimedOut, detail).into());
                }
            }
            let next = self.pulse.next();
            self.timer.as_mut().reset(next);
        }
        Ok(())
    }

    /// Gives memory back: this side has had nothing to say for a while.
    fn shrink(&mut self) {
        self.reader.shrink();
        self.intake.shrink();
        self.registered.outbox.shrink();
        if self.writer.buffer.is_empty() {
            self.writer.buffer = BytesMut::new();
        }
    }

    fn write(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<(), End> {
        match self.poll_flush(cx, now) {
            Poll::Ready(flushed) => Ok(flushed?),
            Poll::Pending => {
                self.pulse.blocked(now);
                Ok(())
            }
        }
    }

    /// Writes all that is to be said; pending when the socket takes no more.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<std::io::Result<()>> {
        let outbox = &self.registered.outbox;
        loop {
            let Writer { buffer, written } = &mut self.writer;
            if *written == buffer.len() {
                buffer.clear();
                *written = 0;
                if !outbox.take(buffer) {
                    return Poll::Ready(Ok(()));
                }
            }
            let rest = &buffer[*written..];
            let count = std::task::ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            *written += count;
            self.pulse.wrote(now, *written < buffer.len());
            let congested = outbox.wrote(count);
            if !congested.is_empty() {
                self.slots.writable(&congested);
            }
        }
    }
}

/// Where [`Connection::digest`] finds bytes.
enum Source<'a, 'b> {
    /// Among those read before.
    Unread,
    Socket(&'a mut Context<'b>),
}
