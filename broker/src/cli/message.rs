//! `message`: what has become of a message.

use super::Failure;
use super::delivery::{Form, Shown};
use super::node::{Target, block_on};
use super::output::{Output, Paint, Table, note, print, print_bytes};
use super::show;
use restante_client::{Client, RequestError};
use restante_protocol::control::{Reply, Request};
use restante_protocol::id::MessageId;
use restante_protocol::message::{Body, decode_headers};
use restante_protocol::refusal::Code;
use restante_protocol::status::MessageStatus;

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// Print a message and its state towards each receiver
    Get {
        /// Its id, as pub prints it
        id: MessageId,
        /// Print only the payload, as it is
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// Print the life of a message with each of its receivers
    Trace {
        /// Its id, as pub prints it
        id: MessageId,
    },
}

pub(super) fn run(verb: Verb, target: &Target, output: Output) -> Result<(), Failure> {
    block_on(async {
        let client = target.connect().await?;
        match verb {
            Verb::Get { id, raw: true } => {
                let body = body(&client, id).await?;
                print_bytes(Body::parse(&body).unwrap_or_default().payload)
            }
            Verb::Get { id, .. } => get(&client, id, output).await,
            Verb::Trace { id } => {
                let status = client.message(id).await?;
                if output.json {
                    return print(&receivers_as_json(&status)?);
                }
                print(&as_table(&status, output))
            }
        }
    })
}

async fn get(client: &Client, id: MessageId, output: Output) -> Result<(), Failure> {
    let status = client.message(id).await?;
    let body = match body(client, id).await {
        Ok(body) => Some(body),
        // It was done with everywhere and its space has been reclaimed; the record remains.
        Err(RequestError::Refused(refusal)) if refusal.code == Code::AgedOut => None,
        Err(error) => return Err(error.into()),
    };
    let parts = body.as_deref().map(|body| Body::parse(body).unwrap_or_default());
    let shown = parts.map(|parts| Shown {
        id,
        receiver: None,
        attempt: None,
        redelivered: None,
        key: parts.key,
        headers: parts.headers.and_then(|map| decode_headers(map).ok()).unwrap_or_default(),
        payload: parts.payload,
    });
    if output.json {
        #[derive(serde::Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            status: &'a MessageStatus,
            message: Option<Shown<'a>>,
        }
        return print(&Output::json_line(&Whole { status: &status, message: shown })?);
    }
    let mut page = Vec::new();
    match shown {
        Some(shown) => shown.write(Form::Text(output), &mut page)?,
        None => note("the payload is no longer stored; only the record is"),
    }
    page.extend_from_slice(as_table(&status, output).as_bytes());
    print_bytes(&page)
}

/// The stored body section: key, headers and payload.
async fn body(client: &Client, id: MessageId) -> Result<Vec<u8>, RequestError> {
    match client.request(Request::Payload { id }).await? {
        Reply::Payload(body) => Ok(body),
        _ => Err(RequestError::WrongReply),
    }
}

/// One object a receiver, each complete in itself.
fn receivers_as_json(status: &MessageStatus) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        id: MessageId,
        accepted: restante_protocol::time::WallMillis,
        #[serde(flatten)]
        receiver: &'a restante_protocol::status::ReceiverStatus,
    }
    let line = |receiver| Line { id: status.id, accepted: status.accepted, receiver };
    let lines: Result<Vec<_>, _> =
        status.receivers.iter().map(|receiver| Output::json_line(&line(receiver))).collect();
    Ok(lines?.concat())
}

fn as_table(status: &MessageStatus, output: Output) -> String {
    let mut table = Table::new(output, &["RECEIVER", "STATE", "ATTEMPTS", "AT", "WHAT"]);
    let accepted = vec![
        (Some(Paint::Dim), "(node)".to_owned()),
        (Some(Paint::Dim), "accepted".to_owned()),
        (None, String::new()),
        (None, status.accepted.to_string()),
        (None, status.bytes.map_or_else(String::new, |bytes| format!("{bytes} bytes"))),
    ];
    table.row(accepted);
    for receiver in &status.receivers {
        let (state, at, what) = show::state(&receiver.state);
        table.row(vec![
            (Some(Paint::Bold), receiver.receiver.clone()),
            state,
            (None, receiver.attempts.to_string()),
            (None, at.map_or_else(|| "-".to_owned(), |at| at.to_string())),
            (None, what),
        ]);
    }
    table.render()
}
