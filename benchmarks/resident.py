"""Resident memory of an action in a process of its own, and whether there is room for it.

Resident memory is what the kernel counts for the process: the peak is VmHWM of /proc/PID/status, the split between
anonymous memory and pages of mapped files is that of the fullest of samples taken every 20 ms. The page cache that
reading leaves behind belongs to no process and isn't counted.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

_SAMPLE_S = 0.02
_SPARE_DISK = 1.02
_SPARE_MEMORY = 1.08
_BUFFER = 2**23
_COUNTS = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")


def watched(action: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `action` returned; and its seconds, the process's memory before it and the most since it began to live."""
    before = _memory()
    samples: list[dict[str, int]] = [before]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            samples.append(_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    begin = time.perf_counter()
    try:
        result = action()
    finally:
        seconds = time.perf_counter() - begin
        done.set()
        thread.join()
    fullest = max(samples, key=lambda counts: counts["VmRSS"])
    return result, {
        "seconds": seconds,
        "resident_before": before["VmRSS"],
        "peak_resident": _memory()["VmHWM"],
        "at_fullest": {name: fullest[name] for name in ("RssAnon", "RssFile", "RssShmem")},
    }


def in_process(function: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    """The result of function(path, …) in a fresh process, the files there dropped from the page cache."""
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, path, *arguments).result()


def read_once(path: Path) -> float:
    """Seconds to read the file, or all files of the folder, into one small buffer, one after the other."""
    buffer = memoryview(bytearray(_BUFFER))
    begin = time.perf_counter()
    for file in _files(path):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def check_room(folder: Path | None, disk: int, memory: int) -> None:
    """Exits with a sentence where `folder` (None: that of temporary files) has too little disk for so many bytes, or
    the machine too little memory."""
    place = Path(tempfile.gettempdir()) if folder is None else folder
    free = shutil.disk_usage(place).free
    if free < disk * _SPARE_DISK:
        sys.exit(f"The checkpoint needs {disk / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB free.")
    available = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    )
    if available < memory * _SPARE_MEMORY:
        sys.exit(f"Loading needs {memory * _SPARE_MEMORY / 1e9:.1f} GB, and {available / 1e9:.1f} GB are available.")


def _files(path: Path) -> list[Path]:
    """`path`, or the files of the folder `path`; none where there is nothing yet."""
    return sorted(file for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())


def _memory() -> dict[str, int]:
    """Bytes by the names that /proc/PID/status gives them."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) << 10 for words in fields if words and words[0][:-1] in _COUNTS}
