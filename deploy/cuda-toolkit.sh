#!/usr/bin/env bash
# Fetches what faiss needs to be compiled for GPUs (nvcc, headers, libraries) from PyPI into a folder, as CUDA_PATH wants it: a
# gigabyte.
#
#   deploy/cuda-toolkit.sh DIR
set -euo pipefail

CUDA=13.0.2 # what libtorch is built for as well
to=${1:?usage: deploy/cuda-toolkit.sh DIR}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
python3 -m pip install -q --no-cache-dir --root-user-action=ignore --only-binary=:all: --target "$fresh" \
  "cuda-toolkit[nvcc,cudart,cublas,cccl,curand,crt,nvvm]==$CUDA" 'nvidia-cuda-profiler-api==13.0.*'
mkdir -p "$to"
mv "$fresh"/nvidia/cu13/* "$to"
# Linkers look for names without versions, and faiss' build for them in lib64.
ln -s lib "$to/lib64"
for library in "$to"/lib/lib*.so.*; do
  ln -s "$(basename "$library")" "${library%%.so.*}.so"
done
"$to/bin/nvcc" --version | tail -1
