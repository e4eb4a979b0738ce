//! `group`: names for sets of receivers.

use super::node::{Target, block_on, change};
use super::output::{Output, Paint, Table, note, print};
use super::{Exit, Failure};
use restante_client::Client;
use restante_protocol::admin::AdminCommand;
use restante_protocol::name::Name;

#[derive(clap::Subcommand)]
pub(super) enum Verb {
    /// List all groups
    Ls,
    /// Show the members of a group
    Info {
        /// Its name
        group: Name,
    },
    /// Add a group; what is published to it goes to each of its members
    Add {
        /// Its name, which no peer has
        group: Name,
        /// Its first members
        #[arg(value_name = "PEER")]
        members: Vec<Name>,
    },
    /// Change the members of a group, all at once
    Set {
        /// Its name
        group: Name,
        /// Who joins
        #[arg(long, value_name = "PEER,…", value_delimiter = ',')]
        add: Vec<Name>,
        /// Who leaves
        #[arg(long, value_name = "PEER,…", value_delimiter = ',')]
        remove: Vec<Name>,
        #[command(flatten)]
        condition: Condition,
    },
    /// Remove a group; its members and what waits for them stay
    Rm {
        /// Its name
        group: Name,
        #[command(flatten)]
        condition: Condition,
    },
}

/// A change that is made only to what the operator has seen.
#[derive(clap::Args)]
pub(super) struct Condition {
    /// Only if this is the group's version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

pub(super) fn run(verb: Verb, target: &Target, output: Output) -> Result<(), Failure> {
    if let Verb::Set { add, remove, .. } = &verb
        && add.is_empty()
        && remove.is_empty()
    {
        let what = "group set: expected somebody to --add or --remove";
        return Err(Failure::new(Exit::Usage, what));
    }
    block_on(async {
        let client = target.connect().await?;
        let (command, what) = match verb {
            Verb::Ls => return list(&client, output).await,
            Verb::Info { group } => return info(&client, group, output).await,
            Verb::Add { group, members } => {
                (AdminCommand::GroupAdd { name: group, members }, "added")
            }
            Verb::Set { group, add, remove, condition: Condition { if_version } } => {
                (AdminCommand::GroupSet { name: group, if_version, add, remove }, "changed")
            }
            Verb::Rm { group, condition: Condition { if_version } } => {
                (AdminCommand::GroupRemove { name: group, if_version }, "removed")
            }
        };
        change(&client, command, "group", what, output).await
    })
}

async fn list(client: &Client, output: Output) -> Result<(), Failure> {
    let groups = client.groups().await?;
    if output.json {
        let lines: Result<Vec<_>, _> = groups.iter().map(Output::json_line).collect();
        return print(&lines?.concat());
    }
    let mut table = Table::new(output, &["NAME", "MEMBERS", "VERSION"]);
    for group in &groups {
        table.row(vec![
            (Some(Paint::Bold), group.name.to_string()),
            (None, group.members.to_string()),
            (None, group.version.to_string()),
        ]);
    }
    print(&table.render())
}

async fn info(client: &Client, group: Name, output: Output) -> Result<(), Failure> {
    let info = client.group(group).await?;
    if output.json {
        return print(&Output::json_line(&info)?);
    }
    let mut table = Table::new(output, &["MEMBER"]);
    for member in &info.members {
        table.row(vec![(None, member.to_string())]);
    }
    print(&table.render())?;
    note(&format!("{} members, version {}", info.members.len(), info.version));
    Ok(())
}
