"""Cross entropy from hidden states and head, without the [N, V] logits ever existing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import autocast_dtype, register_once_differentiable, takes

_ops = torch.ops.persimmon_ext


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Per-row cross entropy of the logits hidden W^T, by tiles of the vocabulary.

    A tile's logits are those of a matrix product in `hidden`'s dtype; maximum, sum and loss are float32. In the
    gradients a tile's product is rounded to that dtype, and tiles are added in float32.

    Args:
        hidden: [N, C].
        weight: [V, C].
        labels: int64 [N], each from 0 to V - 1 or `ignore_index`.
        ignore_index: rows with this label have loss 0 and no gradient.
    Returns: loss and log-sum-exp, both float32 [N]. The loss is differentiable; sum or average it as needed.
    Raises: IndexError naming a label that is out of range; on a CUDA device, where reading the labels would wait for
        it, such a row's loss is NaN instead.
    Source: Wijmans et al. 2024, "Cut your losses in large-vocabulary language models".
    """
    if (dtype := autocast_dtype(hidden)) is not None:
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if takes("linear_cross_entropy", hidden, weight, backward="linear_cross_entropy_backward"):
        return _ops.linear_cross_entropy(hidden, weight, labels, ignore_index)
    return reference.linear_cross_entropy(hidden, weight, labels, ignore_index)


@torch.library.register_fake("persimmon_ext::linear_cross_entropy")
def _(hidden: Tensor, weight: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    rows = hidden.shape[0]
    return hidden.new_empty(rows, dtype=torch.float32), hidden.new_empty(rows, dtype=torch.float32)


@torch.library.register_fake("persimmon_ext::linear_cross_entropy_backward")
def _(
    dloss: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, lse: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, labels, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(hidden, weight, labels, output[1])


def _backward(ctx: Any, dloss: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    dhidden, dweight = _ops.linear_cross_entropy_backward(dloss, *ctx.saved_tensors, ctx.ignore_index)
    return dhidden, dweight, None, None


torch.library.register_autograd("persimmon_ext::linear_cross_entropy", _backward, setup_context=_setup)
register_once_differentiable("linear_cross_entropy_backward")
