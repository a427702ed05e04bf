//! Snapshots, diffs, states, and the files that keep them (reference: "Snapshots and diffs",
//! "Volume files", "Queue file").
//!
//! [`MetaSnap`], [`MetaDiff`] and [`MetaState`] are the algebra; [`DiffSet`] holds the diffs of one
//! volume and answers which of them to apply, merge, send or drop. Its greedy answers are those of
//! the original tools. What can be restored is asked of the sound search in [`restore`].

pub mod diff;
pub mod diff_set;
pub mod files;
pub mod name;
pub mod progress;
pub mod queue;
pub mod records;
pub mod restore;
pub mod snap;
pub mod state;
mod time;

use std::fmt::Display;

pub use diff::MetaDiff;
pub use diff_set::{DiffSet, RestorePoint};
pub use queue::QueueFile;
pub use records::{CompressOpt, FullReplState, HostInfo, MetaLsidGid};
pub use snap::{MetaSnap, Relation};
pub use state::MetaState;

use crate::error::Flaw;

/// A rule of the algebra that a value or an operation would break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, found {found}")]
pub struct Refusal {
    /// The value or operation, in the words of the reference.
    pub what: &'static str,
    /// The rule.
    pub expected: String,
    /// What was given instead.
    pub found: String,
}

impl Refusal {
    /// A refusal of `what`.
    pub fn new(what: &'static str, expected: impl Display, found: impl Display) -> Self {
        Self {
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }

    /// The same, of bytes at `offset`.
    #[must_use]
    pub fn at(self, offset: u64) -> Flaw {
        Flaw::new(offset, self.what, self.expected, self.found)
    }
}

/// Returns a [`Refusal`] unless the condition holds.
macro_rules! require {
    ($cond:expr, $what:expr, $expected:expr, $found:expr) => {
        if !$cond {
            return Err($crate::meta::Refusal::new($what, $expected, $found));
        }
    };
}
pub(crate) use require;

#[cfg(test)]
pub(crate) mod testing;
