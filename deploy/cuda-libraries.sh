#!/usr/bin/env bash
# Fetches libtorch's CUDA half and everything that it loads from PyPI into a folder: some gigabytes.
#
#   deploy/cuda-libraries.sh DIR
set -euo pipefail

TORCH=2.11.0 # as in setup.sh
to=${1:?usage: deploy/cuda-libraries.sh DIR}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
# Its dependencies for CUDA 13 come with it; those in Python are not needed.
python3 -m pip download -q --no-cache-dir --only-binary=:all: -d "$fresh" "torch==$TORCH"
python3 - "$fresh" "$to" <<'PYTHON'
"""Unpacks the shared libraries of all wheels into one folder."""
import pathlib, shutil, sys, zipfile

wheels, to = map(pathlib.Path, sys.argv[1:])
# What the CPU half has is there already, and the Python bindings are nobody's here.
left_out = {"libtorch_cpu.so", "libc10.so", "libtorch.so", "libtorch_python.so", "libshm.so"}
for wheel in sorted(wheels.glob("*.whl")):
    if not wheel.name.startswith(("torch-", "nvidia_", "nvidia-")):
        continue
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = pathlib.PurePosixPath(name)
            if path.parent.name == "lib" and ".so" in path.name and path.name not in left_out:
                with archive.open(name) as source, open(to / path.name, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()
if not (to / "libtorch_cuda.so").exists():
    sys.exit("cuda-libraries: the wheels lack libtorch_cuda.so")
PYTHON
