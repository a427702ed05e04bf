//! What can be wrong with bytes, and where.
//!
//! Decoders of slices return a [`Flaw`], whose offset is relative to the slice. The reader that
//! knows the file turns it into an [`Error`] with the name of the source and the absolute offset.

use std::fmt::Display;

/// A rule that some bytes break: `expected` is the rule, `found` what stands there instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset}: {what}: expected {expected}, found {found}")]
pub struct Flaw {
    /// Byte offset of the offending field: relative to the decoded slice, absolute once located.
    pub offset: u64,
    /// The field or structure, in the words of the reference.
    pub what: &'static str,
    /// What the format demands.
    pub expected: String,
    /// What was read.
    pub found: String,
}

impl Flaw {
    /// A flaw at `offset`.
    pub fn new(
        offset: u64,
        what: &'static str,
        expected: impl Display,
        found: impl Display,
    ) -> Self {
        Self {
            offset,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The same flaw, seen from a container that starts `base` bytes earlier.
    #[must_use]
    pub fn shifted(mut self, base: u64) -> Self {
        self.offset = self.offset.saturating_add(base);
        self
    }

    /// The flaw with the name of the file, device, pipe or peer it was found in.
    #[must_use]
    pub fn in_source(self, source: &str) -> Error {
        Error::Data {
            source_name: source.to_owned(),
            flaw: Box::new(self),
        }
    }
}

/// Bytes that break a rule, or that could not be read or written, with their source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes were read, and they are wrong.
    #[error("{source_name}: {flaw}")]
    Data {
        /// File, device, pipe or peer.
        source_name: String,
        /// What is wrong, with the absolute offset.
        flaw: Box<Flaw>,
    },
    /// The bytes could not be read or written.
    #[error("{source_name}: offset {offset}: cannot read or write")]
    Io {
        /// File, device, pipe or peer.
        source_name: String,
        /// Byte offset at which the transfer began.
        offset: u64,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
}

/// Result with a located [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error at a place. An unexpected end is a flaw of the data: the source is cut short.
    pub fn io(source: &str, offset: u64, what: &'static str, error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return Flaw::new(offset, what, "more bytes", "end of data (truncated)")
                .in_source(source);
        }
        Self::Io {
            source_name: source.to_owned(),
            offset,
            error,
        }
    }
}

/// Returns a [`Flaw`] unless the condition holds.
macro_rules! demand {
    ($cond:expr, $offset:expr, $what:expr, $expected:expr, $found:expr) => {
        if !$cond {
            return Err($crate::error::Flaw::new($offset as u64, $what, $expected, $found).into());
        }
    };
}
pub(crate) use demand;
