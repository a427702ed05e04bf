//! Replays a wlog onto an image (reference: "wlog").

use std::path::Path;

use walkeep_wire::checksum::checksum;
use walkeep_wire::logpack::RecordKind;
use walkeep_wire::wdiff::{Kind, Tally};

use super::scan::{LogBatches, LogFile, LogIo};
use crate::image::ImageFile;
use crate::pipeline::{Buffer, Buffers, ordered};
use crate::{Meter, Result, Workers};

/// What was replayed.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedoReport {
    /// IOs replayed.
    pub applied: Tally,
    /// IOs that reach past the end of the image. They were not written, not even in part.
    pub outside: Tally,
    /// lsid that follows the last pack.
    pub end_lsid: u64,
}

/// Replays the log at `path` onto `image` in log order, and makes the image durable.
///
/// Workers read and check; one thread writes, because IOs may overlap. A bad checksum stops the
/// replay: all IOs before it are on the image then.
pub fn redo(
    path: &Path,
    image: &ImageFile,
    skip_checksum: bool,
    workers: Workers,
    meter: &Meter,
) -> Result<RedoReport> {
    let log = LogFile::open(path)?;
    meter.expect(log.bytes()?);
    let mut batches = LogBatches::new(&log)?;
    let mut report = RedoReport::default();
    let buffers = Buffers::default();
    let done = ordered(
        workers,
        || batches.next(),
        || (),
        |(), ios| load(&log, ios, skip_checksum, &buffers),
        |(ios, data)| {
            meter.add(data.len() as u64);
            apply(image, &ios, &data, &mut report)
        },
    );
    // What was written before an error is durable, too: replaying again is harmless.
    image.sync()?;
    done?;
    report.end_lsid = batches.statistics.map_or(0, |s| s.real_end_lsid);
    Ok(report)
}

fn load<'a>(
    log: &LogFile,
    ios: Vec<LogIo>,
    skip_checksum: bool,
    buffers: &'a Buffers,
) -> Result<(Vec<LogIo>, Buffer<'a>)> {
    let bytes: u64 = ios.iter().map(LogIo::data_bytes).sum();
    // Memory only for what the file really has.
    let available = log.bytes()?;
    let mut data = buffers.take(bytes.min(available) as usize);
    for io in ios.iter().filter(|io| io.record.kind == RecordKind::Data) {
        let start = data.len();
        let wanted = io.record.bytes();
        if io.position.saturating_add(wanted) > available {
            log.read(&mut [0], available)?;
        }
        data.resize(start + wanted as usize, 0);
        log.read(&mut data[start..], io.position)?;
        if !skip_checksum {
            io.compare(checksum(&data[start..], io.salt))
                .map_err(|flaw| flaw.in_source(log.name()))?;
        }
    }
    Ok((ios, data))
}

fn apply(image: &ImageFile, ios: &[LogIo], data: &[u8], report: &mut RedoReport) -> Result<()> {
    let mut rest = data;
    for LogIo { record, .. } in ios {
        let (address, blocks) = (record.address, record.blocks);
        let is_data = record.kind == RecordKind::Data;
        let kind = if is_data { Kind::Data } else { Kind::Discard };
        let own = if is_data { record.bytes() as usize } else { 0 };
        let (bytes, behind) = rest.split_at(own);
        rest = behind;
        if !image.holds(address, blocks) {
            report.outside.add(kind, blocks);
            continue;
        }
        report.applied.add(kind, blocks);
        if is_data {
            image.write(address, bytes)?;
        } else {
            image.clear(address, blocks, kind)?;
        }
    }
    Ok(())
}
