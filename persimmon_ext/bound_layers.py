"""The modules of a decoder layer as plain functions: which kernel runs on which parameters is found out once.

A call of a module looks up its parameters, compares dtypes and devices and chooses a path, which for a small model
costs as much as the kernel. What a function is bound to must stay as it is while the function is in use, and its
arguments have the dtype and device of `like`; no gradient is recorded. Where an op has no kernel for that, the function
is the module's own forward.

Dims: B batch, T new tokens, H heads, D head dim, R rotary dim, C hidden, K inputs and N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from persimmon_ext import ops
from persimmon_ext.layers import LayerNorm, Linear, Operands, PersimmonAttention, PersimmonMLP, decode_attention
from persimmon_ext.ops.attention import fits_decode_kernel
from persimmon_ext.ops.native import takes

_ops = torch.ops.persimmon_ext

NormProduct = Callable[[Tensor], Tensor]
AddedProduct = Callable[[Tensor, Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, "tuple[Tensor, ...]", Tensor, "Tensor | None"], Tensor]


def bind_norm_product(norm: LayerNorm, layer: Any, like: Tensor) -> NormProduct:
    """x [..., K] -> the product of its norm, [..., N]."""
    operands = layer.operands()
    arguments = (*norm.operands(), *operands)
    if not takes("norm_linear", like, norm.weight, norm.bias, *_of_one_dtype(operands)):
        return lambda x: ops.norm_linear(x, *arguments)
    op = _ops.norm_linear.default
    return lambda x: op(x, *arguments)


def bind_norm_mlp(norm: LayerNorm, mlp: PersimmonMLP, like: Tensor) -> NormProduct:
    """x [..., C] -> x plus the MLP of its norm, [..., C]."""
    arguments = mlp.operands_behind(norm)
    weights = (*_of_one_dtype(mlp.dense_h_to_4h.operands()), *_of_one_dtype(mlp.dense_4h_to_h.operands()))
    if not takes("norm_mlp", like, norm.weight, norm.bias, *weights):
        return lambda x: ops.norm_mlp(x, *arguments)
    op = _ops.norm_mlp.default
    return lambda x: op(x, *arguments)


def _of_one_dtype(operands: Operands) -> tuple[Tensor | None, Tensor | None]:
    """Those of a product's operands that have x's dtype: codes and their scale have their own."""
    weight, scale, bias = operands
    return (weight if scale is None else None), bias


def bind_added_product(layer: nn.Module, like: Tensor) -> AddedProduct:
    """x [..., K], residual [..., N] -> the product of x plus the residual."""
    if not (isinstance(layer, Linear) and takes("linear", like, layer.weight, layer.bias)):
        forward = layer.forward
        return lambda x, residual: forward(x, residual=residual)
    op, weight, bias = _ops.linear.default, layer.weight, layer.bias
    return lambda x, residual: op(x, weight, bias, residual, False)


def has_decode_kernel(attention: PersimmonAttention, like: Tensor, rotary: Tensor, *, int8_cache: bool = False) -> bool:
    """Whether `bind_decode_attention` binds to a kernel: the reference looks at slots, and waits for them."""
    norms = attention.norms()
    fits_cuda = fits_decode_kernel(like.new_empty(0, attention.head_dim), rotary)
    return norms[0] is not None and takes(_decode_op(int8_cache=int8_cache), like, *norms, fits_cuda=fits_cuda)


def _decode_op(*, int8_cache: bool) -> str:
    return "decode_attention_int8_" if int8_cache else "decode_attention_"


def bind_decode_attention(
    attention: PersimmonAttention, like: Tensor, rotary: Tensor, *, int8_cache: bool = False
) -> Attend:
    """qkv [B, T, H, 3, D], cos and sin [B or 1, T, R/2], a layer's storages, slots [B, T] and start [B] or None ->
    [B, T, H, D], as :func:`persimmon_ext.ops.decode_attention_`, or `decode_attention_int8_` where they are codes
    and scales. `rotary`: any cos, for its size."""
    norms, eps = attention.norms(), attention.eps
    if not has_decode_kernel(attention, like, rotary, int8_cache=int8_cache):
        general = decode_attention(int8=int8_cache)

        def attend(
            qkv: Tensor, cos: Tensor, sin: Tensor, storage: tuple[Tensor, ...], slots: Tensor, start: Tensor | None
        ) -> Tensor:
            return general(qkv, *norms, cos, sin, *storage, slots, start=start, eps=eps)

        return attend
    op, scale = getattr(_ops, _decode_op(int8_cache=int8_cache)).default, attention.head_dim**-0.5
    return lambda qkv, cos, sin, storage, slots, start: op(qkv, *norms, cos, sin, *storage, slots, start, eps, scale)
