//! `peer`: what the node knows of its receivers, and changes to them.

use super::import;
use super::jobs::{self, Asked};
use super::node::{Target, block_on};
use super::output::{Output, Paint, Table, note, print};
use super::rates::RateArgs;
use super::show::{self, PEER_HEAD};
use super::stored::{self, Chosen, Most, Pages};
use super::values::{self, MillisList};
use super::{Exit, Failure};
use restante_client::Client;
use restante_protocol::admin::{AdminCommand, ClassChoice, Order, PeerPatch, PeerUrl, Waiting};
use restante_protocol::name::Name;
use restante_protocol::shaper::RatesPatch;
use restante_protocol::status::{PeerInfo, Taking};
use restante_protocol::stored::{Filter, Lane};
use serde_json::Value;
use std::time::Duration;

/// How long `drain --wait` waits between its questions, at first and at most.
const DRAIN_PAUSE_MIN: Duration = Duration::from_millis(20);
const DRAIN_PAUSE_MAX: Duration = Duration::from_secs(1);

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List all peers and how they are
    Ls,
    /// Show one peer with its settings; NAME#ID shows a removed one
    Info {
        /// Its name
        name: String,
    },
    /// Add a peer
    Add {
        /// Its name: letters, digits and . _ - @ : +, at most 128 bytes
        name: Name,
        /// tcp://HOST:PORT, which the node dials, or attach:, where the receiver dials in
        url: PeerUrl,
        #[command(flatten)]
        settings: Settings,
    },
    /// Change some of a peer's settings
    Set {
        /// Its name
        name: Name,
        /// A new address
        #[arg(long)]
        url: Option<PeerUrl>,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        condition: Condition,
    },
    /// Remove a peer; refused while messages wait, unless told what becomes of them
    Rm {
        /// Its name
        name: Name,
        #[command(flatten)]
        waiting: Fate,
        #[command(flatten)]
        condition: Condition,
    },
    /// List what waits for a peer, without taking it
    Peek {
        /// Its name
        name: String,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        most: Most,
    },
    /// List what is set aside for a peer: since when, after how many attempts and why
    Parked {
        /// Its name, NAME#ID for a removed one
        name: String,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        most: Most,
    },
    /// Put parked messages at the end of the queue again, under their ids
    ///
    /// The node does it and keeps the rate, also when this command is ended; `peer cancel` ends it.
    Replay {
        /// Its name, NAME#ID for a removed one
        name: String,
        /// Into another peer's queue
        #[arg(long, value_name = "NAME")]
        to: Option<Name>,
        /// At most so many a second, as in 50/s
        #[arg(long, value_name = "N/s", value_parser = jobs::rate)]
        rate: Option<u32>,
        #[command(flatten)]
        asked: Asked,
    },
    /// Delete parked messages; each keeps a ledger record
    Purge {
        /// Its name, NAME#ID for a removed one
        name: String,
        /// They are to be deleted: without it they are only listed
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// End the replay or purge that is under way; what it has done stays done
    Cancel {
        /// Its name, NAME#ID for a removed one
        name: String,
    },
    /// Print stored messages whole, one JSON object a line; they stay where they are
    Export {
        /// Its name, NAME#ID for a removed one
        name: String,
        #[command(flatten)]
        lanes: Lanes,
        #[command(flatten)]
        chosen: Chosen,
    },
    /// Publish exported messages to a peer, in their order, and print their new ids
    ///
    /// Key, headers and payload of each are taken over. A message that is refused is named with its
    /// line, and those after it are published all the same.
    Import {
        /// Whom they are for, a peer or a group
        name: Name,
        /// What peer export wrote; - (the default) for standard input
        file: Option<String>,
    },
    /// Deliver nothing to a peer until it is resumed; its messages wait
    Pause {
        /// Its name
        name: Name,
        #[command(flatten)]
        condition: Condition,
    },
    /// Accept nothing new for a peer until it is resumed; what waits is delivered
    Drain {
        /// Its name
        name: Name,
        /// Wait until nothing waits for it any more
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        condition: Condition,
    },
    /// Deliver to a paused peer again, and accept for a draining one
    Resume {
        /// Its name
        name: Name,
        #[command(flatten)]
        condition: Condition,
    },
}

#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct Lanes {
    /// Only what is set aside
    #[arg(long)]
    parked: bool,
    /// Only what waits
    #[arg(long)]
    waiting: bool,
}

/// How a peer is served. What is left out keeps its value, or the node's default.
#[derive(clap::Args, Clone)]
pub(super) struct Settings {
    /// Most messages in flight, 1 to 65536
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    window: Option<u32>,
    /// How few where answers come late: each late round halves the window down to this; 0: it stays as it is
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    window_min: Option<u32>,
    /// Most bytes in flight, 64KiB to 256MiB
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = values::bytes)]
    window_bytes: Option<u64>,
    /// How long an ack may take, 100ms to 1h; a bare number counts seconds, here and below
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION", value_parser = values::millis)]
    ack_timeout: Option<u64>,
    /// First wait after a failed connection, 10ms to 1h
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION", value_parser = values::millis)]
    backoff_min: Option<u64>,
    /// Longest wait between connection attempts, 100ms to 1d
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION", value_parser = values::millis)]
    backoff_max: Option<u64>,
    /// Waits after each refusal of a message, at most 32 of at most 7d; after the last it is parked
    #[arg(long, allow_hyphen_values = true, value_name = "DURATION,…", value_parser = values::millis_list)]
    retry_schedule: Option<MillisList>,
    /// What is promised about order
    #[arg(long, value_enum)]
    order: Option<OrderArg>,
    /// Most messages waiting or parked; 0 for the node's share for one peer
    #[arg(long, allow_hyphen_values = true, value_name = "N")]
    quota_messages: Option<u64>,
    /// Most bytes waiting or parked; 0 for the node's share for one peer
    #[arg(long, allow_hyphen_values = true, value_name = "SIZE", value_parser = values::bytes)]
    quota_bytes: Option<u64>,
    #[command(flatten)]
    rates: RateArgs,
    /// The class it is in, which has to be there; see restante class
    #[arg(long, value_name = "CLASS", conflicts_with = "no_class")]
    class: Option<Name>,
    /// It is in no class
    #[arg(long)]
    no_class: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(super) enum OrderArg {
    /// First attempts in order of acceptance; a retry may follow what was in flight already
    Sent,
    /// One in flight per key, so that order holds through retries
    Strict,
    /// No promise
    None,
}

/// A change that is made only to what the operator has seen.
#[derive(clap::Args)]
pub(super) struct Condition {
    /// Only if this is the peer's version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct Fate {
    /// Keep waiting messages, addressable as NAME#ID; what is delayed shares their fate when it is due
    #[arg(long)]
    park: bool,
    /// Delete waiting messages, with a ledger record for each
    #[arg(long)]
    purge: bool,
    /// Append waiting messages to another peer's queue
    #[arg(long, value_name = "NAME")]
    hand_to: Option<Name>,
}

impl From<Settings> for PeerPatch {
    fn from(settings: Settings) -> PeerPatch {
        PeerPatch {
            window_messages: settings.window,
            window_messages_min: settings.window_min,
            window_bytes: settings.window_bytes,
            ack_timeout_ms: settings.ack_timeout,
            backoff_ms_min: settings.backoff_min,
            backoff_ms_max: settings.backoff_max,
            retry_schedule_ms: settings.retry_schedule.map(|list| list.0),
            order: settings.order.map(|order| match order {
                OrderArg::Sent => Order::Sent,
                OrderArg::Strict => Order::Strict,
                OrderArg::None => Order::None,
            }),
            quota_messages: settings.quota_messages,
            quota_bytes: settings.quota_bytes,
            rates: Some(RatesPatch::from(settings.rates))
                .filter(|rates| !rates.is_empty())
                .map(Box::new),
            class: match settings.class {
                Some(class) => Some(ClassChoice::Of(class)),
                None => settings.no_class.then_some(ClassChoice::None),
            },
        }
    }
}

impl From<Fate> for Option<Waiting> {
    fn from(fate: Fate) -> Option<Waiting> {
        match fate {
            Fate { park: true, .. } => Some(Waiting::Park),
            Fate { purge: true, .. } => Some(Waiting::Purge),
            Fate { hand_to, .. } => hand_to.map(Waiting::HandTo),
        }
    }
}

pub(super) fn run(verb: Verb, target: &Target, output: Output) -> Result<(), Failure> {
    if let Verb::Set { url: None, settings, .. } = &verb
        && PeerPatch::from(settings.clone()) == PeerPatch::default()
    {
        let what = "peer set: expected something to change; see restante peer set --help";
        return Err(Failure::new(Exit::Usage, what));
    }
    block_on(async {
        let client = target.connect().await?;
        let command = match verb {
            Verb::Import { name, file } => return import::run(&name, file, target, output).await,
            Verb::Ls => return list(&client, output).await,
            Verb::Info { name } => return info(&client, name, output).await,
            Verb::Peek { name, chosen, most } => {
                let pages = Pages::new(&client, name, Lane::Waiting, chosen.into(), false);
                return stored::list(pages, most, output).await.map(drop);
            }
            Verb::Parked { name, chosen, most } => {
                let pages = Pages::new(&client, name, Lane::Parked, chosen.into(), false);
                return stored::list(pages, most, output).await.map(drop);
            }
            Verb::Replay { name, to, rate, asked } => {
                return jobs::replay(&client, name, to, rate, asked, output).await;
            }
            Verb::Purge { name, yes, asked } => {
                return jobs::purge(&client, name, yes, asked, output).await;
            }
            Verb::Cancel { name } => AdminCommand::PeerCancel { name },
            Verb::Export { name, lanes, chosen } => {
                return export(&client, name, lanes, chosen.into()).await;
            }
            Verb::Add { name, url, settings } => {
                AdminCommand::PeerAdd { name, url, settings: settings.into() }
            }
            Verb::Set { name, url, settings, condition: Condition { if_version } } => {
                AdminCommand::PeerSet { name, if_version, url, settings: settings.into() }
            }
            Verb::Rm { name, waiting, condition: Condition { if_version } } => {
                AdminCommand::PeerRemove { name, if_version, waiting: waiting.into() }
            }
            Verb::Pause { name, condition: Condition { if_version } } => {
                AdminCommand::PeerPause { name, if_version }
            }
            Verb::Drain { name, wait, condition: Condition { if_version } } => {
                let command = AdminCommand::PeerDrain { name: name.clone(), if_version };
                change(&client, command, output).await?;
                return if wait { drained(&client, &name).await } else { Ok(()) };
            }
            Verb::Resume { name, condition: Condition { if_version } } => {
                AdminCommand::PeerResume { name, if_version }
            }
        };
        change(&client, command, output).await
    })
}

async fn change(client: &Client, command: AdminCommand, output: Output) -> Result<(), Failure> {
    let what = match &command {
        AdminCommand::PeerAdd { .. } => "added",
        AdminCommand::PeerSet { .. } => "changed",
        AdminCommand::PeerPause { .. } => "paused",
        AdminCommand::PeerDrain { .. } => "draining",
        AdminCommand::PeerResume { .. } => "resumed",
        AdminCommand::PeerRemove { .. } => "removed",
        AdminCommand::PeerReplay { .. }
        | AdminCommand::PeerPurge { .. }
        | AdminCommand::PeerCancel { .. } => "is worked on no more",
        // `group` and `class` say these themselves.
        AdminCommand::GroupAdd { .. }
        | AdminCommand::GroupSet { .. }
        | AdminCommand::GroupRemove { .. }
        | AdminCommand::ClassAdd { .. }
        | AdminCommand::ClassSet { .. }
        | AdminCommand::ClassRemove { .. } => "changed",
    };
    let name = command.subject().to_owned();
    let done = client.admin(command).await?;
    if output.json_asked {
        return print(&Output::json_line(&done)?);
    }
    let messages = match done.messages {
        0 => String::new(),
        count => format!(", {count} messages with it"),
    };
    note(&format!("{name} {what} (peer {}, version {}){messages}", done.id.0, done.version));
    Ok(())
}

/// Asks until nothing waits for a draining peer; it is an error if it is resumed or removed meanwhile.
async fn drained(client: &Client, name: &Name) -> Result<(), Failure> {
    let mut pause = DRAIN_PAUSE_MIN;
    let mut told = false;
    loop {
        let status = client.peer(name.as_str()).await?.status;
        if status.delayed > 0 && !told {
            // That may take a year.
            note(&format!("{} messages are delayed, and come when they are due", status.delayed));
            told = true;
        }
        match status.taking {
            Taking::Drained => {
                note(&format!("{name} is drained, {} messages are parked", status.parked));
                return Ok(());
            }
            Taking::Open => {
                let what = format!("{name} has been resumed, and takes messages again");
                return Err(Failure::new(Exit::Refused, what));
            }
            Taking::Draining => {}
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(DRAIN_PAUSE_MAX);
    }
}

async fn export(
    client: &Client,
    name: String,
    lanes: Lanes,
    filter: Filter,
) -> Result<(), Failure> {
    let mut written = 0;
    // A reason is of parked messages alone.
    let waiting = !lanes.parked && (lanes.waiting || filter.reason.is_none());
    for (lane, wanted) in [(Lane::Waiting, waiting), (Lane::Parked, !lanes.waiting)] {
        if wanted {
            let pages = Pages::new(client, name.clone(), lane, filter.clone(), true);
            written += stored::export(client, pages).await?;
        }
    }
    note(&format!("{written} messages exported"));
    Ok(())
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let mut peers = client.peers().await?;
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    if output.json {
        let lines: Result<Vec<_>, _> = peers.iter().map(Output::json_line).collect();
        return print(&lines?.concat());
    }
    let mut table = Table::new(output, PEER_HEAD);
    let now = show::now();
    for peer in &peers {
        table.row(show::peer(peer, now));
    }
    print(&table.render())
}

async fn info(client: &Client, name: String, output: Output) -> Result<(), Failure> {
    let info = client.peer(name).await?;
    if output.json {
        return print(&Output::json_line(&info)?);
    }
    print(&as_text(&info, output)?)
}

/// Every field of status and settings on a line of its own, under the name it has in JSON.
fn as_text(info: &PeerInfo, output: Output) -> Result<String, Failure> {
    let mut table = Table::new(output, &["FIELD", "VALUE"]);
    let whole = serde_json::to_value(info).map_err(std::io::Error::from)?;
    let status = whole.get("status").and_then(Value::as_object).into_iter().flatten();
    let settings = whole.get("settings").and_then(Value::as_object).into_iter().flatten();
    let outlook = whole.get("outlook").and_then(Value::as_object).into_iter().flatten();
    for (field, value) in status.chain(outlook).chain(settings) {
        table.row(vec![(Some(Paint::Bold), field.clone()), (None, field_text(field, value))]);
    }
    for (field, limit) in [("messages", info.quota.messages), ("bytes", info.quota.bytes)] {
        let text = if limit == 0 { "none".to_owned() } else { limit.to_string() };
        table.row(vec![(Some(Paint::Bold), format!("quota in effect, {field}")), (None, text)]);
    }
    table.row(vec![(Some(Paint::Bold), "restarts".to_owned()), (None, info.restarts.to_string())]);
    Ok(table.render())
}

fn field_text(field: &str, value: &Value) -> String {
    let time = ["since", "next_attempt", "oldest", "drained", "full"].contains(&field);
    match value {
        Value::String(text) => text.clone(),
        Value::Number(ms) if time => {
            restante_protocol::time::WallMillis(ms.as_u64().unwrap_or_default()).to_string()
        }
        value => value.to_string(),
    }
}
