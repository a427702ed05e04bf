#!/usr/bin/env python3
"""Runs a command and prints, separated by a tab, wall seconds and the peak of its anonymous memory
in bytes: `measure.py [-o FILE] COMMAND ...`. Standard output of the command goes to FILE or nowhere.

The peak that the kernel keeps (VmHWM, ru_maxrss) counts mapped file pages too, which belong to the
page cache. So RssAnon of /proc/PID/status is polled every 2 ms. Shorter peaks can be missed; for
commands that run for tenths of a second and hold buffers of megabytes this is close enough. Kernels
before 6.17 are themselves off by some hundred KiB.
"""

import re
import subprocess
import sys
import time

INTERVAL = 0.002
ANON = re.compile(rb"^RssAnon:\s+(\d+) kB", re.MULTILINE)


def main() -> int:
    arguments = sys.argv[1:]
    output = subprocess.DEVNULL
    if arguments[:1] == ["-o"]:
        output = open(arguments[1], "wb")
        arguments = arguments[2:]
    start = time.monotonic()
    process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output)
    peak = 0
    with open(f"/proc/{process.pid}/status", "rb", buffering=0) as status:
        while process.poll() is None:
            status.seek(0)
            try:
                found = ANON.search(status.read())
            except ProcessLookupError:
                break
            if found:
                peak = max(peak, int(found[1]) * 1024)
            time.sleep(INTERVAL)
    code = process.wait()
    seconds = time.monotonic() - start
    print(f"{seconds:.3f}\t{peak}")
    return code


if __name__ == "__main__":
    sys.exit(main())
