#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests of its CPU kernels with it.
#
#   scripts/check_sanitizers.sh [PYTEST ARGUMENTS]      (default: every tests/test_ops_*.py)
#
# PYTHON names the interpreter (default: .venv/bin/python, else python3), which must have the build's packages and the tests'.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
case $PYTHON in
  */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
esac
built=$root/build/sanitize

cd "$root"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
rm -rf "$built/lib" # a module that the sources no longer have would stay importable
"$PYTHON" setup.py -q build --build-base "$built/temp" --build-lib "$built/lib" build_ext --sanitize >"$log" 2>&1 || {
  tail -n 60 "$log" >&2
  echo "check_sanitizers: the build failed; the end of its output is above." >&2
  exit 1
}

# The tests run beside the built package: in the source folder, they would import the sources and the usual extension.
rm -rf "$built/run"
mkdir -p "$built/run"
cp -r tests pyproject.toml "$built/run"
cd "$built/run"
export PYTHONPATH=$built/lib
# The interpreter itself isn't instrumented and frees little at exit, so leaks are not looked for. Some tests ask for more
# memory than there is and expect the allocator's refusal.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
export LD_PRELOAD

"$PYTHON" - "$built/lib" <<'EOF'
import ctypes, sys
import persimmon_ext, persimmon_ext._C as module
if not module.__file__.startswith(sys.argv[1]):
    sys.exit(f"check_sanitizers: {module.__file__} was imported, which is not the sanitizers' build in {sys.argv[1]}.")
try:
    ctypes.CDLL(module.__file__).__asan_init  # only a module that was built with the sanitizer needs and finds it
except AttributeError:
    sys.exit(f"check_sanitizers: {module.__file__} was built without the sanitizers.")
EOF
# --capture=sys: a report is written by the process itself, just before it ends.
[ $# -gt 0 ] || set -- tests/test_ops_*.py
"$PYTHON" -m pytest -q --capture=sys -p no:cacheprovider "$@"
