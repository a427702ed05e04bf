//! Reads every record of a diff, checks it and decompresses it (reference: "wdiff").

use std::collections::HashSet;
use std::path::Path;

use walkeep_wire::wdiff::{Body, Compression, FileHeader, IndexSuper, Kind, Tally};

use super::{Batches, open_all};
use crate::payload::Fetcher;
use crate::pipeline::ordered;
use crate::{Meter, Result, Workers};

/// What a sound diff holds.
#[derive(Clone, Debug)]
pub struct VerifyReport {
    /// The file header.
    pub header: FileHeader,
    /// The super of an indexed diff.
    pub index: Option<IndexSuper>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Records by kind.
    pub tally: Tally,
    /// Data records by algorithm, in the order of [`Compression::ALL`], and the bytes of what is
    /// stored for them: an image that several records share counts once.
    pub stored: [(u64, u64); 6],
    /// First block and the block after the last, unless the diff is empty.
    pub range: Option<(u64, u64)>,
}

/// Checks the whole diff at `path`; without `payloads`, its headers and records only.
pub fn verify(
    path: &Path,
    payloads: bool,
    workers: Workers,
    meter: &Meter,
) -> Result<VerifyReport> {
    let (cursors, sources) = open_all(&[path])?;
    let cursor = &cursors[0];
    let mut report = VerifyReport {
        header: *cursor.header(),
        index: cursor.index().copied(),
        file_bytes: cursor.progress().1,
        tally: Tally::default(),
        stored: [(0, 0); 6],
        range: None,
    };
    meter.expect(report.file_bytes);
    let mut batches = Batches::new(cursors, 0);
    // Only an index lets records share images.
    let mut seen = report.index.map(|_| HashSet::new());
    ordered(
        workers,
        || batches.next(),
        || (Fetcher::default(), Vec::new()),
        |(fetcher, data), pieces| {
            if payloads {
                for piece in &pieces {
                    data.clear();
                    if piece.record.kind() == Kind::Data {
                        fetcher.plain(&sources, piece.input, &piece.record, data)?;
                    }
                }
            }
            Ok(pieces)
        },
        |pieces| {
            for piece in pieces {
                let record = piece.record;
                report.tally.add(record.kind(), record.blocks);
                let begin = report.range.map_or(record.address, |(begin, _)| begin);
                report.range = Some((begin, record.end()));
                if let Body::Data(stored) = record.body {
                    let (count, bytes) = &mut report.stored[stored.compression as usize];
                    *count += 1;
                    if seen
                        .as_mut()
                        .is_none_or(|seen| seen.insert(stored.position))
                    {
                        *bytes += u64::from(stored.size);
                        meter.add(u64::from(stored.size));
                    }
                }
            }
            Ok(())
        },
    )?;
    Ok(report)
}

impl VerifyReport {
    /// Data records and stored bytes of each algorithm that occurs.
    pub fn by_compression(&self) -> impl Iterator<Item = (Compression, u64, u64)> {
        Compression::ALL
            .into_iter()
            .zip(self.stored)
            .filter(|(_, (count, _))| *count > 0)
            .map(|(compression, (count, bytes))| (compression, count, bytes))
    }
}
