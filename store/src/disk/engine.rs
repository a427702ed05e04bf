//! Asynchronous file operations: the WAL device submits, an engine completes.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

use super::DiskFile;
pub use super::threads::Threads;
pub use super::uring::Uring;

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

/// The engine for this machine.
pub fn best() -> Arc<dyn Engine> {
    match Uring::new() {
        Ok(uring) => Arc::new(uring),
        Err(_) => Arc::new(Threads::new()),
    }
}

/// Carries out an operation in the calling thread; the bytes are those of a read.
pub fn carry_out(file: &dyn DiskFile, op: FileOp) -> io::Result<Bytes> {
    match op {
        FileOp::Write { offset, parts } => {
            let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            file.write_at(&parts, offset)?;
        }
        FileOp::Read { offset, len } => {
            let mut bytes = vec![0; len];
            file.read_at(&mut bytes, offset)?;
            return Ok(bytes.into());
        }
        FileOp::Sync => file.sync()?,
        FileOp::Punch { offset, bytes } => file.punch(offset, bytes)?,
        FileOp::Zero { offset, bytes } => file.zero(offset, bytes)?,
    }
    Ok(Bytes::new())
}

#[cfg(test)]
mod tests;
