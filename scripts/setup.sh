#!/usr/bin/env bash
# Installs the Debian packages of the programs that are named, by default of all that tests and
# demo use. Without root, or where they cannot be installed, it lists the missing ones and goes on:
# the tests that need them say that they skip.
set -euo pipefail

# program:package
known=(mkfs.ext4:e2fsprogs debugfs:e2fsprogs mkfs.xfs:xfsprogs losetup:mount fstrim:util-linux
    fusermount3:fuse3 nbdinfo:libnbd-bin nbdcopy:libnbd-bin nbdfuse:libnbd-bin qemu-img:qemu-utils
    fio:fio)

missing=()
for entry in "${known[@]}"; do
    program=${entry%%:*}
    if [ $# -gt 0 ] && [[ " $* " != *" $program "* ]]; then continue; fi
    # mkfs and its like stand in sbin, which is not on everybody's path.
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("${entry#*:}")
done
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u | sed '/^$/d')

if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: everything is there"
elif [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
        </dev/null; then
        echo "setup: could not install ${missing[*]}; what needs them will be skipped"
    fi
else
    echo "setup: missing packages, install them as root: ${missing[*]}"
fi
