//! Throughput of the paths that matter, on generated logs, beside the limits they are compared
//! with: `cargo bench -p walkeep-store`. Bytes are plain bytes of record data. Whole commands and
//! their memory: `make bench`.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use divan::Bencher;
use divan::counter::BytesCount;
use tempfile::TempDir;
use walkeep_store::image::{DiscardPolicy, ImageFile};
use walkeep_store::wdiff::{MergeOptions, Shape, merge, scan};
use walkeep_store::wlog::{ConvertOptions, convert};
use walkeep_store::{Meter, Workers, wdiff, wlog};
use walkeep_wire::checksum::checksum;
use walkeep_wire::murmur3::murmur3;
use walkeep_wire::wdiff::{Codec, CompressOption, Compression, DEFAULT_MAX_IO_BLOCKS, Format};
use walkeep_wire::wlog::Writer;
use walkeep_wire::wlog::generate::{DataKind, Generator, Options};

/// Bytes of writes in each log, and of the image.
const LOG: u64 = 32 << 20;
const IMAGE: u64 = 128 << 20;
const THREADS: [usize; 2] = [1, 2];

type AnyError = Box<dyn std::error::Error>;

fn main() {
    divan::main();
}

/// Logs of four seeds and their diffs, in a directory beside the build.
struct Files {
    dir: TempDir,
}

impl Files {
    fn new(data: DataKind, with_diffs: bool) -> Result<Self, AnyError> {
        let files = Self {
            dir: TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?,
        };
        for seed in 1..=4 {
            files.generate(seed, data)?;
            if with_diffs {
                let options = convert_options(Format::Sorted, 2);
                let (from, to) = (files.log(seed), files.diff(seed));
                convert(&from, &to, &options, &Meter::default())?;
            }
        }
        File::create(files.image())?.set_len(IMAGE)?;
        Ok(files)
    }

    fn generate(&self, seed: u64, data: DataKind) -> Result<(), AnyError> {
        let packs = Generator::new(Options {
            seed,
            total_bytes: LOG,
            device_blocks: IMAGE / 512,
            data,
            ..Options::default()
        })?;
        let file = BufWriter::new(File::create(self.log(seed))?);
        let mut writer = Writer::new(file, "log", packs.file_header())?;
        for pack in packs {
            writer.write_pack(&pack.header, &pack.data)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn log(&self, seed: u64) -> PathBuf {
        self.dir.path().join(format!("{seed}.wlog"))
    }

    fn diff(&self, seed: u64) -> PathBuf {
        self.dir.path().join(format!("{seed}.wdiff"))
    }

    fn diffs(&self) -> Vec<PathBuf> {
        (1..=4).map(|seed| self.diff(seed)).collect()
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }
}

fn convert_options(format: Format, threads: usize) -> ConvertOptions {
    ConvertOptions {
        shape: shape(format),
        compress: CompressOption::default(),
        workers: Workers::new(threads),
    }
}

const fn shape(format: Format) -> Shape {
    Shape {
        format,
        max_io: DEFAULT_MAX_IO_BLOCKS,
    }
}

/// Measures `work` on the files. It is handed a meter that nobody looks at.
fn measure<T>(
    bencher: Bencher<'_, '_>,
    (data, with_diffs, bytes): (DataKind, bool, u64),
    work: impl Fn(&Files, &Meter) -> walkeep_store::Result<T>,
) {
    let files = Files::new(data, with_diffs).unwrap_or_else(|e| panic!("workload: {e}"));
    bencher
        .counter(BytesCount::new(bytes))
        .bench_local(|| work(&files, &Meter::default()).map_err(|e| panic!("{e}")));
}

/// The limits: memory, checksum and hash, of more data than a core has cache.
mod limits {
    use super::*;

    const BYTES: usize = 64 << 20;

    #[divan::bench]
    fn memory_copy(bencher: Bencher<'_, '_>) {
        let (from, mut to) = (vec![7u8; BYTES], vec![0u8; BYTES]);
        bencher.counter(BytesCount::new(BYTES)).bench_local(|| {
            divan::black_box(&mut to).copy_from_slice(divan::black_box(&from));
        });
    }

    #[divan::bench]
    fn checksum_of_data(bencher: Bencher<'_, '_>) {
        let data = vec![7u8; BYTES];
        let bytes = BytesCount::new(BYTES);
        bencher
            .counter(bytes)
            .bench_local(|| checksum(divan::black_box(&data), 1));
    }

    #[divan::bench]
    fn murmur3_of_data(bencher: Bencher<'_, '_>) {
        let data = vec![7u8; BYTES];
        let bytes = BytesCount::new(BYTES);
        bencher
            .counter(bytes)
            .bench_local(|| murmur3(divan::black_box(&data), 1));
    }
}

/// Each codec at its default level on pieces of log data, in plain bytes.
#[divan::bench_group(sample_count = 5, sample_size = 1)]
mod codecs {
    use super::*;

    const PIECE: usize = 64 << 10;
    const KINDS: [DataKind; 2] = [DataKind::Random, DataKind::Compressible];
    /// In the order of [`Compression::ALL`], without the first.
    const CODECS: [usize; 5] = [1, 2, 3, 4, 5];

    /// Less of what is slow.
    const fn bytes_for(codec: Compression) -> usize {
        match codec {
            Compression::Lzma => 2 << 20,
            Compression::Gzip => 8 << 20,
            _ => 64 << 20,
        }
    }

    fn pieces_of(data: DataKind, bytes: usize) -> Result<Vec<Vec<u8>>, AnyError> {
        let packs = Generator::new(Options {
            seed: 1,
            total_bytes: 2 * bytes as u64,
            device_blocks: IMAGE / 512,
            data,
            ..Options::default()
        })?;
        let plain: Vec<u8> = packs.flat_map(|pack| pack.data).take(bytes).collect();
        Ok(plain.chunks(PIECE).map(<[u8]>::to_vec).collect())
    }

    #[divan::bench(args = KINDS, consts = CODECS)]
    fn compress<const C: usize>(bencher: Bencher<'_, '_>, data: DataKind) {
        let kind = Compression::ALL[C];
        let bytes = bytes_for(kind);
        let pieces = pieces_of(data, bytes).unwrap_or_else(|e| panic!("workload: {e}"));
        let (mut codec, mut out) = (Codec::default(), Vec::new());
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            for piece in &pieces {
                out.clear();
                divan::black_box(codec.compress(kind, 0, piece, &mut out));
            }
        });
    }

    /// What did not become smaller is stored as none and copied.
    #[divan::bench(args = KINDS, consts = CODECS)]
    fn decompress<const C: usize>(bencher: Bencher<'_, '_>, data: DataKind) {
        let kind = Compression::ALL[C];
        let bytes = bytes_for(kind);
        let pieces = pieces_of(data, bytes).unwrap_or_else(|e| panic!("workload: {e}"));
        let mut codec = Codec::default();
        let stored: Vec<_> = pieces
            .iter()
            .map(|piece| {
                let mut out = Vec::new();
                (codec.compress(kind, 0, piece, &mut out), out, piece.len())
            })
            .collect();
        let mut plain = vec![0; PIECE];
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            for (used, stored, length) in &stored {
                codec
                    .decompress(*used, stored, &mut plain[..*length])
                    .unwrap_or_else(|flaw| panic!("{flaw}"));
            }
        });
    }
}

#[divan::bench_group(sample_count = 5, sample_size = 1)]
mod paths {
    use super::*;

    const KINDS: [DataKind; 2] = [DataKind::Random, DataKind::Compressible];

    fn to_wdiff(bencher: Bencher<'_, '_>, format: Format, data: DataKind, threads: usize) {
        measure(bencher, (data, false, LOG), |files, meter| {
            convert(
                &files.log(1),
                &files.out(),
                &convert_options(format, threads),
                meter,
            )
        });
    }

    #[divan::bench(args = KINDS, consts = THREADS)]
    fn to_wdiff_sorted<const N: usize>(bencher: Bencher<'_, '_>, data: DataKind) {
        to_wdiff(bencher, Format::Sorted, data, N);
    }

    #[divan::bench(args = KINDS, consts = THREADS)]
    fn to_wdiff_indexed<const N: usize>(bencher: Bencher<'_, '_>, data: DataKind) {
        to_wdiff(bencher, Format::Indexed, data, N);
    }

    #[divan::bench(args = KINDS, consts = THREADS)]
    fn merge_of_4<const N: usize>(bencher: Bencher<'_, '_>, data: DataKind) {
        let options = MergeOptions {
            shape: shape(Format::Sorted),
            compress: Some(CompressOption::default()),
            any_uuid: true,
            workers: Workers::new(N),
        };
        measure(bencher, (data, true, 4 * LOG), |files, meter| {
            merge(&files.diffs(), &files.out(), &options, meter)
        });
    }

    #[divan::bench(args = KINDS)]
    fn wdiff_redo(bencher: Bencher<'_, '_>, data: DataKind) {
        measure(bencher, (data, true, LOG), |files, meter| {
            let image = ImageFile::open(&files.image(), DiscardPolicy::Zero)?;
            wdiff::redo(&files.diff(1), &image, Workers::default(), meter)
        });
    }

    #[divan::bench(args = KINDS)]
    fn wlog_redo(bencher: Bencher<'_, '_>, data: DataKind) {
        measure(bencher, (data, false, LOG), |files, meter| {
            let image = ImageFile::open(&files.image(), DiscardPolicy::Zero)?;
            wlog::redo(&files.log(1), &image, false, Workers::default(), meter)
        });
    }

    #[divan::bench(args = KINDS)]
    fn virtual_scan(bencher: Bencher<'_, '_>, data: DataKind) {
        measure(bencher, (data, true, IMAGE), |files, meter| {
            let null = std::path::Path::new("/dev/null");
            scan(
                &files.image(),
                &files.diffs(),
                null,
                Workers::default(),
                meter,
            )
        });
    }
}
