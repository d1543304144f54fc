"""torch.ops.persimmon_ext.relu2 and its backward: fp32 inside, one rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persimmon_ext import _C  # noqa: F401  (registers the ops)

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0,), (1,), (7,), (3, 4095), (2, 4096), (1, 4097), (2, 3, 13), (5, 0), (0, 5), (1, 16384)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(sum(shape))
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    return x, grad, torch.randn(shape[-1], generator=generator).to(dtype) if has_bias else None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_fp32_rounded_once(shape: tuple[int, ...], has_bias: bool, dtype: torch.dtype) -> None:
    x, grad, bias = inputs(shape, dtype, has_bias)
    u = x.float() if bias is None else x.float() + bias.float()
    assert torch.equal(ops.relu2(x, bias), u.relu().square().to(dtype))
    assert torch.equal(ops.relu2_backward(grad, x, bias), (grad.float() * (2 * u.relu())).to(dtype))


def test_gradient_of_the_forward() -> None:
    x, grad, bias = inputs((3, 17), torch.float32, True)
    exact = [t.double().requires_grad_() for t in (x, bias)]
    (expected,) = torch.autograd.grad((exact[0] + exact[1]).relu().square(), exact[:1], grad.double())
    torch.testing.assert_close(ops.relu2_backward(grad, x, bias), expected.float())


def test_special_values() -> None:
    x = torch.tensor([float("nan"), -float("inf"), float("inf"), -0.0, -1.0, 2.0])
    y = ops.relu2(x, None)
    assert bool(y[0].isnan())
    assert y[1:].tolist() == [0.0, float("inf"), 0.0, 0.0, 4.0]
    assert bool(ops.relu2_backward(torch.ones(6), x, None)[0].isnan())


def test_strided_and_scalar() -> None:
    x, grad, bias = inputs((6, 10), torch.float32, True)
    assert torch.equal(ops.relu2(x.T.contiguous().T, bias), ops.relu2(x, bias))
    strided = ops.relu2_backward(grad.T.contiguous().T, x[:, ::2].repeat_interleave(2, 1), bias)
    assert torch.equal(strided, ops.relu2_backward(grad, x[:, ::2].repeat_interleave(2, 1), bias))
    assert ops.relu2(torch.tensor(3.0), None) == 9.0


def test_errors() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"bias must have shape \[3\], got \[2\]"):
        ops.relu2(x, torch.zeros(2))
    with pytest.raises(TypeError, match="bias must have x's dtype float32, got float16"):
        ops.relu2(x, torch.zeros(3).half())
    with pytest.raises(ValueError, match=r"grad must have shape \[2, 3\], got \[3, 2\]"):
        ops.relu2_backward(x.T, x, None)
    with pytest.raises(TypeError, match="x must be float32, bfloat16 or float16, got float64"):
        ops.relu2(x.double(), None)
    with pytest.raises(ValueError, match="at least one dimension"):
        ops.relu2(torch.tensor(1.0), torch.zeros(1))
