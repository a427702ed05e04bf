#!/usr/bin/env bash
# A volume as a block device of this host: file system made, filled, trimmed, checked; the same bytes
# after a stop and a new start; after a killed server all that was synced, and its device deleted by
# the command that the next server names.
#
# WALKEEP  the program, built by `cargo build --features ublk --bin walkeep` (that of the target
#          directory)
# guest: --lane t --disk 1G --memory 1024 --timeout 600
# packages: e2fsprogs fio jq
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

target=${CARGO_TARGET_DIR:-$(dirname "$0")/../../../target}
walkeep=$(realpath "${WALKEEP:-$target/debug/walkeep}")
"$walkeep" ublk --help >/dev/null 2>&1 || {
    echo "skipped: $walkeep has no ublk: cargo build --features ublk --bin walkeep"
    exit 77
}
walkeep() { "$walkeep" "$@"; }
store=/mnt/store mount=/mnt/volume pid='' device=''
export WALKEEP_HOME=$store/home
mkdir -p $store $mount
mkfs.ext4 -q -F "${GUEST_DISKS%% *}"
mount "${GUEST_DISKS%% *}" $store

# refuses TEXT COMMAND...: it fails, and says TEXT.
refuses() {
    local text=$1 output
    shift
    if output=$("$@" 2>&1); then fail "expected a failure: $*"; fi
    [[ $output == *"$text"* ]] || fail "expected '$text' of $*, found: $output"
    echo "$output"
}

start_server() {
    : >$store/output
    "$walkeep" volume serve db --ublk >$store/output 2>&1 &
    pid=$!
    wait_for 20 is_served || { cat $store/output; fail "no block device"; }
    cat $store/output
}
is_served() {
    kill -0 "$pid" 2>/dev/null || { cat $store/output; fail "the server ended"; }
    device=$(sed -n 's|^db: served at \(/dev/ublkb.*\)|\1|p' $store/output)
    [ -n "$device" ]
}

stop_server() {
    kill -TERM "$pid"
    wait "$pid" || fail "the server ended with status $?: $(cat $store/output)"
    [ ! -e "$device" ] || fail "$device is still there"
    [ ! -e "${device/ublkb/ublkc}" ] || fail "${device/ublkb/ublkc} is still there"
}

limit() { cat "/sys/block/${device#/dev/}/queue/$1"; }
expect() { [ "$2" = "$3" ] || fail "$1: expected $2, found $3"; }
counter() { walkeep volume status --json db | jq ".volumes[0].status.counters.$1"; }
sums() { (cd "$mount/$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
sum_of_device() { dd if="$device" bs=1M iflag=direct status=none | sha256sum; }
check() { e2fsck -fn "$device" >$store/check 2>&1 || { cat $store/check; fail "ext4 is damaged"; }; }
# After a file system that could not be unmounted in order.
check_journal() { e2fsck -p "$device" >$store/check 2>&1 || (($? == 1)) || { cat $store/check; fail "ext4 is damaged"; }; }

say "errors: no driver, no permission"
walkeep volume create db --data $store/db.data --log $store/db.log --size 256M --log-size 128M
refuses "modprobe ublk_drv" walkeep volume serve db --ublk
modprobe ublk_drv
refuses "run this as root" setpriv --reuid=65534 --clear-groups "$walkeep" ublk list

say "a block device with these limits"
start_server
expect size $((256 << 20)) "$(blockdev --getsize64 "$device")"
expect "logical block" 512 "$(blockdev --getss "$device")"
expect "physical block" 4096 "$(blockdev --getpbsz "$device")"
expect "least I/O" 4096 "$(blockdev --getiomin "$device")"
expect cache "write back" "$(limit write_cache)"
expect fua 1 "$(limit fua)"
expect "longest request" 1024 "$(limit max_hw_sectors_kb)"
expect discards $((1 << 30)) "$(limit discard_max_hw_bytes)"
expect zeroes $((1 << 30)) "$(limit write_zeroes_max_bytes)"
walkeep ublk list
refuses "is served" walkeep ublk delete "${device#/dev/ublkb}"

say "writes, zeroes, trims, single sectors, flushes"
head -c 8M /dev/urandom >$store/random
dd if=$store/random of="$device" bs=4M oflag=direct conv=notrunc status=none
cmp $store/random <(dd if="$device" bs=4M count=2 iflag=direct status=none) || fail "other data"
blkdiscard -z -o 1M -l 1M "$device"
blkdiscard -o 3M -l 1M "$device"
dd if=/dev/zero of=$store/random bs=1M seek=1 count=1 conv=notrunc status=none
dd if=/dev/zero of=$store/random bs=1M seek=3 count=1 conv=notrunc status=none
printf 'a sector of 512' | dd of="$device" bs=512 seek=4097 oflag=direct conv=notrunc,sync status=none
printf 'a sector of 512' | dd of=$store/random bs=512 seek=4097 conv=notrunc,sync status=none
cmp $store/random <(dd if="$device" bs=4M count=2 iflag=direct status=none) || fail "other data"
flushes=$(counter flushes)
dd if=/dev/zero of="$device" bs=4096 count=1 oflag=direct conv=notrunc,fsync status=none
(($(counter flushes) > flushes)) || fail "the volume saw no flush"

say "random writes of two processes, 32 under way in each, read back"
fio --name=verify --filename="$device" --direct=1 --rw=randwrite --bsrange=512-64k \
    --numjobs=2 --size=24M --offset=64M --offset_increment=64M --ioengine=libaio --iodepth=32 \
    --verify=crc32c --verify_fatal=1 --output=$store/fio || { cat $store/fio; fail "fio"; }

say "ext4: make, fill, trim, unmount"
mkfs.ext4 -q -F -E nodiscard "$device"
mount "$device" $mount
cp -r /etc $mount/etc
head -c 48M /dev/urandom >$mount/large
cp $mount/large $mount/gone
sync -f $mount
rm $mount/gone
sync -f $mount
trimmed=$(fstrim -v $mount)
echo "$trimmed"
bytes=$(sed -n 's/.*(\([0-9]*\) bytes).*/\1/p' <<<"$trimmed")
((bytes >= 48 << 20)) || fail "expected 48 MiB trimmed or more"
sums . >$store/sums
umount $mount
check
before=$(sum_of_device)
stop_server

say "served again: $(wc -l <$store/sums) files and all bytes as they were"
start_server
expect SHA-256 "$before" "$(sum_of_device)"
check
mount "$device" $mount
sums . | cmp - $store/sums || fail "files changed"

say "killed amid writes"
mkdir $mount/synced
cp -r /etc $mount/synced
head -c 16M /dev/urandom >$mount/synced/large
sync -f $mount
sums synced >$store/sums
(while cat /bin/bash >>$mount/more; do sync $mount/more || exit; done) 2>/dev/null &
writer=$!
writes=$(counter writes)
is_writing() { (($(counter writes) > writes + 100)); }
wait_for 60 is_writing || fail "no writes"
kill -KILL "$pid"
wait "$pid" 2>/dev/null || true
is_gone() { [ ! -e "$device" ]; }
wait_for 60 is_gone || fail "$device outlives its server"
wait_for 60 umount $mount 2>/dev/null || fail "cannot unmount"
wait $writer || true
left=${device#/dev/ublkb}

say "the next server recovers, and tells what the dead one left"
start_server
[ "$device" != "/dev/ublkb$left" ] || fail "$device again, before it was deleted"
command=$(sed -n 's/.*remove it: //p' $store/output)
expect command "walkeep ublk delete $left" "$command"
eval "$command"
[ ! -e "/dev/ublkc$left" ] || fail "/dev/ublkc$left is still there"
refuses "no device of ublk" walkeep ublk delete "$left"
walkeep ublk list
# The journal brings ext4 to its last commit.
mount "$device" $mount
sums synced | cmp - $store/sums || fail "synced files changed"

say "stopped while mounted: what was written is kept, later writes fail"
head -c 4M /dev/urandom >$mount/last
sum=$(sha256sum <$mount/last)
stop_server
refuses "Input/output error" touch $mount/later
umount $mount
start_server
check_journal
mount "$device" $mount
expect "SHA-256 of the last file" "$sum" "$(sha256sum <$mount/last)"
umount $mount
check
stop_server
say "ublk volume: all as expected"
