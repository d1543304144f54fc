"""Copies stored tensors into a model's, or quantises them, a few megabytes at a time, in several threads.

A piece goes straight into place where file and memory agree; else through a small buffer that converts its dtype or its
layout, is quantised from, or (pinned) carries it to a GPU. Each thread has one buffer, so one reads while another one's
copy is under way. Memory that nobody has touched yet is slow to write for the first time: that too is why there are
several threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.weight_file import WeightFile
from persimmon_ext.quantized_layers import QuantizedLinear

_PIECE = 2**22  # bytes read at a time
_TRANSPOSED_ROWS = 16  # more of them at once leave the first-level cache, fewer waste its lines
_MOST_THREADS = 8


class Filler:
    """A context in which tensors are filled; leaving it waits for the last one, and raises what went wrong first."""

    def __init__(self, progress: Any) -> None:
        """`progress.update(bytes)` is called from the thread that made this as pieces are done."""
        self._progress = progress
        self._pool = ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0))))
        self._own = threading.local()
        self._pending: list[tuple[Future[None], int]] = []

    def __enter__(self) -> Filler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=error is not None)

    def fill(self, weights: WeightFile, name: str, target: Tensor) -> None:
        """Begins to copy tensor `name` of `weights` into `target`, of the same shape, on any device."""
        info = weights.infos[name]
        target = target.detach()
        if not info.row_major:
            self._submit(info.nbytes, self._copy_whole, weights, name, target)
        elif target.device.type == "cpu" and target.is_contiguous() and target.dtype == info.dtype:
            flat = target.view(-1)
            for first, last in _ranges(info.numel, _PIECE // info.dtype.itemsize):
                self._submit((last - first) * info.dtype.itemsize, weights.fill, name, first, flat[first:last])
        else:
            row_bytes = info.nbytes // max(1, _length(target))
            for first, last in _ranges(_length(target), max(1, _PIECE // max(1, row_bytes))):
                self._submit((last - first) * row_bytes, self._copy_rows, weights, name, target, first, last)

    def quantize(self, weights: WeightFile, name: str, layer: QuantizedLinear, device: torch.device) -> None:
        """Begins to quantise tensor `name` of `weights`, the weight of `layer`, on `device`, where the codes stay;
        one that isn't stored row by row, before it gets there."""
        info = weights.infos[name]
        if not info.row_major:
            self._submit(info.nbytes, self._quantize_whole, weights, name, layer, device)
            return
        layer.allocate(device)
        row_bytes, together = info.nbytes // info.shape[0], layer.rows_together
        step = max(1, _PIECE // (row_bytes * together)) * together
        for first, last in _ranges(info.shape[0], step):
            self._submit((last - first) * row_bytes, self._quantize_rows, weights, name, layer, first, last)

    def wait(self) -> None:
        """Until everything that was begun is in place. Raises what went wrong first, when no thread reads any more."""
        try:
            for future, size in self._pending:
                future.result()
                self._progress.update(size)
        except BaseException:
            begun = [future for future, _ in self._pending if not future.cancel()]
            wait_for(begun)
            raise
        self._pending.clear()

    def equals(self, weights: WeightFile, name: str, tensor: Tensor) -> bool:
        """Whether tensor `name` of `weights`, rounded to the dtype of `tensor`, equals it. Holds a piece at a time."""
        info = weights.infos[name]
        if not info.row_major:
            return _equal(tensor, weights.read(name).to(tensor))
        step = max(1, _PIECE // max(1, info.nbytes // max(1, _length(tensor))))
        for first, last in _ranges(_length(tensor), step):
            if not _equal(_rows(tensor, first, last), self._piece(weights, name, first, last).to(tensor)):
                return False
        return True

    def _submit(self, size: int, function: Any, *arguments: Any) -> None:
        self._pending.append((self._pool.submit(function, *arguments), size))

    def _copy_whole(self, weights: WeightFile, name: str, target: Tensor) -> None:
        target.copy_(weights.read(name))

    def _copy_rows(self, weights: WeightFile, name: str, target: Tensor, first: int, last: int) -> None:
        """Rows `first` to `last` through this thread's buffer."""
        if target.device.type == "cuda":
            piece = self._piece(weights, name, first, last, pinned=True)
            # Converted and transposed there: the bus carries what the file holds.
            _rows(target, first, last).copy_(piece.to(target.device, non_blocking=True))
            torch.cuda.current_stream(target.device).synchronize()  # the buffer is free again
            return
        step = last - first if target.is_contiguous() else _TRANSPOSED_ROWS
        for begin in range(first, last, step):
            end = min(begin + step, last)
            _rows(target, begin, end).copy_(self._piece(weights, name, begin, end))

    def _quantize_whole(self, weights: WeightFile, name: str, layer: QuantizedLinear, device: torch.device) -> None:
        weight = weights.read(name)
        with _finite(name, 0, weight):
            layer.set_weight(weight, device)

    def _quantize_rows(self, weights: WeightFile, name: str, layer: QuantizedLinear, first: int, last: int) -> None:
        """Rows `first` to `last` through this thread's buffer."""
        device = layer.codes.device
        is_gpu = device.type == "cuda"
        piece = self._piece(weights, name, first, last, pinned=is_gpu)
        with _finite(name, first, piece):
            layer.set_rows(first, piece.to(device, non_blocking=True) if is_gpu else piece)
        if is_gpu:
            torch.cuda.current_stream(device).synchronize()  # the buffer is free again

    def _piece(self, weights: WeightFile, name: str, first: int, last: int, *, pinned: bool = False) -> Tensor:
        """Rows `first` to `last` in this thread's buffer, valid until the next call."""
        info = weights.infos[name]
        row = torch.Size(info.shape[1:]).numel()
        shape = (last - first, *info.shape[1:]) if info.shape else ()
        piece = self._buffer((last - first) * row * info.dtype.itemsize, pinned).view(info.dtype).view(shape)
        weights.fill(name, first * row, piece)
        return piece

    def _buffer(self, size: int, pinned: bool) -> Tensor:
        buffer: Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or buffer.numel() < size or buffer.is_pinned() < pinned:
            buffer = torch.empty(max(size, _PIECE), dtype=torch.uint8, pin_memory=pinned)
            self._own.buffer = buffer
        return buffer[:size]


@contextmanager
def _finite(name: str, first: int, rows: Tensor) -> Iterator[None]:
    """A context for quantising `rows`, from row `first`, of a tensor: one that can't be is a CheckpointError."""
    try:
        yield
    except ValueError as error:
        row = first + int((~rows.float().isfinite()).any(dim=1).nonzero()[0])
        raise CheckpointError(f"{name} can't be quantised: there is an infinity or NaN in its row {row}.") from error


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether all values are equal, NaNs counting as equal to each other."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _length(tensor: Tensor) -> int:
    """Number of rows; a tensor without dimensions is one."""
    return tensor.shape[0] if tensor.dim() else 1


def _rows(tensor: Tensor, first: int, last: int) -> Tensor:
    return tensor[first:last] if tensor.dim() else tensor


def _ranges(length: int, step: int) -> Iterator[tuple[int, int]]:
    steps: Iterable[int] = range(0, length, step)
    return ((first, min(first + step, length)) for first in steps)
