//! Mistakes with files that are caught before any work.

use std::path::Path;

use anyhow::{Context, Result};
use walkeep_store::input::{is_same_file, kind_of_file};

/// Ends the command for an argument that only its value makes wrong, with exit status 2.
pub fn usage(error: &str) -> ! {
    clap::Error::raw(
        clap::error::ErrorKind::ValueValidation,
        format!("{error}\n"),
    )
    .exit()
}

/// Nothing may be read and written at once: the work would destroy its own input.
pub fn refuse_same<'a>(inputs: impl IntoIterator<Item = &'a Path>, output: &Path) {
    for input in inputs {
        if is_same_file(input, output) {
            usage(&format!(
                "{}: expected another file than the input {}: it would be destroyed; choose \
                 another name",
                output.display(),
                input.display()
            ));
        }
    }
}

/// Adds what the file really is to an error about a file of another kind.
pub fn expect_kind<T>(result: Result<T>, path: &Path, wanted: &str) -> Result<T> {
    match kind_of_file(path) {
        Some(kind) if result.is_err() && kind != wanted => {
            result.with_context(|| format!("{} is a {kind}, not a {wanted}", path.display()))
        }
        _ => result,
    }
}
