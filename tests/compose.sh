#!/usr/bin/env bash
# The system as containers, for real: images built, a run from a container of the command line and one from a Python client,
# extractors scaled 1 -> 3 -> 1 in the middle of it, a process of each kind killed, and the results compared.
#
#   tests/compose.sh            needs a Docker daemon, Compose (v2 or 1.29), root (or sudo) to kill, and .python/ (make test)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
work=$(mktemp -d)
chmod 755 "$work"
export DC_IMAGES_DIR=$work/images DC_PORT=${DC_PORT:-17070} COMPOSE_PROJECT_NAME=deepcluster-test-$$
stack() { "${compose[@]}" -f deploy/compose.cpu.yml "$@"; }
cli() { stack run --rm -T cli "$@"; }
say() { echo "== $*"; }
die() {
  echo "compose: $*" >&2
  stack logs --tail 40 >&2 || true
  exit 1
}
cleanup() {
  stack down -v --remove-orphans >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap cleanup EXIT
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)

say "images"
# In this order: what they share is built by the first.
for target in coordinator extractor clusterer trainer cli; do
  docker build -q -f deploy/Dockerfile --target "$target" -t "deepcluster/$target:cpu" . >/dev/null || die "the image $target does not build"
done
for target in coordinator cli; do
  ! docker run --rm --entrypoint /bin/sh "deepcluster/$target:cpu" -c 'ls /usr/local/lib/deepcluster /usr/lib/*/libopenblas* 2>/dev/null' | grep -q . ||
    die "the image $target carries libraries that it does not need"
done
for target in coordinator extractor clusterer trainer cli; do
  ! docker run --rm --entrypoint /bin/sh "deepcluster/$target:cpu" -c 'command -v python3 || command -v pip || command -v cc || command -v cargo' ||
    die "the image $target carries tools"
  [ "$(docker run --rm --entrypoint /usr/bin/id "deepcluster/$target:cpu" -u)" = 10001 ] || die "the image $target runs as another user"
done

say "300 pictures"
mkdir -m 777 "$DC_IMAGES_DIR"
docker run --rm -v "$DC_IMAGES_DIR:/out" deepcluster/cli:cpu demo-images /out --count 300 --size 64 --seed 3

say "up"
stack up -d
run_of() { python3 -c 'import json,sys; print(json.loads(sys.stdin.readline())[sys.argv[1]])' "$1"; }
flags=(--image-size 64 --k 10 --epochs 3 --batch 32 --seed 5 --shard-images 8 --device cpu)
first=$(cli submit . "${flags[@]}" --json | run_of run_id)
[ -n "$first" ] || die "no run was made"

containers() { stack ps -q "$1"; }
# Its process dies as by a crash; the container's restart policy brings it back.
crash() {
  local container
  container=$(containers "$1" | head -1)
  "${as_root[@]}" kill -9 "$(docker inspect -f '{{.State.Pid}}' "$container")"
  say "killed $1"
}
epochs_done() { cli show "$first" --json | run_of epochs_done; }
wait_for() {
  local what=$1
  shift
  for _ in $(seq 240); do
    if "$@"; then return; fi
    sleep 1
  done
  die "$what does not come"
}
# Extractors that have finished a shard.
n_used() {
  local n=0 container
  for container in $(containers extractor); do
    docker logs "$container" 2>&1 | grep -q 'shard extracted' && n=$((n + 1))
  done
  echo "$n"
}
three_used() { [ "$(n_used)" -ge 3 ]; }
came_further() { [ "$(epochs_done)" -gt "$1" ]; }
finished() { [ "$(cli show "$1" --json | run_of state)" = finished ]; }

say "three extractors"
stack up -d --no-recreate --scale extractor=3
wait_for "work for three extractors" three_used
crash extractor
crash trainer
before=$(epochs_done)
wait_for "another epoch" came_further "$before"
say "one extractor"
stack up -d --no-recreate --scale extractor=1
crash clusterer
crash coordinator
wait_for "the end of $first" finished "$first"

say "a Python client"
PYTHONPATH=.python python3 tests/system/submit.py "127.0.0.1:$DC_PORT" proto
second=$(cli runs --json | tail -1 | run_of run_id)
[ "$second" != "$first" ] || die "the Python client made no run"

say "results"
cli verify /volume || die "the volume is damaged"
labels() { cli labels "/volume/runs/$1"; }
labels "$first" >"$work/first.csv"
labels "$second" >"$work/second.csv"
[ "$(wc -l <"$work/first.csv")" -eq 301 ] || die "$first has no label for every image"
# Same spec, same threads: what was scaled and killed came to the same as what was left alone.
cmp "$work/first.csv" "$work/second.csv" || die "$first and $second differ"
faults=$(cli watch "$first" --json | grep -c '"event":"fault"' || true)
say "both runs agree; the first survived $faults faults"
