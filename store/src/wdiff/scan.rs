//! A base image and diffs, read as the one image they stand for (reference: "Merge").

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkeep_wire::wdiff::{Kind, Piece, ReadAt};
use walkeep_wire::{LOGICAL_BLOCK, murmur3};

use super::{Batches, open_all};
use crate::input::{FilePool, InputFile};
use crate::output::Output;
use crate::payload::{Fetcher, Sources};
use crate::pipeline::{Buffer, Buffers, Job, ordered};
use crate::{Error, Meter, Result, Workers};

/// Bytes of image that one job makes.
const CHUNK: u64 = 1 << 20;

/// Sizes of a scan.
#[derive(Clone, Copy, Debug)]
pub struct ImageSize {
    /// Bytes of the image.
    pub bytes: u64,
    /// Bytes that came from the diffs.
    pub from_diffs: u64,
    /// Records that reach past the end of the image; what lies beyond was left out.
    pub clipped: u64,
}

/// A part of the image: a range of bytes and where they come from.
struct Chunk {
    start: u64,
    end: u64,
    pieces: Vec<Piece>,
    /// True if the base has nothing but a hole here.
    base_is_hole: bool,
}

/// Cuts the image into chunks with the pieces that fall into each.
struct Chunks<'a> {
    batches: Batches,
    queue: std::vec::IntoIter<Piece>,
    next: Option<Piece>,
    base: &'a InputFile,
    data_from: u64,
    position: u64,
    size: u64,
    clipped: u64,
}

impl Chunks<'_> {
    fn next_piece(&mut self) -> Result<Option<Piece>> {
        loop {
            if let Some(piece) = self.next.take().or_else(|| self.queue.next()) {
                return Ok(Some(piece));
            }
            match self.batches.next()? {
                Some(job) => self.queue = job.work.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// The piece as far as it lies before `end`; the rest comes next.
    fn next_piece_before(&mut self, end: u64) -> Result<Option<Piece>> {
        let block = LOGICAL_BLOCK as u64;
        let Some(piece) = self.next_piece()? else {
            return Ok(None);
        };
        let record = piece.record;
        let end_block = end / block;
        if record.address >= end_block {
            self.next = Some(piece);
            return Ok(None);
        }
        if record.end() <= end_block {
            return Ok(Some(piece));
        }
        if end == self.size {
            self.clipped += 1;
        } else {
            self.next = Some(Piece {
                record: record.part(end_block, record.end()),
                ..piece
            });
        }
        Ok(Some(Piece {
            record: record.part(record.address, end_block),
            ..piece
        }))
    }

    fn next(&mut self) -> Result<Option<Job<Chunk>>> {
        if self.position >= self.size {
            return self.count_beyond();
        }
        let start = self.position;
        let end = self.size.min(start + CHUNK);
        let mut pieces = Vec::new();
        while let Some(piece) = self.next_piece_before(end)? {
            pieces.push(piece);
        }
        if self.data_from < start {
            let asked = self.base.next_data(start);
            self.data_from = asked.map_err(|e| Error::file(self.base.path(), "find data", e))?;
        }
        let base_is_hole = self.data_from >= end;
        self.position = end;
        Ok(Some(Job {
            work: Chunk {
                start,
                end,
                pieces,
                base_is_hole,
            },
            weight: end - start,
        }))
    }

    fn count_beyond(&mut self) -> Result<Option<Job<Chunk>>> {
        while self.next_piece()?.is_some() {
            self.clipped += 1;
        }
        Ok(None)
    }
}

/// Runs over the image of `base` and `diffs` (oldest first) in chunks and hands each to `consume`,
/// in order, as `(offset, length, bytes)`; `None` for a chunk of zeros.
fn scan_chunks(
    (base, size): (&InputFile, u64),
    diffs: &[PathBuf],
    workers: Workers,
    meter: &Meter,
    mut consume: impl FnMut(u64, u64, Option<&[u8]>) -> Result<()>,
) -> Result<ImageSize> {
    let (cursors, sources) = open_all(diffs)?;
    meter.expect(size);
    let mut chunks = Chunks {
        batches: Batches::new(cursors, 0),
        queue: Vec::new().into_iter(),
        next: None,
        base,
        data_from: 0,
        position: 0,
        size,
        clipped: 0,
    };
    let mut from_diffs = 0;
    let buffers = Buffers::default();
    ordered(
        workers,
        || chunks.next(),
        Fetcher::default,
        |fetcher, chunk| fill(fetcher, &sources, base, chunk, &buffers),
        |(start, end, bytes, diff_bytes)| {
            from_diffs += diff_bytes;
            meter.add(end - start);
            consume(start, end - start, bytes.as_ref().map(|b| b.as_slice()))
        },
    )?;
    Ok(ImageSize {
        bytes: size,
        from_diffs,
        clipped: chunks.clipped,
    })
}

/// Opens a base, and tells its size in bytes.
fn open_base(path: &Path) -> Result<(InputFile, u64)> {
    let base = Arc::new(FilePool::default()).open(path)?;
    let size = base.size().map_err(|e| Error::file(path, "inspect", e))?;
    if size.is_multiple_of(LOGICAL_BLOCK as u64) {
        return Ok((base, size));
    }
    Err(Error::Refused(format!(
        "{}: image size: expected a multiple of {LOGICAL_BLOCK} bytes, found {size}",
        base.name()
    )))
}

type Filled<'a> = (u64, u64, Option<Buffer<'a>>, u64);

fn fill<'a>(
    fetcher: &mut Fetcher,
    sources: &Sources,
    base: &InputFile,
    chunk: Chunk,
    buffers: &'a Buffers,
) -> Result<Filled<'a>> {
    let block = LOGICAL_BLOCK as u64;
    let Chunk {
        start,
        end,
        pieces,
        base_is_hole,
    } = chunk;
    let zeros = pieces.iter().all(|p| p.record.kind() != Kind::Data);
    let diff_bytes = pieces
        .iter()
        .map(|p| u64::from(p.record.blocks) * block)
        .sum();
    if zeros && (base_is_hole || diff_bytes == end - start) {
        return Ok((start, end, None, diff_bytes));
    }
    let mut bytes = buffers.take((end - start) as usize);
    for piece in pieces {
        read_base(
            base,
            base_is_hole,
            start,
            piece.record.address * block,
            &mut bytes,
        )?;
        fetcher.plain(sources, piece.input, &piece.record, &mut bytes)?;
    }
    read_base(base, base_is_hole, start, end, &mut bytes)?;
    Ok((start, end, Some(bytes), diff_bytes))
}

/// Appends what the base holds from the end of `bytes` up to the position `to` of the image.
fn read_base(
    base: &InputFile,
    is_hole: bool,
    start: u64,
    to: u64,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let from = start + bytes.len() as u64;
    if to <= from {
        return Ok(());
    }
    let filled = bytes.len();
    bytes.resize(filled + (to - from) as usize, 0);
    if is_hole {
        return Ok(());
    }
    base.read_exact_at(&mut bytes[filled..], from)
        .map_err(|e| walkeep_wire::Error::io(&base.name(), from, "image", e).into())
}

/// Writes the image of `base` and `diffs` to `output`. Zeros become holes where they can.
///
/// # Errors
/// Besides those of data and files, [`Error::Refused`] for a base that is not whole blocks and for
/// a block device that is too small, which is left as it is.
pub fn scan(
    base: &Path,
    diffs: &[PathBuf],
    output: &Path,
    workers: Workers,
    meter: &Meter,
) -> Result<ImageSize> {
    let (base, bytes) = open_base(base)?;
    let mut output = Output::create(output)?;
    output.demand_room(bytes)?;
    let size = scan_chunks(
        (&base, bytes),
        diffs,
        workers,
        meter,
        |offset, length, bytes| {
            write_chunk(&mut output, offset, length, bytes).map_err(|e| output.error("write", e))
        },
    )?;
    if output.is_file() {
        let sized = output.set_size(size.bytes);
        sized.map_err(|e| output.error("set the size of", e))?;
    }
    output.commit()?;
    Ok(size)
}

fn write_chunk(
    output: &mut Output,
    offset: u64,
    length: u64,
    bytes: Option<&[u8]>,
) -> io::Result<()> {
    match (output.is_file(), bytes) {
        (true, Some(bytes)) => output.write_all_at(bytes, offset),
        (true, None) => Ok(()),
        (false, Some(bytes)) => output.write_all(bytes),
        (false, None) => io::copy(&mut io::Read::take(io::repeat(0), length), output).map(drop),
    }
}

/// The hash of a whole image: the XOR of the hashes of its bulks of `bulk` bytes, the k-th hashed
/// with seed k (reference: "Hashes").
pub fn hash_image(image: &Path, bulk: u64, workers: Workers, meter: &Meter) -> Result<[u8; 16]> {
    let pool = Arc::new(FilePool::default());
    let file = pool.open(image)?;
    let size = file.size().map_err(|e| Error::file(image, "inspect", e))?;
    meter.expect(size);
    let mut next = 0u64;
    let mut total = [0; 16];
    ordered(
        workers,
        || {
            let start = next * bulk;
            let number = next;
            next += 1;
            let length = bulk.min(size.saturating_sub(start));
            Ok((length > 0).then_some(Job {
                work: (number, start, length),
                weight: length,
            }))
        },
        Vec::new,
        |bytes, (number, start, length)| {
            bytes.resize(length as usize, 0);
            file.read_exact_at(bytes, start)
                .map_err(|e| walkeep_wire::Error::io(&file.name(), start, "image", e))?;
            // Seeds are 32 bits wide by definition; the count wraps with them.
            Ok((murmur3::murmur3(bytes, number as u32), length))
        },
        |(hash, length)| {
            meter.add(length);
            total
                .iter_mut()
                .zip(hash)
                .for_each(|(sum, byte)| *sum ^= byte);
            Ok::<_, Error>(())
        },
    )?;
    Ok(total)
}
