#!/usr/bin/env bash
# setup_env.sh FOLDER EXTRAS: makes a virtual environment with persimmon_ext built in it (editable).
#
# A torch that $PYTHON can already import is used as it is; otherwise the version in constraints.txt is installed.
# EXTRAS names optional dependencies of pyproject.toml ("test", "lint"), separated by commas.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2 python=${PYTHON:-python3}

say() { printf 'persimmon_ext: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

command -v "$python" >/dev/null || die "$python is not installed; set PYTHON to a Python from 3.10 to 3.13."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' ||
  die "$("$python" --version) is too old; set PYTHON to a Python from 3.10 to 3.13."
command -v g++ >/dev/null || die "g++ is not installed (Debian: apt-get install g++)."
"$python" - <<'EOF' || die "Python's headers are not installed (Debian: apt-get install python3-dev)."
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())
EOF

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # none yet, or one whose making was interrupted
  rm -rf "$venv"
  site=()
  if "$python" -c 'import torch, sys; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; then
    say "using the installed torch $("$python" -c 'import torch; print(torch.__version__)')"
    site=(--system-site-packages)
  fi
  "$python" -m venv "${site[@]}" "$venv" || die "python -m venv failed (Debian: apt-get install python3-venv)."
fi
pip() { "$venv/bin/python" -m pip "$@"; }

"$venv/bin/python" -c 'import torch' 2>/dev/null || { say "installing torch"; pip install -q -c constraints.txt torch; }
pip install -q -c constraints.txt setuptools wheel pybind11 ninja cmake
say "building (the first time takes a few minutes)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! pip install -v -c constraints.txt --no-build-isolation -e ".${extras:+[$extras]}" >"$log" 2>&1; then
  tail -n 60 "$log" >&2
  die "the build failed; the end of its output is above."
fi
grep -h 'persimmon_ext: ' "$log" | sed 's/^ *//' >&2 || true
