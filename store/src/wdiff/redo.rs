//! Applies a diff to an image (reference: "wdiff").

use std::path::Path;

use walkeep_wire::wdiff::{Kind, Piece, Tally};

use super::{Batches, open_all};
use crate::image::ImageFile;
use crate::payload::Fetcher;
use crate::pipeline::ordered;
use crate::{Meter, Result, Workers};

/// What was applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedoReport {
    /// Records applied.
    pub applied: Tally,
    /// Records that reach past the end of the image. They were not written.
    pub outside: Tally,
}

/// Applies the diff at `path` to `image` and makes the image durable.
///
/// The records of a diff do not overlap, so workers write them in any order.
pub fn redo(path: &Path, image: &ImageFile, workers: Workers, meter: &Meter) -> Result<RedoReport> {
    let (cursors, sources) = open_all(&[path])?;
    cursors.iter().for_each(|c| meter.expect(c.progress().1));
    let mut batches = Batches::new(cursors, 0);
    let mut report = RedoReport::default();
    ordered(
        workers,
        || batches.next(),
        || (Fetcher::default(), Vec::new()),
        |(fetcher, data), pieces: Vec<Piece>| {
            let mut part = RedoReport::default();
            for Piece { record, input } in pieces {
                let (address, blocks, kind) = (record.address, record.blocks, record.kind());
                if !image.holds(address, blocks) {
                    part.outside.add(kind, blocks);
                    continue;
                }
                part.applied.add(kind, blocks);
                if kind == Kind::Data {
                    data.clear();
                    fetcher.plain(&sources, input, &record, data)?;
                    image.write(address, data)?;
                    meter.add(data.len() as u64);
                } else {
                    image.clear(address, blocks, kind)?;
                }
            }
            Ok(part)
        },
        |part| {
            report.applied.join(&part.applied);
            report.outside.join(&part.outside);
            Ok(())
        },
    )?;
    image.sync()?;
    Ok(report)
}
