//! `vectors/frames.txt` is a promise: what it says is what is sent, byte for byte.
//!
//! `RESTANTE_BLESS=1` writes the file anew. A line that changes in it is a change of the protocol.

use crate::describe::{describe, hex, unhex};
use crate::samples;
use std::collections::BTreeMap;
use std::path::PathBuf;

const HEAD: &str = "\
# Golden vectors of the Restante protocol, version 1. See PROTOCOL.md.
#
# Three parts each: [name], what the frame says as JSON (bytes as hexadecimal digits, ids as they are
# printed), the frame as hexadecimal digits. A decoder must read the third as the second; an encoder
# that orders the entries of MessagePack maps alike writes the second as the third.
";

/// A file of this crate, and whether it is to be written anew.
pub(crate) fn file(name: &str) -> (PathBuf, bool) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name);
    (path, std::env::var_os("RESTANTE_BLESS").is_some())
}

pub(crate) struct Vector {
    pub(crate) says: String,
    pub(crate) bytes: Vec<u8>,
}

/// The vectors as they stand in the file, by name.
pub(crate) fn stored() -> BTreeMap<String, Vector> {
    let text = std::fs::read_to_string(file("vectors/frames.txt").0).unwrap();
    text.split("\n[")
        .skip(1)
        .map(|part| {
            let (name, part) = part.split_once("]\n").expect("a name");
            let (says, digits) = part.split_once('\n').expect("what it says");
            (name.to_owned(), Vector { says: says.to_owned(), bytes: unhex(digits) })
        })
        .collect()
}

#[test]
fn every_vector_is_written_and_read_as_it_stands() {
    let mut text = HEAD.to_owned();
    let samples = samples::all();
    for sample in &samples {
        let digits = hex(&sample.bytes);
        let lines: Vec<&str> =
            digits.as_bytes().chunks(96).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let (name, says) = (&sample.name, describe(&sample.bytes));
        text.push_str(&format!("\n[{name}]\n{says}\n{}\n", lines.join("\n")));
    }
    let (path, bless) = file("vectors/frames.txt");
    if bless {
        std::fs::write(&path, &text).unwrap();
    }
    let stored = stored();
    assert_eq!(stored.len(), samples.len(), "every name once, and nothing else");
    for sample in samples {
        let vector = &stored[&sample.name];
        assert_eq!(hex(&vector.bytes), hex(&sample.bytes), "{}, written", sample.name);
        let says: serde_json::Value = serde_json::from_str(&vector.says).unwrap();
        assert_eq!(describe(&vector.bytes), says, "{}, read", sample.name);
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
}
