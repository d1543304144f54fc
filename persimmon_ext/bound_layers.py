"""The modules of a decoder layer as plain functions: which kernel runs on which parameters is found out once.

A call of a module looks up its parameters, compares dtypes and devices and chooses a path, which for a small model
costs as much as the kernel. What a function is bound to must stay as it is while the function is in use, and its
arguments have the dtype and device of `like`; no gradient is recorded. Where an op has no kernel for that, the function
is the module's own forward.

Dims: B batch, T new tokens, H heads, D head dim, R rotary dim, C hidden, K inputs and N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from persimmon_ext import ops
from persimmon_ext.layers import HiddenMajorLinear, LayerNorm, Linear, PersimmonAttention, decode_attention
from persimmon_ext.ops.native import takes
from persimmon_ext.ops.qk_norm_rope import has_cuda_sizes

_ops = torch.ops.persimmon_ext

Norm = Callable[[Tensor], Tensor]
AddNorm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Product = Callable[[Tensor], Tensor]
AddedProduct = Callable[[Tensor, Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, "tuple[Tensor, ...]", Tensor, "Tensor | None"], Tensor]


def bind_norm(norm: LayerNorm, like: Tensor) -> Norm:
    """x [..., C] -> its norm [..., C]."""
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    if not takes("layer_norm", like, weight, bias):
        return norm.forward
    op = _ops.layer_norm.default
    return lambda x: op(x, weight, bias, eps)


def bind_add_norm(norm: LayerNorm, like: Tensor) -> AddNorm:
    """x, residual [..., C] -> their sum and its norm, [..., C] each."""
    weight, bias, eps = norm.weight, norm.bias, norm.eps
    if not takes("add_layer_norm", like, weight, bias):
        return lambda x, residual: ops.add_layer_norm(x, residual, weight, bias, eps)
    op = _ops.add_layer_norm.default
    return lambda x, residual: op(x, residual, weight, bias, eps)


def bind_product(layer: nn.Module, like: Tensor, *, relu2: bool = False) -> Product:
    """x [..., K] -> [..., N], with the squared ReLU where asked."""
    if not (isinstance(layer, Linear) and takes("linear", like, layer.weight, layer.bias)):
        return partial(layer.forward, relu2=True) if relu2 else layer.forward
    op, weight, bias = _ops.linear.default, layer.weight, layer.bias
    return lambda x: op(x, weight, bias, None, relu2)


def bind_added_product(layer: nn.Module, like: Tensor) -> AddedProduct:
    """x [..., K], residual [..., N] -> the product of x plus the residual."""
    if not (isinstance(layer, HiddenMajorLinear) and takes("sparse_linear", like, layer.weight, layer.bias)):
        forward = layer.forward
        return lambda x, residual: forward(x, residual=residual)
    op, weight, bias = _ops.sparse_linear.default, layer.weight, layer.bias
    return lambda x, residual: op(x, weight, bias, residual)


def bind_decode_attention(
    attention: PersimmonAttention, like: Tensor, rotary: Tensor, *, int8_cache: bool = False
) -> Attend:
    """qkv [B, T, H, 3, D], cos and sin [B or 1, T, R/2], a layer's storages, slots [B, T] and start [B] or None ->
    [B, T, H, D], as :func:`persimmon_ext.ops.decode_attention_`, or `decode_attention_int8_` where they are codes
    and scales. `rotary`: any cos, for its size."""
    norms, eps = attention.norms(), attention.eps
    name = "decode_attention_int8_" if int8_cache else "decode_attention_"
    fits_cuda = like.dtype != torch.float32 and has_cuda_sizes(like.new_empty(0, attention.head_dim), rotary)
    if norms[0] is None or not takes(name, like, *norms, fits_cuda=fits_cuda):
        general = decode_attention(int8=int8_cache)

        def attend(
            qkv: Tensor, cos: Tensor, sin: Tensor, storage: tuple[Tensor, ...], slots: Tensor, start: Tensor | None
        ) -> Tensor:
            return general(qkv, *norms, cos, sin, *storage, slots, start=start, eps=eps)

        return attend
    op, scale = getattr(_ops, name).default, attention.head_dim**-0.5
    return lambda qkv, cos, sin, storage, slots, start: op(qkv, *norms, cos, sin, *storage, slots, start, eps, scale)
