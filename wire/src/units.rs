//! Units and constants shared by all formats (reference: "Conventions").
//!
//! *lb* is the logical block of 512 bytes, in which all addresses and sizes of IOs are counted.
//! *pb* is the physical block of a log device, [`PhysicalBlock`] bytes, in which lsids are counted.

use std::fmt;

use crate::error::{Flaw, demand};

/// Bytes of a logical block (lb), always.
pub const LOGICAL_BLOCK: usize = 512;

/// Bytes of the head of a log device that hold no ring block, and place of the superblock.
pub const SUPERBLOCK_POSITION: u64 = 4096;

/// The lsid that stands for "none". The greatest legal lsid is one less.
pub const INVALID_LSID: u64 = u64::MAX;

/// The gid that stands for "unknown".
pub const UNKNOWN_GID: u64 = u64::MAX;

/// Bytes of `blocks` logical blocks. Cannot overflow.
#[inline]
pub const fn blocks_to_bytes(blocks: u32) -> u64 {
    blocks as u64 * LOGICAL_BLOCK as u64
}

/// Sixteen opaque bytes that name a log, printed as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// All zero: written by tools that do not know the uuid.
    pub const ZERO: Self = Self([0; 16]);

    /// Reads 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        u128::from_str_radix(text, 16)
            .ok()
            .map(|n| Self(n.to_be_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A legal physical block size: 512, 1024, 2048 or 4096 bytes.
///
/// The superblock stands at byte 4096 whatever the block size, so blocks must divide 4096.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct PhysicalBlock(u32);

impl PhysicalBlock {
    /// 512 bytes.
    pub const B512: Self = Self(512);
    /// 4096 bytes.
    pub const B4096: Self = Self(4096);

    /// Accepts the four legal sizes; `at` is the offset of the field, for the error.
    pub fn new(bytes: u32, at: u64) -> Result<Self, Flaw> {
        let legal = matches!(bytes, 512 | 1024 | 2048 | 4096);
        demand!(
            legal,
            at,
            "physical block size",
            "512, 1024, 2048 or 4096",
            bytes
        );
        Ok(Self(bytes))
    }

    /// Bytes of one physical block.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }

    /// Logical blocks in one physical block.
    pub const fn logical(self) -> u32 {
        self.0 / LOGICAL_BLOCK as u32
    }

    /// Physical blocks that hold `blocks` logical blocks.
    pub const fn count_for(self, blocks: u32) -> u32 {
        blocks.div_ceil(self.logical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_blocks_round_up() {
        assert_eq!(PhysicalBlock::B4096.count_for(9), 2);
        assert_eq!(PhysicalBlock::B512.count_for(9), 9);
        assert_eq!(PhysicalBlock::B4096.count_for(u32::MAX), 536_870_912);
        assert!(PhysicalBlock::new(513, 0).is_err());
        assert!(PhysicalBlock::new(8192, 0).is_err());
    }

    #[test]
    fn uuid_text_is_bytes_in_order() {
        let text = "0210ef9991596961263041f5f9241a91";
        assert_eq!(Uuid::parse(text).unwrap().to_string(), text);
        assert_eq!(Uuid::parse("+210ef9991596961263041f5f9241a91"), None);
    }
}
