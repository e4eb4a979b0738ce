//! Restante beside other brokers; see `tests/bench` and `versus` in the library of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    restante_tests::versus::main()
}
