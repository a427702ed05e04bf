//! `walkeep nbd serve` under the clients that people use. A test whose program is not installed says
//! so and passes.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use support::{Walkeep, have, image, sha256, text, tool};

const SIZE: u64 = 64 << 20;

/// A server of `walkeep`, and the URI of its last export.
struct Serving {
    child: Child,
    uri: String,
}

impl Serving {
    fn start(walkeep: &Walkeep, arguments: &[&str]) -> Self {
        let mut child = walkeep
            .command()
            .args(["nbd", "serve"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut uris = lines.filter_map(|line| {
            let line = line.unwrap();
            line.strip_prefix("listening: ").map(str::to_owned)
        });
        let uri = uris.next().unwrap();
        Self { child, uri }
    }

    /// Stops it as `systemctl stop` does.
    fn stop(mut self) {
        let pid = self.child.id().to_string();
        tool("kill", &["-TERM", &pid]);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn served(arguments: &[&str]) -> (Walkeep, Serving) {
    let walkeep = Walkeep::new();
    image(&walkeep.path("a.img"), SIZE);
    let all = [&["--listen", "unix:nbd.sock", "vol 1=a.img"][..], arguments].concat();
    let serving = Serving::start(&walkeep, &all);
    (walkeep, serving)
}

#[test]
fn nbdinfo_sees_the_export_and_its_holes() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let (_walkeep, serving) = served(&["--read-only"]);
    let info = tool("nbdinfo", &[&serving.uri]);
    for expected in [
        "export=\"vol 1\"",
        "description: a.img",
        "is_read_only: true",
        "can_multi_conn: true",
        "block_size_maximum: 33554432",
    ] {
        assert!(info.contains(expected), "{expected}: {info}");
    }
    let map = tool("nbdinfo", &["--map", &serving.uri]);
    assert!(map.contains("hole,zero"), "{map}");
    serving.stop();
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let (walkeep, serving) = served(&[]);
    let copy = walkeep.path("copy.img");
    tool("nbdcopy", &[&serving.uri, copy.to_str().unwrap()]);
    assert_eq!(sha256(&copy), walkeep.sha256("a.img"));
    let other = walkeep.path("other.img");
    std::fs::write(&other, vec![0xa5; SIZE as usize]).unwrap();
    tool(
        "nbdcopy",
        &["--flush", other.to_str().unwrap(), &serving.uri],
    );
    serving.stop();
    assert_eq!(sha256(&other), walkeep.sha256("a.img"));
}

#[test]
fn qemu_converts_compares_and_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (walkeep, serving) = served(&[]);
    let image = walkeep.path("a.img");
    let image = image.to_str().unwrap();
    let raw = ["-f", "raw", "-F", "raw"];
    tool(
        "qemu-img",
        &[&["compare"][..], &raw, &[image, &serving.uri]].concat(),
    );
    let copy = walkeep.path("copy.img");
    let out = copy.to_str().unwrap();
    tool(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &serving.uri, out],
    );
    assert_eq!(sha256(&copy), walkeep.sha256("a.img"));
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
        "read -P 0 6M 1M",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|c| arguments.extend(["-c", c]));
    arguments.push(&serving.uri);
    let said = tool("qemu-io", &arguments);
    assert!(!said.contains("ailed"), "{said}");
    serving.stop();
}

#[test]
fn fio_verifies_what_it_wrote() {
    if !have(&["fio"]) {
        return;
    }
    if !tool("fio", &["--enghelp"])
        .lines()
        .any(|line| line.trim() == "nbd")
    {
        println!("skipped: this fio has no nbd engine");
        return;
    }
    let (walkeep, serving) = served(&[]);
    let uri = format!("--uri={}", serving.uri);
    let output = Command::new("fio")
        .current_dir(walkeep.path(""))
        .args([
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--size=48m",
            "--bsrange=512-64k",
        ])
        .args([
            "--rw=randwrite",
            "--iodepth=32",
            "--verify=crc32c",
            "--fsync=64",
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serving.stop();
}

#[test]
fn addresses_that_others_reach_need_a_word_for_it() {
    let walkeep = Walkeep::new();
    image(&walkeep.path("a.img"), SIZE);
    let error = walkeep.fails("nbd serve --listen tcp:0.0.0.0:0 v=a.img", 2);
    assert!(error.contains("--insecure"), "{error}");
    let serving = Serving::start(
        &walkeep,
        &["--insecure", "--listen", "tcp:0.0.0.0:0", "v=a.img"],
    );
    assert!(serving.uri.starts_with("nbd://0.0.0.0:"), "{}", serving.uri);
    let error = walkeep.fails("nbd serve --listen unix:x.sock v=a.img", 1);
    assert!(error.contains("another program has it open"), "{error}");
    serving.stop();
    let serving = Serving::start(&walkeep, &["--listen", "unix:x.sock", "v=a.img"]);
    serving.stop();
    assert!(!walkeep.path("x.sock").exists());
}
