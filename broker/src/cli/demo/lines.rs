//! The file whose lines are streamed, and the digest that `cksum` prints for it.

use super::super::{Exit, Failure};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use restante_protocol::limits::PAYLOAD_BYTES_DEFAULT;
use std::path::Path;

/// Largest file: every receiver's copy is held against it.
const FILE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What is streamed when no file is named, so often that there is something to interrupt.
const TEXT: &str = include_str!("../../../ARCHITECTURE.md");
const TEXT_TIMES: usize = 100;

/// A file and where its lines are.
pub(super) struct Lines {
    pub(super) name: String,
    text: Bytes,
    /// Where each line ends, without its newline.
    ends: Vec<usize>,
}

impl Lines {
    pub(super) fn read(path: Option<&Path>) -> Result<Lines, Failure> {
        let Some(path) = path else {
            let name = format!("broker/ARCHITECTURE.md, {TEXT_TIMES} times over");
            return Lines::of(name, TEXT.repeat(TEXT_TIMES).into());
        };
        let name = path.display().to_string();
        let unfit = |what: String| Failure::new(Exit::Usage, format_args!("{name}: {what}"));
        let bytes = std::fs::metadata(path).map_err(|error| unfit(error.to_string()))?.len();
        if bytes > FILE_BYTES_MAX as u64 {
            return Err(unfit(format!("has {bytes} bytes, expected at most {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read(path).map_err(|error| unfit(error.to_string()))?;
        Lines::of(name, text.into())
    }

    fn of(name: String, text: Bytes) -> Result<Lines, Failure> {
        let newlines = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let mut ends: Vec<usize> = newlines.map(|(at, _)| at).collect();
        if text.last().is_some_and(|last| *last != b'\n') {
            ends.push(text.len());
        }
        let lines = Lines { name, text, ends };
        let longest = (0..lines.count()).map(|number| lines.line(number).len()).max();
        let longest = longest.ok_or_else(|| {
            Failure::new(Exit::Usage, format_args!("{}: expected at least one line", lines.name))
        })?;
        if longest > PAYLOAD_BYTES_DEFAULT {
            let what =
                format!("a line has {longest} bytes, expected at most {PAYLOAD_BYTES_DEFAULT}");
            return Err(Failure::new(Exit::Usage, format_args!("{}: {what}", lines.name)));
        }
        Ok(lines)
    }

    pub(super) fn count(&self) -> usize {
        self.ends.len()
    }

    /// A line without its newline.
    pub(super) fn line(&self, number: usize) -> Bytes {
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before] + 1);
        self.text.slice(start..self.ends[number])
    }

    /// What `cksum` prints for the file.
    pub(super) fn cksum(&self) -> u32 {
        let lines: Vec<Bytes> = (0..self.count()).map(|number| self.line(number)).collect();
        self.cksum_of(lines.iter().map(Bytes::as_ref))
    }

    /// The same for a copy of its lines.
    pub(super) fn cksum_of<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> u32 {
        let mut sum = Cksum::default();
        for (place, line) in lines.enumerate() {
            if place > 0 {
                sum.update(b"\n");
            }
            sum.update(line);
        }
        if self.text.ends_with(b"\n") {
            sum.update(b"\n");
        }
        sum.finish()
    }
}

/// The POSIX checksum: CRC-32 over the bytes and then their count, lowest byte first.
struct Cksum {
    digest: Digest,
    bytes: u64,
}

impl Default for Cksum {
    fn default() -> Cksum {
        Cksum { digest: Digest::new(CrcAlgorithm::Crc32Cksum), bytes: 0 }
    }
}

impl Cksum {
    fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn finish(mut self) -> u32 {
        let significant = 8 - self.bytes.leading_zeros() as usize / 8;
        self.digest.update(&self.bytes.to_le_bytes()[..significant]);
        // A CRC-32 has 32 bits.
        self.digest.finalize() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines::of("test".to_owned(), text.into()).unwrap()
    }

    #[test]
    fn lines_are_what_newlines_part() {
        let of = |text| {
            let lines = lines(text);
            (0..lines.count()).map(|number| lines.line(number)).collect::<Vec<_>>()
        };
        assert_eq!(of("a\n\nb\r\n"), ["a", "", "b\r"]);
        assert_eq!(of("a\nb"), ["a", "b"]);
        assert_eq!(of("\n"), [""]);
        assert!(Lines::of("empty".to_owned(), Bytes::new()).is_err());
    }

    #[test]
    fn the_digest_is_that_of_cksum() {
        // Printed by GNU coreutils for these very bytes.
        assert_eq!(lines("123456789").cksum(), 930_766_865);
        assert_eq!(lines("123456789\n").cksum(), 1_552_147_931);
        assert_eq!(lines("a\nb\n").cksum(), 2_174_511_615);
        assert_ne!(lines("b\na\n").cksum(), lines("a\nb\n").cksum());
    }
}
