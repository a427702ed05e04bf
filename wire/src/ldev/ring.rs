//! Where things are on a log device (reference: "Log device").
//!
//! Pure arithmetic: nothing is read here, and nothing says whether a block holds a valid pack.

use crate::error::{Flaw, demand};
use crate::units::{PhysicalBlock, SUPERBLOCK_POSITION};

/// The ring buffer that holds the packs, behind the two superblocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    pbs: PhysicalBlock,
    size: u64,
}

/// Bytes that are contiguous on the log device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Byte position on the device.
    pub position: u64,
    /// Bytes, at least one physical block.
    pub bytes: u64,
}

/// Byte position of the primary superblock, for every block size.
pub const fn primary_position() -> u64 {
    SUPERBLOCK_POSITION
}

/// Byte position of the secondary superblock, which is written at format time only.
pub const fn secondary_position(pbs: PhysicalBlock) -> u64 {
    SUPERBLOCK_POSITION + pbs.bytes() as u64
}

impl Ring {
    /// A ring of `size` physical blocks.
    ///
    /// # Errors
    /// A size of 0, or a ring that ends beyond byte 2^64 - 1.
    pub fn new(pbs: PhysicalBlock, size: u64) -> Result<Self, Flaw> {
        demand!(size > 0, 0, "ring_buffer_size", "more than 0", size);
        let bytes = size.checked_mul(pbs.bytes() as u64);
        let end = bytes.and_then(|n| n.checked_add(Self::start_for(pbs)));
        demand!(
            end.is_some(),
            0,
            "ring_buffer_size",
            "a ring that ends before byte 2^64",
            size
        );
        Ok(Self { pbs, size })
    }

    /// The greatest ring on a log device of `ldev_bytes` bytes.
    ///
    /// # Errors
    /// A device without room for a single block of ring.
    pub fn on_device(pbs: PhysicalBlock, ldev_bytes: u64) -> Result<Self, Flaw> {
        let start = Self::start_for(pbs);
        let blocks = ldev_bytes.saturating_sub(start) / pbs.bytes() as u64;
        let least = start + pbs.bytes() as u64;
        demand!(
            blocks > 0,
            0,
            "log device",
            format!("at least {least} bytes"),
            ldev_bytes
        );
        Self::new(pbs, blocks)
    }

    const fn start_for(pbs: PhysicalBlock) -> u64 {
        secondary_position(pbs) + pbs.bytes() as u64
    }

    /// Block size of the log.
    pub const fn pbs(&self) -> PhysicalBlock {
        self.pbs
    }

    /// Physical blocks of the ring, at least 1.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Byte position of the first block of the ring.
    pub const fn start(&self) -> u64 {
        Self::start_for(self.pbs)
    }

    /// Byte position of the end of the ring.
    pub const fn end(&self) -> u64 {
        self.start() + self.size * self.pbs.bytes() as u64
    }

    /// Byte position of the block of an lsid.
    pub const fn position(&self, lsid: u64) -> u64 {
        self.start() + lsid % self.size * self.pbs.bytes() as u64
    }

    /// The contiguous runs that hold `blocks` physical blocks from `lsid` on, in order: one, or two
    /// where they wrap around the ring end (more only for more blocks than the ring has).
    pub const fn runs(&self, lsid: u64, blocks: u64) -> Runs {
        Runs {
            ring: *self,
            index: lsid % self.size,
            left: blocks,
        }
    }

    /// Physical blocks in use between two lsids; 0 if they are in the wrong order.
    pub const fn usage(oldest: u64, latest: u64) -> u64 {
        latest.saturating_sub(oldest)
    }

    /// True if the packs between the lsids do not fit: the oldest ones are overwritten, and the log
    /// is useless for backup until it is reset.
    pub const fn overflows(&self, oldest: u64, latest: u64) -> bool {
        Self::usage(oldest, latest) > self.size
    }
}

/// Iterator over [`Run`]s, see [`Ring::runs`].
#[derive(Clone, Debug)]
pub struct Runs {
    ring: Ring,
    index: u64,
    left: u64,
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let blocks = self.left.min(self.ring.size - self.index);
        if blocks == 0 {
            return None;
        }
        let pb = self.ring.pbs.bytes() as u64;
        let run = Run {
            position: self.ring.start() + self.index * pb,
            bytes: blocks * pb,
        };
        self.left -= blocks;
        self.index = 0;
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_both_block_sizes() {
        let small = Ring::on_device(PhysicalBlock::B512, 37376).unwrap();
        assert_eq!(
            (small.size(), small.start(), small.end()),
            (63, 5120, 37376)
        );
        let large = Ring::on_device(PhysicalBlock::B4096, 266_240 + 4095).unwrap();
        assert_eq!(
            (large.size(), large.start(), large.end()),
            (62, 12288, 266_240)
        );
        assert_eq!(secondary_position(PhysicalBlock::B4096), 8192);
        assert!(Ring::on_device(PhysicalBlock::B512, 5631).is_err());
        assert!(Ring::new(PhysicalBlock::B512, u64::MAX / 512).is_err());
    }

    #[test]
    fn runs_wrap_and_cover() {
        let ring = Ring::new(PhysicalBlock::B512, 10).unwrap();
        let runs = |lsid, n| {
            ring.runs(lsid, n)
                .map(|r| (r.position, r.bytes))
                .collect::<Vec<_>>()
        };
        assert_eq!(runs(3, 7), [(5120 + 3 * 512, 7 * 512)]);
        assert_eq!(runs(28, 3), [(5120 + 8 * 512, 1024), (5120, 512)]);
        assert_eq!(runs(0, 0), []);
        for n in 0..25 {
            let sum: u64 = ring.runs(u64::MAX - 1, n).map(|r| r.bytes).sum();
            assert_eq!(sum, n * 512);
        }
    }

    #[test]
    fn overflow_is_more_than_full() {
        let ring = Ring::new(PhysicalBlock::B512, 10).unwrap();
        assert!(!ring.overflows(5, 15));
        assert!(ring.overflows(5, 16));
    }
}
