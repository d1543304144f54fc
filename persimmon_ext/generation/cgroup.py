"""Memory that the control groups of this process leave it: what a container may use, whatever the machine has.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class _Version:
    """Where a version of control groups is mounted, and the names of its files."""

    mount: str
    limit: str
    usage: str
    reclaimable: str  # in memory.stat: what is given back when memory runs short


_V1 = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def unused_bytes(root: Path = Path("/")) -> int | None:
    """Bytes up to the nearest limit of this process's control groups and those around them; None without a limit.

    `root`: where the system's files lie.
    """
    unused = [_unused(folder, version) for folder, version in _groups(root)]
    return min((number for number in unused if number is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of the memory control groups of this process, the innermost first."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        # In a container the path may be the host's, and what is mounted is the container's own group.
        inner = PurePosixPath(path).relative_to("/")
        for group in (inner, *inner.parents):
            yield root / version.mount / group, version


def _unused(folder: Path, version: _Version) -> int | None:
    try:
        limit = int((folder / version.limit).read_text())
        used = int((folder / version.usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return None
    return max(limit - used + int(statistics.get(version.reclaimable, 0)), 0)
