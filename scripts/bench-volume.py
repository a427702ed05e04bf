#!/usr/bin/env python3
"""A WAL volume beside nbdkit's file plugin on the same disk, as a Markdown table.

Both serve a unix socket to fio's NBD engine; fio's exit status is checked. nbdkit writes every byte
once and syncs when it is told to; the volume writes it twice and keeps it. docs/performance.md says
how to read the figures.

BENCH_SECONDS  of each run (30)        BENCH_RUNS  of each load, the median counts (3)
BENCH_SIZE     of the volume (2G)      BENCH_DIR   on the disk to measure (the target directory)
BENCH_LOADS    names of loads, comma between them (all)
"""
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
SECONDS = int(os.environ.get("BENCH_SECONDS", 30))
RUNS = int(os.environ.get("BENCH_RUNS", 3))
SIZE = os.environ.get("BENCH_SIZE", "2G")

# Name, fio's options, what of its result counts.
LOADS = [
    ("write 4k, depth 1, fsync=1", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1", "write"),
    ("write 4k, 16 jobs of depth 1, fsync=1",
     "--rw=randwrite --bs=4k --iodepth=1 --fsync=1 --numjobs=16", "write"),
    ("write 4k, depth 32, fsync=8", "--rw=randwrite --bs=4k --iodepth=32 --fsync=8", "write"),
    ("write 4k, depth 32", "--rw=randwrite --bs=4k --iodepth=32", "write"),
    ("read 4k, depth 32", "--rw=randread --bs=4k --iodepth=32", "read"),
    ("write 256k in order, depth 8", "--rw=write --bs=256k --iodepth=8", "write"),
    ("write 256k in order, depth 8, fsync=64",
     "--rw=write --bs=256k --iodepth=8 --fsync=64", "write"),
]


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def fio(target, options, kind):
    with tempfile.NamedTemporaryFile("r") as result:
        run("fio", "--name=load", *target, "--size=" + SIZE, "--time_based",
            f"--runtime={SECONDS}", "--group_reporting", "--output-format=json",
            "--randrepeat=0", f"--output={result.name}", *options.split())
        job = json.load(result)["jobs"][0]
    if job["error"]:
        sys.exit(f"fio: error {job['error']}")
    return job[kind]["iops"], job[kind]["bw_bytes"] / 1e6, job[kind]["total_ios"]


class Served:
    """A server process and what it used."""

    def __init__(self, command, uri, environment=None):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        self.uri = uri
        for _ in range(600):
            probe = subprocess.run(["nbdinfo", "--size", uri], capture_output=True)
            if probe.returncode == 0:
                return
            time.sleep(0.1)
        sys.exit(f"{command[0]} does not serve")

    def cpu(self):
        stat = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self):
        status = open(f"/proc/{self.process.pid}/status").read()
        anonymous = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(anonymous[0].split()[1]) / 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def walkeep(work):
    program = TARGET / "release/walkeep"
    environment = dict(os.environ, WALKEEP_HOME=str(work / "home"))
    log = os.environ.get("BENCH_LOG", "4G")
    subprocess.run([program, "volume", "create", "bench", "--data", work / "data", "--log",
                    work / "log", "--size", SIZE, "--log-size", log],
                   check=True, env=environment, stdout=subprocess.DEVNULL)
    socket = work / "walkeep.sock"
    return Served([program, "volume", "serve", "bench", "--nbd", f"unix:{socket}"],
                  f"nbd+unix:///bench?socket={socket}", environment)


def nbdkit(work):
    image, socket = work / "image", work / "nbdkit.sock"
    run("truncate", "-s", SIZE, str(image))
    return Served(["nbdkit", "-f", "-U", str(socket), "file", str(image)],
                  f"nbd+unix:///?socket={socket}")


def measure(server, options, kind):
    rows = []
    for _ in range(RUNS):
        os.sync()
        before = server.cpu()
        iops, bandwidth, total = fio(["--ioengine=nbd", f"--uri={server.uri}"], options, kind)
        rows.append((iops, bandwidth, (server.cpu() - before) / max(total, 1) * 1e6))
    return [statistics.median(column) for column in zip(*rows)], [row[0] for row in rows]


def main():
    chosen = os.environ.get("BENCH_LOADS")
    loads = [load for load in LOADS if not chosen or load[0] in chosen.split(";")]
    base = pathlib.Path(os.environ.get("BENCH_DIR", TARGET))
    work = pathlib.Path(tempfile.mkdtemp(prefix="bench-volume.", dir=base))
    servers = []
    try:
        print(f"{SECONDS} s each, median of {RUNS}, volume of {SIZE}; load average "
              f"{os.getloadavg()[0]:.1f} before.\n")
        bare = [f"--filename={work}/bare", "--ioengine=psync"]
        run("fio", "--name=fill", *bare, "--rw=write", "--bs=1M", "--size=" + SIZE, "--end_fsync=1")
        iops, _, _ = fio(bare,
                         "--rw=write --bs=4k --fdatasync=1", "write")
        (work / "bare").unlink()
        print(f"The disk's own synced 4 KiB writes in order: {iops:.0f}/s.\n")
        servers = [walkeep(work), nbdkit(work)]
        for server in servers:
            fill(server)
        print("| load | walkeep | nbdkit file | ratio | walkeep CPU µs/IO | nbdkit CPU µs/IO | runs |")
        print("|---|---:|---:|---:|---:|---:|---|")
        for name, options, kind in loads:
            (own, rate, cpu), all_own = measure(servers[0], options, kind)
            (other, other_rate, other_cpu), all_other = measure(servers[1], options, kind)
            big = "256k" in name
            show = (lambda a, b: f"{b:.0f} MB/s") if big else (lambda a, b: f"{a:.0f}/s")
            spread = " ".join(f"{x:.0f}" for x in all_own) + " / " + \
                " ".join(f"{x:.0f}" for x in all_other)
            print(f"| {name} | {show(own, rate)} | {show(other, other_rate)} | "
                  f"{own / other:.2f} | {cpu:.1f} | {other_cpu:.1f} | {spread} |", flush=True)
        print(f"\nPeak resident memory: walkeep {servers[0].peak():.0f} MiB, "
              f"nbdkit {servers[1].peak():.0f} MiB.")
    finally:
        for server in servers:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)


def fill(server):
    """Every block is written once, so that no load pays for the allocation of space."""
    run("fio", "--name=fill", "--ioengine=nbd", f"--uri={server.uri}", "--rw=write", "--bs=1M",
        "--iodepth=8", "--size=" + SIZE, "--end_fsync=1")


if __name__ == "__main__":
    main()
