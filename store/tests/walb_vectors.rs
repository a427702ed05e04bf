//! Every golden vector, through the code that the commands use.
//!
//! `WALKEEP_WALB_VECTORS` names another folder of vectors with the same schema. A case of an
//! unknown kind fails, so that none is left out unseen.

#[path = "support/files.rs"]
mod files;
#[path = "../../wire/tests/support/log_cases.rs"]
mod log_cases;
#[path = "../../wire/tests/support/meta_cases.rs"]
mod meta_cases;
#[path = "support/reject_cases.rs"]
mod reject_cases;
#[path = "support/store_cases.rs"]
mod store_cases;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use files::{Check, shown};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

/// Cases of the public set.
const PUBLIC_CASES: usize = 935;
/// Present in the environment of a process that is to check damaged inputs in little memory.
const CHILD: &str = "WALKEEP_TEST_REJECT_CHILD";
/// What such a process may use on top of what it begins with: an allocation by an unchecked
/// length of 64 MiB fails, and with it the test. No damaged input has an xz payload, whose
/// dictionary alone could ask for more by right.
const SPARE_BYTES: u64 = 60 << 20;

fn vectors() -> PathBuf {
    std::env::var_os("WALKEEP_WALB_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/walb"),
        PathBuf::from,
    )
}

fn check(case: &Value, vectors: &Path) -> Check {
    if reject_cases::covers(case) {
        return reject_cases::check(case, vectors);
    }
    if log_cases::covers(case) {
        return log_cases::check(case, vectors);
    }
    if meta_cases::is_known(case) {
        return meta_cases::check(case, vectors);
    }
    store_cases::check(case, vectors).unwrap_or_else(|| Err("unknown kind".to_owned()))
}

/// The check of a case; a panic is a failure like any other.
fn failure_of(case: &Value, vectors: &Path) -> Option<String> {
    let checked = catch_unwind(AssertUnwindSafe(|| check(case, vectors)));
    let reason = checked.unwrap_or_else(|_| Err("panic".to_owned())).err()?;
    Some(format!("{} ({}): {reason}", case["id"], case["kind"]))
}

/// Checks all cases, spread over the cores, and returns the failures.
fn failures(cases: &[Value], vectors: &Path) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = vec![];
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            failures.extend(failure_of(case, vectors));
        }
        failures
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let join = |worker: thread::ScopedJoinHandle<'_, Vec<String>>| {
            let lost = |_| vec!["a worker panicked".to_owned()];
            worker.join().unwrap_or_else(lost)
        };
        workers.into_iter().flat_map(join).collect()
    })
}

#[test]
fn all_golden_cases() {
    let vectors = vectors();
    let manifest = meta_cases::read_manifest(&vectors).unwrap();
    let cases = manifest["cases"].as_array().unwrap();
    assert!(!cases.is_empty(), "no cases in {}", vectors.display());
    if manifest["set"] == "public" {
        assert_eq!(cases.len(), PUBLIC_CASES);
    }
    let failures = failures(cases, &vectors);
    let count = failures.len();
    assert!(count == 0, "{count} failed:\n{}", failures.join("\n"));
    let mut counts = BTreeMap::<&str, usize>::new();
    for case in cases {
        *counts.entry(case["kind"].as_str().unwrap()).or_default() += 1;
    }
    for (kind, count) in &counts {
        println!("{kind}: {count}");
    }
    println!("all: {}", counts.values().sum::<usize>());
}

#[test]
fn rejects_need_little_memory() {
    let manifest = meta_cases::read_manifest(&vectors()).unwrap();
    let cases = manifest["cases"].as_array().unwrap().iter();
    let rejects = cases.filter(|case| reject_cases::covers(case)).count();
    assert!(rejects > 0);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "reject_child", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&child.stdout).into_owned();
    let told = format!("refused in little memory: {rejects}.");
    assert!(
        child.status.success() && printed.contains(&told),
        "{}, no {told:?} in:\n{printed}\n{}",
        child.status,
        String::from_utf8_lossy(&child.stderr)
    );
}

/// The child of the test above; does nothing unless it is that.
#[test]
fn reject_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let vectors = vectors();
    let manifest = meta_cases::read_manifest(&vectors).unwrap();
    let cases = manifest["cases"].as_array().unwrap().iter();
    let rejects: Vec<_> = cases.filter(|case| reject_cases::covers(case)).collect();
    limit_memory().unwrap();
    let greedy = Vec::<u8>::new().try_reserve_exact(64 << 20);
    assert!(greedy.is_err(), "the limit does not hold");
    let failures: Vec<_> = rejects
        .iter()
        .filter_map(|case| failure_of(case, &vectors))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("refused in little memory: {}.", rejects.len());
}

/// Limits the address space to what is in use now and [`SPARE_BYTES`].
fn limit_memory() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").map_err(shown)?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|size| size.trim().strip_suffix(" kB"));
    let kib: u64 = kib.ok_or("no VmSize")?.parse().map_err(shown)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_AS).map_err(shown)?;
    setrlimit(Resource::RLIMIT_AS, kib * 1024 + SPARE_BYTES, hard).map_err(shown)
}
