//! A WAL volume on devices and under a system that make difficulties: large sectors, a full disk,
//! another server, a stopped process. A test that this machine cannot run says so and passes.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use support::{
    Served, Walkeep, fio, fio_command, have, have_fio, image, may_mount, qemu_io, text, tool,
    wait_until,
};

const MIB: u64 = 1 << 20;

/// A loop device on a new sparse file.
struct Loop(String);

impl Loop {
    fn new(walkeep: &Walkeep, file: &str, bytes: u64, sector: u32) -> Self {
        let path = walkeep.path(file);
        File::create_new(&path).unwrap().set_len(bytes).unwrap();
        let sector = sector.to_string();
        let arguments = ["--find", "--show", "--sector-size", &sector];
        let device = tool(
            "losetup",
            &[&arguments[..], &[path.to_str().unwrap()]].concat(),
        );
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A small file system, mounted.
struct SmallDisk {
    dir: PathBuf,
    device: Loop,
}

impl SmallDisk {
    fn new(walkeep: &Walkeep, name: &str, bytes: u64) -> Self {
        let device = Loop::new(walkeep, &format!("{name}.img"), bytes, 512);
        tool("mkfs.ext4", &["-q", "-m", "0", &device.0]);
        let dir = walkeep.path(name);
        std::fs::create_dir(&dir).unwrap();
        tool("mount", &[&device.0, dir.to_str().unwrap()]);
        Self { dir, device }
    }

    /// Leaves so many bytes free.
    fn fill(&self, free: u64) {
        let mut ballast = File::create(self.dir.join("ballast")).unwrap();
        while ballast.write_all(&[1; 64 << 10]).is_ok() {}
        let held = ballast.metadata().unwrap().len();
        ballast.set_len(held - free).unwrap();
        ballast.sync_all().unwrap();
    }

    fn make_room(&self) {
        std::fs::remove_file(self.dir.join("ballast")).unwrap();
        tool("sync", &["-f", self.dir.to_str().unwrap()]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .args(["--lazy"])
            .arg(&self.dir)
            .status();
        let _ = &self.device;
    }
}

/// The server of `db` must not come up; returns why.
fn refused(walkeep: &Walkeep) -> String {
    walkeep.fails("volume serve db", 1)
}

#[test]
fn sectors_of_4096_bytes_hold_log_and_data() {
    if !may_mount() || !have(&["qemu-io"]) || !have_fio() {
        return;
    }
    let walkeep = Walkeep::new();
    let log = Loop::new(&walkeep, "log", 32 * MIB, 4096);
    let data = Loop::new(&walkeep, "data", 64 * MIB, 4096);
    let (log, data) = (&log.0, &data.0);
    let format = format!("ldev format {log} --data-size 64M --block-size");
    let error = walkeep.fails(&format!("{format} 512"), 1);
    assert!(
        error.contains("at least the device's 4096, found 512"),
        "{error}"
    );
    walkeep.ok(&format!("{format} 4096"));
    walkeep.ok(&format!(
        "volume create db --data {data} --log {log} --adopt"
    ));
    let served = Served::start(&walkeep, "db", 1);
    let uri = served.uri("db");
    for options in [
        "--rw=randwrite --size=32m --bs=4096 --iodepth=16 --fsync=64",
        "--rw=randtrimwrite --size=16m --bs=4096 --iodepth=16 --fsync=64",
        // Parts of a sector.
        "--rw=randwrite --size=8m --bs=512 --io_size=2m --iodepth=16 --fsync=16",
        "--rw=randtrimwrite --size=8m --bs=512 --io_size=2m --iodepth=16 --fsync=64",
    ] {
        fio(&walkeep, uri, options);
    }
    let odd = [
        "write -P 7 1024 512",
        "discard 4608 7680",
        "write -P 8 40M 512",
        "flush",
    ];
    qemu_io(uri, &["write -P 6 0 64M"]);
    qemu_io(uri, &odd);
    served.kill();
    let served = Served::start(&walkeep, "db", 1);
    let uri = served.uri("db");
    let expected = [
        "read -P 6 0 1024",
        "read -P 7 1024 512",
        "read -P 6 1536 3072",
        "read -P 0 4608 7680",
        "read -P 6 12288 4096",
        "read -P 8 40M 512",
        "read -P 6 41943552 4096",
    ];
    qemu_io(uri, &expected);
    walkeep.ok("volume checkpoint db");
    qemu_io(uri, &expected);
    served.stop();
}

#[test]
fn a_volume_has_one_server() {
    let walkeep = Walkeep::new();
    walkeep.ok("volume create db --data d --log l --size 8M --log-size 16M");
    let served = Served::start(&walkeep, "db", 1);
    let own = format!("held by process {}", served.pid());
    assert!(refused(&walkeep).contains(&own), "{}", refused(&walkeep));
    let error = walkeep.fails("volume create two --data d --log l --adopt", 1);
    assert!(error.contains("used by volume db"), "{error}");
    // Registered under another roof, where nobody knows of the first server; the log may even be
    // another one.
    for log in ["l", "other"] {
        let home = walkeep.path(&format!("home of {log}"));
        if log == "other" {
            walkeep.ok("volume create copy --data c --log other --size 8M --log-size 16M");
        }
        let run = |line: &str| {
            let mut command = walkeep.command();
            command
                .env("WALKEEP_HOME", &home)
                .args(line.split_whitespace());
            command.output().unwrap()
        };
        let created = run(&format!("volume create db --data d --log {log} --adopt"));
        assert!(created.status.success(), "{}", text(&created));
        let second = run("volume serve db");
        assert_eq!(second.status.code(), Some(1));
        assert!(
            text(&second).contains("a volume has one server"),
            "{}",
            text(&second)
        );
    }
    served.stop();
    Served::start(&walkeep, "db", 1).stop();
}

/// Stopped and continued while clients write: nothing is lost, nobody gets an error.
#[test]
fn a_stopped_server_goes_on_where_it_was() {
    if !have_fio() {
        return;
    }
    let walkeep = Walkeep::new();
    walkeep.ok("volume create db --data d --log l --size 64M --log-size 16M");
    let served = Served::start(&walkeep, "db", 1);
    let options = "--rw=randtrimwrite --numjobs=2 --size=24m --offset_increment=24m \
                   --bsrange=512-64k --blockalign=512 --iodepth=16 --fsync=8";
    let mut load = fio_command(&walkeep, served.uri("db"), options)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let writes = || walkeep.status("db")["counters"]["writes"].as_u64().unwrap();
    let mut stops = 0;
    let status = loop {
        let before = writes();
        served.signal("STOP");
        let stat = format!("/proc/{}/stat", served.pid());
        wait_until("the server to stop", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.contains(") T ").then_some(()).ok_or(stat)
        });
        stops += 1;
        served.signal("CONT");
        let ended = wait_until("more writes, or the end of the load", || {
            match load.try_wait().unwrap() {
                Some(status) => Ok(Some(status)),
                None if writes() > before => Ok(None),
                None => Err(format!("{before} writes")),
            }
        });
        if let Some(status) = ended {
            break status;
        }
    };
    assert!(status.success(), "fio after {stops} stops: {status}");
    assert_eq!(walkeep.status("db")["condition"], "serving");
    served.stop();
}

#[test]
fn a_full_disk_holds_the_data_back_until_there_is_room() {
    if !may_mount() || !have(&["mkfs.ext4", "qemu-io", "nbdcopy", "cmp"]) {
        return;
    }
    let walkeep = Walkeep::new();
    let disk = SmallDisk::new(&walkeep, "small", 96 * MIB);
    walkeep.ok("volume create db --data small/data --log log --size 256M --log-size 64M");
    // Less than the ring holds, so that no write has to wait for the data.
    let (first, second) = (walkeep.path("first"), walkeep.path("second"));
    image(&first, 48 * MIB);
    image(&second, 64 * MIB);
    let write = |served: &Served, image: &PathBuf| {
        tool(
            "nbdcopy",
            &["--flush", image.to_str().unwrap(), served.uri("db")],
        );
    };
    let holds = |served: &Served, image: &PathBuf, more: &[&str]| {
        let copy = walkeep.path("copy");
        tool("nbdcopy", &[served.uri("db"), copy.to_str().unwrap()]);
        let bytes = std::fs::metadata(image).unwrap().len().to_string();
        let same = [
            "--bytes",
            &bytes,
            image.to_str().unwrap(),
            copy.to_str().unwrap(),
        ];
        tool("cmp", &same);
        qemu_io(served.uri("db"), more);
    };
    let is_full = || {
        let status = walkeep.wait_condition("db", "data-full");
        assert!(
            status["cause"].as_str().unwrap().contains("No space left"),
            "{status}"
        );
        assert!(
            status["hint"].as_str().unwrap().contains("make space"),
            "{status}"
        );
    };

    disk.fill(8 * MIB);
    let served = Served::start(&walkeep, "db", 1);
    write(&served, &first);
    is_full();
    qemu_io(served.uri("db"), &["write -P 9 200M 1M", "flush"]);
    holds(&served, &first, &["read -P 9 200M 1M"]);
    is_full();
    disk.make_room();
    walkeep.wait_condition("db", "serving");
    walkeep.ok("volume checkpoint db");
    assert_eq!(walkeep.status("db")["pending_pieces"], 0);
    holds(&served, &first, &["read -P 9 200M 1M"]);

    // Killed while it is full: there is no server until there is room.
    disk.fill(MIB);
    qemu_io(
        served.uri("db"),
        &["write -P 8 208M 8M", "write -P 7 248M 8M", "flush"],
    );
    is_full();
    served.kill();
    let error = refused(&walkeep);
    assert!(
        error.contains("small/data") && error.contains("No space left"),
        "{error}"
    );
    disk.make_room();
    let served = Served::start(&walkeep, "db", 1);
    let more = [
        "read -P 9 200M 1M",
        "read -P 8 208M 8M",
        "read -P 7 248M 8M",
    ];
    holds(&served, &first, &more);
    write(&served, &second);
    holds(&served, &second, &more);
    served.stop();
}
