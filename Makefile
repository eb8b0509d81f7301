# The few commands that people and CI need. Everything builds with one profile (release).
.PHONY: setup setup-tests build demo test test-formats chaos chaos-programs test-compose test-scaling test-memory test-crops bench

DEEPCLUSTER = target/release/deepcluster

setup:
	deploy/setup.sh

# What the tests need beside: a browser, and programs that write odd JPEGs and TIFFs.
setup-tests:
	deploy/setup.sh --tests

build: setup
	cargo build --release --workspace

# Demo pictures, a run on them, what it scored, and its report. Called again, it goes on or starts another run on the same pictures.
demo: build
	$(DEEPCLUSTER) demo-images demo/images --count 2000 --size 64 --seed 1
	$(DEEPCLUSTER) train demo/images --out demo/volume --image-size 64 --k 20 --epochs 8 --seed $(DEMO_SEED)
	$(DEEPCLUSTER) report $$(ls -d demo/volume/runs/run-* | tail -n 1) --to demo/report.html --atlas demo/atlas.png
	@echo "open demo/report.html in a browser; pictures in demo/images, the run in demo/volume, the atlas in demo/atlas.png"

DEMO_SEED = 31

# Format, clippy, and every test. The system tests run the built programs, read their files with Python, and look at pages with
# Chromium; screenshots are in target/screenshots.
test: setup-tests chaos-programs build .python/installed
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	PYTHONPATH=$(CURDIR)/.python cargo test --release --workspace --all-targets
	cargo test --release --workspace --test system what_is_planned -- --ignored --nocapture
	deploy/gpu-kit.sh target/gpu-kit
	DEVICE=cpu SMALL=1 OUT=target/gpu-kit-results LIBTORCH=$(CURDIR)/.libtorch target/gpu-kit/check.sh

# The long version of what `test` does in short: every fail point, 100 kills, 10,000 requests a method and as many files.
chaos: chaos-programs build .python/installed
	CHAOS=all CASES=10000 PYTHONPATH=$(CURDIR)/.python cargo test --release --workspace --test system --test hostile -- \
		--nocapture chaos requests read_or_refused

# Services with points at which tests end them. They go elsewhere, and `build` puts those without in their place again.
chaos-programs: setup
	cargo build --release --workspace --bins --features $(FAILPOINTS)
	mkdir -p target/chaos
	cp target/release/deepcluster-* target/chaos/
	rm -f target/chaos/*.d

FAILPOINTS = deepcluster-coordinator/failpoints,deepcluster-extractor/failpoints,deepcluster-clusterer/failpoints,deepcluster-trainer/failpoints

.python/installed: tests/requirements.txt
	python3 -m pip install -q --upgrade --target .python -r tests/requirements.txt
	touch $@

# The containers, for real: built, started, scaled, killed. Needs a Docker daemon.
test-compose: .python/installed
	tests/compose.sh

# What a second extractor adds, each pinned to a core: a measurement, so not part of `test`.
test-scaling: build
	tests/scaling.sh

# 200,000 x 4096 features through whitening and k-means in 1 GB, or ROWS in K; minutes, so not part of `test`.
test-memory: setup
	cargo test --release --workspace --test parity memory_stays_bounded -- --ignored --nocapture

# Some 3,500 small pictures in every encoding at hand against Pillow, pixel by pixel; part of `test`, and here with its table.
test-formats: setup-tests .python/installed
	PYTHONPATH=$(CURDIR)/.python cargo test --release --workspace --test system every_encoding -- --nocapture

# Centre crops of four photographs against Pillow's: make test-crops PHOTOS=DIR (tests/parity/cases.json names them).
test-crops: setup
	PHOTOS=$(abspath $(PHOTOS)) cargo test --release --workspace --test system crops_of_photographs -- --ignored --nocapture

# Ratios to the ceiling and to the peer, on a machine that does nothing else, half an hour in all:
#   make bench BENCH_PHOTOS=DIR BENCH_CIFAR=DIR PEER_PYTHON=FILE [BENCH_ONLY=views,clustering,network,epoch,sharing,small,gpu]
# What is not given is left out.
bench: build
	$(foreach name,BENCH_PHOTOS BENCH_CIFAR PEER_PYTHON BENCH_ONLY,$(if $($(name)),$(name)=$($(name)))) \
		target/release/deepcluster-bench
