//! The published vectors of logs, log devices and checksums, each checked and counted by kind.

#[path = "support/log_cases.rs"]
mod log_cases;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

/// The folder of the vectors.
fn folder() -> PathBuf {
    std::env::var_os("WALKEEP_WALB_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/walb"),
        PathBuf::from,
    )
}

#[test]
fn all_log_vectors_hold() {
    let dir = folder();
    let manifest = std::fs::read(dir.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut counts = BTreeMap::<&str, usize>::new();
    let mut failures = vec![];
    for case in manifest["cases"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| log_cases::covers(c))
    {
        *counts.entry(case["kind"].as_str().unwrap()).or_default() += 1;
        if let Err(reason) = log_cases::check(case, &dir) {
            failures.push(format!("{}: {reason}", case["id"]));
        }
    }
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    for kind in log_cases::KINDS {
        // Other sets need not have all kinds.
        let needed = manifest["set"] == "public";
        assert!(!needed || counts.contains_key(kind), "no {kind} case");
    }
    println!("{counts:?}");
}
