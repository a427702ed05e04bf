//! The lines that show tools print for a wlog (reference: "Text forms").
//!
//! Formatting only, without line ends, except between the lines of [`Statistics`].

use std::fmt;

use super::header::{FileHeader, VERSION};
use crate::logpack::{Header, Record, RecordKind};
use crate::units::PhysicalBlock;

/// `wlog_h: …`
#[derive(Clone, Copy, Debug)]
pub struct HeaderLine<'a>(pub &'a FileHeader);

impl fmt::Display for HeaderLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileHeader {
            salt,
            pbs,
            uuid,
            begin_lsid,
            end_lsid,
        } = self.0;
        let pbs = pbs.bytes();
        write!(
            f,
            "wlog_h: ver {VERSION:3} pbs {pbs:4} salt {salt:08x} uuid {uuid} "
        )?;
        write!(f, "lsid {begin_lsid} {end_lsid}")
    }
}

/// `wlog_p: …`
#[derive(Clone, Copy, Debug)]
pub struct PackLine<'a>(pub &'a Header);

impl fmt::Display for PackLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Header {
            lsid,
            total_pb,
            checksum,
            n_padding,
            records,
        } = self.0;
        let n = records.len();
        write!(
            f,
            "wlog_p: lsid {lsid:10} total {total_pb:4} n_rec {n:2} n_pad {n_padding:2} "
        )?;
        write!(f, "csum {checksum:08x}")
    }
}

/// `wlog_r: …`
#[derive(Clone, Copy, Debug)]
pub struct RecordLine<'a>(pub &'a Record);

impl fmt::Display for RecordLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record {
            kind,
            address,
            blocks,
            lsid,
            local,
            checksum,
        } = self.0;
        let flags = match kind {
            RecordKind::Data => "E--",
            RecordKind::Padding => "EP-",
            RecordKind::Discard => "E-D",
        };
        write!(
            f,
            "wlog_r: lsid {lsid:10} {local:4} io {address:10} {blocks:4} "
        )?;
        write!(f, "flags {flags} csum {checksum:08x}")
    }
}

/// Sums over a wlog, printed as seven lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// First lsid, of the header.
    pub begin_lsid: u64,
    /// Bound of the lsids, of the header (the last one, for wlogs in a row).
    pub end_lsid: u64,
    /// Next lsid of the last pack.
    pub real_end_lsid: u64,
    /// Number of packs.
    pub packs: u64,
    /// Logical blocks of writes.
    pub data_blocks: u64,
    /// Logical blocks of discards.
    pub discard_blocks: u64,
    /// Physical blocks of padding.
    pub padding_pb: u64,
}

impl Statistics {
    /// Statistics of a wlog without packs.
    pub const fn new(file: &FileHeader) -> Self {
        Self {
            begin_lsid: file.begin_lsid,
            end_lsid: file.end_lsid,
            real_end_lsid: file.begin_lsid,
            packs: 0,
            data_blocks: 0,
            discard_blocks: 0,
            padding_pb: 0,
        }
    }

    /// Goes on with a wlog that continues this one.
    pub const fn continue_with(&mut self, file: &FileHeader) {
        self.end_lsid = file.end_lsid;
    }

    /// Adds a pack of a log with block size `pbs`.
    pub fn add(&mut self, pack: &Header, pbs: PhysicalBlock) {
        self.real_end_lsid = pack.next_lsid();
        self.packs += 1;
        for record in &pack.records {
            let blocks = u64::from(record.blocks);
            match record.kind {
                RecordKind::Data => self.data_blocks += blocks,
                RecordKind::Discard => self.discard_blocks += blocks,
                RecordKind::Padding => self.padding_pb += u64::from(record.data_pb(pbs)),
            }
        }
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bgnLsid {}", self.begin_lsid)?;
        writeln!(f, "endLsid {}", self.end_lsid)?;
        writeln!(f, "reallyEndLsid {}", self.real_end_lsid)?;
        writeln!(f, "nrPacks {}", self.packs)?;
        writeln!(f, "normalLb {}", self.data_blocks)?;
        writeln!(f, "discardLb {}", self.discard_blocks)?;
        write!(f, "paddingPb {}", self.padding_pb)
    }
}
