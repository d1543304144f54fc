"""The advice to use huge pages: given for whole ones only, and never an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from persimmon_ext import _C
from persimmon_ext.huge_pages import on_huge_pages

HUGE = 2 << 20
SMAPS = Path("/proc/self/smaps")
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def advised(address: int) -> bool:
    """Whether the mapping that holds `address` has the flag "hg", huge pages advised."""
    inside = False
    for line in SMAPS.read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:#x}")


@pytest.mark.skipif(not (SMAPS.exists() and THP.exists()), reason="needs Linux with transparent huge pages")
def test_whole_huge_pages_are_advised_and_what_lies_around_is_not() -> None:
    bytes = 32 * HUGE + 12345  # a mapping of its own
    tensor = on_huge_pages(torch.empty(bytes, dtype=torch.uint8))
    first = -(-tensor.data_ptr() // HUGE) * HUGE
    assert advised(first)
    assert advised(first + 30 * HUGE)
    if first - tensor.data_ptr() >= 4096:
        assert not advised(tensor.data_ptr())
    tensor.fill_(7)
    assert int(tensor[-1]) == 7


@pytest.mark.skipif(not (SMAPS.exists() and THP.exists()), reason="needs Linux with transparent huge pages")
def test_large_outputs_are_advised() -> None:
    """Also those that the heap serves: it gives its end back, and maps it anew page by page."""
    x, ones = torch.zeros(3 * HUGE // 2048, 1024, dtype=torch.bfloat16), torch.ones(1024, dtype=torch.bfloat16)
    for y in torch.ops.persimmon_ext.add_layer_norm(x, x, ones, ones, 1e-5):
        assert advised(-(-y.data_ptr() // HUGE) * HUGE)


@pytest.mark.parametrize("bytes", [0, 1, 4096, HUGE - 1])
def test_memory_too_small_for_a_huge_page_is_left_alone(bytes: int) -> None:
    tensor = torch.zeros(bytes, dtype=torch.uint8)
    assert on_huge_pages(tensor) is tensor
    _C.advise_huge_pages(0, bytes)


def test_the_whole_storage_of_a_strided_tensor_is_advised() -> None:
    tensor = torch.empty(4096, 8192, dtype=torch.bfloat16).T
    assert on_huge_pages(tensor) is tensor
    if SMAPS.exists() and THP.exists():
        assert advised(-(-tensor.data_ptr() // HUGE) * HUGE)


def test_tensors_without_memory_pass() -> None:
    meta = torch.empty(1 << 24, device="meta")
    assert on_huge_pages(meta) is meta
    with FakeTensorMode():
        fake = torch.empty(1 << 24)
        assert on_huge_pages(fake) is fake
