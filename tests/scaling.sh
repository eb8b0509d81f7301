#!/usr/bin/env bash
# How much more two extractors do than one, each pinned to a core of its own: the ratio of the times that they need for the
# features of the same 3,000 pictures, one after the other, three times.
#
#   tests/scaling.sh            needs two cores, the built programs, and taskset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

programs=$PWD/target/release
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT
"$programs/deepcluster" demo-images "$work/images" --count 3000 --size 64 --seed 2 >/dev/null

service() { # KIND PORT FLAGS…
  local kind=$1 port=$2
  shift 2
  "$programs/deepcluster-$kind" --volume "$volume" --images "$work" --listen "127.0.0.1:$port" "$@" 2>/dev/null &
}
seconds() { # N: what the extraction of an epoch takes with N extractors
  volume=$work/volume-$1-$RANDOM
  mkdir "$volume"
  local extractors="" core
  for core in $(seq 0 $(($1 - 1))); do
    taskset -c "$core" "$programs/deepcluster-extractor" --volume "$volume" --images "$work" --threads 1 \
      --listen "127.0.0.1:$((18100 + core))" 2>/dev/null &
    extractors+=,127.0.0.1:$((18100 + core))
  done
  service clusterer 18122
  service trainer 18123
  service coordinator 18120 --extractors "${extractors#,}" --clusterer 127.0.0.1:18122 --trainer 127.0.0.1:18123
  export DC_SERVER=http://127.0.0.1:18120
  "$programs/deepcluster" submit images --image-size 64 --k 10 --epochs 1 --batch 64 --shard-images 50 --device cpu >/dev/null
  "$programs/deepcluster" watch --json | sed -n 's/.*"extract_s":\([0-9.]*\).*/\1/p'
  kill $(jobs -p)
  wait || true
}
for _ in 1 2 3; do
  one=$(seconds 1)
  two=$(seconds 2)
  awk -v one="$one" -v two="$two" 'BEGIN { printf "1 extractor %.2f s, 2 extractors %.2f s: %.2f times the work\n", one, two, one / two }'
done
