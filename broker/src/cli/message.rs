//! `message`: what has become of a message.

use super::Failure;
use super::delivery::{Answer, Form, Shown};
use super::node::{Target, block_on};
use super::output::{Output, Paint, Table, note, print, print_bytes};
use super::show;
use restante_client::{Client, RequestError};
use restante_protocol::control::{Reply, Request};
use restante_protocol::id::MessageId;
use restante_protocol::message::{Body, decode_headers};
use restante_protocol::refusal::Code;
use restante_protocol::status::{Blocked, MessageState, MessageStatus, ReceiverStatus};
use restante_protocol::time::WallMillis;

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
    /// Say what a message waits for: the one thing that keeps it from each receiver that lacks it
    Explain {
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
            Verb::Explain { id } => explain(&client, id, output).await,
        }
    })
}

async fn explain(client: &Client, id: MessageId, output: Output) -> Result<(), Failure> {
    let mut status = client.message(id).await?;
    if output.json {
        status.receivers.retain(|receiver| receiver.state.is_open());
        return print(&receivers_as_json(&status)?);
    }
    let now = show::now();
    let mut lines = Vec::new();
    for ReceiverStatus { receiver, state, blocked, expires, .. } in &status.receivers {
        if !state.is_open() {
            continue;
        }
        let word = show::state_word(state);
        let why = match (state, blocked) {
            (MessageState::Delayed { until }, _) => show::delay(*until, now),
            (_, Some(blocked)) => show::blocked(blocked, now),
            (_, None) => "its actor did not say what it waits for; ask again".to_owned(),
        };
        let expires = expires.map(|at| show::expiry(at, now)).unwrap_or_default();
        lines.push(format!("{receiver}: {word}; {why}{expires}\n"));
    }
    if lines.is_empty() {
        lines.push("it waits for nothing: no receiver is to get it any more\n".to_owned());
    }
    print(&lines.concat())
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
        payload: Some(parts.payload),
    });
    if output.json {
        #[derive(serde::Serialize)]
        struct Whole<'a> {
            id: MessageId,
            accepted: WallMillis,
            message: Option<Shown<'a>>,
            receivers: Vec<Towards<'a>>,
        }
        let receivers = status.receivers.iter().map(Towards::from).collect();
        let whole = Whole { id, accepted: status.accepted, message: shown, receivers };
        return print(&Output::json_line(&whole)?);
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
        accepted: WallMillis,
        #[serde(flatten)]
        towards: Towards<'a>,
    }
    let line = |towards| Line { id: status.id, accepted: status.accepted, towards };
    let lines = status.receivers.iter().map(|receiver| Output::json_line(&line(receiver.into())));
    Ok(lines.collect::<Result<Vec<_>, _>>()?.concat())
}

/// A message's state towards one receiver, flat. Times are in milliseconds since the Unix epoch.
#[derive(serde::Serialize)]
struct Towards<'a> {
    receiver: &'a str,
    attempts: u32,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<WallMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<WallMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<WallMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_attempt: Option<WallMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked: Option<&'a Blocked>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<WallMillis>,
}

impl<'a> From<&'a ReceiverStatus> for Towards<'a> {
    fn from(status: &'a ReceiverStatus) -> Towards<'a> {
        let mut towards = Towards {
            receiver: &status.receiver,
            attempts: status.attempts,
            state: show::state_word(&status.state),
            at: None,
            since: None,
            until: None,
            next_attempt: None,
            reason: None,
            to: None,
            by: None,
            answer: None,
            blocked: status.blocked.as_ref(),
            expires: status.expires,
        };
        match &status.state {
            MessageState::Delayed { until } => towards.until = Some(*until),
            MessageState::Queued | MessageState::Done => {}
            MessageState::InFlight { since } => towards.since = Some(*since),
            MessageState::Retrying { next_attempt, reason } => {
                towards.next_attempt = Some(*next_attempt);
                towards.reason = Some(reason);
            }
            MessageState::Acked { at, value } => {
                towards.at = Some(*at);
                towards.answer = value.as_deref().map(Answer);
            }
            MessageState::Parked { at, reason } => {
                towards.at = Some(*at);
                towards.reason = Some(reason);
            }
            MessageState::Expired { at } | MessageState::Replayed { at } => towards.at = Some(*at),
            MessageState::Purged { at, by } => {
                towards.at = Some(*at);
                towards.by = by.as_deref();
            }
            MessageState::Moved { at, to } => {
                towards.at = Some(*at);
                towards.to = Some(to);
            }
        }
        towards
    }
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
    let now = show::now();
    for receiver in &status.receivers {
        let (state, at, mut what) = show::state(&receiver.state);
        if let Some(blocked) = &receiver.blocked {
            what = show::blocked(blocked, now);
        }
        if let Some(expires) = receiver.expires {
            what += &show::expiry(expires, now);
        }
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
