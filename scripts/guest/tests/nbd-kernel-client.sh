#!/usr/bin/env bash
# The kernel's NBD client against a server on a unix socket: file systems made, filled, trimmed,
# checked, and their files found again, through a new server, after the device was detached.
#
# NBD_SERVER  shell command that serves in the foreground on the socket $NBD_SOCKET until TERM; a
#             second start must serve what the first left (nbdkit's file plugin on the guest's disk)
# NBD_EXPORT  name of the export that the client asks for (volume)
# guest: --lane u --disk 1G --memory 1024
# packages: nbd-client nbdkit e2fsprogs xfsprogs
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

work=$(mktemp -d)
export NBD_SOCKET=$work/socket NBD_EXPORT=${NBD_EXPORT:-volume}
# shellcheck disable=SC2016 # The server's shell expands these.
server=${NBD_SERVER:-'exec nbdkit -f -U "$NBD_SOCKET" file "${GUEST_DISKS%% *}"'}
name=nbd0 device=/dev/nbd0 mount=$work/mount pid=''
mkdir "$mount"

start_server() {
    rm -f "$NBD_SOCKET"
    bash -c "$server" &
    pid=$!
    wait_for 20 server_is_up || fail "no socket $NBD_SOCKET from: $server"
}
server_is_up() { kill -0 "$pid" 2>/dev/null || fail "the server ended: $server"; [ -S "$NBD_SOCKET" ]; }

stop_server() {
    local status=0
    kill -TERM "$pid"
    wait "$pid" || status=$?
    [[ $status == 0 || $status == 143 ]] || fail "the server ended with status $status"
}

attach() {
    nbd-client -unix "$NBD_SOCKET" -N "$NBD_EXPORT" $device -b 4096
    wait_for 10 is_attached || fail "$device has no size"
}
is_attached() { (($(cat "/sys/block/$name/size") > 0)); }

detach() {
    nbd-client -d $device
    wait_for 10 is_detached || fail "$device is still there"
}
is_detached() { ! nbd-client -c $device >/dev/null; }

check() {
    case $1 in
        ext4) e2fsck -fn $device ;;
        xfs) xfs_repair -n $device ;;
    esac >"$work/check" 2>&1 || { cat "$work/check"; fail "$1 is damaged"; }
}

# Many small files, some programs, and one that is large.
fill() {
    cp -r /etc "$mount/etc"
    cp /bin/bash /bin/busybox "$mount"
    head -c 64M /dev/urandom >"$mount/large"
    truncate -s 256M "$mount/sparse"
    echo end >>"$mount/sparse"
}
sums() { (cd "$mount" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

for kind in ext4 xfs; do
    say "$kind: make, fill, trim, unmount"
    start_server
    attach
    # No discard by mkfs, so that fstrim is the one to bring it.
    case $kind in
        ext4) mkfs.ext4 -q -F -E nodiscard $device ;;
        xfs) mkfs.xfs -q -f -K $device ;;
    esac
    mount $device "$mount"
    fill
    cp "$mount/large" "$mount/gone"
    sync
    rm "$mount/gone"
    sync
    trimmed=$(fstrim -v "$mount")
    echo "$trimmed"
    bytes=$(sed -n 's/.*(\([0-9]*\) bytes).*/\1/p' <<<"$trimmed")
    ((bytes >= 64 << 20)) || fail "expected 64 MiB trimmed or more"
    sums >"$work/$kind.sums"
    umount "$mount"
    check $kind
    detach
    stop_server

    say "$kind: attach to a new server, $(wc -l <"$work/$kind.sums") files as they were"
    start_server
    attach
    check $kind
    mount -o ro $device "$mount"
    sums | cmp - "$work/$kind.sums" || fail "files of $kind changed"
    umount "$mount"
    detach
    stop_server
done
say "nbd kernel client: all as expected"
