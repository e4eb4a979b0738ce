//! FORMAT.md says what the code does. `RESTANTE_BLESS=1` draws its tables anew.

use super::super::checkpoint::{self, PeerNote, SegmentNote, Snapshot};
use super::super::format::{
    FILE_HEADER_BYTES, FLAG_FIRST, FORMAT_VERSION, FileHeader, FileKind, KIND_MARK, RecordHeader,
    SEGMENT_HEADER_BYTES, Seed, crc32c,
};
use super::super::index::{IndexFacts, SegmentIndex};
use super::super::options::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use super::super::segment::FIRST_RECORD_AT;
use super::super::state::Stage;
use restante_actors::journal::BatchRecord;
use restante_protocol::id::{NUMBER_BITS, NodeTag, PeerId};
use restante_protocol::record::{Outcome, ParkRecord, RECORD_HEADER_BYTES, RecordKind};
use std::fmt::Write as _;

/// One field of a layout: its bytes, its name, and what the sample has there.
struct Field(usize, &'static str, Says);

enum Says {
    Number(u64),
    Text(&'static str),
    /// Follows from other bytes.
    Crc(u32),
    /// A part that is told about below the table.
    Part,
}

use Says::{Crc, Number, Part, Text};

/// A table of the fields that `bytes` consist of, each held against its value.
fn layout(bytes: &[u8], fields: &[Field]) -> String {
    let mut out = "| At | Bytes | Field | In a sample |\n|---|---|---|---|\n".to_owned();
    let mut at = 0;
    for Field(len, name, says) in fields {
        let field = &bytes[at..at + len];
        let number = || field.iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let sample = match says {
            Number(value) => {
                assert_eq!(number(), *value, "{name}");
                format!("`{value:x}`")
            }
            Text(text) => {
                assert_eq!(field, text.as_bytes(), "{name}");
                format!("`{text}`")
            }
            Crc(crc) => {
                assert_eq!(number(), u64::from(*crc), "{name}");
                format!("`{crc:08x}`")
            }
            Part => "…".to_owned(),
        };
        writeln!(out, "| {at} | {len} | {name} | {sample} |").unwrap();
        at += len;
    }
    assert_eq!(at, bytes.len(), "every byte has its row");
    out
}

fn header(kind: FileKind) -> FileHeader {
    FileHeader {
        kind,
        epoch: 0x0e0c,
        node: NodeTag(0xbeef),
        id: 0x1d,
        created_ms: 0x018b_cfe5_6800,
        seed: 0x5eed,
    }
}

fn constants() -> String {
    let rows: &[(&str, u64)] = &[
        ("format version", u64::from(FORMAT_VERSION)),
        ("bytes of a file header", FILE_HEADER_BYTES as u64),
        ("bytes before a segment's first record", SEGMENT_HEADER_BYTES),
        ("bytes of a record's header", RECORD_HEADER_BYTES as u64),
        ("smallest segment, bytes", SEGMENT_BYTES_MIN),
        ("largest segment, bytes", SEGMENT_BYTES_MAX),
        ("bits of a record's number", u64::from(NUMBER_BITS)),
    ];
    assert_eq!(FIRST_RECORD_AT, SEGMENT_HEADER_BYTES);
    let mut out = "| Constant | Value |\n|---|---|\n".to_owned();
    rows.iter().for_each(|(name, value)| writeln!(out, "| {name} | {value} |").unwrap());
    out
}

fn file_header() -> String {
    let bytes = header(FileKind::Segment).encode();
    let fields = [
        Field(5, "magic", Text("RSTNT")),
        Field(3, "kind", Text("SEG")),
        Field(4, "format version", Number(u64::from(FORMAT_VERSION))),
        Field(4, "epoch", Number(0x0e0c)),
        Field(2, "node", Number(0xbeef)),
        Field(2, "zero", Number(0)),
        Field(8, "id", Number(0x1d)),
        Field(8, "created, ms", Number(0x018b_cfe5_6800)),
        Field(4, "seed of the journal", Number(0x5eed)),
        Field(4, "zero", Number(0)),
        Field(4, "CRC of all before", Crc(crc32c(&bytes[..44]))),
    ];
    layout(&bytes, &fields)
}

fn record() -> String {
    let mut record = vec![0; RECORD_HEADER_BYTES];
    record.extend_from_slice(b"headpayload");
    let header =
        RecordHeader { length: 11, kind: 1, flags: FLAG_FIRST, payload_at: 4, number: 0x2a };
    let seed = Seed::new(0x5eed, 0x1d);
    header.seal(seed, &mut record);
    // The checksum, by the words of the document.
    let scramble = |mut v: u32| {
        v ^= v >> 16;
        v = v.wrapping_mul(0x85eb_ca6b);
        v ^= v >> 13;
        v = v.wrapping_mul(0xc2b2_ae35);
        v ^ v >> 16
    };
    let seed = scramble(0x5eed ^ 0x1d ^ scramble(0));
    let mask = scramble(seed ^ scramble(11u32.wrapping_add(0x9e37_79b9)));
    let fields = [
        Field(4, "length of the body", Number(11)),
        Field(4, "checksum", Crc(crc32c(&record[8..RECORD_HEADER_BYTES + 4]) ^ mask)),
        Field(4, "payload CRC", Crc(crc32c(b"payload"))),
        Field(1, "kind", Number(1)),
        Field(1, "flags: 1 is *first*", Number(u64::from(FLAG_FIRST))),
        Field(2, "payload offset in the body", Number(4)),
        Field(8, "number", Number(0x2a)),
        Field(4, "body up to the payload", Text("head")),
        Field(7, "payload", Text("payload")),
    ];
    layout(&record, &fields)
}

fn kinds() -> String {
    let mut out = "| Kind | Number |\n|---|---|\n".to_owned();
    let mut known = 0;
    for number in 0..=u8::MAX {
        let name = match RecordKind::from_number(number) {
            Some(RecordKind::Message) => "message",
            Some(RecordKind::Settle) => "settle",
            Some(RecordKind::Park) => "park",
            Some(RecordKind::Admin) => "admin",
            Some(RecordKind::Epoch) => "epoch",
            Some(RecordKind::Close) => "close",
            Some(RecordKind::Reference) => "reference (reserved)",
            None if number == KIND_MARK => "mark",
            None => continue,
        };
        known += 1;
        writeln!(out, "| {name} | {number} |").unwrap();
    }
    assert_eq!(known, 8);
    out
}

/// A segment of one message to two peers, and a park.
fn index() -> String {
    let mut body = 0x018b_cfe5_6800_u64.to_be_bytes().to_vec();
    body.extend_from_slice(&[0; 12]);
    body.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 5, 0, 0, 0, 6]);
    body.extend_from_slice(b"body");
    let mut stage = Stage::default();
    let record = |kind, body: &[u8]| {
        let body_len = body.len() as u32;
        BatchRecord { kind, offset: 0, body_len, payload_at: body_len }
    };
    stage.note(&record(RecordKind::Message, &body), 0, FIRST_RECORD_AT, &body);
    let mut park = Vec::new();
    let reason = "no".to_owned();
    ParkRecord { peer: PeerId(5), number: 0x2a, at_ms: 7, attempts: 3, reason }.encode(&mut park);
    stage.note(&record(RecordKind::Park, &park), 1, 900, &park);
    let mut index = SegmentIndex::default();
    index.absorb(&mut stage);
    let facts = IndexFacts { id: 0x1d, first: 0x2a, next: 0x2c, data_end: 0x3a0 };
    let bytes = index.encode(&header(FileKind::Index), &facts);

    // The parts, by the words of the document.
    let anchor = [0; 20];
    let run = |entries: &[u8]| [&[0, 0, 0, 1, 0, 0, 0, 1][..], &anchor, entries].concat();
    let ms = 0x018b_cfe5_6800_u64 << 1;
    let mut entry = vec![0, 0x80, 0x04];
    restante_protocol::record::put_varint(&mut entry, ms);
    entry.extend_from_slice(&[2, 5, 6]);
    let messages = run(&entry);
    let settles = [&[RecordKind::Park as u8, 0, 0, 0, park.len() as u8][..], &park].concat();
    let refs = run(&[0, 0x80, 0x04, body.len() as u8]);
    let mut directory = Vec::new();
    for (place, peer) in [5u32, 6].into_iter().enumerate() {
        directory.extend_from_slice(&peer.to_be_bytes());
        directory.extend_from_slice(&1u32.to_be_bytes());
        directory.extend_from_slice(&4u64.to_be_bytes());
        directory.extend_from_slice(&0u32.to_be_bytes());
        directory.extend_from_slice(&((place * refs.len()) as u32).to_be_bytes());
        directory.extend_from_slice(&(refs.len() as u32).to_be_bytes());
        directory.extend_from_slice(&crc32c(&refs).to_be_bytes());
    }
    let mut settle_directory = 5u32.to_be_bytes().to_vec();
    settle_directory.extend_from_slice(&0x2a_u64.to_be_bytes());
    settle_directory.extend_from_slice(&0u32.to_be_bytes());
    settle_directory.extend_from_slice(&(settles.len() as u32).to_be_bytes());
    settle_directory.extend_from_slice(&crc32c(&settles).to_be_bytes());
    let tail = [&messages[..], &settle_directory, &settles, &directory, &refs, &refs].concat();
    assert_eq!(&bytes[FILE_HEADER_BYTES + 64..], tail, "the parts of an index");
    let part = |part: &[u8]| (Number(part.len() as u64), Crc(crc32c(part)));
    let [(m, mc), (s, sc), (d, dc)] = [part(&messages), part(&settle_directory), part(&directory)];
    let fields = [
        Field(48, "file header, `IDX`", Part),
        Field(8, "first number of the segment", Number(0x2a)),
        Field(8, "one past its last number", Number(0x2c)),
        Field(8, "where its records end", Number(0x3a0)),
        Field(4, "bytes of *messages*", m),
        Field(4, "their CRC", mc),
        Field(4, "bytes of the *settle directory*", s),
        Field(4, "its CRC", sc),
        Field(4, "bytes of the *directory*", d),
        Field(4, "its CRC", dc),
        Field(4, "bytes of *settles*", Number(settles.len() as u64)),
        Field(8, "zero", Number(0)),
        Field(4, "CRC of the 60 bytes before", Crc(crc32c(&bytes[48..108]))),
        Field(messages.len(), "*messages*", Part),
        Field(settle_directory.len(), "*settle directory*", Part),
        Field(settles.len(), "*settles*, peer by peer", Part),
        Field(directory.len(), "*directory*", Part),
        Field(2 * refs.len(), "*refs*, peer by peer", Part),
    ];
    layout(&bytes, &fields)
}

fn checkpoint() -> String {
    let snapshot = Snapshot {
        position: 0x1d,
        synced: 0x1e,
        next_segment: 9,
        segments: vec![SegmentNote { id: 8, first: 7, live: 6 }],
        peers: vec![PeerNote { peer: PeerId(5), floor: 4, newest: 3, ..PeerNote::default() }],
        lost: vec![(2, 3)],
    };
    // By the words of the document.
    let journal = [0x1e, 9, 1, 8, 7, 6, 1, 5, 4, 3, 0, 0, 1, 2, 3];
    let bytes = checkpoint::encode(&header(FileKind::Checkpoint), &snapshot, b"peers");
    let fields = [
        Field(48, "file header, `CKP`", Part),
        Field(8, "bytes of the journal's part", Number(journal.len() as u64)),
        Field(4, "its CRC", Crc(crc32c(&journal))),
        Field(8, "bytes of the application's part", Number(5)),
        Field(4, "its CRC", Crc(crc32c(b"peers"))),
        Field(4, "CRC of the 24 bytes before", Crc(crc32c(&bytes[48..72]))),
        Field(journal.len(), "the journal's part", Part),
        Field(5, "the application's part", Text("peers")),
    ];
    assert_eq!(bytes[76..76 + journal.len()], journal);
    layout(&bytes, &fields)
}

#[test]
fn the_tables_of_the_document_are_those_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/FORMAT.md");
    let bless = std::env::var_os("RESTANTE_BLESS").is_some();
    let mut text = std::fs::read_to_string(path).unwrap();
    for (name, expected) in [
        ("constants", constants()),
        ("file header", file_header()),
        ("record", record()),
        ("kinds", kinds()),
        ("index", index()),
        ("checkpoint", checkpoint()),
    ] {
        let mark = format!("<!-- {name}: checked by a test -->\n");
        let start = text.find(&mark).expect("its mark") + mark.len();
        let end = start + text[start..].find("<!-- end -->").expect("its end");
        if bless {
            text.replace_range(start..end, &expected);
        }
        let end = start + text[start..].find("<!-- end -->").expect("its end");
        assert_eq!(&text[start..end], expected, "the section {name} of FORMAT.md");
    }
    if bless {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn every_file_kind_and_outcome_has_its_word() {
    let text = include_str!("../../FORMAT.md");
    for kind in [FileKind::Lock, FileKind::Segment, FileKind::Index, FileKind::Checkpoint] {
        let bytes = header(kind).encode();
        let word = std::str::from_utf8(&bytes[5..8]).unwrap();
        assert!(text.contains(&format!("`{word}`")), "{word}");
    }
    for (number, word) in [(1, "acked"), (2, "purged"), (3, "expired"), (4, "moved")] {
        let outcome = Outcome::from_number(number).expect("an outcome");
        assert_eq!(format!("{outcome:?}").to_lowercase(), word);
        assert!(text.contains(&format!("{number} {word}")), "{word}");
    }
    assert_eq!(Outcome::from_number(5), None);
}
