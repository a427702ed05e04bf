//! A hundred volumes in one process.

#![allow(clippy::unwrap_used)] // a test ends where it cannot go on

mod support;

use std::time::Duration;

use support::{Served, Walkeep, have, qemu_io, wait_until};

const VOLUMES: usize = 100;
/// Most memory of the process \[KiB\].
const MEMORY: u64 = 500 << 10;
/// Longer than the time between checkpoints, the longest of all timers.
const IDLE: Duration = Duration::from_secs(12);

/// A number from /proc/PID/status, of the process or of one of its threads.
fn status_number(text: &str, key: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(key)).unwrap();
    let mut words = line.split_whitespace().skip(1);
    words.next().unwrap().parse().unwrap()
}

/// How often the threads of the process have gone to sleep. Not those of the kernel's io_uring: one
/// that has had work looks every 5 seconds whether it should end.
fn sleeps(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        // A thread may end meanwhile.
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok())
        .filter(|status| !status.starts_with("Name:\tiou-wrk-"))
        .map(|status| status_number(&status, "voluntary_ctxt_switches"))
        .sum()
}

/// Most memory the process has had \[KiB\].
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status_number(&status, "VmHWM")
}

#[test]
fn a_hundred_volumes_live_in_one_process() {
    let walkeep = Walkeep::new();
    for n in 0..VOLUMES {
        walkeep.ok(&format!(
            "volume create v{n} --data v{n}.data --log v{n}.log --size 8M --log-size 16M \
             --nbd unix:{}/nbd.sock",
            walkeep.path("").display()
        ));
    }
    let served = Served::start(&walkeep, "--all", VOLUMES);
    if have(&["qemu-io"]) {
        for (n, (_, uri)) in served.uris().enumerate() {
            let (write, read) = (
                format!("write -P {} 1M 2M", n + 1),
                format!("read -P {} 1M 2M", n + 1),
            );
            qemu_io(
                uri,
                &[&write, "flush", &read, "discard 2M 1M", "read -P 0 2M 1M"],
            );
        }
    }
    for n in 0..VOLUMES {
        walkeep.ok(&format!("volume checkpoint v{n}"));
    }
    let used = memory(served.pid());
    println!("{VOLUMES} volumes: {used} KiB");
    assert!(
        used < MEMORY,
        "expected less than {MEMORY} KiB, found {used}"
    );
    wait_until("a process that sleeps when there is nothing to do", || {
        let before = sleeps(served.pid());
        std::thread::sleep(IDLE);
        match sleeps(served.pid()) - before {
            0 => Ok(()),
            more => Err(format!("{more} wake-ups in {IDLE:?}")),
        }
    });
    served.stop();
}
