//! `serve`: runs a node until it is told to stop.

use super::config::Settings;
use super::{Exit, Failure};
use crate::node::NodeError;
use crate::{logging, node};
use restante_actors::events;
use std::sync::Arc;

/// Run a broker node
///
/// Needs no configuration: the journal goes to ./restante-data, clients connect to 127.0.0.1:7700.
/// SIGTERM or Ctrl-C stops it in order; what was confirmed is delivered by the next start.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let effective = args.settings.load()?;
    let (log, _guard) =
        logging::start(&effective.config).map_err(|error| Failure::new(Exit::Failed, error))?;
    for variable in &effective.unknown_variables {
        events::variable_ignored(variable);
    }
    let set_filter = move |filter: &str| log.set_filter(filter);
    node::run(effective.config, Arc::new(set_filter)).map_err(|error| {
        // In the log too: who collects it may not see what else is said on standard error.
        events::node_failed(error.word(), &error.to_string());
        Failure::from(error)
    })
}

impl From<NodeError> for Failure {
    fn from(error: NodeError) -> Failure {
        let exit = if error.is_data_dir() { Exit::DataDirectory } else { Exit::Failed };
        Failure::new(exit, format_args!("{}: {error}", error.word()))
    }
}
