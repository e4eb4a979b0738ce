//! Making segments, and reading through them record by record.

use super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FileHeader, FileKind, HeaderError, KIND_MARK, RecordError,
    RecordHeader, SEGMENT_HEADER_BYTES, Seed, be_u64, record_bytes,
};
use super::shared::{Ready, Shared, Spare};
use super::storage::{Disk, DiskFile, is_missing};
use restante_protocol::record::{RECORD_HEADER_BYTES, RecordKind};
use std::io::{self, IoSlice};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Bytes read at once when going through a segment.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Makes segment `header.id` ready: room allocated, header written, both synced, name durable. Takes
/// the used segment `spare` for it if there is one.
///
/// # Errors
/// Nothing is left of it then: what was allocated is given back. With the error comes the spare one, if
/// it is one still.
pub(super) fn prepare(
    disk: &dyn Disk,
    header: &FileHeader,
    bytes: u64,
    spare: Option<(Spare, Arc<dyn DiskFile>)>,
) -> Result<Ready, (io::Error, Option<Spare>)> {
    let (id, path) = (header.id, Shared::segment_path(header.id));
    let fresh = format!("segments/{id:012x}.new");
    let make = || -> io::Result<Arc<dyn DiskFile>> {
        let (name, file) = match &spare {
            Some((spare, file)) => (&spare.path[..], Arc::clone(file)),
            None => (&fresh[..], disk.create(&fresh)?),
        };
        // Of a spare one too: a copy of a data directory may have its length without the room.
        file.allocate(bytes)?;
        file.write_at(&[IoSlice::new(&header.encode())], 0)?;
        file.sync()?;
        disk.rename(name, &path)?;
        disk.sync_dir("segments")?;
        Ok(file)
    };
    match make() {
        Ok(file) => {
            let is_filled = spare.is_some_and(|(spare, _)| spare.filled);
            let filled = if is_filled { bytes } else { SEGMENT_HEADER_BYTES };
            Ok(Ready { id, file, bytes, filled })
        }
        Err(error) => {
            let spare = spare.map(|(spare, _)| spare);
            let spare = spare.filter(|spare| is_spare_again(disk, &path, spare));
            if spare.is_none() {
                drop((disk.unlink(&fresh), disk.unlink(&path)));
            }
            Err((error, spare))
        }
    }
}

/// Takes the new name from a spare segment, if it has it already, for good: else its header may not be
/// written anew.
fn is_spare_again(disk: &dyn Disk, path: &str, spare: &Spare) -> bool {
    match disk.rename(path, &spare.path) {
        Err(error) => is_missing(&error),
        Ok(()) => disk.sync_dir("segments").is_ok(),
    }
}

/// Reads the header of a segment file.
pub(super) fn read_header(file: &dyn DiskFile) -> io::Result<Result<FileHeader, HeaderError>> {
    let mut bytes = Vec::with_capacity(FILE_HEADER_BYTES);
    file.read_at(0, FILE_HEADER_BYTES, &mut bytes)?;
    Ok(FileHeader::parse(FileKind::Segment, &bytes))
}

/// A segment being read from front to back through a window.
pub(super) struct Walk {
    file: Arc<dyn DiskFile>,
    seed: Seed,
    /// End of what is to be read.
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Where the next record is expected.
    pub(super) at: u64,
}

/// What stands at one place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A record, intact.
    Record(RecordHeader),
    /// A record whose payload does not match its checksum.
    BadPayload(RecordHeader),
    /// Nothing of this segment.
    Nothing,
}

impl Walk {
    /// Starts at `at`.
    pub(super) fn new(file: Arc<dyn DiskFile>, seed: Seed, at: u64) -> io::Result<Walk> {
        let end = file.length()?;
        Ok(Walk { file, seed, end, window: Vec::new(), window_at: 0, at })
    }

    /// Looks at the place where the next record is expected. With [`Found::Record`], [`Walk::body`]
    /// has its body and [`Walk::step`] goes past it.
    pub(super) fn look(&mut self) -> io::Result<Found> {
        let head = self.view(self.at, RECORD_HEADER_BYTES)?;
        let Some(header) = RecordHeader::peek(head) else { return Ok(Found::Nothing) };
        let len = record_bytes(header.length as usize);
        if self.at + len as u64 > self.end {
            return Ok(Found::Nothing);
        }
        let seed = self.seed;
        let is_read = self.at + len as u64 <= self.window_at + self.window.len() as u64;
        if !is_read {
            // Its length may be anything. So much is read only for what is a record.
            let head = self.view(self.at, header.payload_from())?;
            if RecordHeader::check_head(seed, head).is_err() {
                return Ok(Found::Nothing);
            }
        }
        Ok(match RecordHeader::check(seed, self.view(self.at, len)?) {
            Ok(header) => Found::Record(header),
            Err(RecordError::BadPayload(header)) => Found::BadPayload(header),
            Err(RecordError::NotARecord) => Found::Nothing,
        })
    }

    /// The body of the record that was just looked at.
    pub(super) fn body(&self, header: &RecordHeader) -> &[u8] {
        let from = (self.at - self.window_at) as usize + RECORD_HEADER_BYTES;
        self.window.get(from..from + header.length as usize).unwrap_or_default()
    }

    /// Goes past the record that was just looked at.
    pub(super) fn step(&mut self, header: &RecordHeader) {
        self.at += record_bytes(header.length as usize) as u64;
    }

    /// Searches for the next record beyond the present place whose number lies in `numbers`, byte by
    /// byte, and stops there. Needed only where something is damaged or torn.
    pub(super) fn search(
        &mut self,
        numbers: RangeInclusive<u64>,
    ) -> io::Result<Option<RecordHeader>> {
        let from = self.at;
        let mut at = from + 1;
        while at + RECORD_HEADER_BYTES as u64 <= self.end {
            let view = self.rest(at)?;
            // A segment is mostly unwritten after a crash: what begins with zeros only is passed
            // over at the speed of memory, and not even read where the disk knows that it was never
            // written. No record's header is all zero.
            let zeros = leading_zeros(view);
            if zeros > RECORD_HEADER_BYTES {
                let Some(data) = self.file.next_data(at + zeros as u64)? else { break };
                at = data - RECORD_HEADER_BYTES as u64;
                continue;
            }
            let Some(plausible) = plausible_header(view, &numbers) else {
                at += (view.len() - RECORD_HEADER_BYTES + 1) as u64;
                continue;
            };
            self.at = at + plausible as u64;
            if let Found::Record(header) | Found::BadPayload(header) = self.look()? {
                return Ok(Some(header));
            }
            at = self.at + 1;
        }
        self.at = from;
        Ok(None)
    }

    /// What the window has from `at` on, another one if that is no whole header. A used segment is full
    /// of places that look like a header: what is behind one is not read again for each.
    fn rest(&mut self, at: u64) -> io::Result<&[u8]> {
        let has = (self.window_at + self.window.len() as u64).saturating_sub(at) as usize;
        let is_enough = at >= self.window_at && has >= RECORD_HEADER_BYTES;
        self.view(at, if is_enough { has } else { CHUNK_BYTES })
    }

    /// Up to `len` bytes at `at`, fewer only at the end of the file.
    fn view(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let inside =
            at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let wanted = (self.end.saturating_sub(at) as usize).min(len.max(CHUNK_BYTES));
            self.window.clear();
            self.window_at = at;
            self.file.read_at(at, wanted, &mut self.window)?;
        }
        let from = (at - self.window_at) as usize;
        let to = (from + len).min(self.window.len());
        Ok(&self.window[from..to])
    }

    /// The bytes from `from` to `to`, for setting them aside.
    pub(super) fn bytes(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.read_at(from, (to - from) as usize, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads no further than `end`.
    pub(super) fn end_at(&mut self, end: u64) {
        self.end = self.end.min(end);
    }

    /// End of what can be read.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The header of what would be the next record, unchecked.
    pub(super) fn peek(&mut self) -> io::Result<Option<RecordHeader>> {
        Ok(RecordHeader::peek(self.view(self.at, RECORD_HEADER_BYTES)?))
    }
}

/// Where in `bytes` the first header may be that has one of these numbers. Bytes of a segment's
/// earlier life are full of headers, with other numbers.
fn plausible_header(bytes: &[u8], numbers: &RangeInclusive<u64>) -> Option<usize> {
    const STEP: usize = 64;
    let (low, high) = (numbers.start().to_be_bytes(), numbers.end().to_be_bytes());
    // What all these numbers begin with. Kind, flags and this rule out nearly everything, by steps
    // without a branch, which the compiler makes wide instructions of.
    let (first, second_known) = (low[0], low[..2] == high[..2]);
    let is_plausible = |head: &[u8]| {
        is_known_kind(head[12])
            & (head[13] <= FLAG_FIRST)
            & (head[16] == first)
            & ((head[17] == low[1]) | !second_known)
    };
    let last = bytes.len().checked_sub(RECORD_HEADER_BYTES)?;
    let mut at = 0;
    while at <= last {
        let step = bytes.get(at..at + STEP + RECORD_HEADER_BYTES);
        let none = step.is_some_and(|step| {
            !(0..STEP).fold(false, |any, place| any | is_plausible(&step[place..place + 18]))
        });
        if !none {
            let end = (at + STEP).min(last + 1);
            let found = (at..end).find(|at| {
                let head = &bytes[*at..];
                is_plausible(head) && numbers.contains(&be_u64(&head[16..]))
            });
            if found.is_some() {
                return found;
            }
        }
        at += STEP;
    }
    None
}

fn is_known_kind(kind: u8) -> bool {
    const FIRST: u8 = RecordKind::Message as u8;
    const COUNT: u8 = RecordKind::Reference as u8 - FIRST + 1;
    (kind == KIND_MARK) | (kind.wrapping_sub(FIRST) < COUNT)
}

/// Where the first record of a segment is.
pub(super) const FIRST_RECORD_AT: u64 = SEGMENT_HEADER_BYTES;

/// How many bytes at the front are zero, counted in whole steps.
fn leading_zeros(bytes: &[u8]) -> usize {
    const STEP: usize = 64;
    STEP * bytes.chunks_exact(STEP).take_while(|step| **step == [0; STEP]).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng};

    #[test]
    fn a_plausible_header_is_found_wherever_it_is() {
        let mut random = rand::rngs::SmallRng::seed_from_u64(7);
        for numbers in [1..=(1 << 48), 70_000..=71_000, 255..=256] {
            for at in [0, 1, 63, 64, 65, 130, 500, 1_000 - RECORD_HEADER_BYTES] {
                let mut bytes = vec![0; 1_000];
                random.fill_bytes(&mut bytes);
                // Whatever else there may be by accident, no known kind.
                bytes.iter_mut().for_each(|byte| *byte |= 0x80);
                assert_eq!(plausible_header(&bytes, &numbers), None);
                for kind in [RecordKind::Message as u8, RecordKind::Reference as u8, KIND_MARK] {
                    bytes[at + 12] = kind;
                    bytes[at + 13] = FLAG_FIRST;
                    for number in [*numbers.start(), *numbers.end()] {
                        bytes[at + 16..at + 24].copy_from_slice(&number.to_be_bytes());
                        assert_eq!(plausible_header(&bytes, &numbers), Some(at), "{number} {kind}");
                    }
                    let beyond = numbers.end() + 1;
                    bytes[at + 16..at + 24].copy_from_slice(&beyond.to_be_bytes());
                    assert_ne!(plausible_header(&bytes, &numbers), Some(at));
                }
            }
        }
    }
}
