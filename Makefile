# The few commands that people and CI need. Everything builds with one profile (release).
.PHONY: setup build test test-memory

setup:
	deploy/setup.sh

build: setup
	cargo build --release --workspace

# Format, clippy, and every test.
test: setup
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	cargo test --release --workspace --all-targets

# 200,000 x 4096 features through whitening and k-means under 1.5 GB; minutes, so not part of `test`.
test-memory: setup
	cargo test --release --workspace --test parity memory_stays_bounded -- --ignored --nocapture
