"""Cases of the ops bounded by activations: norms, rotary, squared ReLU, sampling."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.cases import EPS, Case, Shapes, accurate, size
from benchmarks.checks import MismatchError
from persimmon_ext import ops, reference


def layer_norm(shapes: Shapes) -> Iterator[Case]:
    weight, bias = shapes.norm(shapes.hidden)
    for T in shapes.tokens:
        x = shapes.normal(T, shapes.hidden)

        def ours(x: Tensor = x) -> Tensor:
            return ops.layer_norm(x, weight, bias, EPS)

        def eager(x: Tensor = x) -> Tensor:
            return reference.layer_norm(x, weight, bias, EPS)

        def exact(x: Tensor = x) -> Tensor:
            return reference.layer_norm(x.float(), weight.float(), bias.float(), EPS)

        yield Case(f"{T}x{shapes.hidden}", ours, eager, accurate("layer_norm", ours, eager, exact), 2 * size(x))


def add_layer_norm(shapes: Shapes) -> Iterator[Case]:
    weight, bias = shapes.norm(shapes.hidden)
    for T in shapes.tokens:
        x, residual = shapes.normal(T, shapes.hidden), shapes.normal(T, shapes.hidden)

        def ours(x: Tensor = x, residual: Tensor = residual) -> tuple[Tensor, Tensor]:
            return ops.add_layer_norm(x, residual, weight, bias, EPS)

        def eager(x: Tensor = x, residual: Tensor = residual) -> tuple[Tensor, Tensor]:
            return reference.add_layer_norm(x, residual, weight, bias, EPS)

        def exact(x: Tensor = x, residual: Tensor = residual) -> tuple[Tensor, Tensor]:
            total = x + residual  # rounded, as the op promises
            return total.float(), reference.layer_norm(total.float(), weight.float(), bias.float(), EPS)

        yield Case(f"{T}x{shapes.hidden}", ours, eager, accurate("add_layer_norm", ours, eager, exact), 4 * size(x))


class Heads:
    """Inputs of the ops on queries and keys."""

    def __init__(self, shapes: Shapes, T: int, first: int = 0) -> None:
        H, D = shapes.heads, shapes.head_dim
        self.qkv = shapes.normal(1, T, H, 3, D)
        self.norms = (*shapes.norm(D), *shapes.norm(D))
        angles = torch.arange(first, first + T, device=shapes.device)[:, None] / 25000.0 ** (
            torch.arange(D // 4, device=shapes.device) / (D // 4)
        )
        self.cos, self.sin = angles.cos()[None], angles.sin()[None]

    def eager(self) -> tuple[Tensor, Tensor, Tensor]:
        return reference.qk_norm_rope(self.qkv, *self.norms, self.cos, self.sin, EPS)

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        q_weight, q_bias, k_weight, k_bias = (p.float() for p in self.norms)
        qkv = self.qkv.float()
        return reference.qk_norm_rope(qkv, q_weight, q_bias, k_weight, k_bias, self.cos, self.sin, EPS)


def qk_norm_rope(shapes: Shapes) -> Iterator[Case]:
    for T in shapes.tokens:
        heads = Heads(shapes, T)

        def ours(heads: Heads = heads) -> tuple[Tensor, ...]:
            return ops.qk_norm_rope(heads.qkv, *heads.norms, heads.cos, heads.sin, EPS)

        check = accurate("qk_norm_rope", ours, heads.eager, heads.exact)
        yield Case(f"1x{T}x{shapes.heads}x3x{shapes.head_dim}", ours, heads.eager, check, 2 * size(heads.qkv))


def qk_norm_rope_append_(shapes: Shapes) -> Iterator[Case]:
    past = 16
    for T in shapes.tokens:
        heads = Heads(shapes, T)
        slots = torch.arange(past, past + T, device=shapes.device)[None]
        caches = [
            torch.zeros(1, shapes.heads, past + T, shapes.head_dim, dtype=shapes.dtype, device=shapes.device)
            for _ in range(4)
        ]

        def ours(heads: Heads = heads, caches: list[Tensor] = caches, slots: Tensor = slots) -> tuple[Tensor, ...]:
            place = (heads.cos, heads.sin, caches[0], caches[1], slots)
            q = ops.qk_norm_rope_append_(heads.qkv, *heads.norms, *place, EPS)
            return q, caches[0][:, :, past:], caches[1][:, :, past:]

        def eager(heads: Heads = heads, caches: list[Tensor] = caches) -> tuple[Tensor, ...]:
            q, k, v = heads.eager()
            caches[2][:, :, past:], caches[3][:, :, past:] = k, v
            return q, caches[2][:, :, past:], caches[3][:, :, past:]

        check = accurate("qk_norm_rope_append_", ours, eager, heads.exact)
        yield Case(f"1x{T}x{shapes.heads}x3x{shapes.head_dim}", ours, eager, check, 2 * size(heads.qkv))


def relu2(shapes: Shapes) -> Iterator[Case]:
    bias = shapes.normal(shapes.ffn)
    for T in shapes.tokens:
        x = shapes.normal(T, shapes.ffn)

        def ours(x: Tensor = x) -> Tensor:
            return ops.relu2(x, bias)

        def eager(x: Tensor = x) -> Tensor:
            return reference.relu2(x, bias)

        def exact(x: Tensor = x) -> Tensor:
            return reference.relu2(x.float(), bias.float())

        yield Case(f"{T}x{shapes.ffn}", ours, eager, accurate("relu2", ours, eager, exact), 2 * size(x))


def sample(shapes: Shapes) -> Iterator[Case]:
    """Against softmax and multinomial, behind the usual filters (a sort of the vocabulary for top-p)."""
    logits = 2 * shapes.filler.normal(1, shapes.vocab, dtype=torch.float32)  # the decode loop samples from float32
    rng = torch.tensor([[7, 11]], device=shapes.device)
    for name, top_k, top_p in (("all", 0, 1.0), ("top_k 50", 50, 1.0), ("top_p 0.9", 0, 0.9)):

        def ours(top_k: int = top_k, top_p: float = top_p) -> Tensor:
            return ops.sample(logits, rng, temperature=0.8, top_k=top_k, top_p=top_p)

        def eager(top_k: int = top_k, top_p: float = top_p) -> Tensor:
            filtered = reference.filter_logits(logits, 0.8, top_k, top_p, 0.0)
            return torch.multinomial(filtered.softmax(-1), 1)

        def check(top_k: int = top_k, top_p: float = top_p, name: str = name) -> None:
            found = ops.sample(logits, rng, temperature=0.8, top_k=top_k, top_p=top_p)
            # eager draws other noise; the reference draws ours
            expected = reference.sample(logits, rng, 0.8, top_k, top_p, 0.0)
            if not torch.equal(found, expected):
                raise MismatchError(f"sample, {name}: token {found.tolist()}, expected {expected.tolist()}.")

        yield Case(f"1x{shapes.vocab} {name}", ours, eager, check, size(logits))
