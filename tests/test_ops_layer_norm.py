"""torch.ops.persimmon_ext.layer_norm and add_layer_norm: fp32 inside, one rounding, a row always of the same bits.

From 2 MiB of results on, they are stored past the caches: another path of the kernel.
"""

from __future__ import annotations

import pytest
import torch
from helpers import assert_accurate, randn
from torch import Tensor

from persimmon_ext import reference

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-5
STREAMED = (260, 4096)
# Around the vectors of every instruction set, the model's width, and sizes too narrow, ragged or wide to be streamed.
SHAPES = [(3, 1), (2, 15), (2, 16), (2, 17), (2, 31), (3, 32), (3, 33), (2, 63), (5, 65), (7, 4096), STREAMED]
SHAPES += [(70000, 16), (300, 4097), (40, 30000)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, residual = randn(*shape, dtype=dtype, seed=1), randn(*shape, dtype=dtype, seed=2)
    return x, residual, 1 + randn(shape[-1], dtype=dtype, seed=3, scale=0.1), randn(shape[-1], dtype=dtype, seed=4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(shape, dtype)
    wide = weight.double(), bias.double()
    exact = reference.layer_norm(x.double(), *wide, EPS)
    assert_accurate(ops.layer_norm(x, weight, bias, EPS), reference.layer_norm(x, weight, bias, EPS), exact)
    total, normed = ops.add_layer_norm(x, residual, weight, bias, EPS)
    assert torch.equal(total, x + residual)
    exact = reference.layer_norm(total.double(), *wide, EPS)
    assert_accurate(normed, reference.layer_norm(total, weight, bias, EPS), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_among_many_and_at_any_address(dtype: torch.dtype) -> None:
    x, residual, weight, bias = inputs(STREAMED, dtype)
    normed = ops.layer_norm(x, weight, bias, EPS)
    both = ops.add_layer_norm(x, residual, weight, bias, EPS)
    for row in (0, 131, 259):
        part = slice(row, row + 1)
        assert torch.equal(ops.layer_norm(x[part], weight, bias, EPS), normed[part])
        for one, all_rows in zip(ops.add_layer_norm(x[part], residual[part], weight, bias, EPS), both, strict=True):
            assert torch.equal(one, all_rows[part])
    moved = torch.empty(x.numel() + 1, dtype=dtype)[1:].view(x.shape).copy_(x)
    assert torch.equal(ops.layer_norm(moved, weight, bias, EPS), normed)


@pytest.mark.parametrize("C", [33, 4096])
def test_forward_of_special_rows(C: int) -> None:
    weight, bias = torch.ones(C), torch.full((C,), 0.5)
    x = randn(300, C, seed=5).repeat(2 if C > 100 else 100, 1)  # streamed where C is a whole number of vectors
    x[0], x[1] = 2.0**66, 0.0  # their variance is 0; squares of a padding lane's difference would overflow
    x[2, -1], x[3, 0], x[4, 7] = float("nan"), float("inf"), -float("inf")
    y = ops.layer_norm(x, weight, bias, EPS)
    assert torch.equal(y[:2], torch.full((2, C), 0.5))
    assert bool(y[2].isnan().all())
    assert bool(y[3:5].isnan().any(-1).all())
    assert bool(y[5:].isfinite().all())
    for dtype in (torch.bfloat16, torch.float16):
        special = x.to(dtype)
        special[0] = 1.0
        y = ops.layer_norm(special, weight.to(dtype), bias.to(dtype), EPS)
        assert torch.equal(y[:2], torch.full((2, C), 0.5, dtype=dtype))
        assert bool(y[2].isnan().all())
        assert bool(y[5:].isfinite().all())
