"""A cache that keeps K and V as 8-bit integers with one scale a head and token: half the memory of 16-bit ones.

Dims: B batch, H heads, S cached length, T new tokens, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.cache import Cache
from persimmon_ext.cache_layer import CacheLayer

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig


class Int8Layer(CacheLayer):
    """K and V of one layer: codes int8 [B, H, S, D] and scales fp32 [B, H, S, 1], kept as two plain layers."""

    def __init__(self, reserve: int = 0) -> None:
        super().__init__(reserve=reserve)
        self._parts = CacheLayer(reserve=reserve), CacheLayer(reserve=reserve)
        self._dtype = torch.float32
        self._joined: tuple[Tensor, ...] | None = None

    @property
    def storage(self) -> tuple[Tensor, ...] | None:
        """Codes of K and V, int8 [B, H, capacity, D], and their scales, float32 [B, H, capacity, 1]; None before the
        first use. The same tuple as long as no storage moves."""
        codes, scales = (part.storage for part in self._parts)
        return None if codes is None or scales is None else self._join(codes, scales)

    def _join(self, codes: tuple[Tensor, ...], scales: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._joined is None or self._joined[0] is not codes[0] or self._joined[2] is not scales[0]:
            self._joined = (*codes, *scales)
        return self._joined

    @property
    def is_initialized(self) -> bool:
        return self._parts[0].is_initialized

    @property
    def keys(self) -> Tensor | None:
        return next((reference.dequantize_rows(*rows, self._dtype) for rows in self._rows()[:1]), None)

    @property
    def values(self) -> Tensor | None:
        return next((reference.dequantize_rows(*rows, self._dtype) for rows in self._rows()[1:]), None)

    @property
    def batch_size(self) -> int | None:
        return self._parts[0].batch_size

    @property
    def capacity(self) -> int:
        return self._parts[0].capacity

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self._parts)

    @property
    def requires_grad(self) -> bool:
        return False

    @property
    def relative_error(self) -> float:
        """Root mean square of the rounding error over that of the values, with errors spread evenly over a step."""
        rows = self._rows()
        error = sum(float(scales.square().sum()) * codes.shape[-1] / 12 for codes, scales in rows)
        total = sum(float((codes * scales).square().sum()) for codes, scales in rows)
        return (error / total) ** 0.5 if total > 0 else 0.0

    def get_seq_length(self) -> int:
        return self._parts[0].get_seq_length()

    @torch.no_grad()
    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `keys` and `values` [B, H, T, D], rounded, and returns all of them [B, H, S + T, D] as they are kept.

        The new ones come back rounded too, so that a text doesn't depend on how it was cut into calls.
        """
        (k_codes, k_scales), (v_codes, v_scales) = (reference.quantize_rows(states) for states in (keys, values))
        self._dtype = keys.dtype
        codes = self._parts[0].update(k_codes, v_codes)
        scales = self._parts[1].update(k_scales, v_scales)
        k, v = (reference.dequantize_rows(*rows, keys.dtype) for rows in zip(codes, scales, strict=True))
        return k, v

    def buffers(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Codes of K and V, int8 [B, H, capacity, D], and their scales, float32 [B, H, capacity, 1]."""
        self._dtype = dtype
        codes = self._parts[0].buffers(shape, torch.int8, device)
        scales = self._parts[1].buffers((*shape[:3], 1), torch.float32, device)
        return self._join(codes, scales)

    def advance(self, tokens: int) -> None:
        for part in self._parts:
            part.advance(tokens)

    def truncate(self, length: int) -> None:
        for part in self._parts:
            part.truncate(length)

    def crop(self, max_length: int) -> None:
        for part in self._parts:
            part.crop(max_length)

    def select_rows(self, rows: Tensor) -> None:
        for part in self._parts:
            part.select_rows(rows)

    def broadcast(self, batch: int, reserve: int) -> Int8Layer:
        twin = Int8Layer(self.reserve)
        codes, scales = (part.broadcast(batch, reserve) for part in self._parts)
        twin._parts, twin._dtype = (codes, scales), self._dtype
        return twin

    def reset(self) -> None:
        self._joined = None
        for part in self._parts:
            part.reset()

    def _rows(self) -> list[tuple[Tensor, Tensor]]:
        """Codes and scales of K, then of V; nothing before the first use."""
        codes, scales = ((part.keys, part.values) for part in self._parts)
        return [(c, s) for c, s in zip(codes, scales, strict=True) if c is not None and s is not None]


class Int8Cache(Cache):
    """A growing cache in 8 bits a value: D + 4 bytes a head and token, for K and V each.

    Decode steps read the codes; for a prompt they are turned back into the model's dtype first. It carries no gradient.
    `reserve`: as in :class:`DynamicCache`.
    """

    is_int8 = True

    def __init__(self, config: PersimmonConfig, reserve: int = 0) -> None:
        super().__init__([Int8Layer(reserve) for _ in range(config.num_hidden_layers)])

    @property
    def relative_error(self) -> float:
        """The largest of the layers' rounding errors, relative to what they hold (root mean squares)."""
        return max((layer.relative_error for layer in self.layers if isinstance(layer, Int8Layer)), default=0.0)
