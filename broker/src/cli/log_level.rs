//! `log-level`: changes what a running node logs.

use super::Failure;
use super::node::{Target, block_on};
use super::output::note;
use restante_client::{RequestError, protocol::control::Reply, protocol::control::Request};

/// Change what a running node logs, at once
///
/// It holds until the node restarts; the setting `log_filter` says how it starts. The change itself
/// stands in the log, with who made it.
#[derive(clap::Args)]
pub(super) struct Args {
    /// error, warn, info, debug, trace or off; or levels by module like info,restante=debug
    filter: String,
}

pub(super) fn run(args: Args, target: &Target) -> Result<(), Failure> {
    block_on(async {
        let client = target.connect().await?;
        let filter = args.filter;
        match client.request(Request::LogFilter { filter: filter.clone() }).await? {
            Reply::Done => note(&format!("the node logs at {filter} until it restarts")),
            _ => return Err(RequestError::WrongReply.into()),
        }
        Ok(())
    })
}
