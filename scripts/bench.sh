#!/usr/bin/env bash
# Whole commands of the release binary on generated logs, each with wall time, throughput and the
# peak of its anonymous memory, as a Markdown table; then the limits of the machine to compare with.
# docs/performance.md says how to read it. Commands make their output durable within their time.
#
# BENCH_SIZE     bytes written in each log (256M)
# BENCH_DEVICE   size of the volume (1G)
# BENCH_RUNS     runs of each command, after one that does not count; the median is shown (5)
# BENCH_DIR      where the files go, on the disk to be measured (the target directory)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

size=${BENCH_SIZE:-256M} device=${BENCH_DEVICE:-1G} runs=${BENCH_RUNS:-5}
target=${CARGO_TARGET_DIR:-$root/target}
walkeep=${WALKEEP:-$target/release/walkeep}
measure=$root/scripts/measure.py

if [ -z "${WALKEEP:-}" ]; then cargo build --release --quiet; fi
mkdir -p "${BENCH_DIR:-$target}"
work=$(mktemp -d "${BENCH_DIR:-$target}/bench.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

bytes=$(numfmt --from=iec "$size")

fail() { echo "bench: $*" >&2; exit 1; }

# run NAME BYTES COMMAND...: a row of the table. Between runs dirty pages are written back, so that
# no run pays for the one before it.
run() {
    local name=$1 amount=$2 line
    shift 2
    : >runs
    for ((i = 0; i <= runs; i++)); do
        sync
        line=$("$measure" "$@") || fail "$*"
        if ((i > 0)); then echo "$line" >>runs; fi
    done
    sort -n runs | awk -v name="$name" -v bytes="$amount" -v runs="$runs" -F '\t' '
        { seconds[NR] = $1; if ($2 > peak) peak = $2 }
        END {
            median = seconds[int((runs + 1) / 2)]
            printf "| %s | %.2f | %.2f–%.2f | %.0f | %.1f |\n", name, median, seconds[1],
                seconds[NR], bytes / 1048576 / median, peak / 1048576
        }'
}

heading() {
    printf '\n%s\n\n| command | median s | range s | MiB/s | peak anonymous MiB |\n' "$1"
    echo '|---|---:|---:|---:|---:|'
}

cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)
memory=$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
file_system=$(df --output=fstype . | tail -1)
echo "${cpu:-$(uname -m)}, $(nproc) cores, $memory; $(uname -sr); $file_system; \
logs of $size with writes of 4K to 64K on $device; inputs in the page cache; $runs runs."

for data in random compressible; do
    for seed in 1 2 3 4; do
        "$walkeep" wlog generate --seed $seed --size "$size" --device-size "$device" \
            --min-io 4K --max-io 64K --data $data $seed.wlog >/dev/null
        "$walkeep" wlog to-wdiff --compress snappy $seed.wlog $seed.wdiff >/dev/null
    done
    inputs=(1.wdiff 2.wdiff 3.wdiff 4.wdiff)
    for threads in 1 2; do
        "$walkeep" wdiff merge --any-uuid --compress snappy --threads $threads \
            -o merged-$threads.wdiff "${inputs[@]}" >/dev/null
    done
    cmp merged-1.wdiff merged-2.wdiff || fail "output depends on the number of threads"
    mv merged-1.wdiff merged.wdiff
    truncate -s "$device" base.img
    diffs=()
    for input in "${inputs[@]}"; do diffs+=(--diff "$input"); done

    heading "Data: $data"
    run "wlog verify" "$bytes" "$walkeep" wlog verify 1.wlog
    for threads in 1 2; do
        run "wlog to-wdiff --compress snappy --threads $threads" "$bytes" \
            "$walkeep" wlog to-wdiff --compress snappy --threads $threads 1.wlog out.wdiff
        run "wlog to-wdiff --indexed --compress snappy --threads $threads" "$bytes" \
            "$walkeep" wlog to-wdiff --indexed --compress snappy --threads $threads 1.wlog out.wdiff
    done
    for threads in 1 2; do
        run "wdiff merge of 4 --threads $threads" $((4 * bytes)) \
            "$walkeep" wdiff merge --any-uuid --threads $threads -o out.wdiff "${inputs[@]}"
        run "wdiff merge of 4 --compress snappy --threads $threads" $((4 * bytes)) \
            "$walkeep" wdiff merge --any-uuid --compress snappy --threads $threads \
            -o out.wdiff "${inputs[@]}"
    done
    rm -f out.wdiff

    # The image is warm and allocated from the first, unmeasured run on.
    truncate -s 0 redo.img && truncate -s "$device" redo.img
    run "wlog redo" "$bytes" "$walkeep" wlog redo 1.wlog redo.img
    plain=$("$walkeep" wdiff info --json merged.wdiff |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["records"]["data"]["blocks"] * 512)')
    run "wdiff redo of the merged" "$plain" "$walkeep" wdiff redo merged.wdiff redo.img
    rm -f redo.img
    whole=$(numfmt --from=iec "$device")
    run "image cat, base and 4 diffs, to /dev/null" "$whole" \
        "$walkeep" image cat --base base.img "${diffs[@]}" -o /dev/null
done

heading "Limits of the machine"
run "cat of a log to /dev/null" "$bytes" cat 1.wlog
run "dd of zeros, conv=fsync" "$bytes" \
    dd if=/dev/zero of=limit bs=1M count=$((bytes >> 20)) conv=fsync status=none
run "dd of a log, conv=fsync" "$bytes" dd if=1.wlog of=limit bs=1M conv=fsync status=none

# One thread, 256 MiB from one buffer to another: more than any cache holds.
python3 -c '
import time
source, target = bytearray(b"x") * (256 << 20), bytearray(256 << 20)
def copy():
    start = time.perf_counter()
    target[:] = source
    return time.perf_counter() - start
seconds = sorted(copy() for _ in range(9))[4]
print(f"\nMemory copy, one thread: {len(source) / seconds / 1e9:.1f} GB/s")'
