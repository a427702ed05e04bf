//! Server and client of a control socket, over a volume that only remembers what it was told.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use walkeep_wire::PhysicalBlock;

use super::*;
use crate::wal_device::control::{
    Condition, Control, Counters, Histogram, Positions, Refused, Status,
};

#[derive(Default)]
struct Fake(Mutex<Vec<String>>);

impl Fake {
    fn note(&self, call: impl Into<String>) -> Result<(), Refused> {
        self.0.lock().push(call.into());
        Ok(())
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        Status {
            uuid: "0".repeat(32),
            salt: 1,
            block_size: 512,
            size: 1 << 20,
            ring_blocks: 100,
            positions: Positions {
                latest: 9,
                ..Positions::default()
            },
            overflow: true,
            overflow_mark: Some((3, 4)),
            condition: Condition::LogFailed,
            cause: "cause".into(),
            hint: "hint".into(),
            pending_bytes: 1,
            pending_pieces: 1,
            checkpoint_interval_ms: 10_000,
            checkpoint_age_ms: 5,
            counters: Counters::default(),
            flush_latency: Histogram::default(),
            write_latency: Histogram::default(),
        }
    }
    fn checkpoint(&self) -> Result<(), Refused> {
        self.note("checkpoint")
    }
    fn set_checkpoint_interval(&self, interval: Duration) -> Result<(), Refused> {
        self.note(format!("interval {interval:?}"))
    }
    fn set_oldest(&self, lsid: u64) -> Result<(), Refused> {
        match lsid {
            0..=9 => self.note(format!("oldest {lsid}")),
            _ => Err(Refused(format!("no lsid {lsid}"))),
        }
    }
    fn mark(&self) -> Result<u64, Refused> {
        self.note("mark").map(|()| u64::MAX - 1)
    }
    fn resize(&self, bytes: Option<u64>) -> Result<(), Refused> {
        self.note(format!("resize {bytes:?}"))
    }
    fn reset(&self) -> Result<(), Refused> {
        self.note("reset")
    }
    fn freeze(&self, timeout: Option<Duration>) -> Result<(), Refused> {
        self.note(format!("freeze {timeout:?}"))
    }
    fn melt(&self) -> Result<(), Refused> {
        self.note("melt")
    }
}

struct Served {
    dir: tempfile::TempDir,
    entry: Entry,
    fake: Arc<Fake>,
    server: Option<ControlServer>,
}

fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::choose(Some(dir.path().join("home")), |_| None, false).unwrap();
    let config = VolumeConfig::new(
        "db".parse().unwrap(),
        "/data".into(),
        "/log".into(),
        PhysicalBlock::B512,
    );
    let entry = home.register(config).unwrap();
    let fake = Arc::new(Fake::default());
    let server = Some(ControlServer::start(&entry, fake.clone()).unwrap());
    Served {
        dir,
        entry,
        fake,
        server,
    }
}

impl Served {
    /// Sends lines, and returns all answers.
    fn talk(&self, lines: &[u8]) -> Vec<Value> {
        let mut stream = UnixStream::connect(self.entry.control_path()).unwrap();
        // The server may refuse before it has read all.
        let _ = stream.write_all(lines);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }
}

#[test]
fn every_command_arrives_as_it_was_given() {
    let served = served();
    let client = ControlClient::connect(&served.entry).unwrap();
    let identity = client.identity();
    assert_eq!(
        (identity.name.as_str(), identity.pid),
        ("db", std::process::id())
    );
    assert_eq!(identity.uuid, "0".repeat(32));
    assert_eq!(client.status().unwrap(), served.fake.status());
    client.checkpoint().unwrap();
    client
        .set_checkpoint_interval(Duration::from_millis(5))
        .unwrap();
    client.set_oldest(7).unwrap();
    assert_eq!(client.mark().unwrap(), u64::MAX - 1);
    client.resize(None).unwrap();
    client.resize(Some(u64::MAX)).unwrap();
    client.reset().unwrap();
    client.freeze(None).unwrap();
    client.freeze(Some(Duration::from_secs(1))).unwrap();
    client.melt().unwrap();
    assert_eq!(
        *served.fake.0.lock(),
        [
            "checkpoint",
            "interval 5ms",
            "oldest 7",
            "mark",
            "resize None",
            "resize Some(18446744073709551615)",
            "reset",
            "freeze None",
            "freeze Some(1s)",
            "melt"
        ]
    );
    let error = client.set_oldest(10).unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { text, .. } if text == "no lsid 10"),
        "{error}"
    );
}

#[test]
fn hostile_lines_get_an_error_and_harm_nobody() {
    let served = served();
    let kind = |answer: &Value| answer["error"]["kind"].as_str().unwrap_or("ok").to_owned();
    for (lines, expected) in [
        (&b"{}\n"[..], &["bad-request"][..]),
        (b"\n\xff\n[1\n", &["bad-request"; 3]),
        (
            b"{\"version\":2,\"command\":\"fly\"}\n",
            &["unsupported-version"],
        ),
        (b"{\"version\":1,\"command\":\"fly\"}\n", &["bad-request"]),
        (
            b"{\"version\":1,\"command\":\"melt\"}\nx\n",
            &["ok", "bad-request"],
        ),
        (b"{\"version\":1,\"command\":\"reset\"", &["bad-request"]),
    ] {
        let answers: Vec<_> = served.talk(lines).iter().map(kind).collect();
        assert_eq!(answers, expected, "{}", String::from_utf8_lossy(lines));
    }
    let long = vec![b' '; 3 * MAX_LINE];
    assert!(served.talk(&long).len() <= 1);
    let mut deep = vec![b'['; MAX_LINE - 1];
    deep.push(b'\n');
    assert_eq!(kind(&served.talk(&deep)[0]), "bad-request");
    assert_eq!(*served.fake.0.lock(), ["melt"]);
    assert!(ControlClient::connect(&served.entry).is_ok());
}

#[test]
fn a_silent_connection_holds_up_neither_others_nor_the_end() {
    let mut served = served();
    let mut silent = UnixStream::connect(served.entry.control_path()).unwrap();
    silent.write_all(b"{\"version\":").unwrap();
    assert_eq!(
        served.talk(b"{\"version\":1,\"command\":\"mark\"}\n"),
        [json!({"ok": {"lsid": u64::MAX - 1}})]
    );
    drop(served.server.take());
    assert!(!served.entry.control_path().exists());
}

#[test]
fn connections_are_bounded() {
    let served = served();
    let open: Vec<_> = (0..80)
        .map(|_| UnixStream::connect(served.entry.control_path()).unwrap())
        .collect();
    let busy = open.iter().skip(64).all(|stream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.contains("\"busy\"")
    });
    assert!(busy);
    drop(open);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while ControlClient::connect(&served.entry).is_err() {
        assert!(std::time::Instant::now() < deadline, "still busy");
        std::thread::yield_now();
    }
}

#[test]
fn only_the_owner_may_connect_and_a_dead_socket_is_replaced() {
    let mut served = served();
    let path = served.entry.control_path();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(served.entry.folder())), (0o600, 0o700));
    drop(served.server.take());
    let error = ControlClient::connect(&served.entry).unwrap_err();
    assert!(
        error.to_string().contains("walkeep volume serve db"),
        "{error}"
    );
    // A killed server leaves its socket.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(matches!(
        ControlClient::connect(&served.entry),
        Err(ControlError::NotServed(_))
    ));
    let lock = served.entry.lock().unwrap();
    assert!(matches!(
        ControlClient::connect(&served.entry),
        Err(ControlError::NotAnswering { pid, .. }) if pid == std::process::id()
    ));
    let server = ControlServer::start(&served.entry, served.fake.clone()).unwrap();
    assert!(ControlClient::connect(&served.entry).is_ok());
    drop((server, lock, served.dir));
}
