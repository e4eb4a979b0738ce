//! `peer import`: messages that `peer export` wrote, published to a receiver in their order.

use super::input::Source;
use super::node::Target;
use super::output::Output;
use super::publish::{Told, publish, publish_lines};
use super::values::from_base64;
use super::{Exit, Failure};
use bytes::Bytes;
use restante_client::{Client, Publish, Receipt, Route};
use restante_protocol::limits::PAYLOAD_BYTES_MAX;
use restante_protocol::name::Name;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use tokio::sync::mpsc;

/// The longest line a message can make: in JSON one byte of a payload takes up to six.
const LINE_BYTES_MAX: usize = 6 * PAYLOAD_BYTES_MAX + 1024 * 1024;

pub(super) async fn run(
    to: &Name,
    file: Option<String>,
    target: &Target,
    output: Output,
) -> Result<(), Failure> {
    let source = match file {
        Some(file) if file != "-" => Source::File(file),
        _ => Source::Stdin,
    };
    let told = Told { wait: false, lines: true };
    let feed = async |client: &Client, route: &Route, receipts: mpsc::Sender<Receipt>| {
        let lines = source.lines(LINE_BYTES_MAX)?;
        publish_lines(client, lines, |line| Exported::read(&line)?.publish(route), receipts).await
    };
    publish(std::slice::from_ref(to), told, target, output, feed).await
}

/// What is taken over of an exported message. Whatever else its line says was true where it came from.
#[derive(Debug, Deserialize)]
struct Exported {
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default)]
    headers: Pairs,
    payload: Option<String>,
    payload_base64: Option<String>,
}

impl Exported {
    fn read(line: &[u8]) -> Result<Exported, Failure> {
        serde_json::from_slice(line).map_err(bad)
    }

    fn publish(self, route: &Route) -> Result<Publish, Failure> {
        let payload = bytes("payload", self.payload, self.payload_base64)?;
        let payload =
            payload.ok_or_else(|| bad("there is no \"payload\" or \"payload_base64\""))?;
        let mut publish = Publish::via(route).payload(payload);
        if let Some(key) = bytes("key", self.key, self.key_base64)? {
            publish = publish.key(key);
        }
        for (name, value) in self.headers.0 {
            publish = publish.header(name, value);
        }
        Ok(publish)
    }
}

/// What stands there as a text, or as Base64 where it was none.
fn bytes(
    what: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, Failure> {
    match (text, base64) {
        (Some(_), Some(_)) => {
            Err(bad(format_args!("there are both \"{what}\" and \"{what}_base64\"")))
        }
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(text)) => match from_base64(&text) {
            Some(bytes) => Ok(Some(bytes.into())),
            None => Err(bad(format_args!("\"{what}_base64\" is not Base64 with padding"))),
        },
        (None, None) => Ok(None),
    }
}

fn bad(why: impl fmt::Display) -> Failure {
    let what = format_args!("expected a message as restante peer export writes it: {why}");
    Failure::new(Exit::Failed, what)
}

/// Headers in their order, of which there may be several of one name.
#[derive(Debug, Default)]
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pairs, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Pairs;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object of texts")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Pairs, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_or_said_to_be_wrong() {
        let line = br#"{"id":"x","accepted":1,"headers":{"b":"1","a":"2","b":"3"},"key_base64":"//79","payload":"p"}"#;
        let read = Exported::read(line).unwrap();
        let headers: Vec<_> =
            read.headers.0.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(headers, [("b", "1"), ("a", "2"), ("b", "3")]);
        let key = bytes("key", read.key, read.key_base64).unwrap().unwrap();
        assert_eq!(&key[..], [0xff, 0xfe, 0xfd]);

        let why = |error: Failure| error.message;
        assert!(why(Exported::read(b"not json").unwrap_err()).contains("peer export"));
        assert!(why(Exported::read(br#"{"headers":[]}"#).unwrap_err()).contains("object of texts"));
        let both = bytes("key", Some("a".to_owned()), Some("YQ==".to_owned()));
        assert!(why(both.unwrap_err()).contains("both"));
        let neither = bytes("payload", None, Some("?".to_owned()));
        assert!(why(neither.unwrap_err()).contains("payload_base64"));
    }
}
