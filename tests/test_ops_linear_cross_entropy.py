"""torch.ops.persimmon_ext.linear_cross_entropy and its backward against float64 and the eager implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from persimmon_ext import _C, reference  # noqa: F401  (_C registers the ops)

ops = torch.ops.persimmon_ext
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
IGNORE = -100
SIZES = [(1, 1, 1), (3, 5, 7), (17, 33, 2047), (2, 64, 2048), (37, 16, 2049), (16, 1, 4099), (4, 0, 9)]


def inputs(N: int, C: int, V: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N * 7919 + C * 104729 + V)
    hidden = torch.randn(N, C, generator=generator).to(dtype)
    weight = torch.randn(V, C, generator=generator).to(dtype)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[1::3] = IGNORE
    return hidden, weight, labels, torch.rand(N, generator=generator)


def gradients(hidden: Tensor, weight: Tensor, labels: Tensor, dloss: Tensor) -> tuple[Tensor, Tensor]:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    loss, _ = reference.linear_cross_entropy(hidden, weight, labels, IGNORE)
    dhidden, dweight = torch.autograd.grad((loss * dloss).sum(), (hidden, weight))
    return dhidden, dweight


def assert_as_exact_as(ours: Tensor, eager: Tensor, exact: Tensor, slack: float = 2e-6) -> None:
    assert ours.shape == exact.shape
    if exact.numel() == 0:
        return
    error, allowed = (ours - exact).abs().max().item(), (eager - exact).abs().max().item()
    assert error <= 2 * allowed + slack * (1 + exact.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "C", "V"), SIZES)
def test_forward(N: int, C: int, V: int, dtype: torch.dtype) -> None:
    hidden, weight, labels, _ = inputs(N, C, V, dtype)
    loss, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    assert loss.dtype == lse.dtype == torch.float32
    exact = reference.linear_cross_entropy(hidden.double(), weight.double(), labels, IGNORE)
    eager = reference.linear_cross_entropy(hidden, weight, labels, IGNORE)
    assert_as_exact_as(loss, eager[0], exact[0])
    assert_as_exact_as(lse, eager[1], exact[1])
    assert bool((loss[labels == IGNORE] == 0).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "C", "V"), SIZES)
def test_backward(N: int, C: int, V: int, dtype: torch.dtype) -> None:
    hidden, weight, labels, dloss = inputs(N, C, V, dtype)
    _, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    dhidden, dweight = ops.linear_cross_entropy_backward(dloss, hidden, weight, labels, lse, IGNORE)
    assert dhidden.dtype == dweight.dtype == dtype
    exact = gradients(hidden.double(), weight.double(), labels, dloss.double())
    eager = gradients(hidden, weight, labels, dloss)
    # Each tile's product with the weight is rounded to bf16 once before it is added in fp32.
    assert_as_exact_as(dhidden, eager[0], exact[0], slack=2**-9 if dtype == torch.bfloat16 else 2e-6)
    assert_as_exact_as(dweight, eager[1], exact[1])
    assert bool((dhidden[labels == IGNORE] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_more_rows_than_a_tile(dtype: torch.dtype) -> None:
    hidden, weight, labels, dloss = inputs(4100, 3, 2053, dtype)
    loss, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    exact = reference.linear_cross_entropy(hidden.double(), weight.double(), labels, IGNORE)
    eager = reference.linear_cross_entropy(hidden, weight, labels, IGNORE)
    assert_as_exact_as(loss, eager[0], exact[0])
    ours = ops.linear_cross_entropy_backward(dloss, hidden, weight, labels, lse, IGNORE)
    exact = gradients(hidden.double(), weight.double(), labels, dloss.double())
    eager = gradients(hidden, weight, labels, dloss)
    for triple in zip(ours, eager, exact, strict=True):
        assert_as_exact_as(*triple)


def test_strided_inputs() -> None:
    hidden, weight, labels, dloss = inputs(6, 10, 2100, torch.float32)
    loss, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    wide, tall = torch.zeros(6, 20), weight.T.contiguous().T
    wide[:, ::2] = hidden
    strided = ops.linear_cross_entropy(wide[:, ::2], tall, labels.repeat_interleave(2)[::2], IGNORE)
    torch.testing.assert_close(strided[0], loss)
    ours = ops.linear_cross_entropy_backward(dloss, wide[:, ::2], tall, labels, lse, IGNORE)
    plain = ops.linear_cross_entropy_backward(dloss, hidden, weight, labels, lse, IGNORE)
    torch.testing.assert_close(ours, plain)


def test_extreme_logits() -> None:
    weight = torch.tensor([[1.0], [-1.0], [0.5]])
    hidden = torch.tensor([[1e4], [-3e38], [0.0], [float("nan")], [float("inf")]])
    labels = torch.tensor([0, 0, 1, 0, 0])
    loss, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    assert loss[0] == 0
    assert lse[1] == 3e38
    torch.testing.assert_close(loss[2], torch.tensor(3.0).log())
    assert bool(loss[3:].isnan().all())


def test_all_ignored_and_no_rows() -> None:
    hidden, weight, _, dloss = inputs(4, 8, 30, torch.float32)
    labels = torch.full((4,), IGNORE)
    loss, lse = ops.linear_cross_entropy(hidden, weight, labels, IGNORE)
    assert loss.tolist() == [0.0] * 4
    for gradient in ops.linear_cross_entropy_backward(dloss, hidden, weight, labels, lse, IGNORE):
        assert not gradient.any()
    loss, lse = ops.linear_cross_entropy(hidden[:0], weight, labels[:0], IGNORE)
    assert loss.shape == lse.shape == (0,)
    dhidden, dweight = ops.linear_cross_entropy_backward(dloss[:0], hidden[:0], weight, labels[:0], lse, IGNORE)
    assert dhidden.shape == (0, 8)
    assert not dweight.any()


def test_another_ignore_index() -> None:
    hidden, weight, labels, _ = inputs(5, 8, 30, torch.float32)
    labels = labels.clamp(min=0)
    loss, _ = ops.linear_cross_entropy(hidden, weight, labels, int(labels[2]))
    assert loss[2] == 0


@pytest.mark.parametrize("value", [30, -1, 2**40])
def test_label_out_of_range(value: int) -> None:
    hidden, weight, labels, _ = inputs(5, 8, 30, torch.float32)
    labels[3] = value
    with pytest.raises(IndexError, match=f"size 30 .*got {value} in row 3"):
        ops.linear_cross_entropy(hidden, weight, labels, IGNORE)


def test_bad_arguments() -> None:
    hidden, weight, labels, _ = inputs(5, 8, 30, torch.float32)
    with pytest.raises(ValueError, match=r"labels must have shape \[5\], got \[4\]"):
        ops.linear_cross_entropy(hidden, weight, labels[:4], IGNORE)
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.linear_cross_entropy(hidden, weight[:, :7], labels, IGNORE)
    with pytest.raises(TypeError, match="labels must be int64, got int32"):
        ops.linear_cross_entropy(hidden, weight, labels.int(), IGNORE)
    with pytest.raises(TypeError, match="weight must have hidden's dtype"):
        ops.linear_cross_entropy(hidden, weight.half(), labels, IGNORE)
