"""Prints the features of the kernel's ublk driver, one a line, as UBLK_U_CMD_GET_FEATURES answers.

ublk is driven by io_uring commands only, so this makes a ring of one entry by hand."""

import ctypes
import mmap
import os
import struct

IO_URING_SETUP, IO_URING_ENTER = 425, 426
SETUP_SQE128 = 1 << 10
ENTER_GETEVENTS = 1
OFF_SQ_RING, OFF_CQ_RING, OFF_SQES = 0, 0x8000000, 0x10000000
OP_URING_CMD = 46
# _IOR('u', 0x13, struct ublksrv_ctrl_cmd)
GET_FEATURES = 2 << 30 | 32 << 16 | ord("u") << 8 | 0x13
NAMES = [
    "SUPPORT_ZERO_COPY", "URING_CMD_COMP_IN_TASK", "NEED_GET_DATA", "USER_RECOVERY",
    "USER_RECOVERY_REISSUE", "UNPRIVILEGED_DEV", "CMD_IOCTL_ENCODE", "USER_COPY", "ZONED",
]

libc = ctypes.CDLL(None, use_errno=True)


def syscall(*arguments):
    result = libc.syscall(*map(ctypes.c_long, arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def ublk_features():
    # struct io_uring_params: ten words, then ten words each of offsets into the two rings.
    parameters = ctypes.create_string_buffer(struct.pack("10I", 0, 0, SETUP_SQE128, *[0] * 7), 120)
    ring = syscall(IO_URING_SETUP, 1, ctypes.addressof(parameters))
    words = struct.unpack("30I", parameters.raw)
    submit, complete = words[10:20], words[20:30]
    submissions = mmap.mmap(ring, 4096, offset=OFF_SQ_RING)
    completions = mmap.mmap(ring, 4096, offset=OFF_CQ_RING)
    entries = mmap.mmap(ring, 4096, offset=OFF_SQES)

    control = os.open("/dev/ublk-control", os.O_RDWR)
    answer = ctypes.create_string_buffer(8)
    struct.pack_into("=BBHiQ", entries, 0, OP_URING_CMD, 0, 0, control, GET_FEATURES)
    # struct ublksrv_ctrl_cmd: device, queue, length and address of the buffer.
    struct.pack_into("=IHHQ", entries, 48, 0xFFFFFFFF, 0xFFFF, len(answer), ctypes.addressof(answer))
    struct.pack_into("=I", submissions, submit[6], 0)  # array[0] = entry 0
    struct.pack_into("=I", submissions, submit[1], 1)  # tail
    syscall(IO_URING_ENTER, ring, 1, 1, ENTER_GETEVENTS, 0, 0)
    result = struct.unpack_from("=Qi", completions, complete[5])[1]
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return struct.unpack("=Q", answer.raw)[0]


features = ublk_features()
print(f"{features:#x}")
for bit in range(64):
    if features >> bit & 1:
        print(NAMES[bit] if bit < len(NAMES) else f"bit {bit}")
