//! The golden vectors about metadata. `WALKEEP_WALB_VECTORS` names another folder of vectors.

use std::collections::BTreeMap;
use std::path::PathBuf;

#[path = "support/meta_cases.rs"]
mod meta_cases;

fn vectors() -> PathBuf {
    match std::env::var_os("WALKEEP_WALB_VECTORS") {
        Some(dir) => dir.into(),
        None => PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/vectors/walb"
        )),
    }
}

#[test]
fn metadata_vectors_hold() {
    let dir = vectors();
    let manifest = meta_cases::read_manifest(&dir).expect("a manifest");
    let cases = manifest["cases"].as_array().expect("a list of cases");
    let mut counts = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases.iter().filter(|case| meta_cases::is_known(case)) {
        *counts
            .entry(case["kind"].as_str().unwrap_or_default())
            .or_insert(0) += 1;
        if let Err(error) = meta_cases::check(case, &dir) {
            failures.push(format!("{}: {error}", case["id"]));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("checked: {counts:?}");
    // A kind without a case would pass unseen; other sets need not have all kinds.
    if manifest["set"] == "public" {
        assert_eq!(counts.len(), meta_cases::KINDS.len() + 2, "{counts:?}");
    }
}
