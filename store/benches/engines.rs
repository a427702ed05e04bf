//! The disk engines beside each other: `cargo bench -p walkeep-store --bench engines`. One item is
//! one operation on 4 KiB, all in a file beside the build, so figures are those of that disk.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::unbounded;
use divan::Bencher;
use divan::counter::ItemsCount;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tempfile::TempDir;
use walkeep_store::disk::engine::{Engine, FileOp, Threads, Uring};
use walkeep_store::disk::{Disk, DiskFile, Mode, RealDisk};
use walkeep_wire::random::Random;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 64 << 10;
const OPERATIONS: usize = 4000;
const SYNCED: usize = 200;
const DEPTHS: [usize; 2] = [1, 32];
const ENGINES: [Kind; 2] = [Kind::Threads, Kind::Uring];

type AnyError = Box<dyn std::error::Error>;

fn main() {
    divan::main();
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Threads,
    Uring,
}

fn cases() -> impl Iterator<Item = String> {
    ENGINES
        .into_iter()
        .flat_map(|kind| DEPTHS.map(|depth| format!("{kind:?} {depth}")))
}

/// A file full of data and an engine for it.
struct Load {
    _dir: TempDir,
    file: Arc<dyn DiskFile>,
    engine: Box<dyn Engine>,
    depth: usize,
}

impl Load {
    fn new(case: &str) -> Result<Self, AnyError> {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
        let file = RealDisk.open(&dir.path().join(Path::new("file")), Mode::Create)?;
        let step = vec![7; 1 << 20];
        for at in (0..BLOCKS * BLOCK as u64).step_by(step.len()) {
            file.write_at(&[std::io::IoSlice::new(&step)], at)?;
        }
        file.sync()?;
        let (kind, depth) = case.split_once(' ').ok_or("a case is a kind and a depth")?;
        let engine: Box<dyn Engine> = match kind {
            "Threads" => Box::new(Threads::new()),
            _ => Box::new(Uring::new()?),
        };
        Ok(Self {
            _dir: dir,
            file,
            engine,
            depth: depth.parse()?,
        })
    }

    /// Keeps `depth` operations on their way until all are done.
    fn run(&self, operations: impl Iterator<Item = FileOp>) {
        let (tell, told) = unbounded();
        let mut open = 0;
        let wait = || told.recv().is_ok_and(|is_good| is_good);
        for op in operations {
            if open == self.depth {
                assert!(wait());
                open -= 1;
            }
            let tell = tell.clone();
            let done = Box::new(move |result: std::io::Result<Bytes>| {
                let _ = tell.send(result.is_ok());
            });
            self.engine.submit(&self.file, op, done);
            open += 1;
        }
        for _ in 0..open {
            assert!(wait());
        }
    }

    fn forget_cache(&self) {
        if let Some(file) = self.file.descriptor() {
            let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
            let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
    }
}

fn offsets(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(move || random.below(BLOCKS) * BLOCK as u64)
}

fn writes() -> impl Iterator<Item = FileOp> {
    let block = Bytes::from(vec![1; BLOCK]);
    offsets(1).map(move |offset| FileOp::Write {
        offset,
        parts: vec![block.clone()],
    })
}

fn reads() -> impl Iterator<Item = FileOp> {
    offsets(2).map(|offset| FileOp::Read { offset, len: BLOCK })
}

#[divan::bench(args = cases(), sample_count = 10, sample_size = 1)]
fn buffered_writes(bencher: Bencher<'_, '_>, case: &str) {
    with(bencher, case, OPERATIONS, |load| {
        load.run(writes().take(OPERATIONS));
    });
}

#[divan::bench(args = cases(), sample_count = 10, sample_size = 1)]
fn cached_reads(bencher: Bencher<'_, '_>, case: &str) {
    with(bencher, case, OPERATIONS, |load| {
        load.run(reads().take(OPERATIONS));
    });
}

#[divan::bench(args = cases(), sample_count = 10, sample_size = 1)]
fn uncached_reads(bencher: Bencher<'_, '_>, case: &str) {
    with(bencher, case, OPERATIONS, |load| {
        load.forget_cache();
        load.run(reads().take(OPERATIONS));
    });
}

/// Each group of `depth` writes is followed by a sync; items are the writes.
#[divan::bench(args = cases(), sample_count = 10, sample_size = 1)]
fn writes_and_syncs(bencher: Bencher<'_, '_>, case: &str) {
    with(bencher, case, SYNCED, |load| {
        let mut writes = writes();
        for _ in 0..SYNCED / load.depth {
            load.run(writes.by_ref().take(load.depth));
            load.run(std::iter::once(FileOp::Sync));
        }
    });
}

fn with(bencher: Bencher<'_, '_>, case: &str, operations: usize, run: impl Fn(&Load) + Sync) {
    match Load::new(case) {
        Ok(load) => bencher
            .counter(ItemsCount::new(operations))
            .bench(|| run(&load)),
        Err(e) => println!("{case}: {e}"),
    }
}
