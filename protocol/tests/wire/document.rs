//! PROTOCOL.md says what the code does. `RESTANTE_BLESS=1` writes its tables and its session anew.

use crate::describe::hex;
use crate::vectors::{file, stored};
use restante_protocol::admin::{PeerSettings, bounds};
use restante_protocol::frame::kind;
use restante_protocol::limits::*;
use restante_protocol::refusal::Code;
use std::fmt::Write as _;

/// Who speaks, and the vector that is said.
const SESSION: &[(&str, &str, &str)] = &[
    ("C → N", "hello", "who I am"),
    ("N → C", "welcome", "who I am, and what you may do"),
    ("C → N", "alias", "from now on 0 is orders"),
    ("C → N", "publish-1", "hello, to orders"),
    ("C → N", "publish-2", "world, to orders"),
    ("N → C", "confirm-1-2", "both are on disk"),
    ("C → N", "request-attach", "I am orders"),
    ("N → C", "response-attached", "deliveries follow"),
    ("N → C", "deliver-1", "the first message"),
    ("N → C", "deliver-2", "the second message"),
    ("C → N", "ack-1-2", "both are done"),
    ("C → N", "heartbeat", "ten seconds later: I am here"),
];

fn limits() -> String {
    let rows: &[(&str, usize, &str)] = &[
        ("a frame, after its length word", FRAME_BYTES_MAX, "bytes"),
        ("a payload, whatever a node is configured to", PAYLOAD_BYTES_MAX, "bytes"),
        ("a payload, unless a node is configured otherwise", PAYLOAD_BYTES_DEFAULT, "bytes"),
        ("a control frame's value", CONTROL_BYTES_MAX, "bytes"),
        ("an agent", AGENT_BYTES_MAX, "bytes"),
        ("a name", NAME_BYTES_MAX, "bytes"),
        ("a key", KEY_BYTES_MAX, "bytes"),
        ("a message's headers, encoded", HEADERS_BYTES_MAX, "bytes"),
        ("receivers of a publish", RECEIVERS_MAX, ""),
        ("members of a group", GROUP_MEMBERS_MAX, ""),
        ("aliases of a connection", ALIASES_MAX as usize, ""),
        ("slots of a connection", SLOTS_MAX as usize, ""),
        ("peers of an answer or of a part of a snapshot", PEER_PAGE_MAX, ""),
        ("groups of an answer", GROUP_PAGE_MAX, ""),
        ("messages of an answer to stored", MESSAGE_PAGE_MAX, ""),
        ("bodies of an answer to stored", PAGE_BODY_BYTES_MAX, "bytes"),
        ("requests of a connection under way", REQUESTS_MAX, ""),
        ("calls of a connection that await their replies", CALLS_MAX, ""),
        ("ranges in an ack", ACK_RANGES_MAX, ""),
        ("a return value", RETURN_BYTES_MAX, "bytes"),
        ("a reason or detail", REASON_BYTES_MAX, "bytes"),
    ];
    let mut out = "| What | At most |\n|---|---|\n".to_owned();
    for (what, most, unit) in rows {
        let most = format!("{} {unit}", grouped(*most));
        writeln!(out, "| {what} | {} |", most.trim_end()).unwrap();
    }
    out
}

/// With commas between thousands.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap())
        .collect();
    groups.join(",")
}

fn codes() -> String {
    let mut out = "| Number | Word | What to do |\n|---|---|---|\n".to_owned();
    for code in Code::ALL {
        writeln!(out, "| {} | `{}` | {} |", code.number(), code.word(), code.remedy()).unwrap();
    }
    out
}

fn session() -> String {
    let vectors = stored();
    let mut out = "```\n".to_owned();
    for (place, (way, name, meaning)) in SESSION.iter().enumerate() {
        let vector = &vectors[*name];
        let gap = if place == 0 { "" } else { "\n" };
        writeln!(out, "{gap}{way}  {name}: {meaning}").unwrap();
        let mut rest = &vector.bytes[..];
        for (bytes, comment) in fields(&vector.bytes, &vector.says) {
            let (field, after) = rest.split_at(bytes);
            rest = after;
            let mut comment = comment.as_str();
            for line in field.chunks(16) {
                let digits: Vec<String> = line.iter().map(|byte| hex(&[*byte])).collect();
                let line = format!("    {:<48} {comment}", digits.join(" "));
                writeln!(out, "{}", line.trim_end()).unwrap();
                comment = "";
            }
        }
        assert!(rest.is_empty(), "{name}: every byte is explained");
    }
    out + "```\n"
}

/// The fields of a frame: how long each is, and what it says.
fn fields(bytes: &[u8], says: &str) -> Vec<(usize, String)> {
    let length = bytes.len() - 4;
    let mut fields = vec![(4, format!("length: {length} bytes follow"))];
    let named = |names: &[(usize, &str)]| -> Vec<(usize, String)> {
        names.iter().map(|(bytes, name)| (*bytes, (*name).to_owned())).collect()
    };
    fields.extend(match bytes[4] {
        kind::PUBLISH => named(&[
            (1, "publish"),
            (1, "flags: none"),
            (2, "1 receiver"),
            (8, "sequence"),
            (4, "alias 0"),
            (1, "body: no key, no headers, no call"),
            (bytes.len() - 21, "payload"),
        ]),
        kind::CONFIRM => {
            named(&[(1, "confirm"), (8, "first sequence"), (4, "count"), (16, "first id")])
        }
        kind::DELIVER => named(&[
            (1, "deliver"),
            (1, "flags: not redelivered"),
            (2, "attempt"),
            (4, "slot"),
            (8, "tag"),
            (4, "epoch"),
            (16, "id"),
            (1, "body: no key, no headers, no call"),
            (bytes.len() - 41, "payload"),
        ]),
        kind::ACK => {
            named(&[(1, "ack"), (4, "slot"), (2, "1 range"), (8, "first tag"), (8, "last tag")])
        }
        kind::HEARTBEAT => named(&[(1, "heartbeat")]),
        kind::CONTROL => {
            let value: serde_json::Value = serde_json::from_str(says).unwrap();
            let value = value["control"].to_string();
            vec![(1, "control".to_owned()), (bytes.len() - 5, value)]
        }
        other => panic!("no explanation of frame type {other}"),
    });
    fields
}

#[test]
fn tables_and_session_are_those_of_the_code() {
    let (path, bless) = file("PROTOCOL.md");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (name, expected) in [("limits", limits()), ("codes", codes()), ("session", session())] {
        let mark = format!("<!-- {name}: checked by a test -->\n");
        let start = text.find(&mark).expect("its mark") + mark.len();
        let end = start + text[start..].find("<!-- end -->").expect("its end");
        if bless {
            text.replace_range(start..end, &expected);
        }
        let end = start + text[start..].find("<!-- end -->").expect("its end");
        assert_eq!(&text[start..end], expected, "the section {name} of PROTOCOL.md");
    }
    if bless {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn every_frame_type_and_every_setting_has_its_row() {
    let text = std::fs::read_to_string(file("PROTOCOL.md").0).unwrap();
    for kind in [
        kind::PUBLISH,
        kind::CONFIRM,
        kind::REFUSE,
        kind::DELIVER,
        kind::ACK,
        kind::ACK_VALUE,
        kind::NACK,
        kind::REPLY,
        kind::HEARTBEAT,
        kind::GRANT,
        kind::CONTROL,
    ] {
        assert!(text.contains(&format!("| `{kind:02x}` | ")), "frame type {kind:02x}");
    }
    let settings = serde_json::to_value(PeerSettings::default()).unwrap();
    for name in settings.as_object().unwrap().keys() {
        assert!(text.contains(&format!("| `{name}` | ")), "setting {name}");
    }
}

/// The table of settings speaks in KiB and hours; these are its numbers.
#[test]
fn settings_have_the_bounds_and_defaults_that_are_printed() {
    assert_eq!(bounds::WINDOW_MESSAGES, 1..=65_536);
    assert_eq!(bounds::WINDOW_BYTES, 64 << 10..=256 << 20);
    assert_eq!(bounds::ACK_TIMEOUT_MS, 100..=60 * 60 * 1_000);
    assert_eq!(bounds::BACKOFF_MS_MIN, 10..=60 * 60 * 1_000);
    assert_eq!(bounds::BACKOFF_MS_MAX, 100..=24 * 60 * 60 * 1_000);
    assert_eq!(bounds::RETRY_MS, 0..=7 * 24 * 60 * 60 * 1_000);
    assert_eq!(bounds::RETRIES, 0..=32);
    let defaults = PeerSettings::default();
    assert_eq!((defaults.window_messages, defaults.window_bytes), (2_048, 4 << 20));
    assert_eq!((defaults.backoff_ms_min, defaults.backoff_ms_max), (250, 60_000));
    assert_eq!(defaults.ack_timeout_ms, 30_000);
    assert_eq!(defaults.retry_schedule_ms, [1_000, 5_000, 60_000, 600_000, 3_600_000]);
}
