//! Files for tests: scratch folders, base images, and whole diffs in memory.
//!
//! Included by more than one test by `#[path]`.

#![allow(dead_code, reason = "each test that includes this uses a part")]

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use walkeep_store::image::{DiscardPolicy, ImageFile};
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::wdiff::{Body, Codec, Cursor, FileHeader, Kind, Record, RecordSource, Stored};

/// Result of a check: what is wrong, in words.
pub(crate) type Check<T = ()> = Result<T, String>;

/// The text of any error.
pub(crate) fn shown(error: impl Display) -> String {
    error.to_string()
}

/// A folder for the files of one case, in memory where that is possible.
pub(crate) fn scratch() -> std::io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Lower-case hex digits of bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The SHA-256 of bytes in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Words of the 64-bit xorshift generator.
pub(crate) fn xorshift(mut x: u64, size: usize) -> Vec<u8> {
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..size.div_ceil(8)).flat_map(|_| next()).collect();
    bytes.truncate(size);
    bytes
}

/// An image made anew of `base` and opened.
pub(crate) fn image(path: &Path, base: &[u8], discard: DiscardPolicy) -> Check<ImageFile> {
    std::fs::write(path, base).map_err(shown)?;
    ImageFile::open(path, discard).map_err(shown)
}

/// The bytes of a file.
pub(crate) fn bytes_of(path: &Path) -> Check<Vec<u8>> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// A record with its plain data; none unless it is a data record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Plain {
    pub(crate) address: u64,
    pub(crate) blocks: u32,
    pub(crate) kind: Kind,
    pub(crate) data: Vec<u8>,
}

/// A diff, read and decompressed to its end.
pub(crate) struct Diff {
    pub(crate) header: FileHeader,
    pub(crate) records: Vec<Plain>,
    /// The stored form of each data record, and the plain image that it is a part of.
    pub(crate) images: Vec<(Stored, Vec<u8>)>,
    /// Packs without the end pack; 0 for an indexed diff.
    pub(crate) n_packs: u64,
}

impl Diff {
    /// Reads the diff in `bytes`.
    pub(crate) fn read(bytes: &[u8]) -> Check<Self> {
        Self::read_all(bytes).map_err(shown)
    }

    fn read_all(bytes: &[u8]) -> walkeep_wire::Result<Self> {
        let mut cursor = Cursor::open(bytes, "diff")?;
        let mut diff = Self {
            header: *cursor.header(),
            records: vec![],
            images: vec![],
            n_packs: 0,
        };
        let mut codec = Codec::default();
        while let Some(record) = cursor.next_record()? {
            let data = diff.data_of(&record, bytes, &mut codec)?;
            diff.records.push(Plain {
                address: record.address,
                blocks: record.blocks,
                kind: record.kind(),
                data,
            });
        }
        let mut packs = Cursor::open(bytes, "diff")?;
        while let Some((_, pack)) = packs.next_pack()? {
            diff.n_packs += u64::from(!pack.is_end);
        }
        Ok(diff)
    }

    fn data_of(
        &mut self,
        record: &Record,
        bytes: &[u8],
        codec: &mut Codec,
    ) -> walkeep_wire::Result<Vec<u8>> {
        let Body::Data(stored) = record.body else {
            return Ok(vec![]);
        };
        let (mut packed, mut image) = (vec![], vec![0; stored.image_bytes() as usize]);
        stored.load(bytes, "diff", &mut packed)?;
        codec
            .decompress(stored.compression, &packed, &mut image)
            .map_err(|flaw| flaw.in_source("diff"))?;
        let from = stored.image_offset as usize * LOGICAL_BLOCK;
        let data = image[from..from + record.blocks as usize * LOGICAL_BLOCK].to_vec();
        self.images.push((stored, image));
        Ok(data)
    }

    /// Names of the algorithms of its data records.
    pub(crate) fn compressions(&self) -> BTreeSet<&'static str> {
        let name = |(stored, _): &(Stored, Vec<u8>)| stored.compression.name();
        self.images.iter().map(name).collect()
    }

    /// True if all data is stored as it is, so that every byte of the file is determined.
    pub(crate) fn is_plain(&self) -> bool {
        self.compressions().iter().all(|name| *name == "none")
    }
}
