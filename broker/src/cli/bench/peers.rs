//! The peers a run brings and takes away again.

use super::super::{Exit, Failure};
use super::wire::Link;
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerUrl, Waiting};
use restante_protocol::control::Request;
use restante_protocol::name::Name;
use restante_protocol::refusal::Code;

/// What all peers of all runs begin with.
const PREFIX: &str = "bench-";

/// `bench-0`, `bench-1`, …
pub(super) fn names(count: u32) -> Result<Vec<Name>, Failure> {
    let name = |number| format!("{PREFIX}{number}").parse::<Name>();
    let bad = |error| Failure::new(Exit::Failed, format_args!("{PREFIX}: {error}"));
    (0..count).map(|number| name(number).map_err(bad)).collect()
}

/// Adds peers of one kind, in the place of those of an earlier run that was cut off.
pub(super) async fn add(
    link: &mut Link,
    names: &[Name],
    url: &PeerUrl,
    settings: &PeerPatch,
) -> Result<(), Failure> {
    let requests = |names: &[Name]| -> Vec<Request> {
        let add = |name: &Name| {
            let (name, url, settings) = (name.clone(), url.clone(), settings.clone());
            Request::Admin(AdminCommand::PeerAdd { name, url, settings })
        };
        names.iter().map(add).collect()
    };
    let mut left_over = Vec::new();
    for (name, answer) in names.iter().zip(link.ask(requests(names)).await?) {
        match answer {
            Err(refusal) if refusal.code == Code::NameTaken => left_over.push(name.clone()),
            answer => drop(answer?),
        }
    }
    remove(link, &left_over).await?;
    for answer in link.ask(requests(&left_over)).await? {
        answer?;
    }
    Ok(())
}

/// Removes peers and what waits for them. One that is not there is no failure.
pub(super) async fn remove(link: &mut Link, names: &[Name]) -> Result<(), Failure> {
    let requests = names.iter().map(|name| {
        let (name, waiting) = (name.clone(), Some(Waiting::Purge));
        Request::Admin(AdminCommand::PeerRemove { name, if_version: None, waiting })
    });
    for answer in link.ask(requests).await? {
        match answer {
            Err(refusal) if refusal.code == Code::NotFound => {}
            answer => drop(answer?),
        }
    }
    Ok(())
}
