"""torch.ops.persimmon_ext.sparse_linear: the dense product, without reading the rows of W^T that multiply zeros."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persimmon_ext import _C, reference  # noqa: F401  (_C registers the ops)

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 7, 15, 16, 17]
DENSITIES = [0.0, 0.05, 0.5, 1.0]


def inputs(
    M: int, C: int, F: int, density: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [M, F] with zeros that rows share only in part, hidden-major weight [C, F], bias [C], residual [M, C]."""
    generator = torch.Generator().manual_seed(M * 31 + C * 7 + F)
    x = torch.randn(M, F, generator=generator).relu().square()
    x = x * (torch.rand(M, F, generator=generator) < density)
    weight = (torch.randn(F, C, generator=generator) / max(F, 1) ** 0.5).T
    bias, residual = torch.randn(C, generator=generator), torch.randn(M, C, generator=generator)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), residual.to(dtype)


def assert_as_exact_as_eager(
    ours: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    doubles = [None if t is None else t.double() for t in (x, weight, bias, residual)]
    exact = reference.linear(*doubles, False)
    eager = reference.linear(x, weight, bias, residual, False)
    assert ours.shape == exact.shape
    assert ours.dtype == x.dtype
    if exact.numel() == 0:
        return
    rounding = torch.finfo(x.dtype).eps if x.shape[0] > 16 else 1e-6  # torch's product rounds before the residual
    slack = rounding * (1 + exact.abs().max().item())
    assert (ours - exact).abs().max().item() <= 2 * (eager - exact).abs().max().item() + slack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("C", "F"), [(1, 1), (31, 7), (33, 8), (64, 9), (65, 127), (130, 1100)])
def test_error(C: int, F: int, M: int, density: float, dtype: torch.dtype) -> None:
    x, weight, bias, residual = inputs(M, C, F, density, dtype)
    assert_as_exact_as_eager(ops.sparse_linear(x, weight, None, None), x, weight, None, None)
    assert_as_exact_as_eager(ops.sparse_linear(x, weight, bias, residual), x, weight, bias, residual)


@pytest.mark.parametrize("M", [0, 1, 16, 17])
@pytest.mark.parametrize(("C", "F"), [(0, 5), (5, 0), (0, 0), (3, 3)])
def test_empty(C: int, F: int, M: int) -> None:
    x, weight, bias, residual = inputs(M, C, F, 1.0)
    assert_as_exact_as_eager(ops.sparse_linear(x, weight, bias, residual), x, weight, bias, residual)


@pytest.mark.parametrize("M", [1, 4, 16])
def test_real_sizes(M: int) -> None:
    x, weight, _, residual = inputs(M, 4096, 2048, 0.2, torch.bfloat16)
    assert_as_exact_as_eager(ops.sparse_linear(x, weight, None, residual), x, weight, None, residual)
    x, weight, _, residual = inputs(M, 256, 16384, 0.2, torch.bfloat16)
    assert_as_exact_as_eager(ops.sparse_linear(x, weight, None, residual), x, weight, None, residual)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_rows_that_multiply_zero_are_not_read(zero: float, dtype: torch.dtype) -> None:
    x, weight, _, _ = inputs(3, 70, 50, 1.0, dtype)
    x[:, 10:20] = zero
    expected = ops.sparse_linear(x, weight, None, None)
    assert bool(expected.isfinite().all())
    weight[:, 10:20] = float("nan")
    assert torch.equal(ops.sparse_linear(x, weight, None, None), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_counts_as_non_zero(dtype: torch.dtype) -> None:
    x, weight, _, _ = inputs(2, 40, 30, 0.0, dtype)
    x[1, 29] = float("nan")
    y = ops.sparse_linear(x, weight, None, None)
    assert bool(y[1].isnan().all())
    assert not bool(y[0].any())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 2, 9])  # a loop each in bf16
@pytest.mark.parametrize("nonzeros", [1, 2, 3, 9])
def test_an_infinite_weight_is_met_once(nonzeros: int, M: int, dtype: torch.dtype) -> None:
    """Rows are taken several at a time: what fills up the last ones must not multiply a weight."""
    x = torch.zeros(M, 20, dtype=dtype)
    x[:, :nonzeros] = 1
    weight = torch.ones(20, 40, dtype=dtype)
    weight[nonzeros - 1] = float("inf")
    assert torch.equal(ops.sparse_linear(x, weight.T, None, None), torch.full((M, 40), float("inf"), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("M", [1, 3, 11])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_same_bits_for_any_number_of_threads(density: float, M: int, dtype: torch.dtype) -> None:
    x, weight, _, _ = inputs(M, 515, 4099, density, dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 7, 20):  # whole rows, a part of them, a block of columns
            torch.set_num_threads(count)
            results.append(ops.sparse_linear(x, weight, None, None))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_dense_input_gives_the_bits_of_linear() -> None:
    x, weight, bias, residual = inputs(5, 67, 129, 1.0, torch.bfloat16)
    x = x + 1
    assert torch.equal(ops.sparse_linear(x, weight, bias, residual), ops.linear(x, weight, bias, residual, False))


def test_other_layouts_run_the_dense_product() -> None:
    x, weight, bias, residual = inputs(2, 40, 30, 0.5)
    expected = reference.linear(x, weight, bias, residual, False)
    torch.testing.assert_close(ops.sparse_linear(x, weight.contiguous(), bias, residual), expected)
    wide = torch.zeros(30, 80).T[::2].copy_(weight)
    torch.testing.assert_close(ops.sparse_linear(x, wide, bias, residual), expected)


def test_leading_dimensions_and_strides() -> None:
    x, weight, _, _ = inputs(6, 40, 30, 0.5)
    wide = x.repeat_interleave(2, dim=1)[:, ::2].view(2, 3, 30)
    y = ops.sparse_linear(wide, weight, None, None)
    assert torch.equal(y.view(6, 40), ops.sparse_linear(x, weight, None, None))


def test_errors() -> None:
    x, weight, _, _ = inputs(2, 4, 5, 1.0)
    with pytest.raises(ValueError, match=r"weight's 5 columns in its last dimension, got shape \[2, 3\]"):
        ops.sparse_linear(x[:, :3], weight, None, None)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 4\], got \[4\]"):
        ops.sparse_linear(x, weight, None, torch.zeros(4))
    with pytest.raises(TypeError, match="bias must have x's dtype float32, got float16"):
        ops.sparse_linear(x, weight, torch.zeros(4).half(), None)
    with pytest.raises(ValueError, match="at least one dimension"):
        ops.sparse_linear(torch.tensor(1.0), weight, None, None)
