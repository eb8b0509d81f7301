#!/usr/bin/env bash
# Checks the system on this machine's GPU, the most important first, and prints one table; results.json has the same.
#
#   check.sh            DEVICE=cuda:0 by default; DEVICE=cpu tries the kit where there is no GPU
#   SMALL=1 check.sh    small numbers: whether it works, not how fast
#   OUT=DIR check.sh    where results.json goes; the folder of the kit otherwise
#
# Needs a python3 with torch 2.11, whose libraries the programs use (PYTHON names another). Builds nothing.
set -euo pipefail
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# LIBTORCH names a libtorch where python has no torch.
libraries=$("$python" - <<'PYTHON'
import importlib.util, os, pathlib
found = importlib.util.find_spec("torch")
folders = []
if os.environ.get("LIBTORCH"):
    folders.append(pathlib.Path(os.environ["LIBTORCH"]) / "lib")
elif found:
    torch = pathlib.Path(found.origin).parent
    folders = [torch / "lib", *sorted((torch.parent / "nvidia").glob("*/lib"))]
print(":".join(str(folder) for folder in folders))
PYTHON
)
[ -n "$libraries" ] || { echo "check: $python has no torch, and LIBTORCH is not set" >&2; exit 2; }
"$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$kit/programs.tar.xz" "$work"
export LD_LIBRARY_PATH=$libraries:$work/programs/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
KIT=$kit WORK=$work PROGRAMS=$work/programs OUT=${OUT:-$kit} DEVICE=${DEVICE:-cuda:0} SMALL=${SMALL:-} \
  "$python" "$kit/check.py"
