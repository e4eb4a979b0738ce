//! `peer replay|purge|cancel`: what an operator does about what is parked.
//!
//! The node carries a job out and keeps its rate. The command only looks how far it has come: ending
//! the command does not end the job.

use super::output::{Output, note, print};
use super::stored::{Chosen, Most, Pages, list};
use super::{Exit, Failure};
use restante_client::Client;
use restante_protocol::admin::{AdminCommand, AdminDone};
use restante_protocol::control::{Reply, Request};
use restante_protocol::job::JobStatus;
use restante_protocol::name::Name;
use restante_protocol::stored::{Filter, Lane};
use std::time::Duration;

/// How a job is asked for.
#[derive(clap::Args)]
pub(super) struct Asked {
    #[command(flatten)]
    pub(super) chosen: Chosen,
    /// Only list and count which messages it would be
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not wait for its end
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Only if this is the peer's version
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<u64>,
}

/// `50/s`, or `50`.
pub(super) fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().map_err(|_| format!("expected messages a second, like 50/s, got {text:?}"))
}

/// How often the node is asked how far it is.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_millis(500);

pub(super) async fn replay(
    client: &Client,
    name: String,
    to: Option<Name>,
    rate: Option<u32>,
    asked: Asked,
    output: Output,
) -> Result<(), Failure> {
    let Asked { chosen, dry_run, no_wait, if_version } = asked;
    let filter = Filter::from(chosen);
    if dry_run {
        let count = would(client, name, filter, output).await?;
        let time = rate.map_or_else(String::new, |rate| {
            format!(", which takes {} s", count.div_ceil(u64::from(rate.max(1))))
        });
        note(&format!("{count} messages would be replayed{time}"));
        return Ok(());
    }
    let command = AdminCommand::PeerReplay { name: name.clone(), if_version, to, filter, rate };
    let begun = client.admin(command).await?;
    carry_out(client, name, begun, no_wait, "replayed", output).await
}

pub(super) async fn purge(
    client: &Client,
    name: String,
    yes: bool,
    asked: Asked,
    output: Output,
) -> Result<(), Failure> {
    let Asked { chosen, dry_run, no_wait, if_version } = asked;
    let filter = Filter::from(chosen);
    if dry_run || !yes {
        let count = would(client, name, filter, output).await?;
        note(&format!("{count} messages would be purged"));
        return match dry_run {
            true => Ok(()),
            false => Err(Failure::new(Exit::Usage, "purged messages do not come back: say --yes")),
        };
    }
    let command = AdminCommand::PeerPurge { name: name.clone(), if_version, filter };
    let begun = client.admin(command).await?;
    carry_out(client, name, begun, no_wait, "purged", output).await
}

async fn would(
    client: &Client,
    name: String,
    filter: Filter,
    output: Output,
) -> Result<u64, Failure> {
    list(Pages::new(client, name, Lane::Parked, filter, false), Most::ALL, output).await
}

/// Says how far it is until it is over.
async fn carry_out(
    client: &Client,
    name: String,
    begun: AdminDone,
    no_wait: bool,
    what: &str,
    output: Output,
) -> Result<(), Failure> {
    if no_wait {
        if output.json_asked {
            return print(&Output::json_line(&begun)?);
        }
        note(&format!("job {} is under way for {name}", begun.job.unwrap_or_default()));
        return Ok(());
    }
    let mut pause = LOOK_MIN;
    let mut told = (0, String::new());
    loop {
        let status = job(client, &name).await?.filter(|status| Some(status.job) == begun.job);
        let Some(status) = status else {
            let lost =
                "it is over, and the node has been restarted since: see its log for how many";
            return Err(Failure::new(Exit::Failed, lost));
        };
        if status.ended.is_some() {
            return over(&status, what, output);
        }
        let now = (status.messages, status.why);
        if output.terminal && now != told {
            let waits = match now.1.as_str() {
                "" => String::new(),
                why => format!("; waits: {why}"),
            };
            note(&format!("{} messages {what} so far{waits}", now.0));
            told = now;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
    }
}

fn over(status: &JobStatus, what: &str, output: Output) -> Result<(), Failure> {
    if output.json_asked {
        print(&Output::json_line(status)?)?;
    }
    let said = format!("{} messages {what}", status.messages);
    if status.why.is_empty() {
        note(&said);
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format_args!("{said}, then it was over: {}", status.why)))
}

async fn job(client: &Client, name: &str) -> Result<Option<JobStatus>, Failure> {
    match client.request(Request::Job { peer: name.to_owned() }).await? {
        Reply::Job(job) => Ok(job.map(|job| *job)),
        _ => Err(Failure::new(Exit::Failed, "the node did not answer about a job")),
    }
}
