//! One connection as bytes: reads whole frames, writes one coalesced buffer per wake, sends and
//! expects signs of life. What the frames mean is up to its [`Side`].

use crate::doorbell::Doorbell;
use crate::error::Violation;
use bytes::{Buf, Bytes, BytesMut};
use restante_protocol::codec::{
    FrameError, Limits, Next, next_frame, parse_control, put_control, put_heartbeat,
};
use restante_protocol::control::Control;
use restante_protocol::frame::Frame;
use restante_protocol::limits::PAYLOAD_BYTES_MAX;
use restante_protocol::refusal::{Code, Refusal};
use std::future::{Future, poll_fn};
use std::io;
use std::ops::Add;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// Room made for one read.
const READ_BYTES: usize = 64 * 1024;
/// A side fills the write buffer up to about this size, then it is written.
pub(crate) const WRITE_BYTES_MAX: usize = 256 * 1024;
/// Rounds of reading and writing before other tasks get their turn.
const ROUNDS_MAX: usize = 16;
/// How long a side that closes goes on to write what it has.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long the other side may take to close its half.
const FAREWELL_READ: Duration = Duration::from_millis(500);

/// What the frames of a connection mean.
pub(crate) trait Side {
    /// Whole frames, in order.
    fn handle_frames(&mut self, frames: &Bytes, limits: &Limits, now: Instant) -> Result<(), Loss>;
    /// Appends what is to be said.
    fn transmit(&mut self, out: &mut BytesMut, now: Instant);
    /// When [`Side::transmit`] has something to say at the latest, if known.
    fn next_deadline(&self) -> Option<Instant>;
    /// Whether the connection is to be closed once everything is written.
    fn is_closing(&self) -> bool;
    /// Rung when there is something to say.
    fn bell(&self) -> &Doorbell;
}

/// Why a connection is over.
#[derive(Debug)]
pub(crate) enum Loss {
    /// The system says so, or the other side closed it.
    Io(io::Error),
    /// No sign of life for the agreed time.
    Silent,
    /// The other side broke the protocol.
    Violation(Violation),
    /// The other side said why.
    Goodbye(Refusal),
    /// This side closed it.
    Closed,
}

#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    read: BytesMut,
    write: BytesMut,
    limits: Limits,
    heartbeat: Duration,
    silence_max: Duration,
    last_sent: Instant,
    last_heard: Instant,
    timer: Pin<Box<Sleep>>,
    timer_at: Instant,
    closing_since: Option<Instant>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        let now = Instant::now();
        Ok(Wire {
            stream,
            read: BytesMut::with_capacity(READ_BYTES),
            write: BytesMut::new(),
            limits: Limits::BEFORE_HELLO,
            heartbeat: Duration::MAX,
            silence_max: Duration::MAX,
            last_sent: now,
            last_heard: now,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
            timer_at: now,
            closing_since: None,
        })
    }

    /// Both sides have introduced themselves.
    pub(crate) fn begin(&mut self, heartbeat_ms: u32, silence_ms_max: u32) {
        self.limits = Limits::with_payload(PAYLOAD_BYTES_MAX);
        self.heartbeat = Duration::from_millis(u64::from(heartbeat_ms.max(10)));
        self.silence_max =
            Duration::from_millis(u64::from(silence_ms_max)).max(self.heartbeat.saturating_mul(2));
        self.last_heard = Instant::now();
    }

    /// Says one control frame, before [`Wire::drive`] or after it.
    pub(crate) async fn say(&mut self, control: &Control) -> Result<(), Loss> {
        // What a drive has left half written goes first.
        put_control(&mut self.write, control)
            .map_err(|error| Loss::Violation(Violation::Frame(error.to_string())))?;
        let written = self.stream.write_all_buf(&mut self.write).await;
        self.last_sent = Instant::now();
        written.map_err(Loss::Io)
    }

    /// The first frame of the other side, which is a control frame. What follows it stays for
    /// [`Wire::drive`].
    pub(crate) async fn hear(&mut self) -> Result<Control, Loss> {
        loop {
            let bytes = match next_frame(&self.read, &self.limits).map_err(not_a_frame)? {
                Next::Frame { frame: Frame::Control(body), consumed } => {
                    let control = parse_control(body).map_err(not_a_frame)?;
                    self.read.advance(consumed);
                    return Ok(control);
                }
                Next::Partial { bytes } => bytes,
                _ => {
                    return Err(Loss::Violation(Violation::OutOfTurn("frame before the greeting")));
                }
            };
            self.read.reserve(bytes.saturating_sub(self.read.len()));
            if self.stream.read_buf(&mut self.read).await.map_err(Loss::Io)? == 0 {
                return Err(Loss::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Ends the connection so that the other side reads all that was said: a socket that is closed
    /// with unread input would be reset. Bounded in time.
    pub(crate) async fn farewell(&mut self, loss: &Loss) {
        let farewell = async {
            match loss {
                Loss::Violation(violation) => {
                    let refusal = Refusal::new(Code::Malformed, violation.to_string());
                    self.say(&Control::Goodbye(refusal)).await?;
                }
                Loss::Closed => {}
                Loss::Io(_) | Loss::Silent | Loss::Goodbye(_) => return Ok(()),
            }
            self.stream.shutdown().await.map_err(Loss::Io)?;
            loop {
                self.read.clear();
                if self.stream.read_buf(&mut self.read).await.map_err(Loss::Io)? == 0 {
                    return Ok::<(), Loss>(());
                }
            }
        };
        // The connection is over either way.
        drop(tokio::time::timeout(FAREWELL_READ, farewell).await);
    }

    /// Carries the conversation until it ends.
    pub(crate) async fn drive<S: Side>(&mut self, side: &mut S) -> Loss {
        // What came together with the greeting.
        if let Err(loss) = self.take_frames(side, Instant::now()) {
            return loss;
        }
        poll_fn(|cx| self.poll_drive(cx, side)).await
    }

    fn poll_drive<S: Side>(&mut self, cx: &mut Context<'_>, side: &mut S) -> Poll<Loss> {
        side.bell().listen(cx);
        let now = Instant::now();
        for _ in 0..ROUNDS_MAX {
            match self.round(cx, side, now) {
                Ok(true) => {}
                Ok(false) => return self.poll_time(cx, side, now),
                Err(loss) => return Poll::Ready(loss),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and writes as much as goes; whether there may be more to do.
    fn round<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        side: &mut S,
        now: Instant,
    ) -> Result<bool, Loss> {
        let mut progress = false;
        if let Poll::Ready(read) = self.poll_read(cx)? {
            if read == 0 {
                return Err(Loss::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            progress = true;
            self.last_heard = now;
            self.take_frames(side, now)?;
        }
        if self.write.is_empty() {
            side.transmit(&mut self.write, now);
        }
        while !self.write.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.write) {
                Poll::Pending => return Ok(progress),
                Poll::Ready(Ok(0)) => return Err(Loss::Io(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.write.advance(written),
                Poll::Ready(Err(error)) => return Err(Loss::Io(error)),
            }
            progress = true;
            self.last_sent = now;
        }
        if !progress && side.is_closing() {
            return Err(Loss::Closed);
        }
        Ok(progress)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Result<Poll<usize>, Loss> {
        let wanted = match next_frame(&self.read, &self.limits).map_err(not_a_frame)? {
            Next::Partial { bytes } => bytes.saturating_sub(self.read.len()),
            // Whole frames are taken as soon as they are read.
            Next::Frame { .. } | Next::Refused(_) => 0,
        };
        if self.read.capacity() - self.read.len() < wanted.max(READ_BYTES / 4) {
            self.read.reserve(wanted.max(READ_BYTES));
        }
        match pin!(self.stream.read_buf(&mut self.read)).poll(cx) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(read)) => Ok(Poll::Ready(read)),
            Poll::Ready(Err(error)) => Err(Loss::Io(error)),
        }
    }

    /// Hands over the whole frames that have been read. They share one piece of memory with the
    /// bodies that are sliced from it.
    fn take_frames<S: Side>(&mut self, side: &mut S, now: Instant) -> Result<(), Loss> {
        let mut whole = 0;
        while let Some(&[a, b, c, d]) = self.read[whole..].first_chunk::<4>() {
            let frame = 4 + u32::from_be_bytes([a, b, c, d]) as usize;
            match whole.checked_add(frame) {
                Some(end) if end <= self.read.len() => whole = end,
                _ => break,
            }
        }
        if whole == 0 {
            return Ok(());
        }
        let frames = self.read.split_to(whole).freeze();
        side.handle_frames(&frames, &self.limits, now)
    }

    /// Signs of life, and waiting for the next thing that time brings.
    fn poll_time<S: Side>(
        &mut self,
        cx: &mut Context<'_>,
        side: &mut S,
        now: Instant,
    ) -> Poll<Loss> {
        if side.is_closing() && now >= *self.closing_since.get_or_insert(now) + FAREWELL {
            return Poll::Ready(Loss::Closed);
        }
        let silent_at = after(self.last_heard, self.silence_max);
        if now >= silent_at {
            return Poll::Ready(Loss::Silent);
        }
        if now >= after(self.last_sent, self.heartbeat) && self.write.is_empty() {
            put_heartbeat(&mut self.write);
            self.last_sent = now;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut at = silent_at;
        if self.write.is_empty() {
            at = at.min(after(self.last_sent, self.heartbeat));
        }
        if let Some(deadline) = side.next_deadline() {
            at = at.min(deadline);
        }
        if let Some(since) = self.closing_since {
            at = at.min(since + FAREWELL);
        }
        // An earlier wake than needed costs one look; moving the timer at each wake costs more.
        if at < self.timer_at || self.timer_at <= now {
            self.timer_at = at;
            self.timer.as_mut().reset(at.into());
        }
        ready!(self.timer.as_mut().poll(cx));
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A wait so long that it never ends stands for one that cannot be counted with.
pub(crate) const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) fn after<I: Add<Duration, Output = I>>(time: I, wait: Duration) -> I {
    time + wait.min(NEVER)
}

pub(crate) fn not_a_frame(error: FrameError) -> Loss {
    Loss::Violation(Violation::Frame(error.to_string()))
}
