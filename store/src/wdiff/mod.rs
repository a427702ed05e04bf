//! Work over whole diffs: merge, redo, verify, scan as one image, compare images.

mod compare;
mod merge;
mod redo;
mod scan;
mod verify;
mod write;

pub use compare::{Comparison, Difference, compare, write_difference};
pub use merge::{MergeOptions, MergeReport, merge};
pub use redo::{RedoReport, redo};
pub use scan::{ImageSize, hash_image, scan};
pub use verify::{VerifyReport, verify};
pub use write::{DiffWriter, Shape};

use std::path::Path;
use std::sync::Arc;

use walkeep_wire::wdiff::{Cursor, Merge, Piece};

use crate::Result;
use crate::input::{FilePool, InputFile};
use crate::payload::Sources;
use crate::pipeline::Job;

/// Plain bytes of the pieces that one job carries, unless a single piece has more.
const BATCH_BYTES: u64 = 512 << 10;
/// Pieces that one job carries: as many as a pack holds, so that jobs and packs end together.
const BATCH_PIECES: usize = walkeep_wire::wdiff::PACK_RECORDS;

/// Records of an input file.
type FileCursor = Cursor<Arc<InputFile>>;

/// Opens diffs for reading records on one side and payloads on the other.
fn open_all(paths: &[impl AsRef<Path>]) -> Result<(Vec<FileCursor>, Arc<Sources>)> {
    let pool = Arc::new(FilePool::default());
    let mut cursors = Vec::with_capacity(paths.len());
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let file = Arc::new(pool.open(path.as_ref())?);
        cursors.push(Cursor::open(file.clone(), file.name())?);
        files.push(file);
    }
    Ok((cursors, Arc::new(Sources::new(files))))
}

/// Gathers pieces of a merge into jobs.
struct Batches {
    merge: Merge<FileCursor>,
    /// Pieces since the last multiple of [`BATCH_PIECES`].
    phase: usize,
}

impl Batches {
    fn new(cursors: Vec<FileCursor>, max_io: u32) -> Self {
        Self {
            merge: Merge::new(cursors, max_io),
            phase: 0,
        }
    }

    fn next(&mut self) -> Result<Option<Job<Vec<Piece>>>> {
        let mut work = Vec::new();
        let mut weight = 0;
        while weight < BATCH_BYTES {
            let Some(piece) = self.merge.next_piece()? else {
                break;
            };
            weight += piece.data_bytes();
            work.push(piece);
            self.phase = (self.phase + 1) % BATCH_PIECES;
            if self.phase == 0 {
                break;
            }
        }
        Ok((!work.is_empty()).then_some(Job { work, weight }))
    }
}
