//! `walkeep image …`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use serde_json::{Value, json};
use walkeep_store::Meter;
use walkeep_store::wdiff::{Comparison, Difference, compare, hash_image, scan, write_difference};
use walkeep_wire::wdiff::Tally;

use super::Outcome;
use super::guard::{refuse_same, usage};
use super::options::{DiffOut, Form, Size, Threads};
use super::progress::with_progress;
use super::report::{Bytes, json_error, lb_bytes, pace, print_json, say, tally_json, tally_text};

#[derive(Subcommand)]
pub enum Image {
    /// Write the image that a base and diffs stand for
    Cat {
        /// The base image
        #[arg(long, value_name = "IMAGE")]
        base: PathBuf,
        /// A diff; give them oldest first
        #[arg(long = "diff", value_name = "WDIFF")]
        diffs: Vec<PathBuf>,
        /// The image
        #[arg(short, long, value_name = "OUT", default_value = "-")]
        output: PathBuf,
        #[command(flatten)]
        threads: Threads,
    },
    /// Hash an image as archives do (`bhash`); the hash depends on the block size
    Hash {
        /// Bytes hashed at once, at most 4M: a number, or one with K or M
        #[arg(long, default_value = "256K", value_name = "SIZE")]
        block: Size,
        #[command(flatten)]
        threads: Threads,
        /// The image
        image: PathBuf,
    },
    /// Find where two images differ; the exit status is 0 also when they do
    Diff {
        /// One JSON document, for scripts: "equal" says whether the images are
        #[arg(long)]
        json: bool,
        /// Write the wdiff that turns A into B; - is standard output
        #[arg(long, value_name = "OUT")]
        wdiff: Option<PathBuf>,
        #[command(flatten)]
        diff: DiffOut,
        /// The image to compare with; the wdiff is applied to it
        a: PathBuf,
        /// The image that is looked at, of the same size; the wdiff leads to it
        b: PathBuf,
    },
}

impl Image {
    pub fn run(self) -> Result<Outcome> {
        match self {
            Self::Cat {
                base,
                diffs,
                output,
                threads,
            } => cat(&base, &diffs, &output, &threads),
            Self::Hash {
                block,
                threads,
                image,
            } => {
                if block.0 == 0 || block.0 > 4 << 20 {
                    let error = format!("--block: expected 1 to 4M, found {}", block.0);
                    usage(&error);
                }
                let workers = threads.workers(None);
                let (hash, _) = with_progress("hashing", |meter| {
                    hash_image(&image, block.0, workers, meter)
                });
                let text: String = hash?.iter().map(|byte| format!("{byte:02x}")).collect();
                say(None, &text)?;
                Ok(Outcome::Sound)
            }
            Self::Diff {
                json,
                wdiff,
                diff,
                a,
                b,
            } => differences(&a, &b, wdiff.as_deref(), &diff, json),
        }
    }
}

fn cat(base: &Path, diffs: &[PathBuf], output: &Path, threads: &Threads) -> Result<Outcome> {
    refuse_same(diffs.iter().map(PathBuf::as_path).chain([base]), output);
    let workers = threads.workers(None);
    let (size, time) = with_progress("restoring", |meter| {
        scan(base, diffs, output, workers, meter)
    });
    let size = size?;
    let text = format!(
        "{}: {} from {} and {} diffs, {} of it from the diffs, {}",
        output.display(),
        Bytes(size.bytes),
        base.display(),
        diffs.len(),
        Bytes(size.from_diffs),
        pace(size.bytes, time)
    );
    say(Some(output), &text)?;
    if size.clipped == 0 {
        return Ok(Outcome::Sound);
    }
    eprintln!(
        "walkeep: {}: {} records reach past the end of the image; what lies beyond was left out; \
         is it the right base, or was the volume resized?",
        base.display(),
        size.clipped
    );
    Ok(Outcome::Incomplete)
}

fn differences(
    a: &Path,
    b: &Path,
    wdiff: Option<&Path>,
    diff: &DiffOut,
    json: bool,
) -> Result<Outcome> {
    if let Some(out) = wdiff {
        refuse_same([a, b], out);
        if json && out == Path::new("-") {
            usage("--json and --wdiff -: expected one of them on standard output");
        }
    }
    let form = if json { Form::Json } else { Form::Human };
    let mut document = json!({ "a": a.display().to_string(), "b": b.display().to_string() });
    let images = Comparison::open(a, b).map_err(Into::into);
    let images = json_error(images, document.clone(), form)?;
    let compress = diff.compress.unwrap_or_default();
    let (found, time) = with_progress("comparing", |meter| match wdiff {
        Some(out) => {
            let shape = diff.cut_shape();
            let tally = write_difference(&images, out, shape, compress, diff.workers(), meter)?;
            Ok((tally, Vec::new()))
        }
        None => list(&images, diff, json, meter),
    });
    let found = found.map_err(anyhow::Error::from);
    let (tally, ranges): (Tally, Vec<Value>) = json_error(found, document.clone(), form)?;
    if json {
        document["bytes"] = images.b_bytes.into();
        document["equal"] = (tally.total() == 0).into();
        document["differences"] = tally_json(&tally);
        if wdiff.is_none() {
            document["ranges"] = ranges.into();
        }
        print_json(&document)?;
        return Ok(Outcome::Sound);
    }
    let summary = match tally.total() {
        0 => "equal".to_owned(),
        _ => tally_text(&tally),
    };
    let pace = pace(images.b_bytes, time);
    say(
        wdiff,
        &format!(
            "{}: {summary}; {} compared {pace}",
            b.display(),
            Bytes(images.b_bytes)
        ),
    )?;
    Ok(Outcome::Sound)
}

fn list(
    images: &Comparison,
    diff: &DiffOut,
    json: bool,
    meter: &Meter,
) -> walkeep_store::Result<(Tally, Vec<Value>)> {
    let mut tally = Tally::default();
    let mut ranges = Vec::new();
    let mut printed = Ok(());
    compare(images, diff.workers(), meter, |found| {
        tally.add(found.kind, found.blocks);
        if json {
            ranges.push(range_json(&found));
        } else if printed.is_ok() {
            printed = say(None, &range_text(&found));
        }
        Ok(())
    })?;
    Ok((tally, ranges))
}

fn range_text(found: &Difference) -> String {
    let size = Bytes(lb_bytes(u64::from(found.blocks)));
    format!("{:>14} {size:>10}  {}", found.address, found.kind.letter())
}

fn range_json(found: &Difference) -> Value {
    json!({
        "address": found.address,
        "blocks": found.blocks,
        "kind": found.kind.letter().to_string(),
    })
}
