"""`linear` and `sparse_linear` on 8- and 4-bit weights. Formats: :mod:`persimmon_ext.quantization`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import run, takes

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
    """:func:`linear` on int8 weights. weight int8 [N, K]; scale float32 [N], one for each output feature.

    Differentiable but for the weight.
    """
    if takes("linear_int8", x, bias, residual):
        return run(_ops.linear_int8, x, weight, scale, bias, residual, relu2)
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
    """:func:`linear` on int4 weights. weight uint8 [N, K/2]; scale float32 [N, K/64], one for each group of 64 columns.

    Differentiable but for the weight.
    """
    if takes("linear_int4", x, bias, residual):
        return run(_ops.linear_int4, x, weight, scale, bias, residual, relu2)
    return reference.linear(x, reference.dequantize_int4(weight, scale, x.dtype), bias, residual, relu2)


def sparse_linear_int8(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None
) -> Tensor:
    """:func:`sparse_linear` on int8 weights. weight int8 [F, C], row j for hidden unit j; scale float32 [C]."""
    if takes("sparse_linear_int8", x, bias, residual):
        return run(_ops.sparse_linear_int8, x, weight, scale, bias, residual)
    dense = (weight.float() * scale).to(x.dtype)
    return reference.linear(x, dense.T, bias, residual, False)


def sparse_linear_int4(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None
) -> Tensor:
    """:func:`sparse_linear` on int4 weights. weight uint8 [F, C/2]; scale float32 [F, C/64], groups of 64 along C."""
    if takes("sparse_linear_int4", x, bias, residual):
        return run(_ops.sparse_linear_int4, x, weight, scale, bias, residual)
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


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scale, bias, _residual, *options = inputs
    ctx.relu2 = bool(options and options[0])
    ctx.save_for_backward(x, weight, scale, bias)


def _register_gradient(op: str, dense: Callable[[Tensor, Tensor, torch.dtype], Tensor]) -> None:
    """The gradient of everything but the codes; `dense` gives the weight [N, K] that they stand for."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, bias = ctx.saved_tensors
        matrix = dense(weight, scale, x.dtype)
        dy = grad * 2 * torch.relu(reference.linear(x, matrix, bias, None, False)) if ctx.relu2 else grad
        rows = dy.reshape(math.prod(dy.shape[:-1]), dy.shape[-1])
        gradients = (
            dy @ matrix if ctx.needs_input_grad[0] else None,
            None,
            None,
            rows.sum(0) if ctx.needs_input_grad[3] else None,
            grad if ctx.needs_input_grad[4] else None,
        )
        return gradients if op.startswith("sparse") else (*gradients, None)

    torch.library.register_autograd(f"persimmon_ext::{op}", backward, setup_context=_setup)


_register_gradient("linear_int8", reference.dequantize_int8)
_register_gradient("linear_int4", reference.dequantize_int4)
_register_gradient("sparse_linear_int8", lambda codes, scale, dtype: (codes.float() * scale).to(dtype).T)
_register_gradient("sparse_linear_int4", lambda codes, scale, dtype: reference.dequantize_int4(codes, scale, dtype).T)
