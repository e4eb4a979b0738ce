//! `class`: names for rates that several peers share.

use super::node::{Target, block_on, change};
use super::output::{Output, Paint, Table, print};
use super::rates::RateArgs;
use super::{Exit, Failure};
use restante_client::Client;
use restante_protocol::admin::AdminCommand;
use restante_protocol::name::Name;
use restante_protocol::shaper::{Rate, RatesPatch};

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List all classes, with their rates and how many peers are in each
    Ls,
    /// Add a class: its rates are those of all its peers together; peers are put into it by peer set --class
    Add {
        /// Its name
        class: Name,
        #[command(flatten)]
        rates: RateArgs,
    },
    /// Change the rates of a class; they hold at once
    Set {
        /// Its name
        class: Name,
        #[command(flatten)]
        rates: RateArgs,
        #[command(flatten)]
        condition: Condition,
    },
    /// Remove a class that has no peers
    Rm {
        /// Its name
        class: Name,
        #[command(flatten)]
        condition: Condition,
    },
}

/// A change that is made only to what the operator has seen.
#[derive(clap::Args)]
pub(super) struct Condition {
    /// Only if this is the class's version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

pub(super) fn run(verb: Verb, target: &Target, output: Output) -> Result<(), Failure> {
    if let Verb::Set { rates, .. } = &verb
        && RatesPatch::from(rates.clone()).is_empty()
    {
        let what = "class set: expected something to change; see restante class set --help";
        return Err(Failure::new(Exit::Usage, what));
    }
    block_on(async {
        let client = target.connect().await?;
        let (command, what) = match verb {
            Verb::Ls => return list(&client, output).await,
            Verb::Add { class, rates } => {
                (AdminCommand::ClassAdd { name: class, rates: rates.into() }, "added")
            }
            Verb::Set { class, rates, condition: Condition { if_version } } => {
                let rates = rates.into();
                (AdminCommand::ClassSet { name: class, if_version, rates }, "changed")
            }
            Verb::Rm { class, condition: Condition { if_version } } => {
                (AdminCommand::ClassRemove { name: class, if_version }, "removed")
            }
        };
        change(&client, command, "class", what, output).await
    })
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let classes = client.classes().await?;
    if output.json {
        let lines: Result<Vec<_>, _> = classes.iter().map(Output::json_line).collect();
        return print(&lines?.concat());
    }
    let mut table = Table::new(output, &["NAME", "PEERS", "MESSAGES/s", "BYTES/s", "VERSION"]);
    for class in &classes {
        table.row(vec![
            (Some(Paint::Bold), class.name.to_string()),
            (None, class.peers.to_string()),
            (None, rate(class.rates.messages)),
            (None, rate(class.rates.bytes)),
            (None, class.version.to_string()),
        ]);
    }
    print(&table.render())
}

/// What is guaranteed, and the most there is.
fn rate(rate: Rate) -> String {
    match rate {
        Rate { rate: 0, ceil: 0, .. } => "-".to_owned(),
        Rate { rate: 0, ceil, .. } => format!("at most {ceil}"),
        Rate { rate, ceil: 0, .. } => rate.to_string(),
        Rate { rate, ceil, .. } => format!("{rate}, at most {ceil}"),
    }
}
