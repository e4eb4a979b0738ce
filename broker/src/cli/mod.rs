//! The command line. One file a verb; each builds on the client library and prints through
//! [`output`]. Data goes to standard output, everything said to a person to standard error.
//!
//! Exit codes: see [`Exit`]; `restante --help` lists them.

mod backup;
mod bench;
mod call;
mod child;
mod class;
mod config;
mod delivery;
mod demo;
mod exec;
mod exit;
mod group;
mod import;
mod input;
mod jobs;
mod journal;
mod log_level;
mod message;
mod node;
mod output;
mod peer;
mod publish;
mod rates;
mod receive;
mod serve;
mod show;
mod status;
mod stored;
mod usage;
mod values;
mod watch;

pub use exit::{Exit, Failure};
pub(crate) use output::color_wanted;

use clap::{CommandFactory, Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

const EXIT_CODES: &str = "\
Exit codes:
  0 done   1 failed   2 usage or configuration   3 cannot connect   4 not allowed
  5 refused by the node, wholly or for some receivers   6 not found   7 timed out
  8 data directory unusable   141 whoever read the output has gone

The node is found by --server, else RESTANTE_SERVER, else 127.0.0.1:7700.";

/// Heads the options that every verb has.
const EVERYWHERE: &str = "Options of every command";

/// A message broker that never drops a message.
#[derive(Parser)]
#[command(name = "restante", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(clap::Args, Clone, Debug)]
struct Global {
    #[command(flatten)]
    target: node::Target,
    /// Print one JSON object a line, also on a terminal
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
}

impl Global {
    fn output(&self) -> Output {
        Output::choose(self.json)
    }
}

#[derive(Subcommand)]
enum Verb {
    Serve(serve::Args),
    Demo(demo::Args),
    Pub(publish::Args),
    Sub(receive::Args),
    Call(call::Args),
    /// See and change the node's receivers
    #[command(subcommand)]
    Peer(peer::Verb),
    /// See and change groups: names for sets of receivers
    #[command(subcommand)]
    Group(group::Verb),
    /// See and change classes: names for rates that several receivers share
    #[command(subcommand)]
    Class(class::Verb),
    /// See what has become of a message
    #[command(subcommand)]
    Message(message::Verb),
    /// The node at a glance; exit code 5 and the reason while it takes no publishes
    Status,
    Watch(watch::Args),
    LogLevel(log_level::Args),
    Bench(Box<bench::Args>),
    #[command(subcommand)]
    Journal(journal::Verb),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    /// Check or show the configuration a node would run with
    #[command(subcommand)]
    Config(config::Verb),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs the program with this process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage::tell(error).into(),
    };
    match run(cli) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                output::note(&failure.line());
            }
            failure.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let (target, output) = (&cli.global.target, cli.global.output());
    match cli.verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Demo(args) => demo::run(&args, output),
        Verb::Pub(args) => publish::run(args, target, output),
        Verb::Sub(args) => receive::run(args, target, output),
        Verb::Call(args) => call::run(args, target, output),
        Verb::Peer(verb) => peer::run(verb, target, output),
        Verb::Group(verb) => group::run(verb, target, output),
        Verb::Class(verb) => class::run(verb, target, output),
        Verb::Message(verb) => message::run(verb, target, output),
        Verb::Status => status::run(target, output),
        Verb::Watch(args) => watch::run(&args, target, output),
        Verb::LogLevel(args) => log_level::run(args, target),
        Verb::Bench(args) => bench::run(*args, target, output),
        Verb::Config(verb) => config::run(verb, output),
        Verb::Journal(verb) => journal::run(verb, output),
        Verb::Backup(args) => backup::take(&args, target, output),
        Verb::Restore(args) => backup::lay_out(&args, output),
        Verb::Completions { shell } => completions(shell),
    }
}

/// The verbs there are, as they are typed.
#[must_use]
pub fn verbs() -> Vec<String> {
    Cli::command().get_subcommands().map(|verb| verb.get_name().to_owned()).collect()
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "restante", &mut script);
    output::print_bytes(&script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
