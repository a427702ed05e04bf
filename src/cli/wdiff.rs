//! `walkeep wdiff …`

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};
use walkeep_store::image::{DiscardPolicy, ImageFile};
use walkeep_store::input::{FilePool, InputFile};
use walkeep_store::wdiff::{MergeOptions, VerifyReport, merge, redo, verify};
use walkeep_wire::wdiff::text::{
    HeaderText, IndexRecordText, PackRecordText, StatText, indexed_data_size,
};
use walkeep_wire::wdiff::{Compression, Cursor, IndexRecord, Kind, PackRecord, Tally};

use super::Outcome;
use super::options::{DiffOut, Form, Listing, Threads};
use super::progress::with_progress;
use super::report::{Bytes, lb_bytes, outside, pace, print_json, say, tally_json, tally_text};

#[derive(Subcommand)]
pub enum Wdiff {
    /// List the records of a wdiff
    Show {
        #[command(flatten)]
        listing: Listing,
        /// The wdiff; - is standard input
        file: PathBuf,
    },
    /// Check all records of a wdiff and decompress their data
    Verify {
        #[command(flatten)]
        listing: Listing,
        #[command(flatten)]
        threads: Threads,
        /// The wdiff; - is standard input
        file: PathBuf,
    },
    /// Sum up a wdiff without reading its data
    Info {
        #[command(flatten)]
        listing: Listing,
        /// The wdiff; - is standard input
        file: PathBuf,
    },
    /// Apply a wdiff to an image
    Redo {
        /// What becomes of discarded ranges: zero, ignore or passdown
        #[arg(long, default_value = "zero", value_name = "POLICY")]
        discard: DiscardPolicy,
        #[command(flatten)]
        threads: Threads,
        /// The wdiff; - is standard input
        file: PathBuf,
        /// An existing file or block device
        image: PathBuf,
    },
    /// Merge wdiffs into one
    Merge {
        #[command(flatten)]
        diff: DiffOut,
        /// Merge wdiffs of different logs, too
        #[arg(long)]
        any_uuid: bool,
        /// The merged wdiff; - is standard output
        #[arg(short, long, value_name = "OUT")]
        output: PathBuf,
        /// The wdiffs, oldest first
        #[arg(required = true, value_name = "OLDEST … NEWEST")]
        files: Vec<PathBuf>,
    },
}

impl Wdiff {
    pub fn run(self) -> Result<Outcome> {
        match self {
            Self::Show { listing, file } => show(&file, listing.form())?,
            Self::Verify {
                listing,
                threads,
                file,
            } => {
                let workers = threads.workers(None);
                let (report, time) =
                    with_progress("verifying", |meter| verify(&file, true, workers, meter));
                print_report(&file, &report?, Some(time), listing.form())?;
            }
            Self::Info { listing, file } => {
                let workers = Threads { threads: Some(1) }.workers(None);
                let (report, _) =
                    with_progress("reading", |meter| verify(&file, false, workers, meter));
                print_report(&file, &report?, None, listing.form())?;
            }
            Self::Redo {
                discard,
                threads,
                file,
                image,
            } => {
                return run_redo(&file, &image, discard, &threads);
            }
            Self::Merge {
                diff,
                any_uuid,
                output,
                files,
            } => {
                run_merge(&files, &output, &diff, any_uuid)?;
            }
        }
        Ok(Outcome::Sound)
    }
}

type DiffCursor = Cursor<Arc<InputFile>>;

fn show(path: &Path, form: Form) -> Result<()> {
    let file = Arc::new(Arc::new(FilePool::default()).open(path)?);
    let name = file.name();
    let raw = Cursor::open(file, name)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    match form {
        Form::Walb => writeln!(out, "{}", HeaderText(raw.header()))?,
        Form::Human => writeln!(
            out,
            "{} wdiff of log {}\n{:>14} {:>10}  kind     {:<7} {:>10}",
            raw.header().format.name(),
            raw.header().uuid,
            "block",
            "size",
            "stored",
            ""
        )?,
        Form::Json => write!(
            out,
            "{{\"format\":\"{}\",\"uuid\":\"{}\",\"records\":[",
            raw.header().format.name(),
            raw.header().uuid
        )?,
    }
    let index = raw.index().copied();
    let header = *raw.header();
    let (tally, stored) = list_records(raw, form, &mut out)?;
    let text = StatText {
        format: header.format,
        tally: &tally,
        data_size: index.as_ref().map_or(stored, indexed_data_size),
    };
    match form {
        Form::Walb => writeln!(out, "{text}")?,
        Form::Human => writeln!(out, "{}", tally_text(&tally))?,
        Form::Json => writeln!(out, "\n],\"statistics\":{}}}", tally_json(&tally))?,
    }
    Ok(out.flush()?)
}

/// Lists the records as they stand, and returns their counts and stored bytes.
fn list_records(mut raw: DiffCursor, form: Form, out: &mut impl Write) -> Result<(Tally, u64)> {
    let mut sums = (Tally::default(), 0);
    let mut separator = "";
    let mut list = |row: Row, walb: &dyn std::fmt::Display| {
        sums.0.add(row.kind, row.blocks);
        sums.1 += u64::from(row.stored);
        let printed = match form {
            Form::Walb => writeln!(out, "{walb}"),
            Form::Human => human_record(out, &row),
            Form::Json => write!(out, "{separator}\n{}", row.to_json()),
        };
        separator = ",";
        printed
    };
    while let Some((_, pack)) = raw.next_pack()? {
        for record in &pack.records {
            list(Row::from(record), &PackRecordText(record))?;
        }
    }
    while let Some((_, records)) = raw.next_index()? {
        for record in &records {
            list(Row::from(record), &IndexRecordText(record))?;
        }
    }
    Ok(sums)
}

/// What both formats say of a record.
struct Row {
    address: u64,
    blocks: u32,
    kind: Kind,
    compression: u8,
    stored: u32,
    checksum: u32,
}

impl From<&PackRecord> for Row {
    fn from(r: &PackRecord) -> Self {
        let (address, blocks, kind, compression) = (r.address, r.blocks, r.kind, r.compression);
        Self {
            address,
            blocks,
            kind,
            compression,
            stored: r.data_size,
            checksum: r.checksum,
        }
    }
}

impl From<&IndexRecord> for Row {
    fn from(r: &IndexRecord) -> Self {
        let (address, blocks, kind, compression) = (r.address, r.blocks, r.kind, r.compression);
        Self {
            address,
            blocks,
            kind,
            compression,
            stored: r.data_size,
            checksum: r.io_checksum,
        }
    }
}

impl Row {
    fn compression(&self) -> &'static str {
        Compression::from_number(self.compression).map_or("unknown", Compression::name)
    }

    fn to_json(&self) -> Value {
        json!({
            "address": self.address,
            "blocks": self.blocks,
            "kind": kind_name(self.kind),
            "compression": (self.kind == Kind::Data).then(|| self.compression()),
            "stored_bytes": self.stored,
            "checksum": format!("{:08x}", self.checksum),
        })
    }
}

const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "data",
        Kind::AllZero => "all-zero",
        Kind::Discard => "discard",
    }
}

fn human_record(out: &mut impl Write, row: &Row) -> std::io::Result<()> {
    let size = Bytes(lb_bytes(u64::from(row.blocks)));
    write!(
        out,
        "{:>14} {size:>10}  {:<8}",
        row.address,
        kind_name(row.kind)
    )?;
    if row.kind == Kind::Data {
        let stored = Bytes(u64::from(row.stored));
        write!(out, " {:<7} {stored:>10}", row.compression())?;
    }
    writeln!(out)
}

fn statistics(report: &VerifyReport) -> StatText<'_> {
    let data_size = match &report.index {
        Some(index) => indexed_data_size(index),
        None => report.stored.iter().map(|(_, bytes)| bytes).sum(),
    };
    StatText {
        format: report.header.format,
        tally: &report.tally,
        data_size,
    }
}

fn print_report(
    path: &Path,
    report: &VerifyReport,
    time: Option<Duration>,
    form: Form,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match form {
        Form::Walb => {
            writeln!(
                out,
                "{}\n{}",
                HeaderText(&report.header),
                statistics(report)
            )?;
        }
        Form::Json => {
            drop(out);
            return print_json(&report_json(path, report, time));
        }
        Form::Human => human_report(&mut out, path, report, time)?,
    }
    Ok(())
}

fn human_report(
    out: &mut impl Write,
    path: &Path,
    report: &VerifyReport,
    time: Option<Duration>,
) -> std::io::Result<()> {
    let (format, uuid) = (report.header.format.name(), report.header.uuid);
    match time {
        Some(time) => writeln!(
            out,
            "{}: sound; {} checked {}",
            path.display(),
            Bytes(report.file_bytes),
            pace(report.file_bytes, time)
        )?,
        None => writeln!(out, "{}: {}", path.display(), Bytes(report.file_bytes))?,
    }
    writeln!(out, "  format   {format}, log {uuid}")?;
    writeln!(out, "  records  {}", tally_text(&report.tally))?;
    if let Some((begin, end)) = report.range {
        writeln!(
            out,
            "  blocks   {begin} to {end} ({})",
            Bytes(lb_bytes(end - begin))
        )?;
    }
    for (compression, count, bytes) in report.by_compression() {
        writeln!(out, "  stored   {count} as {compression}, {}", Bytes(bytes))?;
    }
    Ok(())
}

fn report_json(path: &Path, report: &VerifyReport, time: Option<Duration>) -> Value {
    let stored: Value = report
        .by_compression()
        .map(|(c, count, bytes)| {
            (
                c.name().to_owned(),
                json!({ "records": count, "bytes": bytes }),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "file": path.display().to_string(),
        "sound": time.map(|_| true),
        "format": report.header.format.name(),
        "uuid": report.header.uuid.to_string(),
        "file_bytes": report.file_bytes,
        "begin_block": report.range.map(|(begin, _)| begin),
        "end_block": report.range.map(|(_, end)| end),
        "records": tally_json(&report.tally),
        "stored": stored,
        "seconds": time.map(|t| t.as_secs_f64()),
    })
}

fn run_redo(
    file: &Path,
    image: &Path,
    discard: DiscardPolicy,
    threads: &Threads,
) -> Result<Outcome> {
    let target = ImageFile::open(image, discard)?;
    let workers = threads.workers(None);
    let (report, time) = with_progress("applying", |meter| redo(file, &target, workers, meter));
    let report = report?;
    let bytes = lb_bytes(report.applied.blocks[0]);
    let text = format!(
        "{}: applied {} {}",
        image.display(),
        tally_text(&report.applied),
        pace(bytes, time)
    );
    say(None, &text)?;
    Ok(outside(image, &report.outside))
}

fn run_merge(files: &[PathBuf], output: &Path, diff: &DiffOut, any_uuid: bool) -> Result<()> {
    let options = MergeOptions {
        shape: diff.shape(0),
        compress: diff.compress,
        any_uuid,
        workers: diff.workers(),
    };
    let (report, time) = with_progress("merging", |meter| merge(files, output, &options, meter));
    let report = report?;
    let Tally { blocks, .. } = report.tally;
    say(
        Some(output),
        &format!(
            "{}: {} diffs merged: {}, stored in {} {}",
            output.display(),
            files.len(),
            tally_text(&report.tally),
            Bytes(report.stored_bytes),
            pace(lb_bytes(blocks[0]), time)
        ),
    )
}
