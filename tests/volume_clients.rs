//! A WAL volume under the clients that people use, through the public binary. A test whose program
//! is not installed says so and passes.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use support::{
    Served, Walkeep, fio, have, have_fio, image, may_mount, qemu_io, sha256, tool, wait_until,
};

const MIB: u64 = 1 << 20;
/// Types of block status: what is allocated, and a hole that reads as zeros.
const DATA: u64 = 0;
const HOLE: u64 = 3;

fn served(size: &str, log_size: &str) -> (Walkeep, Served) {
    let walkeep = Walkeep::new();
    walkeep.ok(&format!(
        "volume create db --data db.data --log db.log --size {size} --log-size {log_size}"
    ));
    let served = Served::start(&walkeep, "db", 1);
    (walkeep, served)
}

/// Block status of a whole export: offset, length and type of each extent.
fn map(uri: &str) -> Vec<(u64, u64, u64)> {
    let mut extents: Vec<(u64, u64, u64)> = vec![];
    for line in tool("nbdinfo", &["--map", uri]).lines() {
        let mut numbers = line.split_whitespace().map_while(|n| n.parse().ok());
        let mut number = || numbers.next().unwrap();
        let (offset, len, kind) = (number(), number(), number());
        match extents.last_mut() {
            Some(last) if last.2 == kind => last.1 += len,
            _ => extents.push((offset, len, kind)),
        }
    }
    extents
}

#[test]
fn nbdinfo_sees_the_volume() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let (_walkeep, served) = served("64M", "16M");
    let info = tool("nbdinfo", &[served.uri("db")]);
    for expected in [
        "export=\"db\"",
        "export-size: 67108864",
        "description: Walkeep volume db",
        "is_read_only: false",
        "can_multi_conn: true",
        "can_flush: true",
        "can_fua: true",
        "can_trim: true",
        "can_zero: true",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(expected), "{expected}: {info}");
    }
    served.stop();
}

#[test]
fn a_volume_for_reading_only_refuses_writes() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let walkeep = Walkeep::new();
    walkeep.ok("volume create db --data d --log l --size 8M --log-size 16M --read-only");
    let served = Served::start(&walkeep, "db", 1);
    let info = tool("nbdinfo", &[served.uri("db")]);
    assert!(info.contains("is_read_only: true"), "{info}");
    let write = ["-f", "raw", "-c", "write 0 4k", served.uri("db")];
    let refused = Command::new("qemu-io").args(write).output().unwrap();
    assert!(!refused.status.success(), "{}", support::text(&refused));
    tool(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 8M", served.uri("db")],
    );
    served.stop();
}

/// What is only in the log yet counts: the map is the same before and after a checkpoint.
#[test]
fn the_map_follows_writes_and_trims() {
    if !have(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let (walkeep, served) = served("64M", "16M");
    let uri = served.uri("db");
    assert_eq!(map(uri), [(0, 64 * MIB, HOLE)]);
    let holds = |expected: &[(u64, u64, u64)]| {
        let expected: Vec<_> = expected
            .iter()
            .map(|(at, len, kind)| (at * MIB, len * MIB, *kind))
            .collect();
        assert_eq!(map(uri), expected, "before the checkpoint");
        walkeep.ok("volume checkpoint db");
        assert_eq!(walkeep.status("db")["pending_pieces"], 0);
        assert_eq!(map(uri), expected, "after the checkpoint");
    };
    qemu_io(uri, &["write -P 7 4M 8M", "write -P 8 60M 4M"]);
    holds(&[(0, 4, HOLE), (4, 8, DATA), (12, 48, HOLE), (60, 4, DATA)]);
    // Of what is on the data, and of what is only in the log.
    qemu_io(
        uri,
        &["write -P 9 20M 3M", "discard 6M 2M", "discard 21M 1M"],
    );
    let expected = [
        (0, 4, HOLE),
        (4, 2, DATA),
        (6, 2, HOLE),
        (8, 4, DATA),
        (12, 8, HOLE),
        (20, 1, DATA),
        (21, 1, HOLE),
        (22, 1, DATA),
        (23, 37, HOLE),
        (60, 4, DATA),
    ];
    holds(&expected);
    qemu_io(
        uri,
        &["write -P 5 0 4M", "discard 8M 56M", "write -z 4M 1M"],
    );
    holds(&[(0, 6, DATA), (6, 58, HOLE)]);
    qemu_io(
        uri,
        &["write -z -u 1M 4M", "read -P 0 1M 4M", "read -P 5 0 1M"],
    );
    holds(&[(0, 1, DATA), (1, 4, HOLE), (5, 1, DATA), (6, 58, HOLE)]);
    served.stop();
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let (walkeep, served) = served("64M", "16M");
    let (image_path, copy) = (walkeep.path("a.img"), walkeep.path("copy.img"));
    image(&image_path, 64 * MIB);
    let uri = served.uri("db");
    let out = copy.to_str().unwrap();
    tool("nbdcopy", &["--flush", image_path.to_str().unwrap(), uri]);
    tool("nbdcopy", &[uri, out]);
    assert_eq!(sha256(&copy), sha256(&image_path));
    // Over data that is not zero, one request after the other.
    std::fs::write(&copy, vec![0xa5; 64 << 20]).unwrap();
    tool("nbdcopy", &["--flush", out, uri]);
    tool(
        "nbdcopy",
        &["--synchronous", uri, image_path.to_str().unwrap()],
    );
    assert_eq!(sha256(&image_path), sha256(&copy));
    served.stop();
    assert_eq!(walkeep.sha256("db.data"), sha256(&copy));
}

#[test]
fn qemu_converts_compares_and_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (walkeep, served) = served("64M", "16M");
    let (uri, image_path) = (served.uri("db"), walkeep.path("a.img"));
    let (name, copy) = (image_path.to_str().unwrap(), walkeep.path("copy.qcow2"));
    let copy = copy.to_str().unwrap();
    image(&image_path, 64 * MIB);
    tool(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", name, uri],
    );
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", name, uri],
    );
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", uri, copy],
    );
    tool(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", name, copy],
    );
    let commands = [
        "write -P 7 1M 32M",
        "write -f -P 8 512 512",
        "write -z 2M 1M",
        "write -z -u 4M 1M",
        "discard 6M 1M",
        "flush",
        "read -P 7 1M 1M",
        "read -P 8 512 512",
        "read -P 0 2M 1M",
        "read -P 0 4M 1M",
        "read -P 0 6M 1M",
        "read -P 7 7M 26M",
    ];
    qemu_io(uri, &commands);
    served.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have_fio() {
        return;
    }
    let (walkeep, served) = served("128M", "32M");
    let uri = served.uri("db");
    for options in [
        "--rw=randwrite --size=24m --bs=512 --io_size=4m --iodepth=16 --fsync=32",
        "--rw=randwrite --size=32m --bs=4096 --iodepth=32 --fsync=64",
        "--rw=randwrite --size=32m --bsrange=512-128k --blockalign=512 --iodepth=32 --fsync=64",
        // Each block is trimmed before it is written, which other jobs do beside it.
        "--rw=randtrimwrite --numjobs=2 --size=16m --offset_increment=16m --bs=4096 --iodepth=8 \
         --fsync=64",
        "--rw=randtrimwrite --size=8m --bs=512 --io_size=2m --iodepth=8 --verify_backlog=64",
        "--rw=randwrite --numjobs=4 --size=16m --offset_increment=16m --bs=4096 --iodepth=8 \
         --fsync=16",
        "--rw=write --size=128m --bs=32m --iodepth=4 --fsync=2",
        "--rw=randrw --rwmixread=40 --size=64m --bsrange=4k-1m --iodepth=16 --fsync=16",
    ] {
        fio(&walkeep, uri, options);
    }
    let status = walkeep.status("db");
    assert_eq!(status["condition"], "serving");
    assert!(
        status["counters"]["ring_wraps"].as_u64().unwrap() > 0,
        "{status}"
    );
    served.stop();
}

/// An export as a block device: FUSE gives it as a file, and a loop device stands on that.
struct Attached {
    fuse: PathBuf,
    nbdfuse: Child,
    device: String,
    mount: PathBuf,
}

impl Attached {
    fn new(walkeep: &Walkeep, uri: &str) -> Self {
        let (fuse, mount) = (walkeep.path("fuse"), walkeep.path("mount"));
        for dir in [&fuse, &mount] {
            std::fs::create_dir_all(dir).unwrap();
        }
        // One request at a time: version 1.14 miscounts those that overlap, and dies of it.
        let nbdfuse = Command::new("nbdfuse")
            .arg("-s")
            .args([&fuse, Path::new(uri)])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut attached = Self {
            nbdfuse,
            device: String::new(),
            mount,
            fuse,
        };
        let file = attached.fuse.join("nbd");
        wait_until("the file of nbdfuse", || {
            std::fs::metadata(&file).map_err(|e| e.to_string())
        });
        let loops = ["--find", "--show", "--direct-io=on", file.to_str().unwrap()];
        attached.device = tool("losetup", &loops).trim().to_owned();
        attached
    }

    fn mount(&self, options: &str) {
        tool(
            "mount",
            &["-o", options, &self.device, self.mount.to_str().unwrap()],
        );
    }

    fn unmount(&self) {
        tool("umount", &[self.mount.to_str().unwrap()]);
    }

    fn detach(mut self) {
        tool("losetup", &["--detach", &self.device]);
        self.device.clear();
        tool("umount", &[self.fuse.to_str().unwrap()]);
        assert!(self.nbdfuse.wait().unwrap().success());
    }

    /// SHA-256 of every file.
    fn sums(&self) -> String {
        let script = "cd \"$0\" && find . -type f -print0 | sort -z | xargs -0 sha256sum";
        tool("sh", &["-c", script, self.mount.to_str().unwrap()])
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let quietly = |program: &str, arguments: &[&str]| {
            let _ = Command::new(program)
                .args(arguments)
                .stderr(Stdio::null())
                .status();
        };
        quietly("umount", &[self.mount.to_str().unwrap()]);
        if !self.device.is_empty() {
            quietly("losetup", &["--detach", &self.device]);
        }
        quietly("umount", &["--lazy", self.fuse.to_str().unwrap()]);
        let _ = self.nbdfuse.kill();
        let _ = self.nbdfuse.wait();
    }
}

/// Copies the sources of this project, writes a file as a database does, deletes and trims.
fn work(attached: &Attached, walkeep: &Walkeep) {
    let mount = attached.mount.to_str().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["Cargo.lock", "src", "store", "wire", "docs", "tests"] {
        tool("cp", &["-r", root.join(name).to_str().unwrap(), mount]);
    }
    let gone = attached.mount.join("gone");
    std::fs::write(&gone, vec![0x5a; 48 << 20]).unwrap();
    if have(&["fio"]) {
        let options = "--name=base --rw=randwrite --size=16m --bs=8k --fsync=8 --verify=crc32c";
        let mut arguments: Vec<_> = options.split_whitespace().collect();
        let dir = format!("--directory={mount}");
        arguments.push(&dir);
        tool("fio", &arguments);
    }
    tool("sync", &["-f", mount]);
    let allocated = || {
        walkeep.ok("volume checkpoint db");
        std::fs::metadata(walkeep.path("db.data")).unwrap().blocks() * 512
    };
    let before = allocated();
    std::fs::remove_file(&gone).unwrap();
    // xfs frees what was deleted in its own time.
    wait_until("fstrim to give 40 MiB back", || {
        tool("sync", &["-f", mount]);
        tool("fstrim", &[mount]);
        match allocated() {
            after if after + 40 * MIB < before => Ok(()),
            after => Err(format!("{before} bytes before, {after} after")),
        }
    });
}

/// A file system on a volume: made, used, checked, and found again behind another server.
fn file_system(make: &[&str], check: &[&str]) {
    let programs = [make[0], check[0], "nbdfuse", "losetup", "fstrim"];
    if !may_mount() || !have(&programs) {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        return println!("skipped: this machine has no /dev/fuse");
    }
    let (walkeep, served) = served("512M", "64M");
    let attached = Attached::new(&walkeep, served.uri("db"));
    let on_device = |command: &[&str]| {
        let arguments = [&command[1..], &[&attached.device]].concat();
        tool(command[0], &arguments);
    };
    on_device(make);
    attached.mount("rw");
    work(&attached, &walkeep);
    let sums = attached.sums();
    assert!(sums.lines().count() > 50, "{sums}");
    attached.unmount();
    on_device(check);
    attached.detach();
    served.stop();

    let served = Served::start(&walkeep, "db", 1);
    let attached = Attached::new(&walkeep, served.uri("db"));
    tool(check[0], &[&check[1..], &[&attached.device]].concat());
    attached.mount("ro");
    assert_eq!(attached.sums(), sums);
    attached.unmount();
    attached.detach();
    served.stop();
}

#[test]
fn ext4_lives_on_a_volume() {
    file_system(&["mkfs.ext4", "-q", "-E", "nodiscard"], &["e2fsck", "-fn"]);
}

#[test]
fn xfs_lives_on_a_volume() {
    file_system(&["mkfs.xfs", "-q", "-K"], &["xfs_repair", "-n"]);
}
