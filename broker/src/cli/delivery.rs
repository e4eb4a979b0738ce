//! How a message is shown, whether it was delivered or looked up.

use super::Failure;
use super::output::{Output, Paint, printable};
use super::values::base64;
use restante_client::Delivery;
use restante_protocol::id::MessageId;
use serde::{Serialize, Serializer};
use std::io::Write;

/// What a message is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The payload and a newline.
    Raw,
    /// One JSON object a line.
    Json,
    /// For people.
    Text(Output),
}

impl Form {
    pub(super) fn of(output: Output) -> Form {
        if output.json { Form::Json } else { Form::Text(output) }
    }
}

/// A message taken apart.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    pub(super) id: MessageId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receiver: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) attempt: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) redelivered: Option<bool>,
    #[serde(flatten, serialize_with = "key")]
    pub(super) key: Option<&'a [u8]>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "pairs")]
    pub(super) headers: Vec<(String, String)>,
    /// Absent where it is not shown.
    #[serde(flatten, serialize_with = "payload")]
    pub(super) payload: Option<&'a [u8]>,
}

impl<'a> From<&'a Delivery> for Shown<'a> {
    fn from(delivery: &'a Delivery) -> Shown<'a> {
        Shown {
            id: delivery.id,
            receiver: Some(delivery.receiver().as_str()),
            attempt: Some(delivery.attempt),
            redelivered: Some(delivery.redelivered),
            key: delivery.key(),
            headers: delivery.headers(),
            payload: Some(&delivery.payload),
        }
    }
}

impl Shown<'_> {
    pub(super) fn write(&self, form: Form, page: &mut Vec<u8>) -> Result<(), Failure> {
        match form {
            Form::Raw => page.extend_from_slice(self.payload.unwrap_or_default()),
            Form::Json => serde_json::to_writer(&mut *page, self).map_err(std::io::Error::from)?,
            Form::Text(output) => {
                writeln!(page, "{}", output.paint(Paint::Dim, &self.head()))?;
                page.extend_from_slice(text(self.payload.unwrap_or_default()).as_bytes());
            }
        }
        page.push(b'\n');
        Ok(())
    }

    /// Everything but the payload, on one line.
    fn head(&self) -> String {
        let mut head = self.id.to_string();
        if let Some(attempt) = self.attempt.filter(|attempt| *attempt > 1) {
            head.push_str(&format!(" attempt {attempt}"));
        }
        if self.redelivered == Some(true) {
            head.push_str(" redelivered");
        }
        if let Some(key) = self.key {
            head.push_str(&format!(" key={}", printable(&String::from_utf8_lossy(key))));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!(" {}:{}", printable(name), printable(value)));
        }
        head
    }
}

/// A payload as a terminal may show it: lines stay lines, everything else that acts is escaped.
fn text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.split('\n').map(printable).collect::<Vec<_>>().join("\n"),
        Err(_) => format!("({} bytes, base64) {}", payload.len(), base64(payload)),
    }
}

fn key<S: Serializer>(key: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(key.map(|key| text_or_base64("key", "key_base64", key)))
}

fn payload<S: Serializer>(payload: &Option<&[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer
        .collect_map(payload.map(|payload| text_or_base64("payload", "payload_base64", payload)))
}

/// What a receiver returned: a text, or bytes as `{"base64":"…"}`.
pub(super) struct Answer<'a>(pub(super) &'a [u8]);

impl Serialize for Answer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_map([("base64", base64(self.0))]),
        }
    }
}

/// Programs get text as text and know by the name when it is none.
fn text_or_base64(
    name: &'static str,
    name_base64: &'static str,
    bytes: &[u8],
) -> (&'static str, String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name, text.to_owned()),
        Err(_) => (name_base64, base64(bytes)),
    }
}

fn pairs<S: Serializer>(headers: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(key: Option<&'a [u8]>, payload: &'a [u8]) -> Shown<'a> {
        Shown {
            id: MessageId(1),
            receiver: Some("a"),
            attempt: Some(2),
            redelivered: Some(true),
            key,
            headers: vec![("n".to_owned(), "v\n".to_owned())],
            payload: Some(payload),
        }
    }

    fn written(shown: &Shown<'_>, form: Form) -> String {
        let mut page = Vec::new();
        shown.write(form, &mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn json_tells_text_from_bytes() {
        let line = written(&shown(Some(b"k"), b"two\nlines"), Form::Json);
        assert_eq!(
            line,
            "{\"id\":\"00000000000000000000000001\",\"receiver\":\"a\",\"attempt\":2,\
             \"redelivered\":true,\"key\":\"k\",\"headers\":{\"n\":\"v\\n\"},\
             \"payload\":\"two\\nlines\"}\n"
        );
        let line = written(&shown(None, b"\xff"), Form::Json);
        assert!(line.ends_with(",\"payload_base64\":\"/w==\"}\n"), "{line}");
        assert!(!line.contains("key"), "{line}");
    }

    #[test]
    fn raw_is_the_payload_and_a_newline() {
        assert_eq!(written(&shown(None, b"a\nb"), Form::Raw), "a\nb\n");
    }

    #[test]
    fn a_terminal_gets_nothing_that_acts_on_it() {
        let shown = shown(Some(b"\x1b[2J"), b"one\ntwo\x1b]0;x\x07");
        let page = written(&shown, Form::Text(Output::PLAIN));
        assert_eq!(
            page,
            "00000000000000000000000001 attempt 2 redelivered key=\\u{1b}[2J n:v\\n\n\
             one\ntwo\\u{1b}]0;x\\u{7}\n"
        );
    }
}
