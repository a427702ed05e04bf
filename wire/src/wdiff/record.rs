//! The one record of both formats (reference: "wdiff").

use crate::error::{Flaw, demand};
use crate::units::blocks_to_bytes;

use super::{Compression, MAX_RECORD_BYTES};

/// Bit of the flags: the range reads as zeros.
pub(super) const FLAG_ALL_ZERO: u8 = 2;
/// Bit of the flags: the range was discarded.
pub(super) const FLAG_DISCARD: u8 = 4;

/// What a record says about its range, without its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Kind {
    /// The range holds data.
    Data,
    /// The range holds zeros.
    AllZero,
    /// The range was discarded.
    Discard,
}

impl Kind {
    /// From the flags of a record. Only two bits count: the others can hold anything.
    pub(super) fn from_flags(flags: u8, at: u64) -> Result<Self, Flaw> {
        match flags & (FLAG_ALL_ZERO | FLAG_DISCARD) {
            0 => Ok(Self::Data),
            FLAG_ALL_ZERO => Ok(Self::AllZero),
            FLAG_DISCARD => Ok(Self::Discard),
            _ => Err(Flaw::new(
                at,
                "record flags",
                "all-zero or discard, not both",
                format!("{flags:#04x}"),
            )),
        }
    }

    /// The flags as written.
    pub(super) const fn flags(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::AllZero => FLAG_ALL_ZERO,
            Self::Discard => FLAG_DISCARD,
        }
    }

    /// The letter used by listings: N, Z or D.
    pub const fn letter(self) -> char {
        match self {
            Self::Data => 'N',
            Self::AllZero => 'Z',
            Self::Discard => 'D',
        }
    }
}

/// Where and how the data of a record is stored in its file.
///
/// The record's data is a part of a stored *image*: all of it in a sorted diff, any part in an
/// indexed one, or in a record that a merge has cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Stored {
    /// Absolute byte offset of the stored bytes.
    pub position: u64,
    /// Stored bytes.
    pub size: u32,
    /// Their algorithm.
    pub compression: Compression,
    /// Checksum of the stored bytes, salt 0.
    pub checksum: u32,
    /// First block of the record inside the decompressed image \[lb\].
    pub image_offset: u32,
    /// Size of the decompressed image \[lb\].
    pub image_blocks: u32,
}

impl Stored {
    /// The whole image.
    pub const fn image(&self) -> Self {
        Self {
            image_offset: 0,
            ..*self
        }
    }

    /// Plain bytes of the image.
    pub const fn image_bytes(&self) -> u64 {
        blocks_to_bytes(self.image_blocks)
    }
}

/// What a record holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body {
    /// Data, to be fetched from the file.
    Data(Stored),
    /// Zeros.
    AllZero,
    /// A discarded range.
    Discard,
}

/// A range of blocks and its new content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\], at least 1; `address + blocks` fits in 64 bits.
    pub blocks: u32,
    /// Content.
    pub body: Body,
}

impl Record {
    /// The block after the last.
    pub const fn end(&self) -> u64 {
        self.address + self.blocks as u64
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self.body {
            Body::Data(_) => Kind::Data,
            Body::AllZero => Kind::AllZero,
            Body::Discard => Kind::Discard,
        }
    }

    /// The part from block `from` to block `to` (absolute, inside the record).
    #[must_use]
    pub fn part(&self, from: u64, to: u64) -> Self {
        debug_assert!(self.address <= from && from < to && to <= self.end());
        let skipped = (from - self.address) as u32;
        let body = match self.body {
            Body::Data(stored) => Body::Data(Stored {
                image_offset: stored.image_offset + skipped,
                ..stored
            }),
            other => other,
        };
        Self {
            address: from,
            blocks: (to - from) as u32,
            body,
        }
    }

    /// True if the record's data is the whole stored image, so that the stored bytes can be
    /// copied without decompressing them.
    pub fn is_whole_image(&self) -> bool {
        matches!(self.body, Body::Data(s) if s.image_offset == 0 && s.image_blocks == self.blocks)
    }

    /// The rules common to both formats; `at` is the offset of the record.
    pub(super) fn check(&self, at: u64) -> Result<(), Flaw> {
        demand!(
            self.blocks > 0,
            at + 8,
            "record size",
            "at least 1 block",
            0
        );
        demand!(
            self.address.checked_add(u64::from(self.blocks)).is_some(),
            at,
            "record range",
            "an end below 2^64 blocks",
            format!("{} + {}", self.address, self.blocks)
        );
        let Body::Data(stored) = self.body else {
            return Ok(());
        };
        demand!(stored.size > 0, at, "stored size", "at least 1 byte", 0);
        let most = MAX_RECORD_BYTES;
        demand!(
            stored.image_bytes() <= most && u64::from(stored.size) <= most,
            at,
            "data record size",
            format!("at most {most} bytes"),
            format!("{} plain, {} stored", stored.image_bytes(), stored.size)
        );
        demand!(
            stored.compression != Compression::None
                || u64::from(stored.size) == stored.image_bytes(),
            at,
            "stored size of uncompressed data",
            stored.image_bytes(),
            stored.size
        );
        let end = stored.image_offset.checked_add(self.blocks);
        demand!(
            end.is_some_and(|end| end <= stored.image_blocks),
            at,
            "part of the stored image",
            format!("at most {} blocks", stored.image_blocks),
            format!("{} blocks from {}", self.blocks, stored.image_offset)
        );
        Ok(())
    }
}

/// A record on its way into a file; the stored bytes of data travel beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutRecord {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\].
    pub blocks: u32,
    /// Kind of content.
    pub kind: Kind,
    /// Algorithm of the stored bytes; none unless data.
    pub compression: Compression,
    /// Number of stored bytes; 0 unless data.
    pub size: u32,
    /// Checksum of the stored bytes, salt 0; 0 unless data.
    pub checksum: u32,
}

impl OutRecord {
    /// A data record of `stored` bytes.
    pub fn data(address: u64, blocks: u32, compression: Compression, stored: &[u8]) -> Self {
        Self {
            address,
            blocks,
            kind: Kind::Data,
            compression,
            size: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            checksum: crate::checksum::checksum(stored, 0),
        }
    }

    /// The block after the last; `None` for a record that no reader takes: an empty one, one that
    /// ends beyond 2^64 blocks, or data of more than [`MAX_RECORD_BYTES`].
    pub(super) fn checked_end(&self) -> Option<u64> {
        let plain = match self.kind {
            Kind::Data => blocks_to_bytes(self.blocks),
            Kind::AllZero | Kind::Discard => 0,
        };
        let fits = self.blocks > 0 && plain.max(u64::from(self.size)) <= MAX_RECORD_BYTES;
        let end = self.address.checked_add(u64::from(self.blocks));
        end.filter(|_| fits)
    }

    /// A record without data.
    pub const fn empty(address: u64, blocks: u32, kind: Kind) -> Self {
        Self {
            address,
            blocks,
            kind,
            compression: Compression::None,
            size: 0,
            checksum: 0,
        }
    }
}
