"""The source distribution holds everything that building and testing need, and nothing that was generated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Whole folders, and files beside them, that a user of the sdist builds, runs or reads.
FOLDERS = ("benchmarks", "build_support", "csrc", "docs", "examples", "persimmon_ext", "scripts", "tests")
FILES = ("CMakeLists.txt", "MANIFEST.in", "Makefile", "README.md", "constraints.txt", "pyproject.toml", "setup.py")
GENERATED = ("__pycache__", ".*_cache", ".hypothesis", "*.so", "*.so.partial", "*.pyc", "*.egg-info")
PLANTED = (
    "build/cpython-311-torch-2.13.0/_C.cpython-311-x86_64-linux-gnu.so",
    "build/lib/persimmon_ext/__init__.py",
    "dist/persimmon_ext-0.0.1.tar.gz",
    ".venv/bin/python",
    ".venv/lib/python3.11/site-packages/torch/__init__.py",
    "csrc/cpu/__pycache__/leftover.cpython-311.pyc",
    "persimmon_ext/_C.cpython-311-x86_64-linux-gnu.so",
    "persimmon_ext/_C.cpython-311-x86_64-linux-gnu.so.partial",
    "persimmon_ext/__pycache__/cache.cpython-311.pyc",
    "persimmon_ext/assets/__pycache__/__init__.cpython-311.pyc",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "tests/.pytest_cache/CACHEDIR.TAG",
    "tests/.hypothesis/examples/1",
)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree as it comes out of version control."""
    copy = tmp_path_factory.mktemp("tree") / "source"
    copy.mkdir()
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns(*GENERATED))
    for name in FILES:
        shutil.copy2(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist of a tree that was built and used, made where torch can't be imported."""
    work = tmp_path_factory.mktemp("sdist")
    used = work / "used"
    shutil.copytree(tree, used)
    for name in PLANTED:
        (used / name).parent.mkdir(parents=True, exist_ok=True)
        (used / name).touch()
    blocked = work / "blocked"
    blocked.mkdir()
    (blocked / "torch.py").write_text("raise ModuleNotFoundError('torch is not needed for an sdist')\n")
    run = subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check", "--outdir", work, used],
        env={**os.environ, "PYTHONPATH": str(blocked)},
        cwd=work,  # where no folder is named build
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(work / "unpacked", filter="data")
    (folder,) = (work / "unpacked").iterdir()
    return folder


def test_nothing_of_the_source_tree_is_missing(tree: Path, sdist: Path) -> None:
    missing = files_below(tree) - files_below(sdist)
    assert not missing
    for name in files_below(tree):
        assert (sdist / name).read_bytes() == (tree / name).read_bytes(), name


def test_nothing_was_added(tree: Path, sdist: Path) -> None:
    added = files_below(sdist) - files_below(tree)
    metadata = {"PKG-INFO", "setup.cfg"} | {name for name in added if name.startswith("persimmon_ext.egg-info/")}
    assert added <= metadata


def test_what_the_build_and_the_package_read_is_there(sdist: Path) -> None:
    for name in (
        "csrc/ops.cpp",
        "csrc/cpu/kernels/layer_norm.cpp",
        "csrc/cuda/layer_norm.cu",
        "csrc/simt/emulator.h",
        "build_support/cuda.py",
        "tests/cuda_kernels/CMakeLists.txt",
        "persimmon_ext/_C.pyi",
        "persimmon_ext/py.typed",
        "persimmon_ext/assets/tiny/tokenizer.model",
    ):
        assert (sdist / name).is_file(), name
    assert os.access(sdist / "scripts" / "setup_env.sh", os.X_OK)


def test_the_metadata(sdist: Path) -> None:
    metadata = Parser().parsestr((sdist / "PKG-INFO").read_text(encoding="utf-8"))
    assert sdist.name == f"{metadata['Name']}-{metadata['Version']}"
    assert metadata["Name"] == "persimmon_ext"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload().strip() == (sdist / "README.md").read_text(encoding="utf-8").strip()
    requires = " ".join(metadata.get_all("Requires-Dist") or [])
    for package in ("torch", "numpy", "sentencepiece", "safetensors", "tqdm"):
        assert package in requires
