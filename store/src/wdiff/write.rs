//! Writes a diff of either format into an output.

use std::io::{BufWriter, Write};

use walkeep_wire::Uuid;
use walkeep_wire::wdiff::{Format, IndexedWriter, OutRecord, SortedWriter, Tally};

use crate::Result;
use crate::output::Output;

/// Small writes of the indexed format are gathered up to this size.
const BUFFER: usize = 1 << 20;

/// Container and limits of a diff to be written.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The container.
    pub format: Format,
    /// Greatest record \[lb\]; 0 is no limit.
    pub max_io: u32,
}

/// A diff being written. Nothing appears under its name before [`finish`](Self::finish).
pub struct DiffWriter {
    to: Target,
    /// What was written.
    pub tally: Tally,
    /// Stored bytes written.
    pub stored_bytes: u64,
}

enum Target {
    Sorted(SortedWriter<Output>),
    Indexed(IndexedWriter<BufWriter<Output>>),
}

impl DiffWriter {
    /// Begins a diff.
    pub fn create(output: Output, shape: Shape, uuid: Uuid) -> Result<Self> {
        let path = output.path().to_owned();
        let to = match shape.format {
            Format::Sorted => SortedWriter::create(output, uuid).map(Target::Sorted),
            Format::Indexed => {
                let out = BufWriter::with_capacity(BUFFER, output);
                IndexedWriter::create(out, uuid, shape.max_io).map(Target::Indexed)
            }
        };
        let to = to.map_err(|e| crate::Error::file(&path, "write", e))?;
        Ok(Self {
            to,
            tally: Tally::default(),
            stored_bytes: 0,
        })
    }

    /// Adds records whose stored bytes lie in `data` one after the other.
    pub fn push(&mut self, records: &[OutRecord], data: &[u8]) -> std::io::Result<()> {
        for record in records {
            self.tally.add(record.kind, record.blocks);
        }
        self.stored_bytes += data.len() as u64;
        match &mut self.to {
            Target::Sorted(writer) => writer.push(records, data),
            Target::Indexed(writer) => {
                let mut rest = data;
                records.iter().try_for_each(|record| {
                    let (stored, behind) = rest.split_at(record.size as usize);
                    rest = behind;
                    writer.push(record, stored)
                })
            }
        }
    }

    /// Completes the diff, makes it durable and gives it its name.
    pub fn finish(self) -> Result<()> {
        let finished = match self.to {
            Target::Sorted(writer) => writer.finish(),
            Target::Indexed(writer) => writer
                .finish()
                .and_then(|out| out.into_inner().map_err(|e| e.into_error())),
        };
        let flushed = finished.and_then(|mut output| output.flush().map(|()| output));
        flushed
            .map_err(|e| crate::Error::Refused(format!("cannot write the diff: {e}")))?
            .commit()
    }
}
