//! What one receiver has got, read from what its processes have written.
//!
//! A receiver that is killed may have written half a line, which was then not acked and does not
//! count; so each of its lives writes into a file of its own.

use super::super::values::from_base64;
use super::super::{Exit, Failure};
use super::lines::Lines;
use serde::Deserialize;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

/// The header that says which line a message is.
pub(super) const LINE_HEADER: &str = "line";

/// One line of `sub --json`.
#[derive(Deserialize)]
struct Delivery {
    redelivered: bool,
    headers: Headers,
    payload: Option<String>,
    payload_base64: Option<String>,
}

#[derive(Deserialize)]
struct Headers {
    line: String,
}

/// Everything a receiver has written.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    lives: Vec<Life>,
    /// By line, as it came first.
    got: Vec<Option<Vec<u8>>>,
    pub(super) delivered: u64,
    pub(super) distinct: u64,
    pub(super) repeats_flagged: u64,
    /// Repeats without the redelivered flag: there must be none.
    pub(super) repeats_unflagged: u64,
    /// Whether no line came for the first time after a later one.
    pub(super) in_order: bool,
    newest: Option<usize>,
}

#[derive(Debug)]
struct Life {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Inbox {
    pub(super) fn new(lines: &Lines) -> Inbox {
        Inbox { got: vec![None; lines.count()], in_order: true, ..Inbox::default() }
    }

    /// Another process writes for this receiver.
    pub(super) fn add(&mut self, path: PathBuf) {
        self.lives.push(Life { path, file: None, rest: Vec::new() });
    }

    /// Reads what has been written since the last time.
    pub(super) fn read(&mut self) -> Result<(), Failure> {
        let mut lives = std::mem::take(&mut self.lives);
        for life in &mut lives {
            for line in life.read()? {
                self.take(&line)?;
            }
        }
        self.lives = lives;
        Ok(())
    }

    fn take(&mut self, line: &[u8]) -> Result<(), Failure> {
        let odd = |why: &dyn std::fmt::Display| {
            let line = String::from_utf8_lossy(line);
            Failure::new(Exit::Failed, format_args!("a receiver wrote {line}: {why}"))
        };
        let delivery: Delivery = serde_json::from_slice(line).map_err(|error| odd(&error))?;
        let number: usize = delivery.headers.line.parse().map_err(|error| odd(&error))?;
        let payload = match (delivery.payload, delivery.payload_base64) {
            (Some(text), _) => Some(text.into_bytes()),
            (None, Some(text)) => from_base64(&text),
            (None, None) => None,
        };
        let payload = payload.ok_or_else(|| odd(&"expected a payload"))?;
        let got = self.got.get_mut(number).ok_or_else(|| odd(&"no such line was sent"))?;
        self.delivered += 1;
        if got.is_some() {
            let repeats = match delivery.redelivered {
                true => &mut self.repeats_flagged,
                false => &mut self.repeats_unflagged,
            };
            *repeats += 1;
            return Ok(());
        }
        *got = Some(payload);
        self.distinct += 1;
        self.in_order &= self.newest.is_none_or(|newest| newest < number);
        self.newest = Some(number);
        Ok(())
    }

    pub(super) fn missing(&self) -> u64 {
        self.got.len() as u64 - self.distinct
    }

    /// The digest of what came, in the order of the file.
    pub(super) fn cksum(&self, lines: &Lines) -> u32 {
        lines.cksum_of(self.got.iter().flatten().map(Vec::as_slice))
    }
}

impl Life {
    /// The lines that have become whole.
    fn read(&mut self) -> Result<Vec<Vec<u8>>, Failure> {
        let failed =
            |error| Failure::new(Exit::Failed, format_args!("a receiver's output: {error}"));
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(failed(error)),
            };
        }
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.rest).map_err(failed)?;
        }
        let end = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.rest.split_off(end);
        let whole = std::mem::replace(&mut self.rest, rest);
        let lines = whole.split_inclusive(|byte| *byte == b'\n');
        Ok(lines.map(<[u8]>::to_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn delivery(line: usize, payload: &str, redelivered: bool) -> String {
        serde_json::json!({
            "id": "x", "redelivered": redelivered,
            "headers": { "line": line.to_string() }, "payload": payload,
        })
        .to_string()
    }

    #[test]
    fn repeats_gaps_and_torn_lines_are_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let text = scratch.path().join("text");
        std::fs::write(&text, "a\nb\nc\n").unwrap();
        let lines = Lines::read(Some(&text)).unwrap();
        let (first, second) = (scratch.path().join("1"), scratch.path().join("2"));
        let mut inbox = Inbox::new(&lines);
        inbox.add(first.clone());
        inbox.read().unwrap();
        let torn = delivery(1, "b", false);
        let mut file = File::create(&first).unwrap();
        write!(file, "{}\n{}", delivery(0, "a", false), &torn[..9]).unwrap();
        inbox.read().unwrap();
        assert_eq!((inbox.distinct, inbox.missing()), (1, 2));
        let life = [
            delivery(0, "a", true),
            delivery(2, "c", false),
            delivery(1, "b", true),
            delivery(2, "c", false),
        ];
        std::fs::write(&second, life.join("\n") + "\n").unwrap();
        inbox.add(second);
        inbox.read().unwrap();
        assert_eq!((inbox.delivered, inbox.distinct, inbox.missing()), (5, 3, 0));
        assert_eq!((inbox.repeats_flagged, inbox.repeats_unflagged), (1, 1));
        assert!(!inbox.in_order);
        assert_eq!(inbox.cksum(&lines), lines.cksum());
    }

    #[test]
    fn payloads_that_are_no_text_and_lines_that_were_never_sent() {
        let scratch = tempfile::tempdir().unwrap();
        let text = scratch.path().join("text");
        std::fs::write(&text, b"\xff\xfe").unwrap();
        let lines = Lines::read(Some(&text)).unwrap();
        let mut inbox = Inbox::new(&lines);
        let line = br#"{"redelivered":false,"headers":{"line":"0"},"payload_base64":"//4="}"#;
        inbox.take(line).unwrap();
        assert_eq!(inbox.cksum(&lines), lines.cksum());
        assert!(inbox.take(delivery(1, "x", false).as_bytes()).is_err());
        assert!(inbox.take(b"{}").is_err());
    }
}
