"""Rows of a tensor that are kept in a temporary file, and how they and the rest become the whole tensor again.

Dimensions: V vocab, K rows that are kept.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_ROWS = 512  # handled at a time


class DroppedRows:
    """Rows of a tensor [V, …] in a temporary file, which goes when this does."""

    def __init__(self, tensor: Tensor, ids: Tensor) -> None:
        """Writes the rows `ids` of `tensor`."""
        self.dtype = tensor.dtype
        self.row_shape = tuple(tensor.shape[1:])
        self._row_bytes = tensor[:1].nbytes
        self._file = tempfile.TemporaryFile(prefix="persimmon-dropped-rows-")  # noqa: SIM115, lives as long as this
        for first in range(0, len(ids), _ROWS):
            rows = tensor.detach()[ids[first : first + _ROWS].to(tensor.device)].cpu().contiguous()
            self._file.write(memoryview(rows.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        self._file.flush()

    def rows(self, first: int, count: int) -> Tensor:
        """Rows `first` and on, of those that were dropped, on the CPU: [count, …]."""
        content = bytearray(os.pread(self._file.fileno(), count * self._row_bytes, first * self._row_bytes))
        if not content:
            return torch.empty((0, *self.row_shape), dtype=self.dtype)
        return torch.frombuffer(content, dtype=torch.uint8).view(self.dtype).view(count, *self.row_shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> DroppedRows:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        raise TypeError(
            "A model with a trimmed vocabulary can't be pickled; restore_vocab() first, or save_pretrained."
        )


def whole_rows(kept: Tensor, dropped: DroppedRows, is_kept: Tensor) -> Iterator[Tensor]:
    """The rows of the whole tensor [V, …] in order, some at a time, on the CPU and in the dtype of `kept` [K, …].

    is_kept: bool [V], on the CPU.
    """
    kept_before = torch.cat([torch.zeros(1, dtype=torch.int64), is_kept.cumsum(0)]).tolist()
    for first in range(0, len(is_kept), _ROWS):
        here = is_kept[first : first + _ROWS]
        begin, end = kept_before[first], kept_before[first + len(here)]
        piece = torch.empty((len(here), *kept.shape[1:]), dtype=kept.dtype)
        piece[here] = kept.detach()[begin:end].cpu()
        piece[~here] = dropped.rows(first - begin, len(here) - (end - begin)).to(kept.dtype)
        yield piece


def whole_tensor(kept: Tensor, dropped: DroppedRows, is_kept: Tensor) -> Tensor:
    """:func:`whole_rows` as one tensor [V, …], on the device of `kept` [K, …]."""
    whole = torch.empty((len(is_kept), *kept.shape[1:]), dtype=kept.dtype, device=kept.device)
    first = 0
    for piece in whole_rows(kept, dropped, is_kept):
        whole[first : first + len(piece)] = piece.to(kept.device)
        first += len(piece)
    return whole
