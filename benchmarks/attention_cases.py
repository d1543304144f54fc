"""Cases of attention over a prompt and of a decode step over a cache, against torch's scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.cases import EPS, Case, Shapes, accurate, size
from benchmarks.small_cases import Heads
from persimmon_ext import ops, reference


def with_flash(shapes: Shapes, function: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    """`function` with nothing but torch's own flash attention, which takes 16 bits on CUDA: a further side."""
    if shapes.device.type != "cuda" or shapes.dtype == torch.float32:
        return {}

    def flash() -> Any:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return function()

    return {"flash": flash}


def attention(shapes: Shapes) -> Iterator[Case]:
    H, D = shapes.heads, shapes.head_dim
    for T in shapes.tokens:
        q, k, v = (shapes.normal(1, H, T, D) for _ in range(3))

        def ours(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return ops.attention(q, k, v)[0]

        def eager(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            # Contiguous as the next product needs it, and as ours is.
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous()

        def exact(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True).transpose(1, 2)

        check = accurate("attention", ours, eager, exact)
        products = 4 * H * D * T * (T + 1) // 2  # two products over the visible keys
        yield Case(f"1x{H}x{T}x{D}", ours, eager, check, 4 * size(q), products, with_flash(shapes, eager))


def decode_attention_(shapes: Shapes) -> Iterator[Case]:
    """The eager side writes into a preallocated cache too, which transformers' dynamic cache does not."""
    H, D = shapes.heads, shapes.head_dim
    for S in shapes.contexts:
        heads = Heads(shapes, 1, first=S - 1)
        k_cache, v_cache = shapes.normal(1, H, S, D), shapes.normal(1, H, S, D)
        k_eager, v_eager = k_cache.clone(), v_cache.clone()
        slots = torch.full((1, 1), S - 1, device=shapes.device)

        def ours(
            heads: Heads = heads, k_cache: Tensor = k_cache, v_cache: Tensor = v_cache, slots: Tensor = slots
        ) -> Tensor:
            place = (heads.cos, heads.sin, k_cache, v_cache, slots)
            return ops.decode_attention_(heads.qkv, *heads.norms, *place, eps=EPS)

        def eager(heads: Heads = heads, k_eager: Tensor = k_eager, v_eager: Tensor = v_eager) -> Tensor:
            q, k, v = heads.eager()
            k_eager[:, :, -1:], v_eager[:, :, -1:] = k, v
            return F.scaled_dot_product_attention(q, k_eager, v_eager).transpose(1, 2)

        def exact(heads: Heads = heads, k_cache: Tensor = k_cache, v_cache: Tensor = v_cache) -> Tensor:
            q, k, v = heads.exact()
            keys, values = torch.cat((k_cache[:, :, :-1], k), 2), torch.cat((v_cache[:, :, :-1], v), 2)
            return F.scaled_dot_product_attention(q, keys, values).transpose(1, 2)

        check = accurate("decode_attention_", ours, eager, exact)
        moved = size(k_cache, v_cache)
        yield Case(f"1x{H}x{S}x{D}", ours, eager, check, moved, peers=with_flash(shapes, eager))


def decode_attention_int8_(shapes: Shapes) -> Iterator[Case]:
    """The eager side turns the cache back into 16 bits for torch's attention."""
    H, D = shapes.heads, shapes.head_dim
    for S in shapes.contexts:
        heads = Heads(shapes, 1, first=S - 1)
        k_rows, v_rows = (reference.quantize_rows(shapes.normal(1, H, S, D)) for _ in range(2))
        cache = (k_rows[0], v_rows[0], k_rows[1], v_rows[1])
        copies = tuple(t.clone() for t in cache)
        slots = torch.full((1, 1), S - 1, device=shapes.device)

        def ours(heads: Heads = heads, cache: tuple[Tensor, ...] = cache, slots: Tensor = slots) -> Tensor:
            place = (heads.cos, heads.sin, *cache, slots)
            return ops.decode_attention_int8_(heads.qkv, *heads.norms, *place, eps=EPS)

        def attend(q: Tensor, k: Tensor, v: Tensor, cache: tuple[Tensor, ...]) -> Tensor:
            k_codes, v_codes, k_scale, v_scale = cache
            (k_codes[:, :, -1:], k_scale[:, :, -1:]) = reference.quantize_rows(k)
            (v_codes[:, :, -1:], v_scale[:, :, -1:]) = reference.quantize_rows(v)
            keys = reference.dequantize_rows(k_codes, k_scale, q.dtype)
            values = reference.dequantize_rows(v_codes, v_scale, q.dtype)
            return F.scaled_dot_product_attention(q, keys, values).transpose(1, 2)

        def eager(heads: Heads = heads, copies: tuple[Tensor, ...] = copies) -> Tensor:
            return attend(*heads.eager(), copies)

        def exact(heads: Heads = heads, copies: tuple[Tensor, ...] = copies) -> Tensor:
            # Keys are rounded to 16 bits before they are rounded to 8, as the cache promises.
            q, _, _ = heads.exact()
            _, k, v = heads.eager()
            return attend(q, k, v, copies)

        check = accurate("decode_attention_int8_", ours, eager, exact)
        yield Case(f"1x{H}x{S}x{D}", ours, eager, check, size(*cache), peers=with_flash(shapes, eager))
