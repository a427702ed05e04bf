//! Writing a wlog to a stream (reference: "wlog").
//!
//! Every header goes through the [`Walk`] that readers use, so a writer cannot make a file that a
//! reader refuses, except by wrong data: checksums of data are the caller's business.

use std::io::Write;

use super::header::FileHeader;
use super::walk::{Step, Walk};
use crate::error::{Error, Flaw, Result, demand};
use crate::logpack::{Header, end_block, is_end_block};

/// Writes one wlog: file header, packs, end block.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    source: String,
    walk: Walk,
    file: FileHeader,
    /// Bytes written so far.
    position: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the file header. `source` names the stream in errors. Buffer the stream if its
    /// writes of a physical block are expensive.
    ///
    /// # Errors
    /// A header that breaks a rule, or a failing stream.
    pub fn new(inner: W, source: impl Into<String>, file: FileHeader) -> Result<Self> {
        let mut new = Self {
            inner,
            source: source.into(),
            walk: Walk::new(),
            file,
            position: 0,
        };
        new.step(&file.encode())?;
        Ok(new)
    }

    /// Writes a pack. `data` holds the physical blocks of all its records, as they stand in the log.
    ///
    /// # Errors
    /// A pack that breaks a rule or does not follow the one before, data of another length than the
    /// header says, or a failing stream.
    pub fn write_pack(&mut self, header: &Header, data: &[u8]) -> Result<()> {
        let want = u64::from(header.total_pb) * self.file.pbs.bytes() as u64;
        self.check(
            "data of the pack",
            data.len() as u64 == want,
            want,
            data.len(),
        )?;
        self.begin_pack(&header.encode(self.file.pbs, self.file.salt))?;
        self.write_data(data)
    }

    /// Writes a header block unchanged, say one out of a log device, and returns its header. Its
    /// data must follow by [`Writer::write_data`].
    ///
    /// # Errors
    /// As [`Writer::write_pack`].
    pub fn begin_pack(&mut self, block: &[u8]) -> Result<Header> {
        // An end block would pass the walk, but it is `finish` that ends the file.
        let ends = is_end_block(block, self.file.pbs, self.file.salt);
        self.check(
            "logpack header",
            !ends,
            "a pack with records",
            "an end block",
        )?;
        match self.step(block)? {
            Step::Pack(header) => Ok(header),
            _ => Err(self.flaw("logpack header", "a pack with records", "something else")),
        }
    }

    /// Writes a piece of the data of the pack.
    ///
    /// # Errors
    /// More data than the header says, or a failing stream.
    pub fn write_data(&mut self, data: &[u8]) -> Result<()> {
        let left = self.walk.position().saturating_sub(self.position);
        let fits = data.len() as u64 <= left;
        self.check(
            "data of the pack",
            fits,
            format!("at most {left} bytes"),
            data.len(),
        )?;
        self.put(data)
    }

    /// lsid behind the last pack.
    pub const fn next_lsid(&self) -> u64 {
        self.walk.lsid()
    }

    /// Bytes written so far.
    pub const fn bytes_written(&self) -> u64 {
        self.position
    }

    /// Writes the end block, flushes, and returns the stream.
    ///
    /// # Errors
    /// Missing data of the last pack, or a failing stream.
    pub fn finish(mut self) -> Result<W> {
        let end = end_block(self.file.pbs, self.file.salt);
        self.step(&end)?;
        let flushed = self.inner.flush();
        flushed.map_err(|error| Error::io(&self.source, self.position, "wlog", error))?;
        Ok(self.inner)
    }

    /// Checks a header by the walk, then writes it.
    fn step(&mut self, bytes: &[u8]) -> Result<Step> {
        let missing = self.walk.position().saturating_sub(self.position);
        self.check(
            "data of the pack",
            missing == 0,
            "all of it",
            format!("{missing} bytes less"),
        )?;
        let step = self
            .walk
            .feed(bytes)
            .map_err(|flaw| flaw.in_source(&self.source))?;
        self.put(bytes)?;
        Ok(step)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.inner.write_all(bytes);
        written.map_err(|error| Error::io(&self.source, self.position, "wlog", error))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn check(
        &self,
        what: &'static str,
        holds: bool,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> Result<()> {
        let rule = || -> Result<(), Flaw> {
            demand!(holds, self.position, what, expected, found);
            Ok(())
        };
        rule().map_err(|flaw| flaw.in_source(&self.source))
    }

    fn flaw(&self, what: &'static str, expected: &str, found: &str) -> Error {
        Flaw::new(self.position, what, expected, found).in_source(&self.source)
    }
}
