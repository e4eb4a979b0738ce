//! Bytes from a socket, in as few reads and copies as can be.
//!
//! All connections of an arbiter read into one large buffer, [`Scratch`]: an idle connection holds
//! none. What is left of a read after its whole frames have been taken is less than one frame and is
//! copied into a buffer of the connection's own, to stand in front of the next read. Only a frame
//! that has proven to be long, by sending [`LONG_BYTES`] of itself, is collected in a buffer of its
//! own size, so that no claim of a length costs memory.
//!
//! ```text
//!  fill()                          front()            take(consumed)
//!  own ─copy─► scratch ◄─ socket   [frames…|partial]  ─► chunk of frames, partial ─copy─► own
//!  own (long) ◄───────── socket
//! ```

use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of the shared buffer.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Least room for a read.
const READ_BYTES_MIN: usize = 64 * 1024;
/// A frame that has sent this much of itself gets a buffer of its own.
const LONG_BYTES: usize = 16 * 1024;

/// The buffer that all connections of an arbiter read into.
pub(crate) struct Scratch(RefCell<BytesMut>);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        Scratch(RefCell::new(BytesMut::new()))
    }
}

/// What one connection has read and not used yet.
#[derive(Default)]
pub(super) struct Reader {
    own: BytesMut,
    /// Bytes of the frame at the front of `own`, as far as is known.
    wanted: usize,
    /// Bytes to come that belong to a frame that is not to be taken.
    skip: usize,
    /// Bytes read so far.
    total: u64,
}

/// The outcome of a read: where the bytes are, until they are taken.
pub(super) struct Filled<'a> {
    reader: &'a mut Reader,
    /// `None`: the bytes stand in the reader's own buffer.
    scratch: Option<std::cell::RefMut<'a, BytesMut>>,
}

impl Reader {
    /// Starts with bytes that were read before: what followed a hello.
    pub(super) fn with(rest: BytesMut) -> Reader {
        Reader { own: rest, wanted: 0, skip: 0, total: 0 }
    }

    /// Whether nothing is kept from earlier reads.
    pub(super) fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// Bytes read from the socket so far.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Gives memory back while nothing is read.
    pub(super) fn shrink(&mut self) {
        if self.own.is_empty() {
            self.own = BytesMut::new();
        }
    }

    /// What was read before, without reading.
    pub(super) fn unread(&mut self) -> Filled<'_> {
        Filled { reader: self, scratch: None }
    }

    /// Reads once. `None`: the other side has closed its half.
    pub(super) fn poll_fill<'a, R: AsyncRead + Unpin>(
        &'a mut self,
        cx: &mut Context<'_>,
        socket: &mut R,
        scratch: &'a Scratch,
    ) -> Poll<io::Result<Option<Filled<'a>>>> {
        if self.own.len() >= LONG_BYTES {
            let missing = self.wanted.saturating_sub(self.own.len());
            self.own.reserve(missing.max(READ_BYTES_MIN));
            let read = ready!(poll_read(cx, socket, &mut self.own))?;
            self.total += read as u64;
            return Poll::Ready(Ok((read > 0).then_some(Filled { reader: self, scratch: None })));
        }
        let mut buffer = scratch.0.borrow_mut();
        // A connection that ended on what it had read has left it there.
        buffer.clear();
        if buffer.capacity() < READ_BYTES_MIN + LONG_BYTES && !buffer.try_reclaim(SCRATCH_BYTES) {
            // Somebody still holds frames of the last read.
            *buffer = BytesMut::with_capacity(SCRATCH_BYTES);
        }
        buffer.extend_from_slice(&self.own);
        match poll_read(cx, socket, &mut buffer) {
            Poll::Ready(Ok(read)) if read > 0 => {
                self.total += read as u64;
                self.own.clear();
                Poll::Ready(Ok(Some(Filled { reader: self, scratch: Some(buffer) })))
            }
            other => {
                buffer.clear();
                other.map(|read| read.map(|_| None))
            }
        }
    }
}

fn poll_read<R: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    socket: &mut R,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    // The future holds no state between polls.
    let read: Pin<&mut _> = pin!(socket.read_buf(buffer));
    read.poll(cx)
}

impl Filled<'_> {
    fn buffer(&mut self) -> &mut BytesMut {
        match &mut self.scratch {
            Some(scratch) => scratch,
            None => &mut self.reader.own,
        }
    }

    /// The bytes that are there: whole frames and at most one beginning. What was to be skipped has
    /// been.
    pub(super) fn front(&mut self) -> &[u8] {
        let skip = self.reader.skip;
        let buffer = self.buffer();
        let skipped = skip.min(buffer.len());
        bytes::Buf::advance(buffer, skipped);
        self.reader.skip -= skipped;
        self.buffer()
    }

    /// Takes the frames off that have been used. `wanted` is the length of the frame that has begun
    /// behind them, as far as is known; `skip` bytes that are still to come are not wanted. The
    /// chunk is for whoever keeps the frames; dropping it lets the buffer be used again.
    pub(super) fn take(mut self, consumed: usize, wanted: usize, skip: usize) -> Bytes {
        let chunk = self.buffer().split_to(consumed).freeze();
        let reader = self.reader;
        reader.wanted = wanted;
        // What is still to be skipped of an earlier frame fills the whole buffer, so that no other
        // frame was seen in it.
        reader.skip += skip;
        if let Some(scratch) = &mut self.scratch {
            reader.own.extend_from_slice(scratch);
            scratch.clear();
        } else if reader.own.len() < LONG_BYTES {
            // It shares the memory of a long frame, and the next one may be short.
            reader.own = BytesMut::from(&reader.own[..]);
        }
        chunk
    }
}

#[cfg(test)]
mod tests;
