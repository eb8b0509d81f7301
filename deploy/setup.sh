#!/usr/bin/env bash
# Installs what the build needs and is not there yet: Debian packages (cmake, nasm, OpenBLAS) and libtorch from PyPI.
# Safe to run again: what is there stays as it is. The Dockerfile runs the same script.
#
#   deploy/setup.sh [--libtorch DIR] [--no-debian] [--tests]
#
#   --libtorch DIR   where libtorch goes (default: .libtorch beside Cargo.toml)
#   --no-debian      leave the Debian packages to somebody else
#   --tests          also what tests alone need: a browser to look at pages with, and programs that write odd JPEGs and TIFFs
set -euo pipefail

TORCH=2.11.0 # the release that tch 0.24 binds
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
libtorch=$here/.libtorch
debian=yes
packages=(cmake libopenblas-dev g++ make nasm)
while [ $# -gt 0 ]; do
  case $1 in
    --libtorch) libtorch=$2; shift 2 ;;
    --no-debian) debian=no; shift ;;
    --tests) packages+=(chromium chromium-driver libjpeg-turbo-progs libtiff-tools); shift ;;
    *) echo "setup: unknown option $1" >&2; exit 2 ;;
  esac
done
die() { echo "setup: $*" >&2; exit 1; }

install_debian_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || [ -t 0 ] || die "missing Debian packages: ${missing[*]}; install them with: apt-get install ${missing[*]}"
    command -v sudo >/dev/null || die "missing Debian packages: ${missing[*]}; install them as root with: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  echo "setup: installing Debian packages: ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null ||
    die "could not fetch the list of Debian packages; still missing: ${missing[*]}"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null ||
    die "could not install Debian packages: ${missing[*]}"
}

# libtorch_cpu.so needs, beside libc10.so, only two small CUDA libraries; with them the wheel is a libtorch for the CPU
# without the three gigabytes of CUDA that a GPU needs (those are loaded at run time, where they are installed).
install_libtorch() {
  [ "$(cat "$libtorch/build-version" 2>/dev/null)" = "$TORCH" ] && return
  command -v python3 >/dev/null || die "python3 with pip is needed to fetch libtorch from PyPI"
  python3 -m pip --version >/dev/null 2>&1 || die "pip is missing: install the Debian package python3-pip"
  echo "setup: fetching libtorch $TORCH from PyPI"
  local fresh
  fresh=$(mktemp -d "$libtorch.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 -d "$fresh/wheels" "torch==$TORCH"
  python3 -m pip download -q --no-deps --only-binary=:all: --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
    -d "$fresh/wheels" 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*'
  python3 - "$fresh" <<'PYTHON'
"""Unpacks the C++ half of the wheels into include/ and lib/."""
import pathlib, sys, zipfile

root = pathlib.Path(sys.argv[1])
(root / "lib").mkdir()
libraries = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
for wheel in sorted((root / "wheels").iterdir()):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = pathlib.PurePosixPath(name)
            if path.name in libraries:
                (root / "lib" / path.name).write_bytes(archive.read(name))
            elif name.startswith("torch/include/") and not name.endswith("/"):
                target = root / path.relative_to("torch")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    wheel.unlink()
# What the linker is told to link as `torch` is the CPU half alone.
(root / "lib" / "libtorch.so").write_text("INPUT(libtorch_cpu.so)\n")
missing = libraries - {p.name for p in (root / "lib").iterdir()}
if missing:
    sys.exit(f"setup: the wheels lack {', '.join(sorted(missing))}")
PYTHON
  rmdir "$fresh/wheels"
  echo "$TORCH" >"$fresh/build-version"
  rm -rf "$libtorch"
  mv "$fresh" "$libtorch"
  chmod 755 "$libtorch"
  trap - EXIT
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "only Linux on x86-64 is supported, this is $(uname -s) on $(uname -m)"
[ "$debian" = no ] || install_debian_packages
install_libtorch
