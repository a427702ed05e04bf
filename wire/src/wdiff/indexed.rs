//! The indexed format: stored images in order of arrival, and an index (reference: "wdiff").
//!
//! A writer needs neither sorting nor buffering of data: overlaps are resolved in the index alone.
//! Its pieces are aligned to powers of two.

use std::collections::BTreeMap;
use std::io::Write;

use crate::bytes::{put, u32_at, u64_at};
use crate::checksum;
use crate::error::{Flaw, demand};
use crate::units::Uuid;

use super::record::{Body, Kind, OutRecord, Record, Stored};
use super::{Compression, FILE_HEADER, FileHeader, Format};

/// Bytes of an index record.
pub(super) const INDEX_RECORD: usize = 48;
/// Bytes of the index super at the end of the file.
pub(super) const INDEX_SUPER: usize = 24;
/// Offset of the index must be a multiple of this.
const INDEX_ALIGNMENT: u64 = 8;

/// A record as it stands in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexRecord {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\].
    pub blocks: u32,
    /// Kind, from the two bits that count.
    pub kind: Kind,
    /// `compression_type` of the stored image; meaningless unless data.
    pub compression: u8,
    /// Absolute byte offset of the stored image.
    pub data_offset: u64,
    /// Bytes of the stored image.
    pub data_size: u32,
    /// First block of the record inside the decompressed image \[lb\].
    pub io_offset: u32,
    /// Size of the decompressed image \[lb\].
    pub orig_blocks: u32,
    /// Checksum of the stored image.
    pub io_checksum: u32,
    /// Checksum of the index record, as stored.
    pub rec_checksum: u32,
}

impl IndexRecord {
    /// Checks and reads a record by itself.
    pub fn decode(bytes: &[u8; INDEX_RECORD]) -> Result<Self, Flaw> {
        let sum = checksum::checksum(bytes, 0);
        demand!(
            sum == 0,
            44,
            "index record checksum",
            "a sum of 0",
            format!("{sum:08x}")
        );
        Ok(Self {
            address: u64_at(bytes, 0),
            blocks: u32_at(bytes, 8),
            kind: Kind::from_flags(bytes[12], 12)?,
            compression: bytes[13],
            data_offset: u64_at(bytes, 16),
            data_size: u32_at(bytes, 24),
            io_offset: u32_at(bytes, 28),
            orig_blocks: u32_at(bytes, 32),
            io_checksum: u32_at(bytes, 40),
            rec_checksum: u32_at(bytes, 44),
        })
    }

    pub(super) const fn end(&self) -> u64 {
        self.address + self.blocks as u64
    }

    /// The part from block `from` to block `to` (absolute, inside the record).
    fn part(&self, from: u64, to: u64) -> Self {
        Self {
            address: from,
            blocks: (to - from) as u32,
            io_offset: self.io_offset + (from - self.address) as u32,
            ..*self
        }
    }

    /// The record's bytes, with a fresh `rec_checksum`.
    pub fn encode(&self) -> [u8; INDEX_RECORD] {
        let mut bytes = [0; INDEX_RECORD];
        put(&mut bytes, 0, self.address.to_le_bytes());
        put(&mut bytes, 8, self.blocks.to_le_bytes());
        bytes[12] = self.kind.flags();
        bytes[13] = self.compression;
        put(&mut bytes, 16, self.data_offset.to_le_bytes());
        put(&mut bytes, 24, self.data_size.to_le_bytes());
        put(&mut bytes, 28, self.io_offset.to_le_bytes());
        put(&mut bytes, 32, self.orig_blocks.to_le_bytes());
        put(&mut bytes, 40, self.io_checksum.to_le_bytes());
        checksum::embed(&mut bytes, 44, 0);
        bytes
    }

    /// The record, checked against the bounds of the stored images.
    pub fn to_record(&self, index_offset: u64) -> Result<Record, Flaw> {
        self.check_place(index_offset)?;
        let body = match self.kind {
            Kind::AllZero => Body::AllZero,
            Kind::Discard => Body::Discard,
            Kind::Data => Body::Data(self.stored()?),
        };
        if self.kind != Kind::Data {
            demand!(
                self.data_size == 0,
                24,
                "stored size without data",
                0,
                self.data_size
            );
        }
        let record = Record {
            address: self.address,
            blocks: self.blocks,
            body,
        };
        record.check(0)?;
        Ok(record)
    }

    /// Also without data, whose place means nothing, it lies where images are.
    fn check_place(&self, index_offset: u64) -> Result<(), Flaw> {
        let end = self.data_offset.checked_add(u64::from(self.data_size));
        demand!(
            self.data_offset >= FILE_HEADER as u64 && end.is_some_and(|end| end <= index_offset),
            16,
            "place of the stored image",
            format!("bytes {FILE_HEADER} to {index_offset}"),
            format!("{} bytes at {}", self.data_size, self.data_offset)
        );
        Ok(())
    }

    fn stored(&self) -> Result<Stored, Flaw> {
        let compression = Compression::from_number(self.compression)
            .ok_or_else(|| Flaw::new(13, "compression type", "0 to 5", self.compression))?;
        Ok(Stored {
            position: self.data_offset,
            size: self.data_size,
            compression,
            checksum: self.io_checksum,
            image_offset: self.io_offset,
            image_blocks: self.orig_blocks,
        })
    }
}

/// The last 24 bytes of an indexed diff.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexSuper {
    /// Absolute byte offset of the index, a multiple of 8.
    pub index_offset: u64,
    /// Records of the index.
    pub n_records: u32,
    /// Records handed to the writer.
    pub n_data: u32,
}

impl IndexSuper {
    /// Checks and reads the super of a file of `file_size` bytes.
    pub fn decode(bytes: &[u8; INDEX_SUPER], file_size: u64) -> Result<Self, Flaw> {
        let sum = checksum::checksum(bytes, 0);
        demand!(
            sum == 0,
            20,
            "index super checksum",
            "a sum of 0",
            format!("{sum:08x}")
        );
        let index_offset = u64_at(bytes, 0);
        let n_records = u32_at(bytes, 8);
        demand!(
            index_offset >= FILE_HEADER as u64 && index_offset.is_multiple_of(INDEX_ALIGNMENT),
            0,
            "offset of the index",
            format!("a multiple of {INDEX_ALIGNMENT}, at least {FILE_HEADER}"),
            index_offset
        );
        let index = u64::from(n_records) * INDEX_RECORD as u64 + INDEX_SUPER as u64;
        demand!(
            index_offset.checked_add(index) == Some(file_size),
            8,
            "end of the index",
            format!("the end of the file at {file_size}"),
            format!("{n_records} records at {index_offset}")
        );
        Ok(Self {
            index_offset,
            n_records,
            n_data: u32_at(bytes, 12),
        })
    }

    /// The super's bytes.
    pub fn encode(&self) -> [u8; INDEX_SUPER] {
        let mut bytes = [0; INDEX_SUPER];
        put(&mut bytes, 0, self.index_offset.to_le_bytes());
        put(&mut bytes, 8, self.n_records.to_le_bytes());
        put(&mut bytes, 12, self.n_data.to_le_bytes());
        checksum::embed(&mut bytes, 20, 0);
        bytes
    }
}

/// The greatest aligned piece at the head of a range: a power of two that divides the address,
/// within the range and the limit (`0` is none).
fn aligned_piece(address: u64, blocks: u32, max_io: u32) -> u32 {
    const GREATEST: u32 = 1 << 31;
    let by_address = match address.trailing_zeros() {
        zeros @ 0..31 => 1 << zeros,
        _ => GREATEST,
    };
    let by_limit = if max_io == 0 {
        GREATEST
    } else {
        1 << max_io.ilog2()
    };
    by_address.min(1 << blocks.ilog2()).min(by_limit)
}

/// Writes an indexed diff. Records may come in any order: a later one wins.
///
/// Holds one entry for each surviving range, about 100 bytes, and no data. Ranges are cut into
/// aligned pieces only when the index is written. That gives the same pieces as cutting each record
/// when it comes and each piece that is partly superseded again: both end with the greatest aligned
/// pieces inside of what survives.
pub struct IndexedWriter<W: Write> {
    out: W,
    position: u64,
    max_io: u32,
    n_data: u32,
    survivors: BTreeMap<u64, IndexRecord>,
}

impl<W: Write> IndexedWriter<W> {
    /// Writes the file header. Pieces have at most `max_io` blocks, 0 is no limit.
    pub fn create(mut out: W, uuid: Uuid, max_io: u32) -> std::io::Result<Self> {
        let format = Format::Indexed;
        out.write_all(&FileHeader { format, uuid }.encode())?;
        Ok(Self {
            out,
            position: FILE_HEADER as u64,
            max_io,
            n_data: 0,
            survivors: BTreeMap::new(),
        })
    }

    /// Appends a record of any number of blocks and its stored bytes.
    ///
    /// # Errors
    /// `InvalidInput` if the record is empty, ends beyond 2^64 blocks, has more than 32 MiB of data
    /// or other bytes than it says.
    pub fn push(&mut self, record: &OutRecord, stored: &[u8]) -> std::io::Result<()> {
        if record.checked_end().is_none() || record.size as usize != stored.len() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "record range or size is wrong",
            ));
        }
        let entry = IndexRecord {
            address: record.address,
            blocks: record.blocks,
            kind: record.kind,
            compression: record.compression as u8,
            data_offset: self.position,
            data_size: record.size,
            io_offset: 0,
            orig_blocks: if record.kind == Kind::Data {
                record.blocks
            } else {
                0
            },
            io_checksum: record.checksum,
            rec_checksum: 0,
        };
        self.out.write_all(stored)?;
        self.position += stored.len() as u64;
        self.n_data += 1;
        self.supersede(&entry);
        self.survivors.insert(entry.address, entry);
        Ok(())
    }

    /// Removes what `newer` covers; keeps the remains of older ranges around it.
    fn supersede(&mut self, newer: &IndexRecord) {
        let before = self.survivors.range(..newer.address).next_back();
        if let Some(older) = before.map(|(_, r)| *r)
            && older.end() > newer.address
        {
            let left = older.part(older.address, newer.address);
            self.survivors.insert(left.address, left);
            self.keep_right_of(newer, &older);
        }
        let covered = newer.address..newer.end();
        while let Some(older) = self
            .survivors
            .range(covered.clone())
            .next()
            .map(|(_, r)| *r)
        {
            self.survivors.remove(&older.address);
            self.keep_right_of(newer, &older);
        }
    }

    fn keep_right_of(&mut self, newer: &IndexRecord, older: &IndexRecord) {
        if older.end() > newer.end() {
            let right = older.part(newer.end(), older.end());
            self.survivors.insert(right.address, right);
        }
    }

    /// Writes the index and gives the output back (not flushed).
    pub fn finish(mut self) -> std::io::Result<W> {
        let index_offset = self.position.next_multiple_of(INDEX_ALIGNMENT);
        let filling = [0; INDEX_ALIGNMENT as usize];
        self.out
            .write_all(&filling[..(index_offset - self.position) as usize])?;
        let mut n_records = 0u32;
        for survivor in self.survivors.values() {
            for piece in aligned_pieces(*survivor, self.max_io) {
                n_records = n_records
                    .checked_add(1)
                    .ok_or_else(|| std::io::Error::other("more than 2^32-1 index records"))?;
                self.out.write_all(&piece.encode())?;
            }
        }
        let end = IndexSuper {
            index_offset,
            n_records,
            n_data: self.n_data,
        };
        self.out.write_all(&end.encode())?;
        Ok(self.out)
    }
}

/// Cuts a record into aligned pieces that share its stored image.
fn aligned_pieces(record: IndexRecord, max_io: u32) -> impl Iterator<Item = IndexRecord> {
    let mut rest = record;
    std::iter::from_fn(move || {
        if rest.blocks == 0 {
            return None;
        }
        let blocks = aligned_piece(rest.address, rest.blocks, max_io);
        let piece = IndexRecord { blocks, ..rest };
        rest = rest.part(rest.address + u64::from(blocks), rest.end());
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Cursor, MAX_RECORD_BYTES, RecordSource};
    use super::*;

    /// An IO: first block, blocks and kind. Data is stored in one byte, which nobody looks at.
    type Io = (u64, u32, Kind);

    fn out(&(address, blocks, kind): &Io) -> (OutRecord, &'static [u8]) {
        match kind {
            Kind::Data => {
                let record = OutRecord::data(address, blocks, Compression::Snappy, &[0]);
                (record, &[0])
            }
            _ => (OutRecord::empty(address, blocks, kind), &[]),
        }
    }

    fn written(ios: &[Io], max_io: u32) -> Vec<u8> {
        let mut writer = IndexedWriter::create(Vec::new(), Uuid::ZERO, max_io).unwrap();
        for io in ios {
            let (record, stored) = out(io);
            writer.push(&record, stored).unwrap();
        }
        writer.finish().unwrap()
    }

    /// A piece of the index: range, kind, place of the image and place in it.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    struct Piece {
        address: u64,
        blocks: u64,
        kind: char,
        image: u64,
        io_offset: u64,
    }

    fn index_of(file: &[u8]) -> Vec<Piece> {
        let mut cursor = Cursor::open(file, "diff").unwrap();
        let mut pieces = vec![];
        while let Some((_, records)) = cursor.next_index().unwrap() {
            pieces.extend(records.iter().map(|r| Piece {
                address: r.address,
                blocks: r.blocks.into(),
                kind: r.kind.letter(),
                image: r.data_offset,
                io_offset: r.io_offset.into(),
            }));
        }
        pieces
    }

    /// The aligned pieces of a part of `whole`, by trying each power of two.
    fn aligned(whole: Piece, address: u64, end: u64, max_io: u64) -> Vec<Piece> {
        let (mut at, mut pieces) = (address, vec![]);
        while at < end {
            let fits = |size: &u64| {
                at.is_multiple_of(*size) && *size <= end - at && (max_io == 0 || *size <= max_io)
            };
            let blocks = (0..32).rev().map(|bit| 1 << bit).find(fits).unwrap();
            let io_offset = whole.io_offset + (at - whole.address);
            pieces.push(Piece {
                address: at,
                blocks,
                io_offset,
                ..whole
            });
            at += blocks;
        }
        pieces
    }

    /// What the reference says: each IO is cut when it comes, and each of its pieces cuts what is
    /// left of the older pieces again.
    fn model(ios: &[Io], max_io: u32) -> Vec<Piece> {
        let (mut pieces, mut image) = (Vec::<Piece>::new(), FILE_HEADER as u64);
        for (address, blocks, kind) in ios {
            let whole = Piece {
                address: *address,
                blocks: u64::from(*blocks),
                kind: kind.letter(),
                image,
                io_offset: 0,
            };
            image += u64::from(*kind == Kind::Data);
            for newer in aligned(whole, *address, address + whole.blocks, max_io.into()) {
                let (from, to) = (newer.address, newer.address + newer.blocks);
                let mut kept = vec![newer];
                for older in pieces {
                    let end = older.address + older.blocks;
                    kept.extend(aligned(older, older.address, end.min(from), max_io.into()));
                    kept.extend(aligned(older, older.address.max(to), end, max_io.into()));
                }
                pieces = kept;
            }
        }
        pieces.sort();
        pieces
    }

    /// IOs that meet: at the start, across the greatest power of two, and at the very end.
    fn ios() -> impl Strategy<Value = Vec<Io>> {
        let kind = prop::sample::select(vec![Kind::Data, Kind::Data, Kind::AllZero, Kind::Discard]);
        let base = prop::sample::select(vec![0, (1 << 31) - 50, u64::MAX - 140]);
        let io = (0..80u64, 1..61u32, kind);
        (base, prop::collection::vec(io, 0..24)).prop_map(|(base, ios)| {
            let placed = |(at, blocks, kind)| (base + at, blocks, kind);
            ios.into_iter().map(placed).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn cutting_at_the_end_gives_the_pieces_of_cutting_at_once(ios in ios(), max_io in 0..20u32) {
            let file = written(&ios, max_io);
            prop_assert_eq!(index_of(&file), model(&ios, max_io));
            let mut cursor = Cursor::open(&file[..], "diff").unwrap();
            while cursor.next_record().unwrap().is_some() {}
        }
    }

    #[test]
    fn records_end_at_the_last_address_at_most() {
        for kind in [Kind::Data, Kind::AllZero, Kind::Discard] {
            for blocks in [1, 5, 100] {
                let ios = [(u64::MAX - u64::from(blocks), blocks, kind)];
                let pieces = index_of(&written(&ios, 2048));
                let sum: u64 = pieces.iter().map(|piece| piece.blocks).sum();
                assert_eq!((pieces[0].address, sum), (ios[0].0, blocks.into()));
                assert!(refuses(&(ios[0].0 + 1, blocks, kind)));
            }
            assert!(refuses(&(u64::MAX, u32::MAX, kind)));
            assert!(refuses(&(7, 0, kind)));
        }
    }

    #[test]
    fn data_that_no_reader_takes_is_not_written() {
        let most = (MAX_RECORD_BYTES / 512) as u32;
        assert!(!refuses(&(0, most, Kind::Data)));
        assert!(refuses(&(0, most + 1, Kind::Data)));
        assert!(!refuses(&(0, u32::MAX, Kind::Discard)));
    }

    /// True if both writers refuse an IO; they must agree.
    fn refuses(io: &Io) -> bool {
        let (record, stored) = out(io);
        let mut indexed = IndexedWriter::create(Vec::new(), Uuid::ZERO, 0).unwrap();
        let memory = std::io::Cursor::new(Vec::new());
        let mut sorted = super::super::SortedWriter::create(memory, Uuid::ZERO).unwrap();
        let refusals = [
            indexed.push(&record, stored).is_err(),
            sorted.push(&[record], stored).is_err(),
        ];
        assert_eq!(refusals[0], refusals[1], "{io:?}");
        refusals[0]
    }

    /// Where there is no data its place means nothing, and is bounded all the same.
    #[test]
    fn the_place_of_every_record_lies_between_header_and_index() {
        for kind in [Kind::Data, Kind::AllZero, Kind::Discard] {
            let blocks = if kind == Kind::Data { 1 } else { 0 };
            let at = |data_offset| IndexRecord {
                address: 8,
                blocks: 1,
                kind,
                compression: 0,
                data_offset,
                data_size: blocks * 512,
                io_offset: 0,
                orig_blocks: blocks,
                io_checksum: 0,
                rec_checksum: 0,
            };
            let last = 1000 - u64::from(blocks) * 512;
            for good in [32, last] {
                assert!(at(good).to_record(1000).is_ok(), "{kind:?} {good}");
            }
            for bad in [0, 31, last + 1, u64::MAX] {
                let flaw = at(bad).to_record(1000).unwrap_err().to_string();
                assert!(
                    flaw.contains("place of the stored image"),
                    "{kind:?}: {flaw}"
                );
            }
        }
    }

    #[test]
    fn pieces_are_aligned_and_cover_the_range() {
        for (address, blocks, max_io, expected) in [
            (21, 7, 2048, vec![1, 2, 4]),
            (0, 3, 0, vec![2, 1]),
            (0, u32::MAX, 0, (0..32).rev().map(|bit| 1 << bit).collect()),
            (4, 8, 3, vec![2, 2, 2, 2]),
        ] {
            let record = OutRecord::empty(address, blocks, Kind::Discard);
            let entry = IndexRecord {
                address: record.address,
                blocks: record.blocks,
                kind: record.kind,
                compression: 0,
                data_offset: 0,
                data_size: 0,
                io_offset: 0,
                orig_blocks: 0,
                io_checksum: 0,
                rec_checksum: 0,
            };
            let sizes: Vec<u32> = aligned_pieces(entry, max_io).map(|p| p.blocks).collect();
            assert_eq!(sizes, expected, "{address}+{blocks} by {max_io}");
        }
    }
}
