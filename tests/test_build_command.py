"""The command that builds the extension: what it checks, what it tells CMake, and where the module lands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fake_toolkit import hide_toolkits, make_toolkit, write_program
from setuptools import Distribution, Extension

from build_support import build_ext  # fake_toolkit puts it on the import path


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return hide_toolkits(monkeypatch, tmp_path)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Replaces CMake: collects its command lines, and leaves an empty module where a build would."""
    commands: list[list[str]] = []

    def run_tool(command: list[object]) -> None:
        commands.append([str(part) for part in command])
        if "--build" in command:
            folder = Path(commands[-1][commands[-1].index("--build") + 1])
            suffix = next(option for option in commands[0] if option.startswith("-DPERSIMMON_MODULE_SUFFIX="))
            (folder / f"_C{suffix.split('=')[1]}").touch()

    monkeypatch.setattr(build_ext, "ROOT", tmp_path / "source")
    monkeypatch.setattr(build_ext, "require", lambda program: program)
    monkeypatch.setattr(build_ext.CMakeBuild, "run_tool", staticmethod(run_tool))
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "0")
    return commands


def build(library: Path) -> None:
    extension = Extension("persimmon_ext._C", sources=[])
    command = build_ext.CMakeBuild(Distribution({"name": "x", "version": "1.2.3", "ext_modules": [extension]}))
    command.build_lib = str(library)
    command.ensure_finalized()
    command.build_extension(extension)


def test_the_module_lands_in_the_package(tools: list[list[str]], tmp_path: Path) -> None:
    build(tmp_path / "lib")
    assert [path.name.split(".")[0] for path in (tmp_path / "lib" / "persimmon_ext").iterdir()] == ["_C"]
    configure, compile_ = tools
    assert "-DPERSIMMON_VERSION=1.2.3" in configure
    assert f"-DPERSIMMON_TORCH_VERSION={torch.__version__}" in configure
    assert "-DPERSIMMON_CUDA=OFF" in configure
    assert "-j" not in compile_


def test_a_toolkit_reaches_cmake(tools: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a+PTX")
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    build(tmp_path / "lib")
    for option in (
        "-DPERSIMMON_CUDA=ON",
        "-DPERSIMMON_CUDA_VERSION=13.0",
        "-DPERSIMMON_CUDA_ARCHITECTURES=80-real;90a-real;90a-virtual",
        f"-DCMAKE_CUDA_COMPILER={root}/bin/nvcc",
    ):
        assert option in tools[0]
    assert "-cuda" in tools[0][tools[0].index("-B") + 1]  # its objects are kept apart from a CPU build's


@pytest.mark.parametrize("jobs", ["1", " 3 "])
def test_max_jobs_limits_ninja(
    jobs: str, tools: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_JOBS", jobs)
    build(tmp_path / "lib")
    assert tools[1][-2:] == ["-j", jobs.strip()]


@pytest.mark.parametrize("jobs", ["0", "-1", "many", "1.5", "³"])
def test_nonsense_for_max_jobs_is_an_error(
    jobs: str, tools: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(SystemExit, match=f"MAX_JOBS is '{jobs}'; it must be a positive number"):
        build(tmp_path / "lib")
    assert tools == []


@pytest.mark.parametrize("version", ["2.10.1+cu130", "1.13.0", "2.9.0a0+git1234567"])
def test_an_old_torch_is_refused(
    version: str, tools: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(SystemExit) as error:
        build(tmp_path / "lib")
    assert str(error.value) == f"persimmon_ext needs torch 2.11 or later, and {version} is installed."
    assert tools == []


@pytest.mark.parametrize("package", ["torch", "pybind11"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    with pytest.raises(SystemExit, match=rf"{package} must be installed .* `pip install {package}`, then .*isolation"):
        build(tmp_path / "lib")


def test_a_moved_source_folder_is_configured_anew(tools: list[list[str]], tmp_path: Path) -> None:
    build(tmp_path / "lib")
    folder = Path(tools[0][tools[0].index("-B") + 1])
    for home, kept in ((tmp_path / "source", True), (tmp_path / "earlier", False)):
        (folder / "CMakeCache.txt").write_text(f"CMAKE_HOME_DIRECTORY:INTERNAL={home}\n")
        build(tmp_path / "lib")
        assert (folder / "CMakeCache.txt").exists() == kept


@pytest.mark.parametrize("program", ["cmake", "ninja"])
def test_programs_are_found_beside_the_interpreter(
    program: str, tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(SystemExit, match=f"{program} is not installed; `pip install cmake ninja"):
        build_ext.require(program)
    elsewhere = write_program(on_path / program, "#!/bin/sh\n")
    assert build_ext.require(program) == str(elsewhere)
    beside = write_program(tmp_path / "bin" / program, "#!/bin/sh\n")
    assert build_ext.require(program) == str(beside)


def test_a_failing_tool_ends_the_build() -> None:
    with pytest.raises(SystemExit, match=r"/bin/sh failed with exit status 3; its messages are above\."):
        build_ext.CMakeBuild.run_tool(["/bin/sh", "-c", "exit 3"])
