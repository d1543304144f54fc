"""The products that follow a LayerNorm in a decoder layer, together with it: what a decode step is made of.

On a GPU with up to 16 rows, :func:`norm_linear` is one kernel and :func:`norm_mlp` two; elsewhere both are the other
ops in turn. A weight is elements of x's dtype, or codes with a scale as :mod:`persimmon_ext.quantization` describes.

Dimensions: C hidden, F ffn, N output features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persimmon_ext.ops.layer_norm import layer_norm
from persimmon_ext.ops.linear import linear, sparse_linear
from persimmon_ext.ops.native import autocast_dtype, run, takes
from persimmon_ext.ops.quantized import linear_int4, linear_int8, sparse_linear_int4, sparse_linear_int8

_ops = torch.ops.persimmon_ext


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """layer_norm(x) W^T + bias; the norm is rounded to x's dtype.

    Args:
        x: [..., C].
        norm_weight, norm_bias: [C].
        eps: added to the variance.
        weight, scale: [N, C] and None, or codes and scale as :func:`linear_int8` or :func:`linear_int4` has them.
        bias: [N] or None.
    Returns: [..., N]. Differentiable but for codes.
    Raises: ValueError naming the argument whose shape doesn't fit, or where codes have no scale.
    """
    if _fuses("norm_linear", x, norm_weight, norm_bias, weight, bias):
        return run(_ops.norm_linear, x, norm_weight, norm_bias, eps, weight, scale, bias)
    return _dense(layer_norm(x, norm_weight, norm_bias, eps), weight, scale, bias, relu2=False)


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    up: Tensor,
    up_scale: Tensor | None,
    up_bias: Tensor | None,
    down: Tensor,
    down_scale: Tensor | None,
    down_bias: Tensor | None,
) -> Tensor:
    """x + relu2(layer_norm(x) up^T + up_bias) down^T + down_bias: the second half of a decoder layer.

    Args:
        x: [..., C].
        norm_weight, norm_bias: [C].
        eps: added to the variance.
        up, up_scale, up_bias: [F, C] and None, or codes and scale as :func:`linear_int8` or :func:`linear_int4` has
            them; [F] or None.
        down, down_scale, down_bias: [C, F], hidden-major to profit from zeros, and None, or codes and scale as
            :func:`sparse_linear_int8` or :func:`sparse_linear_int4` has them; [C] or None.
    Returns: [..., C]. Differentiable but for codes.
    Raises: ValueError naming the argument whose shape doesn't fit, or where codes have no scale.
    """
    if _fuses("norm_mlp", x, norm_weight, norm_bias, up, up_bias, down, down_bias):
        weights = (up, up_scale, up_bias, down, down_scale, down_bias)
        return run(_ops.norm_mlp, x, norm_weight, norm_bias, eps, *weights)
    hidden = _dense(layer_norm(x, norm_weight, norm_bias, eps), up, up_scale, up_bias, relu2=True)
    if down_scale is None:
        return sparse_linear(hidden, down, down_bias, residual=x)
    product = sparse_linear_int8 if down.dtype == torch.int8 else sparse_linear_int4
    return product(hidden, down, down_scale, down_bias, residual=x)


def _fuses(op: str, x: Tensor, *others: Tensor | None) -> bool:
    if torch.is_grad_enabled() or autocast_dtype(x) is not None:
        return False
    return takes(op, x, *(t for t in others if t is not None and t.is_floating_point()))


def _dense(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, *, relu2: bool) -> Tensor:
    if scale is None:
        return linear(x, weight, bias, relu2=relu2)
    product = linear_int8 if weight.dtype == torch.int8 else linear_int4
    return product(x, weight, scale, bias, relu2=relu2)


@torch.library.register_fake("persimmon_ext::norm_linear")
def _(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.register_fake("persimmon_ext::norm_mlp")
def _(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, *weights: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
