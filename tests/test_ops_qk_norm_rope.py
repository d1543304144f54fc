"""qk_norm_rope, its gradient and its append form: accuracy, odd shapes, views, errors, every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import DTYPES, assert_accurate, randn
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops import qk_norm_rope, qk_norm_rope_append_

EPS = 1e-5
SHAPES = [  # B, T, H, D, R
    (2, 5, 3, 64, 32),
    (1, 1, 1, 1, 0),
    (2, 3, 2, 7, 6),
    (1, 130, 4, 64, 64),
    (3, 17, 2, 33, 10),
    (2, 67, 2, 80, 40),
    (1, 2, 64, 64, 32),
    (1, 3, 2, 15, 0),
    (1, 3, 2, 17, 16),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, shared_angles: bool = False) -> list[Tensor]:
    B, T, H, D, R = shape
    qkv = randn(B, T, H, 3, D, dtype=dtype, seed=1)
    norms = [randn(D, dtype=dtype, seed=seed) for seed in range(2, 6)]
    angles = randn(1 if shared_angles else B, T, R // 2, seed=6, scale=3.0)
    return [qkv, *norms, angles.cos(), angles.sin()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared_angles", [False, True])
def test_forward(shape: tuple[int, ...], dtype: torch.dtype, shared_angles: bool) -> None:
    arguments = inputs(shape, dtype, shared_angles)
    results = qk_norm_rope(*arguments, EPS)
    eager = reference.qk_norm_rope(*arguments, EPS)
    exact = reference.qk_norm_rope(*(x.double() for x in arguments), EPS)
    for name, *values in zip("qk", results, eager, exact, strict=False):
        assert values[0].is_contiguous()
        assert_accurate(*values, name=name)
    assert torch.equal(results[2], eager[2])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, T, H, D, _ = shape
    qkv, *norms, cos, sin = inputs(shape, dtype)
    grads = [randn(B, H, T, D, dtype=dtype, seed=seed) for seed in (7, 8, 9)]

    def gradients(op: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in (qkv, *norms)]
        return torch.autograd.grad(op(*leaves, cos, sin, EPS), leaves, [g.to(dtype) for g in grads])

    exact = gradients(reference.qk_norm_rope, torch.float64)
    eager = gradients(reference.qk_norm_rope, dtype)
    names = ("dqkv", "dq_weight", "dq_bias", "dk_weight", "dk_bias")
    for name, *values in zip(names, gradients(qk_norm_rope, dtype), eager, exact, strict=True):
        assert_accurate(*values, name=name)


def test_constant_rows() -> None:
    qkv, *rest = inputs((1, 4, 2, 24, 12))
    qkv[:] = 3.0
    q, k, _ = qk_norm_rope(qkv, *rest, EPS)
    exact = reference.qk_norm_rope(*(x.double() for x in (qkv, *rest)), EPS)
    torch.testing.assert_close(q.double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(k.double(), exact[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_append(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, T, H, D, _ = shape
    S = 2 * T + 3
    arguments = inputs(shape, dtype)
    q, k, v = qk_norm_rope(*arguments, EPS)
    slots = torch.stack([torch.randperm(S)[:T] for _ in range(B)])
    slots[:, 1::3] = -1
    wide = torch.zeros(B, H, S + 2, 2 * D, dtype=dtype)
    k_cache = wide[:, :, 1:-1, :D]  # a view with room on all sides
    v_cache = torch.zeros(B, S, H, D, dtype=dtype).transpose(1, 2)
    assert torch.equal(qk_norm_rope_append_(*arguments, k_cache, v_cache, slots, EPS), q)
    expected = torch.zeros(2, B, H, S, D, dtype=dtype)
    reference.append_(k, v, expected[0], expected[1], slots)
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])
    k_cache.zero_()
    assert not wide.any()  # nothing outside of the view was touched


def test_the_last_token_of_a_repeated_slot_wins() -> None:
    arguments = inputs((2, 40, 3, 16, 8))
    _, k, v = qk_norm_rope(*arguments, EPS)
    k_cache, v_cache = torch.zeros(2, 2, 3, 4, 16)
    qk_norm_rope_append_(*arguments, k_cache, v_cache, torch.arange(80).view(2, 40) % 4, EPS)
    assert torch.equal(k_cache, k[:, :, -4:])
    assert torch.equal(v_cache, v[:, :, -4:])


def test_strided_input() -> None:
    qkv, *rest = inputs((2, 6, 3, 20, 10))
    strided = qkv.permute(4, 1, 0, 2, 3).contiguous().permute(2, 1, 3, 4, 0)
    spread = [torch.stack((x, x), dim=-1)[..., 0] for x in rest]
    for ours, plain in zip(qk_norm_rope(strided, *spread, EPS), qk_norm_rope(qkv, *rest, EPS), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("shape", [(0, 2, 2, 8, 4), (2, 0, 2, 8, 4), (2, 2, 0, 8, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    B, T, H, D, _ = shape
    qkv, *rest = inputs(shape)
    leaves = [x.requires_grad_() for x in (qkv, *rest[:4])]
    results = qk_norm_rope(*leaves, *rest[4:], EPS)
    assert all(x.shape == (B, H, T, D) for x in results)
    gradients = torch.autograd.grad(sum(x.sum() for x in results), leaves)
    assert not any(g.any() for g in gradients)
    cache = torch.zeros(2, B, H, 3, D)
    slots = torch.zeros(B, T, dtype=torch.int64)
    with torch.no_grad():
        q = qk_norm_rope_append_(qkv, *rest[:6], cache[0], cache[1], slots, EPS)
    assert q.shape == (B, H, T, D)


def test_same_bits_for_any_number_of_threads() -> None:
    arguments = inputs((2, 150, 4, 64, 32), torch.bfloat16)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            leaves = [x.requires_grad_() for x in arguments[:5]]
            outputs = qk_norm_rope(*leaves, *arguments[5:], EPS)
            results.append((*outputs, *torch.autograd.grad(outputs, leaves, [x.detach() for x in outputs])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("slot", [5, 6, -2, 2**40, -(2**63)])
def test_slot_out_of_range(slot: int) -> None:
    arguments = inputs((2, 2, 2, 8, 4))
    caches = torch.zeros(2, 2, 2, 5, 8)
    with pytest.raises(IndexError, match=rf"slots must lie in \[-1, 5\).*got {slot} for token 1 of batch row 1"):
        qk_norm_rope_append_(*arguments, caches[0], caches[1], torch.tensor([[0, 1], [0, slot]]), EPS)
    assert not caches.any()


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, torch.zeros(2, 3, 2, 8), ValueError, "qkv must have 5 dimensions"),
        (0, torch.zeros(2, 3, 2, 4, 8), ValueError, r"qkv must have shape \[B, T, H, 3, D\], got \[2, 3, 2, 4, 8\]"),
        (0, torch.zeros(2, 3, 2, 3, 0), ValueError, "head dimension of at least 1"),
        (1, torch.zeros(7), ValueError, r"q_weight must have shape \[8\], got \[7\]"),
        (2, torch.zeros(8, 1), ValueError, r"q_bias must have shape \[8\], got \[8, 1\]"),
        (3, torch.zeros(8).half(), TypeError, "k_weight must have qkv's dtype float32, got float16"),
        (4, torch.zeros(9), ValueError, r"k_bias must have shape \[8\], got \[9\]"),
        (5, torch.zeros(2, 3, 2).double(), TypeError, "cos must be float32, got float64"),
        (5, torch.zeros(3, 3, 2), ValueError, "cos must have batch size 1 or 2"),
        (5, torch.zeros(2, 4, 2), ValueError, "cos must have one row for each of 3 tokens"),
        (5, torch.zeros(2, 3, 5), ValueError, "cos must have at most D/2 = 4 columns"),
        (6, torch.zeros(2, 3, 1), ValueError, r"sin must have shape \[2, 3, 2\], got \[2, 3, 1\]"),
    ],
)
def test_errors(position: int, value: Tensor, error: type[Exception], message: str) -> None:
    arguments = inputs((2, 3, 2, 8, 4))
    arguments[position] = value
    with pytest.raises(error, match=message):
        torch.ops.persimmon_ext.qk_norm_rope(*arguments, EPS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k_cache": torch.zeros(2, 2, 8)}, ValueError, "k_cache must have 4 dimensions"),
        ({"k_cache": torch.zeros(2, 1, 5, 8)}, ValueError, r"k_cache must have shape \[2, 2, 5, 8\]"),
        ({"v_cache": torch.zeros(2, 2, 6, 8)}, ValueError, r"v_cache must have shape \[2, 2, 5, 8\]"),
        ({"v_cache": torch.zeros(2, 2, 5, 8).half()}, TypeError, "v_cache must have qkv's dtype float32, got float16"),
        ({"k_cache": torch.zeros(2, 2, 8, 5).mT}, ValueError, "k_cache must be contiguous in its last dimension"),
        ({"k_cache": torch.zeros(1, 2, 5, 8).expand(2, 2, 5, 8)}, ValueError, "k_cache must not be an expanded tensor"),
        ({"slots": torch.zeros(2, 3)}, TypeError, "slots must be int64, got float32"),
        ({"slots": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, r"slots must have shape \[2, 3\], got \[3, 2\]"),
    ],
)
def test_append_errors(changes: dict[str, Tensor], error: type[Exception], message: str) -> None:
    places = {
        "k_cache": torch.zeros(2, 2, 5, 8),
        "v_cache": torch.zeros(2, 2, 5, 8),
        "slots": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        torch.ops.persimmon_ext.qk_norm_rope_append_(*inputs((2, 3, 2, 8, 4)), *{**places, **changes}.values(), EPS)


def test_operators_are_well_formed() -> None:
    arguments = inputs((2, 3, 2, 8, 4))
    caches = (torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8), torch.tensor([[0, 1, 2], [1, -1, 4]]))
    torch.library.opcheck(torch.ops.persimmon_ext.qk_norm_rope_append_.default, (*arguments, *caches, EPS))
    leaves = [x.requires_grad_() for x in arguments[:5]]
    torch.library.opcheck(torch.ops.persimmon_ext.qk_norm_rope.default, (*leaves, *arguments[5:], EPS))
