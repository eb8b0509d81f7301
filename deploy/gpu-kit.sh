#!/usr/bin/env bash
# A folder that checks the whole system on a machine with a GPU, on which nothing can be built or fetched:
#
#   deploy/gpu-kit.sh DIR [--photos FOLDER]      here, without a GPU: builds the programs and packs DIR, at most 60 MiB
#   DIR/check.sh                                 there: needs python3 with torch 2.11, takes at most 8 minutes
#
#   --photos FOLDER   up to 200 photographs for the rates; without it, pictures are drawn there
#
# DIR holds the programs (programs.tar.xz, with the libraries that such a machine may lack), PyTorch's answers (parity/), the
# PyTorch program to compare with (peer/), and check.sh. The clusterer is built for the CPU: faiss's GPU half does not fit, and
# check.sh says so.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

MOST_MIB=60
[ $# -ge 1 ] || { sed -n '2,12p' "$0" >&2; exit 2; }
kit=$(realpath -m "$1") photos=""
shift
while [ $# -gt 0 ]; do
  case $1 in
    --photos) photos=$(realpath "$2"); shift 2 ;;
    *) echo "gpu-kit: unknown option $1" >&2; exit 2 ;;
  esac
done
die() { echo "gpu-kit: $*" >&2; exit 1; }
[ ! -e "$kit" ] || [ -z "$(ls -A "$kit")" ] || [ -f "$kit/check.sh" ] || die "$kit is there, and is no kit of ours"
cd "$root"

# The test programs whose answers are PyTorch's and faiss's, by the folders of their crates.
test_program() { # CRATE
  cargo test --release --workspace --test parity --no-run --message-format=json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and f"/crates/{sys.argv[1]}/" in message["target"]["src_path"]:
        print(message["executable"])' "$1"
}

make -s build
mkdir -p "$kit"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/programs" "$work/programs/lib"
for program in deepcluster deepcluster-coordinator deepcluster-extractor deepcluster-clusterer deepcluster-trainer; do
  cp "target/release/$program" "$work/programs/"
done
for crate in network clustering; do
  program=$(test_program "$crate")
  [ -n "$program" ] || die "the test program parity of crates/$crate was not built"
  cp "$program" "$work/programs/parity-$crate"
done
strip "$work"/programs/deepcluster* "$work"/programs/parity-*
# OpenBLAS, which is installed where the build was, and what it needs of Fortran.
for library in $(ldd target/release/deepcluster-clusterer | awk '/blas|gfortran|quadmath/ { print $3 }'); do
  cp -L "$library" "$work/programs/lib/"
done
tar -C "$work" -cf - programs | xz -T0 -6 >"$kit/programs.tar.xz"

rm -rf "$kit/parity" "$kit/peer" "$kit/photos"
cp -r tests/parity "$kit/parity"
cp -r crates/bench/peer "$kit/peer"
cp deploy/gpu-kit/check.sh deploy/gpu-kit/*.py "$kit/"
if [ -n "$photos" ]; then
  mkdir "$kit/photos"
  find "$photos" -type f \( -iname '*.jpg' -o -iname '*.jpeg' \) | sort | sed -n 1,200p | while read -r photo; do cp "$photo" "$kit/photos/"; done
fi
mib=$(($(du -sk "$kit" | cut -f1) / 1024))
[ "$mib" -le "$MOST_MIB" ] || die "$kit has $mib MiB, more than $MOST_MIB"
echo "gpu-kit: $kit has $mib MiB; run $kit/check.sh on the machine with the GPU"
