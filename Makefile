# Shortcuts for the scripts; CONTRIBUTING.md says more.
.DEFAULT_GOAL := help
.PHONY: help demo test guest bench fuzz fmt lint doc

help: ## this list
	@sed -n 's/^\([a-z]*\): .*## /  make \1\t/p' Makefile | expand -t 16

demo: ## build, and show a live volume, its moments restored and proved
	scripts/setup.sh mkfs.ext4 debugfs nbdcopy nbdfuse losetup fstrim
	cargo build --release --bin walkeep
	scripts/demo.sh

test: ## install what the tests need and run all checks
	scripts/test.sh

guest: ## tests that need device-mapper, NBD or ublk, in small guests
	cargo build
	scripts/guest/harness-test u t
	scripts/guest/test

bench: ## time whole commands on generated logs, with their memory
	scripts/bench.sh
	scripts/bench-volume.py

fuzz: ## fuzz every decoder for FUZZ_SECONDS (60) each
	scripts/fuzz.sh

fmt: ## format the code
	cargo fmt --all
	cd fuzz && cargo fmt

lint: ## lints, and the licences and advisories of dependencies
	cargo clippy --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; \
	else echo "dependencies: skipped, cargo-deny is not installed"; fi

doc: ## documentation of the crates
	cargo doc --workspace --no-deps
