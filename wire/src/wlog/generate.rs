//! Made-up workloads: valid packs for tests and measurements (reference: "wlog").
//!
//! Everything follows from the options, by a generator of our own (splitmix64), so the same options
//! give the same bytes forever. Not for anything that needs unpredictable numbers.

use std::fmt::Display;

use super::header::FileHeader;
use crate::checksum::checksum;
use crate::error::Flaw;
use crate::logpack::{Builder, Header, MAX_IO_BLOCKS, RecordKind};
use crate::random::Random;
use crate::units::{INVALID_LSID, LOGICAL_BLOCK, PhysicalBlock, Uuid, blocks_to_bytes};

/// Content of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DataKind {
    /// Does not compress.
    #[default]
    Random,
    /// Compresses to about a quarter.
    Compressible,
    /// All bytes 0.
    Zero,
}

/// What to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Everything random follows from it, uuid and salt too.
    pub seed: u64,
    /// Bytes of writes, approximately: the last write may exceed it.
    pub total_bytes: u64,
    /// Size of the data device in logical blocks, at least `max_io`.
    pub device_blocks: u64,
    /// Block size of the log.
    pub pbs: PhysicalBlock,
    /// Least size of an IO in logical blocks, at least 1.
    pub min_io: u32,
    /// Greatest size of an IO in logical blocks, at most 65535. Sizes are uniform between the two.
    /// Sizes and addresses are multiples of 2, 4 or 8 blocks if both limits are.
    pub max_io: u32,
    /// Content of writes.
    pub data: DataKind,
    /// One IO out of 20 is a discard.
    pub discard: bool,
    /// One write out of 20 is all zero.
    pub all_zero: bool,
    /// One IO out of 20 has padding before it, often of size 0.
    pub padding: bool,
    /// lsid of the first pack.
    pub begin_lsid: u64,
}

impl Default for Options {
    /// 16 MiB of random writes of 4 to 64 KiB on a device of 64 MiB, with everything that occurs.
    fn default() -> Self {
        Self {
            seed: 0,
            total_bytes: 16 << 20,
            device_blocks: 131_072,
            pbs: PhysicalBlock::B4096,
            min_io: 8,
            max_io: 128,
            data: DataKind::Random,
            discard: true,
            all_zero: true,
            padding: true,
            begin_lsid: 0,
        }
    }
}

/// An option out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: expected {expected}, found {found}")]
pub struct InvalidOption {
    /// Its name.
    pub option: &'static str,
    /// What is possible.
    pub expected: String,
    /// What was asked for.
    pub found: u64,
}

fn range(
    option: &'static str,
    holds: bool,
    expected: impl Display,
    found: u64,
) -> Result<(), InvalidOption> {
    let expected = expected.to_string();
    if holds {
        Ok(())
    } else {
        Err(InvalidOption {
            option,
            expected,
            found,
        })
    }
}

impl Options {
    /// Checks all ranges.
    ///
    /// # Errors
    /// The first option that is out of its range.
    pub fn validate(&self) -> Result<(), InvalidOption> {
        let (min, max) = (self.min_io, self.max_io);
        range("min_io", min >= 1, "at least 1 block", min.into())?;
        range(
            "max_io",
            max <= MAX_IO_BLOCKS,
            format!("at most {MAX_IO_BLOCKS} blocks"),
            max.into(),
        )?;
        range(
            "min_io",
            min <= max,
            format!("at most max_io {max}"),
            min.into(),
        )?;
        let device = self.device_blocks;
        range(
            "device_blocks",
            device >= max.into(),
            format!("at least max_io {max}"),
            device,
        )?;
        let most = u64::MAX / LOGICAL_BLOCK as u64;
        range(
            "device_blocks",
            device <= most,
            format!("at most {most}"),
            device,
        )?;
        // Each block of data comes with a header, padding and discards of less than 64 blocks on
        // average; the constant is room for unlucky starts and for the last pack.
        let packs = self.total_bytes / LOGICAL_BLOCK as u64 * 64 + (1 << 24);
        let last = INVALID_LSID - packs;
        range(
            "begin_lsid",
            self.begin_lsid <= last,
            format!("at most {last}"),
            self.begin_lsid,
        )
    }
}

/// A pack with its data, which is `header.total_pb` physical blocks long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedPack {
    /// The header.
    pub header: Header,
    /// The blocks behind the header block.
    pub data: Vec<u8>,
}

/// Iterator over the packs of a workload. Holds one pack at a time.
#[derive(Clone, Debug)]
pub struct Generator {
    options: Options,
    random: Random,
    file: FileHeader,
    builder: Builder,
    /// Data of the open pack.
    data: Vec<u8>,
    /// Bytes of writes made so far.
    made: u64,
}

/// An IO that is about to be pushed.
struct Io {
    kind: RecordKind,
    address: u64,
    blocks: u32,
    data: Vec<u8>,
}

impl Generator {
    /// # Errors
    /// Options out of range.
    pub fn new(options: Options) -> Result<Self, InvalidOption> {
        options.validate()?;
        let mut random = Random::new(options.seed);
        let (pbs, begin_lsid) = (options.pbs, options.begin_lsid);
        let mut uuid = Uuid::ZERO;
        random.fill(&mut uuid.0);
        let salt = random.next_u64() as u32;
        let file = FileHeader {
            salt,
            pbs,
            uuid,
            begin_lsid,
            end_lsid: INVALID_LSID,
        };
        let max_pack = pack_limit(&mut random, pbs);
        let builder = Builder::new(pbs, salt, begin_lsid).with_max_pack(max_pack);
        Ok(Self {
            options,
            random,
            file,
            builder,
            data: vec![],
            made: 0,
        })
    }

    /// The header of the wlog that consists of the packs.
    pub const fn file_header(&self) -> FileHeader {
        self.file
    }

    /// Makes an IO and adds it; returns the pack that became full before it.
    fn step(&mut self) -> Result<Option<GeneratedPack>, Flaw> {
        if self.options.padding && self.random.one_in(20) {
            let padding = self.padding();
            if let Some(full) = self.push(padding)? {
                // The IO itself comes with the next step.
                return Ok(Some(full));
            }
        }
        let io = self.io();
        self.push(io)
    }

    fn push(&mut self, io: Io) -> Result<Option<GeneratedPack>, Flaw> {
        let sum = match io.kind {
            RecordKind::Data => checksum(&io.data, self.file.salt),
            RecordKind::Padding | RecordKind::Discard => 0,
        };
        let full = self.builder.push(io.kind, io.address, io.blocks, sum)?;
        let full = full.into_iter().next().map(|header| {
            self.builder
                .set_max_pack(pack_limit(&mut self.random, self.options.pbs));
            GeneratedPack {
                header,
                data: std::mem::take(&mut self.data),
            }
        });
        self.append(io.data);
        Ok(full)
    }

    /// Adds the data of an IO, filled up to whole physical blocks.
    fn append(&mut self, mut data: Vec<u8>) {
        data.resize(data.len().next_multiple_of(self.options.pbs.bytes()), 0);
        match self.data.is_empty() {
            true => self.data = data,
            false => self.data.extend_from_slice(&data),
        }
    }

    fn padding(&mut self) -> Io {
        let pb = if self.random.below(2) == 0 {
            0
        } else {
            self.random.below(8) as u32
        };
        let blocks = pb * self.options.pbs.logical();
        Io {
            kind: RecordKind::Padding,
            address: 0,
            blocks,
            data: self.random.bytes(blocks),
        }
    }

    fn io(&mut self) -> Io {
        let Options {
            min_io,
            max_io,
            device_blocks,
            ..
        } = self.options;
        let unit = 1 << (min_io | max_io).trailing_zeros().min(3);
        let sizes = u64::from((max_io - min_io) / unit) + 1;
        let blocks = min_io + self.random.below(sizes) as u32 * unit;
        let places = (device_blocks - u64::from(blocks)) / u64::from(unit) + 1;
        let address = self.random.below(places) * u64::from(unit);
        if self.options.discard && self.random.one_in(20) {
            return Io {
                kind: RecordKind::Discard,
                address,
                blocks,
                data: vec![],
            };
        }
        self.made = self.made.saturating_add(blocks_to_bytes(blocks));
        Io {
            kind: RecordKind::Data,
            address,
            blocks,
            data: self.content(blocks),
        }
    }

    fn content(&mut self, blocks: u32) -> Vec<u8> {
        if self.options.all_zero && self.random.one_in(20) {
            return vec![0; blocks_to_bytes(blocks) as usize];
        }
        match self.options.data {
            DataKind::Zero => vec![0; blocks_to_bytes(blocks) as usize],
            DataKind::Random => self.random.bytes(blocks),
            DataKind::Compressible => self.random.compressible(blocks),
        }
    }
}

impl Iterator for Generator {
    type Item = GeneratedPack;

    fn next(&mut self) -> Option<GeneratedPack> {
        while self.made < self.options.total_bytes {
            // Validated options cannot make an IO that the builder refuses.
            if let Some(full) = self.step().ok()? {
                return Some(full);
            }
        }
        let header = self.builder.finish()?;
        Some(GeneratedPack {
            header,
            data: std::mem::take(&mut self.data),
        })
    }
}

/// Greatest size of the next pack: 32 KiB to 1 MiB.
fn pack_limit(random: &mut Random, pbs: PhysicalBlock) -> u32 {
    let kib = 32 + random.below(1024 - 32 + 1) as u32;
    kib * 1024 / pbs.bytes() as u32
}

impl Random {
    fn bytes(&mut self, blocks: u32) -> Vec<u8> {
        let mut data = vec![0; blocks_to_bytes(blocks) as usize];
        self.fill(&mut data);
        data
    }

    /// Blocks whose first quarter is random, and whose rest repeats one word.
    fn compressible(&mut self, blocks: u32) -> Vec<u8> {
        let mut data = vec![0; blocks_to_bytes(blocks) as usize];
        for block in data.chunks_exact_mut(LOGICAL_BLOCK) {
            let (random, rest) = block.split_at_mut(LOGICAL_BLOCK / 4);
            self.fill(random);
            let word = self.next_u64().to_le_bytes();
            rest.chunks_exact_mut(8)
                .for_each(|w| w.copy_from_slice(&word));
        }
        data
    }
}

#[cfg(test)]
mod tests;
