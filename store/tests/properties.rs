//! Laws of the work over whole files, on random small inputs and real files.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do: at once"
)]

#[path = "support/files.rs"]
mod files;

use std::path::{Path, PathBuf};

use files::{Diff, image, scratch, xorshift};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proptest::collection::vec;
use proptest::prelude::*;
use walkeep_store::image::DiscardPolicy;
use walkeep_store::output::Output;
use walkeep_store::wdiff::{self, DiffWriter, MergeOptions, Shape};
use walkeep_store::wlog::{self, ConvertOptions, LogFile};
use walkeep_store::{Meter, Workers};
use walkeep_wire::logpack::RecordKind;
use walkeep_wire::wdiff::{
    Codec, CompressOption, Compression, Format, Kind, OutRecord, PACK_HEADER, Tally,
};
use walkeep_wire::wlog::generate::{DataKind, Generator, Options};
use walkeep_wire::wlog::{Step, Writer};
use walkeep_wire::{LOGICAL_BLOCK, PhysicalBlock, Uuid};

/// Blocks of the images.
const BLOCKS: u64 = 160;
/// Least number of cases of a law.
const CASES: u32 = 256;
/// Algorithms; lzma is left out because its dictionary takes longer than everything else.
const ALGORITHMS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Snappy,
    Compression::Lz4,
    Compression::Zstd,
];

fn meter() -> Meter {
    Meter::default()
}

fn compression() -> impl Strategy<Value = CompressOption> {
    prop::sample::select(ALGORITHMS.to_vec()).prop_map(|algorithm| CompressOption {
        algorithm,
        ..CompressOption::default()
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    let format = prop_oneof![Just(Format::Sorted), Just(Format::Indexed)];
    let max_io = prop_oneof![Just(0), 1..20u32, Just(2048)];
    (format, max_io).prop_map(|(format, max_io)| Shape { format, max_io })
}

fn workload() -> impl Strategy<Value = Options> {
    let data = prop_oneof![
        Just(DataKind::Random),
        Just(DataKind::Compressible),
        Just(DataKind::Zero)
    ];
    let pbs = prop::sample::select(vec![512, 1024, 2048, 4096]);
    let sizes = (1..12u32, 0..30u32);
    let flags = any::<(bool, bool, bool)>();
    let numbers = (any::<u64>(), 1..48u64, 0..1u64 << 60);
    (numbers, pbs, sizes, data, flags).prop_map(|(numbers, pbs, sizes, data, flags)| Options {
        seed: numbers.0,
        total_bytes: numbers.1 << 10,
        device_blocks: BLOCKS,
        pbs: PhysicalBlock::new(pbs, 0).unwrap(),
        min_io: sizes.0,
        max_io: sizes.0 + sizes.1,
        data,
        discard: flags.0,
        all_zero: flags.1,
        padding: flags.2,
        begin_lsid: numbers.2,
    })
}

fn write_log(path: &Path, options: &Options) {
    let packs = Generator::new(options.clone()).unwrap();
    let mut writer = Writer::new(vec![], "log", packs.file_header()).unwrap();
    for pack in packs {
        writer.write_pack(&pack.header, &pack.data).unwrap();
    }
    std::fs::write(path, writer.finish().unwrap()).unwrap();
}

/// An image of blocks, changed in memory in the plainest way.
struct Model {
    bytes: Vec<u8>,
    outside: Tally,
}

impl Model {
    fn new(base: &[u8]) -> Self {
        let (bytes, outside) = (base.to_vec(), Tally::default());
        Self { bytes, outside }
    }

    /// Discarded ranges become zeros. What does not fit is counted only.
    fn apply(&mut self, address: u64, blocks: u32, kind: Kind, data: &[u8]) {
        let from = address as usize * LOGICAL_BLOCK;
        let to = from + blocks as usize * LOGICAL_BLOCK;
        match self.bytes.get_mut(from..to) {
            None => self.outside.add(kind, blocks),
            Some(range) if kind == Kind::Data => range.copy_from_slice(data),
            Some(range) => range.fill(0),
        }
    }

    fn apply_log(&mut self, options: &Options) {
        for pack in Generator::new(options.clone()).unwrap() {
            for record in &pack.header.records {
                let kind = match record.kind {
                    RecordKind::Padding => continue,
                    RecordKind::Data => Kind::Data,
                    RecordKind::Discard => Kind::Discard,
                };
                let from = record.data_offset(options.pbs) as usize - options.pbs.bytes();
                let data = match kind {
                    Kind::Data => &pack.data[from..from + record.bytes() as usize],
                    _ => &[],
                };
                self.apply(record.address, record.blocks, kind, data);
            }
        }
    }

    fn apply_diff(&mut self, diff: &Sketch) {
        for record in &diff.records {
            self.apply(record.address, record.blocks, record.kind, &record.data());
        }
    }
}

/// A record to be written.
#[derive(Clone, Debug)]
struct SketchRecord {
    address: u64,
    blocks: u32,
    kind: Kind,
    seed: u64,
    algorithm: Compression,
}

/// A diff to be written: for the sorted format by address and without overlap, for the indexed
/// one in any order.
#[derive(Clone, Debug)]
struct Sketch {
    shape: Shape,
    records: Vec<SketchRecord>,
}

impl SketchRecord {
    /// Its data: every third compresses.
    fn data(&self) -> Vec<u8> {
        let size = match self.kind {
            Kind::Data => self.blocks as usize * LOGICAL_BLOCK,
            _ => 0,
        };
        if self.seed.is_multiple_of(3) {
            let pattern = self.seed.to_le_bytes();
            return pattern.into_iter().cycle().take(size).collect();
        }
        xorshift(self.seed, size)
    }
}

impl Sketch {
    fn write(&self, path: &Path) {
        let output = Output::create(path).unwrap();
        let mut writer = DiffWriter::create(output, self.shape, Uuid([7; 16])).unwrap();
        let mut codec = Codec::default();
        for record in &self.records {
            let mut stored = vec![];
            let out = match record.kind {
                Kind::Data => {
                    let used = codec.compress(record.algorithm, 0, &record.data(), &mut stored);
                    OutRecord::data(record.address, record.blocks, used, &stored)
                }
                kind => OutRecord::empty(record.address, record.blocks, kind),
            };
            writer.push(&[out], &stored).unwrap();
        }
        writer.finish().unwrap();
    }

    /// Lays the records one behind the other, `address` being the gap before each.
    fn laid_out(mut self) -> Self {
        let mut end = 0;
        if self.shape.format == Format::Sorted {
            for record in &mut self.records {
                record.address = end + record.address % 12;
                end = record.address + u64::from(record.blocks);
            }
        }
        self
    }
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let kind =
        prop_oneof![3 => Just(Kind::Data), 1 => Just(Kind::AllZero), 1 => Just(Kind::Discard)];
    let place = (0..BLOCKS - 20, 1..20u32);
    let record = (place, kind, 1..u64::MAX, compression()).prop_map(
        |((address, blocks), kind, seed, compress)| SketchRecord {
            address,
            blocks,
            kind,
            seed,
            algorithm: compress.algorithm,
        },
    );
    (shape(), vec(record, 0..10)).prop_map(|(shape, records)| Sketch { shape, records }.laid_out())
}

/// The base of all images; not zero anywhere.
fn base(blocks: u64) -> Vec<u8> {
    xorshift(1, blocks as usize * LOGICAL_BLOCK)
}

/// The image after the diffs were applied to it one after the other.
fn redone(dir: &Path, diffs: &[PathBuf], base: &[u8], threads: usize) -> (Vec<u8>, Tally) {
    let path = dir.join("image");
    let image = image(&path, base, DiscardPolicy::Zero).unwrap();
    let mut outside = Tally::default();
    for diff in diffs {
        let report = wdiff::redo(diff, &image, Workers::new(threads), &meter()).unwrap();
        outside.join(&report.outside);
    }
    (std::fs::read(path).unwrap(), outside)
}

/// The image after the log was replayed on it.
fn replayed(dir: &Path, log: &Path, base: &[u8], threads: usize) -> (Vec<u8>, Tally) {
    let path = dir.join("image");
    let image = image(&path, base, DiscardPolicy::Zero).unwrap();
    let report = wlog::redo(log, &image, false, Workers::new(threads), &meter()).unwrap();
    (std::fs::read(path).unwrap(), report.outside)
}

fn converted(log: &Path, output: &Path, shape: Shape, compress: CompressOption, threads: usize) {
    let workers = Workers::new(threads);
    let options = ConvertOptions {
        shape,
        compress,
        workers,
    };
    wlog::convert(log, output, &options, &meter()).unwrap();
}

fn merge_options(shape: Shape, compress: Option<CompressOption>, threads: usize) -> MergeOptions {
    MergeOptions {
        shape,
        compress,
        any_uuid: false,
        workers: Workers::new(threads),
    }
}

/// Writes the diffs as numbered files.
fn written(dir: &Path, sketches: &[Sketch]) -> Vec<PathBuf> {
    let paths = (0..sketches.len()).map(|i| dir.join(format!("{i}.wdiff")));
    let paths: Vec<_> = paths.collect();
    for (sketch, path) in sketches.iter().zip(&paths) {
        sketch.write(path);
    }
    paths
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn a_log_and_its_diff_make_the_same_image(
        options in workload(),
        max_io in prop_oneof![Just(0), 1..20u32, Just(2048)],
        compress in compression(),
    ) {
        let dir = scratch().unwrap();
        let (log, diff) = (dir.path().join("log"), dir.path().join("diff"));
        write_log(&log, &options);
        let base = base(BLOCKS);
        let mut model = Model::new(&base);
        model.apply_log(&options);
        for threads in [1, 3] {
            prop_assert!(replayed(dir.path(), &log, &base, threads).0 == model.bytes);
        }
        for format in [Format::Sorted, Format::Indexed] {
            let mut files = [1, 2, 3].map(|threads| {
                converted(&log, &diff, Shape { format, max_io }, compress, threads);
                std::fs::read(&diff).unwrap()
            });
            files.sort();
            prop_assert!(files[0] == files[2], "threads show in the output");
            for threads in [1, 3] {
                let diffs = std::slice::from_ref(&diff);
                prop_assert!(redone(dir.path(), diffs, &base, threads).0 == model.bytes);
            }
            let longest = Diff::read(&files[0]).unwrap().records.iter().map(|r| r.blocks).max();
            prop_assert!(max_io == 0 || longest.is_none_or(|blocks| blocks <= max_io));
        }
    }

    #[test]
    fn a_merge_equals_its_inputs_one_after_the_other(
        sketches in vec(sketch(), 1..7),
        shape in shape(),
        compress in prop::option::of(compression()),
    ) {
        let dir = scratch().unwrap();
        let diffs = written(dir.path(), &sketches);
        let (base_path, output) = (dir.path().join("base"), dir.path().join("out"));
        // A merge may cut what reaches past the end so that a part fits, so all must fit here.
        let base = base(2 * BLOCKS);
        std::fs::write(&base_path, &base).unwrap();
        let mut model = Model::new(&base);
        sketches.iter().for_each(|sketch| model.apply_diff(sketch));
        let mut files = [1, 2, 3].map(|threads| {
            let options = merge_options(shape, compress, threads);
            wdiff::merge(&diffs, &output, &options, &meter()).unwrap();
            std::fs::read(&output).unwrap()
        });
        files.sort();
        prop_assert!(files[0] == files[2], "threads show in the output");
        let longest = Diff::read(&files[0]).unwrap().records.iter().map(|r| r.blocks).max();
        prop_assert!(shape.max_io == 0 || longest.is_none_or(|blocks| blocks <= shape.max_io));
        let merged = std::slice::from_ref(&output);
        for threads in [1, 3] {
            prop_assert!(redone(dir.path(), &diffs, &base, threads).0 == model.bytes);
            prop_assert!(redone(dir.path(), merged, &base, threads).0 == model.bytes);
            let scanned = dir.path().join("scanned");
            for inputs in [&diffs[..], merged] {
                let workers = Workers::new(threads);
                wdiff::scan(&base_path, inputs, &scanned, workers, &meter()).unwrap();
                prop_assert!(std::fs::read(&scanned).unwrap() == model.bytes);
            }
        }
    }

    #[test]
    fn what_reaches_past_the_end_is_counted_and_not_written(
        options in workload(),
        sketch in sketch(),
        blocks in 0..BLOCKS,
    ) {
        let dir = scratch().unwrap();
        let base = base(blocks);
        let log = dir.path().join("log");
        write_log(&log, &options);
        // Records of the sorted format are applied as they are written, so they can be counted.
        let shape = Shape { format: Format::Sorted, max_io: 0 };
        let sketch = Sketch { shape, ..sketch }.laid_out();
        let diffs = written(dir.path(), std::slice::from_ref(&sketch));
        let (mut by_log, mut by_diff) = (Model::new(&base), Model::new(&base));
        by_log.apply_log(&options);
        by_diff.apply_diff(&sketch);
        for threads in [1, 3] {
            let (image, outside) = replayed(dir.path(), &log, &base, threads);
            prop_assert!(image == by_log.bytes);
            prop_assert_eq!(outside, by_log.outside);
            let (image, outside) = redone(dir.path(), &diffs, &base, threads);
            prop_assert!(image == by_diff.bytes);
            prop_assert_eq!(outside, by_diff.outside);
        }
    }
}

/// The small inputs above make one job each; these make many, which finish in any order.
#[test]
fn threads_do_not_show_where_there_are_many_jobs() {
    const LARGE: u64 = 16 << 10;
    let dir = scratch().unwrap();
    let path = |name: &str| dir.path().join(name);
    let base = base(LARGE);
    let mut model = Model::new(&base);
    let mut diffs = vec![];
    for (seed, format) in [
        (1, Format::Sorted),
        (2, Format::Indexed),
        (3, Format::Sorted),
    ] {
        let (log, diff) = (path("log"), path(&format!("{seed}.wdiff")));
        let options = Options {
            seed,
            total_bytes: 4 << 20,
            device_blocks: LARGE,
            min_io: 1,
            max_io: 40,
            data: DataKind::Compressible,
            ..Options::default()
        };
        write_log(&log, &options);
        let mut own = Model::new(&base);
        own.apply_log(&options);
        assert!(replayed(dir.path(), &log, &base, 3).0 == own.bytes);
        model.apply_log(&options);
        let shape = Shape { format, max_io: 16 };
        same_by_threads(&diff, |threads| {
            converted(&log, &diff, shape, CompressOption::default(), threads);
        });
        diffs.push(diff);
    }
    std::fs::write(path("base"), &base).unwrap();
    assert!(redone(dir.path(), &diffs, &base, 3).0 == model.bytes);
    for (format, algorithm) in [(Format::Sorted, None), (Format::Indexed, Some("zstd"))] {
        let compress = algorithm.map(|name| name.parse().unwrap());
        let shape = Shape { format, max_io: 24 };
        let merged = path("merged");
        same_by_threads(&merged, |threads| {
            let options = MergeOptions {
                any_uuid: true,
                ..merge_options(shape, compress, threads)
            };
            wdiff::merge(&diffs, &merged, &options, &meter()).unwrap();
        });
        assert!(redone(dir.path(), &[merged], &base, 3).0 == model.bytes);
    }
    let image = path("scanned");
    same_by_threads(&image, |threads| {
        let workers = Workers::new(threads);
        wdiff::scan(&path("base"), &diffs, &image, workers, &meter()).unwrap();
    });
    assert!(std::fs::read(image).unwrap() == model.bytes);
}

/// Makes the file with 1, 2, 3 and 8 threads, and expects the same bytes.
fn same_by_threads(path: &Path, make: impl Fn(usize)) {
    make(1);
    let wanted = std::fs::read(path).unwrap();
    for threads in [2, 3, 8] {
        make(threads);
        assert!(std::fs::read(path).unwrap() == wanted, "{threads} threads");
    }
}

/// The pool keeps 96 inputs open. The limit of the process, which the tests beside this one share,
/// is the customary 256, so that holding them all would fail.
#[test]
fn more_diffs_than_descriptors_merge() {
    const DIFFS: u64 = 300;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let dir = scratch().unwrap();
    let sketches: Vec<_> = (0..DIFFS)
        .map(|i| {
            let record = |address| SketchRecord {
                address,
                blocks: 3,
                kind: Kind::Data,
                seed: i + 1,
                algorithm: Compression::Snappy,
            };
            let (format, max_io) = ([Format::Sorted, Format::Indexed][i as usize % 2], 0);
            let records = vec![record(i % 11), record(11 + i % (BLOCKS - 14))];
            let sketch = Sketch {
                shape: Shape { format, max_io },
                records,
            };
            sketch.laid_out()
        })
        .collect();
    let diffs = written(dir.path(), &sketches);
    let base = base(BLOCKS);
    let mut model = Model::new(&base);
    sketches.iter().for_each(|sketch| model.apply_diff(sketch));
    let output = dir.path().join("out");
    for threads in [1, 3] {
        let (format, max_io) = (Format::Sorted, 0);
        let options = merge_options(Shape { format, max_io }, None, threads);
        wdiff::merge(&diffs, &output, &options, &meter()).unwrap();
        let merged = std::slice::from_ref(&output);
        assert!(redone(dir.path(), merged, &base, threads).0 == model.bytes);
    }
}

/// Where the packs of a log begin, and its end block.
fn pack_positions(log: &Path) -> Vec<u64> {
    let log = LogFile::open(log).unwrap();
    let mut scan = log.scan().unwrap();
    let mut positions = vec![];
    loop {
        let at = scan.walk().position();
        match scan.next_step().unwrap() {
            None => return positions,
            Some(Step::Header(_)) => {}
            Some(Step::Pack(_) | Step::End { .. }) => positions.push(at),
        }
    }
}

#[test]
fn a_log_cut_between_packs_is_refused() {
    let dir = scratch().unwrap();
    let (log, cut) = (dir.path().join("log"), dir.path().join("cut"));
    for pbs in [PhysicalBlock::B512, PhysicalBlock::B4096] {
        let options = Options {
            pbs,
            total_bytes: 1 << 20,
            device_blocks: BLOCKS,
            min_io: 1,
            max_io: 30,
            ..Options::default()
        };
        write_log(&log, &options);
        let bytes = std::fs::read(&log).unwrap();
        let positions = pack_positions(&log);
        assert!(positions.len() > 3, "{positions:?}");
        wlog::verify(&log, Workers::new(3), &meter()).unwrap();
        for at in positions {
            std::fs::write(&cut, &bytes[..at as usize]).unwrap();
            refuse_log(dir.path(), &cut, at);
        }
    }
}

fn refuse_log(dir: &Path, log: &Path, at: u64) {
    let output = dir.join("out");
    for threads in [1, 3] {
        let workers = Workers::new(threads);
        let error = wlog::verify(log, workers, &meter()).unwrap_err();
        assert!(
            error.to_string().contains(&format!("offset {at}")),
            "{error}"
        );
        let image = image(&dir.join("image"), &base(BLOCKS), DiscardPolicy::Zero).unwrap();
        assert!(wlog::redo(log, &image, false, workers, &meter()).is_err());
        for format in [Format::Sorted, Format::Indexed] {
            let options = ConvertOptions {
                shape: Shape { format, max_io: 0 },
                compress: CompressOption::default(),
                workers,
            };
            assert!(wlog::convert(log, &output, &options, &meter()).is_err());
            assert!(!output.exists());
        }
    }
}

/// A diff of several packs, or one with as many records and an index.
fn long_diff(path: &Path, format: Format) {
    let record = |i: u64| SketchRecord {
        address: i % 4,
        blocks: 1,
        kind: Kind::Data,
        seed: i + 1,
        algorithm: Compression::Snappy,
    };
    let sketch = Sketch {
        shape: Shape { format, max_io: 0 },
        records: (0..500).map(record).collect(),
    };
    sketch.laid_out().write(path);
}

#[test]
fn a_diff_cut_between_packs_or_records_is_refused() {
    let dir = scratch().unwrap();
    let diff = dir.path().join("diff");
    long_diff(&diff, Format::Sorted);
    let bytes = std::fs::read(&diff).unwrap();
    let mut cursor = walkeep_wire::wdiff::Cursor::open(&bytes[..], "diff").unwrap();
    let mut cuts = vec![];
    while let Some((position, pack)) = cursor.next_pack().unwrap() {
        cuts.push(position);
        cuts.push(position + if pack.is_end { 1 } else { PACK_HEADER as u64 });
    }
    assert_eq!(cuts.len(), 2 * 5, "{cuts:?}");
    cuts.iter()
        .for_each(|at| refuse_diff(dir.path(), &bytes, *at));
    long_diff(&diff, Format::Indexed);
    let bytes = std::fs::read(&diff).unwrap();
    let cursor = walkeep_wire::wdiff::Cursor::open(&bytes[..], "diff").unwrap();
    let index = cursor.index().unwrap();
    assert!(index.n_records > 0);
    for i in (0..=index.n_records).step_by(3) {
        refuse_diff(dir.path(), &bytes, index.index_offset + u64::from(i) * 48);
    }
}

fn refuse_diff(dir: &Path, bytes: &[u8], at: u64) {
    let (cut, output) = (dir.join("cut"), dir.join("out"));
    std::fs::write(&cut, &bytes[..at as usize]).unwrap();
    for threads in [1, 3] {
        let workers = Workers::new(threads);
        assert!(
            wdiff::verify(&cut, true, workers, &meter()).is_err(),
            "cut at {at}"
        );
        let image = image(&dir.join("image"), &base(BLOCKS), DiscardPolicy::Zero).unwrap();
        assert!(wdiff::redo(&cut, &image, workers, &meter()).is_err());
        let (format, max_io) = (Format::Sorted, 0);
        let options = merge_options(Shape { format, max_io }, None, threads);
        let inputs = std::slice::from_ref(&cut);
        assert!(wdiff::merge(inputs, &output, &options, &meter()).is_err());
        assert!(!output.exists());
    }
}
