#!/bin/sh
# Fails when a CPU kernel compiled for more than the baseline defines a global symbol outside its instruction set's namespace.
# An inline function of a header would be one: the linker keeps a single copy for the whole module, and when that copy holds
# AVX-512 instructions, every caller on a machine without them crashes. Templates inside the namespace are safe: all their
# copies are compiled alike. Needs a finished build and binutils.
#
#   scripts/check_kernel_symbols.sh [BUILD_FOLDER...]    (default: every build/* that holds kernels)
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- build/*

failed=0
checked=0
seen=
for folder; do
  for isa in avx2 avx512 avx512_bf16; do
    objects=$folder/CMakeFiles/kernels_$isa.dir
    [ -d "$objects" ] || continue
    # The namespace as the compiler spells it, e.g. 6avx512, which is no prefix of 11avx512_bf16; a Z more for what is
    # local to a function in it, such as a lambda.
    namespace="^_ZZ*NK?9persimmon3cpu${#isa}${isa}"
    found=$(find "$objects" -name '*.o' | sort)
    for object in $found; do
      # Columns: name, type. Undefined symbols are not listed, nor local ones: anonymous namespaces and statics.
      symbols=$(nm --extern-only --defined-only --format=posix "$object") || exit 1
      foreign=$(printf '%s\n' "$symbols" | awk -v ok="$namespace" 'NF && $1 !~ ok { print $2, $1 }')
      checked=$((checked + 1))
      [ -n "$foreign" ] || continue
      echo "check_kernel_symbols: $object defines, outside persimmon::cpu::$isa:" >&2
      printf '%s\n' "$foreign" | c++filt | sed 's/^/  /' >&2
      failed=1
    done
    [ -z "$found" ] || seen="$seen $isa"
  done
done

for isa in avx2 avx512 avx512_bf16; do
  case "$seen " in
    *" $isa "*) ;;
    *)
      echo "check_kernel_symbols: no object of the $isa kernels was found in: $* (build first: pip install --no-build-isolation -e .)" >&2
      failed=1
      ;;
  esac
done
[ "$failed" -eq 0 ] && echo "check_kernel_symbols: $checked objects define nothing outside their instruction set's namespace"
exit "$failed"
