#!/usr/bin/env bash
# setup_env.sh FOLDER EXTRAS: makes a virtual environment with persimmon_ext built in it (editable).
#
# A torch that $PYTHON can already import is used as it is; otherwise the version in constraints.txt is installed.
# EXTRAS names optional dependencies of pyproject.toml ("test", "lint"), separated by commas.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 extras=$2 python=${PYTHON:-python3}

say() { printf 'persimmon_ext: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
pip() { "$venv/bin/python" -m pip "$@"; }
imports_torch() { "$venv/bin/python" -c 'import torch; torch.__version__' 2>/dev/null; }  # a half-copied folder has none

command -v "$python" >/dev/null || die "$python is not installed; set PYTHON to a Python from 3.10 to 3.13."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2])' ||
  die "$("$python" --version) is too old; set PYTHON to a Python from 3.10 to 3.13."
command -v g++ >/dev/null || die "g++ is not installed (Debian: apt-get install g++)."
"$python" - <<'EOF' || die "Python's headers are not installed (Debian: apt-get install python3-dev)."
import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())
EOF

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then  # none yet, or one whose making was interrupted
  rm -rf "$venv"
  "$python" -m venv "$venv" || die "python -m venv failed (Debian: apt-get install python3-venv)."
fi

# A torch that $python has is seen through this file, as are the packages beside it. --system-site-packages would not do:
# where $python belongs to a virtual environment itself, the new one would see the packages of the interpreter beneath.
borrowed=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed_packages.pth
if ! imports_torch; then
  rm -f "$borrowed"
  "$python" - "$borrowed" <<'EOF'
import pathlib, sys
try:
    import torch
    usable = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
except Exception:  # none, or a broken one
    usable = False
if usable:
    first = pathlib.Path(torch.__file__).parents[1]
    others = [path for path in map(pathlib.Path, sys.path) if path.name in ("site-packages", "dist-packages")]
    pathlib.Path(sys.argv[1]).write_text("".join(f"{path}\n" for path in dict.fromkeys([first, *others])))
EOF
fi

constraints=$(mktemp) log=$(mktemp)
trap 'rm -f "$constraints" "$log"' EXIT
cp constraints.txt "$constraints"
if [ -e "$borrowed" ]; then
  version=$("$venv/bin/python" -c 'import torch; print(torch.__version__)')
  say "using the installed torch $version"
  sed -i "s/^torch==.*/torch==$version/" "$constraints"  # so that pip doesn't bring the tested version beside it
else
  imports_torch || say "installing torch"
  pip install -q -c "$constraints" torch
  imports_torch || die "torch is installed in $venv and can't be imported; remove that folder and try again."
fi
pip install -q -c "$constraints" "setuptools>=77" wheel "pybind11>=2.13" ninja "cmake>=3.22"
# The programs of borrowed packages are in another environment's folder.
install_programs() {
  for program; do
    [ -x "$venv/bin/$program" ] || pip install -q -c "$constraints" --ignore-installed --no-deps "$program"
  done
}
install_programs ninja cmake
say "building (the first time takes a few minutes)"
if ! pip install -v -c "$constraints" --no-build-isolation -e ".${extras:+[$extras]}" >"$log" 2>&1; then
  tail -n 60 "$log" >&2
  die "the build failed; the end of its output is above."
fi
grep -hE '^ *persimmon_ext: ' "$log" | sed 's/^ *//' >&2 || true
case ",$extras," in *,lint,*) install_programs ruff mypy clang-format ;; esac
