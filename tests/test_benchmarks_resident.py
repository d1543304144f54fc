"""The meter of resident memory shows what is held at a time, and no more."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import resident

HELD = 96 * 2**20
NOISE = 24 * 2**20


def hold(path: Path, count: int, together: bool) -> dict[str, Any]:
    """The facts of an action that has `count` tensors of HELD bytes, together or one after the other."""

    def action() -> None:
        kept = []
        for _ in range(count):
            kept.append(torch.ones(HELD, dtype=torch.uint8))
            if not together:
                kept.clear()

    return resident.watched(action)[1]


def map_file(path: Path) -> dict[str, Any]:
    """The facts of an action that reads every page of a map of a file."""

    def action() -> int:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            return sum(mapped[first] for first in range(0, len(mapped), mmap.PAGESIZE))

    return resident.watched(action)[1]


@pytest.mark.parametrize(("count", "together", "expected"), [(0, True, 0), (1, True, 1), (3, True, 3), (3, False, 1)])
def test_memory_of_tensors(tmp_path: Path, count: int, together: bool, expected: int) -> None:
    facts = resident.in_process(hold, tmp_path, count, together)
    beyond = facts["peak_resident"] - facts["resident_before"]
    assert expected * HELD - NOISE < beyond < expected * HELD + NOISE


def test_pages_of_a_map_are_not_anonymous(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(HELD))
    facts = resident.in_process(map_file, tmp_path / "file")
    assert facts["peak_resident"] - facts["resident_before"] > HELD - NOISE
    assert facts["at_fullest"]["RssAnon"] < facts["resident_before"] + NOISE
