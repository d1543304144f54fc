"""What decides how the extension is built: whether with CUDA, with which toolkit, and for which architectures.

No toolkit is needed: folders with a shell script as nvcc stand for one. A real nvcc is asked too, where there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_toolkit import cuda, hide_toolkits, make_toolkit, write_program

REAL_PATH = os.environ["PATH"]
REAL_NVCC = shutil.which("nvcc")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return hide_toolkits(monkeypatch, tmp_path)


# ---- whether to build CUDA kernels ----


@pytest.mark.parametrize("wanted", [None, "", "auto", " AUTO ", "0"])
def test_a_cpu_torch_builds_cpu_kernels(wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if wanted is not None:
        monkeypatch.setenv("PERSIMMON_EXT_CUDA", wanted)
    assert cuda.decide(None) is None


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_cuda_is_built_where_torch_and_a_toolkit_have_it(
    wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", wanted)
    plan = cuda.decide("13.2")  # minor versions may differ
    assert plan is not None
    assert (plan.root, plan.version, plan.architectures) == (root, "13.0", cuda.DEFAULT_ARCHITECTURES)
    assert f"with CUDA 13.0 in {root}" in capsys.readouterr().out


def test_zero_leaves_a_usable_toolkit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "0")
    assert cuda.decide("13.0") is None


@pytest.mark.parametrize("wanted", ["yes", "on", "2", "-1", "13.0"])
def test_nonsense_for_the_choice_is_an_error(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", wanted)
    with pytest.raises(SystemExit, match=rf"PERSIMMON_EXT_CUDA is '{wanted}'; it must be auto, 0 or 1\."):
        cuda.decide(None)


def remove_nvcc(root: Path) -> None:
    (root / "bin" / "nvcc").unlink()


def make_nvcc_unrunnable(root: Path) -> None:
    (root / "bin" / "nvcc").chmod(0o644)


def remove_header(root: Path) -> None:
    (root / "include" / "cuda_runtime.h").unlink()


def make_nvcc_silent(root: Path) -> None:
    write_program(root / "bin" / "nvcc", "#!/bin/sh\nexit 1\n")


def make_nvcc_foreign(root: Path) -> None:
    write_program(root / "bin" / "nvcc", "\x7fELF, of another machine")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove_nvcc, r"CUDA_HOME: there is no program .*/cuda/bin/nvcc"),
        (make_nvcc_unrunnable, r"CUDA_HOME: there is no program .*/cuda/bin/nvcc"),
        (remove_header, r"CUDA_HOME: there is no .*/cuda/include/cuda_runtime\.h"),
        (make_nvcc_silent, r"cuda/bin/nvcc doesn't print its release"),
        (make_nvcc_foreign, r"cuda/bin/nvcc can't be run"),
    ],
)
def test_a_broken_toolkit_is_told_apart(
    damage: Callable[[Path], None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_toolkit(tmp_path / "cuda")
    damage(root)
    monkeypatch.setenv("CUDA_HOME", str(root))
    assert cuda.decide("13.0") is None  # auto: the reason is printed, and the build goes on
    printed = capsys.readouterr().out
    assert printed.startswith("persimmon_ext: building CPU kernels only: ")
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=reason) as error:
        cuda.decide("13.0")
    assert str(error.value).startswith("PERSIMMON_EXT_CUDA=1, but ")


def test_one_demands_a_cuda_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=r"PERSIMMON_EXT_CUDA=1, but the installed torch is a CPU build"):
        cuda.decide(None)


@pytest.mark.parametrize(("torch_cuda", "release"), [("13.0", "12.8"), ("12.8", "13.0"), ("13.0", "1.3")])
def test_another_major_version_is_refused(
    torch_cuda: str, release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(tmp_path / "cuda", release)))
    assert cuda.decide(torch_cuda) is None
    monkeypatch.setenv("PERSIMMON_EXT_CUDA", "1")
    with pytest.raises(SystemExit, match=f"CUDA {torch_cuda} and the toolkit in .*/cuda is {release}: their major"):
        cuda.decide(torch_cuda)


# ---- where the toolkit is ----


def test_everything_tried_is_named(tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "no path"))
    write_program(on_path / "nvcc", "#!/bin/sh\nexit 0\n")
    with pytest.raises(cuda.CudaUnavailableError) as error:
        cuda.find_toolkit()
    message = str(error.value)
    assert f"CUDA_HOME: there is no program {tmp_path}/no home/bin/nvcc" in message
    assert f"CUDA_PATH: there is no program {tmp_path}/no path/bin/nvcc" in message
    assert f"nvcc on PATH ({on_path}/nvcc): it doesn't say where its toolkit is" in message
    assert f"the usual place: there is no program {tmp_path}/usual place/bin/nvcc" in message
    assert message.endswith("Set CUDA_HOME to its folder.")


def test_the_order_of_places(tmp_path: Path, on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, wrapped, path, home = (make_toolkit(tmp_path / name) for name in ("usual place", "wrapped", "path", "home"))
    assert cuda.find_toolkit() == usual
    write_program(on_path / "nvcc", f'#!/bin/sh\nexec "{wrapped}/bin/nvcc" "$@"\n')
    assert cuda.find_toolkit() == wrapped
    monkeypatch.setenv("CUDA_PATH", str(path))
    assert cuda.find_toolkit() == path
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert cuda.find_toolkit() == home
    remove_header(home)
    assert cuda.find_toolkit() == path


@pytest.mark.parametrize("kind", ["wrapper", "link"])
def test_nvcc_on_path_may_be_elsewhere(kind: str, tmp_path: Path, on_path: Path) -> None:
    root = make_toolkit(tmp_path / "tool kit" / "cuda-13.0", headers="targets/x86_64-linux/include")
    if kind == "wrapper":
        write_program(on_path / "nvcc", f'#!/bin/sh\nexec "{root}/bin/nvcc" "$@"\n')
    else:  # a link to the toolkit's folder, as /usr/local/cuda is: the answer is the folder itself
        (tmp_path / "cuda").symlink_to(root)
        write_program(on_path / "nvcc", f'#!/bin/sh\nexec "{tmp_path}/cuda/bin/nvcc" "$@"\n')
    assert cuda.toolkit_of(on_path / "nvcc") == root
    assert cuda.find_toolkit() == root


def test_an_nvcc_that_cannot_be_asked_has_no_toolkit(tmp_path: Path) -> None:
    assert cuda.toolkit_of(tmp_path / "missing") is None
    assert cuda.toolkit_of(write_program(tmp_path / "mute", "#!/bin/sh\n")) is None
    assert cuda.toolkit_of(write_program(tmp_path / "foreign", "\x7fELF")) is None


def test_headers_of_torch_wheels_are_found_on_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first [1]", tmp_path / "second"
    folders = [first / "nvidia/cu13/include", second / "nvidia/cublas/include", second / "nvidia/cusparse/include"]
    for folder in folders:
        folder.mkdir(parents=True)
    (second / "nvidia" / "nccl" / "lib").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["", str(first), str(tmp_path / "missing"), str(second), str(first)])
    assert cuda.wheel_include_dirs() == tuple(folders)


# ---- architectures ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0;9.0a+PTX", "8.0;9.0a+PTX"),
        ("8.0 9.0a", "8.0;9.0a"),
        (" 8.0, 9.0 ;; 12.0f+PTX,", "8.0;9.0a;12.0f+PTX"),
        ("8.0;8.0", "8.0"),
        ("9.0+PTX", "9.0a+PTX"),
        ("", cuda.DEFAULT_ARCHITECTURES),
        (" ; , ", cuda.DEFAULT_ARCHITECTURES),
    ],
)
def test_lists_of_architectures(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert cuda.architectures("13.0") == expected


@pytest.mark.parametrize("item", ["Ampere", "80", "9.0b", "8.0+ptx", "8.0PTX", "sm_80", "8", "-8.0", "all", "8.\u0660"])
def test_nonsense_architectures_are_named(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0;{item}")
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST is .* is not an architecture such as") as error:
        cuda.architectures("13.0")
    assert repr(item) in str(error.value)


@pytest.mark.parametrize("item", ["7.5", "5.2+PTX", "0.0"])
def test_architectures_before_the_first_that_the_kernels_need(item: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", f"8.0 {item}")
    with pytest.raises(SystemExit, match=r"the kernels need compute capability 8\.0 or later") as error:
        cuda.architectures("13.0")
    assert item in str(error.value)


@pytest.mark.parametrize(("release", "blackwell"), [("12.6", False), ("12.8", True), ("12.10", True), ("13.0", True)])
def test_the_default_suits_the_toolkit(release: str, blackwell: bool) -> None:
    assert ("10.0" in cuda.architectures(release)) == blackwell
    assert "+PTX" in cuda.architectures(release)  # later GPUs run it


@pytest.mark.parametrize(
    ("architectures", "expected"),
    [
        ("8.0", "80-real"),
        ("8.0;9.0a+PTX", "80-real;90a-real;90a-virtual"),
        ("8.0;9.0a;10.0+PTX", "80-real;90a-real;100-real;100-virtual"),
        ("8.0;8.0+PTX", "80-real;80-virtual"),
        ("12.0f", "120f-real"),
    ],
)
def test_architectures_as_cmake_spells_them(architectures: str, expected: str) -> None:
    assert cuda.CudaBuild(Path("/cuda"), "13.0", architectures, ()).cmake_architectures() == expected


# ---- a real nvcc ----


@pytest.mark.skipif(REAL_NVCC is None, reason="needs nvcc on PATH")
def test_the_real_nvcc(on_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert REAL_NVCC is not None
    monkeypatch.setenv("PATH", f"{on_path}:{REAL_PATH}")  # nvcc asks the host compiler even for a dry run
    root = cuda.toolkit_of(Path(REAL_NVCC))
    assert root is not None
    release = cuda.release_of(root / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")  # neither variable changes what nvcc says
    monkeypatch.setenv("CUDA_PATH", "/nowhere")
    assert cuda.toolkit_of(Path(REAL_NVCC)) == root
    write_program(on_path / "nvcc", f'#!/bin/sh\nexec "{REAL_NVCC}" "$@"\n')
    plan = cuda.decide(release)
    assert plan is not None
    assert (plan.root, plan.version) == (root, release)
    listed = subprocess.run([root / "bin" / "nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
    wanted = {name.removesuffix("-real") for name in plan.cmake_architectures().split(";") if name.endswith("-real")}
    assert {f"sm_{name.rstrip('af')}" for name in wanted} <= set(listed.stdout.split())
