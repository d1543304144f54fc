"""x W^T + b with a fused squared ReLU and residual, and its form that reads only the rows of W^T that matter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import autocast_dtype, run, takes

_ops = torch.ops.persimmon_ext


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu2: bool = False, residual: Tensor | None = None
) -> Tensor:
    """act(x W^T + bias) + residual, act being the squared ReLU or nothing.

    Up to 16 rows run a kernel that streams the weight once and rounds once; above, torch's matrix product does.

    Args:
        x: [..., K].
        weight: [N, K], row-major or hidden-major (strides (1, N)).
        bias: [N] or None.
        relu2: apply max(., 0) squared.
        residual: [..., N] or None.
    Returns: [..., N] in x's dtype (the residual's where autocast makes it wider). Differentiable.
    Raises: ValueError naming the argument whose shape doesn't fit.
    """
    if (dtype := autocast_dtype(x)) is not None:
        y = _linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), None, relu2)
        return y if residual is None else y + residual
    return _linear(x, weight, bias, residual, relu2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu2: bool) -> Tensor:
    if takes("linear", x, weight, bias, residual):
        return run(_ops.linear, x, weight, bias, residual, relu2)
    if residual is not None and residual.shape != (*x.shape[:-1], weight.shape[0]):
        expected = [*x.shape[:-1], weight.shape[0]]
        raise ValueError(f"residual must have shape {expected}, got {list(residual.shape)}.")
    return reference.linear(x, weight, bias, residual, relu2)


def sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None) -> Tensor:
    """x W^T + bias + residual where x has many exact zeros, as after a squared ReLU: only rows j of W^T with some
    x[:, j] not zero are read. The result is that of :func:`linear` on the same input.

    Args:
        x: [..., F].
        weight: [C, F], hidden-major (strides (1, C)) to profit; any other layout runs the dense product.
        bias: [C] or None.
        residual: [..., C] or None.
    Returns: [..., C]. Differentiable.
    """
    if autocast_dtype(x) is None and takes("sparse_linear", x, weight, bias, residual):
        return run(_ops.sparse_linear, x, weight, bias, residual)
    return linear(x, weight, bias, residual=residual)


@torch.library.register_fake("persimmon_ext::linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu2: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("persimmon_ext::sparse_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _residual, *options = inputs
    ctx.relu2 = bool(options and options[0])
    ctx.save_for_backward(x, weight, bias if ctx.relu2 else None)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dy = grad
    if ctx.relu2:  # the pre-activation is computed again rather than kept
        dy = grad * 2 * torch.relu(_ops.linear(x, weight, bias, None, False))
    rows = math.prod(x.shape[:-1])
    rows_dy, rows_x = dy.reshape(rows, dy.shape[-1]), x.reshape(rows, x.shape[-1])
    return (
        dy @ weight if ctx.needs_input_grad[0] else None,
        rows_dy.T @ rows_x if ctx.needs_input_grad[1] else None,
        rows_dy.sum(0) if ctx.needs_input_grad[2] else None,
        grad if ctx.needs_input_grad[3] else None,
    )


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, grad), None)


torch.library.register_autograd("persimmon_ext::linear", _linear_backward, setup_context=_setup)
torch.library.register_autograd("persimmon_ext::sparse_linear", _gradients, setup_context=_setup)
