"""attention and its gradient: accuracy, poisoned and odd input, errors, every instruction set."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, assert_accurate, randn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from persimmon_ext import reference
from persimmon_ext.ops import attention

NAN = float("nan")
QUERY_BLOCK, KEY_BLOCK = 96, 64  # of the CPU kernel: sizes around them are cases of their own

SHAPES = [  # B, H, T, S, D
    (1, 1, 1, 1, 1),
    (2, 3, 5, 5, 64),
    (1, 2, 3, 63, 48),
    (1, 2, 4, 65, 32),
    (2, 1, 5, 66, 7),
    (2, 2, 20, 10, 8),  # the first ten queries see nothing by default
    (1, 4, 1, 701, 64),  # keys split between units
    (2, 1, 8, 1031, 24),
    (1, 1, QUERY_BLOCK - 1, 2 * KEY_BLOCK - 1, 33),
    (1, 2, QUERY_BLOCK, 2 * KEY_BLOCK, 16),
    (2, 1, QUERY_BLOCK + 1, 2 * KEY_BLOCK + 1, 80),
    (1, 1, 211, 211, 64),
]


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    B, H, T, S, D = shape
    q, k, v = (randn(B, H, n, D, dtype=dtype, seed=seed + i) for i, n in enumerate((T, S, S)))
    return q, k, v


def ranges(B: int, T: int, S: int, seed: int = 0) -> dict[str, Tensor]:
    """A start, length and offset for each sequence, some of them beyond the ends."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), (B,), generator=generator)

    return {"start": draw(-1, S // 2 + 1), "length": draw(S // 2, S + 3), "offset": draw(-2, S + 2)}


def expected(q: Tensor, k: Tensor, v: Tensor, limits: dict[str, Tensor], scale: float) -> tuple[Tensor, Tensor]:
    return reference.attention(q, k, v, limits.get("start"), limits.get("length"), limits.get("offset"), scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limited", [False, True])
def test_forward(shape: tuple[int, ...], dtype: torch.dtype, limited: bool) -> None:
    B, _, T, S, D = shape
    q, k, v = tensors(shape, dtype)
    limits = ranges(B, T, S) if limited else {}
    out, lse = attention(q, k, v, **limits)
    eager = expected(q, k, v, limits, D**-0.5)
    exact = expected(q.double(), k.double(), v.double(), limits, D**-0.5)
    assert out.is_contiguous()
    assert lse.dtype == torch.float32
    assert_accurate(out, eager[0], exact[0], name="out")
    assert torch.equal(lse.isinf(), exact[1].isinf())
    assert_accurate(lse, eager[1].float(), exact[1], name="lse")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    B, H, T, S, D = shape
    S = max(S, T)  # every query sees a key; the others have a test of their own
    inputs = tensors((B, H, T, S, D), dtype)
    start = torch.arange(B) % (S - T + 1)
    grad = randn(B, T, H, D, dtype=dtype, seed=9)

    def gradients(function: object, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        out, _ = function(*leaves)  # type: ignore[operator]
        return torch.autograd.grad(out, leaves, grad.to(dtype))

    def eager(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return expected(q, k, v, {"start": start}, D**-0.5)

    ours = gradients(lambda q, k, v: attention(q, k, v, start=start), dtype)
    for name, *results in zip("qkv", ours, gradients(eager, dtype), gradients(eager, torch.float64), strict=True):
        assert_accurate(*results, name=f"d{name}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_no_query_sees_may_hold_anything(dtype: torch.dtype) -> None:
    B, H, T, S, D = 2, 2, 70, 150, 64
    limits = {"start": torch.tensor([3, 64]), "length": torch.tensor([140, 150]), "offset": torch.tensor([80, 65])}
    q, k, v = tensors((B, H, T, S, D), dtype)
    unseen = ~reference.visible_keys(T, S, q.device, **limits).any(2).unsqueeze(-1)  # [B, 1, S, 1]
    grad = randn(B, T, H, D, dtype=dtype, seed=9)
    results = []
    for poison in (0.0, NAN, float("inf")):
        leaves = [q.clone(), k.masked_fill(unseen, poison), v.masked_fill(unseen, poison)]
        leaves = [x.requires_grad_() for x in leaves]
        out, lse = attention(*leaves, **limits)
        results.append((out, lse, *torch.autograd.grad(out, leaves, grad)))
    for poisoned in results[1:]:
        for clean, dirty in zip(results[0], poisoned, strict=True):
            assert torch.equal(clean, dirty)
    for gradient in results[0][3:]:
        assert not gradient.masked_select(unseen.expand_as(gradient)).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [2, 3, 4, 7, 8, 70, 129])
def test_future_keys_may_hold_anything(T: int, dtype: torch.dtype) -> None:
    q, k, v = tensors((1, 1, T, T, 64), dtype)
    clean, _ = attention(q, k, v)
    k[:, :, -1] = NAN
    v[:, :, -1] = NAN
    poisoned, _ = attention(q, k, v)
    assert torch.equal(poisoned[:, :-1], clean[:, :-1])
    assert bool(poisoned[:, -1].isnan().all())  # a NaN that is visible is not hidden


def test_queries_that_see_nothing() -> None:
    B, H, T, S, D = 1, 2, 100, 60, 16
    q, k, v = tensors((B, H, T, S, D))
    q[:, :, :40] = NAN
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = attention(*leaves)
    assert not out[:, :40].any()
    assert bool((lse[:, :, :40] == float("-inf")).all())
    grad = randn(B, T, H, D, seed=9)
    dq, dk, dv = torch.autograd.grad(out, leaves, grad)
    assert not dq[:, :, :40].any()
    seeing = [q[:, :, 40:].detach().requires_grad_(), k, v]
    alone = torch.autograd.grad(attention(*seeing)[0], seeing, grad[:, 40:])
    for ours, other in zip((dq[:, :, 40:], dk, dv), alone, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3, 8), (2, 0, 3, 3, 8), (2, 2, 0, 3, 8), (2, 2, 3, 0, 8)])
def test_empty(shape: tuple[int, ...]) -> None:
    B, H, T, _, D = shape
    leaves = [x.requires_grad_() for x in tensors(shape)]
    out, lse = attention(*leaves)
    assert out.shape == (B, T, H, D)
    assert lse.shape == (B, H, T)
    assert not out.any()
    for x, gradient in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert gradient.shape == x.shape
        assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [3, 100])
def test_strided_views(T: int, dtype: torch.dtype) -> None:
    B, H, S, D = 2, 3, 130, 32
    q, k, v = tensors((B, H, T, S, D), dtype)
    wide = torch.full((B, S + 9, H, 2, D + 3), NAN, dtype=dtype)
    wide[:, 5 : S + 5, :, 0, :D] = k.transpose(1, 2)
    wide[:, 5 : S + 5, :, 1, :D] = v.transpose(1, 2)
    k_view, v_view = wide[:, 5 : S + 5, :, :, :D].permute(3, 0, 2, 1, 4)
    q_view = q.transpose(2, 3).contiguous().transpose(2, 3)  # the last dimension is the strided one
    for ours, plain in zip(attention(q_view, k_view, v_view), attention(q, k, v), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("T", [1, 20])
def test_rows_an_odd_number_of_elements_apart(T: int) -> None:
    q, k, v = tensors((1, 1, T, 70, 64), torch.bfloat16)
    pitched = torch.zeros(70, 67, dtype=torch.bfloat16)
    pitched[:, :64] = k[0, 0]
    out, _ = attention(q, pitched[None, None, :, :64], v)
    limits: dict[str, Tensor] = {}
    assert_accurate(
        out, expected(q, k, v, limits, 0.125)[0], expected(q.double(), k.double(), v.double(), limits, 0.125)[0]
    )


@pytest.mark.parametrize("value", [-(2**63), -1, 0, 2**62, 2**63 - 1])
@pytest.mark.parametrize("name", ["start", "length", "offset"])
def test_extreme_ranges(name: str, value: int) -> None:
    q, k, v = tensors((1, 2, 5, 70, 16))
    clamped = torch.tensor([max(-100, min(value, 100))])
    out, _ = attention(q, k, v, **{name: torch.tensor([value])})
    assert_accurate(
        out,
        *(expected(*(x.to(d) for x in (q, k, v)), {name: clamped}, 0.25)[0] for d in (torch.float32, torch.float64)),
    )


def test_large_scores() -> None:
    q, k, v = tensors((1, 2, 70, 70, 64))
    out, lse = attention(q * 100, k * 100, v)
    exact = expected(q.double() * 100, k.double() * 100, v.double(), {}, 0.125)
    eager = expected(q * 100, k * 100, v, {}, 0.125)
    assert_accurate(out, eager[0], exact[0])
    assert_accurate(lse, eager[1], exact[1])


@settings(max_examples=60)
@given(
    shape=st.tuples(*(st.integers(1, largest) for largest in (3, 3, 140, 200, 70))),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_range(shape: tuple[int, ...], seed: int) -> None:
    B, _, T, S, _ = shape
    q, k, v = tensors(shape, seed=seed)
    limits = ranges(B, T, S, seed)
    out, lse = attention(q, k, v, **limits, scale=0.3)
    eager, exact = expected(q, k, v, limits, 0.3), expected(q.double(), k.double(), v.double(), limits, 0.3)
    assert_accurate(out, eager[0], exact[0])
    assert_accurate(lse, eager[1], exact[1])


def test_same_bits_for_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            long = [x.requires_grad_() for x in tensors((1, 3, 200, 200, 64), torch.bfloat16)]
            out, lse = attention(*long)
            short = attention(*tensors((1, 2, 3, 1500, 64)))
            short16 = attention(*tensors((1, 2, 3, 1500, 64), torch.bfloat16))
            results.append((out, lse, *torch.autograd.grad(out.sum(), long), *short, *short16))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(2, 3, 8)}, ValueError, "q must have 4 dimensions"),
        ({"k": torch.zeros(2, 3, 5, 7)}, ValueError, "k must have shape .*got .*7"),
        ({"k": torch.zeros(2, 1, 5, 8)}, ValueError, "k must have shape"),
        ({"v": torch.zeros(2, 3, 6, 8)}, ValueError, "v must have shape .*got .*6"),
        ({"v": torch.zeros(2, 3, 5, 8).half()}, TypeError, "v must have q's dtype float32, got float16"),
        ({"q": torch.zeros(2, 3, 4, 0)}, ValueError, "head dimension of at least 1"),
        ({"start": torch.zeros(3, dtype=torch.int64)}, ValueError, r"start must have shape \[2\], got \[3\]"),
        ({"length": torch.zeros(2, dtype=torch.int32)}, TypeError, "length must be int64, got int32"),
        ({"offset": torch.zeros(2)}, TypeError, "offset must be int64, got float32"),
    ],
)
def test_errors(changes: dict[str, Tensor], error: type[Exception], message: str) -> None:
    q, k, v = tensors((2, 3, 4, 5, 8))
    arguments = {"q": q, "k": k, "v": v, "start": None, "length": None, "offset": None, "scale": 1.0, **changes}
    with pytest.raises(error, match=message):
        torch.ops.persimmon_ext.attention(**arguments)


def test_operators_are_well_formed() -> None:
    q, k, v = (x.requires_grad_() for x in tensors((2, 2, 3, 5, 16)))
    torch.library.opcheck(torch.ops.persimmon_ext.attention.default, (q, k, v, None, None, None, 0.25))
