"""Where an operator's arguments lie in memory: any address an element may have is taken, and shared memory that is
written to is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from op_samples import NAMES, samples
from torch import Tensor

MUTATING = ("qk_norm_rope_append_", "decode_attention_")


def moved(tensor: Tensor, elements: int) -> Tensor:
    """A copy with the same strides, so many elements into a buffer of its own."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    buffer = torch.zeros(elements + last + 1, dtype=tensor.dtype)
    return buffer.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)


def results(name: str, arguments: Sequence[object]) -> list[Tensor]:
    """What the operator returns, and what it wrote to."""
    returned = getattr(torch.ops.persimmon_ext, name)(*arguments)
    written = [a for a in arguments if isinstance(a, Tensor)] if name in MUTATING else []
    return [*([returned] if isinstance(returned, Tensor) else returned), *written]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_unaligned_arguments_give_the_same_bits(name: str, dtype: torch.dtype) -> None:
    arguments = samples(dtype, False)[name]
    unaligned = [moved(a, 1) if isinstance(a, Tensor) else a for a in arguments]
    aligned = [moved(a, 0) if isinstance(a, Tensor) else a for a in arguments]
    assert any(isinstance(a, Tensor) and a.data_ptr() % 16 for a in unaligned)
    for ours, expected in zip(results(name, unaligned), results(name, aligned), strict=True):
        assert torch.equal(ours, expected)


def with_caches(name: str, k_cache: Tensor, v_cache: Tensor, qkv: Tensor | None = None) -> list[object]:
    arguments = list(samples(torch.float32, False)[name])
    arguments[7:9] = k_cache, v_cache
    if qkv is not None:
        arguments[0] = qkv
    return arguments


@pytest.mark.parametrize("name", MUTATING)
def test_caches_that_share_memory_are_refused(name: str) -> None:
    op = getattr(torch.ops.persimmon_ext, name)
    qkv, k_cache = samples(torch.float32, False)[name][0], samples(torch.float32, False)[name][7]
    B, H, S, D = k_cache.shape
    with pytest.raises(ValueError, match=r"k_cache and v_cache must not share memory\."):
        op(*with_caches(name, k_cache, k_cache))
    buffer = torch.zeros(k_cache.numel() + D)
    halves = buffer[: k_cache.numel()].view(B, H, S, D), buffer[D:].view(B, H, S, D)
    with pytest.raises(ValueError, match=r"k_cache and v_cache must not share memory\."):
        op(*with_caches(name, *halves))
    with pytest.raises(ValueError, match=r"v_cache must not be an expanded tensor, got strides"):
        op(*with_caches(name, k_cache, torch.zeros(1, H, S, D).expand(B, H, S, D)))
    buffer = torch.zeros(qkv.numel() + k_cache.numel())
    inside = buffer[: qkv.numel()].view(qkv.shape).copy_(qkv)
    with pytest.raises(ValueError, match=r"k_cache and qkv must not share memory\."):
        op(*with_caches(name, buffer[D : D + k_cache.numel()].view(B, H, S, D), k_cache, inside))
    assert torch.equal(inside, qkv)  # nothing was written


@pytest.mark.parametrize("name", MUTATING)
def test_caches_side_by_side_in_one_buffer(name: str) -> None:
    """As halves of every row of [B, H, S, 2, D]: they share no element."""
    k_cache, v_cache = samples(torch.float32, False)[name][7:9]
    both = torch.stack([k_cache, v_cache], dim=3)
    side_by_side = with_caches(name, *both.unbind(3))
    apart = with_caches(name, k_cache, v_cache)
    for ours, expected in zip(results(name, side_by_side), results(name, apart), strict=True):
        assert torch.equal(ours, expected)
