//! One connection of the generator, as bytes.
//!
//! Constraints: no allocation, no copy but the kernel's and no timer per message. A read takes what
//! the socket has, up to [`READ_BYTES`]; frames are taken apart where they lie. What is to be said is
//! gathered in [`Link::out`] and written at once. The hot loops poll ([`Link::poll_fill`],
//! [`Link::poll_drain`]); setting up and taking down asks and awaits answers ([`Link::ask`]).

use super::super::{Exit, Failure};
use bytes::BytesMut;
use restante_protocol::codec::{
    FrameError, Limits, Next, next_frame, parse_control, put_control, put_heartbeat,
};
use restante_protocol::control::{Control, Credit, Hello, Reply, Request, Welcome};
use restante_protocol::frame::Frame;
use restante_protocol::id::ProducerId;
use restante_protocol::limits::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION};
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep, timeout};

/// Most bytes of one read: what still fits the processor's second-level cache.
const READ_BYTES: usize = 128 * 1024;
/// A hot loop says no more while this much is still to be written.
pub(super) const OUT_BYTES_MAX: usize = 256 * 1024;
/// How long connecting and greeting may take, and how long an answer.
const GREETING_MAX: Duration = Duration::from_secs(10);
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Requests under way at once on one connection; the node takes 64.
const REQUESTS_MAX: usize = 32;

const AGENT: &str = concat!("restante-bench/", env!("CARGO_PKG_VERSION"));

/// A connection whose sides have introduced themselves.
pub(super) struct Link {
    stream: TcpStream,
    pub(super) input: Input,
    /// What is to be said.
    pub(super) out: BytesMut,
    /// How much of it has been written.
    written: usize,
    pub(super) welcome: Welcome,
    beat: Pin<Box<Sleep>>,
    requests: u64,
}

impl Link {
    /// Dials the node.
    pub(super) async fn dial(server: &str, producer: Option<ProducerId>) -> Result<Link, Failure> {
        let greeting = async {
            let stream = TcpStream::connect(server).await.map_err(|error| lost(server, &error))?;
            let mut link = Link::over(stream)?;
            let hello = Hello {
                version_min: PROTOCOL_VERSION,
                version_max: PROTOCOL_VERSION,
                agent: AGENT.to_owned(),
                producer,
                unused_from: None,
                deliver_as: None,
                node: None,
                login: None,
            };
            link.say(&Control::Hello(hello))?;
            match link.hear().await? {
                Control::Welcome(welcome) => Ok(link.begin(welcome)),
                _ => Err(Failure::new(Exit::CannotConnect, "the node did not say welcome")),
            }
        };
        let late = |_| Failure::new(Exit::CannotConnect, format_args!("{server} does not greet"));
        timeout(GREETING_MAX, greeting).await.map_err(late)?
    }

    /// Lets a node that has dialled introduce itself; the receiver it delivers for.
    pub(super) async fn accept(stream: TcpStream) -> Result<(Link, Name), Failure> {
        let greeting = async {
            let mut link = Link::over(stream)?;
            let Control::Hello(Hello { deliver_as: Some(name), .. }) = link.hear().await? else {
                return Err(Failure::new(Exit::Failed, "a connection came that is no node's"));
            };
            let welcome = Welcome {
                version: PROTOCOL_VERSION,
                agent: AGENT.to_owned(),
                epoch: 0,
                producer_epoch: 0,
                next_sequence: 0,
                credit: Credit::default(),
                payload_bytes_max: PAYLOAD_BYTES_MAX as u64,
                heartbeat_ms: 5_000,
                silence_ms_max: 30_000,
                grant: None,
            };
            link.say(&Control::Welcome(welcome.clone()))?;
            link.flush().await?;
            Ok((link.begin(welcome), name))
        };
        let late = |_| Failure::new(Exit::CannotConnect, "the node dialled and does not greet");
        timeout(GREETING_MAX, greeting).await.map_err(late)?
    }

    fn over(stream: TcpStream) -> Result<Link, Failure> {
        stream.set_nodelay(true).map_err(|error| lost("the node", &error))?;
        let welcome = Welcome {
            version: 0,
            agent: String::new(),
            epoch: 0,
            producer_epoch: 0,
            next_sequence: 0,
            credit: Credit::default(),
            payload_bytes_max: 0,
            heartbeat_ms: u32::MAX,
            silence_ms_max: u32::MAX,
            grant: None,
        };
        Ok(Link {
            stream,
            input: Input::new(),
            out: BytesMut::with_capacity(READ_BYTES),
            written: 0,
            welcome,
            beat: Box::pin(sleep(GREETING_MAX)),
            requests: 0,
        })
    }

    fn begin(mut self, welcome: Welcome) -> Link {
        self.welcome = welcome;
        self.set_beat();
        self
    }

    fn set_beat(&mut self) {
        let interval = Duration::from_millis(u64::from(self.welcome.heartbeat_ms.max(10)));
        self.beat.as_mut().reset(Instant::now() + interval);
    }

    /// Reads once.
    #[inline]
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let mut room = ReadBuf::new(self.input.room());
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut room);
        ready!(read).map_err(|error| lost("the node", &error))?;
        let bytes = room.filled().len();
        if bytes == 0 {
            return Poll::Ready(Err(Failure::new(
                Exit::CannotConnect,
                "the node closed the connection",
            )));
        }
        self.input.end += bytes;
        Poll::Ready(Ok(()))
    }

    /// Writes all that is to be said.
    #[inline]
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while self.written < self.out.len() {
            let rest = &self.out[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest));
            self.written += written.map_err(|error| lost("the node", &error))?;
        }
        self.written = 0;
        self.out.clear();
        Poll::Ready(Ok(()))
    }

    /// Gives a sign of life when one is due, whatever else has been said.
    #[inline]
    pub(super) fn poll_beat(&mut self, cx: &mut Context<'_>) {
        while self.beat.as_mut().poll(cx).is_ready() {
            put_heartbeat(&mut self.out);
            self.set_beat();
        }
    }

    /// Gives signs of life and reads what the node says until the connection ends or the node says
    /// something that an idle connection is not told.
    pub(super) async fn idle(&mut self) -> Failure {
        poll_fn(|cx| {
            loop {
                self.poll_beat(cx);
                if let Poll::Ready(Err(failure)) = self.poll_drain(cx) {
                    return Poll::Ready(failure);
                }
                if let Err(failure) = ready!(self.poll_fill(cx)) {
                    return Poll::Ready(failure);
                }
                loop {
                    match self.input.next() {
                        Ok(None) => break,
                        Ok(Some(Frame::Heartbeat)) => {}
                        Ok(Some(frame)) => return Poll::Ready(unexpected(&frame)),
                        Err(failure) => return Poll::Ready(failure),
                    }
                }
            }
        })
        .await
    }

    fn say(&mut self, control: &Control) -> Result<(), Failure> {
        put_control(&mut self.out, control).map_err(|error| broken(&error))
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        poll_fn(|cx| self.poll_drain(cx)).await
    }

    /// The next control frame; deliveries before it are not acked and come again.
    async fn hear(&mut self) -> Result<Control, Failure> {
        loop {
            match self.input.next()? {
                Some(Frame::Control(body)) => return hear(body),
                Some(_) => {}
                None => {
                    poll_fn(|cx| {
                        self.poll_beat(cx);
                        if let Poll::Ready(Err(failure)) = self.poll_drain(cx) {
                            return Poll::Ready(Err(failure));
                        }
                        self.poll_fill(cx)
                    })
                    .await?;
                }
            }
        }
    }

    /// Asks all, many at a time; the answers in the order of the questions.
    pub(super) async fn ask(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<Result<Reply, Refusal>>, Failure> {
        let mut requests = requests.into_iter();
        let first = self.requests;
        let mut answers = Vec::new();
        let mut open = 0;
        loop {
            for request in requests.by_ref().take(REQUESTS_MAX - open) {
                self.say(&Control::Request { id: self.requests, request })?;
                self.requests += 1;
                answers.push(None);
                open += 1;
            }
            if open == 0 {
                return Ok(answers.into_iter().flatten().collect());
            }
            let late = |_| Failure::new(Exit::TimedOut, "the node does not answer");
            if let Control::Response { id, result } =
                timeout(ANSWER_MAX, self.hear()).await.map_err(late)??
            {
                let place = id.checked_sub(first).and_then(|place| usize::try_from(place).ok());
                let answer = place.and_then(|place| answers.get_mut(place));
                match answer {
                    Some(answer) if answer.is_none() => *answer = Some(result),
                    _ => return Err(Failure::new(Exit::Failed, "an answer that nobody awaits")),
                }
                open -= 1;
            }
        }
    }

    /// Asks one thing; a refusal is a failure.
    pub(super) async fn ask_one(&mut self, request: Request) -> Result<Reply, Failure> {
        let answer = self.ask([request]).await?.pop();
        answer.ok_or_else(|| Failure::new(Exit::Failed, "no answer"))?.map_err(Failure::from)
    }

    /// Says things that are not answered.
    pub(super) async fn tell(
        &mut self,
        controls: impl IntoIterator<Item = Control>,
    ) -> Result<(), Failure> {
        for control in controls {
            self.say(&control)?;
            if self.out.len() > OUT_BYTES_MAX {
                self.flush().await?;
            }
        }
        self.flush().await
    }
}

/// A control frame that is not a goodbye.
pub(super) fn hear(body: &[u8]) -> Result<Control, Failure> {
    match parse_control(body).map_err(|error| broken(&error))? {
        Control::Goodbye(Refusal { code: Code::ShuttingDown, detail }) => {
            Err(Failure::new(Exit::CannotConnect, format_args!("the node is stopping: {detail}")))
        }
        Control::Goodbye(refusal) => Err(refusal.into()),
        control => Ok(control),
    }
}

/// A frame that has no place in what this connection is for.
pub(super) fn unexpected(frame: &Frame<'_>) -> Failure {
    if let Frame::Control(body) = frame {
        return match hear(body) {
            Ok(Control::Detached { slot, reason }) => {
                Failure::new(Exit::Failed, format_args!("receiver {slot} was detached: {reason}"))
            }
            Ok(_) => Failure::new(Exit::Failed, "the node says what was not asked"),
            Err(failure) => failure,
        };
    }
    let shown = format!("{frame:?}");
    let shown = shown.split(['(', ' ']).next().unwrap_or_default();
    Failure::new(Exit::Failed, format_args!("a {shown} frame came out of turn"))
}

fn lost(who: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::CannotConnect, format_args!("{who}: {error}"))
}

fn broken(error: &FrameError) -> Failure {
    Failure::new(Exit::Failed, error)
}

/// What has been read and not been looked at.
pub(super) struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The frame at the start has this many bytes, as far as is known.
    wanted: usize,
    limits: Limits,
}

impl Input {
    fn new() -> Input {
        Input {
            buffer: vec![0; READ_BYTES],
            start: 0,
            end: 0,
            wanted: 0,
            limits: Limits::with_payload(PAYLOAD_BYTES_MAX),
        }
    }

    /// The next whole frame.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, Failure> {
        let unread = &self.buffer[self.start..self.end];
        match next_frame(unread, &self.limits).map_err(|error| broken(&error))? {
            Next::Frame { frame, consumed } => {
                self.start += consumed;
                Ok(Some(frame))
            }
            Next::Partial { bytes } => {
                self.wanted = bytes;
                Ok(None)
            }
            Next::Refused(refused) => {
                Err(Failure::new(Exit::Failed, format_args!("a publish came: {}", refused.fault)))
            }
        }
    }

    /// Room for the next read: the rest of the frame at the start, at least.
    fn room(&mut self) -> &mut [u8] {
        // At most the beginning of one frame is moved.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.wanted > self.buffer.len() {
            self.buffer.resize(self.wanted, 0);
        }
        &mut self.buffer[self.end..]
    }
}
