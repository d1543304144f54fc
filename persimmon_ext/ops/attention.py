"""Causal attention over whole sequences, and the fused decode step over a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops.native import (
    CUDA_HEAD_DIM,
    autocast_dtype,
    refuse_gradients,
    register_once_differentiable,
    run,
    takes,
)
from persimmon_ext.ops.qk_norm_rope import given_norms, has_cuda_sizes, qk_norm_rope, qk_norm_rope_append_

_ops = torch.ops.persimmon_ext

#: New tokens that one decode_attention_ call takes at most.
MAX_DECODE_TOKENS = 8


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    start: Tensor | None = None,
    length: Tensor | None = None,
    offset: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention; softmax state and log-sum-exp in float32.

    Key s of sequence b is visible to its query t where ``start[b] <= s < length[b]`` and ``s <= offset[b] + t``.

    Args:
        q: [B, H, T, D].
        k, v: [B, H, S, D]; views into a larger cache are fine.
        start: int64 [B], first valid key (left padding), default 0.
        length: int64 [B], keys that are valid, default S.
        offset: int64 [B], cache slot of the first query, default S - T.
        scale: of the scores, default 1 / sqrt(D).
    Returns: out [B, T, H, D] and the scores' log-sum-exp, float32 [B, H, T]. A query that sees no key gives 0 and -inf.
        Differentiable in q, k, v through `out` (the log-sum-exp carries no gradient).
    Raises: ValueError naming the argument whose shape doesn't fit, or a scale that isn't finite.
    Source: online softmax, Milakov and Gimelshein 2018; blocked as in FlashAttention, Dao et al. 2022.
    """
    if (dtype := autocast_dtype(q)) is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    fits_cuda = q.dtype != torch.float32 and q.shape[-1] == CUDA_HEAD_DIM  # the tensor cores' dtypes
    if takes("attention", q, k, v, backward="attention_backward", fits_cuda=fits_cuda):
        return run(_ops.attention, q, k, v, start, length, offset, scale)
    _check_scale(scale)
    if k.shape != (*q.shape[:2], k.shape[2], q.shape[3]) or v.shape != k.shape:
        shapes = f"{list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        raise ValueError(f"q must be [B, H, T, D], and k and v [B, H, S, D]; got {shapes}.")
    return reference.attention(q, k, v, start, length, offset, scale)


def decode_attention_(
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
    *,
    start: Tensor | None = None,
    eps: float,
    scale: float | None = None,
) -> Tensor:
    """One decode step's attention: norm, rotary, append to the cache, attention over it. Not differentiable.

    Args:
        qkv: [B, T, H, 3, D] with T from 1 to 8.
        q_weight, q_bias, k_weight, k_bias, cos, sin, k_cache, v_cache, eps: see :func:`qk_norm_rope_append_`.
        slots: int64 [B, T], consecutive in each row: token t sees the cache from `start` to its own slot. On a CUDA
            device only the first of a row is read, and a token whose slot is outside the cache is not written.
        start: int64 [B], first valid slot, default 0.
        scale: of the scores, default 1 / sqrt(D).
    Returns: [B, T, H, D].
    """
    norms, caches = (q_weight, q_bias, k_weight, k_bias), (k_cache, v_cache)

    def append() -> tuple[Tensor, Tensor, Tensor]:
        q = qk_norm_rope_append_(qkv, *norms, cos, sin, k_cache, v_cache, slots, eps)
        return q, k_cache, v_cache

    return _decode("decode_attention_", append, qkv, norms, cos, sin, caches, slots, start, eps, scale, alike=caches)


def decode_attention_int8_(
    qkv: Tensor,
    q_weight: Tensor | None,
    q_bias: Tensor | None,
    k_weight: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor,
    v_scale: Tensor,
    slots: Tensor,
    *,
    start: Tensor | None = None,
    eps: float,
    scale: float | None = None,
) -> Tensor:
    """:func:`decode_attention_` over a cache of int8 codes, of which a value is code * scale.

    The new keys and values are rounded before anything attends to them, so that a text doesn't depend on how it was cut
    into calls.

    Args:
        k_cache, v_cache: int8 [B, H, S, D], written in place.
        k_scale, v_scale: float32 [B, H, S, 1], written in place: the largest magnitude of a row over 127.
    """
    norms, caches = (q_weight, q_bias, k_weight, k_bias), (k_cache, v_cache, k_scale, v_scale)

    def append() -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qk_norm_rope(qkv, *norms, cos, sin, eps)
        (k_codes, k_scales), (v_codes, v_scales) = reference.quantize_rows(k), reference.quantize_rows(v)
        reference.append_(k_codes, v_codes, k_cache, v_cache, slots)
        reference.append_(k_scales, v_scales, k_scale, v_scale, slots)
        keys = reference.dequantize_rows(k_cache, k_scale, q.dtype)
        return q, keys, reference.dequantize_rows(v_cache, v_scale, q.dtype)

    return _decode("decode_attention_int8_", append, qkv, norms, cos, sin, caches, slots, start, eps, scale)


def fits_decode_kernel(qkv: Tensor, cos: Tensor) -> bool:
    """Whether the CUDA kernels of a decode step are written for qkv's dtype and for this head and rotary dimension."""
    return qkv.dtype != torch.float32 and has_cuda_sizes(qkv, cos)


def _decode(
    op: str,
    append: Callable[[], tuple[Tensor, Tensor, Tensor]],
    qkv: Tensor,
    norms: tuple[Tensor | None, ...],
    cos: Tensor,
    sin: Tensor,
    caches: tuple[Tensor, ...],
    slots: Tensor,
    start: Tensor | None,
    eps: float,
    scale: float | None,
    alike: tuple[Tensor, ...] = (),
) -> Tensor:
    """The kernel of `op`, or what it is made of. `alike`: those of the caches that have qkv's dtype.

    `append` writes the new keys and values into the caches; it returns q [B, H, T, D] and all keys and values
    [B, H, S, D].
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    parameters = given_norms(*norms)
    refuse_gradients(op, qkv, *norms, *caches)
    if parameters and takes(op, qkv, *norms, *alike, fits_cuda=fits_decode_kernel(qkv, cos)):
        return cast(Tensor, getattr(_ops, op)(qkv, *parameters, cos, sin, *caches, slots, start, eps, scale))
    _check_step(op, qkv, slots)
    _check_scale(scale)  # before anything is written
    q, k, v = append()
    out, _ = attention(q, k, v, start=start, length=slots[:, -1] + 1, offset=slots[:, 0], scale=scale)
    return out


def _check_step(op: str, qkv: Tensor, slots: Tensor) -> None:
    if not 1 <= qkv.shape[1] <= MAX_DECODE_TOKENS:
        raise ValueError(f"{op} takes 1 to {MAX_DECODE_TOKENS} new tokens, got {qkv.shape[1]}.")
    if bool((slots.diff(dim=1) != 1).any()):
        raise ValueError(f"slots must be consecutive in each row, got {slots.tolist()}.")


def _check_scale(scale: float) -> None:
    if not -float("inf") < scale < float("inf"):
        raise ValueError(f"scale must be finite, got {scale:g}.")


@torch.library.register_fake("persimmon_ext::attention")
def _(q: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(B, H, T, dtype=torch.float32)


@torch.library.register_fake("persimmon_ext::attention_backward")
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.register_fake("persimmon_ext::decode_attention_int8_")
@torch.library.register_fake("persimmon_ext::decode_attention_")
def _(qkv: Tensor, *arguments: Any) -> Tensor:
    B, T, H, _, D = qkv.shape
    return qkv.new_empty(B, T, H, D)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, start, length, offset, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, start, length, offset)


def _backward(ctx: Any, dout: Tensor, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv = _ops.attention_backward(dout, *ctx.saved_tensors, ctx.scale)
    return dq, dk, dv, None, None, None, None


torch.library.register_autograd("persimmon_ext::attention", _backward, setup_context=_setup)
register_once_differentiable("attention_backward")
