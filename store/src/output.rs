//! Output files that appear under their name only when they are complete and durable.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, IoSlice, IsTerminal, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{Disk, DiskFile, Mode, RealDisk, directory_of};
use crate::{Error, Result, sys};

/// The disk begins to write each time this much has been added, so that the sync at the end has
/// little left to wait for.
const WRITEBACK_BYTES: u64 = 8 << 20;
/// As many symbolic links as the kernel follows.
const MAX_LINKS: usize = 40;

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
    File(Temporary),
    /// Pipes and devices: written as it comes.
    Stream(File),
}

impl Output {
    /// Begins an output. `-` is standard output, unless that is a terminal. A symbolic link is
    /// followed: what it points to is replaced or, if nothing is there, created.
    pub fn create(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            if io::stdout().is_terminal() {
                let text = "standard output is a terminal, and the output is not text: name a file";
                return Err(Error::Refused(text.to_owned()));
            }
            let stdout = io::stdout().as_fd().try_clone_to_owned();
            let stdout = stdout.map_err(|e| Error::file(path, "open", e))?;
            return Ok(Self::new(path, Target::Stream(File::from(stdout))));
        }
        let path = &follow(path).map_err(|e| Error::file(path, "follow the link", e))?;
        if is_special(path) {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.map_err(|e| Error::file(path, "open for writing", e))?;
            return Ok(Self::new(path, Target::Stream(file)));
        }
        if path.is_dir() {
            let error = io::ErrorKind::IsADirectory.into();
            return Err(Error::file(path, "create", error));
        }
        Self::create_on(Arc::new(RealDisk), path)
    }

    /// Begins an output that is a file on `disk`.
    pub fn create_on(disk: Arc<dyn Disk>, path: &Path) -> Result<Self> {
        let file = Temporary::beside(disk, path).map_err(|e| Error::file(path, "create", e))?;
        Ok(Self::new(path, Target::File(file)))
    }

    fn new(path: &Path, target: Target) -> Self {
        Self {
            path: path.to_owned(),
            target,
            position: 0,
            begun: 0,
        }
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
        self.file()?.write_at(&[IoSlice::new(bytes)], offset)?;
        self.position = offset + bytes.len() as u64;
        self.begin_writeback();
        Ok(())
    }

    fn begin_writeback(&mut self) {
        let (from, bytes) = (self.begun, self.position.saturating_sub(self.begun));
        if bytes >= WRITEBACK_BYTES
            && let Ok(file) = self.file()
            && let Some(file) = file.descriptor()
        {
            sys::begin_writeback(file, from, bytes);
            self.begun = self.position;
        }
    }

    /// True if it can be written anywhere and may have holes.
    pub const fn is_file(&self) -> bool {
        matches!(self.target, Target::File(_))
    }

    /// Grows or cuts an output that is a file.
    pub fn set_size(&mut self, bytes: u64) -> io::Result<()> {
        self.file()?.set_size(bytes)
    }

    /// The file behind it; none for a device or stream.
    pub(crate) fn disk_file(&self) -> Option<&dyn DiskFile> {
        self.file().ok()
    }

    fn file(&self) -> io::Result<&dyn DiskFile> {
        match &self.target {
            Target::File(temporary) => Ok(&*temporary.file),
            Target::Stream(_) => Err(io::ErrorKind::NotSeekable.into()),
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
        let done = match self.target {
            Target::File(temporary) => temporary.commit(&self.path),
            Target::Stream(stream) => sync_stream(&stream),
        };
        done.map_err(|e| Error::file(&self.path, "make complete and durable", e))
    }

    /// As [`Self::commit`], for a file that only its owner may read and that must not take the
    /// place of another one.
    ///
    /// # Errors
    /// Something has got the name meanwhile.
    pub fn commit_new(self) -> Result<()> {
        let done = match self.target {
            Target::File(temporary) => temporary.commit_new(&self.path),
            Target::Stream(_) => Err(io::ErrorKind::AlreadyExists.into()),
        };
        done.map_err(|e| Error::file(&self.path, "make complete and durable", e))
    }
}

/// Fails with `NotSeekable` where [`Output::is_file`] is false.
impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let file = self.file()?;
        let sought = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(bytes) => self.position.checked_add_signed(bytes),
            SeekFrom::End(bytes) => file.size()?.checked_add_signed(bytes),
        };
        self.position = sought.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = match &mut self.target {
            Target::File(temporary) => {
                temporary
                    .file
                    .write_at(&[IoSlice::new(buf)], self.position)?;
                buf.len()
            }
            Target::Stream(stream) => stream.write(buf)?,
        };
        self.position += written as u64;
        self.begin_writeback();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.target {
            Target::File(_) => Ok(()),
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

/// The path that a symbolic link leads to in the end, whether or not something is there.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&path) {
            Ok(target) => path = directory_of(&path).join(target),
            // No link. Whatever else is wrong, creating the file will say so.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
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

/// A file without a name, or, on file systems that cannot make such, with one that goes with it.
struct Temporary {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    name: Option<PathBuf>,
    /// What the umask made of a new file's mode, where it is set aside until the commit.
    mode: Option<Permissions>,
}

impl Temporary {
    /// In the directory of the path it is for, so that it can be renamed to that.
    fn beside(disk: Arc<dyn Disk>, path: &Path) -> io::Result<Self> {
        let (file, name) = match disk.create_unnamed(directory_of(path)) {
            Ok(file) => (file, None),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                let create = |name: &Path| disk.open(name, Mode::Create);
                let (file, name) = with_free_name(directory_of(path), create)?;
                (file, Some(name))
            }
            Err(e) => return Err(e),
        };
        let mut temporary = Self {
            disk,
            file,
            name,
            mode: None,
        };
        if temporary.name.is_some()
            && let Some(file) = temporary.file.descriptor()
        {
            let file = to_file(file)?;
            temporary.mode = Some(file.metadata()?.permissions());
            // It may be the copy of something secret.
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(temporary)
    }

    fn commit(mut self, path: &Path) -> io::Result<()> {
        if let Some(file) = self.file.descriptor() {
            inherit(&to_file(file)?, path, self.mode.take())?;
        }
        self.file.sync()?;
        let dir = directory_of(path);
        let name = match &self.name {
            Some(name) => name,
            // A link cannot replace a file, a rename can.
            None => {
                let ((), name) = with_free_name(dir, |name| self.file.link(name))?;
                self.name.insert(name)
            }
        };
        self.disk.rename(name, path)?;
        self.name = None;
        self.disk.sync_dir(dir)
    }
}

impl Temporary {
    /// Takes nobody's place; the file is its owner's only.
    fn commit_new(self, path: &Path) -> io::Result<()> {
        if let Some(file) = self.file.descriptor() {
            to_file(file)?.set_permissions(Permissions::from_mode(0o600))?;
        }
        self.file.sync()?;
        self.file.link(path)?;
        self.disk.sync_dir(directory_of(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // An error came before this one.
            let _ = self.disk.unlink(name);
        }
    }
}

fn to_file(descriptor: BorrowedFd<'_>) -> io::Result<File> {
    descriptor.try_clone_to_owned().map(File::from)
}

/// Gives a new file the mode and, where allowed, the owner of the one it replaces, durably.
fn inherit(file: &File, path: &Path, new_mode: Option<Permissions>) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(old) => {
            // Only root may give files away; others keep the new one.
            let _ = fchown(file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(old.permissions())?;
        }
        Err(_) => {
            if let Some(mode) = new_mode {
                file.set_permissions(mode)?;
            }
        }
    }
    file.sync_all()
}

/// Makes something under a name that nothing has yet.
fn with_free_name<T>(
    dir: &Path,
    make: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<(T, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = dir.join(format!("tmp{:x}-{number:x}", std::process::id()));
        match make(&name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return Ok((made?, name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use walkeep_wire::random::Random;

    use super::*;
    use crate::disk::sim::{Fault, Operation, SimDisk, When};

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
    fn a_new_file_takes_nobody_s_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"mine").unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert!(output.commit_new().is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        std::fs::remove_file(&path).unwrap();
        Output::create(&path).unwrap().commit_new().unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_directory_is_no_output() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Output::create(dir.path()).is_err());
        assert!(Output::create(&dir.path().join("missing/out")).is_err());
    }

    #[test]
    fn an_output_can_be_written_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let mut output = Output::create(&path).unwrap();
        output.write_all(b"0123456789").unwrap();
        assert_eq!(output.seek(SeekFrom::End(-3)).unwrap(), 7);
        assert_eq!(output.seek(SeekFrom::Current(-2)).unwrap(), 5);
        output.write_all(b"ab").unwrap();
        assert_eq!(output.seek(SeekFrom::Start(1)).unwrap(), 1);
        output.write_all(b"c").unwrap();
        output.write_all_at(b"d", 11).unwrap();
        output.set_size(13).unwrap();
        assert!(output.seek(SeekFrom::Current(-99)).is_err());
        output.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"0c234ab789\0d\0");
    }

    /// A disk without unnamed files.
    #[derive(Debug)]
    struct Plain(SimDisk);

    impl Disk for Plain {
        fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
            self.0.open(path, mode)
        }
        fn create_unnamed(&self, _: &Path) -> io::Result<Arc<dyn DiskFile>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.0.rename(from, to)
        }
        fn unlink(&self, path: &Path) -> io::Result<()> {
            self.0.unlink(path)
        }
        fn make_dir(&self, path: &Path) -> io::Result<()> {
            self.0.make_dir(path)
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.0.sync_dir(path)
        }
        fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
            self.0.list(path)
        }
    }

    fn write_output(disk: Arc<dyn Disk>, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut output = Output::create_on(disk, path)?;
        for piece in bytes.chunks(1000) {
            let written = output.write_all(piece);
            written.map_err(|e| output.error("write", e))?;
        }
        output.commit()
    }

    /// Power cuts at every operation, each in many ways.
    fn cut_everywhere(as_disk: impl Fn(SimDisk) -> Arc<dyn Disk>) {
        let path = Path::new("dir/out");
        let (old, new) = (vec![1; 700], vec![2; 5000]);
        for cut in 0.. {
            let disk = SimDisk::new(cut);
            disk.put(path, &old).unwrap();
            disk.cut_after(cut);
            let done = write_output(as_disk(disk.clone()), path, &new);
            for seed in 0..100 {
                let after = disk.power_cut(&mut Random::new(seed));
                let found = after.contents(path).unwrap();
                let is_good = found == new || found == old && done.is_err();
                assert!(is_good, "operation {cut}, seed {seed}");
            }
            if done.is_ok() {
                assert!(cut > 8);
                return;
            }
        }
    }

    #[test]
    fn a_power_cut_leaves_the_old_or_the_new_output() {
        cut_everywhere(|disk| Arc::new(disk));
        cut_everywhere(|disk| Arc::new(Plain(disk)));
    }

    #[test]
    fn a_failed_output_leaves_the_old_one_and_nothing_else() {
        for (operation, path) in [(Operation::Sync, "dir"), (Operation::Write, "dir/out")] {
            let disk = SimDisk::new(1);
            disk.put(Path::new("dir/out"), b"old").unwrap();
            disk.inject(Fault {
                path: path.into(),
                operation,
                when: When::After(0),
                errno: libc::EIO,
            });
            let disk = Arc::new(disk);
            let path = Path::new("dir/out");
            assert!(write_output(disk.clone(), path, b"new").is_err());
            assert_eq!(disk.contents(path).unwrap(), b"old");
            assert_eq!(disk.list(Path::new("dir")).unwrap(), ["out"]);
            write_output(disk.clone(), path, b"new").unwrap();
            assert_eq!(disk.contents(path).unwrap(), b"new");
        }
    }
}
