"""Greedy decoding by nothing but the kernels: the ceiling that ``generate`` is measured against.

Dims: B batch, T tokens of the prompt, H heads, D head dim, C hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from persimmon_ext import DynamicCache, ops


@torch.inference_mode()
def decode(model: Any, prompt: Tensor, new_tokens: int) -> Tensor:
    """The prompt int64 [B, T] and the likeliest `new_tokens` after it; no checks, ends or anything else."""
    config, (B, T) = model.config, prompt.shape
    H, D, eps = config.num_attention_heads, config.head_dim, config.layer_norm_eps
    total = T + new_tokens
    cache = DynamicCache(config, reserve=total)
    tokens = torch.empty(B, total, dtype=torch.int64, device=prompt.device)
    tokens[:, :T] = prompt
    tokens[:, T] = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].max(-1).indices
    places = torch.arange(total, device=prompt.device)
    cos, sin = model.model.rotary_emb(places[None])
    storage = [cache.buffers(i, (B, H, 1, D), model.dtype, prompt.device) for i in range(len(cache))]
    layers = [(layer, layer.self_attn, layer.mlp, *kv) for layer, kv in zip(model.model.layers, storage, strict=True)]
    final, embedding, head = model.model.final_layernorm, model.model.embed_tokens.weight, model.lm_head.weight
    for place in range(T, total - 1):
        slots, angles = places[place : place + 1].expand(B, 1), (cos[:, place : place + 1], sin[:, place : place + 1])
        x = F.embedding(tokens[:, place : place + 1], embedding)
        for layer, attention, mlp, k_cache, v_cache in layers:
            qkv = ops.norm_linear(x, *attention.operands_behind(layer.input_layernorm))
            y = ops.decode_attention_(
                qkv.view(B, 1, H, 3, D), *attention.norms(), *angles, k_cache, v_cache, slots, eps=eps
            )
            x = ops.linear(y.view(B, 1, H * D), attention.dense.weight, attention.dense.bias, residual=x)
            x = ops.norm_mlp(x, *mlp.operands_behind(layer.post_attention_layernorm))
        logits = ops.norm_linear(x, *final.operands(), head)
        tokens[:, place + 1] = logits[:, -1].max(-1).indices
    return tokens
