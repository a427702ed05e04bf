//! Programs of others that a test needs.

use std::process::{Command, Stdio};

use super::text;

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
