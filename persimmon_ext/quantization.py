"""Weight-only quantisation: the formats that :mod:`persimmon_ext.ops` multiplies with, in plain PyTorch.

int8
    One symmetric scale per output feature: weight = codes * scale, codes in -127..127.
int4
    One scale per group of 64 weights along the contiguous dimension, codes -8..7 stored as code + 8, two a byte: byte i
    (0..31) of a group holds weight i in its low and weight i + 32 in its high four bits.

A hidden-major weight, of the second product of an MLP, is stored transposed, [F, C]: row j holds what hidden unit j
adds to the output, and is not read where that unit is zero.

Dimensions: N output features, K input features, C hidden size, F ffn size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.reference import INT4_GROUP

INT8_LIMIT = 127
INT4_OFFSET = 8  # added to a code before it is stored


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each output feature to multiples of its largest magnitude / 127.

    Args:
        weight: [N, K], any floating dtype.
    Returns: codes int8 [N, K] and scale float32 [N], for `ops.linear_int8`.
    Raises: ValueError for a weight that isn't a matrix or holds an infinity or NaN; TypeError for one of integers.
    """
    weight = _checked(weight)
    scale = weight.abs().amax(dim=1) / INT8_LIMIT if weight.shape[1] else weight.new_zeros(weight.shape[0])
    codes = (weight / _divisor(scale)[:, None]).round().clamp(-INT8_LIMIT, INT8_LIMIT)
    return codes.to(torch.int8), scale


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds each group of 64 weights so that the one of largest magnitude becomes -8 times the scale.

    Args:
        weight: [N, K], any floating dtype; K a multiple of 64.
    Returns: packed uint8 [N, K/2] and scale float32 [N, K/64] (of either sign), for `ops.linear_int4`.
    Raises: ValueError for a weight that isn't a matrix, whose K isn't a multiple of 64, or that holds an infinity or
        NaN; TypeError for one of integers.
    """
    weight = _checked(weight)
    N, K = weight.shape
    if K % INT4_GROUP:
        raise ValueError(f"int4 needs the weight's last dimension to be a multiple of {INT4_GROUP}, got {K}.")
    groups = weight.view(N, K // INT4_GROUP, INT4_GROUP)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scale = largest / -INT4_OFFSET
    codes = (groups / _divisor(scale)[..., None]).round().clamp(-INT4_OFFSET, INT4_OFFSET - 1)
    stored = (codes + INT4_OFFSET).to(torch.uint8)
    low, high = stored.chunk(2, dim=-1)
    return (low | high << 4).flatten(1), scale


def quantize_hidden_major_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`quantize_int8` of weight [C, F], stored by hidden unit.

    Returns: codes int8 [F, C] and scale float32 [C], for `ops.sparse_linear_int8`.
    """
    codes, scale = quantize_int8(weight)
    return codes.T.contiguous(), scale


def quantize_hidden_major_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`quantize_int4` of the transpose of weight [C, F]; C a multiple of 64.

    Returns: packed uint8 [F, C/2] and scale float32 [F, C/64], groups along C, for `ops.sparse_linear_int4`.
    """
    return quantize_int4(_checked(weight).T)


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


def _checked(weight: Tensor) -> Tensor:
    """The weight in float32, contiguous."""
    if weight.dim() != 2:
        raise ValueError(f"The weight must have two dimensions, got shape {list(weight.shape)}.")
    if not weight.is_floating_point():
        raise TypeError(f"The weight must be of a floating dtype, got {weight.dtype}.")
    weight = weight.detach().float().contiguous()
    if not weight.isfinite().all():
        row = int((~weight.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"The weight must be finite, got an infinity or NaN in row {row}.")
    return weight


def _divisor(scale: Tensor) -> Tensor:
    return scale.masked_fill(scale == 0, 1.0)  # a group of zeros has codes 0
