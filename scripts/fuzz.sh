#!/usr/bin/env bash
# Runs every fuzz target for FUZZ_SECONDS (default 60), or those named as arguments. FUZZ_JOBS of
# them (default 1) run at a time. Without a sanitizer, which needs a nightly compiler: the code has
# next to no unsafe of its own, and overflows and failed assertions are found all the same.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-60}
jobs=${FUZZ_JOBS:-1}

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz"
    cargo install cargo-fuzz --locked
fi

cargo fuzz build --sanitizer none
./fuzz/seed.sh

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

run() {
    local target=$1 log=$logs/$1
    if cargo fuzz run --sanitizer none "$target" -- -max_total_time="$seconds" -max_len=65536 \
        -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 >"$log" 2>&1; then
        echo "ok      $target: $(sed -n 's/^Done //p' "$log")," \
            "$(grep -o 'cov: [0-9]*' "$log" | tail -1)"
    else
        tail -n 40 "$log"
        echo "FAILED  $target: see fuzz/artifacts/$target"
        return 1
    fi
}
export -f run
export seconds logs

printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I {} bash -c 'run {}'
