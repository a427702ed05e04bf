//! Checks of damaged inputs: each must be refused, in words that name the file, the place, the
//! rule and what stands there instead.

use std::path::Path;

use serde_json::Value;
use walkeep_store::ldev::LogDevice;
use walkeep_store::wdiff::{self, MergeOptions, Shape};
use walkeep_store::{Meter, Workers, wlog};
use walkeep_wire::meta::{MetaState, QueueFile};
use walkeep_wire::serial::Serial;
use walkeep_wire::wdiff::{DEFAULT_MAX_IO_BLOCKS, Format};

use crate::files::{Check, scratch, shown};
use crate::log_cases::{mutated_input, unhex};
use crate::{log_cases, meta_cases};

/// True if the case is one of these.
pub(crate) fn covers(case: &Value) -> bool {
    matches!(case["kind"].as_str(), Some("reject" | "reject-hex"))
}

/// Checks one case. One thread, so that a limit on memory tells of the data and not of stacks.
pub(crate) fn check(case: &Value, vectors: &Path) -> Check {
    if case["expect"]["result"] != "error" {
        return Err(format!("unknown result {}", case["expect"]["result"]));
    }
    // The codecs of memory, where they cover the operation, must agree with those of files.
    if log_cases::covers(case) {
        log_cases::check(case, vectors)?;
    }
    if meta_cases::is_known(case) {
        meta_cases::check(case, vectors)?;
    }
    let operation = case["params"]["operation"].as_str().unwrap_or_default();
    let (name, refusal) = match operation {
        "load-MetaState" => ("state", load_state(case)?),
        _ => {
            let name = case["inputs"]["file"].as_str().unwrap_or_default();
            (name, read_input(operation, name, case, vectors)?)
        }
    };
    is_complete(name, &refusal.ok_or("accepted")?)
}

/// The words of an error, `None` where there is none.
type Refusal = Option<String>;

fn refusal<T>(result: Result<T, impl std::fmt::Display>) -> Refusal {
    result.err().map(shown)
}

fn load_state(case: &Value) -> Check<Refusal> {
    let hex = case["params"]["hex"].as_str().ok_or("no hex")?;
    let bytes = unhex(hex).ok_or("bad hex")?;
    let state = MetaState::from_bytes(&bytes).map_err(|flaw| flaw.in_source("state"));
    Ok(refusal(state))
}

fn read_input(operation: &str, name: &str, case: &Value, vectors: &Path) -> Check<Refusal> {
    let scratch = scratch().map_err(shown)?;
    let path = scratch.path().join(name);
    let bytes = mutated_input(case, vectors)?;
    std::fs::write(&path, &bytes).map_err(shown)?;
    let (workers, meter) = (Workers::new(1), Meter::default());
    Ok(match operation {
        "wlog-read" => refusal(wlog::verify(&path, workers, &meter)),
        "wdiff-read" => refusal(wdiff::verify(&path, true, workers, &meter)),
        "wdiff-merge" => {
            let output = scratch.path().join("merged");
            let refusal = refusal(wdiff::merge(&[path], &output, &merge_options(), &meter));
            if output.exists() {
                return Err("a refused merge left its output".to_owned());
            }
            refusal
        }
        "ldev-open" => refusal(LogDevice::open(&path)),
        "queue-open" => refusal(QueueFile::open(&bytes).map_err(|f| f.in_source(name))),
        "queue-read" => {
            let records = QueueFile::open(&bytes).and_then(|queue| queue.records());
            refusal(records.map_err(|f| f.in_source(name)))
        }
        other => return Err(format!("unknown operation {other}")),
    })
}

fn merge_options() -> MergeOptions {
    let shape = Shape {
        format: Format::Sorted,
        max_io: DEFAULT_MAX_IO_BLOCKS,
    };
    MergeOptions {
        shape,
        compress: None,
        any_uuid: false,
        workers: Workers::new(1),
    }
}

fn is_complete(name: &str, refusal: &str) -> Check {
    let missing = [name, "offset ", "expected ", "found "]
        .into_iter()
        .find(|part| !refusal.contains(part));
    missing.map_or(Ok(()), |part| {
        Err(format!("no {part:?} in the error: {refusal}"))
    })
}
