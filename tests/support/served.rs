//! Volumes served by the public binary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Walkeep, tool};

/// What a slow machine may take for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `walkeep volume serve`.
pub struct Served {
    child: Child,
    uris: BTreeMap<String, String>,
    /// What recovery told of the volumes.
    pub recovered: Vec<String>,
    /// Kept open: the server may have more to say.
    _lines: Lines<BufReader<ChildStdout>>,
}

impl Served {
    /// Serves `what`, a name or `--all`, and waits for the addresses of `volumes` volumes.
    pub fn start(walkeep: &Walkeep, what: &str, volumes: usize) -> Self {
        let mut child = walkeep
            .command()
            .args(["volume", "serve"])
            .args(what.split_whitespace())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut uris, mut recovered) = (BTreeMap::new(), vec![]);
        while uris.len() < volumes {
            let line = lines.next().unwrap().unwrap();
            match line.split_once(": served at ") {
                Some((name, uri)) => drop(uris.insert(name.to_owned(), uri.to_owned())),
                None => recovered.push(line),
            }
        }
        Self {
            child,
            uris,
            recovered,
            _lines: lines,
        }
    }

    pub fn uri(&self, name: &str) -> &str {
        &self.uris[name]
    }

    pub fn uris(&self) -> impl Iterator<Item = (&String, &String)> {
        self.uris.iter()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, signal: &str) {
        tool("kill", &["-s", signal, &self.pid().to_string()]);
    }

    /// Ends it in order, as `systemctl stop` does.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.child.wait().unwrap().success());
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Walkeep {
    /// The status of a served volume.
    pub fn status(&self, name: &str) -> Value {
        let text = self.ok(&format!("volume status --json {name}"));
        let document: Value = serde_json::from_str(&text).unwrap();
        document["volumes"][0]["status"].clone()
    }

    /// Waits until a served volume is in `condition`, and returns its status then.
    pub fn wait_condition(&self, name: &str, condition: &str) -> Value {
        wait_until(&format!("{name} to be {condition}"), || {
            let status = self.status(name);
            match status["condition"] == condition {
                true => Ok(status),
                false => Err(status.to_string()),
            }
        })
    }
}

/// Asks until the answer is good.
pub fn wait_until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(found) => return found,
            Err(found) => assert!(
                Instant::now() < deadline,
                "expected {what} in time, found {found}"
            ),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
