#!/usr/bin/env bash
# The fault devices of lib.sh, each proved by an error that a program really gets, and by what is
# sound beside it.
# guest: --lane u
# packages: dmsetup
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

work=$(mktemp -d)
loop=$(loop_device "$work/loop" 64M)
device=/dev/mapper/faulty
block() { head -c 4096 /dev/zero | tr '\0' "$1"; }
expect_block() { cmp <(read_block "$1" "$2") <(block "$3") || fail "block $2 of $1 is not all $3"; }

say "error: a range"
for i in 7 8 9; do block a | write_block "$loop" $i; done
error_range_table "$loop" 64 8 | dm_create faulty
expect_block $device 7 a
expect_block $device 9 a
expect_eio read_block $device 8
expect_eio write_block $device 8 < <(block b)
expect_block "$loop" 8 a

say "error: a live switch, there and back"
linear_table "$loop" | dm_switch faulty
expect_block $device 8 a
error_table "$loop" | dm_switch faulty
expect_eio read_block $device 8
expect_eio read_block $device 100
linear_table "$loop" | dm_switch faulty
expect_block $device 8 a

say "flakey: everything fails"
flakey_table "$loop" 0 1 | dm_switch faulty
expect_eio read_block $device 7
expect_eio write_block $device 7 < <(block b)
expect_block "$loop" 7 a

say "flakey: writes fail, reads do not"
flakey_table "$loop" 0 1 error_writes | dm_switch faulty
expect_block $device 7 a
expect_eio write_block $device 7 < <(block b)
expect_block $device 7 a

say "flakey: a file system gets the error at fsync"
linear_table "$loop" | dm_switch faulty
mkfs.ext4 -q $device
mkdir "$work/mount"
mount $device "$work/mount"
# Synced, so that only the data of the file is left to write.
block c >"$work/mount/file"
sync -f "$work/mount"
flakey_table "$loop" 0 1 error_writes | dm_switch faulty
expect_eio dd if=/dev/zero of="$work/mount/file" bs=4096 count=1 conv=notrunc,fsync status=none
linear_table "$loop" | dm_switch faulty
umount "$work/mount"

say "flakey: writes are lost without an error"
block a | write_block $device 7
flakey_table "$loop" 0 1 drop_writes | dm_switch faulty
block b | write_block $device 7
linear_table "$loop" | dm_switch faulty
expect_block $device 7 a

say "flakey: sound for the first minute"
flakey_table "$loop" 60 1 | dm_switch faulty
expect_block $device 7 a
dmsetup remove faulty

say "dust: bad blocks, once enabled, until written"
for i in 7 9; do block a | write_block "$loop" $i; done
dust_table "$loop" 4096 | dm_create dusty
device=/dev/mapper/dusty
dust_message dusty addbadblock 7
expect_block $device 7 a
dust_message dusty enable
expect_eio read_block $device 7
expect_block $device 9 a
block b | write_block $device 7
expect_block $device 7 b
dust_message dusty addbadblock 9
expect_eio read_block $device 9
dust_message dusty disable
expect_block $device 9 a
dmsetup remove dusty

losetup -d "$loop"
say "dm faults: all as expected"
