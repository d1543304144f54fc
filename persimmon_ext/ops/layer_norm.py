"""LayerNorm, and residual add + LayerNorm in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import promote, register_once_differentiable, run, takes

_ops = torch.ops.persimmon_ext


def check_eps(eps: float) -> None:
    """Raises ValueError for what no norm can add to the variance, in the kernels' words."""
    if not 0.0 <= eps < float("inf"):
        raise ValueError(f"eps must be finite and not negative, got {eps:g}.")


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension (Ba et al. 2016), statistics in float32, one rounding.

    Args:
        x: [..., C].
        weight, bias: [C].
        eps: added to the variance.
    Returns: [..., C] in x's dtype (the widest of the three under autocast). Differentiable.
    Raises: ValueError where weight or bias isn't [C], or eps is negative or not finite; TypeError where dtypes can't be
        combined.
    """
    x, weight, bias = promote(x, weight, bias)
    if takes("layer_norm", x, weight, bias, backward="layer_norm_backward"):
        return run(_ops.layer_norm, x, weight, bias, eps)
    check_eps(eps)
    return reference.layer_norm(x, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, LayerNorm of that sum) in one pass; the sum is rounded to the dtype before it is normalised.

    Args:
        x, residual: [..., C].
        weight, bias: [C].
        eps: added to the variance.
    Returns: two tensors [..., C]. Differentiable.
    """
    x, residual, weight, bias = promote(x, residual, weight, bias)
    if takes("add_layer_norm", x, residual, weight, bias, backward="layer_norm_backward"):
        return run(_ops.add_layer_norm, x, residual, weight, bias, eps)
    check_eps(eps)
    return reference.add_layer_norm(x, residual, weight, bias, eps)


@torch.library.register_fake("persimmon_ext::layer_norm")
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("persimmon_ext::add_layer_norm")
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, torch.empty_like(y)


@torch.library.register_fake("persimmon_ext::layer_norm_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), torch.empty_like(weight)


def _setup_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _layer_norm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    return (*_ops.layer_norm_backward(grad, x, weight, ctx.eps), None)


def _setup_add_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, _, ctx.eps = inputs
    ctx.save_for_backward(output[0], weight)


def _add_layer_norm_backward(ctx: Any, grad_sum: Tensor, grad_normed: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, dweight, dbias = _ops.layer_norm_backward(grad_normed, total, weight, ctx.eps)
    dx = dx + grad_sum
    return dx, dx, dweight, dbias, None


torch.library.register_autograd("persimmon_ext::layer_norm", _layer_norm_backward, setup_context=_setup_layer_norm)
torch.library.register_autograd(
    "persimmon_ext::add_layer_norm", _add_layer_norm_backward, setup_context=_setup_add_layer_norm
)
register_once_differentiable("layer_norm_backward")
