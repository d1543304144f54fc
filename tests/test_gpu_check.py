"""scripts/gpu_check.sh without a GPU: what it would run exists, takes its options, and fits its time."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_toolkit import make_toolkit, write_program

ROOT = Path(__file__).parents[1]


def run(folder: Path, toolkit: Path, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OUT": str(folder / "out"), "CUDA_HOME": str(toolkit)}
    command = ["bash", str(root / "scripts/gpu_check.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str]]:
    """(name, seconds, command) of each step, from the table at the end."""
    folder = tmp_path_factory.mktemp("gpu_check")
    result = run(folder, make_toolkit(folder / "toolkit"), "--dry-run", sys.executable)
    assert result.returncode == 0, result.stderr
    lines = (folder / "out/table.txt").read_text().splitlines()
    assert result.stdout.splitlines()[-len(lines) :] == lines, "the table is last"
    found = [re.fullmatch(r"(.+?) +at most +(\d+) s: (.+)", line) for line in lines]
    return [(match[1], int(match[2]), match[3]) for match in found if match]


def test_the_benchmarks_take_their_options(steps: list[tuple[str, int, str]]) -> None:
    commands = [command for name, _, command in steps if name.startswith("benchmarks:")]
    assert len(commands) == 4
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        chosen = importlib.import_module(module).parse(arguments)
        assert chosen.device == "cuda"
        assert Path(chosen.json).parent.name == "out"


def test_every_test_that_needs_a_gpu_runs(steps: list[tuple[str, int, str]]) -> None:
    [command] = [command for name, _, command in steps if name == "tests that need a GPU"]
    marked = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").glob("test_*.py")
        if path.name != Path(__file__).name and re.search(r"pytest\.mark\.gpu\b|import .*DEVICES\b", path.read_text())
    }
    assert "tests/test_device_generation.py" in marked
    assert marked <= set(command.split())


def test_the_benchmarks_have_their_time(steps: list[tuple[str, int, str]]) -> None:
    """However slow the steps in front of them are."""
    names = [name for name, _, _ in steps]
    assert sum(seconds for _, seconds, _ in steps[: names.index("benchmarks: prefill") + 1]) <= 490
    assert names.index("benchmarks: prefill") < names.index("kernels' own tests") < names.index("memcheck")


def test_a_failed_build_ends_with_the_table(tmp_path: Path) -> None:
    """Which is all that says what happened, where only the folder comes back."""
    script = "#!/bin/sh\ncase $1 in -) echo 9.0a ;; -c) echo /toolkit ;; *) exit 7 ;; esac\n"
    result = run(tmp_path, tmp_path / "toolkit", str(write_program(tmp_path / "python", script)))
    assert result.returncode == 1
    [line] = (tmp_path / "out/table.txt").read_text().splitlines()
    assert re.fullmatch(r"build for 9\.0a +failed \(7\) +\d+ s", line)
    assert result.stdout.splitlines()[-1] == line


def test_stops_where_no_test_needs_a_gpu(tmp_path: Path) -> None:
    """Rather than run none of them and be content."""
    root = tmp_path / "root"
    for name in ("scripts", "build_support"):
        shutil.copytree(ROOT / name, root / name)
    (root / "tests").mkdir()
    (root / "tests" / "test_plain.py").write_text("def test_nothing() -> None: ...\n")
    result = run(tmp_path, make_toolkit(tmp_path / "toolkit"), "--dry-run", sys.executable, root=root)
    assert result.returncode == 1
    assert "no test file has the marker gpu" in result.stderr
    assert "tests that need a GPU" not in result.stdout
