//! What commands print about what they did.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use walkeep_wire::LOGICAL_BLOCK;
use walkeep_wire::wdiff::Tally;

use super::Outcome;
use super::options::Form;

/// A number of bytes for a person.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut unit = 0;
        let mut value = self.0 as f64;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        f.pad(&match unit {
            0 => format!("{} B", self.0),
            _ => format!("{value:.1} {}", UNITS[unit]),
        })
    }
}

/// Bytes of a number of logical blocks.
pub const fn lb_bytes(blocks: u64) -> u64 {
    blocks.saturating_mul(LOGICAL_BLOCK as u64)
}

/// `in 0.31 s (826.4 MiB/s)`.
pub fn pace(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let rate = if seconds > 0.0 {
        bytes as f64 / seconds
    } else {
        0.0
    };
    format!("in {seconds:.2} s ({}/s)", Bytes(rate as u64))
}

/// `12 data (1.5 MiB), 3 all-zero (12.0 KiB), 1 discard (4.0 KiB)`.
pub fn tally_text(tally: &Tally) -> String {
    ["data", "all-zero", "discard"]
        .iter()
        .zip(tally.records)
        .zip(tally.blocks)
        .map(|((kind, records), blocks)| format!("{records} {kind} ({})", Bytes(lb_bytes(blocks))))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Counts by kind.
pub fn tally_json(tally: &Tally) -> Value {
    let kind = |i: usize| json!({ "records": tally.records[i], "blocks": tally.blocks[i] });
    json!({ "data": kind(0), "all_zero": kind(1), "discard": kind(2) })
}

/// Tells of records that reach past the end of an image, which decides the exit status.
pub fn outside(image: &Path, outside: &Tally) -> Outcome {
    if outside.total() == 0 {
        return Outcome::Sound;
    }
    eprintln!(
        "walkeep: {}: {} records reach past the end of the image and were not written: {}; \
         is it the right image, or was the volume resized?",
        image.display(),
        outside.total(),
        tally_text(outside)
    );
    Outcome::Incomplete
}

/// A script that asked for JSON gets a document also where the data is bad.
pub fn json_failure<T>(result: anyhow::Result<T>, path: &Path, form: Form) -> anyhow::Result<T> {
    let document = json!({ "file": path.display().to_string(), "sound": false });
    json_error(result, document, form)
}

/// As [`json_failure`], with a document that lacks only the error.
pub fn json_error<T>(
    result: anyhow::Result<T>,
    mut document: Value,
    form: Form,
) -> anyhow::Result<T> {
    if let (Err(error), Form::Json) = (&result, form) {
        document["error"] = format!("{error:#}").into();
        print_json(&document)?;
    }
    result
}

/// Prints a JSON document.
pub fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

/// Reports go to standard error when standard output carries the data.
pub fn say(output: Option<&Path>, text: &str) -> anyhow::Result<()> {
    if output == Some(Path::new("-")) {
        writeln!(std::io::stderr(), "{text}")?;
    } else {
        writeln!(std::io::stdout(), "{text}")?;
    }
    Ok(())
}
