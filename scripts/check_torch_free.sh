#!/bin/sh
# Fails when a kernel includes a header of torch: csrc/simt, csrc/cuda outside bindings/, and csrc/cpu/kernels must build
# without it, and a CUDA kernel includes nothing but csrc/simt/simt.h and headers of csrc/cuda.
set -eu
cd "$(dirname "$0")/.."

files=$(find csrc/simt csrc/cpu/kernels csrc/cuda -path csrc/cuda/bindings -prune -o -type f -print | sort)
if [ -z "$files" ]; then
  echo "check_torch_free: no kernel source was found in $(pwd)/csrc" >&2
  exit 1
fi

failed=0
# The names contain no spaces: they are this repository's own.
if grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]([^">]*/)?(torch|ATen|c10|pybind11)/' $files; then
  echo "check_torch_free: the includes above bring torch into a torch-free file" >&2
  failed=1
fi

for file in $(find csrc/cuda -path csrc/cuda/bindings -prune -o -type f -name '*.cu*' -print | sort); do
  if grep -nHE '^[[:space:]]*#[[:space:]]*include' "$file" | grep -vE '"(\.\./simt/simt\.h|[a-z0-9_]+\.cuh)"'; then
    echo "check_torch_free: $file may include only ../simt/simt.h and headers of csrc/cuda" >&2
    failed=1
  fi
done

[ "$failed" -eq 0 ] && echo "check_torch_free: $(echo "$files" | wc -l) files include no torch header"
exit "$failed"
