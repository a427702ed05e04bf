//! Turns a wlog into a diff (reference: "wdiff").
//!
//! To the indexed format in one pass: IOs are compressed and appended as they come. To the sorted
//! format in two: the first checks the data and notes where the surviving ranges lie, the second
//! fetches them by address. So no data is held but what is in flight; the index takes about 100
//! bytes a surviving range.

use std::path::Path;

use walkeep_wire::logpack::RecordKind;
use walkeep_wire::wdiff::{
    CompressOption, CutMap, Format, Kind, LogEntry, OutRecord, PACK_RECORDS, Tally,
};
use walkeep_wire::{Uuid, blocks_to_bytes};

use super::scan::{LogBatches, LogFile, LogIo};
use crate::output::Output;
use crate::payload::Fetcher;
use crate::pipeline::{Buffers, Job, ordered};
use crate::wdiff::{DiffWriter, Shape};
use crate::{Error, Meter, Result, Workers};

/// Plain bytes that a job of the second pass carries, unless a single piece has more.
const BATCH_BYTES: u64 = 512 << 10;

/// How to convert.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// Container and limits of the diff.
    pub shape: Shape,
    /// How payloads are stored.
    pub compress: CompressOption,
    /// Workers.
    pub workers: Workers,
}

/// What a conversion made.
#[derive(Clone, Copy, Debug)]
pub struct ConvertReport {
    /// Uuid of the log.
    pub uuid: Uuid,
    /// First lsid and the one that follows the last pack.
    pub lsids: (u64, u64),
    /// Records of the diff. For the indexed format: IOs handed to the index.
    pub tally: Tally,
    /// Stored bytes.
    pub stored_bytes: u64,
}

/// Converts the log at `path` (which may be several in a row) into a diff at `output`.
pub fn convert(
    path: &Path,
    output: &Path,
    options: &ConvertOptions,
    meter: &Meter,
) -> Result<ConvertReport> {
    let log = LogFile::open(path)?;
    let uuid = log.header()?.uuid;
    let writer = DiffWriter::create(Output::create(output)?, options.shape, uuid)?;
    let mut batches = LogBatches::new(&log)?;
    let bytes = log.bytes()?;
    let writer = match options.shape.format {
        Format::Indexed => {
            meter.expect(bytes);
            append_all(&log, &mut batches, writer, output, options, meter)?
        }
        Format::Sorted => {
            meter.expect(2 * bytes);
            let survivors = survey(&log, &mut batches, options.workers, meter)?;
            write_sorted(&log, survivors, writer, output, options, meter)?
        }
    };
    let lsids = batches
        .statistics
        .map_or((0, 0), |s| (s.begin_lsid, s.real_end_lsid));
    let report = ConvertReport {
        uuid,
        lsids,
        tally: writer.tally,
        stored_bytes: writer.stored_bytes,
    };
    writer.finish()?;
    Ok(report)
}

/// The kind of an IO once its data is checked.
fn checked_kind(log: &LogFile, io: &LogIo, step: &mut Vec<u8>) -> Result<Kind> {
    Ok(match io.record.kind {
        RecordKind::Data if log.check(io, step)? => Kind::AllZero,
        RecordKind::Data => Kind::Data,
        RecordKind::Discard | RecordKind::Padding => Kind::Discard,
    })
}

fn append_all(
    log: &LogFile,
    batches: &mut LogBatches<'_>,
    mut writer: DiffWriter,
    output: &Path,
    options: &ConvertOptions,
    meter: &Meter,
) -> Result<DiffWriter> {
    let buffers = Buffers::default();
    ordered(
        options.workers,
        || batches.next(),
        || (Fetcher::default(), Vec::new()),
        |(fetcher, step), ios| {
            let mut records = Vec::with_capacity(ios.len());
            let plain: u64 = ios.iter().map(LogIo::data_bytes).sum();
            // Memory only for what the file really has.
            let plain = plain.min(log.bytes()?);
            let mut data = buffers.take(plain as usize);
            for io in &ios {
                let (address, blocks) = (io.record.address, io.record.blocks);
                records.push(match checked_kind(log, io, step)? {
                    Kind::Data => fetcher.compress_from(
                        log.file(),
                        log.name(),
                        io.position,
                        (address, blocks),
                        options.compress,
                        &mut data,
                    )?,
                    kind => OutRecord::empty(address, blocks, kind),
                });
            }
            Ok((records, data))
        },
        |(records, data)| {
            meter.add(records.iter().map(|r| plain_bytes(r.kind, r.blocks)).sum());
            writer
                .push(&records, &data)
                .map_err(|e| Error::file(output, "write", e))
        },
    )?;
    Ok(writer)
}

fn survey(
    log: &LogFile,
    batches: &mut LogBatches<'_>,
    workers: Workers,
    meter: &Meter,
) -> Result<CutMap> {
    let mut survivors = CutMap::default();
    ordered(
        workers,
        || batches.next(),
        Vec::new,
        |step, ios| {
            ios.into_iter()
                .map(|io| Ok((checked_kind(log, &io, step)?, io)))
                .collect::<Result<Vec<_>>>()
        },
        |ios| {
            for (
                kind,
                LogIo {
                    record, position, ..
                },
            ) in ios
            {
                let (address, blocks) = (record.address, record.blocks);
                meter.add(plain_bytes(kind, blocks));
                survivors.insert(LogEntry {
                    address,
                    blocks,
                    kind,
                    position,
                    origin: address,
                });
            }
            Ok::<_, Error>(())
        },
    )?;
    Ok(survivors)
}

fn write_sorted(
    log: &LogFile,
    survivors: CutMap,
    mut writer: DiffWriter,
    output: &Path,
    options: &ConvertOptions,
    meter: &Meter,
) -> Result<DiffWriter> {
    let mut pieces = survivors.into_pieces(options.shape.max_io);
    let mut next_batch = || {
        let mut work = Vec::new();
        let mut weight = 0;
        while weight < BATCH_BYTES && work.len() < PACK_RECORDS {
            let Some(piece) = pieces.next() else {
                break;
            };
            weight += plain_bytes(piece.kind, piece.blocks);
            work.push(piece);
        }
        Ok((!work.is_empty()).then_some(Job { work, weight }))
    };
    let buffers = Buffers::default();
    ordered(
        options.workers,
        &mut next_batch,
        Fetcher::default,
        |fetcher, pieces: Vec<LogEntry>| {
            let plain: u64 = pieces.iter().map(|p| plain_bytes(p.kind, p.blocks)).sum();
            let mut records = Vec::with_capacity(pieces.len());
            let mut data = buffers.take(plain as usize);
            for piece in pieces {
                let range = (piece.address, piece.blocks);
                records.push(match piece.kind {
                    Kind::Data => fetcher.compress_from(
                        log.file(),
                        log.name(),
                        piece.position,
                        range,
                        options.compress,
                        &mut data,
                    )?,
                    kind => OutRecord::empty(range.0, range.1, kind),
                });
            }
            Ok((records, data, plain))
        },
        |(records, data, plain)| {
            meter.add(plain);
            writer
                .push(&records, &data)
                .map_err(|e| Error::file(output, "write", e))
        },
    )?;
    Ok(writer)
}

fn plain_bytes(kind: Kind, blocks: u32) -> u64 {
    if kind == Kind::Data {
        blocks_to_bytes(blocks)
    } else {
        0
    }
}
