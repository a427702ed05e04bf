//! Walks the packs of a wlog file, and checks their data on all cores (reference: "wlog").

use std::path::Path;
use std::sync::Arc;

use walkeep_wire::bytes::is_zero;
use walkeep_wire::checksum::Checksum;
use walkeep_wire::logpack::{Record, RecordKind};
use walkeep_wire::wdiff::ReadAt;
use walkeep_wire::wlog::FileHeader;
use walkeep_wire::wlog::text::Statistics;
use walkeep_wire::wlog::walk::{Step, Walk};
use walkeep_wire::{Flaw, PhysicalBlock, Uuid};

use crate::input::{FilePool, InputFile};
use crate::pipeline::{Job, ordered};
use crate::{Error, Meter, Result, Workers};

/// Data bytes that one job carries, unless a single IO has more.
const BATCH_BYTES: u64 = 1 << 20;
/// IOs that one job carries.
const BATCH_IOS: usize = 256;
/// Data is checked in steps of this size, so that a worker's memory does not follow the IOs.
const STEP: usize = 256 << 10;

/// A wlog open for reading.
pub struct LogFile {
    file: InputFile,
    name: String,
}

impl LogFile {
    /// Opens a file; `-` is standard input, spooled to an unlinked temporary file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Arc::new(FilePool::default()).open(path)?;
        let name = file.name();
        Ok(Self { file, name })
    }

    /// The label of errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file.
    pub const fn file(&self) -> &InputFile {
        &self.file
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> Result<u64> {
        self.file
            .size()
            .map_err(|e| Error::file(self.file.path(), "inspect", e))
    }

    /// Walks the headers from the start.
    pub fn scan(&self) -> Result<Scan<'_>> {
        Ok(Scan {
            log: self,
            walk: Walk::new(),
            size: self.bytes()?,
        })
    }

    /// The first file header.
    pub fn header(&self) -> Result<FileHeader> {
        match self.scan()?.next_step()? {
            Some(Step::Header(header)) => Ok(header),
            _ => Err(Error::Refused(format!("{}: no wlog header", self.name))),
        }
    }

    /// Checks an IO's data in bounded memory; true if all of it is zero.
    pub(super) fn check(&self, io: &LogIo, step: &mut Vec<u8>) -> Result<bool> {
        step.resize(STEP, 0);
        let mut sum = Checksum::new(io.salt);
        let mut zero = true;
        let end = io.position + io.record.bytes();
        let mut at = io.position;
        while at < end {
            let piece = &mut step[..(STEP as u64).min(end - at) as usize];
            self.read(piece, at)?;
            sum.update(piece);
            zero = zero && is_zero(piece);
            at += piece.len() as u64;
        }
        io.compare(sum.finish())
            .map_err(|flaw| flaw.in_source(&self.name))?;
        Ok(zero)
    }

    pub(super) fn read(&self, into: &mut [u8], at: u64) -> Result<()> {
        self.file
            .read_exact_at(into, at)
            .map_err(|e| walkeep_wire::Error::io(&self.name, at, "log data", e).into())
    }
}

/// The steps of a walk over a file.
pub struct Scan<'a> {
    log: &'a LogFile,
    walk: Walk,
    size: u64,
}

impl Scan<'_> {
    /// The next header, pack or end; `None` where the file ends.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        let position = self.walk.position();
        let located = |flaw: Flaw| flaw.in_source(&self.log.name);
        if position == self.size && self.walk.may_end_here() {
            return Ok(None);
        }
        let Some(left) = self.size.checked_sub(position) else {
            let missing = format!("{} bytes more", position - self.size);
            let flaw = Flaw::new(
                self.size,
                "data of the logpack",
                missing,
                "end of data (truncated)",
            );
            return Err(located(flaw).into());
        };
        let mut bytes = vec![
            0;
            self.walk
                .need()
                .min(usize::try_from(left).unwrap_or(usize::MAX))
        ];
        self.log.read(&mut bytes, position)?;
        Ok(Some(self.walk.feed(&bytes).map_err(located)?))
    }

    /// The walk, for positions.
    pub const fn walk(&self) -> &Walk {
        &self.walk
    }
}

/// An IO of a log and where its data is.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogIo {
    pub(super) record: Record,
    pub(super) position: u64,
    pub(super) salt: u32,
}

impl LogIo {
    /// Bytes of its data; 0 for a discard.
    pub(super) fn data_bytes(&self) -> u64 {
        match self.record.kind {
            RecordKind::Data => self.record.bytes(),
            RecordKind::Discard | RecordKind::Padding => 0,
        }
    }

    /// The checksum of the data must be that of the record.
    pub(super) fn compare(&self, sum: u32) -> Result<(), Flaw> {
        if sum == self.record.checksum {
            return Ok(());
        }
        Err(Flaw::new(
            self.position,
            "checksum of log data",
            format!("{:08x} (lsid {})", self.record.checksum, self.record.lsid),
            format!("{sum:08x}"),
        ))
    }
}

/// Gathers the IOs of a log into jobs, in log order, without padding.
pub(super) struct LogBatches<'a> {
    scan: Scan<'a>,
    ios: std::vec::IntoIter<LogIo>,
    header: Option<FileHeader>,
    /// Uuid and statistics of what was passed.
    pub(super) uuid: Option<Uuid>,
    pub(super) statistics: Option<Statistics>,
}

impl<'a> LogBatches<'a> {
    pub(super) fn new(log: &'a LogFile) -> Result<Self> {
        let ios = Vec::new().into_iter();
        Ok(Self {
            scan: log.scan()?,
            ios,
            header: None,
            uuid: None,
            statistics: None,
        })
    }

    pub(super) fn next(&mut self) -> Result<Option<Job<Vec<LogIo>>>> {
        let mut work = Vec::new();
        let mut weight = 0;
        while weight < BATCH_BYTES && work.len() < BATCH_IOS {
            match self.next_io()? {
                None => break,
                Some(io) => {
                    weight += io.data_bytes();
                    work.push(io);
                }
            }
        }
        Ok((!work.is_empty()).then_some(Job { work, weight }))
    }

    fn next_io(&mut self) -> Result<Option<LogIo>> {
        loop {
            if let Some(io) = self.ios.next() {
                return Ok(Some(io));
            }
            match self.scan.next_step()? {
                None => return Ok(None),
                Some(Step::Header(header)) => self.begin_file(header),
                Some(Step::Pack(pack)) => self.begin_pack(&pack),
                Some(Step::End { .. }) => {}
            }
        }
    }

    fn begin_file(&mut self, header: FileHeader) {
        self.uuid = Some(header.uuid);
        match &mut self.statistics {
            Some(statistics) => statistics.continue_with(&header),
            None => self.statistics = Some(Statistics::new(&header)),
        }
        self.header = Some(header);
    }

    fn begin_pack(&mut self, pack: &walkeep_wire::logpack::Header) {
        let Some(FileHeader { pbs, salt, .. }) = self.header else {
            return;
        };
        if let Some(statistics) = &mut self.statistics {
            statistics.add(pack, pbs);
        }
        let at = self.scan.walk().pack_position();
        let ios: Vec<LogIo> = pack
            .records
            .iter()
            .filter(|record| record.kind != RecordKind::Padding)
            .map(|record| LogIo {
                record: *record,
                position: at + record.data_offset(pbs),
                salt,
            })
            .collect();
        self.ios = ios.into_iter();
    }
}

/// What a sound wlog holds.
#[derive(Clone, Debug)]
pub struct VerifyReport {
    /// Uuid of the log.
    pub uuid: Uuid,
    /// Physical block size.
    pub pbs: PhysicalBlock,
    /// Counts and lsids.
    pub statistics: Statistics,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Checks every header and all data of the wlog at `path`.
pub fn verify(path: &Path, workers: Workers, meter: &Meter) -> Result<VerifyReport> {
    let log = LogFile::open(path)?;
    let file_bytes = log.bytes()?;
    meter.expect(file_bytes);
    let mut batches = LogBatches::new(&log)?;
    ordered(
        workers,
        || batches.next(),
        Vec::new,
        |step, ios: Vec<LogIo>| {
            let mut bytes = 0;
            for io in ios.iter().filter(|io| io.record.kind == RecordKind::Data) {
                log.check(io, step)?;
                bytes += io.record.bytes();
            }
            Ok(bytes)
        },
        |bytes| {
            meter.add(bytes);
            Ok(())
        },
    )?;
    match (batches.header, batches.statistics) {
        (Some(header), Some(statistics)) => Ok(VerifyReport {
            uuid: header.uuid,
            pbs: header.pbs,
            statistics,
            file_bytes,
        }),
        _ => Err(Error::Refused(format!("{}: no wlog header", log.name()))),
    }
}
