"""Products with int8 and int4 weights against float64, and the formats that they read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from persimmon_ext import _C, quantization, reference  # noqa: F401  (_C registers the ops)

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [1, 2, 3, 7, 15, 16, 17, 33]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def assert_as_exact_as_eager(
    ours: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *, relu2: bool
) -> None:
    """`weight` float64 [N, K]: what the codes stand for, exactly."""
    doubles = [None if t is None else t.double() for t in (bias, residual)]
    exact = reference.linear(x.double(), weight, *doubles, relu2)
    eager = reference.linear(x, weight.to(x.dtype), bias, residual, relu2)
    assert ours.shape == exact.shape
    assert ours.dtype == x.dtype
    if exact.numel() == 0:
        return
    rounding = torch.finfo(x.dtype).eps if x.shape[0] > 16 else 1e-6  # torch's product rounds before the epilogue
    slack = rounding * (1 + exact.abs().max().item())
    assert (ours - exact).abs().max().item() <= 2 * (eager - exact).abs().max().item() + slack


def extras(M: int, N: int, dtype: torch.dtype, given: bool) -> tuple[Tensor | None, Tensor | None]:
    return (randn(N, seed=1).to(dtype), randn(M, N, seed=2).to(dtype)) if given else (None, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (5, 31), (67, 65), (127, 256), (3, 0), (0, 3)])
def test_linear_int8(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    codes, scale = quantization.quantize_int8(randn(N, K))
    x = randn(M, K, seed=3).to(dtype)
    for given in (False, True):
        bias, residual = extras(M, N, dtype, given)
        y = ops.linear_int8(x, codes, scale, bias, residual, given)
        assert_as_exact_as_eager(y, x, codes.double() * scale.double()[:, None], bias, residual, relu2=given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("N", "K"), [(1, 64), (5, 128), (67, 192), (3, 0)])
def test_linear_int4(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    packed, scale = quantization.quantize_int4(randn(N, K))
    weight = reference.unpack_int4(packed).double() * scale.double().repeat_interleave(64, dim=-1)
    x = randn(M, K, seed=3).to(dtype)
    for given in (False, True):
        bias, residual = extras(M, N, dtype, given)
        y = ops.linear_int4(x, packed, scale, bias, residual, given)
        assert_as_exact_as_eager(y, x, weight, bias, residual, relu2=given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("C", "F"), [(1, 1), (31, 5), (65, 67), (64, 300), (3, 0), (0, 3)])
def test_sparse_linear_int8(M: int, C: int, F: int, dtype: torch.dtype) -> None:
    codes, scale = quantization.quantize_hidden_major_int8(randn(C, F))
    x = (randn(M, F, seed=3) * (randn(1, F, seed=4) > 0)).to(dtype)
    for given in (False, True):
        bias, residual = extras(M, C, dtype, given)
        y = ops.sparse_linear_int8(x, codes, scale, bias, residual)
        assert_as_exact_as_eager(y, x, (codes.double() * scale.double()).T, bias, residual, relu2=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", ROWS)
@pytest.mark.parametrize(("C", "F"), [(64, 1), (128, 5), (192, 67), (64, 300)])
def test_sparse_linear_int4(M: int, C: int, F: int, dtype: torch.dtype) -> None:
    packed, scale = quantization.quantize_hidden_major_int4(randn(C, F))
    weight = reference.unpack_int4(packed).double() * scale.double().repeat_interleave(64, dim=-1)
    x = (randn(M, F, seed=3) * (randn(1, F, seed=4) > 0)).to(dtype)
    for given in (False, True):
        bias, residual = extras(M, C, dtype, given)
        y = ops.sparse_linear_int4(x, packed, scale, bias, residual)
        assert_as_exact_as_eager(y, x, weight.T, bias, residual, relu2=False)


@pytest.mark.parametrize("M", [0, 1, 17])
def test_empty_int4_weights(M: int) -> None:
    packed, scale = quantization.quantize_int4(torch.zeros(0, 64))
    assert ops.linear_int4(randn(M, 64), packed, scale, None, None, False).shape == (M, 0)
    residual = randn(M, 64)
    assert torch.equal(ops.sparse_linear_int4(torch.zeros(M, 0), packed, scale, None, residual), residual)


def sparse_products(hidden: int = 1000) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Both sparse products on weights of `hidden` units, several chunks of rows, with what they stand for."""
    codes, column_scale = quantization.quantize_hidden_major_int8(randn(330, hidden))
    packed, scale = quantization.quantize_hidden_major_int4(randn(320, hidden))
    return [
        (lambda x: ops.sparse_linear_int8(x, codes, column_scale, None, None), codes * column_scale),
        (
            lambda x: ops.sparse_linear_int4(x, packed, scale, None, None),
            reference.unpack_int4(packed) * scale.repeat_interleave(64, dim=-1),
        ),
    ]


@pytest.mark.parametrize("M", [1, 3])
def test_sparse_forms_give_the_same_bits_for_any_number_of_threads(M: int) -> None:
    x = randn(M, 8000).relu().bfloat16()
    threads = torch.get_num_threads()
    try:
        for product, _ in sparse_products(8000):
            torch.set_num_threads(1)
            expected = product(x)
            for count in (2, 5, 12):  # whole rows, a part of them, a block of columns
                torch.set_num_threads(count)
                assert torch.equal(product(x), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 2])
def test_sparse_forms_keep_infinite_activations(M: int, dtype: torch.dtype) -> None:
    x = torch.zeros(M, 1000, dtype=dtype)
    x[0, 500], x[-1, 501] = float("inf"), 1
    for product, weight in sparse_products():
        y = product(x)
        torch.testing.assert_close(y[0].double(), weight[500].double() * float("inf"), equal_nan=True)
        assert bool(y[1:].isfinite().all())


def test_sparse_forms_do_not_read_rows_that_multiply_zero() -> None:
    packed, scale = quantization.quantize_hidden_major_int4(randn(64, 40))
    x = randn(2, 40)
    x[:, 7] = 0
    expected = ops.sparse_linear_int4(x, packed, scale, None, None)
    scale[7] = float("nan")
    assert torch.equal(ops.sparse_linear_int4(x, packed, scale, None, None), expected)


def test_many_tiles_of_a_large_product() -> None:
    x, weight = randn(20, 16384), randn(320, 16384)  # more weight than the kernel dequantises at a time
    codes, scale = quantization.quantize_int8(weight)
    y = ops.linear_int8(x, codes, scale, None, None, False)
    assert_as_exact_as_eager(y, x, codes.double() * scale.double()[:, None], None, None, relu2=False)
    packed, scale = quantization.quantize_hidden_major_int4(weight)
    y = ops.sparse_linear_int4(x, packed, scale, None, None)
    dense = reference.unpack_int4(packed).double() * scale.double().repeat_interleave(64, dim=-1)
    assert_as_exact_as_eager(y, x, dense.T, None, None, relu2=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_neither_on_the_others_nor_on_the_number_of_threads(dtype: torch.dtype) -> None:
    x, weight = randn(16, 192).to(dtype), randn(517, 192)
    threads = torch.get_num_threads()
    for quantize, product in (
        (quantization.quantize_int8, ops.linear_int8),
        (quantization.quantize_int4, ops.linear_int4),
    ):
        codes, scale = quantize(weight)
        together = product(x, codes, scale, None, None, False)
        try:
            torch.set_num_threads(3)
            assert torch.equal(product(x, codes, scale, None, None, False), together)
        finally:
            torch.set_num_threads(threads)
        for rows in (1, 2, 3, 4, 5, 7, 9, 13):
            assert torch.equal(product(x[:rows], codes, scale, None, None, False), together[:rows])


def test_every_code() -> None:
    codes = torch.arange(-128, 128).to(torch.int8)
    for first in range(0, 256, 16):
        x = torch.eye(256)[first : first + 16].bfloat16()
        y = ops.linear_int8(x, codes[None], torch.ones(1), None, None, False)
        assert torch.equal(y[:, 0].float(), codes[first : first + 16].float())
    packed = torch.arange(256).to(torch.uint8)[None]
    values = reference.unpack_int4(packed)[0]
    scale = torch.arange(1.0, 9.0)[None]
    for first in range(0, 512, 16):
        x = torch.eye(512)[first : first + 16].bfloat16()
        y = ops.linear_int4(x, packed, scale, None, None, False)
        expected = values[first : first + 16].float() * scale[0, first // 64]
        assert torch.equal(y[:, 0].float(), expected)


def test_leading_dimensions_and_strides() -> None:
    codes, scale = quantization.quantize_int8(randn(9, 12))
    x = randn(2, 3, 24)[..., ::2]
    y = ops.linear_int8(x, codes, scale, None, None, False)
    assert y.shape == (2, 3, 9)
    assert torch.equal(y.view(6, 9), ops.linear_int8(x.reshape(6, 12), codes, scale, None, None, False))
    assert torch.equal(y, ops.linear_int8(x, codes.T.contiguous().T, scale, None, None, False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_error_of_the_formats(dtype: torch.dtype) -> None:
    weight = randn(13, 192).to(dtype)
    codes, scale = quantization.quantize_int8(weight)
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float32)
    error = (quantization.dequantize_int8(codes, scale) - weight).abs()
    assert bool((error <= scale[:, None] * 0.5001).all())
    packed, scale = quantization.quantize_int4(weight)
    assert (packed.shape, packed.dtype, scale.shape) == ((13, 96), torch.uint8, (13, 3))
    error = (quantization.dequantize_int4(packed, scale) - weight).abs().view(13, 3, 64)
    assert bool((error <= scale.abs()[..., None] * 1.0001).all())  # half a step, a whole one where 8 becomes 7
    assert error.mean() < 0.4 * scale.abs().mean()


def test_int4_layout() -> None:
    weight = torch.arange(-8, 8).repeat_interleave(4)[None].float()  # the largest magnitude is -8: scale 1
    packed, scale = quantization.quantize_int4(weight)
    assert scale.tolist() == [[1.0]]
    low, high = torch.arange(16).repeat_interleave(4).split(32)
    assert packed[0].tolist() == (low + 16 * high).tolist()
    assert torch.equal(quantization.dequantize_int4(packed, scale), weight)


def test_zeros_stay_zeros() -> None:
    zeros = torch.zeros(3, 64)
    assert not quantization.dequantize_int8(*quantization.quantize_int8(zeros)).any()
    assert not quantization.dequantize_int4(*quantization.quantize_int4(zeros)).any()


def test_quantization_errors() -> None:
    with pytest.raises(ValueError, match="multiple of 64, got 100"):
        quantization.quantize_int4(torch.zeros(2, 100))
    with pytest.raises(ValueError, match="multiple of 64, got 3"):
        quantization.quantize_hidden_major_int4(torch.zeros(3, 64))
    with pytest.raises(ValueError, match=r"two dimensions, got shape \[64\]"):
        quantization.quantize_int8(torch.zeros(64))
    with pytest.raises(TypeError, match=r"torch\.int32"):
        quantization.quantize_int8(torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="row 1"):
        quantization.quantize_int8(torch.tensor([[1.0], [float("nan")]]))
    with pytest.raises(ValueError, match=r"got \[2, 3\] and \[3\]"):
        quantization.dequantize_int8(torch.zeros(2, 3, dtype=torch.int8), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \[2, 32\] and \[2, 2\]"):
        quantization.dequantize_int4(torch.zeros(2, 32, dtype=torch.uint8), torch.zeros(2, 2))


def test_op_errors() -> None:
    codes, scale = quantization.quantize_int8(randn(6, 64))
    x = randn(1, 64)
    with pytest.raises(TypeError, match="weight must be int8, got float32"):
        ops.linear_int8(x, codes.float(), scale, None, None, False)
    with pytest.raises(ValueError, match=r"scale must have shape \[6\], got \[5\]"):
        ops.linear_int8(x, codes, scale[:5], None, None, False)
    with pytest.raises(TypeError, match="scale must be float32, got float64"):
        ops.linear_int8(x, codes, scale.double(), None, None, False)
    with pytest.raises(ValueError, match="64 columns"):
        ops.linear_int8(x[:, :5], codes, scale, None, None, False)
    with pytest.raises(ValueError, match="whole groups of 32 bytes"):
        ops.linear_int4(x, torch.zeros(6, 33, dtype=torch.uint8), torch.zeros(6, 1), None, None, False)
    with pytest.raises(ValueError, match=r"scale must have shape \[6, 1\]"):
        ops.sparse_linear_int4(x, torch.zeros(6, 32, dtype=torch.uint8), torch.zeros(6, 2), None, None)
