"""An NBD client that knows what a volume may hold: it writes at random, notes what was acknowledged
and what failed, and checks later that nothing acknowledged is gone.

volume-client.py URI STATE COMMAND, where STATE is a file that the commands share, and COMMAND is
  write ok|eio [KIND]   changes parts of the volume, by all KINDs (write, trim, zero) or one alone, then
                        flushes. ok: all must do well; eio: a change or the flush must fail
  verify                reads everything
  verify some-eio       some of the reads must fail
  verify any-eio        some of the reads may fail
  crash                 the server was killed: what was not flushed may be lost

Of each block the state has the versions that a read may find, now and after a crash."""

import json
import random
import struct
import sys
import zlib

import nbd

BLOCK = 512
BLOCKS = 4 << 11  # 4 MiB
REQUESTS = 64
READ_BLOCKS = 128


def content(block, version):
    """Says where and when it was written. Version 0 is zeros."""
    if version == 0:
        return bytes(BLOCK)
    head = struct.pack("<QQ", block, version)
    return (head + struct.pack("<I", zlib.crc32(head))).ljust(32, b"#") * (BLOCK // 32)


def version_of(block, found):
    if found == bytes(BLOCK):
        return 0
    version = struct.unpack_from("<Q", found, 8)[0]
    return version if found == content(block, version) else None


class State:
    def __init__(self, path):
        self.path = path
        try:
            with open(path) as file:
                document = json.load(file)
        except FileNotFoundError:
            document = {"version": 0, "now": [[0]] * BLOCKS, "crash": [[0]] * BLOCKS}
        self.version = document["version"]
        self.now = [set(versions) for versions in document["now"]]
        self.crash = [set(versions) for versions in document["crash"]]

    def save(self):
        document = {
            "version": self.version,
            "now": [sorted(versions) for versions in self.now],
            "crash": [sorted(versions) for versions in self.crash],
        }
        with open(self.path, "w") as file:
            json.dump(document, file)

    def wrote(self, blocks, version, acknowledged):
        for block in blocks:
            self.now[block] = {version} if acknowledged else self.now[block] | {version}
            self.crash[block] = self.crash[block] | {version}

    def flushed(self):
        self.crash = [set(versions) for versions in self.now]


def tries(call, *arguments):
    """Calls; false if the answer is EIO."""
    try:
        call(*arguments)
        return True
    except nbd.Error as error:
        if error.errno != "EIO":
            raise
        return False


def change(handle, state, chance, kinds):
    """One change of a random part; if it was acknowledged."""
    start = chance.randrange(BLOCKS)
    blocks = range(start, min(BLOCKS, start + chance.choice([1, 3, 8, 64, 128])))
    at, length = start * BLOCK, len(blocks) * BLOCK
    kind = chance.choice(kinds)
    version = 0
    if kind == "write":
        state.version += 1
        version = state.version
        data = b"".join(content(block, version) for block in blocks)
        done = tries(handle.pwrite, data, at)
    elif kind == "trim":
        done = tries(handle.trim, length, at)
    else:
        done = tries(handle.zero, length, at)
    state.wrote(blocks, version, done)
    return done


def write(handle, state, expected, *kinds):
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    kinds = kinds or ["write"] * 6 + ["trim", "zero"]
    done = sum(change(handle, state, chance, kinds) for _ in range(REQUESTS))
    flush = tries(handle.flush)
    if flush:
        state.flushed()
    print(f"seed {seed}: {done} of {REQUESTS} changes acknowledged, the flush {flush}")
    sound = done == REQUESTS and flush
    if sound != (expected == "ok"):
        sys.exit(f"expected {expected}")


def verify(handle, state, expected=""):
    failed = 0
    for start in range(0, BLOCKS, READ_BLOCKS):
        try:
            data = handle.pread(READ_BLOCKS * BLOCK, start * BLOCK)
        except nbd.Error as error:
            if error.errno != "EIO" or not expected:
                raise
            failed += 1
            continue
        for block in range(start, start + READ_BLOCKS):
            at = (block - start) * BLOCK
            version = version_of(block, bytes(data[at:at + BLOCK]))
            if version not in state.now[block]:
                sys.exit(f"block {block}: expected one of {state.now[block]}, found {version}")
            # From now on it is this one.
            state.now[block] = {version}
    print(f"verified, {failed} of {BLOCKS // READ_BLOCKS} reads failed")
    if expected == "some-eio" and failed == 0:
        sys.exit("expected EIO")


def main():
    uri, path, command, *arguments = sys.argv[1:]
    state = State(path)
    if command == "crash":
        state.now = [set(versions) for versions in state.crash]
    else:
        handle = nbd.NBD()
        handle.connect_uri(uri)
        {"write": write, "verify": verify}[command](handle, state, *arguments)
        handle.shutdown()
    state.save()


main()
