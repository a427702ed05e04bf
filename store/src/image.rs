//! Disk images as targets: files and block devices that records are written onto.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{FallocateFlags, fallocate};
use walkeep_wire::wdiff::Kind;
use walkeep_wire::{LOGICAL_BLOCK, blocks_to_bytes};

use crate::input::size_of_file;
use crate::{Error, Result, sys};

/// Zeros up to this size are written; larger ranges become holes where that is possible.
const SMALL_ZERO_BYTES: u64 = 64 << 10;

/// What becomes of discarded ranges (reference: "wdiff").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DiscardPolicy {
    /// They read as zeros afterwards: an applied image equals the virtual one.
    #[default]
    Zero,
    /// They keep their old content.
    Ignore,
    /// The device is told; what it reads as afterwards is the device's affair. Holes in a file.
    Passdown,
}

impl FromStr for DiscardPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "zero" => Ok(Self::Zero),
            "ignore" => Ok(Self::Ignore),
            "passdown" => Ok(Self::Passdown),
            other => Err(format!(
                "discard policy {other:?}: expected zero, ignore or passdown"
            )),
        }
    }
}

/// An image open for writing at any place, from several threads.
pub struct ImageFile {
    file: File,
    path: PathBuf,
    size: u64,
    is_device: bool,
    discard: DiscardPolicy,
}

impl ImageFile {
    /// Opens an existing file or block device.
    pub fn open(path: &Path, discard: DiscardPolicy) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::file(path, "open for reading and writing", e))?;
        let inspect = |e| Error::file(path, "inspect", e);
        let size = size_of_file(&file).map_err(inspect)?;
        let is_device = file
            .metadata()
            .map_err(inspect)?
            .file_type()
            .is_block_device();
        Ok(Self {
            file,
            path: path.to_owned(),
            size,
            is_device,
            discard,
        })
    }

    /// Bytes of the image.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// True if a range of blocks lies within the image. Records that do not are not written at
    /// all, as no part of them can be trusted.
    pub fn holds(&self, address: u64, blocks: u32) -> bool {
        address
            .checked_add(u64::from(blocks))
            .is_some_and(|end| end <= self.size / LOGICAL_BLOCK as u64)
    }

    /// Writes data at a block address.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.file
            .write_all_at(data, address * LOGICAL_BLOCK as u64)
            .map_err(|e| Error::file(&self.path, "write", e))
    }

    /// Applies a record without data, by the discard policy.
    pub fn clear(&self, address: u64, blocks: u32, kind: Kind) -> Result<()> {
        let (offset, bytes) = (address * LOGICAL_BLOCK as u64, blocks_to_bytes(blocks));
        let done = match (kind, self.discard) {
            (Kind::Discard, DiscardPolicy::Ignore) => Ok(()),
            (Kind::Discard, DiscardPolicy::Passdown) => self.pass_discard(offset, bytes),
            _ => self.zero(offset, bytes),
        };
        done.map_err(|e| Error::file(&self.path, "clear a range", e))
    }

    fn pass_discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if self.is_device {
            return match sys::device_discard(&self.file, offset, bytes) {
                // A device that cannot discard keeps what it has.
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
                other => other,
            };
        }
        punch(&self.file, offset, bytes).or_else(|_| write_zeros(&self.file, offset, bytes))
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if bytes <= SMALL_ZERO_BYTES {
            return write_zeros(&self.file, offset, bytes);
        }
        let fast = if self.is_device {
            sys::device_zero(&self.file, offset, bytes)
        } else {
            punch(&self.file, offset, bytes)
        };
        fast.or_else(|_| write_zeros(&self.file, offset, bytes))
    }

    /// Makes all writes durable.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::file(&self.path, "make durable", e))
    }
}

/// Gives the space of a range back; it reads as zeros. Not everywhere possible.
pub(crate) fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)
}

/// Makes a range read as zeros that keeps its space. Not everywhere possible.
pub(crate) fn zero_range(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    allocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE, offset, bytes)
}

fn allocate(file: &File, flag: FallocateFlags, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = flag | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = i64::try_from(offset).map_err(too_far)?;
    let bytes = i64::try_from(bytes).map_err(too_far)?;
    Ok(fallocate(file, flags, offset, bytes)?)
}

/// Writes zeros.
pub(crate) fn write_zeros(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut at = offset;
    while at < offset + bytes {
        let step = (offset + bytes - at).min(ZEROS.len() as u64);
        file.write_all_at(&ZEROS[..step as usize], at)?;
        at += step;
    }
    Ok(())
}
