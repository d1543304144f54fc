"""The modules of one decoder layer. Parameter names are those of the Hugging Face checkpoint.

Dimensions: B batch, T new tokens, S all tokens, H heads, D head dim, R rotary dim, C hidden, F ffn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persimmon_ext import ops, reference
from persimmon_ext.activations import activation
from persimmon_ext.cache import Cache
from persimmon_ext.masking import Visibility

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig


class Linear(nn.Linear):
    """``nn.Linear`` on :func:`persimmon_ext.ops.linear`."""

    def forward(self, x: Tensor, *, relu2: bool = False, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, relu2=relu2, residual=residual)


class HiddenMajorLinear(nn.Linear):
    """A linear layer whose weight [C, F] is stored hidden-major, strides (1, C): row j of its transpose is contiguous,
    so that the product can skip the rows whose activation is zero and one copy of the weight serves both products."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous().T)

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return ops.linear(x, self.weight, self.bias, residual=residual)
        return ops.sparse_linear(x, self.weight, self.bias, residual=residual)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` on :func:`persimmon_ext.ops.layer_norm`, and with a residual added first."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def after_add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(x + residual, its norm)."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class Step:
    """What all layers of one forward call share."""

    cos: Tensor  # float32 [B or 1, T, R/2]
    sin: Tensor
    visibility: Visibility
    past: int  # cached tokens before this call
    cache: Cache | None
    slots: Tensor  # int64 [B, T]: where the new tokens go in the cache
    output_attentions: bool


class PersimmonAttention(nn.Module):
    """Causal self-attention with per-head LayerNorm on queries and keys and partial rotary embedding."""

    def __init__(self, config: PersimmonConfig, layer_idx: int) -> None:
        super().__init__()
        C, D = config.hidden_size, config.head_dim
        self.layer_idx = layer_idx
        self.head_dim = D
        self.eps = config.layer_norm_eps
        self.attention_dropout = config.attention_dropout
        self.query_key_value = Linear(C, 3 * C)  # output features are ordered (head, {q, k, v}, dim)
        self.dense = Linear(C, C)
        self.qk_layernorm = config.qk_layernorm
        if config.qk_layernorm:
            self.q_layernorm = LayerNorm(D, eps=config.layer_norm_eps)
            self.k_layernorm = LayerNorm(D, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """x [B, T, C] -> [B, T, C], and the probabilities [B, H, T, S] where they are asked for."""
        B, T, _ = x.shape
        qkv = self.query_key_value(x).view(B, T, -1, 3, self.head_dim)
        dropout = self.attention_dropout if self.training else 0.0
        probabilities = None
        if step.output_attentions or dropout or step.visibility.mask is not None:
            out, probabilities = self.attend_explicitly(qkv, step, dropout)
        elif isinstance(step.cache, Cache) and not (torch.is_grad_enabled() and qkv.requires_grad):
            out = self.attend_in_place(qkv, step, step.cache)
        else:
            q, k, v = self.heads(qkv, step)
            out, _ = ops.attention(q, k, v, start=step.visibility.start, length=step.visibility.length)
        out = self.dense(out.reshape(B, T, -1))
        return out, probabilities if step.output_attentions else None

    def norms(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        if not self.qk_layernorm:
            return None, None, None, None
        return self.q_layernorm.weight, self.q_layernorm.bias, self.k_layernorm.weight, self.k_layernorm.bias

    def heads(self, qkv: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, D] of the new tokens, and k, v [B, H, S, D] of all, appended to the cache if there is one."""
        q, k, v = ops.qk_norm_rope(qkv, *self.norms(), step.cos, step.sin, self.eps)
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.layer_idx)
        return q, k, v

    def attend_explicitly(self, qkv: Tensor, step: Step, dropout: float) -> tuple[Tensor, Tensor]:
        """With a mask tensor and probabilities that exist: for what the attention kernels don't do."""
        q, k, v = self.heads(qkv, step)
        mask = step.visibility.explicit(q.shape[2], k.shape[2], q.device)
        return reference.masked_attention(q, k, v, mask, self.head_dim**-0.5, dropout)

    def attend_in_place(self, qkv: Tensor, step: Step, cache: Cache) -> Tensor:
        """Inference: new keys and values are written straight into the cache. Returns [B, T, H, D]."""
        B, T, H, _, D = qkv.shape
        start, length = step.visibility.start, step.visibility.length
        k_cache, v_cache = cache.buffers(self.layer_idx, (B, H, T, D), qkv.dtype, qkv.device)
        place = (*self.norms(), step.cos, step.sin, k_cache, v_cache, step.slots)
        if T <= ops.MAX_DECODE_TOKENS and length is None:
            out = ops.decode_attention_(qkv, *place, start=start, eps=self.eps)
            cache.advance(self.layer_idx, T)
            return out
        q = ops.qk_norm_rope_append_(qkv, *place, self.eps)
        cache.advance(self.layer_idx, T)
        S = step.past + T
        out, _ = ops.attention(q, k_cache[:, :, :S], v_cache[:, :, :S], start=start, length=length)
        return out


class PersimmonMLP(nn.Module):
    """Two linear layers with ``hidden_act`` between them, the squared ReLU unless the config says otherwise."""

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = HiddenMajorLinear(config.intermediate_size, config.hidden_size)
        self.hidden_act = config.hidden_act
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., C] -> [..., C], plus `residual` [..., C] where given."""
        # Fused where no gradient needs the pre-activation and the layer is ours: an adapter may have replaced it.
        fused = self.hidden_act == "relu2" and isinstance(self.dense_h_to_4h, Linear) and not torch.is_grad_enabled()
        hidden = self.dense_h_to_4h(x, relu2=True) if fused else self.act(self.dense_h_to_4h(x))
        out: Tensor = self.dense_4h_to_h(hidden, residual=residual)
        return out


class PersimmonDecoderLayer(nn.Module):
    """Attention and MLP, each behind a LayerNorm and inside a residual connection."""

    def __init__(self, config: PersimmonConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = PersimmonAttention(config, layer_idx)
        self.mlp = PersimmonMLP(config)
        self.input_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.hidden_dropout = config.hidden_dropout

    def forward(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor | None]:
        """x [B, T, C] -> [B, T, C], and the attention probabilities [B, H, T, S] where they are asked for."""
        attended, probabilities = self.self_attn(self.input_layernorm(x), step)
        x, normed = self.post_attention_layernorm.after_add(attended, x)
        if self.training and self.hidden_dropout:
            return F.dropout(self.mlp(normed), self.hidden_dropout) + x, probabilities
        return self.mlp(normed, residual=x), probabilities
