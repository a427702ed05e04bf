//! Reading a wlog from a stream (reference: "wlog").
//!
//! The source is read once, front to back, without seeking. Memory follows the bytes that arrived:
//! a record, at most 32 MiB, grows by pieces of 1 MiB. Checksums of all data are verified, also
//! of data the caller does not ask for.

use std::io::{self, Read};

use super::header::FileHeader;
use super::walk::{Step, Walk};
use crate::checksum::Checksum;
use crate::error::{Error, Flaw, Result};
use crate::logpack::{Header, Record, RecordKind};

/// Most bytes by which a buffer grows before they have arrived.
const PIECE: usize = 1 << 20;

/// A pack and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The header.
    pub header: Header,
    /// Byte offset of the header block in the source.
    pub position: u64,
}

/// Reads one wlog, or several in a row, from a stream that starts with a file header.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    source: String,
    walk: Walk,
    /// Bytes read so far.
    position: u64,
    /// The last pack.
    pack: Option<Header>,
    /// Records of it that were read.
    done: usize,
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    /// A reader of `inner`; `source` names it in errors. Reads are large: no buffering is needed
    /// except for sources with expensive small reads.
    pub fn new(inner: R, source: impl Into<String>) -> Self {
        let (walk, scratch) = (Walk::new(), Vec::new());
        Self {
            inner,
            source: source.into(),
            walk,
            position: 0,
            pack: None,
            done: 0,
            scratch,
        }
    }

    /// The next file header, pack or end; `None` at the end of the source. Data of the last pack
    /// that was not read is read and verified first.
    ///
    /// # Errors
    /// Bad or missing bytes, with their place.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        self.leave_pack()?;
        let mut block = std::mem::take(&mut self.scratch);
        block.clear();
        self.fill(&mut block, self.walk.need())?;
        if block.is_empty() && self.walk.may_end_here() {
            return Ok(None);
        }
        let step = self
            .walk
            .feed(&block)
            .map_err(|flaw| flaw.in_source(&self.source))?;
        self.scratch = block;
        if let Step::Pack(header) = &step {
            (self.pack, self.done) = (Some(header.clone()), 0);
        }
        Ok(Some(step))
    }

    /// The next pack, over the ends of files; `None` at the end of the source.
    ///
    /// # Errors
    /// As [`Reader::next_step`].
    pub fn next_pack(&mut self) -> Result<Option<Pack>> {
        while let Some(step) = self.next_step()? {
            if let Step::Pack(header) = step {
                return Ok(Some(Pack {
                    header,
                    position: self.walk.pack_position(),
                }));
            }
        }
        Ok(None)
    }

    /// Reads and verifies the file header if nothing was read yet; the current one otherwise.
    ///
    /// # Errors
    /// As [`Reader::next_step`].
    pub fn file_header(&mut self) -> Result<FileHeader> {
        if self.walk.header().is_none() {
            self.next_step()?;
        }
        let missing =
            || Flaw::new(0, "wlog header", "a file header", "none").in_source(&self.source);
        self.walk.header().copied().ok_or_else(missing)
    }

    /// The next record of the pack, its verified data in `data`: exactly the bytes of the IO, empty
    /// for padding and discards. `None` after the last record.
    ///
    /// # Errors
    /// Missing bytes, or data that does not match its checksum.
    pub fn read_data(&mut self, data: &mut Vec<u8>) -> Result<Option<Record>> {
        data.clear();
        let Some(record) = self.next_record() else {
            return Ok(None);
        };
        if record.kind == RecordKind::Data {
            self.skip_to(
                self.walk
                    .pack_position()
                    .saturating_add(self.data_offset(&record)),
            )?;
            let start = self.position;
            self.read_exactly(data, record.bytes())?;
            self.verify(data, &record, start)?;
        }
        Ok(Some(record))
    }

    /// The state of the walk: file header, lsid, positions.
    pub const fn walk(&self) -> &Walk {
        &self.walk
    }

    /// Bytes read so far.
    pub const fn bytes_read(&self) -> u64 {
        self.position
    }

    fn next_record(&mut self) -> Option<Record> {
        let record = *self.pack.as_ref()?.records.get(self.done)?;
        self.done += 1;
        Some(record)
    }

    fn data_offset(&self, record: &Record) -> u64 {
        self.walk
            .header()
            .map_or(0, |file| record.data_offset(file.pbs))
    }

    fn verify(&self, data: &[u8], record: &Record, start: u64) -> Result<()> {
        let mut sum = Checksum::new(self.walk.header().map_or(0, |file| file.salt));
        sum.update(data);
        let (found, want) = (sum.finish(), record.checksum);
        if found == want {
            return Ok(());
        }
        let (want, found) = (format!("{want:08x}"), format!("{found:08x}"));
        Err(
            Flaw::new(start, "checksum of the data of a record", want, found)
                .in_source(&self.source),
        )
    }

    /// Reads what is left of the pack.
    fn leave_pack(&mut self) -> Result<()> {
        let mut data = std::mem::take(&mut self.scratch);
        while self.read_data(&mut data)?.is_some() {}
        data.truncate(PIECE);
        data.shrink_to(PIECE);
        self.scratch = data;
        self.pack = None;
        self.skip_to(self.walk.position())
    }

    fn skip_to(&mut self, target: u64) -> Result<()> {
        let count = target.saturating_sub(self.position);
        let copied = io::copy(&mut self.inner.by_ref().take(count), &mut io::sink());
        let copied = copied.map_err(|e| Error::io(&self.source, self.position, "data", e))?;
        self.position += copied;
        if copied == count {
            Ok(())
        } else {
            Err(self.truncated())
        }
    }

    fn read_exactly(&mut self, data: &mut Vec<u8>, count: u64) -> Result<()> {
        let mut left = usize::try_from(count).unwrap_or(usize::MAX);
        while left > 0 {
            let piece = left.min(PIECE);
            if self.fill(data, piece)? < piece {
                return Err(self.truncated());
            }
            left -= piece;
        }
        Ok(())
    }

    /// Appends up to `count` bytes, at most a piece; fewer only at the end of the source.
    fn fill(&mut self, data: &mut Vec<u8>, count: usize) -> Result<usize> {
        let start = data.len();
        data.resize(start + count, 0);
        let mut read = 0;
        while read < count {
            match self.inner.read(&mut data[start + read..]) {
                Ok(0) => break,
                Ok(n) => read += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(&self.source, self.position, "wlog", error)),
            }
        }
        data.truncate(start + read);
        self.position += read as u64;
        Ok(read)
    }

    fn truncated(&self) -> Error {
        let flaw = Flaw::new(
            self.position,
            "data of a record",
            "more bytes",
            "end of data (truncated)",
        );
        flaw.in_source(&self.source)
    }
}
