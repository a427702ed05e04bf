# shellcheck shell=bash
# Functions for scripts that run inside a guest: `. "$(dirname "$0")/../lib.sh"`. Loop devices, and
# devices of dm that fail as asked, in the table syntax of kernel 6.1, which 6.12 understands too.
# Sizes, offsets and ranges of devices are in sectors of 512 bytes.

# The program under test: the guest runs what the host has built.
target=${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/../../target}
# shellcheck disable=SC2034 # Used by the scripts.
walkeep=$(realpath -m "$target")/debug/walkeep

say() { echo "== $*"; }
fail() { echo "${0##*/}: failed: $*" >&2; exit 1; }

# wait_for SECONDS COMMAND...: until the command is true; false if it is not by then.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# loop_device FILE SIZE: a loop device on a new sparse file; prints its name.
loop_device() {
    truncate -s "$2" "$1"
    losetup --find --show "$1"
}

sectors_of() { blockdev --getsz "$1"; }

# dm_create NAME: makes /dev/mapper/NAME of the table on stdin.
dm_create() { dmsetup create "$1"; }

# dm_switch NAME: gives the live device NAME the table on stdin. What it has in flight is finished
# with the old table.
dm_switch() {
    dmsetup load "$1"
    dmsetup suspend --noflush --nolockfs "$1"
    dmsetup resume "$1"
}

# Tables over the whole of a device.
linear_table() { echo "0 $(sectors_of "$1") linear $1 0"; }
error_table() { echo "0 $(sectors_of "$1") error"; }

# error_range_table DEVICE START COUNT: DEVICE with reads and writes of a range failing.
error_range_table() {
    local device=$1 start=$2 count=$3 size
    size=$(sectors_of "$device")
    if ((start > 0)); then echo "0 $start linear $device 0"; fi
    echo "$start $count error"
    if ((start + count < size)); then
        echo "$((start + count)) $((size - start - count)) linear $device $((start + count))"
    fi
}

# flakey_table DEVICE UP DOWN [FEATURE...]: sound for UP seconds, then bad for DOWN seconds, and
# again. Bad is an error of all reads and writes, or what one feature says: error_writes,
# drop_writes, or corrupt_bio_byte NTH r|w VALUE FLAGS. UP 0 is bad for good.
flakey_table() {
    local device=$1 up=$2 down=$3 features=''
    shift 3
    if [ $# -gt 0 ]; then features=" $# $*"; fi
    echo "0 $(sectors_of "$device") flakey $device 0 $up $down$features"
}

# dust_table DEVICE BLOCK_BYTES: reads of blocks listed as bad fail once dust is enabled; a write
# to one heals it.
dust_table() { echo "0 $(sectors_of "$1") dust $1 0 $2"; }

# dust_message NAME addbadblock|removebadblock|queryblock BLOCK, or enable|disable|countbadblocks|
# clearbadblocks: what it answers is printed.
dust_message() {
    local name=$1
    shift
    dmsetup message "$name" 0 "$@"
}

# Whole blocks of 4096 bytes, past the page cache; block numbers count those.
read_block() { dd if="$1" bs=4096 skip="$2" count=1 iflag=direct status=none; }
write_block() { dd of="$1" bs=4096 seek="$2" count=1 iflag=fullblock oflag=direct conv=notrunc status=none; }

# expect_eio COMMAND...: fails the script unless the command fails with EIO.
expect_eio() {
    local text
    if text=$("$@" 2>&1 >/dev/null); then fail "expected EIO, but it succeeded: $*"; fi
    [[ $text == *"Input/output error"* ]] || fail "expected EIO of $*, found: $text"
}
