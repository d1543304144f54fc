#!/usr/bin/env bash
# Builds, checks and measures the project on a machine with a CUDA GPU, within nine minutes and without the network.
#
#   scripts/gpu_check.sh [PYTHON]        (default: python3; it must have a CUDA build of torch, and what the tests import)
#
# Ends with a table of the steps; status 1 where one failed. With OUT set, the steps' logs in one file and the benchmarks'
# JSON files are left in that folder.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
: >"$out/steps.log"
deadline=$(($(date +%s) + 530))
table=() failed=0

# step SECONDS NAME COMMAND...: at most so long, and not beyond the deadline.
step() {
  local limit=$1 name=$2 started status left
  shift 2
  started=$(date +%s)
  left=$((deadline - started))
  if [ "$left" -lt 10 ]; then
    table+=("$(printf '%-28s %-10s' "$name" "no time")")
    failed=1
    return 1
  fi
  [ "$limit" -lt "$left" ] || limit=$left
  printf '\n==== %s: %s\n' "$name" "$*" >>"$out/steps.log"
  timeout -k 5 "$limit" "$@" >>"$out/steps.log" 2>&1
  status=$?
  case $status in 0) verdict=passed ;; 124 | 137) verdict="over ${limit} s" ;; *) verdict="failed ($status)" ;; esac
  [ "$status" -eq 0 ] || failed=1
  table+=("$(printf '%-28s %-14s %4d s' "$name" "$verdict" $(($(date +%s) - started)))")
  echo "${table[-1]}"
  [ "$status" -eq 0 ] || tail -n 25 "$out/steps.log"
  return "$status"
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "gpu_check: $python has no torch that finds a CUDA GPU." >&2
  exit 1
}
# The GPU's own architecture alone is compiled, with its architecture-specific instructions where it has any.
capability=$("$python" -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + ("a" if major >= 9 else ""))')
export TORCH_CUDA_ARCH_LIST=$capability PERSIMMON_EXT_CUDA=1
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

step 240 "build for $TORCH_CUDA_ARCH_LIST" "$python" setup.py -q build_ext --inplace || exit 1
step 120 "ops" "$python" -m pytest -q tests/test_device_ops.py -k "cuda or stream or graph"
step 60 "model" "$python" -m pytest -q tests/test_device_model.py -k cuda
step 120 "kernels' own tests" scripts/test_kernels_on_gpu.sh
step 150 "benchmarks.kernels" "$python" -m benchmarks.kernels --device cuda --seconds 0.4 --context 4096 16384 \
  --json "$out/kernels.json"
step 60 "benchmarks.decode" "$python" -m benchmarks.decode --device cuda --context 512 --json "$out/decode.json"
step 60 "benchmarks.prefill" "$python" -m benchmarks.prefill --device cuda --tokens 2048 --json "$out/prefill.json"
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ -x "$sanitizer" ]; then
  # Uncached allocations: an overrun inside one of the allocator's blocks would not be seen.
  for tool in memcheck racecheck; do
    step 90 "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
      "$python" -m pytest -q tests/test_device_ops.py -k "test_accurate and cuda and dtype0"
  done
else
  table+=("memcheck, racecheck          no compute-sanitizer in the toolkit")
  failed=1
fi
# torch.compile takes seconds a case, so it meets a few of them, where time is left.
if [ $((deadline - $(date +%s))) -gt 60 ]; then
  step 120 "benchmarks.kernels --compile" "$python" -m benchmarks.kernels --device cuda --compile --seconds 0.4 --rows 1 \
    --tokens 2048 --context 4096 --only layer_norm add_layer_norm qk_norm_rope attention decode_attention_ linear relu2 sample \
    --json "$out/kernels-compile.json"
fi

[ ! -f "$out/kernels.json" ] || "$python" -m benchmarks.report "$out"/*.json
echo
printf '%s\n' "${table[@]}"
exit "$failed"
