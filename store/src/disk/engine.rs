//! Asynchronous file operations: the WAL device submits, an engine completes.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::DiskFile;

/// What to do with a file. Offsets and lengths are bytes.
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub enum FileOp {
    /// Writes the parts one behind the other.
    Write { offset: u64, parts: Vec<Bytes> },
    /// Reads `len` bytes.
    Read { offset: u64, len: usize },
    /// See [`DiskFile::sync`].
    Sync,
    /// See [`DiskFile::punch`].
    Punch { offset: u64, bytes: u64 },
    /// See [`DiskFile::zero`].
    Zero { offset: u64, bytes: u64 },
}

/// Called exactly once, from a thread of the engine; the bytes are those of a read, else empty.
pub type OpDone = Box<dyn FnOnce(io::Result<Bytes>) + Send>;

/// Carries out file operations, in any order and at the same time.
///
/// Whoever needs an order waits for one operation before submitting the next.
pub trait Engine: Send + Sync {
    /// Takes an operation; never blocks for its completion.
    fn submit(&self, file: &Arc<dyn DiskFile>, op: FileOp, done: OpDone);
}
