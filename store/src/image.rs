//! Disk images as targets: files and block devices that records are written onto.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use walkeep_wire::wdiff::Kind;
use walkeep_wire::{LOGICAL_BLOCK, blocks_to_bytes};

use crate::disk::{Disk, DiskFile, Mode, RealDisk};
use crate::{Error, Result};

/// Zeros up to this size are written; larger ranges become holes where that is possible.
static SMALL_ZEROS: [u8; 64 << 10] = [0; 64 << 10];

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
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    size: u64,
    is_device: bool,
    discard: DiscardPolicy,
}

impl ImageFile {
    /// Opens an existing file or block device.
    pub fn open(path: &Path, discard: DiscardPolicy) -> Result<Self> {
        Self::open_on(&RealDisk, path, discard)
    }

    /// Opens an existing file on `disk`.
    pub fn open_on(disk: &dyn Disk, path: &Path, discard: DiscardPolicy) -> Result<Self> {
        let file = disk
            .open(path, Mode::Write)
            .map_err(|e| Error::file(path, "open for reading and writing", e))?;
        let inspect = |e| Error::file(path, "inspect", e);
        let size = file.size().map_err(inspect)?;
        let is_device = file.physical_block().map_err(inspect)?.is_some();
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
            .write_at(&[IoSlice::new(data)], address * LOGICAL_BLOCK as u64)
            .map_err(|e| Error::file(&self.path, "write", e))
    }

    /// Applies a record without data, by the discard policy.
    pub fn clear(&self, address: u64, blocks: u32, kind: Kind) -> Result<()> {
        let (offset, bytes) = (address * LOGICAL_BLOCK as u64, blocks_to_bytes(blocks));
        let done = match (kind, self.discard) {
            (Kind::Discard, DiscardPolicy::Ignore) => Ok(()),
            (Kind::Discard, DiscardPolicy::Passdown) => self.file.discard(offset, bytes),
            _ => self.zero(offset, bytes),
        };
        done.map_err(|e| Error::file(&self.path, "clear a range", e))
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if let Some(zeros) = SMALL_ZEROS.get(..bytes as usize) {
            return self.file.write_at(&[IoSlice::new(zeros)], offset);
        }
        if self.is_device {
            return self.file.zero(offset, bytes);
        }
        self.file.punch(offset, bytes)
    }

    /// Makes all writes durable.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync()
            .map_err(|e| Error::file(&self.path, "make durable", e))
    }
}
