//! Making segments, and reading through them record by record.

use super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FileHeader, FileKind, HeaderError, KIND_MARK, RecordError,
    RecordHeader, SEGMENT_HEADER_BYTES, Seed, be_u64, record_bytes,
};
use super::shared::{Ready, Shared, Spare};
use super::storage::{Disk, DiskFile};
use restante_protocol::record::{RECORD_HEADER_BYTES, RecordKind};
use std::io::{self, IoSlice};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Bytes read at once when going through a segment.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Makes segment `header.id` ready: room allocated, header written, both synced, name durable. Takes
/// the used segment `spare` for it if there is one.
pub(super) fn prepare(
    disk: &dyn Disk,
    header: &FileHeader,
    bytes: u64,
    spare: Option<&Spare>,
) -> io::Result<Ready> {
    let id = header.id;
    let fresh = format!("segments/{id:012x}.new");
    let (name, file) = match spare {
        Some(spare) => (&spare.path[..], disk.open(&spare.path)?),
        None => {
            let file = disk.create(&fresh)?;
            if let Err(error) = file.allocate(bytes) {
                let _ = disk.unlink(&fresh);
                return Err(error);
            }
            (&fresh[..], file)
        }
    };
    file.write_at(&[IoSlice::new(&header.encode())], 0)?;
    file.sync()?;
    disk.rename(name, &Shared::segment_path(id))?;
    disk.sync_dir("segments")?;
    let filled = if spare.is_some_and(|spare| spare.filled) { bytes } else { SEGMENT_HEADER_BYTES };
    Ok(Ready { id, file, bytes, filled })
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
            let view = self.view(at, CHUNK_BYTES)?;
            // A segment is mostly unwritten after a crash: what begins with zeros only is passed
            // over at the speed of memory. No record's header is all zero.
            let zeros = leading_zeros(view);
            if zeros > RECORD_HEADER_BYTES {
                at += (zeros - RECORD_HEADER_BYTES) as u64;
                continue;
            }
            let plausible = view.windows(RECORD_HEADER_BYTES).position(|head| {
                // Kind and flags first: they rule out nearly everything.
                is_known_kind(head[12])
                    && head[13] <= FLAG_FIRST
                    && numbers.contains(&be_u64(&head[16..]))
            });
            let Some(plausible) = plausible else {
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

fn is_known_kind(kind: u8) -> bool {
    kind == KIND_MARK || (RecordKind::Message as u8..=RecordKind::Reference as u8).contains(&kind)
}

/// Where the first record of a segment is.
pub(super) const FIRST_RECORD_AT: u64 = SEGMENT_HEADER_BYTES;

/// How many bytes at the front are zero, counted in whole steps.
fn leading_zeros(bytes: &[u8]) -> usize {
    const STEP: usize = 64;
    STEP * bytes.chunks_exact(STEP).take_while(|step| **step == [0; STEP]).count()
}
