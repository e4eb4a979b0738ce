//! Payloads from an argument, a file or standard input, whole or line by line.

use super::{Exit, Failure};
use bytes::{Bytes, BytesMut};
use restante_protocol::limits::PAYLOAD_BYTES_MAX;
use std::fs::File;
use std::io::{self, Read};
use tokio::sync::mpsc;

/// Where a payload comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Text(String),
    File(String),
    Stdin,
}

impl Source {
    /// A text, `@FILE`, or `-` or nothing for standard input.
    pub(super) fn parse(argument: Option<String>) -> Source {
        match argument {
            None => Source::Stdin,
            Some(text) if text == "-" => Source::Stdin,
            Some(text) => match text.strip_prefix('@') {
                Some(path) => Source::File(path.to_owned()),
                None => Source::Text(text),
            },
        }
    }

    fn open(self) -> Result<Box<dyn Read + Send>, Failure> {
        match self {
            Source::Text(text) => Ok(Box::new(io::Cursor::new(text))),
            Source::Stdin => Ok(Box::new(io::stdin())),
            Source::File(path) => match File::open(&path) {
                Ok(file) => Ok(Box::new(file)),
                Err(error) => Err(unreadable(&path, &error)),
            },
        }
    }

    fn name(&self) -> String {
        match self {
            Source::Text(_) => "the argument".to_owned(),
            Source::File(path) => path.clone(),
            Source::Stdin => "standard input".to_owned(),
        }
    }

    /// Everything, as one payload.
    pub(super) async fn whole(self) -> Result<Bytes, Failure> {
        let name = self.name();
        let input = self.open()?;
        let read = move || {
            let mut payload = Vec::new();
            input.take(PAYLOAD_BYTES_MAX as u64 + 1).read_to_end(&mut payload).map(|_| payload)
        };
        let payload = blocking(read).await?.map_err(|error| unreadable(&name, &error))?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(too_long(&name, PAYLOAD_BYTES_MAX));
        }
        Ok(payload.into())
    }

    /// Lines of at most so many bytes, in batches, as they come. The newline is not part of a line; a
    /// last one without it counts.
    pub(super) fn lines(
        self,
        bytes_max: usize,
    ) -> Result<mpsc::Receiver<Result<Vec<Bytes>, Failure>>, Failure> {
        let name = self.name();
        let mut input = self.open()?;
        let (batches, received) = mpsc::channel(BATCHES_MAX);
        tokio::task::spawn_blocking(move || {
            let mut lines = Lines::new(bytes_max);
            loop {
                let (batch, over) = match lines.read(&mut *input) {
                    Ok((batch, over)) => (Ok(batch), over),
                    Err(LinesError::Io(error)) => (Err(unreadable(&name, &error)), true),
                    Err(LinesError::TooLong) => (Err(too_long(&name, bytes_max)), true),
                };
                if batches.blocking_send(batch).is_err() || over {
                    return;
                }
            }
        });
        Ok(received)
    }
}

/// Batches read ahead.
const BATCHES_MAX: usize = 4;
/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

struct Lines {
    bytes_max: usize,
    /// What has been read and not handed out: no newline in it.
    rest: BytesMut,
}

enum LinesError {
    Io(io::Error),
    TooLong,
}

impl Lines {
    fn new(bytes_max: usize) -> Lines {
        Lines { bytes_max, rest: BytesMut::new() }
    }

    /// One read; whole lines and whether the input is over. Lines share the memory they were read to.
    fn read(&mut self, input: &mut dyn Read) -> Result<(Vec<Bytes>, bool), LinesError> {
        let before = self.rest.len();
        self.rest.resize(before + CHUNK_BYTES, 0);
        let count = loop {
            match input.read(&mut self.rest[before..]) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(LinesError::Io(error)),
            }
        };
        self.rest.truncate(before + count);
        if count == 0 {
            let last = std::mem::take(&mut self.rest).freeze();
            return Ok((Some(last).filter(|last| !last.is_empty()).into_iter().collect(), true));
        }
        let mut batch = Vec::new();
        let mut from = before;
        while let Some(at) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            let mut line = self.rest.split_to(from + at + 1);
            line.truncate(from + at);
            batch.push(line.freeze());
            from = 0;
        }
        let longest = batch.iter().map(Bytes::len).chain([self.rest.len()]).max();
        if longest > Some(self.bytes_max) { Err(LinesError::TooLong) } else { Ok((batch, false)) }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::new(Exit::Failed, error))
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format_args!("cannot read {name}: {error}"))
}

fn too_long(name: &str, max: usize) -> Failure {
    let what = format_args!("{name} has a message of more than {max} bytes, which no node takes");
    Failure::new(Exit::Refused, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it holds in pieces of a chosen size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(self.1).min(out.len());
            let (now, later) = self.0.split_at(count);
            out[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn lines(text: &[u8], piece: usize) -> Vec<Bytes> {
        let (mut input, mut lines, mut all) =
            (Pieces(text, piece), Lines::new(PAYLOAD_BYTES_MAX), Vec::new());
        loop {
            let Ok((batch, over)) = lines.read(&mut input) else { panic!("reading failed") };
            all.extend(batch);
            if over {
                return all;
            }
        }
    }

    #[test]
    fn lines_are_the_same_however_they_are_read() {
        let text = b"one\n\nthree \r\n\xff\xfe\nlast";
        let expected: Vec<&[u8]> = vec![b"one", b"", b"three \r", b"\xff\xfe", b"last"];
        for piece in 1..=text.len() {
            assert_eq!(lines(text, piece), expected, "{piece}");
        }
        assert!(lines(b"", 1).is_empty());
        assert_eq!(lines(b"\n", 1), [""]);
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_bound() {
        let text = vec![b'x'; PAYLOAD_BYTES_MAX + CHUNK_BYTES];
        let (mut input, mut lines) = (Pieces(&text, CHUNK_BYTES), Lines::new(PAYLOAD_BYTES_MAX));
        let refused = loop {
            match lines.read(&mut input) {
                Ok((_, over)) => assert!(!over),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, LinesError::TooLong));
    }

    #[test]
    fn an_argument_is_a_text_a_file_or_standard_input() {
        let parse = |text: &str| Source::parse(Some(text.to_owned()));
        assert_eq!(parse("x"), Source::Text("x".to_owned()));
        assert_eq!(parse("@x"), Source::File("x".to_owned()));
        assert_eq!(parse("-"), Source::Stdin);
        assert_eq!(Source::parse(None), Source::Stdin);
    }
}
