//! `walkeep wlog …`

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};
use walkeep_store::image::{DiscardPolicy, ImageFile};
use walkeep_store::output::Output;
use walkeep_store::wlog::{ConvertOptions, LogFile, VerifyReport, convert, redo, verify};
use walkeep_wire::PhysicalBlock;
use walkeep_wire::logpack::{Header, Record, RecordKind};
use walkeep_wire::units::INVALID_LSID;
use walkeep_wire::wlog::generate::{DataKind, Generator, Options};
use walkeep_wire::wlog::text::{HeaderLine, PackLine, RecordLine, Statistics};
use walkeep_wire::wlog::{FileHeader, Step, Writer};

use super::Outcome;
use super::guard::{expect_kind, refuse_same, usage};
use super::options::{DiffOut, Form, Listing, Size, Threads, block_size, blocks, io_blocks};
use super::progress::with_progress;
use super::report::{Bytes, json_failure, lb_bytes, outside, pace, print_json, say, tally_text};

#[derive(Subcommand)]
pub enum Wlog {
    /// List the packs and records of a wlog
    Show {
        #[command(flatten)]
        listing: Listing,
        /// The wlog; - is standard input
        file: PathBuf,
    },
    /// Check all headers and data of a wlog
    Verify {
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        threads: Threads,
        /// The wlog; - is standard input
        file: PathBuf,
    },
    /// Replay a wlog onto an image
    Redo {
        /// What becomes of discarded ranges: zero, ignore or passdown
        #[arg(long, default_value = "zero", value_name = "POLICY")]
        discard: DiscardPolicy,
        /// Do not check the data: to salvage what is left of a damaged log
        #[arg(long)]
        skip_checksum: bool,
        #[command(flatten)]
        threads: Threads,
        /// The wlog; - is standard input
        file: PathBuf,
        /// An existing file or block device
        image: PathBuf,
    },
    /// Convert a wlog into a wdiff
    ToWdiff {
        #[command(flatten)]
        diff: DiffOut,
        /// The wlog; - is standard input
        file: PathBuf,
        /// The wdiff; - is standard output
        out: PathBuf,
    },
    /// Cut a wlog out of a log device or a volume
    Cat(super::cat::Cat),
    /// Make a wlog of random IOs, the same for the same seed
    Generate(Generate),
}

#[derive(clap::Args)]
pub struct Generate {
    /// Everything random follows from it
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Bytes of writes, about: sizes take K, M, G or T
    #[arg(long, default_value = "16M")]
    size: Size,
    /// Size of the data device
    #[arg(long, default_value = "64M", value_parser = blocks, value_name = "SIZE")]
    device_size: u64,
    /// Physical block size of the log: 512 or 4096
    #[arg(long, default_value = "4096", value_parser = block_size)]
    block_size: PhysicalBlock,
    /// Least size of an IO [default: 4K, or the greatest if that is less]
    #[arg(long, value_parser = io_blocks, value_name = "SIZE")]
    min_io: Option<u32>,
    /// Greatest size of an IO
    #[arg(long, default_value = "64K", value_parser = io_blocks, value_name = "SIZE")]
    max_io: u32,
    /// Content of writes
    #[arg(long, value_enum, default_value = "random")]
    data: DataArg,
    /// Discards among the writes
    #[arg(long)]
    discard: bool,
    /// All-zero writes among the writes
    #[arg(long)]
    all_zero: bool,
    /// Padding records in the packs
    #[arg(long)]
    padding: bool,
    /// lsid of the first pack
    #[arg(long, default_value_t = 0)]
    lsid: u64,
    /// The wlog; - is standard output
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum DataArg {
    /// Does not compress
    Random,
    /// Compresses to about a quarter
    Compressible,
    /// Zeros
    Zero,
}

impl Wlog {
    pub fn run(self) -> Result<Outcome> {
        match self {
            Self::Show { listing, file } => {
                expect_kind(show(&file, listing.form()), &file, "wlog")?;
            }
            Self::Verify {
                listing,
                threads,
                file,
            } => {
                let workers = threads.workers(None);
                let (report, time) =
                    with_progress("verifying", |meter| verify(&file, workers, meter));
                let report = expect_kind(report.map_err(Into::into), &file, "wlog");
                let report = json_failure(report, &file, listing.form())?;
                print_verified(&file, &report, time, listing.form())?;
            }
            Self::Redo {
                discard,
                skip_checksum,
                threads,
                file,
                image,
            } => {
                return run_redo(&file, &image, discard, skip_checksum, &threads);
            }
            Self::ToWdiff { diff, file, out } => to_wdiff(&file, &out, &diff)?,
            Self::Cat(arguments) => arguments.run()?,
            Self::Generate(options) => generate(&options)?,
        }
        Ok(Outcome::Sound)
    }
}

fn show(path: &Path, form: Form) -> Result<()> {
    let log = json_failure(LogFile::open(path).map_err(Into::into), path, form)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut listing = LogListing::default();
    if form == Form::Json {
        write!(out, "{{\"packs\":[")?;
    }
    let listed = listing.run(&log, form, &mut out);
    if form == Form::Json {
        let headers = Value::from(std::mem::take(&mut listing.headers));
        write!(out, "\n],\"headers\":{headers}")?;
        match (&listed, &listing.statistics) {
            (Err(error), _) => writeln!(out, ",\"error\":{}}}", json!(format!("{error:#}")))?,
            (Ok(()), Some(sums)) => writeln!(out, ",\"statistics\":{}}}", statistics_json(sums))?,
            (Ok(()), None) => writeln!(out, "}}")?,
        }
    }
    out.flush()?;
    listed?;
    match (form, &listing.statistics) {
        (Form::Walb, Some(sums)) => writeln!(out, "{sums}")?,
        (Form::Human, Some(sums)) => writeln!(out, "{}", statistics_text(sums))?,
        _ => {}
    }
    Ok(out.flush()?)
}

/// What a listing has to remember between packs.
#[derive(Default)]
struct LogListing {
    headers: Vec<Value>,
    statistics: Option<Statistics>,
    file: Option<FileHeader>,
    packs: u64,
}

impl LogListing {
    fn run(&mut self, log: &LogFile, form: Form, out: &mut impl Write) -> Result<()> {
        let mut scan = log.scan()?;
        while let Some(step) = scan.next_step()? {
            match step {
                Step::Header(header) => self.begin_file(header, form, out)?,
                Step::Pack(pack) => self.list(&pack, scan.walk().pack_position(), form, out)?,
                Step::End { .. } => {}
            }
        }
        Ok(())
    }

    fn begin_file(
        &mut self,
        header: FileHeader,
        form: Form,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        match &mut self.statistics {
            Some(sums) => sums.continue_with(&header),
            None => self.statistics = Some(Statistics::new(&header)),
        }
        self.file = Some(header);
        match form {
            Form::Walb => writeln!(out, "{}", HeaderLine(&header)),
            Form::Human => human_header(out, &header),
            Form::Json => {
                self.headers.push(header_json(&header));
                Ok(())
            }
        }
    }

    fn list(
        &mut self,
        pack: &Header,
        position: u64,
        form: Form,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        if let (Some(sums), Some(file)) = (&mut self.statistics, &self.file) {
            sums.add(pack, file.pbs);
        }
        self.packs += 1;
        match form {
            Form::Walb => walb_pack(out, pack),
            Form::Human => human_pack(out, pack, position),
            Form::Json => {
                let separator = if self.packs > 1 { "," } else { "" };
                write!(out, "{separator}\n{}", pack_json(pack, position))
            }
        }
    }
}

fn walb_pack(out: &mut impl Write, pack: &Header) -> std::io::Result<()> {
    writeln!(out, "{}", PackLine(pack))?;
    pack.records
        .iter()
        .try_for_each(|record| writeln!(out, "{}", RecordLine(record)))
}

fn human_header(out: &mut impl Write, header: &FileHeader) -> std::io::Result<()> {
    let end = match header.end_lsid {
        INVALID_LSID => "open".to_owned(),
        lsid => lsid.to_string(),
    };
    writeln!(
        out,
        "log {}  block size {}  salt {:08x}  lsid {} to {end}",
        header.uuid,
        header.pbs.bytes(),
        header.salt,
        header.begin_lsid
    )
}

fn human_pack(out: &mut impl Write, pack: &Header, position: u64) -> std::io::Result<()> {
    writeln!(
        out,
        "pack lsid {}  at byte {position}  {} records  {} blocks",
        pack.lsid,
        pack.records.len(),
        pack.total_pb
    )?;
    for record in &pack.records {
        let bytes = Bytes(record.bytes());
        let Record {
            lsid,
            address,
            checksum,
            ..
        } = *record;
        match record.kind {
            RecordKind::Data => {
                writeln!(
                    out,
                    "  write    lsid {lsid:<10} block {address:<12} {bytes:>10}  checksum {checksum:08x}"
                )
            }
            RecordKind::Discard => {
                writeln!(
                    out,
                    "  discard  lsid {lsid:<10} block {address:<12} {bytes:>10}"
                )
            }
            RecordKind::Padding => writeln!(out, "  padding  lsid {lsid:<10} {bytes:>29}"),
        }?;
    }
    Ok(())
}

fn header_json(header: &FileHeader) -> Value {
    json!({
        "uuid": header.uuid.to_string(),
        "block_size": header.pbs.bytes(),
        "salt": format!("{:08x}", header.salt),
        "begin_lsid": header.begin_lsid,
        "end_lsid": header.end_lsid,
    })
}

fn pack_json(pack: &Header, position: u64) -> Value {
    let record = |r: &Record| {
        json!({
            "kind": kind_name(r.kind),
            "lsid": r.lsid,
            "address": r.address,
            "blocks": r.blocks,
            "checksum": format!("{:08x}", r.checksum),
        })
    };
    json!({
        "lsid": pack.lsid,
        "position": position,
        "total_pb": pack.total_pb,
        "n_padding": pack.n_padding,
        "checksum": format!("{:08x}", pack.checksum),
        "records": pack.records.iter().map(record).collect::<Vec<_>>(),
    })
}

const fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Data => "write",
        RecordKind::Padding => "padding",
        RecordKind::Discard => "discard",
    }
}

fn statistics_text(sums: &Statistics) -> String {
    format!(
        "{} packs, lsid {} to {}: {} written, {} discarded",
        sums.packs,
        sums.begin_lsid,
        sums.real_end_lsid,
        Bytes(lb_bytes(sums.data_blocks)),
        Bytes(lb_bytes(sums.discard_blocks))
    )
}

fn statistics_json(sums: &Statistics) -> Value {
    json!({
        "begin_lsid": sums.begin_lsid,
        "end_lsid": sums.end_lsid,
        "real_end_lsid": sums.real_end_lsid,
        "packs": sums.packs,
        "data_blocks": sums.data_blocks,
        "discard_blocks": sums.discard_blocks,
        "padding_pb": sums.padding_pb,
    })
}

fn print_verified(
    path: &Path,
    report: &VerifyReport,
    time: std::time::Duration,
    form: Form,
) -> Result<()> {
    match form {
        Form::Walb => println_flushed(&report.statistics.to_string()),
        Form::Json => print_json(&json!({
            "file": path.display().to_string(),
            "sound": true,
            "uuid": report.uuid.to_string(),
            "block_size": report.pbs.bytes(),
            "file_bytes": report.file_bytes,
            "seconds": time.as_secs_f64(),
            "statistics": statistics_json(&report.statistics),
        })),
        Form::Human => println_flushed(&format!(
            "{}: sound; {}; {} checked {}",
            path.display(),
            statistics_text(&report.statistics),
            Bytes(report.file_bytes),
            pace(report.file_bytes, time)
        )),
    }
}

fn println_flushed(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

fn run_redo(
    file: &Path,
    image: &Path,
    discard: DiscardPolicy,
    skip_checksum: bool,
    threads: &Threads,
) -> Result<Outcome> {
    refuse_same([file], image);
    let target = ImageFile::open(image, discard)?;
    let workers = threads.workers(None);
    let (report, time) = with_progress("replaying", |meter| {
        redo(file, &target, skip_checksum, workers, meter)
    });
    let report = expect_kind(report.map_err(Into::into), file, "wlog").with_context(|| {
        format!(
            "{} may be changed in part: replay a sound log",
            image.display()
        )
    })?;
    let bytes = lb_bytes(report.applied.blocks[0]);
    println_flushed(&format!(
        "{}: replayed {} up to lsid {} {}",
        image.display(),
        tally_text(&report.applied),
        report.end_lsid,
        pace(bytes, time)
    ))?;
    Ok(outside(image, &report.outside))
}

fn to_wdiff(file: &Path, out: &Path, diff: &DiffOut) -> Result<()> {
    refuse_same([file], out);
    let options = ConvertOptions {
        shape: diff.cut_shape(),
        compress: diff.compress.unwrap_or_default(),
        workers: diff.workers(),
    };
    let (report, time) = with_progress("converting", |meter| convert(file, out, &options, meter));
    let report = expect_kind(report.map_err(Into::into), file, "wlog")?;
    let plain = lb_bytes(report.tally.blocks[0]);
    say(
        Some(out),
        &format!(
            "{}: lsid {} to {}: {}, stored in {} {}",
            out.display(),
            report.lsids.0,
            report.lsids.1,
            tally_text(&report.tally),
            Bytes(report.stored_bytes),
            pace(plain, time)
        ),
    )
}

fn generate(arguments: &Generate) -> Result<()> {
    let options = Options {
        seed: arguments.seed,
        total_bytes: arguments.size.0,
        device_blocks: arguments.device_size,
        pbs: arguments.block_size,
        min_io: arguments.min_io.unwrap_or(arguments.max_io.min(8)),
        max_io: arguments.max_io,
        data: match arguments.data {
            DataArg::Random => DataKind::Random,
            DataArg::Compressible => DataKind::Compressible,
            DataArg::Zero => DataKind::Zero,
        },
        discard: arguments.discard,
        all_zero: arguments.all_zero,
        padding: arguments.padding,
        begin_lsid: arguments.lsid,
    };
    let generator = match Generator::new(options) {
        Ok(generator) => generator,
        Err(error) => usage(&format!(
            "{error} (sizes of IOs and devices in blocks of 512 bytes)"
        )),
    };
    let output = Output::create(&arguments.out)?;
    let label = arguments.out.display().to_string();
    let header = generator.file_header();
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, output), label, header)?;
    for pack in generator {
        writer.write_pack(&pack.header, &pack.data)?;
    }
    let bytes = writer.bytes_written();
    let end = writer.next_lsid();
    writer
        .finish()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?
        .commit()?;
    let text = format!(
        "{}: log {}, lsid {} to {end}, {}",
        arguments.out.display(),
        header.uuid,
        header.begin_lsid,
        Bytes(bytes)
    );
    say(Some(&arguments.out), &text)
}
