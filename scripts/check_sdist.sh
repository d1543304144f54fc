#!/bin/sh
# Builds the sdist, builds and installs a wheel from it in a fresh environment, and runs the package from an empty folder, as a
# user without the source tree would. The wheel must not name a folder of this machine or load a second OpenMP runtime.
#
#   scripts/check_sdist.sh
#
# PYTHON names the interpreter (default: .venv/bin/python, else python3). It must have torch, the package's dependencies and
# the build's: build, setuptools, wheel, pybind11, ninja, cmake. No network is needed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
case $PYTHON in
  */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

fail() {
  echo "check_sdist: $*" >&2
  exit 1
}

# step NAME COMMAND...: runs the command with its output in a log, shown only when it fails, and prints how long it took.
step() {
  name=$1
  shift
  started=$(date +%s)
  "$@" >"$work/log" 2>&1 || {
    tail -n 60 "$work/log" >&2
    fail "$name failed"
  }
  printf '%-40s %5d s\n' "$name" $(($(date +%s) - started))
}

# Without build products: they would hide what MANIFEST.in forgets.
mkdir "$work/source" "$work/dist" "$work/empty"
(cd "$root" && tar -cf - --exclude=./build --exclude=./dist --exclude=./.git --exclude=./.venv --exclude='./.*_cache' --exclude='*.so' \
  --exclude='__pycache__' --exclude='*.egg-info' .) | tar -xf - -C "$work/source"
cd "$work/empty" # elsewhere, a folder named build or persimmon_ext would be imported
step "build the sdist" "$PYTHON" -m build --sdist --no-isolation --outdir "$work/dist" "$work/source"
rm -r "$work/source"

# The fresh environment borrows the packages that $PYTHON sees. (--system-site-packages would show those of the interpreter
# beneath a virtual environment.) An installed persimmon_ext among them is hidden by this environment's own.
step "make an environment" "$PYTHON" -m venv "$work/env"
env_python=$work/env/bin/python
packages=$("$env_python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$PYTHON" -c 'import sys; print(*(p for p in sys.path if p.endswith("-packages")), sep="\n")' >"$packages/borrowed.pth"
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH # cmake and ninja are there
export PATH

# `pip install` of an sdist does these two steps; apart, the wheel can be looked into.
step "build a wheel from the sdist" "$env_python" -m pip wheel --no-build-isolation --no-deps --no-index \
  --wheel-dir "$work/dist" "$work"/dist/*.tar.gz
step "install it" "$env_python" -m pip install --no-deps --no-index --ignore-installed "$work"/dist/*.whl

cat >"$work/check.py" <<'PYTHON'
import pathlib
import sys

import torch

import persimmon_ext

where = pathlib.Path(persimmon_ext.__file__).resolve()
if pathlib.Path(sys.prefix).resolve() not in where.parents:
    sys.exit(f"{where} was imported, which is not what was installed")
x = torch.randn(3, 64)
ours = persimmon_ext.ops.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-5)
torch.testing.assert_close(ours, torch.nn.functional.layer_norm(x, (64,)))
PYTHON
step "import it and run an op" "$env_python" "$work/check.py"
step "python -m persimmon_ext info" "$env_python" -m persimmon_ext info
step "persimmon-ext generate" sh -c '"$0" generate --max-new-tokens 8 "def main():" >text' "$work/env/bin/persimmon-ext"
[ -s text ] || fail "persimmon-ext generate printed nothing"

"$env_python" -m zipfile -e "$work"/dist/*.whl "$work/wheel"
set -- "$work"/wheel/persimmon_ext/_C.*.so
[ -f "$1" ] || fail "the wheel has no persimmon_ext/_C.*.so"
readelf -d "$1" >"$work/dynamic"
if grep -E '\((RPATH|RUNPATH)\)' "$work/dynamic" | grep -E '(\[|:)/'; then
  fail "the wheel's module looks for libraries in a folder of this machine"
fi
if grep -E 'NEEDED.*(libgomp|libomp|libiomp)' "$work/dynamic"; then
  fail "the wheel's module loads an OpenMP runtime beside the one that torch brings"
fi
for file in py.typed _C.pyi $(cd "$root" && find persimmon_ext/assets -type f ! -name '*.pyc' | sed 's|^persimmon_ext/||'); do
  cmp -s "$root/persimmon_ext/$file" "$work/wheel/persimmon_ext/$file" || fail "the wheel lacks persimmon_ext/$file"
done
[ ! -e "$work/wheel/build_support" ] && [ ! -e "$work/wheel/tests" ] || fail "the wheel installs folders beside persimmon_ext"
du -k "$work"/dist/* | sed "s|$work/dist/||"
echo "check_sdist: passed"
