"""Weight-only quantisation: the formats that :mod:`persimmon_ext.ops` multiplies with, in plain PyTorch.

int8
    One symmetric scale per output feature: weight = codes * scale, codes in -127..127.
int4
    One scale per group of 64 weights along the contiguous dimension, codes -8..7 stored as code + 8, two a byte: byte i
    (0..31) of a group holds weight i in its low and weight i + 32 in its high four bits.

A hidden-major weight, of the second product of an MLP, is stored transposed, [F, C]: row j holds what hidden unit j
adds to the output, and is not read where that unit is zero.

A weight is read once and a piece at a time, so that quantising one never needs a second copy of it.

Dimensions: N output features, K input features, C hidden size, F ffn size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.huge_pages import on_huge_pages
from persimmon_ext.reference import INT4_GROUP

INT8_LIMIT = 127
INT4_OFFSET = 8  # added to a code before it is stored
_PIECE = 2**20  # weights held in float32 at a time


@dataclass(frozen=True)
class Format:
    """What a name such as "int4" stands for."""

    name: str
    bits: int
    group_size: int | None
    """Weights that share a scale; None: all of an output feature."""
    codes_dtype: torch.dtype

    def check_shape(self, out_features: int, in_features: int, *, hidden_major: bool) -> None:
        """Raises ValueError where the dimension that groups run along isn't a multiple of their size."""
        along = out_features if hidden_major else in_features
        if self.group_size is not None and along % self.group_size:
            raise ValueError(
                f"{self.name} needs the weight's {'out' if hidden_major else 'in'}put size to be a multiple of "
                f"{self.group_size}, got {along}."
            )


FORMATS = {
    "int8": Format("int8", 8, None, torch.int8),
    "int4": Format("int4", 4, INT4_GROUP, torch.uint8),
}


def parse_format(name: str) -> Format:
    """The format of that name. Raises ValueError for any other, TypeError for what isn't a string."""
    if not isinstance(name, str):
        raise TypeError(f"quantization must be one of {', '.join(FORMATS)}, got {name!r}.")
    if name not in FORMATS:
        raise ValueError(f"quantization must be one of {', '.join(FORMATS)}, got {name!r}.")
    return FORMATS[name]


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each output feature to multiples of its largest magnitude / 127.

    Args:
        weight: [N, K], any floating dtype.
    Returns: codes int8 [N, K] and scale float32 [N], for `ops.linear_int8`.
    Raises: ValueError for a weight that isn't a matrix or holds an infinity or NaN; TypeError for one of integers.
    """
    _check_matrix(weight)
    codes = on_huge_pages(torch.empty(weight.shape, dtype=torch.int8, device=weight.device))
    return codes, _fill_int8(weight, codes)


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each group of 64 weights so that the one of largest magnitude becomes -8 times the scale.

    Args:
        weight: [N, K], any floating dtype; K a multiple of 64.
    Returns: packed uint8 [N, K/2] and scale float32 [N, K/64] (of either sign), for `ops.linear_int4`.
    Raises: ValueError for a weight that isn't a matrix, whose K isn't a multiple of 64, or that holds an infinity or
        NaN; TypeError for one of integers.
    """
    _check_matrix(weight)
    N, K = weight.shape
    if K % INT4_GROUP:
        raise ValueError(f"int4 needs the weight's last dimension to be a multiple of {INT4_GROUP}, got {K}.")
    packed = on_huge_pages(torch.empty(N, K // 2, dtype=torch.uint8, device=weight.device))
    scale = on_huge_pages(torch.empty(N, K // INT4_GROUP, device=weight.device))
    for rows, piece in _pieces(weight):
        groups = piece.view(len(piece), K // INT4_GROUP, INT4_GROUP)
        largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scale[rows] = largest / -INT4_OFFSET
        codes = (groups / _divisor(scale[rows])[..., None]).round_().clamp_(-INT4_OFFSET, INT4_OFFSET - 1)
        low, high = (codes + INT4_OFFSET).to(torch.uint8).chunk(2, dim=-1)
        packed[rows] = (low | high << 4).flatten(1)
    return packed, scale


def quantize_hidden_major_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`quantize_int8` of weight [C, F], stored by hidden unit.

    Returns: codes int8 [F, C] and scale float32 [C], for `ops.sparse_linear_int8`.
    """
    _check_matrix(weight)
    C, F = weight.shape
    codes = on_huge_pages(torch.empty(F, C, dtype=torch.int8, device=weight.device))
    return codes, _fill_int8(weight, codes.T)


def quantize_hidden_major_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`quantize_int4` of the transpose of weight [C, F]; C a multiple of 64.

    Returns: packed uint8 [F, C/2] and scale float32 [F, C/64], groups along C, for `ops.sparse_linear_int4`.
    """
    _check_matrix(weight)
    return quantize_int4(weight.T)


def dequantize_int8(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that codes int8 [N, K] and scale float32 [N] stand for: [N, K]."""
    if codes.dim() != 2 or scale.shape != codes.shape[:1]:
        raise ValueError(f"codes must be [N, K] and scale [N], got {list(codes.shape)} and {list(scale.shape)}.")
    return reference.dequantize_int8(codes, scale, dtype)


def dequantize_int4(packed: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that packed uint8 [N, K/2] and scale float32 [N, K/64] stand for: [N, K]."""
    group_bytes = INT4_GROUP // 2
    if packed.dim() != 2 or packed.shape != (scale.shape[0], scale.shape[-1] * group_bytes):
        raise ValueError(
            f"packed must be [N, K/2] and scale [N, K/{INT4_GROUP}], got {list(packed.shape)} and {list(scale.shape)}."
        )
    return reference.dequantize_int4(packed, scale, dtype)


def _check_matrix(weight: Tensor) -> None:
    if weight.dim() != 2:
        raise ValueError(f"The weight must have two dimensions, got shape {list(weight.shape)}.")
    if not weight.is_floating_point():
        raise TypeError(f"The weight must be of a floating dtype, got {weight.dtype}.")


def _pieces(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive rows of the weight in float32, contiguous. Raises ValueError where one isn't finite."""
    N, K = weight.shape
    step = max(1, _PIECE // max(K, 1))
    for first in range(0, N, step):
        rows = slice(first, min(first + step, N))
        piece = weight[rows].detach().float().contiguous()
        if not piece.isfinite().all():
            row = first + int((~piece.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"The weight must be finite, got an infinity or NaN in row {row}.")
        yield rows, piece


def _fill_int8(weight: Tensor, codes: Tensor) -> Tensor:
    """Writes the codes [N, K] of the weight [N, K] and returns its scale [N]."""
    N, K = weight.shape
    scale = torch.zeros(N, device=weight.device)
    if K == 0:
        return scale
    for rows, piece in _pieces(weight):
        scale[rows] = piece.abs().amax(dim=1) / INT8_LIMIT
        codes[rows] = (piece / _divisor(scale[rows])[:, None]).round_().clamp_(-INT8_LIMIT, INT8_LIMIT).to(torch.int8)
    return scale


def _divisor(scale: Tensor) -> Tensor:
    return scale.masked_fill(scale == 0, 1.0)  # a group of zeros has codes 0
