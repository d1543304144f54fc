"""The modules of one decoder layer. Parameter names are those of the Hugging Face checkpoint.

Dimensions: B batch, T new tokens, S all tokens, H heads, D head dim, R rotary dim, C hidden, F ffn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from persimmon_ext import ops, reference
from persimmon_ext.activations import activation
from persimmon_ext.cache import Cache
from persimmon_ext.masking import Visibility

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig


def hooked(module: nn.Module) -> bool:
    """Whether something other than the class sees or replaces what the module's forward gets and returns."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def can_fuse(module: nn.Module) -> bool:
    """Whether what follows or precedes a module may be computed together with it.

    Not where its forward is not ours (a class that defines one says `fuses`; an adapter may stand in its
    place), nor where a hook would see other values than it expects.
    """
    for kind in type(module).__mro__:  # the class that defines forward
        if "forward" in vars(kind):
            break
    return bool(vars(kind).get("fuses")) and not hooked(module)


#: A product's weight or codes, the scale of codes, and its bias, as :func:`persimmon_ext.ops.norm_linear` takes them.
Operands = tuple[Tensor, Tensor | None, Tensor | None]


class _Unquantized(nn.Linear):
    def operands(self) -> Operands:
        return self.weight, None, self.bias


class Linear(_Unquantized):
    """``nn.Linear`` on :func:`persimmon_ext.ops.linear`."""

    fuses = True

    def forward(self, x: Tensor, *, relu2: bool = False, residual: Tensor | None = None) -> Tensor:
        return ops.linear(x, self.weight, self.bias, relu2=relu2, residual=residual)


class HiddenMajorLinear(_Unquantized):
    """A linear layer whose weight [C, F] is stored hidden-major, strides (1, C): row j of its transpose is contiguous,
    so that the product can skip the rows whose activation is zero and one copy of the weight serves both products."""

    fuses = True

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(self.weight.detach().T.contiguous().T)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if not self.weight.T.is_contiguous():  # load_state_dict(assign=True) brings the file's layout
            self.weight = nn.Parameter(self.weight.detach().T.contiguous().T, self.weight.requires_grad)

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return ops.linear(x, self.weight, self.bias, residual=residual)
        return ops.sparse_linear(x, self.weight, self.bias, residual=residual)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` on :func:`persimmon_ext.ops.layer_norm`."""

    fuses = True

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def operands(self) -> tuple[Tensor, Tensor, float]:
        """What a product with the norm in front takes."""
        return self.weight, self.bias, self.eps


def decode_attention(*, int8: bool) -> Callable[..., Tensor]:
    """The op of a decode step over such a cache; it takes the cache's buffers where it takes caches."""
    return ops.decode_attention_int8_ if int8 else ops.decode_attention_


def project(layer: nn.Module, x: Tensor, *, residual: Tensor) -> Tensor:
    """layer(x) + residual, in one pass where the layer can."""
    return layer(x, residual=residual) if can_fuse(layer) else layer(x) + residual


def add_norm(norm: nn.Module, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """(x + residual, norm of that sum), in one pass where the norm can."""
    if isinstance(norm, LayerNorm) and can_fuse(norm):
        return ops.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
    total = x + residual
    return total, norm(total)


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

    fuses = True

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

    def forward(
        self, x: Tensor, step: Step, norm: LayerNorm | None = None, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, C] -> [B, T, C], and the probabilities [B, H, T, S] where they are asked for.

        `norm` is that of x where it comes without one, for a projection that can take it along; `residual` [B, T, C] is
        added to the result.
        """
        B, T, _ = x.shape
        qkv = self.query_key_value(x) if norm is None else ops.norm_linear(x, *self.operands_behind(norm))
        qkv = qkv.view(B, T, qkv.shape[-1] // (3 * self.head_dim), 3, self.head_dim)
        dropout = self.attention_dropout if self.training else 0.0
        probabilities = None
        if step.output_attentions or dropout or step.visibility.mask is not None:
            out, probabilities = self.attend_explicitly(qkv, step, dropout)
        elif (
            isinstance(step.cache, Cache)
            and self.fuses_norms()
            and (not step.cache.is_int8 or self.decodes(step, T))
            and not self.needs_gradient(qkv, step.cache)
        ):
            out = self.attend_in_place(qkv, step, step.cache)
        else:
            q, k, v = self.heads(qkv, step)
            out, _ = ops.attention(q, k, v, start=step.visibility.start, length=step.visibility.length)
        out = out.reshape(B, T, -1)
        out = self.dense(out) if residual is None else project(self.dense, out, residual=residual)
        return out, probabilities if step.output_attentions else None

    def operands_behind(self, norm: LayerNorm) -> tuple[Any, ...]:
        """What :func:`persimmon_ext.ops.norm_linear` takes for the fused projection."""
        return *norm.operands(), *self.query_key_value.operands()

    def fuses_norms(self) -> bool:
        return not self.qk_layernorm or (can_fuse(self.q_layernorm) and can_fuse(self.k_layernorm))

    def decodes(self, step: Step, T: int) -> bool:
        """Whether the decode kernels take these tokens."""
        return T <= ops.MAX_DECODE_TOKENS and step.visibility.length is None

    def needs_gradient(self, qkv: Tensor, cache: Cache) -> bool:
        """Whether a gradient may flow through the new tokens' attention, cached keys and values included."""
        return torch.is_grad_enabled() and (
            qkv.requires_grad
            or cache.requires_grad(self.layer_idx)
            or any(parameter is not None and parameter.requires_grad for parameter in self.norms())
        )

    def norms(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        if not self.qk_layernorm:
            return None, None, None, None
        return self.q_layernorm.weight, self.q_layernorm.bias, self.k_layernorm.weight, self.k_layernorm.bias

    def heads(self, qkv: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, T, D] of the new tokens, and k, v [B, H, S, D] of all, appended to the cache if there is one."""
        if self.fuses_norms():
            q, k, v = ops.qk_norm_rope(qkv, *self.norms(), step.cos, step.sin, self.eps)
        else:
            q, k, v = qkv.unbind(3)  # [B, T, H, D]
            q, k, v = (t.transpose(1, 2) for t in (self.q_layernorm(q), self.k_layernorm(k), v))
            q, k = reference.rotate(q, step.cos, step.sin), reference.rotate(k, step.cos, step.sin)
        if step.cache is not None:
            k, v = step.cache.update(k, v, self.layer_idx)
            S = step.past + q.shape[2]  # transformers' static caches return all slots, the unused ones too
            k, v = k[:, :, :S], v[:, :, :S]
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
        norms = self.norms()
        if norms[0] is not None and norms[0].dtype != qkv.dtype:
            # Under autocast the norms' float32 decides, as it does for keys that have a gradient.
            qkv = qkv.to(torch.promote_types(qkv.dtype, norms[0].dtype))
        buffers = cache.buffers(self.layer_idx, (B, H, T, D), qkv.dtype, qkv.device)
        if self.decodes(step, T):
            place = (step.cos, step.sin, *buffers, step.slots)
            out = decode_attention(int8=cache.is_int8)(qkv, *norms, *place, start=start, eps=self.eps)
            cache.advance(self.layer_idx, T)
            return out
        k_cache, v_cache = buffers
        q = ops.qk_norm_rope_append_(qkv, *norms, step.cos, step.sin, k_cache, v_cache, step.slots, self.eps)
        cache.advance(self.layer_idx, T)
        S = step.past + T
        out, _ = ops.attention(q, k_cache[:, :, :S], v_cache[:, :, :S], start=start, length=length)
        return out


class PersimmonMLP(nn.Module):
    """Two linear layers with ``hidden_act`` between them, the squared ReLU unless the config says otherwise."""

    fuses = True

    def __init__(self, config: PersimmonConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = HiddenMajorLinear(config.intermediate_size, config.hidden_size)
        self.hidden_act = config.hidden_act
        self.act = activation(config.hidden_act)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., C] -> [..., C], plus `residual` [..., C] where given."""
        # With gradients on, the pre-activation is kept for the backward pass rather than computed again.
        fused = self.hidden_act == "relu2" and can_fuse(self.dense_h_to_4h) and not torch.is_grad_enabled()
        hidden = self.dense_h_to_4h(x, relu2=True) if fused else self.act(self.dense_h_to_4h(x))
        second = self.dense_4h_to_h
        out: Tensor = second(hidden) if residual is None else project(second, hidden, residual=residual)
        return out

    def operands_behind(self, norm: LayerNorm) -> tuple[Any, ...]:
        """What :func:`persimmon_ext.ops.norm_mlp` takes."""
        return *norm.operands(), *self.dense_h_to_4h.operands(), *self.dense_4h_to_h.operands()


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
        if x.shape[1] <= ops.MAX_DECODE_TOKENS and self.fuses_norms():
            x, probabilities = self.self_attn(x, step, self.input_layernorm, x)
            return ops.norm_mlp(x, *self.mlp.operands_behind(self.post_attention_layernorm)), probabilities
        attended, probabilities = self.self_attn(self.input_layernorm(x), step)
        x, normed = add_norm(self.post_attention_layernorm, attended, x)
        if self.training and self.hidden_dropout:
            return F.dropout(self.mlp(normed), self.hidden_dropout) + x, probabilities
        return project(self.mlp, normed, residual=x), probabilities

    def fuses_norms(self) -> bool:
        """Whether the products behind the norms may be computed together with them: in inference, as a plan does."""
        if torch.is_grad_enabled() or self.mlp.hidden_act != "relu2" or (self.training and self.hidden_dropout):
            return False
        attention, mlp = self.self_attn, self.mlp
        norms = (self.input_layernorm, self.post_attention_layernorm)
        parts = (*norms, attention, attention.query_key_value, mlp, mlp.dense_h_to_4h, mlp.dense_4h_to_h)
        return all(can_fuse(part) for part in parts)
