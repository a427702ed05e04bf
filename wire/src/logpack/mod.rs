//! Logpacks: the headers that describe the IOs of a log (reference: "Logpack").
//!
//! One header block describes up to [`max_records`] IOs, whose data follows it. This module turns
//! header blocks into types and back, shrinks and builds them. It never sees the data of the IOs:
//! who holds the data verifies it with [`Record::checksum`].

mod build;
mod decode;

pub use build::Builder;
pub use decode::{Block, classify, is_end_block};

use crate::bytes::put;
use crate::checksum::{checksum, embed};
use crate::units::{INVALID_LSID, PhysicalBlock, blocks_to_bytes};

/// Sector type of a header block.
const SECTOR_TYPE: u16 = 3;
/// Bytes before the first record.
const HEAD: usize = 24;
/// Bytes of one record.
const RECORD: usize = 32;

/// Greatest size of an IO that has data, and of padding, in logical blocks.
pub const MAX_IO_BLOCKS: u32 = 65535;
/// Greatest size of the data of one pack, in physical blocks.
pub const MAX_PACK_PB: u32 = 65535;

/// Records that fit in one header block: 15 for 512 bytes, 127 for 4096.
pub const fn max_records(pbs: PhysicalBlock) -> usize {
    (pbs.bytes() - HEAD) / RECORD
}

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A write, with data in the log.
    Data,
    /// Blocks in the log that mean nothing (they fill the ring up to its end).
    Padding,
    /// A discard: no data, no blocks in the log.
    Discard,
}

impl RecordKind {
    const fn flags(self) -> u32 {
        match self {
            Self::Data => 1,
            Self::Padding => 3,
            Self::Discard => 5,
        }
    }
}

/// One IO of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Write, padding or discard.
    pub kind: RecordKind,
    /// First logical block on the data device; 0 for padding.
    pub address: u64,
    /// Size in logical blocks: at most [`MAX_IO_BLOCKS`] unless it is a discard; 0 only for padding.
    pub blocks: u32,
    /// lsid of the first data block. A discard has that of the next record with data.
    pub lsid: u64,
    /// `lsid` less the lsid of the pack, at least 1.
    pub local: u16,
    /// Checksum of the `blocks` logical blocks with the salt of the log; 0 unless `kind` is `Data`.
    pub checksum: u32,
}

impl Record {
    /// Physical blocks of the record in the log: none for a discard.
    pub const fn data_pb(&self, pbs: PhysicalBlock) -> u32 {
        match self.kind {
            RecordKind::Discard => 0,
            RecordKind::Data | RecordKind::Padding => pbs.count_for(self.blocks),
        }
    }

    /// Byte offset of the record's data from the start of the header block of its pack.
    pub const fn data_offset(&self, pbs: PhysicalBlock) -> u64 {
        self.local as u64 * pbs.bytes() as u64
    }

    /// Size of the IO in bytes. For data this is what the checksum covers: less than the physical
    /// blocks it occupies when the last one is not full.
    pub const fn bytes(&self) -> u64 {
        blocks_to_bytes(self.blocks)
    }

    fn store(&self, slot: &mut [u8]) {
        put(slot, 0, self.checksum.to_le_bytes());
        put(slot, 4, self.kind.flags().to_le_bytes());
        put(slot, 8, self.address.to_le_bytes());
        put(slot, 16, self.blocks.to_le_bytes());
        put(slot, 20, self.local.to_le_bytes());
        put(slot, 24, self.lsid.to_le_bytes());
    }
}

/// The header of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// lsid of the header block.
    pub lsid: u64,
    /// Physical blocks of data that follow the header block.
    pub total_pb: u16,
    /// Checksum of the header block, as it was read or as [`Header::encode`] fills it.
    pub checksum: u32,
    /// Number of padding records: 0 or 1.
    pub n_padding: u16,
    /// The IOs in log order: 1 to [`max_records`].
    pub records: Vec<Record>,
}

impl Header {
    /// lsid of the pack that follows. A decoded header never overflows here.
    pub const fn next_lsid(&self) -> u64 {
        self.lsid.saturating_add(1 + self.total_pb as u64)
    }

    /// Bytes of the pack, header block included.
    pub const fn pack_bytes(&self, pbs: PhysicalBlock) -> u64 {
        (1 + self.total_pb as u64) * pbs.bytes() as u64
    }

    /// The header block, its checksum computed anew. Reserved bytes become 0.
    ///
    /// # Panics
    /// If there are more records than [`max_records`]: neither decoder nor builder make such.
    pub fn encode(&self, pbs: PhysicalBlock, salt: u32) -> Vec<u8> {
        let mut block = vec![0; pbs.bytes()];
        put(&mut block, 4, SECTOR_TYPE.to_le_bytes());
        put(&mut block, 6, self.total_pb.to_le_bytes());
        put(&mut block, 8, self.lsid.to_le_bytes());
        put(&mut block, 16, (self.records.len() as u16).to_le_bytes());
        put(&mut block, 18, self.n_padding.to_le_bytes());
        assert!(
            self.records.len() <= max_records(pbs),
            "too many records for one header block"
        );
        for (slot, record) in block[HEAD..].chunks_exact_mut(RECORD).zip(&self.records) {
            record.store(slot);
        }
        embed(&mut block, 0, salt);
        block
    }

    /// The header that keeps only the records before `index` (reference: "Crash recovery"), or
    /// `None` if none would be left. Data blocks of the pack stay where they are.
    pub fn shrink(&self, index: usize, pbs: PhysicalBlock, salt: u32) -> Option<Self> {
        let kept = &self.records[..index.min(self.records.len())];
        if kept.is_empty() {
            return None;
        }
        let mut shrunk = Self {
            records: kept.to_vec(),
            ..*self
        };
        shrunk.recount(pbs);
        shrunk.seal(pbs, salt);
        Some(shrunk)
    }

    /// Sets the counters that follow from the records.
    fn recount(&mut self, pbs: PhysicalBlock) {
        let total: u32 = self.records.iter().map(|r| r.data_pb(pbs)).sum();
        debug_assert!(total <= MAX_PACK_PB);
        self.total_pb = total as u16;
        let padding = self
            .records
            .iter()
            .filter(|r| r.kind == RecordKind::Padding);
        self.n_padding = padding.count() as u16;
    }

    /// Sets the checksum to that of the encoded block.
    fn seal(&mut self, pbs: PhysicalBlock, salt: u32) {
        let mut block = self.encode(pbs, salt);
        block[..4].fill(0);
        self.checksum = checksum(&block, salt);
    }
}

/// The block that ends a wlog file, and that recovery leaves where a pack was lost entirely.
pub fn end_block(pbs: PhysicalBlock, salt: u32) -> Vec<u8> {
    let end = Header {
        lsid: INVALID_LSID,
        total_pb: 0,
        checksum: 0,
        n_padding: 0,
        records: vec![],
    };
    end.encode(pbs, salt)
}

#[cfg(test)]
mod tests;
