//! The `walkeep` command: parses arguments, calls `walkeep-store`, prints what came of it.
//!
//! Exit status: 0 all is well, 1 the data is bad or the work failed, 2 wrong usage.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use walkeep_store::volume::ControlError;

fn main() -> ExitCode {
    walkeep_store::share_heaps();
    match cli::Command::parse().run() {
        Ok(cli::Outcome::Sound) => ExitCode::SUCCESS,
        Ok(cli::Outcome::Incomplete) => ExitCode::FAILURE,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("walkeep: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The reader of our output has seen enough, as `head` does. A volume's server that hung up is
/// another matter: what it was asked for did not happen.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    if error.chain().any(|cause| cause.is::<ControlError>()) {
        return false;
    }
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
