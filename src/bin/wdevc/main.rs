//! `wdevc`: the words of WalB's device control tool, for volumes of Walkeep (guide: "Volumes").
//!
//! `/dev/walb/NAME` and `NAME` mean the volume NAME of the home that `WALKEEP_HOME` or the default
//! says. Exit status: 0, or 1 for whatever went wrong, wrong usage included, as scripts know it.

mod act;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Result<Vec<String>, _> = std::env::args_os()
        .skip(1)
        .map(std::ffi::OsString::into_string)
        .collect();
    let done = match arguments {
        Ok(arguments) => words::parse(&arguments)
            .map_err(anyhow::Error::msg)
            .and_then(act::run),
        Err(bad) => Err(anyhow::anyhow!("{bad:?}: expected UTF-8")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wdevc: {error:#}");
            ExitCode::FAILURE
        }
    }
}
