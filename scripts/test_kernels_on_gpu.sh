#!/bin/sh
# Compiles the CUDA kernels' tests, and those of the instruction wrappers, with nvcc and runs them on this machine's GPU. Needs
# no torch and no network.
#
#   scripts/test_kernels_on_gpu.sh                  on the GPU that is there
#   scripts/test_kernels_on_gpu.sh --sanitize       then also under compute-sanitizer's memcheck and racecheck
#   scripts/test_kernels_on_gpu.sh --compile 90a    only compiles the tests, for that architecture; needs no GPU
#
# MAX_JOBS bounds the compilers that run at once (default: all cores). CUDA_HOME chooses the toolkit (default: the one of the
# nvcc on PATH, then /usr/local/cuda). ALLOW_NO_NVCC=1 turns a missing toolkit into a message.
set -eu
cd "$(dirname "$0")/.."

if [ -n "${CUDA_HOME:-}" ]; then
  nvcc=$CUDA_HOME/bin/nvcc
else
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
fi
if [ ! -x "$nvcc" ]; then
  echo "nvcc not found: kernels' tests skipped (looked for '$nvcc'; CUDA_HOME names the toolkit)"
  [ "${ALLOW_NO_NVCC:-0}" = 1 ] && exit 0
  echo "ALLOW_NO_NVCC=1 accepts that" >&2
  exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

sanitize=0
if [ "${1:-}" = --sanitize ]; then
  sanitize=1
  if ! command -v compute-sanitizer >/dev/null 2>&1; then
    echo "test_kernels_on_gpu: --sanitize needs compute-sanitizer on PATH" >&2
    exit 1
  fi
fi
if [ "${1:-}" = --compile ]; then
  architecture=${2:?"--compile needs an architecture such as 90a"}
  run=0
else
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  architecture=$capability
  [ "$capability" = 90 ] && architecture=90a
  run=1
fi

# The tests, a line "NAME SOURCE" each; those of Hopper's instructions need its architecture.
for part in async grid hopper; do
  [ "$part" = hopper ] && [ "$architecture" != 90a ] && continue
  echo "emulator_$part tests/cuda_kernels/emulator_${part}_test.cpp"
done >"$work/tests"
for kernel in csrc/cuda/*.cu; do
  op=$(basename "$kernel" .cu)
  echo "kernel_$op $kernel" >>"$work/kernels"
  case $op in *_hopper) [ "$architecture" = 90a ] || continue ;; esac
  echo "$op tests/cuda_kernels/${op}_test.cpp" >>"$work/tests"
done

# compile LIST STANDARD: every source of it to $work/NAME.o. Kernels are of the standard that they are built in.
export nvcc architecture work
compile() {
  standard=$2 xargs -L 1 -P "${MAX_JOBS:-$(nproc)}" sh -c '"$nvcc" "-std=$standard" -O2 -x cu -c -Icsrc -Itests/cuda_kernels \
    "-gencode=arch=compute_$architecture,code=sm_$architecture" "$2" -o "$work/$1.o"' compile <"$1"
}
compile "$work/tests" c++20 || {
  echo "test_kernels_on_gpu: a test does not compile" >&2
  exit 1
}
if [ "$run" = 0 ]; then  # the kernels themselves are compiled by check_kernels.sh
  echo "test_kernels_on_gpu: $(wc -l <"$work/tests") tests compile for sm_$architecture"
  exit 0
fi
compile "$work/kernels" c++17 || {
  echo "test_kernels_on_gpu: a kernel does not compile" >&2
  exit 1
}
ar rcs "$work/libkernels.a" "$work"/kernel_*.o  # a launcher may start another file's kernel
while read -r name _; do "$nvcc" "$work/$name.o" "$work/libkernels.a" -o "$work/$name"; done <"$work/tests"

failed=0
# check NAME ARGUMENT...: plainly, and where asked with the sanitizer's two tools.
check() {
  program=$work/$1
  echo "$*"
  shift
  "$program" "$@" || failed=1
  [ "$sanitize" = 1 ] || return 0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 3 "$program" "$@" >"$work/log" 2>&1 && continue
    cat "$work/log"
    failed=1
  done
}
while read -r name test _; do
  cases=$(sed -n 's|^// Cases: ||p' "$test")
  if [ -z "$cases" ]; then check "$name"; fi
  for case in $cases; do check "$name" "$case" 1; done
done <"$work/tests"
[ "$failed" = 0 ] && echo "test_kernels_on_gpu: passed"
exit "$failed"
