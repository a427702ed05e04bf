//! The seam under every durable file call of this crate: real files on one side, a simulated disk
//! that loses, tears and refuses what a real one may on the other.
//!
//! Nothing here decides anything. What must be durable before what is the caller's to order, by
//! [`DiskFile::sync`] and [`Disk::sync_dir`].

pub mod engine;
pub mod real;
mod ring;
pub mod sim;
pub mod threads;
pub mod uring;

pub use real::RealDisk;

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An existing file or block device, for reading.
    Read,
    /// An existing file or block device, for reading and writing.
    Write,
    /// A file that must not exist yet, for reading and writing. Its name is durable after
    /// [`Disk::sync_dir`].
    Create,
}

/// Files by their paths.
pub trait Disk: Debug + Send + Sync {
    /// Opens or creates a file.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;
    /// A new file in a directory that vanishes when it is closed without [`DiskFile::link`].
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system has no such files.
    fn create_unnamed(&self, dir: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames a file, over another one if there is one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes the name of a file.
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// Makes a directory; its parent must exist.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;
}

/// An open file or block device, for use by several threads at once.
pub trait DiskFile: Debug + Send + Sync {
    /// Bytes of the file or block device.
    fn size(&self) -> io::Result<u64>;
    /// Fills `into`; the end of the file before that is an error.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Reads if that takes no waiting for the disk; `None` if it would, or is not known.
    fn read_cached(&self, offset: u64, len: usize) -> Option<Bytes> {
        let _ = (offset, len);
        None
    }
    /// Writes all parts, one behind the other. After an error any part of it may have been written.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes all that was written before durable. After an error nothing is known of it.
    fn sync(&self) -> io::Result<()>;
    /// Grows or cuts a file; a block device only agrees to its own size.
    fn set_size(&self, bytes: u64) -> io::Result<()>;
    /// Gives a file of [`Disk::create_unnamed`] a name, durable after [`Disk::sync_dir`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if something has the name: a link does not replace.
    fn link(&self, path: &Path) -> io::Result<()>;
    /// The range, as far as it lies in the file, reads as zeros, and its space is given back where
    /// that is possible.
    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// The range, as far as it lies in the file, reads as zeros and keeps its space.
    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// The range is not needed any more. A hole in a file; what a block device reads as there
    /// afterwards is its own affair.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;
    /// Physical block size of a block device; `None` for a file.
    fn physical_block(&self) -> io::Result<Option<u32>>;
    /// The next byte at or after `offset` that is not in a hole; `None` if only holes follow.
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>>;
    /// The next hole at or after `offset`; the end counts as one.
    fn next_hole(&self, offset: u64) -> io::Result<u64>;
    /// Takes the only lock of the file for as long as it is open.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another opener has it.
    fn lock(&self) -> io::Result<()>;
    /// The descriptor, for an engine that talks to the kernel itself; `None` for a simulated file.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}

/// The directory a path lies in.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// Puts a small file in the place of the one at `path`, or makes it: after a crash either the old
/// content stands there or the new one, after the return the new one.
///
/// Only one caller at a time may replace a path. What a crash leaves beside it (`path.new`) goes
/// with the next replacement.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let done = write_new(disk, new, bytes).and_then(|()| disk.rename(new, path));
    if done.is_err() {
        // The first error is the one to tell of, and the next replacement removes it too.
        let _ = disk.unlink(new);
    }
    done?;
    disk.sync_dir(directory_of(path))
}

fn write_new(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = match disk.open(path, Mode::Create) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            disk.unlink(path)?;
            disk.open(path, Mode::Create)?
        }
        other => other?,
    };
    file.write_at(&[IoSlice::new(bytes)], 0)?;
    file.sync()
}
