//! The `restante` program with the fault hooks that release builds do not contain.

use std::process::ExitCode;

fn main() -> ExitCode {
    restante::cli::main()
}
