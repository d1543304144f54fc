"""A few tokens through the whole model as a flat list of kernel calls, for the inner loop of generation.

Running modules costs more than the kernels of a small model do: hooks, the choice of a path and autograd's dispatch
take twice the time of the embedded model's kernels. A plan makes those choices once. Every tensor of a step has a fixed
shape and nothing waits for the device, so that a CUDA graph can hold it.

Dims: B batch, T new tokens, H heads, D head dim, R rotary dim, C hidden, V vocab, S slots of the cache.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from persimmon_ext.bound_layers import (
    AddedProduct,
    Attend,
    NormProduct,
    bind_added_product,
    bind_decode_attention,
    bind_norm_mlp,
    bind_norm_product,
    has_decode_kernel,
)
from persimmon_ext.cache import Cache
from persimmon_ext.layers import (
    HiddenMajorLinear,
    LayerNorm,
    Linear,
    PersimmonAttention,
    PersimmonDecoderLayer,
    PersimmonMLP,
    hooked,
)
from persimmon_ext.modeling import PersimmonModel
from persimmon_ext.quantized_layers import QuantizedHiddenMajorLinear, QuantizedLinear

_PRODUCTS = (Linear, HiddenMajorLinear, QuantizedLinear, QuantizedHiddenMajorLinear)
_PLAIN = (*_PRODUCTS, LayerNorm, PersimmonAttention, PersimmonDecoderLayer, PersimmonMLP, PersimmonModel, nn.Embedding)


@dataclass(frozen=True)
class _Layer:
    """What a decoder layer does, as functions."""

    query_key_value: NormProduct
    attend: Attend
    dense: AddedProduct
    mlp: NormProduct


class DecodePlan:
    """Runs 1 to 8 new tokens a row without gradients; made for one generation, while the model stays as it is."""

    def __init__(self, model: Any, slots: int, *, int8_cache: bool = False) -> None:
        """`slots`: S, the greatest number of tokens a row, for which rotary angles are computed beforehand.
        `int8_cache`: whether the caches that it is called with are of int8 codes."""
        decoder: PersimmonModel = model.model
        self._heads, self._head_dim = model.config.num_attention_heads, model.config.head_dim
        self._embedding = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self._make_table(min(slots, model.config.max_position_embeddings))
        angle = self.angles(self._slots[:, :1])[0]
        self._layers = [_flatten(layer, self._embedding, angle, int8_cache) for layer in decoder.layers]
        self._head = bind_norm_product(decoder.final_layernorm, model.lm_head, self._embedding)
        self._storages: list[tuple[Tensor, ...]] = []
        self._room = 0  # slots of them

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether `model` computes exactly what a plan does: our modules, unhooked, and no dropout."""
        if model.config.hidden_act != "relu2" or torch.is_autocast_enabled(model.device.type):
            return False
        if model.training and (model.config.attention_dropout or model.config.hidden_dropout):
            return False
        parts = [model.model, model.lm_head, model.model.embed_tokens, model.model.final_layernorm]
        for layer in model.model.layers:
            parts += [part for part in layer.modules() if part is not getattr(layer.mlp, "act", None)]
        return not hooked(model) and all(type(part) in _PLAIN and not hooked(part) for part in parts)

    @staticmethod
    def can_be_captured(model: Any, *, int8_cache: bool) -> bool:
        """Whether a CUDA graph can hold the steps of `model`: it is on a GPU, fits, and attention has a kernel."""
        if model.device.type != "cuda" or not DecodePlan.fits(model):
            return False
        like = model.model.embed_tokens.weight
        rotary = like.new_empty(0, model.config.rotary_dim // 2)
        layers = model.model.layers
        return all(has_decode_kernel(layer.self_attn, like, rotary, int8_cache=int8_cache) for layer in layers)

    def __call__(self, tokens: Tensor, first: int, padding: Tensor | None, cache: Cache) -> Tensor:
        """Appends tokens int64 [B, T], T up to 8, whose first slot is `first`, to the cache; returns logits [B, T, V].

        `padding` int64 [B]: leading slots of each row that hold no token; None: none.
        """
        B, T = tokens.shape
        if first + T > self._slots.shape[1]:
            self._make_table(2 * (first + T))
        slots = self._slots.narrow(1, first, T)
        slots = slots if B == 1 else slots.expand(B, T)
        if padding is None and self._table is not None:
            cos, sin = self._table[0].narrow(1, first, T), self._table[1].narrow(1, first, T)
        else:
            positions = slots if padding is None else (slots - padding[:, None]).clamp(min=0)
            cos, sin = self.angles(positions)
        logits = self.run(tokens, cos, sin, slots, padding, cache)
        cache.advance_all(T)  # only now: after an error the cache has the tokens that it had
        return logits

    def _make_table(self, slots: int) -> None:
        self._slots = torch.arange(slots, device=self._embedding.device)[None]  # [1, S]
        # cos and sin, fp32 [1, S, R/2]
        self._table: tuple[Tensor, Tensor] | None = None
        if not self._rotary.depends_on_longest:
            self._table = self._rotary.forward(self._slots)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 [B, T, R/2], at positions int64 [B, T]."""
        if self._table is None:
            angles: tuple[Tensor, Tensor] = self._rotary.forward(positions)
            return angles
        return self._table[0][0, positions], self._table[1][0, positions]

    def run(
        self, tokens: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, padding: Tensor | None, cache: Cache
    ) -> Tensor:
        """The kernels alone: writes K and V into `slots` int64 [B, T] without advancing the cache."""
        x = torch.embedding(self._embedding, tokens)
        B, T, C = x.shape
        heads, head_dim = self._heads, self._head_dim
        storages = self._storages_for(cache, B, T)
        for layer, storage in zip(self._layers, storages, strict=True):
            qkv = layer.query_key_value(x).view(B, T, heads, 3, head_dim)
            attended = layer.attend(qkv, cos, sin, storage, slots, padding)
            x = layer.mlp(layer.dense(attended.reshape(B, T, C), x))
        return self._head(x)

    def _storages_for(self, cache: Cache, B: int, T: int) -> list[tuple[Tensor, ...]]:
        """The storages of all layers with room for T more tokens; asks only where the last ones may not do."""
        present = [layer.storage for layer in cache.layers]
        if not (cache.get_seq_length() + T <= self._room and all(map(operator.is_, present, self._storages))):
            shape, like = (B, self._heads, T, self._head_dim), self._embedding
            self._storages = [cache.buffers(index, shape, like.dtype, like.device) for index in range(len(cache))]
            self._room = cache.capacity
        return self._storages


def _flatten(layer: Any, like: Tensor, angle: Tensor, int8_cache: bool) -> _Layer:
    attention = layer.self_attn
    return _Layer(
        query_key_value=bind_norm_product(layer.input_layernorm, attention.query_key_value, like),
        attend=bind_decode_attention(attention, like, angle, int8_cache=int8_cache),
        dense=bind_added_product(attention.dense, like),
        mlp=bind_norm_mlp(layer.post_attention_layernorm, layer.mlp, like),
    )
