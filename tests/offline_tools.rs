//! What an operator relies on: exit statuses, outputs that are whole or absent, pipes, limits.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Walkeep, text};

/// A log, its diff, and an image large enough for both.
fn prepared() -> Walkeep {
    let walkeep = Walkeep::new();
    walkeep.ok(
        "wlog generate --seed 7 --size 4M --device-size 8M --discard --all-zero --padding a.wlog",
    );
    walkeep.ok("wlog to-wdiff a.wlog a.wdiff");
    walkeep
}

fn image(walkeep: &Walkeep, name: &str, bytes: u64) {
    let file = fs::File::create(walkeep.path(name)).unwrap();
    file.set_len(bytes).unwrap();
}

#[test]
fn a_log_and_its_diffs_give_the_same_image() {
    let walkeep = prepared();
    walkeep.ok("wlog to-wdiff --indexed --compress zstd:3:2 a.wlog i.wdiff");
    for name in ["by-log", "by-diff", "by-index"] {
        image(&walkeep, name, 8 << 20);
    }
    walkeep.ok("wlog redo a.wlog by-log");
    walkeep.ok("wdiff redo a.wdiff by-diff");
    walkeep.ok("wdiff redo i.wdiff by-index");
    assert_eq!(walkeep.sha256("by-log"), walkeep.sha256("by-diff"));
    assert_eq!(walkeep.sha256("by-log"), walkeep.sha256("by-index"));
    image(&walkeep, "base", 8 << 20);
    walkeep.ok("image diff --wdiff d.wdiff base by-log");
    walkeep.ok("image cat --base base --diff d.wdiff -o restored");
    assert_eq!(walkeep.sha256("by-log"), walkeep.sha256("restored"));
    let hash = |name| walkeep.ok(&format!("image hash {name}"));
    assert_eq!(hash("by-log"), hash("restored"));
    assert_ne!(hash("by-log"), hash("base"));
}

#[test]
fn pipes_stand_in_for_files() {
    let walkeep = prepared();
    let log = fs::read(walkeep.path("a.wlog")).unwrap();
    let diff = fs::read(walkeep.path("a.wdiff")).unwrap();
    for (line, input, expected) in [
        ("wlog to-wdiff - -", &log, Some(&diff)),
        ("wlog verify -", &log, None),
        ("wlog show -", &log, None),
        ("wdiff verify -", &diff, None),
        ("wdiff show --json -", &diff, None),
        ("wdiff merge -o - -", &diff, None),
    ] {
        let output = walkeep.piped(line, input);
        assert!(output.status.success(), "{line}: {}", text(&output));
        if let Some(expected) = expected {
            assert!(output.stdout == *expected, "{line}: another output");
        }
    }
    let cut = walkeep.piped("wlog verify -", &log[..log.len() - 1]);
    assert_eq!(cut.status.code(), Some(1));
    assert!(
        text(&cut).contains("standard input: offset "),
        "{}",
        text(&cut)
    );
}

#[test]
fn records_past_the_end_are_counted_and_not_written() {
    let walkeep = prepared();
    for line in ["wlog redo a.wlog", "wdiff redo a.wdiff"] {
        image(&walkeep, "small", 4 << 20);
        let error = walkeep.fails(&format!("{line} small"), 1);
        assert!(error.contains("records reach past the end"), "{error}");
        assert_eq!(fs::metadata(walkeep.path("small")).unwrap().len(), 4 << 20);
    }
    image(&walkeep, "small", 4 << 20);
    let error = walkeep.fails("image cat --base small --diff a.wdiff -o out", 1);
    assert!(error.contains("records reach past the end"), "{error}");
    assert_eq!(fs::metadata(walkeep.path("out")).unwrap().len(), 4 << 20);
}

#[test]
fn wrong_usage_is_status_2_and_bad_data_is_status_1() {
    let walkeep = prepared();
    for line in [
        "",
        "wlog",
        "wlog fly a.wlog",
        "wlog to-wdiff a.wlog",
        "wlog to-wdiff --max-io 1000 a.wlog b.wdiff",
        "wlog to-wdiff --compress zip a.wlog b.wdiff",
        "wlog to-wdiff --threads 0 a.wlog b.wdiff",
        "wlog redo --discard maybe a.wlog image",
        "wlog show --json --format walb a.wlog",
        "wdiff merge -o b.wdiff",
        "ldev format --data-size 7 ldev",
        "image hash --block 0 a.wdiff",
    ] {
        walkeep.fails(line, 2);
    }
    for line in [
        "wlog verify missing",
        "wlog verify a.wdiff",
        "wdiff verify a.wlog",
        "ldev show a.wlog",
        "wlog to-wdiff a.wdiff b.wdiff",
        "wlog redo a.wlog missing",
        "wlog verify .",
    ] {
        let error = walkeep.fails(line, 1);
        assert!(error.starts_with("walkeep: "), "{error}");
    }
    assert_eq!(
        walkeep.names(),
        ["a.wdiff", "a.wlog"],
        "a failed command left a file"
    );
}

#[test]
fn damage_is_named_with_its_place_and_leaves_no_output() {
    let walkeep = prepared();
    let mut diff = fs::read(walkeep.path("a.wdiff")).unwrap();
    let middle = diff.len() / 2;
    diff[middle] ^= 0x10;
    fs::write(walkeep.path("bad.wdiff"), &diff).unwrap();
    image(&walkeep, "base", 8 << 20);
    for line in [
        "wdiff verify bad.wdiff",
        "wdiff merge -o out bad.wdiff a.wdiff",
        "wdiff merge --compress lz4 -o out bad.wdiff",
        "image cat --base base --diff bad.wdiff -o out",
        "wdiff redo bad.wdiff base",
    ] {
        if line.contains("bad.wdiff a.wdiff") {
            continue; // the newer diff hides the damaged record completely
        }
        let error = walkeep.fails(line, 1);
        for part in ["bad.wdiff: offset ", "expected ", "found "] {
            assert!(error.contains(part), "{line}: {error}");
        }
    }
    assert!(!walkeep.path("out").exists());
}

/// True once the process holds a file without a name in `dir` that has content.
fn writes_unnamed_file(pid: u32, dir: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten().any(|fd| {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let size = fs::metadata(fd.path()).map_or(0, |meta| meta.len());
        target.starts_with(dir) && size > 0
    })
}

#[test]
fn a_killed_command_leaves_nothing_behind() {
    let walkeep = prepared();
    let before = walkeep.names();
    let mut child = walkeep
        .command()
        .args(["wlog", "generate", "--size", "1T", "out.wlog"])
        .spawn()
        .unwrap();
    let dir = fs::canonicalize(walkeep.path(".")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !writes_unnamed_file(child.id(), &dir) {
        assert!(Instant::now() < deadline, "the command wrote nothing");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(walkeep.names(), before);
}

#[test]
fn diffs_of_different_logs_are_not_merged_by_accident() {
    let walkeep = prepared();
    walkeep.ok("wlog generate --seed 8 --size 1M --device-size 8M b.wlog");
    walkeep.ok("wlog to-wdiff b.wlog b.wdiff");
    let error = walkeep.fails("wdiff merge -o out a.wdiff b.wdiff", 1);
    assert!(
        error.contains("b.wdiff") && error.contains("--any-uuid"),
        "{error}"
    );
    walkeep.ok("wdiff merge --any-uuid -o out a.wdiff b.wdiff");
    let uuid = |name| {
        let info: serde_json::Value =
            serde_json::from_str(&walkeep.ok(&format!("wdiff info --json {name}"))).unwrap();
        info["uuid"].as_str().unwrap().to_owned()
    };
    assert_eq!(uuid("out"), uuid("b.wdiff"), "the newest input's uuid");
}

#[test]
fn a_log_device_is_formatted_once() {
    let walkeep = Walkeep::new();
    fs::write(walkeep.path("ldev"), vec![0xa5; 1 << 20]).unwrap();
    walkeep.ok("ldev format --data-size 4M --block-size 512 --name vol0 ldev");
    let shown = walkeep.ok("ldev show --json ldev");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["name"], "vol0");
    assert_eq!(shown["device_blocks"], 8192);
    assert_eq!(shown["ring_blocks"], 2048 - 10);
    let error = walkeep.fails("ldev format --data-size 4M ldev", 1);
    assert!(error.contains("--force"), "{error}");
    walkeep.ok("ldev format --data-size 4M --force ldev");
    walkeep.ok("ldev verify ldev");
    image(&walkeep, "image", 4 << 20);
    walkeep.ok("ldev redo ldev image");
    walkeep.ok("wlog cat ldev empty.wlog");
    walkeep.ok("wlog verify empty.wlog");
}

#[test]
fn ten_thousand_diffs_merge_with_256_descriptors_and_128_mib() {
    const DIFFS: u32 = 10_000;
    let walkeep = Walkeep::new();
    walkeep.ok("wlog generate --seed 1 --size 64K --device-size 1M one.wlog");
    walkeep.ok("wlog to-wdiff one.wlog one.wdiff");
    let mut names = String::new();
    for n in 0..DIFFS {
        let name = format!("{n}.wdiff");
        fs::copy(walkeep.path("one.wdiff"), walkeep.path(&name)).unwrap();
        names.push_str(&format!(" {name}"));
    }
    let script = format!(
        "ulimit -n 256; ulimit -v {}; exec \"$0\" wdiff merge --threads 2 -o merged{names}",
        // Address space, which is more than memory: thread stacks and arenas count in full.
        128 * 1024 + 256 * 1024
    );
    let output = Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_walkeep")])
        .env("MALLOC_ARENA_MAX", "1")
        .current_dir(walkeep.path("."))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let records = |name: &str| {
        let listed = walkeep.ok(&format!("wdiff show --json {name}"));
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        listed["records"].clone()
    };
    assert_eq!(records("merged"), records("one.wdiff"));
}
