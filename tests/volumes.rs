//! Volumes as an operator and old scripts handle them. Served ones are played by the test, behind a
//! real control socket.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::{Walkeep, text};
use walkeep_store::ldev::LogDevice;
use walkeep_store::volume::{ControlServer, Entry, Home, VolumeLock};
use walkeep_store::wal_device::control::{
    Condition, Control, Counters, Histogram, Positions, Refused, Status,
};

const CREATE: &str = "volume create db --data db.data --log db.log --size 8M --log-size 16M";

fn created() -> Walkeep {
    let walkeep = Walkeep::new();
    walkeep.ok(CREATE);
    walkeep
}

fn entry(walkeep: &Walkeep) -> Entry {
    let home = Home::of_process(Some(walkeep.path("home"))).unwrap();
    home.find(&"db".parse().unwrap()).unwrap()
}

impl Walkeep {
    fn wdevc_ok(&self, line: &str) -> String {
        let output = self.wdevc(line);
        assert!(output.status.success(), "wdevc {line}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn wdevc_fails(&self, line: &str, expected: &str) {
        let output = self.wdevc(line);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

/// A volume whose log stays as it is.
struct Idle {
    uuid: String,
    oldest: AtomicU64,
    frozen: AtomicU64,
}

impl Control for Idle {
    fn status(&self) -> Status {
        Status {
            uuid: self.uuid.clone(),
            salt: 1,
            block_size: 4096,
            size: 8 << 20,
            ring_blocks: 4093,
            positions: Positions {
                oldest: self.oldest.load(Ordering::SeqCst),
                oldest_durable: 0,
                prev_written: 40,
                written: 40,
                permanent: 40,
                completed: 41,
                latest: 42,
            },
            overflow: false,
            overflow_mark: None,
            condition: match self.frozen.load(Ordering::SeqCst) {
                0 => Condition::Serving,
                _ => Condition::Frozen,
            },
            cause: String::new(),
            hint: String::new(),
            pending_bytes: 4096,
            pending_pieces: 1,
            checkpoint_interval_ms: 10_000,
            checkpoint_age_ms: 2500,
            counters: Counters::default(),
            flush_latency: Histogram::default(),
            write_latency: Histogram::default(),
        }
    }
    fn checkpoint(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn set_checkpoint_interval(&self, interval: Duration) -> Result<(), Refused> {
        match interval.as_millis() {
            500 => Ok(()),
            other => Err(Refused(format!("{other} ms"))),
        }
    }
    fn set_oldest(&self, lsid: u64) -> Result<(), Refused> {
        if lsid > 40 {
            return Err(Refused(format!("lsid: expected at most 40, found {lsid}")));
        }
        self.oldest.store(lsid, Ordering::SeqCst);
        Ok(())
    }
    fn mark(&self) -> Result<u64, Refused> {
        Ok(40)
    }
    fn resize(&self, bytes: Option<u64>) -> Result<(), Refused> {
        match bytes {
            None | Some(0x0100_0000) => Ok(()),
            Some(other) => Err(Refused(format!("{other} bytes"))),
        }
    }
    fn reset(&self) -> Result<(), Refused> {
        Err(Refused("reset".into()))
    }
    fn freeze(&self, timeout: Option<Duration>) -> Result<(), Refused> {
        let seconds = timeout.map_or(1, |timeout| timeout.as_secs());
        self.frozen.store(seconds, Ordering::SeqCst);
        Ok(())
    }
    fn melt(&self) -> Result<(), Refused> {
        self.frozen.store(0, Ordering::SeqCst);
        Ok(())
    }
}

struct Served {
    idle: Arc<Idle>,
    _server: ControlServer,
    _lock: VolumeLock,
}

fn serve(walkeep: &Walkeep) -> Served {
    let entry = entry(walkeep);
    let device = LogDevice::open(&entry.config.log).unwrap();
    let idle = Arc::new(Idle {
        uuid: device.superblock().uuid.to_string(),
        oldest: AtomicU64::new(0),
        frozen: AtomicU64::new(0),
    });
    Served {
        _lock: entry.lock().unwrap(),
        _server: ControlServer::start(&entry, idle.clone()).unwrap(),
        idle,
    }
}

#[test]
fn a_volume_is_made_listed_and_deleted() {
    let walkeep = Walkeep::new();
    assert!(walkeep.ok("volume list").contains("no volumes"));
    let made = walkeep.ok(CREATE);
    assert!(
        made.starts_with("db: volume of 8.0 MiB, blocks of 4096 bytes"),
        "{made}"
    );
    assert_eq!(walkeep.names(), ["db.data", "db.log", "home"]);
    let list = walkeep.ok("volume list");
    assert!(
        list.contains("db.data") && list.contains("stopped"),
        "{list}"
    );
    let list: serde_json::Value = serde_json::from_str(&walkeep.ok("volume list --json")).unwrap();
    assert_eq!(list["volumes"][0]["size"], 8 << 20);
    assert!(walkeep.ok("volume status").starts_with("db: not served\n"));
    assert!(
        walkeep
            .ok("ldev verify db.log")
            .contains("log device \"db\"")
    );
    assert!(walkeep.fails(CREATE, 1).contains("volume db exists"));
    walkeep.fails("volume delete db", 2);
    walkeep.ok("volume delete db --yes");
    assert_eq!(walkeep.names(), ["db.data", "db.log", "home"]);
    assert!(walkeep.fails(CREATE, 1).contains("--adopt"));
    walkeep.ok("volume create db --data db.data --log db.log --adopt");
    walkeep.ok("volume delete db --yes --purge");
    assert_eq!(walkeep.names(), ["home"]);
    walkeep.fails("volume delete db --yes", 1);
}

#[test]
fn wrong_usage_is_status_2() {
    let walkeep = created();
    for line in [
        "volume",
        "volume create ../x --data a --log b --size 1M",
        "volume create x --data a --log b --size 1000",
        "volume create x --data a --log b --size 512",
        "volume create x --data a --log b --block-size 1024",
        "volume create x --data a --size 1M",
        "volume create x --data a --log b --size 1M --nbd udp:1",
        "volume serve",
        "volume serve db --all",
        "volume serve db --nbd tcp:0.0.0.0:10809",
        "volume set-oldest db x",
        "volume freeze db --timeout 0",
    ] {
        walkeep.fails(line, 2);
    }
    assert_eq!(walkeep.names(), ["db.data", "db.log", "home"]);
}

#[test]
fn a_volume_that_is_not_served_says_what_to_do() {
    let walkeep = created();
    for verb in [
        "checkpoint",
        "mark",
        "melt",
        "freeze",
        "resize",
        "reset --yes",
    ] {
        let error = walkeep.fails(&format!("volume {verb} db"), 1);
        assert!(error.contains("walkeep volume serve db"), "{verb}: {error}");
    }
    let error = walkeep.fails("volume mark other", 1);
    assert!(error.contains("expected a volume other"), "{error}");
    assert!(walkeep.ok("wlog cat db out.wlog").contains("lsid 0 to 0"));
    walkeep.ok("wlog verify out.wlog");
}

#[test]
fn a_server_that_hangs_up_is_an_error() {
    let walkeep = created();
    let listener = UnixListener::bind(entry(&walkeep).control_path()).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    // Whether it hangs up before the question or after it is left to chance.
    for _ in 0..30 {
        walkeep.fails("volume mark db", 1);
    }
}

#[test]
fn a_served_volume_is_commanded_and_guarded() {
    let walkeep = created();
    let served = serve(&walkeep);
    let status = walkeep.ok("volume status db");
    assert!(status.contains("used 168.0 KiB (1%)"), "{status}");
    assert!(
        status.contains("checkpoint  2.5 s ago, every 10.0 s"),
        "{status}"
    );
    let status: serde_json::Value =
        serde_json::from_str(&walkeep.ok("volume status --json")).unwrap();
    assert_eq!(status["volumes"][0]["status"]["positions"]["latest"], 42);
    assert_eq!(walkeep.ok("volume mark db"), "40\n");
    walkeep.ok("volume checkpoint db");
    walkeep.ok("volume set-oldest db 7");
    assert_eq!(served.idle.oldest.load(Ordering::SeqCst), 7);
    let error = walkeep.fails("volume set-oldest db 41", 1);
    assert!(
        error.contains("volume db: lsid: expected at most 40, found 41"),
        "{error}"
    );
    walkeep.ok("volume freeze db --timeout 9");
    assert_eq!(served.idle.frozen.load(Ordering::SeqCst), 9);
    walkeep.ok("volume melt db");
    walkeep.ok("volume resize db --size 16M");
    walkeep.fails("volume reset db", 2);
    walkeep.fails("volume reset db --yes", 1);
    let own = std::process::id();
    assert!(
        walkeep
            .ok("volume list")
            .contains(&format!("served by process {own}"))
    );
    for line in ["volume delete db --yes --purge", "volume serve db"] {
        let error = walkeep.fails(line, 1);
        assert!(
            error.contains(&format!("held by process {own}:")),
            "{error}"
        );
    }
    // The log is empty, which is not what a volume with 40 blocks of durable log says.
    let error = walkeep.fails("wlog cat db out.wlog", 1);
    assert!(error.contains("packs are lost"), "{error}");
    assert_eq!(walkeep.names(), ["db.data", "db.log", "home"]);
}

#[test]
fn wdevc_speaks_the_words_of_the_original() {
    let walkeep = Walkeep::new();
    for (name, bytes) in [("ldev", 16 << 20), ("ddev", 8 << 20)] {
        let file = fs::File::create(walkeep.path(name)).unwrap();
        file.set_len(bytes).unwrap();
    }
    let formatted = walkeep.wdevc_ok("format-ldev ldev ddev -n v0 -nd");
    assert!(formatted.contains("\ndevice_size 16384\n"), "{formatted}");
    assert_eq!(walkeep.wdevc_ok("list"), "");
    let made = walkeep.wdevc_ok("create-wdev ldev ddev -maxp 16 -bi 1024");
    assert_eq!(made, "name v0\nmajor 0\nminor 0\n");
    assert_eq!(walkeep.wdevc_ok("list"), "0 0 v0\n");
    walkeep.wdevc_fails("create-wdev ldev ddev -n v1", "used by volume v0");
    walkeep.wdevc_fails("format-ldev ldev ddev", "used by volume v0");
    for (line, answer) in [
        ("get-oldest-lsid /dev/walb/v0", "0\n"),
        ("get-written-lsid v0", "0\n"),
        ("get-log-capacity v0", "4093\n"),
    ] {
        assert_eq!(walkeep.wdevc_ok(line), answer, "{line}");
    }
    for line in [
        "get-permanent-lsid v0",
        "is-log-overflow v0",
        "freeze /dev/walb/v0",
    ] {
        walkeep.wdevc_fails(line, "walkeep volume serve v0");
    }
    walkeep.wdevc_fails("fly", "usage: wdevc");
    walkeep.wdevc_fails("melt v1", "expected a volume v1");
    let version = walkeep.wdevc_ok("get-version");
    assert_eq!(version.trim().split('.').count(), 3, "{version}");
    walkeep.wdevc_ok("delete-wdev v0 -f");
    assert_eq!(walkeep.names(), ["ddev", "home", "ldev"]);
}

#[test]
fn wdevc_commands_a_served_volume() {
    let walkeep = created();
    let served = serve(&walkeep);
    for (line, answer) in [
        ("get-oldest-lsid db", "0\n"),
        ("set-checkpoint-interval db 500", ""),
        ("get-checkpoint-interval db", "10000\n"),
        ("force-checkpoint db", ""),
        ("set-oldest-lsid /dev/walb/db 12", ""),
        ("get-oldest-lsid /dev/walb/db", "12\n"),
        ("get-written-lsid db", "40\n"),
        ("get-permanent-lsid db", "40\n"),
        ("get-completed-lsid db", "41\n"),
        ("get-log-usage db", "30\n"),
        ("get-log-capacity db", "4093\n"),
        ("is-flush-capable db", "1\n"),
        ("is-log-overflow db", "0\n"),
        ("resize db", ""),
        ("resize db 32768", ""),
        ("freeze db 3", ""),
        ("is-flozen db", "1\n"),
        ("melt db", ""),
        ("is-flozen db", "0\n"),
        ("clear-wal db 5", ""),
        ("get-oldest-lsid db", "40\n"),
    ] {
        assert_eq!(walkeep.wdevc_ok(line), answer, "{line}");
    }
    walkeep.wdevc_fails("reset-wal db", "volume db: reset");
    walkeep.wdevc_fails("set-oldest-lsid db 41", "expected at most 40");
    walkeep.wdevc_fails("delete-wdev db -f", "held by process");
    drop(served);
}
