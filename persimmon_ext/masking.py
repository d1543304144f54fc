"""What an attention mask means to the kernels: a range of keys per sequence, or else an explicit mask.

Dimensions: B batch, T new tokens, S all tokens (cached and new), H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from persimmon_ext.reference import visible_keys


@dataclass(frozen=True)
class Visibility:
    """Which keys a query may see, beside causality: keys `start` to `length` of each row, or where `mask` says so."""

    start: Tensor | None = None  # int64 [B]; None is 0
    length: Tensor | None = None  # int64 [B]; None is S
    mask: Tensor | None = None  # broadcastable to [B, H, T, S]; boolean (True is visible) or added to the scores

    def explicit(self, T: int, S: int, device: torch.device) -> Tensor:
        """The same as one mask, for attention that keeps its probabilities."""
        return visible_keys(T, S, device, self.start, self.length) if self.mask is None else self.mask


def read_packing(position_ids: Tensor) -> Visibility:
    """Several documents in one row, told by positions that start again: each sees itself alone. position_ids [B, T].

    What transformers reads into positions where there is neither a mask nor a cache.
    """
    if bool((position_ids.diff(dim=1) == 1).all()):
        return Visibility()
    starts = position_ids.diff(dim=1, prepend=position_ids[:, :1] - 1) != 1
    document = starts.cumsum(1)
    T = position_ids.shape[1]
    same = document[:, None, :, None] == document[:, None, None, :]
    return Visibility(mask=same & visible_keys(T, T, position_ids.device))


def read_mask(attention_mask: Tensor, B: int, T: int, S: int, H: int) -> Visibility:
    """Interprets the `attention_mask` argument of a forward call.

    Args:
        attention_mask: [B, S] of 0/1 or booleans, 1 where a token is real; or [B or 1, H or 1, T, S], boolean
            (True is visible) or floating point (added to the scores), which replaces causality too.
    Raises: ValueError for another shape or other values.
    """
    if attention_mask.dim() == 4:
        b, h, t, s = attention_mask.shape
        if b not in (1, B) or h not in (1, H) or (t, s) != (T, S):
            raise ValueError(
                f"A 4-D attention_mask must have shape [{B} or 1, {H} or 1, {T}, {S}] (batch, heads, new tokens, all "
                f"tokens), got {list(attention_mask.shape)}."
            )
        if not (attention_mask.dtype == torch.bool or attention_mask.is_floating_point()):
            raise ValueError(
                "A 4-D attention_mask must be boolean or floating point (added to the scores), got "
                f"{attention_mask.dtype}."
            )
        return Visibility(mask=attention_mask)
    if tuple(attention_mask.shape) != (B, S):
        raise ValueError(
            f"attention_mask must have shape [{B}, {S}] (batch, cached and new tokens) or be 4-D, got "
            f"{list(attention_mask.shape)}."
        )
    real = attention_mask != 0
    if torch.compiler.is_compiling() or real.device.type == "meta":  # no values to look at
        return Visibility(mask=visible_keys(T, S, real.device) & real[:, None, None, :])
    if attention_mask.dtype != torch.bool and not bool(((attention_mask == 1) | ~real).all()):
        raise ValueError(
            f"attention_mask must hold 0 and 1 only, got values from {attention_mask.min().item()} to "
            f"{attention_mask.max().item()}."
        )
    if bool(real.all()):
        return Visibility()
    positions = torch.arange(S, device=real.device)
    start = torch.where(real, positions, S).amin(1)
    length = torch.where(real, positions + 1, 0).amax(1)
    if bool((real.sum(1) == (length - start).clamp(min=0)).all()):  # one run of real tokens in each row
        return Visibility(start=start, length=None if bool((length == S).all()) else length)
    return Visibility(mask=visible_keys(T, S, real.device) & real[:, None, None, :])
