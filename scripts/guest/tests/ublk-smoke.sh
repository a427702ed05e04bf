#!/usr/bin/env bash
# Lane T has ublk: its driver loads, has its control device, and answers with the features that a
# server here wants.
# guest: --lane t
# packages: python3
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

modprobe ublk_drv
[ -c /dev/ublk-control ] || fail "no /dev/ublk-control"
say "kernel $(uname -r), $(nproc) processors, ublk features:"
/usr/bin/python3 "$(dirname "$0")/ublk-features.py" | tee /run/features
# Data are copied by pread and pwrite of /dev/ublkcN, and a killed server can be followed by another.
for feature in USER_COPY USER_RECOVERY; do
    grep -qw "$feature" /run/features || fail "ublk of this kernel lacks $feature"
done
