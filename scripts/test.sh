#!/usr/bin/env bash
# All checks that a change has to pass. Every step runs, whatever became of those before it; a step
# that cannot run is named with the reason. The last line counts the steps.
#
# --long: all tests in guests, on both lanes, and not only those of a volume on lane U (3 minutes).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
case ${1-} in
    '') guest_tests=(scripts/guest/tests/volume-*.sh) ;;
    --long) guest_tests=() ;;
    *) echo "usage: test.sh [--long]" >&2; exit 2 ;;
esac

# mkfs and its like stand in sbin, which is not on everybody's path.
export PATH=$PATH:/usr/sbin:/sbin

passed=0 failed=0 skipped=0
failures=()

step() {
    local name=$1
    shift
    local status=0
    echo "== $name"
    "$@" </dev/null || status=$?
    case $status in
        0) passed=$((passed + 1)) ;;
        77) skip "$name" "none of it can run here" ;;
        *)
            failed=$((failed + 1))
            failures+=("$name")
            echo "== $name: failed"
            ;;
    esac
}

# The program goes to the place of the one without ublk, until that is built again.
ublk_in_guest() {
    cargo build --features ublk --bin walkeep &&
        timeout -k 10 900 scripts/guest/test scripts/guest/tests/ublk-volume.sh
}

skip() {
    echo "== $1: skipped, $2"
    skipped=$((skipped + 1))
}

step "setup" scripts/setup.sh

if cargo fmt --version >/dev/null 2>&1; then
    step "format" cargo fmt --all --check
else
    skip "format" "rustfmt is not installed"
fi

if cargo clippy --version >/dev/null 2>&1; then
    step "lints" cargo clippy --workspace --all-targets -- -D warnings
    step "lints of ublk" cargo clippy --workspace --features ublk -- -D warnings
else
    skip "lints" "clippy is not installed"
fi

if cargo nextest --version >/dev/null 2>&1; then
    step "tests" cargo nextest run --workspace
else
    step "tests" cargo test --workspace --lib --bins --tests
fi

step "tests of ublk" cargo test -p walkeep-store --features ublk --lib ublk

if ! command -v qemu-system-x86_64 >/dev/null || ! timeout -k 10 300 scripts/guest/kernel >/dev/null; then
    skip "ublk in a guest" "lane t of scripts/guest needs qemu-system-x86 and Debian's backports"
else
    step "ublk in a guest" ublk_in_guest
fi

step "documentation tests" cargo test --workspace --doc

# They are a workspace of their own, so nothing else notices when they no longer compile.
if command -v c++ >/dev/null; then
    step "fuzz targets" cargo check --quiet --manifest-path fuzz/Cargo.toml --bins --examples
else
    skip "fuzz targets" "libFuzzer needs a C++ compiler"
fi

# They run what is built here, in kernels that have device-mapper and an NBD client.
guests() {
    cargo build --quiet && scripts/guest/test ${guest_tests[@]+"${guest_tests[@]}"}
}
if [ -w /dev/shm ]; then
    step "guests" guests
else
    skip "guests" "their memory needs a writable /dev/shm"
fi

if [ -x scripts/demo.sh ]; then
    step "demo" make demo
else
    skip "demo" "there is no scripts/demo.sh"
fi

for name in "${failures[@]}"; do
    echo "failed: $name"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
