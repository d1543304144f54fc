"""A cache that keeps K and V as 8-bit integers with one scale a head and token: half the memory of 16-bit ones.

Dims: B batch, H heads, S cached length, T new tokens, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
        self._squares: tuple[Tensor, Tensor] | None = None  # sums of squares: of the error, and of what was stored

    @property
    def is_initialized(self) -> bool:
        return self._parts[0].is_initialized

    @property
    def keys(self) -> Tensor | None:
        codes, scales = self._parts[0].keys, self._parts[1].keys
        return None if codes is None or scales is None else _dequantize(codes, scales, self._dtype)

    @property
    def values(self) -> Tensor | None:
        codes, scales = self._parts[0].values, self._parts[1].values
        return None if codes is None or scales is None else _dequantize(codes, scales, self._dtype)

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
        """Root mean square of the rounding error of all that was stored over that of what was stored."""
        if self._squares is None:
            return 0.0
        error, total = self._squares
        return float((error / total.clamp(min=torch.finfo(torch.float32).tiny)).sqrt())

    def get_seq_length(self) -> int:
        return self._parts[0].get_seq_length()

    @torch.no_grad()
    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `keys` and `values` [B, H, T, D], rounded, and returns all of them [B, H, S + T, D] as they are kept.

        The new ones come back rounded too, so that a text doesn't depend on how it was cut into calls.
        """
        quantized = [_quantize(states) for states in (keys, values)]
        (k_codes, k_scales), (v_codes, v_scales) = quantized
        self._dtype = keys.dtype
        codes = self._parts[0].update(k_codes, v_codes)
        scales = self._parts[1].update(k_scales, v_scales)
        self._note_error((keys, values), quantized)
        k, v = (_dequantize(code, scale, keys.dtype) for code, scale in zip(codes, scales, strict=True))
        return k, v

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
        twin._parts, twin._dtype, twin._squares = (codes, scales), self._dtype, self._squares
        return twin

    def reset(self) -> None:
        for part in self._parts:
            part.reset()
        self._squares = None

    def _note_error(self, states: tuple[Tensor, Tensor], quantized: list[tuple[Tensor, Tensor]]) -> None:
        error = states[0].new_zeros((), dtype=torch.float32)
        total = error.clone()
        for exact, (codes, scales) in zip(states, quantized, strict=True):
            error += (codes * scales - exact.float()).square().sum()
            total += exact.float().square().sum()
        before = self._squares or (torch.zeros_like(error), torch.zeros_like(total))
        self._squares = (before[0] + error, before[1] + total)


class Int8Cache(Cache):
    """A growing cache in 8 bits a value: D + 4 bytes a head and token, for K and V each.

    What a call of attention reads is turned back into the model's dtype, so memory is saved and not time. Nothing is
    written in place by kernels, and it carries no gradient. `reserve`: as in :class:`DynamicCache`.
    """

    in_place = False

    def __init__(self, config: PersimmonConfig, reserve: int = 0) -> None:
        super().__init__([Int8Layer(reserve) for _ in range(config.num_hidden_layers)])

    @property
    def relative_error(self) -> float:
        """The largest of the layers' rounding errors, relative to what they hold (root mean squares)."""
        return max((layer.relative_error for layer in self.layers if isinstance(layer, Int8Layer)), default=0.0)


def _quantize(states: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, T, D] -> codes int8 of the same shape, and scales fp32 [B, H, T, 1]."""
    values = states.float()
    scales = values.abs().amax(dim=-1, keepdim=True) / 127
    codes = (values / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
    return codes.to(torch.int8), scales


def _dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes * scales).to(dtype)
