//! The lock of a volume: whoever has it may open data and log (reference: "Volume folder").
//!
//! A lock of the open file description, so that others can ask who has it without disturbing
//! anybody: with `flock` a look would make a server fail that starts in that moment.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::{Error, Result};

/// The only lock of a volume, held until dropped.
#[derive(Debug)]
pub struct VolumeLock {
    _file: File,
}

impl VolumeLock {
    /// Takes the lock, and writes this process's id into the file.
    ///
    /// # Errors
    /// [`Error::Refused`] with the id of the process that has it.
    pub fn take(path: &Path) -> Result<Self> {
        let fail = |e| Error::file(path, "lock", e);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(held(path, &mut file)),
            Err(e) => return Err(fail(e.into())),
        }
        // The volume may have been deleted between opening and locking.
        let same = std::fs::metadata(path)
            .and_then(|named| Ok(named.ino() == file.metadata()?.ino()))
            .unwrap_or(false);
        if !same {
            return Err(fail(io::ErrorKind::NotFound.into()));
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(fail)?;
        Ok(Self { _file: file })
    }

    /// The process that has the lock: `None` if nobody has it, 0 if its id is not known.
    pub fn holder(path: &Path) -> Result<Option<u32>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file(path, "open", e)),
        };
        let mut lock = whole_file();
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|e| Error::file(path, "inspect", e.into()))?;
        let is_free = lock.l_type == libc::F_UNLCK as libc::c_short;
        Ok((!is_free).then(|| process_id(&mut file).unwrap_or(0)))
    }
}

const fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn process_id(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn held(path: &Path, file: &mut File) -> Error {
    let process = match process_id(file) {
        Some(id) => format!("process {id}"),
        None => "another process".to_owned(),
    };
    Error::Refused(format!(
        "{}: expected a volume that nobody uses, found it held by {process}: stop that first",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(VolumeLock::holder(&path).unwrap(), None);
        let lock = VolumeLock::take(&path).unwrap();
        let own = std::process::id();
        assert_eq!(VolumeLock::holder(&path).unwrap(), Some(own));
        let error = VolumeLock::take(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("held by process {own}:")),
            "{error}"
        );
        drop(lock);
        assert_eq!(VolumeLock::holder(&path).unwrap(), None);
        drop(VolumeLock::take(&path).unwrap());
    }
}
