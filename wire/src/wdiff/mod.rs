//! wdiff: the difference between two snapshots of a volume (reference: "wdiff").
//!
//! A diff is a list of records sorted by address without overlap, in one of two containers:
//! *sorted* (a stream of packs) or *indexed* (payloads first, an index at the end). Both are read
//! through a [`Cursor`] into the one [`Record`], so merging, applying and scanning know no formats.

mod compress;
mod cursor;
mod header;
mod indexed;
mod map;
mod merge;
mod record;
mod sorted;
pub mod text;

pub use compress::{Codec, CompressOption, Compression};
pub use cursor::{Cursor, ReadAt, RecordSource};
pub use header::{FileHeader, Format};
pub use indexed::{IndexRecord, IndexSuper, IndexedWriter};
pub use map::{CutMap, LogEntry};
pub use merge::{Merge, Piece, Tally};
pub use record::{Body, Kind, OutRecord, Record, Stored};
pub use sorted::{Pack, PackRecord, SortedReader, SortedWriter};

/// Bytes of a file header.
pub const FILE_HEADER: usize = 32;
/// Bytes of a pack header of the sorted format.
pub const PACK_HEADER: usize = 4096;
/// Records a pack can hold.
pub const PACK_RECORDS: usize = 127;
/// A pack ends before its data would pass this many bytes, unless one record alone does.
pub const PACK_DATA_BYTES: u64 = 32 << 20;
/// Greatest plain or stored size of one data record that readers accept.
pub const MAX_RECORD_BYTES: u64 = 32 << 20;
/// Blocks to which records are cut unless asked otherwise: 1 MiB.
pub const DEFAULT_MAX_IO_BLOCKS: u32 = 2048;
