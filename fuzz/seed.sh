#!/usr/bin/env bash
# Fills fuzz/corpus from the test vectors. Inputs that fuzzing added stay.
set -euo pipefail
cd "$(dirname "$0")"
cargo run --quiet --release --example seed -- ../tests/vectors/walb corpus
