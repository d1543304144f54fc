#!/bin/sh
# Compiles the CUDA kernels' tests, and those of the instruction wrappers, with nvcc and runs them on this machine's GPU, first
# plainly, then under compute-sanitizer where it is installed. Needs no torch and no network.
#
#   scripts/test_kernels_on_gpu.sh                  on the GPU that is there
#   scripts/test_kernels_on_gpu.sh --compile 90a    only compiles, for that architecture; needs no GPU
set -eu
cd "$(dirname "$0")/.."

nvcc=${CUDA_HOME:+$CUDA_HOME/bin/}nvcc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

if [ "${1:-}" = --compile ]; then
  architecture=${2:?"--compile needs an architecture such as 90a"}
  run=0
else
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  architecture=$capability
  [ "$capability" = 90 ] && architecture=90a
  run=1
fi

# compile NAME SOURCE...
compile() {
  name=$1
  shift
  "$nvcc" -std=c++20 -O2 -x cu -Icsrc -Itests/cuda_kernels -gencode "arch=compute_$architecture,code=sm_$architecture" \
    "$@" -o "$work/$name"
}
# check NAME ARGUMENT...: plainly, then with the sanitizer's two tools.
check() {
  [ "$run" = 1 ] || return 0
  program=$work/$1
  shift
  "$program" "$@" || failed=1
  command -v compute-sanitizer >/dev/null 2>&1 || return 0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 3 "$program" "$@" >"$work/log" 2>&1 || { cat "$work/log"; failed=1; }
  done
}

failed=0
for part in async hopper; do
  [ "$part" = hopper ] && [ "$architecture" != 90a ] && continue
  compile "emulator_$part" "tests/cuda_kernels/emulator_${part}_test.cpp"
  check "emulator_$part"
done
for kernel in csrc/cuda/*.cu; do
  op=$(basename "$kernel" .cu)
  case $op in *_hopper) [ "$architecture" = 90a ] || continue ;; esac
  compile "$op" "tests/cuda_kernels/${op}_test.cpp" "$kernel"
  for case in $(sed -n 's|^// Cases: ||p' "tests/cuda_kernels/${op}_test.cpp"); do
    echo "$op $case"
    check "$op" "$case" 1
  done
done
[ "$failed" = 0 ] && echo "test_kernels_on_gpu: passed$([ "$run" = 1 ] || echo ' (compiled only)')"
exit "$failed"
