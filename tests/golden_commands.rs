//! The golden cases of listings, redo, merge and conversion through the public binary.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use support::{Walkeep, vectors};

/// The image that a case starts from.
fn make_base(recipe: &Value, path: &Path) {
    let size = recipe["size"].as_u64().unwrap();
    let mut bytes = Vec::with_capacity(size as usize);
    match recipe["recipe"].as_str().unwrap() {
        "zero" => bytes.resize(size as usize, 0),
        "xorshift64" => {
            let mut x = recipe["seed"].as_u64().unwrap();
            while (bytes.len() as u64) < size {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                bytes.extend_from_slice(&x.to_le_bytes());
            }
        }
        other => panic!("unknown recipe {other}"),
    }
    fs::write(path, bytes).unwrap();
}

fn file(case: &Value, key: &str) -> String {
    vectors()
        .join(case["inputs"][key].as_str().unwrap())
        .display()
        .to_string()
}

fn inputs(case: &Value) -> Vec<String> {
    let names = case["inputs"]["wdiffs"].as_array().unwrap().iter();
    names
        .map(|name| vectors().join(name.as_str().unwrap()).display().to_string())
        .collect()
}

fn check_text(walkeep: &Walkeep, case: &Value) {
    let path = file(case, "file");
    let area = if path.ends_with(".wlog") {
        "wlog"
    } else {
        "wdiff"
    };
    let printed = walkeep.ok(&format!("{area} show --format walb {path}"));
    let expected = fs::read_to_string(vectors().join(case["expect"]["text"].as_str().unwrap()));
    assert_eq!(printed, expected.unwrap(), "{}", case["id"]);
}

fn check_redo(walkeep: &Walkeep, case: &Value, area: &str) {
    let input = file(case, area);
    let policy = case["params"]["discard"].as_str().unwrap();
    for threads in [1, 3] {
        make_base(&case["inputs"]["base"], &walkeep.path("image"));
        walkeep.ok(&format!(
            "{area} redo --discard {policy} --threads {threads} {input} image"
        ));
        assert_eq!(
            walkeep.sha256("image"),
            case["expect"]["sha256"].as_str().unwrap()
        );
    }
}

/// Converts, and proves the diff by its records and, where a redo case knows it, its image.
fn check_convert(walkeep: &Walkeep, case: &Value) {
    let params = &case["params"];
    let indexed = if params["format"] == "indexed" {
        "--indexed"
    } else {
        ""
    };
    let (max_io, compress) = (
        &params["max_io_bytes"],
        params["compression"].as_str().unwrap(),
    );
    let input = file(case, "wlog");
    let convert = |threads: u32, out: &str| {
        walkeep.ok(&format!(
            "wlog to-wdiff {indexed} --max-io {max_io} --compress {compress} --threads {threads} \
             {input} {out}"
        ));
    };
    convert(1, "one");
    convert(3, "three");
    assert_eq!(
        walkeep.sha256("one"),
        walkeep.sha256("three"),
        "{}",
        case["id"]
    );
    let shown: Value = serde_json::from_str(&walkeep.ok("wdiff show --json one")).unwrap();
    let reference = vectors().join(case["expect"]["reference"].as_str().unwrap());
    let wanted: Value =
        serde_json::from_str(&walkeep.ok(&format!("wdiff show --json {}", reference.display())))
            .unwrap();
    let shape = |list: &Value| -> Vec<(u64, u64, String)> {
        let records = list["records"].as_array().unwrap().iter();
        records
            .map(|r| {
                let kind = r["kind"].as_str().unwrap().to_owned();
                (
                    r["address"].as_u64().unwrap(),
                    r["blocks"].as_u64().unwrap(),
                    kind,
                )
            })
            .collect()
    };
    assert_eq!(shape(&shown), shape(&wanted), "{}", case["id"]);
    let end = shape(&shown).iter().map(|(at, n, _)| (at + n) * 512).max();
    for (name, diff) in [
        ("ours", "one".into()),
        ("theirs", reference.display().to_string()),
    ] {
        let image = fs::File::create(walkeep.path(name)).unwrap();
        image.set_len(end.unwrap_or(512)).unwrap();
        walkeep.ok(&format!("wdiff redo {diff} {name}"));
    }
    let compared = walkeep.ok("image diff --json ours theirs");
    let compared: Value = serde_json::from_str(&compared).unwrap();
    assert_eq!(compared["equal"], true, "{}", case["id"]);
}

fn check_merge(walkeep: &Walkeep, case: &Value) {
    let max_io = &case["params"]["max_io_bytes"];
    let inputs = inputs(case).join(" ");
    let reference = vectors().join(case["expect"]["reference"].as_str().unwrap());
    for options in [
        "",
        "--threads 1",
        "--compress lz4",
        "--indexed --compress none",
    ] {
        walkeep.ok(&format!(
            "wdiff merge --any-uuid --max-io {max_io} {options} -o merged {inputs}"
        ));
        for (name, diff) in [
            ("ours", "merged".into()),
            ("theirs", reference.display().to_string()),
        ] {
            fs::write(walkeep.path(name), vec![0x5a; 2 << 20]).unwrap();
            walkeep.ok(&format!("wdiff redo {diff} {name}"));
        }
        assert_eq!(
            walkeep.sha256("ours"),
            walkeep.sha256("theirs"),
            "{} {options}",
            case["id"]
        );
    }
}

fn check_virtual(walkeep: &Walkeep, case: &Value) {
    make_base(&case["inputs"]["base"], &walkeep.path("base"));
    let diffs: String = inputs(case)
        .iter()
        .map(|path| format!(" --diff {path}"))
        .collect();
    walkeep.ok(&format!("image cat --base base{diffs} -o image"));
    assert_eq!(
        walkeep.sha256("image"),
        case["expect"]["sha256"].as_str().unwrap(),
        "{}",
        case["id"]
    );
}

#[test]
fn golden_cases_through_the_binary() {
    let manifest = fs::read(vectors().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let walkeep = Walkeep::new();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for case in manifest["cases"].as_array().unwrap() {
        let kind = case["kind"].as_str().unwrap();
        match kind {
            "text" => check_text(&walkeep, case),
            "wlog-redo" => check_redo(&walkeep, case, "wlog"),
            "wdiff-redo" => check_redo(&walkeep, case, "wdiff"),
            "wlog-to-wdiff" => check_convert(&walkeep, case),
            "wdiff-merge" => check_merge(&walkeep, case),
            "virt-full" => check_virtual(&walkeep, case),
            _ => continue,
        }
        *counts.entry(kind.to_owned()).or_default() += 1;
    }
    println!("through the binary: {counts:?}");
    let kinds = [
        "text",
        "wlog-redo",
        "wdiff-redo",
        "wlog-to-wdiff",
        "wdiff-merge",
        "virt-full",
    ];
    for kind in kinds {
        assert!(counts.contains_key(kind), "no {kind} case");
    }
}

#[test]
fn a_wlog_cut_out_of_a_log_device_is_the_original() {
    let walkeep = Walkeep::new();
    for (device, log) in [
        ("ldev0-512.img", "w512-basic.wlog"),
        ("ldev2-4096.img", "w4096-basic.wlog"),
    ] {
        let device = vectors().join(device);
        walkeep.ok(&format!("wlog cat {} cut.wlog", device.display()));
        let original = fs::read(vectors().join(log)).unwrap();
        assert_eq!(fs::read(walkeep.path("cut.wlog")).unwrap(), original);
    }
}
