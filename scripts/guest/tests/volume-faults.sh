#!/usr/bin/env bash
# A WAL volume whose log and data fail: errors of writes, syncs and reads, no space, and kill -9 in the
# middle of it. What was acknowledged stays true, the condition is named, and when the cause is gone
# the volume serves again.
# guest: --lane u --disk 64M --disk 64M --timeout 400
# packages: dmsetup python3 python3-libnbd
set -euo pipefail
# shellcheck source=scripts/guest/lib.sh
. "$(dirname "$0")/../lib.sh"

work=$(mktemp -d)
export WALKEEP_HOME=$work/home
client=$(realpath "$(dirname "$0")/volume-client.py")
read -r log_disk data_disk <<<"$GUEST_DISKS"
name=db pid='' uri=''

log_is() { "$1_table" "$log_disk" "${@:2}" | dm_switch log; }
data_is() { "$1_table" "$data_disk" "${@:2}" | dm_switch data; }

serve() {
    "$walkeep" volume serve "$name" >"$work/served" 2>"$work/error" &
    pid=$!
    wait_for 30 is_served || { cat "$work/error"; fail "$name is not served"; }
    uri=$(sed -n 's/.*: served at //p' "$work/served")
}
is_served() { grep -q ': served at ' "$work/served"; }

# serve_refused TEXT: the server does not come up, and says why.
serve_refused() {
    if "$walkeep" volume serve "$name" >"$work/served" 2>"$work/error"; then fail "$name is served"; fi
    grep -q "$1" "$work/error" || { cat "$work/error"; fail "expected the error to say: $1"; }
    sed 's/^/   /' "$work/error"
}

kill_server() {
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null || true
    client crash
}

stop_server() {
    kill -TERM "$pid"
    wait "$pid" || fail "the server ended with status $?"
}

client() { /usr/bin/python3 "$client" "$uri" "$work/state.$name" "$@" | sed 's/^/   /'; }

# is_in CONDITIONS: notes the status, from which field reads.
is_in() {
    "$walkeep" volume status --json "$name" >"$work/status"
    [[ $(field condition) =~ ^($1)$ ]]
}
field() { sed -n "s/^ *\"$1\": \"\(.*\)\",*\$/\1/p" "$work/status"; }

# expect CONDITIONS HINT: waits for one of them.
expect() {
    wait_for 40 is_in "$1" || fail "expected $1, found $(field condition): $(field cause)"
    echo "   $(field condition): $(field cause); $(field hint)"
    [[ $(field hint) == *"$2"* ]] || fail "expected a hint with '$2', found: $(field hint)"
}

recovers() {
    expect serving ""
    client verify
    client write ok
    "$walkeep" volume checkpoint "$name"
    forget_caches
    client verify
}

# Reads come from the data's device again, and not from memory.
forget_caches() { blockdev --flushbufs /dev/mapper/data; }

say "all is well"
linear_table "$log_disk" | dm_create log
linear_table "$data_disk" | dm_create data
"$walkeep" ldev format /dev/mapper/log --data-size 64M
"$walkeep" volume create "$name" --data /dev/mapper/data --log /dev/mapper/log --adopt
serve
client write ok
recovers

say "the log cannot be written"
log_is flakey 0 1 error_writes
client write eio
expect log-failed "check the log device"
client verify
client write eio
if "$walkeep" volume checkpoint "$name" 2>"$work/error"; then fail "a checkpoint without a log"; fi
grep -q "the log has failed" "$work/error" || fail "$(cat "$work/error")"
log_is linear
recovers

say "the log is gone, and the server is killed"
log_is error
client write eio
expect log-failed "check the log device"
kill_server
serve_refused "/dev/mapper/log"
log_is linear
serve
recovers

say "the log cannot be written, and the server is killed"
client write ok
log_is flakey 0 1 error_writes
client write eio
expect log-failed "check the log device"
kill_server
serve_refused "/dev/mapper/log"
log_is linear
serve
recovers

say "the data cannot be written"
data_is flakey 0 1 error_writes
client write ok write
"$walkeep" volume checkpoint "$name" &
checkpoint=$!
expect data-suspect "the log is replayed"
client verify any-eio
client write ok
data_is linear
recovers
wait $checkpoint || fail "the checkpoint should have waited for the data"

say "the data cannot be trimmed"
data_is flakey 0 1 error_writes
client write ok trim
expect data-failed "writing is tried again"
client verify
data_is linear
recovers

say "the data is gone"
forget_caches
data_is error
client verify some-eio
client write ok
expect "data-suspect|data-failed" "check the data device"
client verify any-eio
data_is linear
recovers

say "the data cannot be read, here and there"
forget_caches
data_is error_range 0 1024
client verify some-eio
is_in serving || fail "found $(field condition)"
data_is linear
recovers

say "the data cannot be written, and the server is killed"
data_is flakey 0 1 error_writes
client write ok
expect "data-suspect|data-failed" "check the data device"
kill_server
serve_refused "/dev/mapper/data"
data_is linear
serve
recovers

# full_volume NAME: a volume whose data finds no space.
full_volume() {
    name=$1 small=$work/small.$1
    mkdir "$small"
    mount -t tmpfs -o size=8m tmpfs "$small"
    "$walkeep" volume create "$name" --data "$small/data" --log "$work/log.$1" --size 16M --log-size 16M
    head -c 7936K /dev/zero >"$small/ballast"
    serve
    client write ok write
    expect data-full "make space"
    client verify
    client write ok
}

say "the data has no space left"
stop_server
full_volume full
rm "$small/ballast"
recovers
stop_server

say "the data has no space left, and the server is killed"
full_volume again
kill_server
serve_refused "No space left"
rm "$small/ballast"
serve
recovers
stop_server
say "volume faults: all as expected"
