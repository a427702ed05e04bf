//! Programs of others that a test needs.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Walkeep, text};

/// Where mkfs and its like stand, which is not on everybody's path.
fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::null());
    command
}

/// If all these programs are there; says which one is not.
pub fn have(names: &[&str]) -> bool {
    names.iter().all(|name| {
        let found = program("sh")
            .args(["-c", "command -v \"$0\" >/dev/null", name])
            .status()
            .is_ok_and(|status| status.success());
        if !found {
            println!("skipped: {name} is not installed");
        }
        found
    })
}

/// If this process may make loop devices and mount them; says so if not.
pub fn may_mount() -> bool {
    let uid = program("id").arg("-u").output().unwrap();
    let root = uid.stdout == b"0\n";
    if !root {
        println!("skipped: loop devices need root");
        return false;
    }
    let works = program("losetup")
        .arg("-f")
        .output()
        .is_ok_and(|found| found.status.success());
    if !works {
        println!("skipped: this machine has no loop devices");
    }
    works
}

/// Runs a program that must end well, and returns what it printed.
pub fn tool(name: &str, arguments: &[&str]) -> String {
    let output = program(name).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}",
        text(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An image with data, a hole, and zeros that are no hole.
pub fn image(path: &Path, size: u64) {
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    let mut data = vec![0u8; size as usize / 4];
    for word in data.chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes());
    }
    data.extend(vec![0; 1 << 20]);
    std::fs::write(path, data).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

/// Runs commands of qemu-io on an export; they must all do well.
pub fn qemu_io(uri: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|c| arguments.extend(["-c", c]));
    arguments.push(uri);
    let said = tool("qemu-io", &arguments);
    assert!(!said.contains("ailed"), "{said}");
}

/// Runs jobs of fio's NBD engine on an export; what it reads must be what it wrote.
pub fn fio(walkeep: &Walkeep, uri: &str, options: &str) {
    let output = fio_command(walkeep, uri, options).output().unwrap();
    let said = text(&output);
    assert!(output.status.success(), "fio {options}: {said}");
}

/// As [`fio`], not started yet. It leaves files about its state in the directory of `walkeep`.
pub fn fio_command(walkeep: &Walkeep, uri: &str, options: &str) -> Command {
    let mut command = program("fio");
    command
        .current_dir(walkeep.path(""))
        .args(["--name=v", "--ioengine=nbd", "--verify=crc32c"])
        .args(["--verify_fatal=1", &format!("--uri={uri}")])
        .args(options.split_whitespace());
    command
}

/// If fio is there, with its NBD engine; says so if not.
pub fn have_fio() -> bool {
    if !have(&["fio"]) {
        return false;
    }
    let has_engine = tool("fio", &["--enghelp"])
        .lines()
        .any(|line| line.trim() == "nbd");
    if !has_engine {
        println!("skipped: this fio has no nbd engine");
    }
    has_engine
}
