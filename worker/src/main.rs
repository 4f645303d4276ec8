//! `penstock`: runs, checks and explains jobs on one machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    penstock_worker::cli::main()
}
