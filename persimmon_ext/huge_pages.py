"""Weights and caches on huge pages: memory that a step streams through is then read faster."""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext import _C


def on_huge_pages(tensor: Tensor) -> Tensor:
    """Asks the system to back a CPU tensor, which nobody has written to yet, by pages of 2 MiB. Returns the tensor.

    Reading a weight on pages of 4 KiB is held up by looking up their addresses, most of all on a virtual machine:
    docs/performance.md has the figures. A hint, without effect where the system has no such pages.
    """
    if type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        storage = tensor.untyped_storage()
        _C.advise_huge_pages(storage.data_ptr(), storage.nbytes())
    return tensor
