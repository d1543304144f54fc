"""Greedy decoding by nothing but the kernels: the ceiling that ``generate`` is measured against.

Dims: B batch, T tokens of the prompt, H heads, D head dim, C hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from persimmon_ext import DynamicCache, ops


class Calls(NamedTuple):
    """A way to call the four kernels of a layer. Arguments are those of ``persimmon_ext.ops``, by place;
    `attend` takes eps and scale at the end, `product` the residual."""

    norm_linear: Callable[..., Tensor]
    attend: Callable[..., Tensor]
    product: Callable[..., Tensor]
    norm_mlp: Callable[..., Tensor]


def functions() -> Calls:
    """The package's own functions, which check what a kernel can take."""
    return Calls(
        ops.norm_linear,
        lambda *tensors: ops.decode_attention_(*tensors[:-2], eps=tensors[-2], scale=tensors[-1]),
        lambda x, weight, bias, residual: ops.linear(x, weight, bias, residual=residual),
        ops.norm_mlp,
    )


def registered() -> Calls:
    """The operators as PyTorch's dispatcher has them: the least that a call from Python can be."""
    native = torch.ops.persimmon_ext
    attend, product = native.decode_attention_.default, native.linear.default
    return Calls(
        native.norm_linear.default,
        lambda *tensors: attend(*tensors[:-2], None, *tensors[-2:]),
        lambda x, weight, bias, residual: product(x, weight, bias, residual, False),
        native.norm_mlp.default,
    )


@torch.inference_mode()
def decode(model: Any, prompt: Tensor, new_tokens: int, calls: Calls) -> Tensor:
    """The prompt int64 [B, T] and the likeliest `new_tokens` after it; no checks, ends or anything else."""
    config, (B, T) = model.config, prompt.shape
    H, D, C = config.num_attention_heads, config.head_dim, config.hidden_size
    last = config.layer_norm_eps, D**-0.5
    total = T + new_tokens
    cache = DynamicCache(config, reserve=total)
    tokens = torch.empty(B, total, dtype=torch.int64, device=prompt.device)
    tokens[:, :T] = prompt
    tokens[:, T] = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].max(-1).indices
    places = torch.arange(total, device=prompt.device)
    all_cos, all_sin = model.model.rotary_emb(places[None])
    layers = []
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        into = attention.operands_behind(layer.input_layernorm)
        caches = cache.buffers(index, (B, H, 1, D), model.dtype, prompt.device)
        out = attention.dense.weight, attention.dense.bias
        layers.append((into, attention.norms(), caches, out, mlp.operands_behind(layer.post_attention_layernorm)))
    embedding, head = model.model.embed_tokens.weight, model.lm_head
    final = *model.model.final_layernorm.operands(), *head.operands()
    for place in range(T, total - 1):
        slots = places.narrow(0, place, 1).expand(B, 1)
        cos, sin = all_cos.narrow(1, place, 1), all_sin.narrow(1, place, 1)
        x = torch.embedding(embedding, tokens.narrow(1, place, 1))
        for into, norms, caches, out, behind in layers:
            qkv = calls.norm_linear(x, *into).view(B, 1, H, 3, D)
            y = calls.attend(qkv, *norms, cos, sin, *caches, slots, *last)
            x = calls.norm_mlp(calls.product(y.view(B, 1, C), *out, x), *behind)
        tokens[:, place + 1] = calls.norm_linear(x, *final)[:, -1].max(-1).indices
    return tokens
