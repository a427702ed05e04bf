#!/usr/bin/env bash
# The kernel's NBD client against a WAL volume on two disks: the test of nbd-kernel-client.sh.
# guest: --lane u --disk 1G --disk 256M --memory 1024
# packages: nbd-client e2fsprogs xfsprogs
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

read -r data log <<<"$GUEST_DISKS"
export WALKEEP_HOME=/run/walkeep NBD_EXPORT=volume
"$walkeep" ldev format "$log" --data-size 1G
"$walkeep" volume create $NBD_EXPORT --data "$data" --log "$log" --adopt
export NBD_SERVER="exec '$walkeep' volume serve $NBD_EXPORT --nbd unix:\$NBD_SOCKET"
exec "$(dirname "$0")/nbd-kernel-client.sh"
