"""`linear` and `sparse_linear` on 8- and 4-bit weights. Formats: :mod:`persimmon_ext.quantization`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import takes

_ops = torch.ops.persimmon_ext


def linear_int8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    relu2: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`linear` on int8 weights. weight int8 [N, K]; scale float32 [N], per output feature. Inference only."""
    if takes("linear_int8", x, bias, residual):
        return _ops.linear_int8(x, weight, scale, bias, residual, relu2)
    return reference.linear(x, reference.dequantize_int8(weight, scale, x.dtype), bias, residual, relu2)


def linear_int4(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    relu2: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """:func:`linear` on int4 weights. weight uint8 [N, K/2]; scale float32 [N, K/64], a group each. Inference only."""
    if takes("linear_int4", x, bias, residual):
        return _ops.linear_int4(x, weight, scale, bias, residual, relu2)
    return reference.linear(x, reference.dequantize_int4(weight, scale, x.dtype), bias, residual, relu2)


def sparse_linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None
) -> Tensor:
    """:func:`sparse_linear` on int8 weights. weight int8 [F, C], row j for hidden unit j; scale float32 [C]."""
    if takes("sparse_linear_int8", x, bias, residual):
        return _ops.sparse_linear_int8(x, weight, scale, bias, residual)
    dense = (weight.float() * scale).to(x.dtype)
    return reference.linear(x, dense.T, bias, residual, False)


def sparse_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None
) -> Tensor:
    """:func:`sparse_linear` on int4 weights. weight uint8 [F, C/2]; scale float32 [F, C/64], groups of 64 along C."""
    if takes("sparse_linear_int4", x, bias, residual):
        return _ops.sparse_linear_int4(x, weight, scale, bias, residual)
    return reference.linear(x, reference.dequantize_int4(weight, scale, x.dtype).T, bias, residual, False)


def _fake_linear(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


torch.library.register_fake("persimmon_ext::linear_int8", _fake_linear)
torch.library.register_fake("persimmon_ext::linear_int4", _fake_linear)


@torch.library.register_fake("persimmon_ext::sparse_linear_int8")
def _(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1])


@torch.library.register_fake("persimmon_ext::sparse_linear_int4")
def _(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[1] * 2)
