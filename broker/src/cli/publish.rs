//! `pub`: one message, or one a line.
//!
//! Publishing and printing run side by side: the one takes lines as fast as the client's buffer has
//! room, the other awaits the receipts in the same order and prints each id once it is confirmed.

use super::input::Source;
use super::node::{Target, block_on};
use super::output::{Output, note, print, printable};
use super::{Exit, Failure, values};
use bytes::Bytes;
use futures_util::FutureExt;
use restante_client::{Client, Confirmed, Publish, PublishError, Receipt, Route};
use restante_protocol::id::MessageId;
use restante_protocol::limits::PAYLOAD_BYTES_MAX;
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;
use restante_protocol::status::{MessageState, MessageStatus};
use restante_protocol::time::WallMillis;
use serde_json::json;
use std::fmt::Write;
use std::future::Future;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Publish a message, or one for every line
///
/// Prints the id of each message once it is on the node's disk. A message that some of its receivers
/// refused prints its id and ends with exit code 5.
#[derive(clap::Args)]
pub(super) struct Args {
    /// What to say: a text, @FILE, or - (the default) for standard input
    payload: Option<String>,
    /// Whom it is for
    #[arg(long, required = true, value_delimiter = ',', value_name = "NAME,…")]
    to: Vec<Name>,
    /// A message for every line of standard input or @FILE
    #[arg(short = 'l', long)]
    lines: bool,
    /// A header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Messages of one key reach a receiver in the order they were published
    #[arg(long)]
    key: Option<String>,
    /// Do not send it any more after this time, counted from when the node accepted it
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    ttl: Option<Duration>,
    /// Put it into the receivers' queues this long after the node accepted it
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    delay: Option<Duration>,
    /// Put it into the receivers' queues when the node's clock shows this time: 2026-11-23T23:14:05Z
    #[arg(long, value_name = "TIME", conflicts_with = "delay")]
    deliver_at: Option<WallMillis>,
    /// Accept for all receivers or for none
    #[arg(long)]
    all_or_nothing: bool,
    /// Wait until every receiver has acked
    #[arg(long)]
    wait: bool,
}

/// Receipts that wait to be printed; the client's buffer bounds what is unconfirmed anyway.
const RECEIPTS_MAX: usize = 16_384;
/// Refusals that are told one by one; more are only counted.
const TOLD_MAX: u64 = 20;

pub(super) fn run(args: Args, target: &Target, output: Output) -> Result<(), Failure> {
    let source = Source::parse(args.payload.clone());
    if args.lines && matches!(source, Source::Text(_)) {
        let what = "--lines reads standard input or @FILE, not a text";
        return Err(Failure::new(Exit::Usage, what));
    }
    let told = Told { wait: args.wait, lines: args.lines };
    let feed = async |client: &Client, route: &Route, receipts: mpsc::Sender<Receipt>| {
        if args.lines {
            let lines = source.lines(PAYLOAD_BYTES_MAX)?;
            return publish_lines(client, lines, |line| Ok(message(&args, route, line)), receipts)
                .await;
        }
        let receipt = client.publish(message(&args, route, source.whole().await?)).await?;
        // The printer has gone only if it failed, and then says why itself.
        let _ = receipts.send(receipt).await;
        Ok(())
    };
    block_on(publish(&args.to, told, target, output, feed))
}

/// What is told of the messages published, besides their ids.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// That every receiver has acked.
    pub(super) wait: bool,
    /// In which line something failed.
    pub(super) lines: bool,
}

/// Publishes to some receivers what `feed` brings, and prints what became of it.
pub(super) async fn publish(
    to: &[Name],
    told: Told,
    target: &Target,
    output: Output,
    feed: impl AsyncFnOnce(&Client, &Route, mpsc::Sender<Receipt>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let client = target.connect_producer().await?;
    let route = client.route(to)?;
    let (receipts, received) = mpsc::channel(RECEIPTS_MAX);
    let printer = Printer {
        client: client.clone(),
        output,
        timeout: target.timeout,
        told,
        refusals: 0,
        page: String::new(),
    };
    let outcome = both(feed(&client, &route, receipts), printer.run(received)).await;
    client.close().await;
    outcome
}

/// Publishes and prints until both are done, or printing fails: then nothing more is published.
async fn both(
    publishing: impl Future<Output = Result<(), Failure>>,
    printing: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    tokio::pin!(publishing, printing);
    tokio::select! {
        published = &mut publishing => {
            // What was confirmed before a failure is still printed.
            let printed = printing.await;
            published.and(printed)
        }
        printed = &mut printing => {
            printed?;
            publishing.await
        }
    }
}

/// A message as the options say.
fn message(args: &Args, route: &Route, payload: Bytes) -> Publish {
    let mut publish = Publish::via(route).payload(payload);
    for (name, value) in &args.headers {
        publish = publish.header(name, value);
    }
    if let Some(key) = &args.key {
        publish = publish.key(key.clone());
    }
    if let Some(ttl) = args.ttl {
        publish = publish.ttl(ttl);
    }
    if let Some(delay) = args.delay {
        publish = publish.delay(delay);
    }
    if let Some(at) = args.deliver_at {
        publish = publish.deliver_at(UNIX_EPOCH + Duration::from_millis(at.0));
    }
    if args.all_or_nothing { publish.all_or_nothing() } else { publish }
}

/// Publishes what `read` makes of each line.
pub(super) async fn publish_lines(
    client: &Client,
    mut lines: mpsc::Receiver<Result<Vec<Bytes>, Failure>>,
    read: impl Fn(Bytes) -> Result<Publish, Failure>,
    receipts: mpsc::Sender<Receipt>,
) -> Result<(), Failure> {
    let mut number: u64 = 0;
    while let Some(batch) = lines.recv().await {
        for line in batch? {
            number += 1;
            let at_line = |failure: Failure| at_line(number, &failure);
            let publish = read(line).map_err(at_line)?;
            let receipt = client.publish(publish).await.map_err(|error| at_line(error.into()))?;
            if receipts.send(receipt).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A line that cannot be published ends the run; what came before it is published.
fn at_line(number: u64, failure: &Failure) -> Failure {
    let what = format!("line {number}: {failure}; neither it nor any line after it was published");
    Failure::new(failure.exit, what)
}

/// A line whose outcome does not come ends the run, and what follows it has not been asked for.
fn unknown(number: u64, error: PublishError) -> Failure {
    let failure = Failure::from(error);
    let what =
        format!("line {number}: {failure}; every line after it may or may not have been published");
    Failure::new(failure.exit, what)
}

/// Awaits receipts in order and prints their ids.
struct Printer {
    client: Client,
    output: Output,
    timeout: Duration,
    told: Told,
    /// Messages refused, wholly or for some receivers.
    refusals: u64,
    /// Printed whenever the next receipt is not there yet.
    page: String,
}

const PAGE_BYTES: usize = 64 * 1024;

impl Printer {
    async fn run(mut self, mut receipts: mpsc::Receiver<Receipt>) -> Result<(), Failure> {
        let mut number: u64 = 0;
        loop {
            let receipt = match receipts.recv().now_or_never() {
                Some(receipt) => receipt,
                None => {
                    self.flush()?;
                    receipts.recv().await
                }
            };
            let Some(mut receipt) = receipt else { break };
            number += 1;
            let outcome = match (&mut receipt).now_or_never() {
                Some(outcome) => outcome,
                None => {
                    self.flush()?;
                    receipt.within(self.timeout).await
                }
            };
            self.tell(number, outcome).await?;
        }
        self.flush()?;
        match self.refusals {
            0 => Ok(()),
            1 if number == 1 => Err(Failure::new(Exit::Refused, "")),
            refused => {
                let what =
                    format!("{refused} of {number} messages were refused, wholly or in part");
                Err(Failure::new(Exit::Refused, what))
            }
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        print(&std::mem::take(&mut self.page))
    }

    async fn tell(
        &mut self,
        number: u64,
        outcome: Result<Confirmed, PublishError>,
    ) -> Result<(), Failure> {
        match outcome {
            Ok(Confirmed { id, refused, detail }) => {
                self.line(number, Some(id), &refused);
                if !refused.is_empty() {
                    self.refused(number, &named(&refused), &detail);
                }
                if self.told.wait {
                    self.flush()?;
                    self.await_acks(id).await?;
                }
            }
            Err(PublishError::Refused(why)) => {
                self.line(number, None, &why.receivers);
                let mut reasons = named(&why.receivers);
                if reasons.is_empty() {
                    reasons.push((None, why.code));
                }
                self.refused(number, &reasons, &why.detail);
            }
            Err(error) => {
                self.flush()?;
                return Err(if self.told.lines { unknown(number, error) } else { error.into() });
            }
        }
        if self.page.len() >= PAGE_BYTES { self.flush() } else { Ok(()) }
    }

    fn line(&mut self, number: u64, id: Option<MessageId>, refused: &[(Name, Code)]) {
        // Writing into a String cannot fail.
        let _ = match (self.output.json_asked, id) {
            (false, None) => Ok(()),
            (false, Some(id)) => writeln!(self.page, "{id}"),
            (true, id) => {
                let refused: serde_json::Map<String, serde_json::Value> =
                    refused.iter().map(|(name, code)| (name.to_string(), json!(code))).collect();
                let line = json!({ "message": number, "id": id, "refused": refused });
                writeln!(self.page, "{line}")
            }
        };
    }

    fn refused(&mut self, number: u64, reasons: &[(Option<&Name>, Code)], detail: &str) {
        self.refusals += 1;
        if self.refusals > TOLD_MAX {
            return;
        }
        for (name, code) in reasons {
            let whom = name.map_or_else(String::new, |name| format!(" for {name}"));
            let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
            note(&format!("message {number}{whom}: {code}{detail}; {}", code.remedy()));
        }
    }

    /// Asks until every receiver is done with the message.
    async fn await_acks(&self, id: MessageId) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = Duration::from_millis(2);
        loop {
            let status = self.client.message(id).await?;
            let waiting = still_waiting(&status)?;
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() + pause > deadline {
                let what = format!("{id} is not acked yet by {}", printable(&waiting.join(", ")));
                return Err(Failure::new(Exit::TimedOut, what));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }
}

fn named(refused: &[(Name, Code)]) -> Vec<(Option<&Name>, Code)> {
    refused.iter().map(|(name, code)| (Some(name), *code)).collect()
}

/// The receivers that have not acked; an error if one never will.
fn still_waiting(status: &MessageStatus) -> Result<Vec<String>, Failure> {
    let mut waiting = Vec::new();
    for receiver in &status.receivers {
        let name = &receiver.receiver;
        let ended = match &receiver.state {
            MessageState::Acked { .. } | MessageState::Replayed { .. } => continue,
            MessageState::Delayed { .. }
            | MessageState::Queued
            | MessageState::InFlight { .. }
            | MessageState::Retrying { .. } => {
                waiting.push(name.clone());
                continue;
            }
            MessageState::Parked { reason, .. } => format!("parked: {reason}"),
            MessageState::Expired { .. } => "expired".to_owned(),
            MessageState::Purged { .. } => "purged".to_owned(),
            MessageState::Moved { to, .. } => format!("moved to {to}"),
            MessageState::Done => {
                let what = "is done, and whether it was acked is no longer kept";
                let what = format!("{} {what}: {name}", status.id);
                return Err(Failure::new(Exit::Failed, what));
            }
        };
        let what = format!("{} was not acked by {name}: {ended}", status.id);
        return Err(Failure::new(Exit::Failed, what));
    }
    Ok(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_that_does_not_come_is_told_with_its_line_and_what_follows_it() {
        let failure = unknown(7, PublishError::TimedOut { timeout: Duration::from_secs(30) });
        assert_eq!(failure.exit, Exit::TimedOut);
        assert!(failure.message.starts_with("line 7: no outcome within 30s"), "{failure}");
        assert!(
            failure.message.ends_with("every line after it may or may not have been published")
        );
    }
}
