//! `peer peek|parked|export`: what is stored for a peer, page by page as it comes, so that a command
//! holds no more than a page whatever waits.

use super::delivery::Shown;
use super::output::{Output, Paint, Table, print, print_bytes};
use super::{Exit, Failure, values};
use restante_client::Client;
use restante_protocol::control::{Reply, Request};
use restante_protocol::id::MessageId;
use restante_protocol::message::{Body, decode_headers};
use restante_protocol::stored::{Filter, Lane, MessagePage, StoredMessage};
use restante_protocol::time::WallMillis;

/// Which messages of a peer a command is about. All that is said has to be true of a message.
///
/// Of waiting messages the times are those of their acceptance.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Chosen {
    /// Parked (of waiting ones: accepted) at this time or later: how long ago (24h, 30m), or
    /// 2026-11-23 or 2026-11-23T23:14:05Z
    #[arg(long, value_name = "WHEN", value_parser = values::moment)]
    since: Option<WallMillis>,
    /// Parked (of waiting ones: accepted) before this time, written as for --since
    #[arg(long, value_name = "WHEN", value_parser = values::moment)]
    until: Option<WallMillis>,
    /// With this text in the reason for which it was parked
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// With exactly this ordering key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl From<Chosen> for Filter {
    fn from(chosen: Chosen) -> Filter {
        let Chosen { since, until, reason, key } = chosen;
        Filter { since, until, reason, key: key.map(String::into_bytes) }
    }
}

/// How much of it is printed.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Most {
    /// Print at most this many
    #[arg(short = 'n', long = "limit", value_name = "N")]
    limit: Option<u64>,
}

impl Most {
    /// However many there are.
    pub(super) const ALL: Most = Most { limit: None };
}

/// A peer's messages of one lane, a page at a time.
pub(super) struct Pages<'a> {
    client: &'a Client,
    /// What is asked next.
    ask: Option<Request>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(
        client: &'a Client,
        peer: String,
        lane: Lane,
        filter: Filter,
        bodies: bool,
    ) -> Pages<'a> {
        let ask = Some(Request::Stored { peer, lane, filter, after: 0, bodies });
        Pages { client, ask }
    }

    /// The next page, perhaps an empty one; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<StoredMessage>>, Failure> {
        let Some(mut ask) = self.ask.take() else { return Ok(None) };
        let Reply::Stored(page) = self.client.request(ask.clone()).await? else {
            return Err(Failure::new(Exit::Failed, "the node did not answer with messages"));
        };
        let MessagePage { messages, through, more } = page;
        if let Request::Stored { after, .. } = &mut ask
            && more
            && through > *after
        {
            *after = through;
            self.ask = Some(ask);
        }
        Ok(Some(messages))
    }
}

/// Prints what waits for a peer, or is parked, and takes nothing away; how many it was.
pub(super) async fn list(mut pages: Pages<'_>, most: Most, output: Output) -> Result<u64, Failure> {
    let mut left = most.limit.unwrap_or(u64::MAX);
    let mut printed = 0;
    while left > 0
        && let Some(page) = pages.next().await?
    {
        let shown = usize::try_from(left).unwrap_or(usize::MAX).min(page.len());
        print_page(&page[..shown], output)?;
        left -= shown as u64;
        printed += shown as u64;
    }
    Ok(printed)
}

fn print_page(page: &[StoredMessage], output: Output) -> Result<(), Failure> {
    if page.is_empty() {
        return Ok(());
    }
    if output.json {
        let lines: Result<Vec<_>, _> =
            page.iter().map(|message| Output::json_line(&line(message))).collect();
        return print(&lines?.concat());
    }
    let head = &["ID", "ACCEPTED", "BYTES", "KEY", "PARKED", "ATTEMPTS", "REASON"];
    let mut table = Table::new(output, head);
    for message in page {
        let parked = message.parked.as_ref();
        let at = parked.and_then(|parked| parked.at).map_or("-".to_owned(), |at| at.to_string());
        let attempts = parked.map_or("-".to_owned(), |parked| parked.attempts.to_string());
        let key = message.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        table.row(vec![
            (Some(Paint::Bold), message.id.to_string()),
            (None, message.accepted.to_string()),
            (None, message.bytes.to_string()),
            (None, key.into_owned()),
            (None, at),
            (None, attempts),
            (Some(Paint::Dim), parked.map_or_else(String::new, |parked| parked.reason.clone())),
        ]);
    }
    print(&table.render())
}

/// A stored message as one flat object.
#[derive(serde::Serialize)]
struct Line<'a> {
    accepted: WallMillis,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parked_at: Option<WallMillis>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(flatten)]
    shown: Shown<'a>,
}

fn line(message: &StoredMessage) -> Line<'_> {
    let parked = message.parked.as_ref();
    let read = message.body.as_deref().map(|body| Body::parse(body).unwrap_or_default());
    Line {
        accepted: message.accepted,
        bytes: message.bytes,
        parked_at: parked.and_then(|parked| parked.at),
        attempts: parked.map(|parked| parked.attempts),
        reason: parked.map(|parked| parked.reason.as_str()),
        shown: Shown {
            id: message.id,
            receiver: None,
            attempt: None,
            redelivered: None,
            key: message.key.as_deref(),
            headers: read
                .and_then(|read| read.headers)
                .and_then(|map| decode_headers(map).ok())
                .unwrap_or_default(),
            payload: read.map(|read| read.payload),
        },
    }
}

/// Prints messages whole, one JSON object a line.
pub(super) async fn export(client: &Client, mut pages: Pages<'_>) -> Result<u64, Failure> {
    let mut written = 0;
    while let Some(page) = pages.next().await? {
        let mut lines = Vec::new();
        for mut message in page {
            if message.body.is_none() {
                message.body = Some(body(client, message.id).await?);
            }
            serde_json::to_writer(&mut lines, &line(&message)).map_err(std::io::Error::from)?;
            lines.push(b'\n');
            written += 1;
        }
        print_bytes(&lines)?;
    }
    Ok(written)
}

/// One that is too long for a page.
async fn body(client: &Client, id: MessageId) -> Result<Vec<u8>, Failure> {
    match client.request(Request::Payload { id }).await {
        Ok(Reply::Payload(body)) => Ok(body),
        Ok(_) => Err(Failure::new(Exit::Failed, "the node did not answer with a payload")),
        Err(error) => {
            let failure = Failure::from(error);
            Err(Failure::new(failure.exit, format_args!("{id} cannot be exported: {failure}")))
        }
    }
}
