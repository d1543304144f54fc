#!/usr/bin/env bash
# Builds, checks and measures the project on a machine with a CUDA GPU, within nine minutes and without the network.
#
#   scripts/gpu_check.sh [--dry-run] [PYTHON]     (default: python3; it must have a CUDA build of torch, and what the
#                                                  tests import)
#
# Ends with a table of the steps; status 1 where one failed. With OUT set, the table, the steps' logs in one file and the
# benchmarks' JSON files are left in that folder. --dry-run looks at the interpreter and the toolkit, and prints the steps
# with their time limits; it needs no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
dry_run=0
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
python=${1:-python3}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
: >"$out/steps.log"
deadline=$(($(date +%s) + 510))  # looking at the interpreter and the toolkit counts too
table=() failed=0

# row NAME VERDICT: of the table, which is printed as it grows and again at the end.
row() {
  table+=("$(printf '%-30s %s' "$1" "$2")")
  echo "${table[-1]}"
}

# finish STATUS: the whole table, and the end.
finish() {
  echo
  printf '%s\n' "${table[@]}" | tee "$out/table.txt"
  exit "$1"
}

# step SECONDS NAME COMMAND...: at most so long, and not beyond the deadline. The limits of the steps up to the benchmarks
# add up to 20 s less than the deadline, which what is in front of them takes: none can take another's time.
step() {
  local limit=$1 name=$2 started status left verdict
  shift 2
  if [ "$dry_run" = 1 ]; then
    row "$name" "$(printf 'at most %4d s: %s' "$limit" "$*")"
    return 0
  fi
  started=$(date +%s)
  left=$((deadline - started))
  if [ "$left" -lt 10 ]; then
    row "$name" "no time"
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  printf '\n==== %s: %s\n' "$name" "$*" >>"$out/steps.log"
  timeout -k 5 "$limit" "$@" >>"$out/steps.log" 2>&1 </dev/null
  status=$?
  case $status in 0) verdict=passed ;; 124 | 137) verdict="over ${limit} s" ;; *) verdict="failed ($status)" ;; esac
  row "$name" "$(printf '%-14s %4d s' "$verdict" $(($(date +%s) - started)))"
  [ "$status" -eq 0 ] && return 0
  failed=1
  tail -n 25 "$out/steps.log"
  return "$status"
}

# Prints the architecture to compile for: the GPU's own alone, with its architecture-specific instructions where it has any.
architecture() {
  "$python" - "$dry_run" <<'EOP'
import importlib.util
import sys

needed = ["torch", "numpy", "pybind11", "setuptools", "pytest", "hypothesis", "transformers", "safetensors", "sentencepiece", "tqdm"]
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu_check: {sys.executable} has no {', no '.join(missing)}, and nothing is downloaded here.")
import torch

if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
elif sys.argv[1] == "1":
    major, minor = 9, 0
else:
    sys.exit(f"gpu_check: the torch {torch.__version__} of {sys.executable} finds no CUDA GPU.")
print(f"{major}.{minor}" + ("a" if major >= 9 else ""))
EOP
}

TORCH_CUDA_ARCH_LIST=$(architecture) || exit 1
# The toolkit that the build takes serves the kernels' own tests too.
CUDA_HOME=$("$python" -c 'from build_support import cuda
try:
    print(cuda.find_toolkit())
except cuda.CudaUnavailableError as reason:
    raise SystemExit(f"gpu_check: {reason}")') || exit 1
export TORCH_CUDA_ARCH_LIST CUDA_HOME PERSIMMON_EXT_CUDA=1
export PATH="$CUDA_HOME/bin:$PATH" HF_HUB_OFFLINE=1 PIP_NO_INDEX=1 PYTHONUNBUFFERED=1
echo "$("$python" -c 'import sys, torch; print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")'), $CUDA_HOME"

benchmark() { step "$1" "benchmarks: $3" "$python" -m "benchmarks.$2" --device cuda --json "$out/$3.json" "${@:4}"; }

step 215 "build for $TORCH_CUDA_ARCH_LIST" "$python" setup.py -q build_ext --inplace || finish 1
# Those files alone, so that no other test's needs are imported.
mapfile -t tests < <(grep -lE '^(pytestmark|@pytest|DEVICES)\b.*mark\.gpu\b|^from .*\bDEVICES\b' tests/test_*.py)
[ ${#tests[@]} -gt 0 ] || { echo "gpu_check: no test file has the marker gpu." >&2; exit 1; }
step 100 "tests that need a GPU" "$python" -m pytest -q -m gpu "${tests[@]}"
benchmark 100 kernels kernels --seconds 0.4 --budget 75 --context 4096 16384
benchmark 45 decode decode --context 512
benchmark 30 prefill prefill --tokens 2048
step 30 "generation's loop" "$python" -m pytest -q tests/test_generation_gpu_loop.py
step 150 "kernels' own tests" scripts/test_kernels_on_gpu.sh
sanitizer=$(command -v compute-sanitizer)
if [ -n "$sanitizer" ] || [ "$dry_run" = 1 ]; then
  # Uncached allocations: an overrun inside one of the allocator's blocks would not be seen.
  for tool in memcheck racecheck; do
    step 60 "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer:-compute-sanitizer}" --tool "$tool" \
      --error-exitcode 9 "$python" -m pytest -q tests/test_device_ops.py \
      -k "test_accurate and cuda and dtype0 and (norm or attention or linear or sample) and not backward"
  done
else
  row "memcheck, racecheck" "no compute-sanitizer in the toolkit"
  failed=1
fi
# torch.compile takes seconds a case, so it meets a few of them, where time is left.
if [ $((deadline - $(date +%s))) -gt 60 ]; then
  benchmark 120 kernels kernels-compile --compile --seconds 0.4 --budget 80 --rows 1 --tokens 2048 --context 4096 \
    --only layer_norm add_layer_norm qk_norm_rope attention decode_attention_ linear relu2 sample
fi

results=()
for file in "$out"/*.json; do [ ! -s "$file" ] || results+=("$file"); done
[ "${#results[@]}" -eq 0 ] || timeout 20 "$python" -m benchmarks.report "${results[@]}" || failed=1
finish "$failed"
