#!/bin/sh
# Builds the whole extension against a CUDA build of torch, in an environment of its own, and checks that it imports and that
# its CUDA kernels are registered. Needs a CUDA toolkit and the network (or pip's cache); no GPU. Takes about 12 GB of disk.
#
#   scripts/check_cuda_build.sh [--env DIR] [--torch VERSION]
#
#   --env DIR        create the environment in DIR, or use the one that is there, and keep it (default: a temporary folder)
#   --torch VERSION  torch from the package index (default: the oldest that is supported); its plain Linux wheel has CUDA
#
# MAX_JOBS and TORCH_CUDA_ARCH_LIST go to the build. PYTHON chooses the interpreter (default: python3).
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

torch=2.11.0
environment=
while [ $# -gt 0 ]; do
  case $1 in
    --env | --torch)
      if [ $# -lt 2 ]; then
        echo "check_cuda_build: $1 needs a value" >&2
        exit 2
      fi
      if [ "$1" = --env ]; then environment=$2; else torch=$2; fi
      shift 2
      ;;
    *)
      echo "usage: scripts/check_cuda_build.sh [--env DIR] [--torch VERSION]" >&2
      exit 2
      ;;
  esac
done
if [ ! -f "$root/setup.py" ]; then
  echo "check_cuda_build: there is no setup.py in $root" >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM
[ -n "$environment" ] || environment=$work/env

# step NAME COMMAND...: runs the command with its output in a log, shown only when it fails, and prints how long it took.
step() {
  name=$1
  shift
  started=$(date +%s)
  if ! "$@" >"$work/log" 2>&1; then
    tail -n 60 "$work/log" >&2
    echo "check_cuda_build: $name failed after $(($(date +%s) - started)) s" >&2
    exit 1
  fi
  printf '%-32s %5d s\n' "$name" $(($(date +%s) - started))
}

python=$environment/bin/python
installed_torch() { "$python" -c 'import torch; print(torch.__version__.split("+")[0], torch.version.cuda)' 2>/dev/null; }

if [ ! -x "$python" ]; then
  step "create the environment" "${PYTHON:-python3}" -m venv "$environment"
fi
# No installed CUDA build of that version: get it. Settings of this machine that offer other wheels are left aside.
if ! installed_torch | grep -q "^$torch [0-9]"; then
  free_kib=$(df -Pk "$environment" | awk 'NR == 2 { print $4 }')
  if [ "$free_kib" -lt $((12 * 1024 * 1024)) ]; then
    echo "check_cuda_build: $environment has $((free_kib / 1024 / 1024)) GiB free, and a CUDA build of torch needs 12" >&2
    exit 1
  fi
  step "install torch $torch" env -u PIP_FIND_LINKS -u PIP_CONSTRAINT "$python" -m pip install --quiet "torch==$torch"
  if ! installed_torch | grep -q "^$torch [0-9]"; then
    echo "check_cuda_build: pip brought no CUDA build of torch $torch, but: $(installed_torch)" >&2
    exit 1
  fi
fi
step "install the build requirements" "$python" -m pip install --quiet "setuptools>=77" wheel "pybind11>=2.13" ninja \
  "cmake>=3.22" numpy

# A copy without build products, so that the working tree's build folder is neither used nor changed.
mkdir "$work/source"
(cd "$root" && tar -cf - --exclude=./build --exclude=./dist --exclude=./.git --exclude=./.venv --exclude='*.so' \
  --exclude='__pycache__' --exclude='*.egg-info' .) | tar -xf - -C "$work/source"
step "build and install" env PERSIMMON_EXT_CUDA=1 "$python" -m pip install --no-build-isolation --force-reinstall --no-deps \
  "$work/source"
# What the package needs at run time, without what torch brought.
step "install the dependencies" "$python" -m pip install --quiet sentencepiece safetensors tqdm

cat >"$work/check.py" <<'PYTHON'
"""Run from an empty folder: the installed package, not the source tree, is what gets imported."""

import json
import re
import subprocess
import sys

import torch

import persimmon_ext

OPS = sys.argv[1:]
for op in OPS:
    name = f"persimmon_ext::{op}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"):
        sys.exit(f"{name} has no kernel for the dispatch key CUDA")
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):
        sys.exit(f"{name} has no kernel for the dispatch key CPU")
x = torch.randn(3, 64)
ours = torch.ops.persimmon_ext.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-5)
torch.testing.assert_close(ours, torch.nn.functional.layer_norm(x, (64,)))

run = subprocess.run([sys.executable, "-m", "persimmon_ext", "info", "--json"], capture_output=True, text=True)
if run.returncode != 0:
    sys.exit(f"`python -m persimmon_ext info --json` failed: {run.stderr or run.stdout}")
text = json.dumps(json.loads(run.stdout))
for architecture in re.split(r"[;, ]", persimmon_ext._C.cuda_architectures):
    if not architecture or architecture not in text:
        sys.exit(f"info does not list the compiled CUDA architecture {architecture!r}: {text}")
print("torch", torch.__version__, "| CUDA", persimmon_ext._C.cuda_version, "for", persimmon_ext._C.cuda_architectures)
print("registered for CUDA:", ", ".join(OPS))
PYTHON
ops=$(sed -n 's/.*m\.impl("\([a-z0-9_]*\)".*/\1/p' "$root"/csrc/cuda/bindings/*.cpp)
mkdir "$work/empty"
cd "$work/empty"
# shellcheck disable=SC2086 # one word an op
step "import and check" "$python" "$work/check.py" $ops
cat "$work/log"
echo "check_cuda_build: passed"
