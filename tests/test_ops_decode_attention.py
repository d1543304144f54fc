"""decode_attention_: equal to the append and the attention that it fuses, errors, every instruction set."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, assert_accurate, randn
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops import attention, decode_attention_, decode_attention_int8_, qk_norm_rope, qk_norm_rope_append_


def decode_inputs(B: int, T: int, H: int, D: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    weights = [randn(D, dtype=dtype, seed=i) for i in range(1, 5)]
    angles = randn(B, T, D // 4, seed=5)
    return randn(B, T, H, 3, D, dtype=dtype), *weights, angles.cos(), angles.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1, 3, 64, 70), (1, 8, 2, 64, 600), (3, 3, 2, 20, 9), (1, 1, 1, 1, 3)])
def test_decode_is_append_then_attention(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    B, T, H, D, S = shape
    arguments = decode_inputs(B, T, H, D, dtype)
    slots = torch.arange(B)[:, None] * ((S - T) // max(B - 1, 1)) + torch.arange(T)
    start = slots[:, 0] // 3
    caches = [randn(B, H, S, D, dtype=dtype, seed=seed) for seed in (7, 8)]
    unwritten = (torch.arange(S) > slots[:, -1:])[:, None, :, None]
    poisoned = [cache.masked_fill(unwritten, float("nan")) for cache in caches]
    out = decode_attention_(*arguments, *poisoned, slots, start=start, eps=1e-5)
    q = qk_norm_rope_append_(*arguments, *caches, slots, 1e-5)
    separate, _ = attention(q, *caches, start=start, length=slots[:, -1] + 1, offset=slots[:, 0])
    assert torch.equal(out, separate)
    for ours, other in zip(poisoned, caches, strict=True):
        assert torch.equal(ours.masked_fill(unwritten, 0.0), other.masked_fill(unwritten, 0.0))


def test_decode_of_a_row_that_is_skipped() -> None:
    arguments = decode_inputs(2, 1, 2, 16, torch.float32)
    caches = [randn(2, 2, 5, 16, seed=seed) for seed in (7, 8)]
    before = [cache.clone() for cache in caches]
    out = decode_attention_(*arguments, *caches, torch.tensor([[-1], [2]]), eps=1e-5)
    assert not out[0].any()
    for cache, old in zip(caches, before, strict=True):
        assert torch.equal(cache[0], old[0])


@pytest.mark.parametrize(
    ("T", "slots", "error", "message"),
    [
        (0, [], ValueError, "takes 1 to 8 new tokens, got 0"),
        (9, list(range(9)), ValueError, "takes 1 to 8 new tokens, got 9"),
        (2, [0, 2], ValueError, "consecutive in each row, got 0 followed by 2"),
        (2, [3, 3], ValueError, "consecutive in each row, got 3 followed by 3"),
        (2, [9, 10], IndexError, r"slots must lie in \[-1, 10\).*got 10"),
    ],
)
def test_decode_errors(T: int, slots: list[int], error: type[Exception], message: str) -> None:
    arguments = decode_inputs(1, T, 2, 16, torch.float32)
    caches = [torch.zeros(1, 2, 10, 16) for _ in range(2)]
    with pytest.raises(error, match=message):
        decode_attention_(*arguments, *caches, torch.tensor([slots], dtype=torch.int64), eps=1e-5)
    assert not caches[0].any()


def test_start_is_checked_before_anything_is_written() -> None:
    caches = [torch.zeros(2, 2, 5, 16) for _ in range(2)]
    with pytest.raises(ValueError, match=r"start must have shape \[2\], got \[3\]"):
        decode_attention_(
            *decode_inputs(2, 1, 2, 16, torch.float32),
            *caches,
            torch.zeros(2, 1, dtype=torch.int64),
            start=torch.zeros(3, dtype=torch.int64),
            eps=1e-5,
        )
    assert not caches[1].any()


def int8_caches(B: int, H: int, S: int, D: int, unwritten: Tensor) -> list[Tensor]:
    """Codes of K and V, then their scales; NaN scales where a row is `unwritten` [B, 1, S, 1]."""
    codes, scales = zip(*(reference.quantize_rows(randn(B, H, S, D, seed=seed)) for seed in (7, 8)), strict=True)
    return [*codes, *(scale.masked_fill(unwritten, float("nan")) for scale in scales)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(2, 1, 3, 64, 70), (1, 8, 2, 64, 600), (3, 3, 2, 20, 9), (1, 1, 1, 1, 3), (1, 5, 1, 32, 131)]
)
def test_int8_decode_is_append_then_attention(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The rows appended are those of the reference to the bit, and attention is that over what the cache stands for."""
    B, T, H, D, S = shape
    arguments = decode_inputs(B, T, H, D, dtype)
    slots = torch.arange(B)[:, None] * ((S - T) // max(B - 1, 1)) + torch.arange(T)
    start = slots[:, 0] // 3
    position = torch.arange(S)
    new = ((position >= slots[:, :1]) & (position <= slots[:, -1:]))[:, None, :, None]
    after = (position > slots[:, -1:])[:, None, :, None]
    caches = int8_caches(B, H, S, D, new | after)
    before = [cache.clone() for cache in caches]
    out = decode_attention_int8_(*arguments, *caches, slots, start=start, eps=1e-5)

    q, k, v = qk_norm_rope(*arguments, 1e-5)
    (k_codes, k_scale), (v_codes, v_scale) = reference.quantize_rows(k), reference.quantize_rows(v)
    for cache, old, appended in zip(caches, before, (k_codes, v_codes, k_scale, v_scale), strict=True):
        for b, first in enumerate(slots[:, 0].tolist()):
            assert torch.equal(cache[b, :, first : first + T], appended[b])
            old[b, :, first : first + T] = appended[b]
        assert torch.equal(cache.nan_to_num(-1.0), old.nan_to_num(-1.0))

    visible = {"start": start, "length": slots[:, -1] + 1, "offset": slots[:, 0], "scale": D**-0.5}
    stored = [(caches[i].double() * caches[i + 2].double()).masked_fill(after, 0.0) for i in (0, 1)]
    exact, _ = reference.attention(q.double(), *stored, *visible.values())
    eager, _ = reference.attention(q, *(rows.to(dtype) for rows in stored), *visible.values())
    assert_accurate(out, eager, exact)


def test_int8_decode_keeps_zeros_and_loses_nothing_that_is_not_finite() -> None:
    arguments = decode_inputs(1, 1, 2, 16, torch.float32)
    arguments[0][0, 0, :, 2] = 0.0
    out = decode_attention_int8_(
        *arguments, *int8_caches(1, 2, 4, 16, torch.zeros(1) > 0), torch.tensor([[0]]), eps=1e-5
    )
    assert not out.any()
    for special in (float("nan"), float("inf"), -float("inf")):
        arguments[0][0, 0, 1, 2, 3] = special
        caches = int8_caches(1, 2, 4, 16, torch.zeros(1) > 0)
        out = decode_attention_int8_(*arguments, *caches, torch.tensor([[0]]), eps=1e-5)
        assert not out[0, 0, 1].isfinite().any()
        assert not out[0, 0, 0].any()


@pytest.mark.parametrize("norms", ["none", "float64"])
def test_int8_decode_where_no_kernel_fits(norms: str) -> None:
    """A model without QK-norm and one in float64 run the reference."""
    arguments = list(decode_inputs(1, 2, 2, 16, torch.float64 if norms == "float64" else torch.float32))
    if norms == "none":
        arguments[1:5] = [None] * 4
    caches = int8_caches(1, 2, 6, 16, torch.zeros(1) > 0)
    slots = torch.tensor([[3, 4]])
    out = decode_attention_int8_(*arguments, *caches, slots, eps=1e-5)
    q, k, _ = reference.qk_norm_rope(*arguments, 1e-5)
    assert torch.equal(caches[0][:, :, 3:5], reference.quantize_rows(k)[0])
    keys, values = (reference.dequantize_rows(caches[i], caches[i + 2], q.dtype) for i in (0, 1))
    expected, _ = reference.attention(q, keys, values, None, slots[:, -1] + 1, slots[:, 0], 0.25)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("changed", "value", "error", "message"),
    [
        (0, torch.zeros(1, 2, 10, 16), TypeError, "k_cache must be int8, got float32"),
        (1, torch.zeros(1, 2, 9, 16, dtype=torch.int8), ValueError, r"v_cache must have shape \[1, 2, 10, 16\]"),
        (2, torch.zeros(1, 2, 10), ValueError, r"k_scale must have shape \[1, 2, 10, 1\]"),
        (3, torch.zeros(1, 2, 10, 1, dtype=torch.float64), TypeError, "v_scale must be float32, got float64"),
        (3, torch.zeros(1, 2, 1, 1).expand(1, 2, 10, 1), ValueError, "v_scale must not be an expanded tensor"),
    ],
)
def test_int8_decode_errors(changed: int, value: Tensor, error: type[Exception], message: str) -> None:
    caches = [torch.zeros(1, 2, 10, 16, dtype=torch.int8) for _ in range(2)]
    caches += [torch.zeros(1, 2, 10, 1) for _ in range(2)]
    caches[changed] = value
    with pytest.raises(error, match=message):
        decode_attention_int8_(*decode_inputs(1, 1, 2, 16, torch.float32), *caches, torch.tensor([[3]]), eps=1e-5)
    caches[changed] = caches[changed - 1] if changed % 2 else caches[changed + 1]
    with pytest.raises(ValueError, match="must not share memory"):
        decode_attention_int8_(*decode_inputs(1, 1, 2, 16, torch.float32), *caches, torch.tensor([[3]]), eps=1e-5)


def test_operator_is_well_formed() -> None:
    arguments = (*decode_inputs(1, 2, 2, 16, torch.float32), *(torch.zeros(1, 2, 6, 16) for _ in range(2)))
    slots = torch.tensor([[2, 3]])
    torch.library.opcheck(torch.ops.persimmon_ext.decode_attention_.default, (*arguments, slots, None, 1e-5, 0.25))
