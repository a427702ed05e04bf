//! Merges diffs into one (reference: "Merge").

use std::path::{Path, PathBuf};

use walkeep_wire::Uuid;
use walkeep_wire::wdiff::{CompressOption, Tally};

use super::{Batches, DiffWriter, Shape, open_all};
use crate::output::Output;
use crate::payload::Fetcher;
use crate::pipeline::{Buffers, ordered};
use crate::{Error, Meter, Result, Workers};

/// How to merge.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// Container and limits of the result.
    pub shape: Shape,
    /// Compress every payload so; without it, uncut ones are copied as they are.
    pub compress: Option<CompressOption>,
    /// Merge diffs of different volumes, too.
    pub any_uuid: bool,
    /// Workers.
    pub workers: Workers,
}

/// What a merge made.
#[derive(Clone, Copy, Debug)]
pub struct MergeReport {
    /// Uuid of the result: the newest input's.
    pub uuid: Uuid,
    /// Its records.
    pub tally: Tally,
    /// Its stored bytes.
    pub stored_bytes: u64,
}

/// Merges `inputs`, oldest first, into `output`.
///
/// # Errors
/// [`Error::Refused`] if the uuids differ; a zero uuid, which stands for unknown, does not count.
pub fn merge(
    inputs: &[PathBuf],
    output: &Path,
    options: &MergeOptions,
    meter: &Meter,
) -> Result<MergeReport> {
    let (cursors, sources) = open_all(inputs)?;
    let uuids: Vec<Uuid> = cursors.iter().map(|c| c.header().uuid).collect();
    if !options.any_uuid {
        check_uuids(inputs, &uuids)?;
    }
    let uuid = uuids.last().copied().unwrap_or_default();
    cursors.iter().for_each(|c| meter.expect(c.progress().1));
    let output_path = output;
    let mut writer = DiffWriter::create(Output::create(output)?, options.shape, uuid)?;
    let mut batches = Batches::new(cursors, options.shape.max_io);
    let buffers = Buffers::default();
    ordered(
        options.workers,
        || batches.next(),
        Fetcher::default,
        |fetcher, pieces| {
            let mut records = Vec::with_capacity(pieces.len());
            let plain: u64 = pieces.iter().map(|p| p.data_bytes()).sum();
            let mut data = buffers.take(plain as usize);
            for piece in pieces {
                let record = &piece.record;
                records.push(fetcher.stored(
                    &sources,
                    piece.input,
                    record,
                    options.compress,
                    &mut data,
                )?);
            }
            Ok((records, data))
        },
        |(records, data)| {
            meter.add(data.len() as u64);
            writer
                .push(&records, &data)
                .map_err(|e| Error::file(output_path, "write", e))
        },
    )?;
    let (tally, stored_bytes) = (writer.tally, writer.stored_bytes);
    writer.finish()?;
    Ok(MergeReport {
        uuid,
        tally,
        stored_bytes,
    })
}

fn check_uuids(inputs: &[PathBuf], uuids: &[Uuid]) -> Result<()> {
    let known = || {
        inputs
            .iter()
            .zip(uuids)
            .filter(|(_, uuid)| **uuid != Uuid::ZERO)
    };
    let Some((first_path, first)) = known().next() else {
        return Ok(());
    };
    match known().find(|(_, uuid)| *uuid != first) {
        None => Ok(()),
        Some((path, uuid)) => Err(Error::Refused(format!(
            "{}: offset 16: uuid: expected {first}, as in {}, found {uuid}; the diffs belong to \
             different logs (--any-uuid merges them all the same)",
            path.display(),
            first_path.display()
        ))),
    }
}
