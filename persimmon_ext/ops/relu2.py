"""Squared ReLU with an optional bias."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import register_once_differentiable, run, takes

_ops = torch.ops.persimmon_ext


def relu2(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """max(x + bias, 0) squared (So et al. 2021, Primer), one rounding.

    Args:
        x: [..., F].
        bias: [F] or None.
    Returns: [..., F] in x's dtype. Differentiable.
    """
    if bias is not None and bias.dtype != x.dtype:  # autocast: the product is 16-bit, the bias float32
        bias = bias.to(x.dtype)
    if takes("relu2", x, bias, backward="relu2_backward"):
        return run(_ops.relu2, x, bias)
    return reference.relu2(x, bias)


@torch.library.register_fake("persimmon_ext::relu2")
def _(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("persimmon_ext::relu2_backward")
def _(grad: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    dx = _ops.relu2_backward(grad, x, bias)
    return dx, dx.reshape(math.prod(dx.shape[:-1]), dx.shape[-1]).sum(0) if bias is not None else None


torch.library.register_autograd("persimmon_ext::relu2", _backward, setup_context=_setup)
register_once_differentiable("relu2_backward")
