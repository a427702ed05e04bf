//! What an operator relies on: exit statuses, outputs that are whole or absent, pipes, limits.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Walkeep, text, vectors};

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

#[test]
fn no_command_destroys_its_own_input() {
    let walkeep = prepared();
    image(&walkeep, "base", 8 << 20);
    fs::hard_link(walkeep.path("a.wdiff"), walkeep.path("alias")).unwrap();
    std::os::unix::fs::symlink("a.wlog", walkeep.path("link")).unwrap();
    let sums = || ["a.wlog", "a.wdiff", "base"].map(|name| walkeep.sha256(name));
    let before = sums();
    for line in [
        "wlog redo a.wlog a.wlog",
        "wlog redo a.wlog link",
        "wlog to-wdiff a.wlog a.wlog",
        "wdiff redo a.wdiff alias",
        "wdiff merge -o a.wdiff a.wdiff alias",
        "wlog cat a.wlog a.wlog",
        "ldev redo base base",
        "image cat --base base -o base",
        "image cat --base base --diff a.wdiff -o a.wdiff",
        "image diff --wdiff base base base",
    ] {
        let error = walkeep.fails(line, 2);
        assert!(error.contains("choose another name"), "{line}: {error}");
    }
    assert_eq!(sums(), before);
}

#[test]
fn json_is_one_document_also_where_the_data_is_bad() {
    let walkeep = prepared();
    for (name, from) in [("cut.wlog", "a.wlog"), ("cut.wdiff", "a.wdiff")] {
        let bytes = fs::read(walkeep.path(from)).unwrap();
        fs::write(walkeep.path(name), &bytes[..bytes.len() - 600]).unwrap();
    }
    fs::write(walkeep.path("empty"), []).unwrap();
    for line in [
        "wlog show --json cut.wlog",
        "wlog show --json empty",
        "wlog show --json missing",
        "wlog show --json a.wdiff",
        "wlog verify --json cut.wlog",
        "wdiff show --json cut.wdiff",
        "wdiff show --json a.wlog",
        "wdiff verify --json cut.wdiff",
        "wdiff info --json empty",
        "ldev show --json empty",
        "ldev verify --json a.wlog",
        "image diff --json a.wlog missing",
        "image diff --json a.wlog empty",
    ] {
        let output = walkeep.run(line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(document["error"].is_string(), "{line}: {document}");
    }
}

#[test]
fn a_file_of_another_kind_is_named() {
    let walkeep = prepared();
    let error = walkeep.fails("wlog verify a.wdiff", 1);
    assert!(error.contains("a.wdiff is a wdiff, not a wlog"), "{error}");
    let error = walkeep.fails("wdiff info a.wlog", 1);
    assert!(error.contains("a.wlog is a wlog, not a wdiff"), "{error}");
}

#[test]
fn a_replaced_output_keeps_its_mode_and_a_link_its_target() {
    use std::os::unix::fs::PermissionsExt;
    let walkeep = prepared();
    fs::write(walkeep.path("private"), "old").unwrap();
    let only_mine = fs::Permissions::from_mode(0o600);
    fs::set_permissions(walkeep.path("private"), only_mine.clone()).unwrap();
    std::os::unix::fs::symlink("private", walkeep.path("link")).unwrap();
    walkeep.ok("wdiff merge -o link a.wdiff");
    assert_eq!(walkeep.sha256("private"), walkeep.sha256("a.wdiff"));
    assert!(walkeep.path("link").is_symlink());
    let mode = fs::metadata(walkeep.path("private")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

/// Runs a command under a umask.
fn run_with_umask(walkeep: &Walkeep, umask: &str, line: &str) {
    let binary = env!("CARGO_BIN_EXE_walkeep");
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("umask {umask} && exec {binary} {line}")])
        .current_dir(walkeep.path("."))
        .status()
        .unwrap();
    assert!(status.success(), "{line}");
}

#[test]
fn a_new_output_has_the_mode_that_the_umask_leaves() {
    use std::os::unix::fs::PermissionsExt;
    let walkeep = prepared();
    for (umask, expected) in [("077", 0o600), ("022", 0o644), ("002", 0o664)] {
        let line = format!("wdiff merge -o new-{umask} a.wdiff");
        run_with_umask(&walkeep, umask, &line);
        let new = walkeep.path(&format!("new-{umask}"));
        let mode = fs::metadata(new).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, expected, "{umask}");
    }
}

#[test]
fn a_link_to_nothing_gets_the_file_it_names() {
    let walkeep = prepared();
    fs::create_dir(walkeep.path("dir")).unwrap();
    std::os::unix::fs::symlink("dir/second", walkeep.path("first")).unwrap();
    std::os::unix::fs::symlink("target", walkeep.path("dir/second")).unwrap();
    walkeep.ok("wdiff merge -o first a.wdiff");
    assert_eq!(walkeep.sha256("dir/target"), walkeep.sha256("a.wdiff"));
    assert!(walkeep.path("first").is_symlink() && walkeep.path("dir/second").is_symlink());
    std::os::unix::fs::symlink("circle", walkeep.path("circle")).unwrap();
    let error = walkeep.fails("wdiff merge -o circle a.wdiff", 1);
    assert!(error.contains("follow the link"), "{error}");
}

/// The pieces of an IO share its image, which takes room only once.
#[test]
fn a_shared_image_counts_once() {
    let walkeep = prepared();
    walkeep.ok("wlog to-wdiff --indexed --compress none a.wlog indexed");
    for line in ["wdiff info --json indexed", "wdiff verify --json indexed"] {
        let report: serde_json::Value = serde_json::from_str(&walkeep.ok(line)).unwrap();
        let stored = report["stored"]["none"]["bytes"].as_u64().unwrap();
        let plain = report["records"]["data"]["blocks"].as_u64().unwrap() * 512;
        let file = report["file_bytes"].as_u64().unwrap();
        assert!(plain <= stored && stored < file, "{line}: {report}");
    }
}

#[test]
fn a_log_that_lost_packs_is_not_cut_short_in_silence() {
    let walkeep = Walkeep::new();
    fs::copy(vectors().join("ldev1-512.img"), walkeep.path("ldev")).unwrap();
    image(&walkeep, "image", 1 << 20);
    walkeep.ok("ldev redo ldev image");
    walkeep.ok("wlog cat ldev whole.wlog");
    let shown = walkeep.ok("wlog show --json whole.wlog");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    // The header of the second pack: ring of 165 blocks from byte 5120 on.
    let lsid = shown["packs"][1]["lsid"].as_u64().unwrap();
    let mut bytes = fs::read(walkeep.path("ldev")).unwrap();
    bytes[5120 + (lsid % 165) as usize * 512 + 30] ^= 1;
    fs::write(walkeep.path("damaged"), bytes).unwrap();
    for line in ["wlog cat damaged short.wlog", "ldev verify damaged"] {
        let error = walkeep.fails(line, 1);
        assert!(error.contains("packs are lost"), "{line}: {error}");
    }
    assert!(!walkeep.path("short.wlog").exists());
    // What was asked for stands before the damage.
    walkeep.ok(&format!("wlog cat damaged part.wlog --end {lsid}"));
}

#[test]
fn recovery_onto_the_wrong_image_leaves_the_log() {
    let walkeep = Walkeep::new();
    fs::copy(vectors().join("ldev0-512.img"), walkeep.path("ldev")).unwrap();
    image(&walkeep, "small", 4096);
    image(&walkeep, "image", 256 << 10);
    let before = walkeep.sha256("ldev");
    let output = walkeep.run("ldev redo ldev small");
    assert_eq!(output.status.code(), Some(1));
    let [report, error] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
    let untouched = "ldev: left as it is, written lsid 0; its log, up to lsid ";
    assert!(error.contains(untouched), "{error}");
    assert!(!report.contains("ldev"), "{report}");
    assert_eq!(walkeep.sha256("ldev"), before);
    walkeep.ok("ldev redo ldev image");
    image(&walkeep, "by-log", 256 << 10);
    let log = vectors().join("w512-basic.wlog");
    walkeep.ok(&format!("wlog redo {} by-log", log.display()));
    assert_eq!(walkeep.sha256("image"), walkeep.sha256("by-log"));
}

/// Where the data of a record stands on `ldev0-512.img`: ring of 63 blocks from byte 5120 on.
fn on_ring(lsid: u64) -> usize {
    5120 + (lsid % 63) as usize * 512
}

#[test]
fn recovery_ends_at_bad_data_of_the_first_pack() {
    let walkeep = Walkeep::new();
    let sound = fs::read(vectors().join("ldev0-512.img")).unwrap();
    // The writes of the first pack, at lsid 0: the first, and the one behind a discard.
    for (lsid, index, written) in [(1, 0, 0), (14, 5, 14)] {
        let mut bytes = sound.clone();
        bytes[on_ring(lsid) + 9] ^= 4;
        fs::write(walkeep.path("ldev"), &bytes).unwrap();
        image(&walkeep, "image", 256 << 10);
        let empty = walkeep.sha256("image");

        let error = walkeep.fails("ldev verify ldev", 1);
        let place = format!("ldev: offset {}: ", on_ring(lsid));
        assert!(error.contains(&place), "{error}");

        let printed = walkeep.ok("ldev redo ldev image");
        let end = format!("written lsid 0 to {written}; the last pack, at lsid 0, was ");
        assert!(printed.contains(&end), "{printed}");
        let left = fs::read(walkeep.path("ldev")).unwrap();
        if index == 0 {
            // Nothing stands before it: neither the image nor the log changes.
            assert!(printed.contains("left as it is"), "{printed}");
            assert_eq!(walkeep.sha256("image"), empty);
            assert!(left == bytes, "the log device was changed");
            continue;
        }
        assert!(printed.contains("shrunk"), "{printed}");
        assert!(
            left[on_ring(1)..] == bytes[on_ring(1)..],
            "data was changed"
        );
        // The image is that of the records before, and so is the log from now on.
        walkeep.ok("wlog cat ldev kept.wlog");
        let kept = walkeep.ok("wlog show --json kept.wlog");
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        let records = kept["packs"][0]["records"].as_array().unwrap();
        assert_eq!(
            (kept["packs"].as_array().unwrap().len(), records.len()),
            (1, index)
        );
        image(&walkeep, "by-log", 256 << 10);
        walkeep.ok("wlog redo kept.wlog by-log");
        assert_eq!(walkeep.sha256("image"), walkeep.sha256("by-log"));
        assert_ne!(walkeep.sha256("image"), empty);
        // Once more finds nothing to do.
        let before = walkeep.sha256("ldev");
        let again = walkeep.ok("ldev redo ldev image");
        assert!(again.contains("replayed 0 packs"), "{again}");
        assert_eq!(walkeep.sha256("ldev"), before);
    }
}

/// One IO too far is enough, and what fits is no reason to move the log on.
#[test]
fn recovery_with_one_io_past_the_end_leaves_the_log() {
    let walkeep = Walkeep::new();
    let log = vectors().join("w512-basic.wlog");
    let listed = walkeep.ok(&format!("wlog show --json {}", log.display()));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let packs = listed["packs"].as_array().unwrap().iter();
    let ends = packs.flat_map(|pack| pack["records"].as_array().unwrap());
    let ends = ends.map(|r| r["address"].as_u64().unwrap() + r["blocks"].as_u64().unwrap());
    let end = ends.max().unwrap();
    fs::copy(vectors().join("ldev0-512.img"), walkeep.path("ldev")).unwrap();
    let before = walkeep.sha256("ldev");
    image(&walkeep, "short", (end - 1) * 512);
    let error = walkeep.fails("ldev redo ldev short", 1);
    for part in ["1 records reach past the end", "ldev: left as it is"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(walkeep.sha256("ldev"), before);
    assert_eq!(
        fs::metadata(walkeep.path("short")).unwrap().len(),
        (end - 1) * 512
    );
    image(&walkeep, "image", end * 512);
    walkeep.ok("ldev redo ldev image");
    assert_ne!(walkeep.sha256("ldev"), before, "the written lsid moves on");
}
