//! What can go wrong with files.

use std::path::{Path, PathBuf};

/// An error with the file it is about and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes break a rule of their format.
    #[error(transparent)]
    Data(#[from] walkeep_wire::Error),
    /// A file operation failed.
    #[error("{}: cannot {action}", path.display())]
    File {
        /// The file or device.
        path: PathBuf,
        /// A verb phrase: what was tried.
        action: &'static str,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// A server cannot listen at an address.
    #[error("{0}: cannot listen")]
    Listen(String, #[source] std::io::Error),
    /// The inputs do not fit together, or a value is outside its limits.
    #[error("{0}")]
    Refused(String),
}

/// Result of file operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failed operation on a path.
    pub fn file(path: &Path, action: &'static str, error: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            action,
            error,
        }
    }
}
