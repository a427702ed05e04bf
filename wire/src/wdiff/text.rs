//! The text forms that listings of diffs have always had (reference: "Text forms").

use std::fmt;

use super::{Compression, FileHeader, Format, IndexRecord, IndexSuper, Kind, PackRecord, Tally};

/// The five lines of a file header.
pub struct HeaderText<'a>(pub &'a FileHeader);

impl fmt::Display for HeaderText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "wdiff_h:")?;
        writeln!(f, "  checksum: {:08x}", self.0.checksum())?;
        writeln!(f, "  version: 2")?;
        writeln!(f, "  type: {}", self.0.format.name())?;
        write!(f, "  uuid: {}", self.0.uuid)
    }
}

struct FlagsText(Kind);

impl fmt::Display for FlagsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Data => "--",
            Kind::AllZero => "Z-",
            Kind::Discard => "-D",
        })
    }
}

struct CompressionText(u8);

impl fmt::Display for CompressionText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Compression::from_number(self.0) {
            Some(known) => f.write_str(known.name()),
            None => write!(f, "{}", self.0),
        }
    }
}

/// One line for a record of a pack.
pub struct PackRecordText<'a>(pub &'a PackRecord);

impl fmt::Display for PackRecordText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        write!(
            f,
            "wdiff_sorted_rec:\t{}\t{}\t{}\t{}\t{}\t{:08x}\t{}",
            r.address,
            r.blocks,
            CompressionText(r.compression),
            r.data_offset,
            r.data_size,
            r.checksum,
            FlagsText(r.kind)
        )
    }
}

/// One line for a record of an index.
pub struct IndexRecordText<'a>(pub &'a IndexRecord);

impl fmt::Display for IndexRecordText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.0;
        write!(
            f,
            "wdiff_indexed_rec:\t{}\t{}\t{}\t{}\t{}\t{}\t{}\t{:08x}\t{:08x}\t{}",
            r.address,
            r.blocks,
            CompressionText(r.compression),
            r.data_offset,
            r.data_size,
            r.orig_blocks,
            r.io_offset,
            r.io_checksum,
            r.rec_checksum,
            FlagsText(r.kind)
        )
    }
}

/// The statistics behind the records.
pub struct StatText<'a> {
    /// Format of the file.
    pub format: Format,
    /// Its records.
    pub tally: &'a Tally,
    /// Stored bytes of a sorted file; see [`indexed_data_size`] for an indexed one.
    pub data_size: u64,
}

/// What the statistics call the data size of an indexed diff: all between header and index.
pub const fn indexed_data_size(index: &IndexSuper) -> u64 {
    index.index_offset - super::FILE_HEADER as u64
}

impl fmt::Display for StatText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [normal, zero, discard] = self.tally.records;
        let [normal_lb, zero_lb, discard_lb] = self.tally.blocks;
        let indexed = u8::from(self.format == Format::Indexed);
        writeln!(f, "wdiff_stat: wdiffNr {indexed}")?;
        writeln!(f, "wdiff_stat: normalNr {normal}")?;
        writeln!(f, "wdiff_stat: allZeroNr {zero}")?;
        writeln!(f, "wdiff_stat: discardNr {discard}")?;
        writeln!(f, "wdiff_stat: normalLb {normal_lb}")?;
        writeln!(f, "wdiff_stat: allZeroLb {zero_lb}")?;
        writeln!(f, "wdiff_stat: discardLb {discard_lb}")?;
        write!(f, "wdiff_stat: dataSize {}", self.data_size)
    }
}
