"""What the numbers were measured on: facts of the machine, and its ceilings, measured in the same run."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Sample, measure
from persimmon_ext import _C
from persimmon_ext.huge_pages import on_huge_pages

Facts = dict[str, Any]

_DEFAULT_CACHE_BYTES = 32 << 20


def facts(device: torch.device) -> Facts:
    """Everything that a reader needs to judge a number or to repeat it."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _C.cpu_isa(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "last_level_cache_bytes": last_level_cache(device),
        "load_average": os.getloadavg()[0],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "commit": _commit(),
    }


def stamp(program: str) -> Facts:
    """Which command was run, and when."""
    now = datetime.now(timezone.utc)
    command = " ".join(["python", "-m", f"benchmarks.{program}", *sys.argv[1:]])
    return {"program": program, "command": command, "date": now.strftime("%Y-%m-%d %H:%M UTC")}


def last_level_cache(device: torch.device) -> int:
    """Bytes of the largest cache that `device` reads through."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = file.read_text().strip()
        sizes.append(int(size[:-1]) << {"K": 10, "M": 20}[size[-1]])
    return max(sizes) or _DEFAULT_CACHE_BYTES


class MemoryReader:
    """Reads a buffer far larger than the caches: evicts all else from them and, timed, tells the memory's bandwidth.
    On a GPU it copies one half of the buffer to the other, the usual measure there.

    The bandwidth of a shared machine changes from second to second, so it is measured between the timed runs, not once.
    """

    def __init__(self, device: torch.device, megabytes: int) -> None:
        self.words = on_huge_pages(torch.empty(megabytes << 17, dtype=torch.int64, device=device)).fill_(1)

    def __call__(self) -> None:
        if self.words.is_cuda:
            source, target = self.words.chunk(2)
            target.copy_(source)
        else:
            self.words.amax()  # the fastest of torch's reductions

    def rest(self) -> None:
        """After a call: leaves nothing in the cache that a next kernel would have to wait for being written back."""
        if self.words.is_cuda:
            self.words[: 2 * last_level_cache(self.words.device) // self.words.element_size()].amax()

    def bytes_per_s(self, sample: Sample) -> float:
        """Bytes that move between memory and processor a second, from the times of calls."""
        return self.words.nbytes / sample.median


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int) -> float:
    """FLOP/s of torch's matrix product of two square matrices."""
    generator = torch.Generator(device).manual_seed(0)  # of equal numbers, a GPU's product takes less power and time
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    sample = measure({"matmul": lambda: a @ b.T}, device=device, repeats=8, queued=True)["matmul"]
    return 2 * size**3 / sample.median


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far: of the device, or of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        out = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return out.stdout.strip() or "unknown"
