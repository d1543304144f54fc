"""Shared by the tests of the build: a CUDA toolkit that is a folder with a shell script, and a machine without one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # build_support is not installed
from build_support import cuda

# As the real one answers: its own folder in `TOP=` on stderr, and a text with "release" on stdout.
NVCC = """#!/bin/sh
case $1 in
  --dryrun) printf '#$ _SPACE_= \\n#$ TOP=%s/..\\n#$ gcc -E\\n' "${0%/*}" >&2 ;;
  --version) printf 'nvcc: NVIDIA (R) Cuda compiler driver\\nCuda compilation tools, release RELEASE, VRELEASE.88\\n' ;;
esac
"""
VARIABLES = ("CUDA_HOME", "CUDA_PATH", "PERSIMMON_EXT_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")


def write_program(path: Path, text: str) -> Path:
    """Writes an executable file, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_toolkit(root: Path, release: str = "13.0", headers: str = "include") -> Path:
    """Makes what the build looks for in a toolkit in `root`, and returns it."""
    write_program(root / "bin" / "nvcc", NVCC.replace("RELEASE", release))
    (root / headers).mkdir(parents=True)
    (root / headers / "cuda_runtime.h").touch()
    return root


def hide_toolkits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes this a machine without a toolkit or settings; returns the one folder on PATH, which is empty."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "on path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(cuda, "USUAL_PLACE", tmp_path / "usual place")
    return folder
