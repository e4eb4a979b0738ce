//! A broker's protocol as a state machine over bytes: the seam between the engine, which is the same
//! for all, and a broker, which is not.

use super::failure::{Failure, Result, failure};
use super::shape::Routing;
use bytes::BytesMut;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a server may take for an answer while things are set up.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What a broker says about messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Nothing that concerns a message.
    Nothing,
    /// Messages of this connection have been taken over, by their numbers.
    Confirmed { first: u64, count: u64 },
    /// A message for a receiver of this connection, which acks it at the end of the read.
    Delivered { receiver: u32, payload: &'a [u8] },
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    One(u32),
    All,
}

impl To {
    pub(crate) fn new(routing: Routing, first: u32) -> To {
        match routing {
            Routing::One => To::One(first),
            Routing::All => To::All,
        }
    }
}

/// One connection.
pub(crate) trait Session {
    /// Puts a publish of this connection's message `number` (ascending by one from 0).
    fn publish(&mut self, number: u64, to: To, payload: &[u8], out: &mut BytesMut) -> Result<()>;

    /// How many messages of so many bytes of payload the broker takes before their confirm.
    fn unconfirmed_max(&self, payload_bytes: usize) -> u64 {
        let _ = payload_bytes;
        u64::MAX
    }

    /// Takes what stands at the front of the input; how many bytes it was. `None`: more is needed.
    ///
    /// # Errors
    /// The broker says what this load has no place for; the run is over.
    fn next<'a>(&mut self, input: &'a [u8]) -> Result<Option<(usize, Event<'a>)>>;

    /// Puts what is to be answered to what has been read: acks, above all.
    fn read_end(&mut self, out: &mut BytesMut) {
        let _ = out;
    }

    /// Puts a sign of life. Called every few seconds.
    fn beat(&mut self, out: &mut BytesMut) {
        let _ = out;
    }
}

/// A connection that is being set up: says something, awaits the answer.
pub(crate) struct Greeting {
    stream: TcpStream,
    input: Vec<u8>,
    pub(crate) out: BytesMut,
}

impl Greeting {
    pub(crate) fn dial(port: u16) -> Result<Greeting> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        stream.set_write_timeout(Some(ANSWER_MAX))?;
        Ok(Greeting { stream, input: Vec::new(), out: BytesMut::new() })
    }

    /// Sends what is in `out`.
    pub(crate) fn send(&mut self) -> Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// Sends what is in `out` and awaits something that `parse` understands; it returns the value and
    /// how many bytes it took.
    pub(crate) fn ask<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<Option<(usize, T)>>,
    ) -> Result<T> {
        self.send()?;
        let mut chunk = vec![0; 64 * 1024];
        loop {
            if let Some((consumed, value)) = parse(&self.input)? {
                self.input.drain(..consumed);
                return Ok(value);
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(failure!("the broker closed the connection")),
                read => self.input.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Everything is set up: the socket, and what has been read beyond.
    pub(crate) fn finish(mut self) -> Result<(TcpStream, Vec<u8>)> {
        self.send()?;
        self.stream.set_nonblocking(true)?;
        Ok((self.stream, self.input))
    }
}

/// Where the line ends that begins a text protocol's input, its end excluded, and where the next begins.
#[inline]
pub(crate) fn line(input: &[u8]) -> Option<(&[u8], usize)> {
    let end = input.iter().position(|byte| *byte == b'\n')?;
    let line = &input[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}

/// A number in decimal digits.
#[inline]
pub(crate) fn decimal(digits: &[u8]) -> Result<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return Err(garbage("a number", digits));
    }
    digits.iter().try_fold(0, |number, digit| match digit {
        b'0'..=b'9' => Ok(number * 10 + u64::from(digit - b'0')),
        _ => Err(garbage("a number", digits)),
    })
}

/// Appends a number in decimal digits, without an allocation.
#[inline]
pub(crate) fn put_decimal(out: &mut BytesMut, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        // A remainder below ten.
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Something came that this protocol does not have there.
pub(crate) fn garbage(expected: &str, got: &[u8]) -> Failure {
    let got = String::from_utf8_lossy(&got[..got.len().min(200)]);
    failure!("expected {expected}, the broker says {got:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_out_and_come_back() {
        for number in [0, 7, 10, 65_535, 10_000_000_000] {
            let mut out = BytesMut::new();
            put_decimal(&mut out, number);
            assert_eq!(decimal(&out).unwrap(), number);
        }
        assert!(decimal(b"").is_err());
        assert!(decimal(b"1a").is_err());
    }
}
