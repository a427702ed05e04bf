//! Files and block devices of this machine.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::uio::pwritev;
use nix::unistd::linkat;

use super::{Disk, DiskFile, Mode};
use crate::sys;

/// Zeros are written in steps of this size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The files of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            Mode::Read => &mut options,
            Mode::Write => options.write(true),
            Mode::Create => options.write(true).create_new(true),
        };
        Ok(Arc::new(RealFile::new(options.open(path)?)?))
    }

    fn create_unnamed(&self, dir: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(dir)
            .map_err(|e| {
                if has_no_unnamed_files(&e) {
                    unsupported()
                } else {
                    e
                }
            })?;
        Ok(Arc::new(RealFile::new(file)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

/// File systems that cannot make files without a name say so in several ways.
fn has_no_unnamed_files(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)
    )
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

#[derive(Debug)]
struct RealFile {
    file: File,
    is_device: bool,
}

impl RealFile {
    fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        let is_device = kind.is_block_device();
        if kind.is_file() || is_device {
            return Ok(Self { file, is_device });
        }
        let text = "neither a file nor a block device: only these can be read and written anywhere";
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    /// What of a range lies in the file.
    fn inside(&self, offset: u64, bytes: u64) -> io::Result<u64> {
        Ok(bytes.min(self.size()?.saturating_sub(offset)))
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
        let flags = flags | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (offset, bytes) = (to_off(offset)?, to_off(bytes)?);
        while let Err(e) = fallocate(&self.file, flags, offset, bytes) {
            if e != Errno::EINTR {
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// The kernel makes the range zeros, or zeros are written.
    fn clear(&self, flags: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
        let bytes = self.inside(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        let mut done = self.allocate(flags, offset, bytes);
        if self.is_device && done.as_ref().is_err_and(is_refusal) {
            done = sys::device_zero(&self.file, offset, bytes);
        }
        match done {
            Err(e) if is_refusal(&e) => self.write_zeros(offset, bytes),
            other => other,
        }
    }

    fn write_zeros(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let mut at = offset;
        while at < offset + bytes {
            let step = (offset + bytes - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}

/// The file system, the device or the alignment does not allow it; nothing is wrong with the disk.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENOTTY | libc::EPERM)
    )
}

fn to_off(bytes: u64) -> io::Result<i64> {
    i64::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl DiskFile for RealFile {
    fn size(&self) -> io::Result<u64> {
        if self.is_device {
            return sys::device_bytes(&self.file);
        }
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn read_cached(&self, offset: u64, len: usize) -> Option<Bytes> {
        let bytes = sys::read_at(&self.file, offset, len, true).ok()?;
        (bytes.len() == len).then(|| bytes.into())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut parts = parts.to_vec();
        let mut rest = parts.as_mut_slice();
        let mut at = offset;
        // Empty parts at the front would look like a write of nothing.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(sys::MAX_PARTS)];
            match pwritev(&self.file, some, to_off(at)?) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_size(&self, bytes: u64) -> io::Result<()> {
        if !self.is_device {
            return self.file.set_len(bytes);
        }
        let found = self.size()?;
        if found == bytes {
            return Ok(());
        }
        let text = format!("size of the block device: expected {bytes} bytes, found {found}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, text))
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let from = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        Ok(linkat(AT_FDCWD, from.as_str(), AT_FDCWD, path, flags)?)
    }

    fn punch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.clear(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.clear(FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, bytes)
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if !self.is_device {
            return self.punch(offset, bytes);
        }
        match sys::device_discard(&self.file, offset, bytes) {
            // A device that cannot discard keeps what it has.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    fn physical_block(&self) -> io::Result<Option<u32>> {
        let device = self.is_device.then(|| sys::device_block_bytes(&self.file));
        device.transpose()
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        if self.is_device {
            return Ok((offset < self.size()?).then_some(offset));
        }
        sys::next_data(&self.file, offset)
    }

    fn next_hole(&self, offset: u64) -> io::Result<u64> {
        let size = self.size()?;
        if self.is_device || offset >= size {
            return Ok(size);
        }
        sys::next_hole(&self.file, offset)
    }

    /// A flock: what the kernel and udev agree on for block devices too. It goes with the last
    /// descriptor of this opening.
    fn lock(&self) -> io::Result<()> {
        self.file.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            TryLockError::Error(e) => e,
        })
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::super::replace;
    use super::*;

    fn scratch() -> (tempfile::TempDir, Arc<dyn DiskFile>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = RealDisk.open(&path, Mode::Create).unwrap();
        (dir, file)
    }

    #[test]
    fn writes_of_more_parts_than_the_kernel_takes_arrive_whole() {
        let (_dir, file) = scratch();
        let bytes: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let mut parts: Vec<_> = bytes.chunks(2).map(IoSlice::new).collect();
        parts.insert(0, IoSlice::new(&[]));
        parts.push(IoSlice::new(&[]));
        assert!(parts.len() > 2 * sys::MAX_PARTS);
        file.write_at(&parts, 7).unwrap();
        file.sync().unwrap();
        let mut found = vec![1; 5007];
        file.read_at(&mut found, 0).unwrap();
        assert_eq!(found, [&[0; 7][..], &bytes].concat());
        let eof = file.read_at(&mut found, 1).unwrap_err();
        assert_eq!(eof.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn cleared_ranges_read_as_zeros_and_the_size_stays() {
        let (_dir, file) = scratch();
        let size = 3 << 16;
        for clear in [DiskFile::punch, DiskFile::zero, DiskFile::discard] {
            file.write_at(&[IoSlice::new(&vec![7; size])], 0).unwrap();
            clear(&*file, 100, 70_000).unwrap();
            clear(&*file, size as u64 - 10, 1 << 40).unwrap();
            clear(&*file, size as u64 + 10, 5).unwrap();
            let mut found = vec![1; size];
            file.read_at(&mut found, 0).unwrap();
            let zeros = |i| (100..70_100).contains(&i) || i >= size - 10;
            let expected: Vec<u8> = (0..size).map(|i| if zeros(i) { 0 } else { 7 }).collect();
            assert!(found == expected);
            assert_eq!(file.size().unwrap(), size as u64);
        }
    }

    #[test]
    fn zeros_are_written_where_nothing_else_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![7; 200_000]).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let file = RealFile::new(file).unwrap();
        file.write_zeros(10, 150_000).unwrap();
        let found = fs::read(&path).unwrap();
        let zeros = |i| (10..150_010).contains(&i);
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(i, b)| *b == if zeros(i) { 0 } else { 7 })
        );
    }

    #[test]
    fn holes_are_found() {
        let (_dir, file) = scratch();
        file.set_size(1 << 20).unwrap();
        assert_eq!(file.next_data(0).unwrap(), None);
        file.write_at(&[IoSlice::new(&[1; 4096])], 1 << 19).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(1 << 19));
        assert_eq!(file.next_hole(1 << 19).unwrap(), (1 << 19) + 4096);
        assert_eq!(file.next_hole(2 << 20).unwrap(), 1 << 20);
    }

    #[test]
    fn only_one_opener_has_the_lock() {
        let (dir, first) = scratch();
        first.lock().unwrap();
        first.lock().unwrap();
        let second = RealDisk
            .open(&dir.path().join("file"), Mode::Write)
            .unwrap();
        assert_eq!(second.lock().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        second.lock().unwrap();
    }

    #[test]
    fn a_replacement_takes_over_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(dir.path().join("state.new"), b"half of something longer").unwrap();
        for content in [b"first", b"other"] {
            replace(&RealDisk, &path, content).unwrap();
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(RealDisk.list(dir.path()).unwrap(), ["state"]);
        }
    }

    #[test]
    fn unnamed_files_get_a_name_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = RealDisk.create_unnamed(dir.path()).unwrap();
        file.write_at(&[IoSlice::new(b"text")], 0).unwrap();
        assert!(RealDisk.list(dir.path()).unwrap().is_empty());
        file.link(&dir.path().join("a")).unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"text");
        let other = RealDisk.create_unnamed(dir.path()).unwrap();
        let taken = other.link(&dir.path().join("a")).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn directories_and_missing_files_cannot_be_opened() {
        let dir = tempfile::tempdir().unwrap();
        let missing = RealDisk.open(&dir.path().join("none"), Mode::Write);
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(RealDisk.open(dir.path(), Mode::Read).is_err());
    }
}
