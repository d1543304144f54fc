#!/bin/sh
# Compiles every CUDA kernel for every target architecture and prints a table of what ptxas reports. Fails on any warning, on
# a register spill, on a stack frame, and where registers or shared memory do not allow the occupancy that a kernel's file
# plans for it. Needs nvcc and no GPU.
#
#   scripts/check_kernels.sh
#
# The plan is a line in the .cu file for each kernel, which must have one; dynamic shared memory in bytes:
#   // Occupancy: attention_forward 128 threads x 2 blocks, 49152 B
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
      gsub(/\(anonymous namespace\)::|[a-z_]+::|^void /, "", name); sub(/\(.*/, "", name)
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
    # What ptxas says of serialised wgmma is a warning by another name.
    if grep -iE 'warning|performance loss' "$work/log"; then
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

# Registers are given out to a warp by 256; a block takes 1 KiB of shared memory beside its own.
cat csrc/cuda/*.cu | sed -n 's|^ *// Occupancy: \([a-z0-9_]*\) \([0-9]*\) threads x \([0-9]*\) blocks, \([0-9]*\) B$|\1\t\2\t\3\t\4|p' >"$work/plans"
sort "$work/table" | awk -F '\t' -v plans="$work/plans" '
  BEGIN {
    while ((getline line < plans) > 0) {
      split(line, field, "\t")
      threads[field[1]] = field[2]; blocks[field[1]] = field[3]; dynamic[field[1]] = field[4]
    }
    printf "%-46s %-7s %9s %9s %5s %5s  %s\n", "kernel", "arch", "registers", "shared", "stack", "spill", "planned occupancy"
  }
  {
    kernel = $1; sub(/<.*/, "", kernel); shared = $4 + dynamic[kernel]; plan = "-"; note = "  <- no occupancy is planned"
    if (kernel in threads) {
      note = ""
      warps = threads[kernel] * blocks[kernel] / 32
      plan = sprintf("%d threads x %d blocks, %d of 64 warps", threads[kernel], blocks[kernel], warps)
      registers = int((32 * $3 + 255) / 256) * 256 * warps
      capacity = ($2 == "sm_80" ? 164 : 228) * 1024
      if (registers > 65536) note = note "  <- too many registers for it"
      if ((shared + 1024) * blocks[kernel] > capacity) note = note "  <- too much shared memory for it"
      seen[kernel] = 1
    }
    if ($5 + $6 > 0) note = note "  <- stack and spill must be 0"
    printf "%-46s %-7s %9d %7d B %5d %5d  %s%s\n", $1, $2, $3, shared, $5, $6, plan, note
    if (note != "") bad = 1
  }
  END {
    for (kernel in threads) if (!(kernel in seen)) { print "an occupancy is planned for " kernel ", which no file has"; bad = 1 }
    exit bad
  }' || failed=1

if [ "$failed" -ne 0 ]; then
  echo "check_kernels: failed" >&2
fi
exit "$failed"
