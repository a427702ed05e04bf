//! The sorted format: packs of records, each followed by its data (reference: "wdiff").

use std::io::{Read, Seek, SeekFrom, Write};

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::checksum;
use crate::error::{Error, Flaw, Result, demand};
use crate::units::Uuid;

use super::record::{Body, Kind, OutRecord, Record, Stored};
use super::{
    Compression, FILE_HEADER, FileHeader, Format, PACK_DATA_BYTES, PACK_HEADER, PACK_RECORDS,
};

const RECORD: usize = 32;
const RECORDS_AT: usize = 16;
const FLAG_END: u8 = 1;
/// Payloads of streams are read in steps of this size, so that memory follows what arrived.
const READ_STEP: usize = 1 << 20;

/// A record as it stands in a pack header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackRecord {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\].
    pub blocks: u32,
    /// Kind, from the two bits that count.
    pub kind: Kind,
    /// `compression_type`; meaningless unless data.
    pub compression: u8,
    /// Byte offset in the data of the pack.
    pub data_offset: u32,
    /// Stored bytes.
    pub data_size: u32,
    /// Checksum of the stored bytes.
    pub checksum: u32,
}

impl PackRecord {
    fn decode(bytes: &[u8], at: u64) -> Result<Self, Flaw> {
        Ok(Self {
            address: u64_at(bytes, 0),
            blocks: u32_at(bytes, 8),
            kind: Kind::from_flags(bytes[12], at + 12)?,
            compression: bytes[13],
            data_offset: u32_at(bytes, 16),
            data_size: u32_at(bytes, 20),
            checksum: u32_at(bytes, 24),
        })
    }

    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, self.address.to_le_bytes());
        put(bytes, 8, self.blocks.to_le_bytes());
        bytes[12] = self.kind.flags();
        bytes[13] = self.compression;
        put(bytes, 16, self.data_offset.to_le_bytes());
        put(bytes, 20, self.data_size.to_le_bytes());
        put(bytes, 24, self.checksum.to_le_bytes());
    }

    /// The record, given the position of the pack's data; `at` is the record's own offset.
    fn to_record(self, data_position: u64, at: u64) -> Result<Record, Flaw> {
        let body = match self.kind {
            Kind::AllZero => Body::AllZero,
            Kind::Discard => Body::Discard,
            Kind::Data => Body::Data(Stored {
                position: data_position.saturating_add(u64::from(self.data_offset)),
                size: self.data_size,
                compression: Compression::from_number(self.compression).ok_or_else(|| {
                    Flaw::new(at + 13, "compression type", "0 to 5", self.compression)
                })?,
                checksum: self.checksum,
                image_offset: 0,
                image_blocks: self.blocks,
            }),
        };
        if self.kind != Kind::Data {
            demand!(
                self.data_size == 0,
                at + 20,
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
        record.check(at)?;
        Ok(record)
    }
}

/// A decoded pack header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pack {
    /// The records, in the order of their data.
    pub records: Vec<PackRecord>,
    /// Bytes of data behind the header.
    pub total_size: u32,
    /// True for the end pack, which has neither records nor data.
    pub is_end: bool,
}

impl Pack {
    /// Checks a header by itself: checksum, counts, and that the data of its records is laid out
    /// in order and without gaps.
    pub fn decode(bytes: &[u8; PACK_HEADER]) -> Result<Self, Flaw> {
        let sum = checksum::checksum(bytes, 0);
        demand!(
            sum == 0,
            0,
            "pack header checksum",
            "a sum of 0",
            format!("{sum:08x}")
        );
        let n_records = usize::from(u16_at(bytes, 4));
        demand!(
            n_records <= PACK_RECORDS,
            4,
            "records of the pack",
            format!("at most {PACK_RECORDS}"),
            n_records
        );
        let is_end = bytes[6] & FLAG_END != 0;
        let total_size = u32_at(bytes, 8);
        if is_end {
            demand!(n_records == 0, 4, "records of the end pack", 0, n_records);
            demand!(total_size == 0, 8, "data of the end pack", 0, total_size);
        }
        let mut records = Vec::with_capacity(n_records);
        let mut laid_out = 0u64;
        for index in 0..n_records {
            let at = RECORDS_AT + index * RECORD;
            let record = PackRecord::decode(&bytes[at..at + RECORD], at as u64)?;
            demand!(
                u64::from(record.data_offset) == laid_out,
                at + 16,
                "data offset of the record",
                laid_out,
                record.data_offset
            );
            laid_out += u64::from(record.data_size);
            records.push(record);
        }
        demand!(
            laid_out == u64::from(total_size),
            8,
            "data size of the pack",
            format!("{laid_out}, the sum of its records"),
            total_size
        );
        Ok(Self {
            records,
            total_size,
            is_end,
        })
    }

    /// The header's bytes. At most 127 records.
    pub fn encode(&self) -> Box<[u8; PACK_HEADER]> {
        let mut bytes = Box::new([0; PACK_HEADER]);
        let count = self.records.len().min(PACK_RECORDS);
        put(&mut bytes[..], 4, (count as u16).to_le_bytes());
        bytes[6] = if self.is_end { FLAG_END } else { 0 };
        put(&mut bytes[..], 8, self.total_size.to_le_bytes());
        for (record, slot) in self
            .records
            .iter()
            .zip(bytes[RECORDS_AT..].chunks_exact_mut(RECORD))
        {
            record.encode(slot);
        }
        checksum::embed(&mut bytes[..], 0, 0);
        bytes
    }

    /// The records of a pack whose header stands at `position`, with absolute positions.
    ///
    /// `last_end` is where the record before them ends, and becomes where their last one does: they
    /// must follow it, and each other.
    pub fn to_records(&self, position: u64, last_end: &mut u64) -> Result<Vec<Record>, Flaw> {
        let data = position.saturating_add(PACK_HEADER as u64);
        self.records
            .iter()
            .zip((position + RECORDS_AT as u64..).step_by(RECORD))
            .map(|(record, at)| {
                let record = record.to_record(data, at)?;
                check_order(last_end, &record, at)?;
                Ok(record)
            })
            .collect()
    }
}

/// Reads a sorted diff from a stream, in bounded memory: one pack header and one record's data.
pub struct SortedReader<R> {
    input: R,
    name: String,
    position: u64,
    header: FileHeader,
    pack: std::vec::IntoIter<Record>,
    last_end: u64,
    ended: bool,
}

impl<R: Read> SortedReader<R> {
    /// Reads the file header. `name` labels errors.
    pub fn open(mut input: R, name: &str) -> Result<Self> {
        let mut bytes = [0; FILE_HEADER];
        input
            .read_exact(&mut bytes)
            .map_err(|e| Error::io(name, 0, "wdiff header", e))?;
        let header = FileHeader::decode(&bytes).map_err(|f| f.in_source(name))?;
        if header.format != Format::Sorted {
            let flaw = Flaw::new(
                6,
                "wdiff type",
                "sorted: an indexed diff needs a file",
                "indexed",
            );
            return Err(flaw.in_source(name));
        }
        Ok(Self {
            input,
            name: name.to_owned(),
            position: FILE_HEADER as u64,
            header,
            pack: Vec::new().into_iter(),
            last_end: 0,
            ended: false,
        })
    }

    /// The file header.
    pub const fn header(&self) -> &FileHeader {
        &self.header
    }

    /// The next record, its stored bytes appended to the emptied `stored` and checked against the
    /// record's checksum. `None` after the end pack; nothing behind it is read.
    pub fn next(&mut self, stored: &mut Vec<u8>) -> Result<Option<Record>> {
        stored.clear();
        loop {
            if let Some(record) = self.pack.next() {
                if let Body::Data(data) = record.body {
                    self.read_stored(&data, stored)?;
                }
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            self.next_pack()?;
        }
    }

    fn next_pack(&mut self) -> Result<()> {
        let mut bytes = [0; PACK_HEADER];
        self.input
            .read_exact(&mut bytes)
            .map_err(|e| Error::io(&self.name, self.position, "pack header", e))?;
        let records = Pack::decode(&bytes)
            .map_err(|f| f.shifted(self.position))
            .and_then(|pack| {
                self.ended = pack.is_end;
                pack.to_records(self.position, &mut self.last_end)
            })
            .map_err(|f| f.in_source(&self.name))?;
        self.position += PACK_HEADER as u64;
        self.pack = records.into_iter();
        Ok(())
    }

    fn read_stored(&mut self, data: &Stored, stored: &mut Vec<u8>) -> Result<()> {
        let size = data.size as usize;
        while stored.len() < size {
            let start = stored.len();
            stored.resize(size.min(start + READ_STEP), 0);
            self.input
                .read_exact(&mut stored[start..])
                .map_err(|e| Error::io(&self.name, self.position, "record data", e))?;
            self.position += (stored.len() - start) as u64;
        }
        check_stored(data, stored).map_err(|f| f.in_source(&self.name))
    }
}

/// Records must follow each other by address without overlap.
pub(super) fn check_order(last_end: &mut u64, record: &Record, at: u64) -> Result<(), Flaw> {
    demand!(
        record.address >= *last_end,
        at,
        "order of the records",
        format!("an address of at least {last_end}"),
        record.address
    );
    *last_end = record.end();
    Ok(())
}

/// The stored bytes must have the checksum of their record.
pub(super) fn check_stored(data: &Stored, stored: &[u8]) -> Result<(), Flaw> {
    let sum = checksum::checksum(stored, 0);
    demand!(
        sum == data.checksum,
        data.position,
        "checksum of the record's data",
        format!("{:08x}", data.checksum),
        format!("{sum:08x}")
    );
    Ok(())
}

/// Writes a sorted diff. Records must come sorted and without overlap.
///
/// Where the output can seek, data is written as it comes and the pack's header later, into the
/// room left for it. Elsewhere the data of the current pack is held until the pack is complete: at
/// most 32 MiB, or one record.
pub struct SortedWriter<W: Write + Seek> {
    out: W,
    pack: Pack,
    pending: Pending,
    last_end: u64,
}

/// Where the data of the current pack is.
enum Pending {
    /// In the output, behind room for the header at this position.
    Written(u64),
    /// Here, because the output cannot seek.
    Held(Vec<u8>),
}

impl<W: Write + Seek> SortedWriter<W> {
    /// Writes the file header.
    pub fn create(mut out: W, uuid: Uuid) -> std::io::Result<Self> {
        let can_seek = out.stream_position().is_ok();
        let format = Format::Sorted;
        out.write_all(&FileHeader { format, uuid }.encode())?;
        let pending = match can_seek {
            true => Pending::Written(0),
            false => Pending::Held(Vec::new()),
        };
        let (records, total_size, is_end) = (Vec::new(), 0, false);
        let pack = Pack {
            records,
            total_size,
            is_end,
        };
        Ok(Self {
            out,
            pack,
            pending,
            last_end: 0,
        })
    }

    /// Adds records whose stored bytes lie in `data` one after the other.
    ///
    /// # Errors
    /// `InvalidInput` if a record is out of order, empty, ends beyond 2^64 blocks or has more than 32
    /// MiB of data, or if `data` has another length than the records say.
    pub fn push(&mut self, records: &[OutRecord], mut data: &[u8]) -> std::io::Result<()> {
        let promised: u64 = records.iter().map(|r| u64::from(r.size)).sum();
        if promised != data.len() as u64 {
            return Err(invalid("record sizes and data differ"));
        }
        let mut in_pack = 0;
        for record in records {
            if record.address < self.last_end {
                return Err(invalid("records out of order"));
            }
            self.last_end = record
                .checked_end()
                .ok_or_else(|| invalid("record range or size is wrong"))?;
            if self.is_full_for(record.size) {
                let (ready, rest) = data.split_at(in_pack);
                self.put(ready)?;
                (data, in_pack) = (rest, 0);
                self.end_pack()?;
            }
            self.begin_pack()?;
            self.pack.records.push(PackRecord {
                address: record.address,
                blocks: record.blocks,
                kind: record.kind,
                compression: record.compression as u8,
                data_offset: self.pack.total_size,
                data_size: record.size,
                checksum: record.checksum,
            });
            self.pack.total_size += record.size;
            in_pack += record.size as usize;
        }
        self.put(data)
    }

    fn is_full_for(&self, size: u32) -> bool {
        let passes = u64::from(self.pack.total_size) + u64::from(size) > PACK_DATA_BYTES;
        self.pack.records.len() == PACK_RECORDS || (!self.pack.records.is_empty() && passes)
    }

    /// Leaves room for the header of a pack that has no records yet.
    fn begin_pack(&mut self) -> std::io::Result<()> {
        if !self.pack.records.is_empty() {
            return Ok(());
        }
        if let Pending::Written(header_at) = &mut self.pending {
            *header_at = self.out.stream_position()?;
            self.out.write_all(&[0; PACK_HEADER])?;
        }
        Ok(())
    }

    fn put(&mut self, data: &[u8]) -> std::io::Result<()> {
        match &mut self.pending {
            Pending::Written(_) => self.out.write_all(data)?,
            Pending::Held(held) => held.extend_from_slice(data),
        }
        Ok(())
    }

    fn end_pack(&mut self) -> std::io::Result<()> {
        let header = self.pack.encode();
        match &mut self.pending {
            Pending::Written(header_at) => {
                let end = self.out.stream_position()?;
                self.out.seek(SeekFrom::Start(*header_at))?;
                self.out.write_all(&header[..])?;
                self.out.seek(SeekFrom::Start(end))?;
            }
            Pending::Held(held) => {
                self.out.write_all(&header[..])?;
                self.out.write_all(held)?;
                held.clear();
            }
        }
        self.pack.records.clear();
        self.pack.total_size = 0;
        Ok(())
    }

    /// Writes what is held and the end pack, and gives the output back (not flushed).
    pub fn finish(mut self) -> std::io::Result<W> {
        if !self.pack.records.is_empty() {
            self.end_pack()?;
        }
        self.pack.is_end = true;
        self.out.write_all(&self.pack.encode()[..])?;
        Ok(self.out)
    }
}

fn invalid(why: &'static str) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_records_than_a_header_holds_are_refused() {
        for count in [128u16, 1000, u16::MAX] {
            let mut bytes = [0; PACK_HEADER];
            put(&mut bytes, 4, count.to_le_bytes());
            checksum::embed(&mut bytes, 0, 0);
            assert_eq!(Pack::decode(&bytes).unwrap_err().offset, 4, "{count}");
        }
    }

    /// The flaw of a record by itself, if it has one.
    fn flaw_of(kind: Kind, blocks: u32, data_size: u32) -> Option<(&'static str, u64)> {
        let compression = match kind {
            Kind::Data => Compression::Snappy as u8,
            _ => 0,
        };
        let record = PackRecord {
            address: 7,
            blocks,
            kind,
            compression,
            data_offset: 0,
            data_size,
            checksum: 0,
        };
        let pack = Pack {
            records: vec![record],
            total_size: data_size,
            is_end: false,
        };
        let pack = Pack::decode(&pack.encode()).unwrap();
        let flaw = pack.to_records(1000, &mut 0).err()?;
        Some((flaw.what, flaw.offset))
    }

    #[test]
    fn sizes_of_records_have_bounds() {
        const RECORD_AT: u64 = 1000 + 16;
        let most = super::super::MAX_RECORD_BYTES as u32;
        for kind in [Kind::Data, Kind::AllZero, Kind::Discard] {
            let stored = u32::from(kind == Kind::Data);
            assert_eq!(flaw_of(kind, 1, stored), None);
            let empty = flaw_of(kind, 0, stored);
            assert_eq!(empty, Some(("record size", RECORD_AT + 8)), "{kind:?}");
        }
        for kind in [Kind::AllZero, Kind::Discard] {
            assert_eq!(flaw_of(kind, u32::MAX, 0), None);
            let with_data = flaw_of(kind, 1, 1);
            assert_eq!(
                with_data,
                Some(("stored size without data", RECORD_AT + 20))
            );
        }
        assert_eq!(flaw_of(Kind::Data, 1, 0), Some(("stored size", RECORD_AT)));
        assert_eq!(flaw_of(Kind::Data, most / 512, most), None);
        for (blocks, stored) in [(most / 512 + 1, 9), (1, most + 1), (u32::MAX, 9)] {
            let flaw = flaw_of(Kind::Data, blocks, stored);
            assert_eq!(flaw, Some(("data record size", RECORD_AT)), "{blocks}");
        }
    }

    /// Output that cannot seek, as a pipe.
    struct Pipe(Vec<u8>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Pipe {
        fn seek(&mut self, _: SeekFrom) -> std::io::Result<u64> {
            Err(std::io::ErrorKind::NotSeekable.into())
        }
    }

    /// 300 records of 1 KiB, a discard among them, in batches that end anywhere in a pack.
    fn write<W: Write + Seek>(out: W, batch: usize) -> W {
        let mut writer = SortedWriter::create(out, Uuid([7; 16])).unwrap();
        let records: Vec<OutRecord> = (0..300)
            .map(|i| match i {
                5 => OutRecord::empty(i * 3, 3, Kind::Discard),
                _ => OutRecord::data(i * 3, 2, Compression::None, &[i as u8; 1024]),
            })
            .collect();
        for part in records.chunks(batch) {
            let data = part
                .iter()
                .flat_map(|r| vec![(r.address / 3) as u8; r.size as usize]);
            writer.push(part, &data.collect::<Vec<_>>()).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn batches_and_pipes_do_not_show_in_the_bytes() {
        let whole = write(std::io::Cursor::new(Vec::new()), 300).into_inner();
        for batch in [1, 7, 126, 127, 128] {
            let file = write(std::io::Cursor::new(Vec::new()), batch).into_inner();
            assert_eq!(file, whole, "{batch}");
            assert_eq!(write(Pipe(Vec::new()), batch).0, whole, "{batch}");
        }
        let mut reader = SortedReader::open(&whole[..], "whole").unwrap();
        let mut stored = Vec::new();
        let mut count = 0;
        while let Some(record) = reader.next(&mut stored).unwrap() {
            assert_eq!(record.address, count * 3);
            assert!(stored.iter().all(|byte| *byte == count as u8));
            count += 1;
        }
        assert_eq!(count, 300);
    }

    #[test]
    fn a_diff_cut_at_a_pack_boundary_is_refused_by_the_stream_reader() {
        let whole = write(std::io::Cursor::new(Vec::new()), 300).into_inner();
        let pack = PACK_HEADER + 126 * 1024;
        for packs in 0..3 {
            let cut = &whole[..FILE_HEADER + packs * pack];
            let mut reader = SortedReader::open(cut, "cut").unwrap();
            let mut stored = Vec::new();
            let error = loop {
                match reader.next(&mut stored) {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{packs} packs passed for all"),
                    Err(error) => break error.to_string(),
                }
            };
            assert!(error.contains("cut: offset "), "{error}");
        }
    }
}
