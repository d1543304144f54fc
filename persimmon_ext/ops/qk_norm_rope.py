"""LayerNorm of query and key heads and partial rotary embedding in one pass, also straight into a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.layer_norm import check_eps
from persimmon_ext.ops.native import (
    CUDA_HEAD_DIM,
    CUDA_ROTARY_DIM,
    refuse_gradients,
    register_once_differentiable,
    run,
    takes,
)

_ops = torch.ops.persimmon_ext


def given_norms(*norms: Tensor | None) -> list[Tensor]:
    """The norms' parameters: all four, or none for a model without QK-norm."""
    given = [parameter for parameter in norms if parameter is not None]
    if len(given) not in (0, len(norms)):
        raise ValueError(
            f"q_weight, q_bias, k_weight and k_bias must be all given or all None, and {len(given)} are given."
        )
    return given


def has_cuda_sizes(qkv: Tensor, cos: Tensor) -> bool:
    """Whether the CUDA kernels are written for this head and rotary dimension."""
    return qkv.shape[-1] == CUDA_HEAD_DIM and 2 * cos.shape[-1] == CUDA_ROTARY_DIM


def qk_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Splits the fused projection; normalises q and k over D, then rotates their first R dims in pairs (i, i + R/2).

    Args:
        qkv: [B, T, H, 3, D].
        q_weight, q_bias, k_weight, k_bias: [D], shared by the heads; None for a model without QK-norm.
        cos, sin: float32 [B or 1, T, R/2].
        eps: added to the variance.
    Returns: q, k, v, each [B, H, T, D], contiguous. Differentiable in qkv and the norms' parameters.
    Raises: ValueError naming the argument whose shape doesn't fit, or an eps that is negative or not finite.
    Source: QK-norm, Dehghani et al. 2023; rotary, Su et al. 2021; the order is that of Adept's Persimmon.
    """
    norms = (q_weight, q_bias, k_weight, k_bias)
    parameters = given_norms(*norms)
    if parameters and qkv.dtype != parameters[0].dtype:  # autocast: 16-bit activations, float32 parameters
        qkv = qkv.to(torch.promote_types(qkv.dtype, parameters[0].dtype))
    if (
        parameters
        and takes("qk_norm_rope", qkv, *norms, backward="qk_norm_rope_backward", fits_cuda=has_cuda_sizes(qkv, cos))
        and cos.dtype == torch.float32
    ):
        return run(_ops.qk_norm_rope, qkv, *parameters, cos, sin, eps)
    check_eps(eps)
    return reference.qk_norm_rope(qkv, *norms, cos, sin, eps)


def qk_norm_rope_append_(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    eps: float,
) -> Tensor:
    """:func:`qk_norm_rope` that writes k and v into the caches instead of returning them. Not differentiable.

    Args:
        k_cache, v_cache: [B, H, S, D], written in place.
        slots: int64 [B, T], the cache slot of each token; -1 is not written.
    Returns: q [B, H, T, D].
    Raises: IndexError for a slot outside the cache; on a CUDA device, where reading the slots would wait for the
        device, it is not written instead.
    """
    norms = (q_weight, q_bias, k_weight, k_bias)
    parameters = given_norms(*norms)
    refuse_gradients("qk_norm_rope_append_", qkv, *norms, k_cache, v_cache)
    if parameters and takes("qk_norm_rope_append_", qkv, *norms, k_cache, v_cache, fits_cuda=has_cuda_sizes(qkv, cos)):
        return _ops.qk_norm_rope_append_(qkv, *parameters, cos, sin, k_cache, v_cache, slots, eps)
    check_eps(eps)
    q, k, v = reference.qk_norm_rope(qkv, *norms, cos, sin, eps)
    reference.append_(k.to(k_cache.dtype), v.to(v_cache.dtype), k_cache, v_cache, slots)
    return q


@torch.library.register_fake("persimmon_ext::qk_norm_rope")
def _(qkv: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, _, D = qkv.shape
    return qkv.new_empty(B, H, T, D), qkv.new_empty(B, H, T, D), qkv.new_empty(B, H, T, D)


@torch.library.register_fake("persimmon_ext::qk_norm_rope_append_")
def _(qkv: Tensor, *arguments: Any) -> Tensor:
    B, T, H, _, D = qkv.shape
    return qkv.new_empty(B, H, T, D)


@torch.library.register_fake("persimmon_ext::qk_norm_rope_backward")
def _(
    dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, q_weight: Tensor, k_weight: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    return (
        dqkv,
        torch.empty_like(q_weight),
        torch.empty_like(q_weight),
        torch.empty_like(k_weight),
        torch.empty_like(k_weight),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, q_weight, _, k_weight, _, cos, sin, ctx.eps = inputs
    ctx.save_for_backward(qkv, q_weight, k_weight, cos, sin)


def _backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    return (*_ops.qk_norm_rope_backward(dq, dk, dv, *ctx.saved_tensors, ctx.eps), None, None, None)


torch.library.register_autograd("persimmon_ext::qk_norm_rope", _backward, setup_context=_setup)
register_once_differentiable("qk_norm_rope_backward")
