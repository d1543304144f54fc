#!/bin/sh
# Compiles every CUDA kernel for every target architecture and prints a table of what ptxas reports. Fails on any warning, on
# a register spill and on a stack frame. Needs nvcc and no GPU.
#
#   scripts/check_kernels.sh
#
# CUDA_HOME chooses the toolkit (default: the one of the nvcc on PATH, then /usr/local/cuda). ALLOW_NO_NVCC=1 turns a missing
# toolkit into a message. ARCHITECTURES overrides the targets, e.g. ARCHITECTURES="80 90a".
set -eu
cd "$(dirname "$0")/.."

# Prints the toolkit's folder. An nvcc on PATH may be a wrapper script that lies elsewhere, so nvcc itself is asked.
find_toolkit() {
  if [ -n "${CUDA_HOME:-}" ]; then
    echo "$CUDA_HOME"
  elif command -v nvcc >/dev/null 2>&1; then
    nvcc --dryrun -c -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p'
  else
    echo /usr/local/cuda
  fi
}

toolkit=$(find_toolkit)
nvcc="$toolkit/bin/nvcc"
if [ ! -x "$nvcc" ]; then
  echo "nvcc not found: CUDA compile check skipped (looked for '$nvcc'; CUDA_HOME names the toolkit)"
  [ "${ALLOW_NO_NVCC:-0}" = 1 ] && exit 0
  echo "ALLOW_NO_NVCC=1 accepts that" >&2
  exit 1
fi
"$nvcc" --version | grep release

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

# ptxas' report of one file for one architecture -> a line "kernel architecture registers smem stack spill".
# A line of nvcc's that belongs to no such report is a warning.
summarise() {
  c++filt | awk -v arch="$1" '
    /Compiling entry function/ {
      name = $0; sub(/^[^\047]*\047/, "", name); sub(/\047 for \047.*/, "", name)
      gsub(/\(anonymous namespace\)::|persimmon::cuda::|simt::|^void /, "", name); sub(/\(.*/, "", name)
    }
    /bytes stack frame/ { stack = $1; spill = $5 + $9 }
    /Used [0-9]+ registers/ {
      smem = 0
      for (i = 1; i <= NF; ++i) { if ($i == "Used") regs = $(i + 1); if ($i == "smem," || $i == "smem") smem = $(i - 2) }
      printf "%s\t%s\t%d\t%d\t%d\t%d\n", name, "sm_" arch, regs, smem, stack, spill
    }'
}

failed=0
set -- csrc/cuda/*.cu
if [ ! -f "$1" ]; then
  echo "check_kernels: there is no csrc/cuda/*.cu" >&2
  exit 1
fi
: >"$work/table"
for source; do
  for arch in ${ARCHITECTURES:-80 90a 100}; do
    if ! "$nvcc" -std=c++17 -O3 -Xptxas -v -gencode "arch=compute_$arch,code=sm_$arch" -c "$source" -o "$work/object.o" \
        >"$work/log" 2>&1; then
      cat "$work/log" >&2
      echo "check_kernels: $source does not compile for sm_$arch" >&2
      failed=1
      continue
    fi
    if grep -i 'warning' "$work/log"; then
      echo "check_kernels: $source compiles with warnings for sm_$arch" >&2
      failed=1
    fi
    summarise "$arch" <"$work/log" >"$work/rows"
    if [ ! -s "$work/rows" ]; then
      echo "check_kernels: ptxas reported no kernel in $source for sm_$arch" >&2
      failed=1
    fi
    cat "$work/rows" >>"$work/table"
  done
done

sort "$work/table" | awk -F '\t' '
  BEGIN { printf "%-48s %-8s %9s %11s %5s %5s\n", "kernel", "arch", "registers", "static smem", "stack", "spill" }
  { printf "%-48s %-8s %9d %9d B %5d %5d%s\n", $1, $2, $3, $4, $5, $6, ($5 + $6 > 0 ? "  <- must be 0" : "") }
  $5 + $6 > 0 { bad = 1 }
  END { exit bad }' || failed=1

if [ "$failed" -ne 0 ]; then
  echo "check_kernels: failed" >&2
fi
exit "$failed"
