//! Input files, read at any place from several threads, with a bounded number of descriptors.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use walkeep_wire::wdiff::{FileHeader, ReadAt};
use walkeep_wire::wlog::FileHeader as LogHeader;

use crate::sys;
use crate::{Error, Result};

/// Descriptors that inputs may use together. With this, a merge of any number of diffs works in
/// the customary limit of 256, whatever else is open.
const OPEN_FILES: usize = 96;

/// Opens inputs and keeps the most recently used ones open.
pub struct FilePool {
    open: Mutex<OpenFiles>,
}

struct OpenFiles {
    by_id: HashMap<u64, (Arc<File>, u64)>,
    next_id: u64,
    clock: u64,
}

impl Default for FilePool {
    fn default() -> Self {
        let open = OpenFiles {
            by_id: HashMap::new(),
            next_id: 0,
            clock: 0,
        };
        Self {
            open: Mutex::new(open),
        }
    }
}

impl FilePool {
    /// Opens a file or block device for reading. `-` is standard input, spooled to an unlinked
    /// temporary file.
    pub fn open(self: &Arc<Self>, path: &Path) -> Result<InputFile> {
        if path == Path::new("-") {
            return InputFile::spooled(self, path, &mut io::stdin().lock());
        }
        let file = File::open(path).map_err(|e| Error::file(path, "open for reading", e))?;
        let meta = file
            .metadata()
            .map_err(|e| Error::file(path, "inspect", e))?;
        let kind = meta.file_type();
        if kind.is_dir() {
            return Err(Error::file(
                path,
                "read",
                io::ErrorKind::IsADirectory.into(),
            ));
        }
        if kind.is_fifo() || kind.is_char_device() {
            return InputFile::spooled(self, path, &mut &file);
        }
        let size = size_of_file(&file).map_err(|e| Error::file(path, "inspect", e))?;
        let identity = (meta.dev(), meta.ino());
        let id = self.admit(Arc::new(file));
        let input = InputFile {
            path: path.to_owned(),
            size,
            id,
            kept: None,
            identity,
            pool: self.clone(),
        };
        Ok(input)
    }

    fn admit(&self, file: Arc<File>) -> u64 {
        let mut open = self.open.lock();
        let id = open.next_id;
        open.next_id += 1;
        open.keep(id, file);
        id
    }
}

impl OpenFiles {
    /// Keeps a file open, closing the one that was not used for longest if there are too many.
    fn keep(&mut self, id: u64, file: Arc<File>) {
        if self.by_id.len() >= OPEN_FILES
            && let Some(oldest) = self
                .by_id
                .iter()
                .min_by_key(|(_, (_, used))| *used)
                .map(|(id, _)| *id)
        {
            self.by_id.remove(&oldest);
        }
        self.clock += 1;
        self.by_id.insert(id, (file, self.clock));
    }

    fn get(&mut self, id: u64) -> Option<Arc<File>> {
        self.clock += 1;
        let clock = self.clock;
        let (file, used) = self.by_id.get_mut(&id)?;
        *used = clock;
        Some(file.clone())
    }
}

/// A file that can be read at any place. It is reopened when the pool had to close it.
pub struct InputFile {
    path: PathBuf,
    size: u64,
    id: u64,
    /// A spooled file has no name to reopen it by.
    kept: Option<Arc<File>>,
    identity: (u64, u64),
    pool: Arc<FilePool>,
}

impl InputFile {
    fn spooled(pool: &Arc<FilePool>, path: &Path, from: &mut dyn io::Read) -> Result<Self> {
        let mut file = tempfile::tempfile()
            .map_err(|e| Error::file(&std::env::temp_dir(), "make a temporary file", e))?;
        let size = io::copy(from, &mut file).map_err(|e| {
            let action = "keep input in an unnamed file (TMPDIR says where)";
            Error::file(&std::env::temp_dir(), action, e)
        })?;
        let kept = Some(Arc::new(file));
        Ok(Self {
            path: path.to_owned(),
            size,
            id: 0,
            kept,
            identity: (0, 0),
            pool: pool.clone(),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The label of errors.
    pub fn name(&self) -> String {
        if self.path == Path::new("-") {
            return "standard input".to_owned();
        }
        self.path.display().to_string()
    }

    /// The next byte at or after `offset` outside a hole, up to the end of the data.
    /// Where holes cannot be asked for, all is data.
    pub fn next_data(&self, offset: u64) -> io::Result<u64> {
        if offset >= self.size {
            return Ok(self.size);
        }
        match sys::next_data(&*self.file()?, offset) {
            Ok(found) => Ok(found.unwrap_or(self.size).min(self.size)),
            Err(_) => Ok(offset),
        }
    }

    /// The next hole at or after `offset`, at most the end.
    pub fn next_hole(&self, offset: u64) -> io::Result<u64> {
        if offset >= self.size {
            return Ok(self.size);
        }
        match sys::next_hole(&*self.file()?, offset) {
            Ok(found) => Ok(found.min(self.size)),
            Err(_) => Ok(self.size),
        }
    }

    fn file(&self) -> io::Result<Arc<File>> {
        if let Some(file) = &self.kept {
            return Ok(file.clone());
        }
        if let Some(file) = self.pool.open.lock().get(self.id) {
            return Ok(file);
        }
        let file = Arc::new(File::open(&self.path)?);
        let meta = file.metadata()?;
        if (meta.dev(), meta.ino()) != self.identity {
            return Err(io::Error::other(
                "the file was replaced while it was being read",
            ));
        }
        self.pool.open.lock().keep(self.id, file.clone());
        Ok(file)
    }
}

impl ReadAt for InputFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file()?.read_exact_at(buf, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

/// True if both paths lead to the same file or the same device. False if either does not exist.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        let kind = meta.file_type();
        if kind.is_block_device() {
            return Some((0, meta.rdev()));
        }
        // Pipes and terminals may well be both.
        kind.is_file().then(|| (meta.dev(), meta.ino()))
    };
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

/// What a file is, by its first bytes, for errors about the wrong kind of file.
pub fn kind_of_file(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    let file = File::open(path)
        .ok()
        .filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?;
    io::Read::read_to_end(&mut io::Read::take(file, 8192), &mut head).ok()?;
    let wdiff = head.first_chunk().map(FileHeader::decode);
    let superblock = [1, 0, 2, 0];
    if wdiff.is_some_and(|header| header.is_ok()) {
        Some("wdiff")
    } else if head
        .get(..4096)
        .is_some_and(|b| LogHeader::decode(b).is_ok())
    {
        Some("wlog")
    } else if head.get(4096..4100) == Some(&superblock[..]) {
        Some("log device")
    } else {
        None
    }
}

/// Bytes of a regular file or a block device.
pub(crate) fn size_of_file(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if meta.file_type().is_block_device() {
        sys::device_bytes(file)
    } else {
        Ok(meta.len())
    }
}
