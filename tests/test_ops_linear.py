"""torch.ops.persimmon_ext.linear against float64, with the eager implementation's error as the measure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persimmon_ext import _C, reference  # noqa: F401  (_C registers the ops)

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 4, 5, 7, 15, 16, 17, 33]
SIZES = [(1, 1), (3, 31), (5, 33), (67, 64), (127, 129), (64, 61), (13, 1)]
LAYOUTS = ["row-major", "hidden-major", "strided"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def as_layout(weight: Tensor, layout: str) -> Tensor:
    if layout == "hidden-major":
        return weight.T.contiguous().T
    return weight.repeat_interleave(2, dim=1)[:, ::2] if layout == "strided" else weight


def assert_as_exact_as_eager(
    ours: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *, relu2: bool
) -> None:
    doubles = [None if t is None else t.double() for t in (x, weight, bias, residual)]
    exact = reference.linear(*doubles, relu2)
    eager = reference.linear(x, weight, bias, residual, relu2)
    assert ours.shape == exact.shape
    assert ours.dtype == x.dtype
    if exact.numel() == 0:
        return
    rounding = torch.finfo(x.dtype).eps if x.shape[0] > 16 else 1e-6  # torch's product rounds before the epilogue
    slack = rounding * (1 + exact.abs().max().item())
    assert (ours - exact).abs().max().item() <= 2 * (eager - exact).abs().max().item() + slack


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_error(N: int, K: int, M: int, layout: str, dtype: torch.dtype) -> None:
    x, weight = randn(M, K).to(dtype), as_layout((randn(N, K) / K**0.5).to(dtype), layout)
    bias, residual = randn(N, seed=1).to(dtype), randn(M, N, seed=2).to(dtype)
    for relu2 in (False, True):
        for b, r in [(None, None), (bias, residual), (None, residual)]:
            assert_as_exact_as_eager(ops.linear(x, weight, b, r, relu2), x, weight, b, r, relu2=relu2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("M", [0, 1, 16, 17])
@pytest.mark.parametrize(("N", "K"), [(0, 5), (5, 0), (0, 0), (4, 4)])
def test_empty(N: int, K: int, M: int, layout: str, dtype: torch.dtype) -> None:
    x, weight = randn(M, K).to(dtype), as_layout(randn(N, K).to(dtype), layout)
    bias, residual = randn(N).to(dtype), randn(M, N).to(dtype)
    assert_as_exact_as_eager(ops.linear(x, weight, bias, residual, True), x, weight, bias, residual, relu2=True)
    assert ops.linear(x, weight, None, None, False).shape == (M, N)


@pytest.mark.parametrize("M", [1, 3, 17])
def test_real_sizes(M: int) -> None:
    x, weight = randn(M, 4096).bfloat16(), (torch.rand(1024, 4096) / 64 - 1 / 128).bfloat16()
    assert_as_exact_as_eager(ops.linear(x, weight, None, None, True), x, weight, None, None, relu2=True)
    x, weight = randn(M, 16384).bfloat16(), (torch.rand(16384, 256) / 128 - 1 / 256).bfloat16().T
    assert_as_exact_as_eager(ops.linear(x, weight, None, None, False), x, weight, None, None, relu2=False)


def test_one_rounding_for_few_rows() -> None:
    x, weight = torch.tensor([[1.0, 1.0]]).bfloat16(), torch.tensor([[1.0, 2**-8]]).bfloat16()
    residual = torch.tensor([[-1.0]]).bfloat16()
    for layout in LAYOUTS:  # 1 + 2^-8 is no bf16 number
        assert ops.linear(x, as_layout(weight, layout), None, residual, False).item() == 2**-8


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_pass(dtype: torch.dtype, layout: str) -> None:
    for M in (1, 5, 17):
        x, weight = randn(M, 40).to(dtype), as_layout(randn(9, 40).to(dtype), layout).clone()
        x[0, 39] = float("nan")
        weight[4, 38] = float("inf")
        for relu2 in (False, True):
            y = ops.linear(x, weight, None, None, relu2)
            assert bool(y[0].isnan().all())
            assert not bool(y[1:, 4].isfinite().any()) or relu2
            assert bool(y[1:, :4].isfinite().all())
            assert bool(y[1:, 5:].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = randn(16, 131).to(dtype), randn(37, 131).to(dtype)
    together = ops.linear(x, weight, None, None, False)
    for rows in (1, 2, 3, 4, 5, 7, 9, 13):
        assert torch.equal(ops.linear(x[:rows], weight, None, None, False), together[:rows])


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_same_bits_for_any_number_of_threads(layout: str) -> None:
    x, weight = randn(3, 1031).bfloat16(), as_layout(randn(997, 1031).bfloat16(), layout)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(ops.linear(x, weight, None, None, False))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_leading_dimensions_and_strides() -> None:
    x, weight = randn(2, 3, 20)[..., ::2], randn(7, 10)
    bias, residual = randn(14)[::2], randn(7, 3, 2).permute(2, 1, 0)
    y = ops.linear(x, weight, bias, residual, True)
    assert y.shape == (2, 3, 7)
    torch.testing.assert_close(y, reference.linear(x, weight, bias, residual, True))
    assert ops.linear(x[0, 0], weight, None, None, False).shape == (7,)


def test_errors() -> None:
    x, weight = torch.zeros(2, 5), torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"weight's 5 columns in its last dimension, got shape \[2, 4\]"):
        ops.linear(x[:, :4], weight, None, None, False)
    with pytest.raises(ValueError, match=r"bias must have shape \[3\], got \[2\]"):
        ops.linear(x, weight, torch.zeros(2), None, False)
    with pytest.raises(ValueError, match=r"residual must have shape \[2, 3\], got \[3\]"):
        ops.linear(x, weight, None, torch.zeros(3), False)
    with pytest.raises(TypeError, match="weight must have x's dtype float32, got float16"):
        ops.linear(x, weight.half(), None, None, False)
    with pytest.raises(ValueError, match="weight must have 2 dimensions"):
        ops.linear(x, weight[0], None, None, False)
    with pytest.raises(TypeError, match="x must be float32, bfloat16 or float16, got float64"):
        ops.linear(x.double(), weight.double(), None, None, False)
    with pytest.raises(ValueError, match="at least one dimension"):
        ops.linear(torch.tensor(1.0), weight, None, None, False)
