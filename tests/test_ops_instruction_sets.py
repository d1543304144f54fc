"""The CPU kernels for every instruction set that the processor has, not only for the best one, which all tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from persimmon_ext import _C

OTHERS = [name for name in _C.cpu_isas() if name != _C.cpu_isa()]


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PERSIMMON_EXT_ISA": isa}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", OTHERS)
def test_the_one_asked_for_is_used(isa: str) -> None:
    assert run(isa, "-c", "from persimmon_ext import _C; print(_C.cpu_isa())").stdout.strip() == isa


def test_an_unknown_one() -> None:
    result = run("sse9", "-c", "from persimmon_ext import _C; _C.cpu_isa()")
    assert result.returncode != 0
    assert "sse9" in result.stderr.splitlines()[-1], result.stderr


@pytest.mark.parametrize("isa", OTHERS)
def test_operators(isa: str) -> None:
    """All tests of operators but those of their schemas."""
    files = [str(path) for path in sorted(Path(__file__).parent.glob("test_ops_*.py")) if path != Path(__file__)]
    result = run(
        isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not opcheck and not well_formed", *files
    )
    assert result.returncode == 0, result.stdout[-3000:]
