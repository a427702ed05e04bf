//! Runs the public binary as a user would.

#![allow(dead_code, unused_imports)] // each test binary uses its own part
#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

pub mod blocks;
#[path = "../../store/tests/support/client.rs"]
pub mod client;
mod clients;
#[path = "../../store/tests/support/history.rs"]
pub mod history;
pub mod live;
mod served;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};

pub use clients::{fio, fio_command, have, have_fio, image, may_mount, qemu_io, tool};
pub use served::{Served, wait_until};

/// The `walkeep` under test, in a directory.
pub struct Walkeep {
    dir: tempfile::TempDir,
}

impl Walkeep {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self) -> Command {
        self.program(env!("CARGO_BIN_EXE_walkeep"))
    }

    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.dir.path())
            .env("WALKEEP_HOME", self.path("home"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line of `wdevc`.
    pub fn wdevc(&self, line: &str) -> Output {
        self.program(env!("CARGO_BIN_EXE_wdevc"))
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    /// Runs a command line, split at spaces.
    pub fn run(&self, line: &str) -> Output {
        self.command()
            .args(line.split_whitespace())
            .output()
            .unwrap()
    }

    /// Runs a command line that must end well, and returns what it printed.
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "walkeep {line}: {}", text(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command line that must end with `status`, and returns its error text.
    pub fn fails(&self, line: &str, status: i32) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(status),
            "walkeep {line}: {}",
            text(&output)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command line with standard input.
    pub fn piped(&self, line: &str, input: &[u8]) -> Output {
        let mut child = self
            .command()
            .args(line.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            // A command that refuses its input closes the pipe early.
            scope.spawn(move || stdin.write_all(input));
            child.wait_with_output().unwrap()
        })
    }

    /// Names in the directory.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn sha256(&self, name: &str) -> String {
        sha256(&self.path(name))
    }
}

pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn sha256(path: &Path) -> String {
    let digest = Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The golden vectors.
pub fn vectors() -> PathBuf {
    match std::env::var_os("WALKEEP_WALB_VECTORS") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/walb"),
    }
}
