#!/bin/sh
# Compiles every CUDA kernel for every target architecture and prints a table of what ptxas reports. Fails on any warning, on
# a register spill, on a stack frame, and where registers or shared memory do not allow the occupancy that is planned for a
# kernel. Needs nvcc and no GPU.
#
#   scripts/check_kernels.sh
#
# The plan is a line beside the constants that a kernel is tuned with; every instantiation must have exactly one. Without
# template arguments it is that of all; in them `*` stands for anything and `{a,b}` for either. Dynamic shared memory in bytes:
#   // Occupancy: attention_forward 128 threads x 2 blocks, 49152 B
#   // Occupancy: linear_kernel<*, PlainWeight<*>, {1,2,4,8}> 256 threads x 2 blocks, 0 B
# Where __launch_bounds__ names a minimum of blocks, the plan must say the same.
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

# Awk: the name of a kernel without return type, namespaces and parameters.
short_name='function short_name(name) {
  gsub(/\(anonymous namespace\)::|[A-Za-z_]+::|^void /, "", name); sub(/\(.*/, "", name); return name
}'

# ptxas' report of one file for one architecture -> a line "kernel architecture registers smem stack spill".
# A line of nvcc's that belongs to no such report is a warning.
summarise() {
  c++filt | awk -v arch="$1" "$short_name"'
    /Compiling entry function/ { name = $0; sub(/^[^\047]*\047/, "", name); sub(/\047 for \047.*/, "", name) }
    /bytes stack frame/ { stack = $1; spill = $5 + $9 }
    /Used [0-9]+ registers/ {
      smem = 0
      for (i = 1; i <= NF; ++i) { if ($i == "Used") regs = $(i + 1); if ($i == "smem," || $i == "smem") smem = $(i - 2) }
      printf "%s\t%s\t%d\t%d\t%d\t%d\n", short_name(name), "sm_" arch, regs, smem, stack, spill
    }'
}

# PTX of one file -> a line "kernel threads blocks" for each whose launch bounds name a minimum of blocks.
bounds() {
  c++filt | awk "$short_name"'
    /\.entry / { name = $0; sub(/.*\.entry /, "", name) }
    $1 == ".maxntid" { threads = $2 + 0 }
    $1 == ".minnctapersm" { printf "%s\t%d\t%d\n", short_name(name), threads, $2 }'
}

failed=0
set -- csrc/cuda/*.cu
if [ ! -f "$1" ]; then
  echo "check_kernels: there is no csrc/cuda/*.cu" >&2
  exit 1
fi
: >"$work/table"
: >"$work/bounds"
for source; do
  for arch in ${ARCHITECTURES:-80 90a 100}; do
    if ! "$nvcc" -std=c++17 -O3 -Xptxas -v --keep --keep-dir "$work" -gencode "arch=compute_$arch,code=sm_$arch" \
        -c "$source" -o "$work/object.o" >"$work/log" 2>&1; then
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
    bounds <"$work/$(basename "$source" .cu).ptx" >>"$work/bounds"
  done
done

# Registers are given out to a warp by 256; a block takes 1 KiB of shared memory beside its own.
sed -n 's|^ *// Occupancy: \(.*\) \([0-9]*\) threads x \([0-9]*\) blocks, \([0-9]*\) B$|\1\t\2\t\3\t\4|p' \
  csrc/cuda/*.cu csrc/cuda/*.cuh >"$work/plans"
sort -u "$work/bounds" -o "$work/bounds"
sort "$work/table" | awk -F '\t' -v plans="$work/plans" -v bounds="$work/bounds" '
  # The regular expression that a plan with * and {a,b} stands for.
  function expression(glob,    i, c, inside, text) {
    for (i = 1; i <= length(glob); ++i) {
      c = substr(glob, i, 1)
      if (c == "{") { inside = 1; c = "(" } else if (c == "}") { inside = 0; c = ")" }
      else if (c == ",") c = inside ? "|" : ","
      else if (c == "*") c = ".*"
      text = text c
    }
    return "^" text (glob ~ /</ ? "$" : "(<.*)?$")
  }
  BEGIN {
    while ((getline line < plans) > 0) {
      split(line, field, "\t")
      plan[++count] = field[1]; pattern[count] = expression(field[1])
      threads[count] = field[2]; blocks[count] = field[3]; dynamic[count] = field[4]
    }
    while ((getline line < bounds) > 0) { split(line, field, "\t"); bound[field[1]] = field[2] " threads x " field[3] " blocks" }
    printf "%-62s %-7s %9s %9s %5s %5s  %s\n", "kernel", "arch", "registers", "shared", "stack", "spill", "planned occupancy"
  }
  {
    note = text = ""; mine = 0
    for (i = 1; i <= count; ++i) {
      if ($1 !~ pattern[i]) continue
      if (mine) note = note "  <- and a second plan, " plan[i]
      mine = i; seen[i] = 1
    }
    shared = $4
    if (!mine) {
      note = "  <- no occupancy is planned"
    } else {
      shared += dynamic[mine]
      planned = threads[mine] " threads x " blocks[mine] " blocks"
      warps = threads[mine] * blocks[mine] / 32
      text = sprintf("%s, %d of 64 warps", planned, warps)
      capacity = ($2 == "sm_80" ? 164 : 228) * 1024
      if (int((32 * $3 + 255) / 256) * 256 * warps > 65536) note = note "  <- too many registers for it"
      if ((shared + 1024) * blocks[mine] > capacity) note = note "  <- too much shared memory for it"
      if (($1 in bound) && bound[$1] != planned) note = note "  <- its launch bounds say " bound[$1]
    }
    if ($5 + $6 > 0) note = note "  <- stack and spill must be 0"
    printf "%-62s %-7s %9d %7d B %5d %5d  %s%s\n", $1, $2, $3, shared, $5, $6, text, note
    if (note != "") bad = 1
  }
  END {
    for (i = 1; i <= count; ++i) if (!(i in seen)) { print "an occupancy is planned for " plan[i] ", which no file has"; bad = 1 }
    exit bad
  }' || failed=1

if [ "$failed" -ne 0 ]; then
  echo "check_kernels: failed" >&2
fi
exit "$failed"
