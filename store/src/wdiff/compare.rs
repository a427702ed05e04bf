//! Finds where two images differ, and writes the difference as a diff.

use std::path::Path;
use std::sync::Arc;

use walkeep_wire::bytes::is_zero;
use walkeep_wire::wdiff::{CompressOption, Kind, OutRecord, ReadAt};
use walkeep_wire::{LOGICAL_BLOCK, Uuid, blocks_to_bytes};

use super::{DiffWriter, Shape};
use crate::input::{FilePool, InputFile};
use crate::output::Output;
use crate::payload::Fetcher;
use crate::pipeline::{Buffers, Job, ordered};
use crate::{Error, Meter, Result, Workers};

/// Bytes compared at once.
const CHUNK: u64 = 1 << 20;
/// Images are compared in units of this size: most file systems write no less.
const UNIT: usize = 4096;

/// A range that differs, and what the second image holds there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Difference {
    /// First block \[lb\].
    pub address: u64,
    /// Number of blocks \[lb\].
    pub blocks: u32,
    /// Data, zeros, or a hole (discard).
    pub kind: Kind,
}

/// Two images opened for comparison.
pub struct Comparison {
    a: InputFile,
    b: InputFile,
    /// Bytes of the first image.
    pub a_bytes: u64,
    /// Bytes of the second image.
    pub b_bytes: u64,
}

impl Comparison {
    /// Opens both images. Their sizes must be multiples of the logical block, and equal.
    pub fn open(a: &Path, b: &Path) -> Result<Self> {
        let pool = Arc::new(FilePool::default());
        let (a, b) = (pool.open(a)?, pool.open(b)?);
        let size = |f: &InputFile| f.size().map_err(|e| Error::file(f.path(), "inspect", e));
        let (a_bytes, b_bytes) = (size(&a)?, size(&b)?);
        for (file, bytes) in [(&a, a_bytes), (&b, b_bytes)] {
            if !bytes.is_multiple_of(LOGICAL_BLOCK as u64) {
                let name = file.name();
                return Err(Error::Refused(format!(
                    "{name}: image size: expected a multiple of {LOGICAL_BLOCK} bytes, found {bytes}"
                )));
            }
        }
        if a_bytes != b_bytes {
            return Err(Error::Refused(format!(
                "image size of {}: expected {a_bytes} bytes, as {}, found {b_bytes}; a diff cannot \
                 change the size of an image: extend the smaller one first (truncate -s)",
                b.name(),
                a.name()
            )));
        }
        Ok(Self {
            a,
            b,
            a_bytes,
            b_bytes,
        })
    }
}

/// Hands the ranges in which the images differ to `consume`, by address.
pub fn compare(
    images: &Comparison,
    workers: Workers,
    meter: &Meter,
    mut consume: impl FnMut(Difference) -> Result<()>,
) -> Result<()> {
    each_chunk(
        images,
        workers,
        meter,
        |chunks, start, length| chunks.differences(images, start, length),
        |differences: Vec<Difference>| differences.into_iter().try_for_each(&mut consume),
    )
}

/// Writes the diff that turns the first image into the second: discards for holes, all-zero
/// records for zeros.
pub fn write_difference(
    images: &Comparison,
    output: &Path,
    shape: Shape,
    compress: CompressOption,
    workers: Workers,
    meter: &Meter,
) -> Result<walkeep_wire::wdiff::Tally> {
    let path = output;
    let mut writer = DiffWriter::create(Output::create(output)?, shape, Uuid::ZERO)?;
    let buffers = Buffers::default();
    each_chunk(
        images,
        workers,
        meter,
        |chunks, start, length| {
            let mut data = buffers.take(length as usize);
            let mut records = Vec::new();
            for found in chunks.differences(images, start, length)? {
                for part in cut(found, shape.max_io) {
                    records.push(chunks.record(images, &part, compress, &mut data)?);
                }
            }
            Ok((records, data))
        },
        |(records, data)| {
            writer
                .push(&records, &data)
                .map_err(|e| Error::file(path, "write", e))
        },
    )?;
    let tally = writer.tally;
    writer.finish()?;
    Ok(tally)
}

fn each_chunk<R: Send>(
    images: &Comparison,
    workers: Workers,
    meter: &Meter,
    work: impl Fn(&mut Chunks, u64, u64) -> Result<R> + Sync,
    mut consume: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let size = images.b_bytes;
    meter.expect(size);
    let mut next = 0;
    ordered(
        workers,
        || {
            let start = next;
            let length = CHUNK.min(size - start);
            next += length;
            Ok((length > 0).then_some(Job {
                work: (start, length),
                weight: 2 * length,
            }))
        },
        Chunks::default,
        |chunks, (start, length)| Ok((work(chunks, start, length)?, length)),
        |(result, length)| {
            meter.add(length);
            consume(result)
        },
    )
}

#[derive(Default)]
struct Chunks {
    a: Vec<u8>,
    b: Vec<u8>,
    fetcher: Fetcher,
}

impl Chunks {
    fn differences(
        &mut self,
        images: &Comparison,
        start: u64,
        length: u64,
    ) -> Result<Vec<Difference>> {
        read(&images.a, start, length, &mut self.a)?;
        read(&images.b, start, length, &mut self.b)?;
        if self.a == self.b {
            return Ok(Vec::new());
        }
        let mut found: Vec<Difference> = Vec::new();
        let units = self.a.chunks(UNIT).zip(self.b.chunks(UNIT)).zip(0u64..);
        for ((a, b), unit) in units {
            if a == b {
                continue;
            }
            let at = start + unit * UNIT as u64;
            let difference = Difference {
                address: at / LOGICAL_BLOCK as u64,
                blocks: (b.len() / LOGICAL_BLOCK) as u32,
                kind: kind_of(&images.b, b, at)?,
            };
            match found.last_mut() {
                Some(last) if last.continues_with(&difference) => last.blocks += difference.blocks,
                _ => found.push(difference),
            }
        }
        Ok(found)
    }

    fn record(
        &mut self,
        images: &Comparison,
        part: &Difference,
        compress: CompressOption,
        data: &mut Vec<u8>,
    ) -> Result<OutRecord> {
        if part.kind != Kind::Data {
            return Ok(OutRecord::empty(part.address, part.blocks, part.kind));
        }
        let position = part.address * LOGICAL_BLOCK as u64;
        let range = (part.address, part.blocks);
        self.fetcher
            .compress_from(&images.b, &images.b.name(), position, range, compress, data)
    }
}

impl Difference {
    /// Its size in bytes.
    pub const fn bytes(&self) -> u64 {
        blocks_to_bytes(self.blocks)
    }

    fn continues_with(&self, next: &Self) -> bool {
        self.kind == next.kind && self.address + u64::from(self.blocks) == next.address
    }
}

fn read(image: &InputFile, start: u64, length: u64, into: &mut Vec<u8>) -> Result<()> {
    into.resize(length as usize, 0);
    image
        .read_exact_at(into, start)
        .map_err(|e| walkeep_wire::Error::io(&image.name(), start, "image", e).into())
}

fn kind_of(image: &InputFile, bytes: &[u8], at: u64) -> Result<Kind> {
    if !is_zero(bytes) {
        return Ok(Kind::Data);
    }
    let data = image
        .next_data(at)
        .map_err(|e| Error::file(image.path(), "find data", e))?;
    let is_hole = data >= at + bytes.len() as u64;
    Ok(if is_hole {
        Kind::Discard
    } else {
        Kind::AllZero
    })
}

/// Cuts a difference to records of at most `max_io` blocks (0: none is cut).
fn cut(found: Difference, max_io: u32) -> impl Iterator<Item = Difference> {
    let step = if max_io == 0 { found.blocks } else { max_io };
    (0..found.blocks)
        .step_by(step as usize)
        .map(move |from| Difference {
            address: found.address + u64::from(from),
            blocks: step.min(found.blocks - from),
            kind: found.kind,
        })
}
