//! Bytes that every file of the journal shares: file headers, record headers and their checksums.
//! `FORMAT.md` tells the whole story.
//!
//! Everything is big endian. A record's checksum is CRC-32C over the rest of its header and the part
//! of its body before the payload, combined with the segment's id and the record's length by a
//! bijection: bytes of a segment's earlier life can therefore never pass in its next one.

use super::error::OpenError;
use restante_protocol::id::NodeTag;
use restante_protocol::record::RECORD_HEADER_BYTES;

/// The format all files are written in; a higher one is refused by name.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Bytes of a file header.
pub(super) const FILE_HEADER_BYTES: usize = 48;
/// Bytes before the first record of a segment: a sector of its own, so that no torn record write
/// reaches the header.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 512;
/// A record of the journal's own, without a number or a body: everything before it is synced.
pub(super) const KIND_MARK: u8 = 0x40;
/// Set in the ids of cold segments: copies of what was still live of others.
pub(super) const COLD_BIT: u64 = 1 << 47;
/// The record is the first of a commit: every record with a lower number is synced.
pub(super) const FLAG_FIRST: u8 = 1;

const MAGIC: &[u8; 5] = b"RSTNT";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Lock,
    Segment,
    Index,
    Checkpoint,
}

impl FileKind {
    const fn tag(self) -> &'static [u8; 3] {
        match self {
            FileKind::Lock => b"LCK",
            FileKind::Segment => b"SEG",
            FileKind::Index => b"IDX",
            FileKind::Checkpoint => b"CKP",
        }
    }
}

/// Whether the segment of this id is a cold one.
pub(super) const fn is_cold(id: u64) -> bool {
    id & COLD_BIT != 0
}

/// `magic 5 | kind 3 | u32 version | u32 epoch | u16 node | u16 zero | u64 id | u64 created ms |
/// u32 seed | 4 zero | u32 CRC-32C of all before`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    pub(super) epoch: u32,
    pub(super) node: NodeTag,
    /// Of a segment or index: the segment's id. Of a checkpoint: its position.
    pub(super) id: u64,
    pub(super) created_ms: u64,
    /// The journal's hash seed.
    pub(super) seed: u32,
}

/// Why bytes are not the file header they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// Too short, another magic or kind, or a bad checksum.
    Damaged(&'static str),
    /// Written by a newer version of this program.
    Newer(u32),
}

impl HeaderError {
    pub(super) fn for_file(self, path: &str) -> OpenError {
        match self {
            HeaderError::Newer(version) => {
                OpenError::Newer { path: path.to_owned(), version, known: FORMAT_VERSION }
            }
            HeaderError::Damaged(what) => {
                OpenError::Damaged { path: path.to_owned(), detail: what.to_owned() }
            }
        }
    }
}

impl FileHeader {
    /// What every file of this kind begins with.
    pub(super) fn front(kind: FileKind) -> [u8; 8] {
        let mut front = [0; 8];
        front[..5].copy_from_slice(MAGIC);
        front[5..].copy_from_slice(kind.tag());
        front
    }

    pub(super) fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&FileHeader::front(self.kind));
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[16..18].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.id.to_be_bytes());
        bytes[28..36].copy_from_slice(&self.created_ms.to_be_bytes());
        bytes[36..40].copy_from_slice(&self.seed.to_be_bytes());
        let crc = crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    pub(super) fn parse(kind: FileKind, bytes: &[u8]) -> Result<FileHeader, HeaderError> {
        let Some(bytes) = bytes.first_chunk::<FILE_HEADER_BYTES>() else {
            return Err(HeaderError::Damaged("it is shorter than a file header"));
        };
        if bytes[..8] != FileHeader::front(kind) {
            return Err(HeaderError::Damaged("it does not begin as a file of this kind does"));
        }
        // The version comes before the checksum: a newer format may sum differently.
        let version = be_u32(&bytes[8..]);
        if version > FORMAT_VERSION && !is_ours_but_for_the_version(bytes) {
            return Err(HeaderError::Newer(version));
        }
        if version != FORMAT_VERSION || crc32c(&bytes[..44]) != be_u32(&bytes[44..]) {
            return Err(HeaderError::Damaged("its header does not match its checksum"));
        }
        Ok(FileHeader {
            kind,
            epoch: be_u32(&bytes[12..]),
            node: NodeTag(u16::from_be_bytes([bytes[16], bytes[17]])),
            id: be_u64(&bytes[20..]),
            created_ms: be_u64(&bytes[28..]),
            seed: be_u32(&bytes[36..]),
        })
    }
}

/// The version of a file of any kind, by its first bytes, if it is newer than this program.
pub(super) fn newer_version(bytes: &[u8]) -> Option<u32> {
    let version = bytes.get(8..12).filter(|_| bytes.starts_with(MAGIC)).map(be_u32)?;
    let is_ours = bytes.first_chunk().is_some_and(is_ours_but_for_the_version);
    (version > FORMAT_VERSION && !is_ours).then_some(version)
}

/// Whether a header's checksum is right once the version is the present one: then it was that, and bits of
/// it have changed since. Whoever writes another version sums that.
fn is_ours_but_for_the_version(header: &[u8; FILE_HEADER_BYTES]) -> bool {
    let mut ours = *header;
    ours[8..12].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
    crc32c(&ours[..44]) == be_u32(&ours[44..])
}

/// What makes the records of one segment unlike those of every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed(u32);

impl Seed {
    /// The seed of segment `id` in a journal with this hash seed.
    pub(super) fn new(base: u32, id: u64) -> Seed {
        Seed(scramble(base ^ (id as u32) ^ scramble((id >> 32) as u32)))
    }

    fn mask(self, length: u32) -> u32 {
        scramble(self.0 ^ scramble(length.wrapping_add(0x9e37_79b9)))
    }
}

/// A bijection of 32 bits (the finaliser of MurmurHash3).
const fn scramble(value: u32) -> u32 {
    let mut v = value;
    v ^= v >> 16;
    v = v.wrapping_mul(0x85eb_ca6b);
    v ^= v >> 13;
    v = v.wrapping_mul(0xc2b2_ae35);
    v ^ (v >> 16)
}

/// A record's header: `u32 body length | u32 checksum | u32 payload CRC-32C | u8 kind | u8 flags |
/// u16 payload offset in the body | u64 number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) payload_at: u16,
    pub(super) number: u64,
}

/// Bytes of a record on disk whose body has this length.
pub(super) const fn record_bytes(body: usize) -> usize {
    RECORD_HEADER_BYTES + body
}

/// What is wrong with bytes that should be a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    /// They are not a record of this segment.
    NotARecord,
    /// The header and what precedes the payload are intact, the payload is not.
    BadPayload(RecordHeader),
}

impl RecordHeader {
    /// Fills in the header of `record`, whose body is in place.
    pub(super) fn seal(&self, seed: Seed, record: &mut [u8]) {
        let payload_from = RECORD_HEADER_BYTES + self.payload_at as usize;
        record[..4].copy_from_slice(&self.length.to_be_bytes());
        let payload_crc = crc32c(&record[payload_from..]);
        record[8..12].copy_from_slice(&payload_crc.to_be_bytes());
        record[12] = self.kind;
        record[13] = self.flags;
        record[14..16].copy_from_slice(&self.payload_at.to_be_bytes());
        record[16..24].copy_from_slice(&self.number.to_be_bytes());
        let crc = crc32c(&record[8..payload_from]) ^ seed.mask(self.length);
        record[4..8].copy_from_slice(&crc.to_be_bytes());
    }

    /// Makes a checked record of another segment one of this segment, payload and payload checksum
    /// untouched.
    pub(super) fn seal_again(&self, seed: Seed, record: &mut [u8]) {
        let payload_from = RECORD_HEADER_BYTES + self.payload_at as usize;
        let crc = crc32c(&record[8..payload_from]) ^ seed.mask(self.length);
        record[4..8].copy_from_slice(&crc.to_be_bytes());
    }

    /// The header at the front of `bytes` as it stands, unchecked; `None` when there is no room for it.
    pub(super) fn peek(bytes: &[u8]) -> Option<RecordHeader> {
        let bytes = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        Some(RecordHeader {
            length: be_u32(bytes),
            kind: bytes[12],
            flags: bytes[13],
            payload_at: u16::from_be_bytes([bytes[14], bytes[15]]),
            number: be_u64(&bytes[16..]),
        })
    }

    /// Where the record's payload begins; what is before it has a checksum of its own.
    pub(super) fn payload_from(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload_at as usize
    }

    /// Checks the record at the front of `bytes` up to its payload.
    pub(super) fn check_head(seed: Seed, bytes: &[u8]) -> Result<RecordHeader, RecordError> {
        let header = RecordHeader::peek(bytes).ok_or(RecordError::NotARecord)?;
        let payload_from = header.payload_from();
        if payload_from > record_bytes(header.length as usize) || payload_from > bytes.len() {
            return Err(RecordError::NotARecord);
        }
        let crc = crc32c(&bytes[8..payload_from]) ^ seed.mask(header.length);
        if crc != be_u32(&bytes[4..]) {
            return Err(RecordError::NotARecord);
        }
        Ok(header)
    }

    /// Checks the record at the front of `bytes`, which hold it whole.
    pub(super) fn check(seed: Seed, bytes: &[u8]) -> Result<RecordHeader, RecordError> {
        let header = RecordHeader::check_head(seed, bytes)?;
        let (payload_from, end) = (header.payload_from(), record_bytes(header.length as usize));
        if end > bytes.len() {
            return Err(RecordError::NotARecord);
        }
        if crc32c(&bytes[payload_from..end]) != be_u32(&bytes[8..]) {
            return Err(RecordError::BadPayload(header));
        }
        Ok(header)
    }
}

/// CRC-32C (Castagnoli).
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The first four bytes as a number; callers have checked the length.
pub(super) fn be_u32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

/// The first eight bytes as a number; callers have checked the length.
pub(super) fn be_u64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
}

/// Makes a file header one of a newer program.
#[cfg(test)]
pub(super) fn write_version(bytes: &mut [u8], version: u32) {
    bytes[8..12].copy_from_slice(&version.to_be_bytes());
    let crc = crc32c(&bytes[..44]);
    bytes[44..48].copy_from_slice(&crc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(seed: Seed) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER_BYTES];
        record.extend_from_slice(b"head and payload");
        let header =
            RecordHeader { length: 16, kind: 1, flags: FLAG_FIRST, payload_at: 9, number: 1 << 47 };
        header.seal(seed, &mut record);
        record
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let seed = Seed::new(7, 42);
        let record = sealed(seed);
        assert_eq!(RecordHeader::check(seed, &record).unwrap().number, 1 << 47);
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let checked = RecordHeader::check(seed, &flipped);
            let in_payload = bit / 8 >= RECORD_HEADER_BYTES + 9;
            match checked {
                Err(RecordError::BadPayload(_)) => assert!(in_payload, "bit {bit}"),
                Err(RecordError::NotARecord) => assert!(!in_payload, "bit {bit}"),
                Ok(_) => panic!("bit {bit} went unnoticed"),
            }
        }
    }

    #[test]
    fn a_record_of_another_segment_never_passes() {
        let record = sealed(Seed::new(7, 42));
        for id in (0..2_000).filter(|id| *id != 42).chain([42 + (1 << 32)]) {
            let checked = RecordHeader::check(Seed::new(7, id), &record);
            assert_eq!(checked, Err(RecordError::NotARecord), "segment {id}");
        }
    }

    #[test]
    fn a_file_header_reads_as_written_and_a_newer_one_is_named() {
        let header = FileHeader {
            kind: FileKind::Segment,
            epoch: 3,
            node: NodeTag(0xbeef),
            id: 9,
            created_ms: 1_700_000_000_000,
            seed: 77,
        };
        let bytes = header.encode();
        assert_eq!(FileHeader::parse(FileKind::Segment, &bytes), Ok(header));
        assert!(FileHeader::parse(FileKind::Index, &bytes).is_err());
        assert!(FileHeader::parse(FileKind::Segment, &bytes[..47]).is_err());
        let mut newer = bytes;
        write_version(&mut newer, 2);
        assert_eq!(FileHeader::parse(FileKind::Segment, &newer), Err(HeaderError::Newer(2)));
        assert_eq!(newer_version(&newer), Some(2));
        // As it is before anything is known of how it is summed.
        assert_eq!(newer_version(&newer[..12]), Some(2));
        for bit in 8 * 8..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let parsed = FileHeader::parse(FileKind::Segment, &flipped);
            assert!(matches!(parsed, Err(HeaderError::Damaged(_))), "bit {bit}: {parsed:?}");
            assert_eq!(newer_version(&flipped), None, "bit {bit}");
        }
    }
}
