//! Output files that appear under their name only when they are complete and durable.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown,
};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Error, Result, sys};

/// The disk begins to write each time this much has been added, so that the sync at the end has
/// little left to wait for.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// An output being written. Dropped without [`commit`](Self::commit), it leaves nothing behind,
/// and neither does a kill where the file system has unnamed files.
pub struct Output {
    path: PathBuf,
    target: Target,
    /// Where the next write goes.
    position: u64,
    /// The disk was told to write all before.
    begun: u64,
}

enum Target {
    /// A file without a name yet.
    Unnamed(File),
    /// For file systems that cannot make files without a name.
    Named(NamedTempFile),
    /// Pipes and devices: written as it comes.
    Stream(File),
}

impl Output {
    /// Begins an output. `-` is standard output, unless that is a terminal. A symbolic link is
    /// followed: what it points to is replaced.
    pub fn create(path: &Path) -> Result<Self> {
        let path = &std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let target = if path == Path::new("-") {
            if io::stdout().is_terminal() {
                let text = "standard output is a terminal, and the output is not text: name a file";
                return Err(Error::Refused(text.to_owned()));
            }
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            Target::Stream(File::from(
                stdout.map_err(|e| Error::file(path, "open", e))?,
            ))
        } else if is_special(path) {
            let file = OpenOptions::new().write(true).open(path);
            Target::Stream(file.map_err(|e| Error::file(path, "open for writing", e))?)
        } else {
            temporary_beside(path).map_err(|e| Error::file(path, "create", e))?
        };
        Ok(Self {
            path: path.to_owned(),
            target,
            position: 0,
            begun: 0,
        })
    }

    /// Refuses content that a block device has no room for, before the device loses what it holds.
    ///
    /// # Errors
    /// [`Error::Refused`] for a block device of less than `bytes` bytes.
    pub fn demand_room(&self, bytes: u64) -> Result<()> {
        let Target::Stream(stream) = &self.target else {
            return Ok(());
        };
        let inspect = |e| self.error("inspect", e);
        let kind = stream.metadata().map_err(inspect)?.file_type();
        if !kind.is_block_device() {
            return Ok(());
        }
        let room = sys::device_bytes(stream).map_err(inspect)?;
        check_room(&self.path, room, bytes)
    }

    /// Writes at an offset that is not before anything written yet; what lies between is a hole.
    /// Only for outputs that are a file.
    pub fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let Some(file) = self.as_file() else {
            return Err(io::ErrorKind::NotSeekable.into());
        };
        file.write_all_at(bytes, offset)?;
        self.position = offset + bytes.len() as u64;
        self.begin_writeback();
        Ok(())
    }

    fn begin_writeback(&mut self) {
        let (from, bytes) = (self.begun, self.position.saturating_sub(self.begun));
        if bytes >= WRITEBACK_BYTES
            && let Some(file) = self.as_file()
        {
            sys::begin_writeback(file, from, bytes);
            self.begun = self.position;
        }
    }

    /// The file, if it is one that can be written anywhere and may have holes.
    pub fn as_file(&self) -> Option<&File> {
        match &self.target {
            Target::Unnamed(file) => Some(file),
            Target::Named(file) => Some(file.as_file()),
            Target::Stream(_) => None,
        }
    }

    /// The path it will have.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about this output.
    pub fn error(&self, action: &'static str, error: io::Error) -> Error {
        Error::file(&self.path, action, error)
    }

    /// Makes the content durable, gives it its name, and makes the name durable.
    pub fn commit(self) -> Result<()> {
        let Self { path, target, .. } = self;
        commit(&path, target).map_err(|e| Error::file(&path, "make complete and durable", e))
    }
}

/// Fails with `NotSeekable` where [`Output::as_file`] is none.
impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let sought = match &mut self.target {
            Target::Unnamed(file) => file.seek(to),
            Target::Named(file) => file.seek(to),
            Target::Stream(_) => Err(io::ErrorKind::NotSeekable.into()),
        };
        self.position = sought?;
        Ok(self.position)
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = match &mut self.target {
            Target::Unnamed(file) => file.write(buf),
            Target::Named(file) => file.write(buf),
            Target::Stream(stream) => stream.write(buf),
        }?;
        self.position += written as u64;
        self.begin_writeback();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::Unnamed(_) | Target::Named(_) => Ok(()),
            Target::Stream(stream) => stream.flush(),
        }
    }
}

fn check_room(device: &Path, room: u64, bytes: u64) -> Result<()> {
    if room >= bytes {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{}: size of the device: expected at least {bytes} bytes, found {room}; nothing was \
         written: choose a larger device",
        device.display()
    )))
}

/// Things that exist under the name and must be written to, not replaced.
fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| {
        let kind = meta.file_type();
        kind.is_char_device() || kind.is_fifo() || kind.is_block_device() || kind.is_socket()
    })
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    }
}

/// Makes what went to a device, or through standard output to a file, durable. Pipes and terminals
/// have nothing to sync, and say so.
fn sync_stream(stream: &File) -> io::Result<()> {
    match stream.sync_all() {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EINVAL | libc::EROFS | libc::ENOTSUP)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// File systems that cannot make files without a name say so in several ways.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
    )
}

/// Gives a new file the mode and, where allowed, the owner of the one it replaces.
fn inherit(file: &File, path: &Path) -> io::Result<()> {
    let Ok(old) = std::fs::metadata(path) else {
        return file.set_permissions(std::fs::Permissions::from_mode(0o644));
    };
    // Only root may give files away; others keep the new one.
    let _ = fchown(file, Some(old.uid()), Some(old.gid()));
    file.set_permissions(old.permissions())
}

fn temporary_beside(path: &Path) -> io::Result<Target> {
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let dir = directory_of(path);
    let unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o644)
        .custom_flags(libc::O_TMPFILE)
        .open(dir);
    match unnamed {
        Ok(file) => return Ok(Target::Unnamed(file)),
        Err(e) if is_unsupported(&e) => {}
        Err(e) => return Err(e),
    }
    tempfile::Builder::new()
        .prefix("tmp")
        .rand_bytes(6)
        .tempfile_in(dir)
        .map(Target::Named)
}

fn commit(path: &Path, target: Target) -> io::Result<()> {
    match target {
        Target::Stream(stream) => return sync_stream(&stream),
        Target::Unnamed(file) => {
            inherit(&file, path)?;
            file.sync_all()?;
            name_unnamed(&file, path)?;
        }
        Target::Named(file) => {
            inherit(file.as_file(), path)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|e| e.error)?;
        }
    }
    File::open(directory_of(path))?.sync_all()
}

/// Links the file under a temporary name and renames that: a link alone cannot replace a file.
fn name_unnamed(file: &File, path: &Path) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let named = tempfile::Builder::new()
        .prefix("tmp")
        .rand_bytes(6)
        .make_in(directory_of(path), |name| {
            nix::unistd::linkat(
                nix::fcntl::AT_FDCWD,
                Path::new(&from),
                nix::fcntl::AT_FDCWD,
                name,
                nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW,
            )
            .map_err(io::Error::from)
        })?;
    named.persist(path).map(drop).map_err(|e| e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_appears_before_the_commit_and_nothing_stays_without_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        let mut dropped = Output::create(&path).unwrap();
        dropped.write_all(b"half").unwrap();
        drop(dropped);
        assert_eq!(names(), 0);
        for content in [b"first", b"other"] {
            let mut output = Output::create(&path).unwrap();
            output.write_all(content).unwrap();
            output.commit().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), content);
            assert_eq!(names(), 1);
        }
    }

    #[test]
    fn a_device_must_hold_all() {
        let device = Path::new("/dev/small");
        assert!(check_room(device, 4096, 4096).is_ok());
        let error = check_room(device, 4095, 4096).unwrap_err().to_string();
        for part in ["/dev/small", "expected at least 4096", "found 4095"] {
            assert!(error.contains(part), "{error}");
        }
        // Pipes, terminals and files take what comes.
        let null = Output::create(Path::new("/dev/null")).unwrap();
        assert!(null.demand_room(u64::MAX).is_ok());
        let dir = tempfile::tempdir().unwrap();
        let file = Output::create(&dir.path().join("out")).unwrap();
        assert!(file.demand_room(u64::MAX).is_ok());
    }

    #[test]
    fn a_directory_is_no_output() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::create(dir.path()).is_err());
        assert!(Output::create(&dir.path().join("missing/out")).is_err());
    }
}
