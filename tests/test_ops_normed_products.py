"""norm_linear and norm_mlp: the ops that they are made of, in one, for every kind of weight."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers import DTYPES, assert_accurate, randn
from torch import Tensor

from persimmon_ext import ops, quantization, reference

raw = torch.ops.persimmon_ext
KINDS = ["elements", "int8", "int4"]
ROWS = [1, 2, 3, 7, 16, 17]
EPS = 0.1  # large enough to be missed


@dataclass(frozen=True)
class Weight:
    operand: Tensor
    scale: Tensor | None
    exact: Tensor  # float64 [N, K]

    def rounded(self, dtype: torch.dtype) -> Tensor:
        return self.exact.to(dtype)


def make_weight(kind: str, N: int, K: int, dtype: torch.dtype, *, hidden_major: bool = False) -> Weight:
    matrix = randn(N, K, dtype=dtype, seed=N, scale=max(K, 1) ** -0.5)
    if kind == "elements":
        return Weight(matrix.T.contiguous().T if hidden_major else matrix, None, matrix.double())
    if kind == "int8":
        codes, scale = (quantization.quantize_hidden_major_int8 if hidden_major else quantization.quantize_int8)(matrix)
        exact = codes.double() * (scale if hidden_major else scale[:, None])
    else:
        codes, scale = (quantization.quantize_hidden_major_int4 if hidden_major else quantization.quantize_int4)(matrix)
        exact = quantization.dequantize_int4(codes, scale).double()
    return Weight(codes, scale, exact.T if hidden_major else exact)


def norm(C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    return 1 + randn(C, dtype=dtype, seed=5, scale=0.25), randn(C, dtype=dtype, seed=6), EPS


def doubles(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def check_linear(x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    w, b, eps = norm(x.shape[-1], x.dtype)
    ours = raw.norm_linear(x, w, b, eps, weight.operand, weight.scale, bias)
    eager = reference.norm_linear(x, w, b, eps, weight.rounded(x.dtype), bias)
    wide = doubles(x, w, b, bias)
    exact = reference.norm_linear(*wide[:3], eps, weight.exact, wide[3])
    assert_accurate(ours, eager, exact)


def check_mlp(x: Tensor, up: Weight, up_bias: Tensor | None, down: Weight, down_bias: Tensor | None) -> None:
    w, b, eps = norm(x.shape[-1], x.dtype)
    ours = raw.norm_mlp(x, w, b, eps, up.operand, up.scale, up_bias, down.operand, down.scale, down_bias)
    eager = reference.norm_mlp(x, w, b, eps, up.rounded(x.dtype), up_bias, down.rounded(x.dtype), down_bias)
    wide = doubles(x, w, b, up_bias, down_bias)
    exact = reference.norm_mlp(*wide[:3], eps, up.exact, wide[3], down.exact, wide[4])
    assert_accurate(ours, eager, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M", ROWS)
def test_error(M: int, kind: str, dtype: torch.dtype) -> None:
    for C, F in [(64, 64), (128, 192), (192, 320)]:
        x = 3 + randn(M, C, dtype=dtype, seed=M)
        check_linear(x, make_weight(kind, 3 * C, C, dtype), randn(3 * C, dtype=dtype, seed=1))
        up, down = make_weight(kind, F, C, dtype), make_weight(kind, C, F, dtype, hidden_major=True)
        check_mlp(x, up, randn(F, dtype=dtype, seed=2) - 1, down, randn(C, dtype=dtype, seed=3))
        check_mlp(x, up, None, down, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("C", "F"), [(1, 1), (7, 13), (65, 31), (129, 257)])
def test_ragged_sizes(C: int, F: int, dtype: torch.dtype) -> None:
    x = randn(3, C, dtype=dtype, seed=1)
    check_linear(x, make_weight("elements", F, C, dtype), None)
    up, down = make_weight("elements", F, C, dtype), make_weight("elements", C, F, dtype, hidden_major=True)
    check_mlp(x, up, randn(F, dtype=dtype), down, randn(C, dtype=dtype, seed=3))


@pytest.mark.parametrize(("M", "C", "F"), [(0, 8, 16), (2, 8, 0), (3, 0, 0)])
def test_empty(M: int, C: int, F: int) -> None:
    x, (w, b, eps) = randn(M, C), norm(C, torch.float32)
    up, down = randn(F, C), randn(F, C, seed=1).T
    assert raw.norm_linear(x, w, b, eps, up, None, None).shape == (M, F)
    found = raw.norm_mlp(x, w, b, eps, up, None, None, down, None, None)
    torch.testing.assert_close(found, reference.norm_mlp(x, w, b, eps, up, None, down, None))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_behind_zeros_are_not_read(kind: str) -> None:
    C, F = 64, 96
    x, (w, b, eps) = randn(3, C).bfloat16(), norm(C, torch.bfloat16)
    up, down = make_weight(kind, F, C, torch.bfloat16), make_weight(kind, C, F, torch.bfloat16, hidden_major=True)
    bias = torch.zeros(F).bfloat16()
    bias[10:50] = -1000
    arguments = (x, w, b, eps, up.operand, up.scale, bias, down.operand, down.scale, None)
    expected = raw.norm_mlp(*arguments)
    assert bool(expected.isfinite().all())
    if kind == "elements":
        down.operand[:, 10:50] = float("nan")
    else:
        down.operand[10:50] = 100
    assert torch.equal(raw.norm_mlp(*arguments), expected)


def test_leading_dimensions_and_layouts() -> None:
    x, (w, b, eps) = randn(2, 3, 40)[..., ::2], norm(20, torch.float32)
    up, down = randn(7, 20, seed=1), randn(20, 7, seed=2)  # down row-major: the dense product
    eager, exact = (
        reference.norm_mlp(*(t.to(dtype) for t in (x, w, b)), eps, up.to(dtype), None, down.to(dtype), None)
        for dtype in (torch.float32, torch.float64)
    )
    assert_accurate(raw.norm_mlp(x, w, b, eps, up, None, None, down, None, None), eager, exact)
    strided = up.repeat_interleave(2, dim=1)[:, ::2]
    eager, exact = (
        reference.norm_linear(*(t.to(dtype) for t in (x, w, b)), eps, up.to(dtype), None)
        for dtype in (torch.float32, torch.float64)
    )
    assert_accurate(raw.norm_linear(x, w, b, eps, strided, None, None), eager, exact)
    assert raw.norm_linear(x[0, 0], w, b, eps, up, None, None).shape == (7,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("M", [2, 17])
def test_functions_are_those_of_their_parts(M: int, kind: str) -> None:
    """With gradients, under autocast and in float64 the public functions put the result together themselves."""
    C, F = 64, 128
    x, (w, b, eps) = randn(M, C), norm(C, torch.float32)
    up, down = make_weight(kind, F, C, torch.float32), make_weight(kind, C, F, torch.float32, hidden_major=True)
    arguments = (w, b, eps, up.operand, up.scale, randn(F), down.operand, down.scale, randn(C, seed=1))
    with torch.no_grad():
        fused, projected = ops.norm_mlp(x, *arguments), ops.norm_linear(x, *arguments[:6])
    leaf = x.clone().requires_grad_()
    composed = ops.norm_mlp(leaf, *arguments)
    torch.testing.assert_close(composed, fused)
    torch.testing.assert_close(ops.norm_linear(leaf, *arguments[:6]), projected)
    composed.sum().backward()
    twin = x.clone().requires_grad_()
    weights = [up.rounded(torch.float32), arguments[5], down.rounded(torch.float32), arguments[8]]
    reference.norm_mlp(twin, w, b, eps, *weights).sum().backward()
    torch.testing.assert_close(leaf.grad, twin.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert float((ops.norm_mlp(x, *arguments) - fused).abs().max()) < 0.2


def test_float64_runs_the_reference() -> None:
    x, w, up, down = randn(2, 8).double(), randn(8).double(), randn(12, 8).double(), randn(12, 8, seed=1).double().T
    with torch.no_grad():
        torch.testing.assert_close(
            ops.norm_mlp(x, w, w, EPS, up, None, None, down, None, None),
            reference.norm_mlp(x, w, w, EPS, up, None, down, None),
            rtol=0,
            atol=0,
        )


def test_errors() -> None:
    x, (w, b, eps) = randn(2, 64), norm(64, torch.float32)
    up, down = randn(96, 64), randn(96, 64, seed=1).T
    codes, scale = quantization.quantize_int8(up)
    with pytest.raises(ValueError, match=r"norm_weight must have shape \[64\], got \[63\]"):
        raw.norm_linear(x, w[:63], b, eps, up, None, None)
    with pytest.raises(TypeError, match="norm_bias must have x's dtype float32, got float16"):
        raw.norm_linear(x, w, b.half(), eps, up, None, None)
    with pytest.raises(ValueError, match="eps must be finite and not negative, got -1"):
        raw.norm_linear(x, w, b, -1.0, up, None, None)
    with pytest.raises(ValueError, match="weight is int8, and must come with a scale, got None"):
        raw.norm_linear(x, w, b, eps, codes, None, None)
    with pytest.raises(ValueError, match="up is float32, and must come without a scale, got one"):
        raw.norm_mlp(x, w, b, eps, up, scale, None, down, None, None)
    with pytest.raises(ValueError, match="down is int8, and must come with a scale, got None"):
        raw.norm_mlp(x, w, b, eps, up, None, None, codes, None, None)
    with pytest.raises(ValueError, match=r"weight's 63 columns in its last dimension, got shape \[2, 64\]"):
        raw.norm_linear(x, w, b, eps, up[:, :63], None, None)
    with pytest.raises(ValueError, match=r"down must have x's 64 output features, got 63\."):
        raw.norm_mlp(x, w, b, eps, up, None, None, down[:63], None, None)
    with pytest.raises(ValueError, match="at least one dimension"):
        raw.norm_linear(torch.tensor(1.0), w, b, eps, up, None, None)
