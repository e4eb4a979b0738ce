//! The `restante` program with the fault hooks that release builds do not contain.

use rustix::process::{Signal, set_parent_process_death_signal};
use std::process::ExitCode;

/// Set by tests for the nodes they start: one that outlives its test would hold ports and disk.
const DIES_WITH_PARENT: &str = "DIES_WITH_PARENT";

fn main() -> ExitCode {
    if std::env::var_os(DIES_WITH_PARENT).is_some() {
        // Where the system has no such thing, tests that are killed leave their nodes behind.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    restante::cli::main()
}
