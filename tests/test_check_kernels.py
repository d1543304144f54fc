"""scripts/check_kernels.sh with a compiler that reports what a case says: what it lets pass, and what it fails on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fake_toolkit import write_program

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_kernels.sh"

# Prints the source's own lines behind "//! ", as ptxas would report, and leaves those behind "//: " as PTX.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo 'Cuda compilation tools, release 13.0' && exit
while [ $# -gt 0 ]; do
  case $1 in --keep-dir) keep=$2 ;; -c) source=$2 ;; esac
  shift
done
sed -n 's|^//! ||p' "$source"
sed -n 's|^//: ||p' "$source" >"$keep/$(basename "$source" .cu).ptx"
"""

KERNEL = """
// Occupancy: {plan} 256 threads x 2 blocks, {dynamic} B
//! ptxas info    : Compiling entry function 'void persimmon::cuda::stream<__half, {rows}>(Params)' for 'sm_90a'
//!     {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
//! ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem
//: .visible .entry void persimmon::cuda::stream<__half, {rows}>(Params)(
//: .maxntid {threads}, 1, 1
//: .minnctapersm {blocks}
"""
GOOD = {
    "plan": "stream<*, {1,2}>",
    "dynamic": 0,
    "rows": 2,
    "stack": 0,
    "spill": 0,
    "registers": 128,
    "shared": 32768,
    "threads": 256,
    "blocks": 2,
}


def check(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Runs a copy of the script over a project whose only kernel file is `text`."""
    for name in ("scripts", "csrc/cuda"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "scripts")
    (folder / "csrc/cuda/stream.cu").write_text(text)
    (folder / "csrc/cuda/stream.cuh").touch()
    write_program(folder / "bin/nvcc", NVCC)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "CUDA_HOME": str(folder), "ARCHITECTURES": "90a"}
    command = ["sh", str(folder / "scripts/check_kernels.sh")]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("plan", ["stream<*, {1,2}>", "stream", "stream<*>", "stream<__half, 2>"])
def test_a_kernel_that_fits_its_plan(plan: str, tmp_path: Path) -> None:
    result = check(tmp_path, KERNEL.format(**{**GOOD, "plan": plan}))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "stream<__half, 2>" in result.stdout
    assert "256 threads x 2 blocks, 16 of 64 warps" in result.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"registers": 129}, "too many registers"),
        ({"shared": 120000}, "too much shared memory"),
        ({"dynamic": 90000}, "too much shared memory"),
        ({"stack": 8}, "stack and spill must be 0"),
        ({"spill": 4}, "stack and spill must be 0"),
        ({"plan": "stream<*, 1>"}, "no occupancy is planned"),
        ({"plan": "strea"}, "no occupancy is planned"),
        ({"plan": "stream<*, {1,4}>"}, "an occupancy is planned for stream<*, {1,4}>, which no file has"),
        ({"blocks": 1}, "its launch bounds say 256 threads x 1 blocks"),
        ({"threads": 128}, "its launch bounds say 128 threads x 2 blocks"),
    ],
)
def test_what_it_fails_on(change: dict[str, object], complaint: str, tmp_path: Path) -> None:
    result = check(tmp_path, KERNEL.format(**{**GOOD, **change}))
    assert result.returncode == 1
    assert complaint in result.stdout
    assert "check_kernels: failed" in result.stderr


def test_two_plans_for_one_kernel(tmp_path: Path) -> None:
    result = check(tmp_path, KERNEL.format(**GOOD) + "// Occupancy: stream<*> 256 threads x 1 blocks, 0 B\n")
    assert result.returncode == 1
    assert "and a second plan, stream<*>" in result.stdout


@pytest.mark.parametrize(
    "line", ["stream.cu(3): warning #177-D: unused", "ptxas info : Potential Performance Loss: wgmma"]
)
def test_warnings(line: str, tmp_path: Path) -> None:
    result = check(tmp_path, KERNEL.format(**GOOD) + f"//! {line}\n")
    assert result.returncode == 1
    assert "compiles with warnings for sm_90a" in result.stderr
