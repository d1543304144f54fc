"""What holds for every operator: schema, fake kernel and autograd agree (opcheck), it falls back where no kernel fits,
and bad input raises a sentence."""

from __future__ import annotations

import pytest
import torch
from helpers import DTYPES, assert_accurate, randn
from op_samples import NAMES, D, norms, samples
from torch import Tensor

from persimmon_ext import ops, reference
from persimmon_ext.ops.native import KERNELS

DIFFERENTIABLE = (
    "layer_norm",
    "add_layer_norm",
    "qk_norm_rope",
    "attention",
    "linear",
    "sparse_linear",
    "relu2",
    "linear_cross_entropy",
)


def test_every_operator_is_here_and_has_a_cpu_kernel():
    registered = {
        name.removeprefix("persimmon_ext::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("persimmon_ext::")
    }
    assert registered == set(NAMES)
    assert {name for name, key in KERNELS if key == "CPU"} == registered


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    arguments = samples(dtype, grad=name in DIFFERENTIABLE)[name]
    torch.library.opcheck(getattr(torch.ops.persimmon_ext, name), arguments)


REFERENCES = {
    "layer_norm": reference.layer_norm,
    "add_layer_norm": reference.add_layer_norm,
    "qk_norm_rope": reference.qk_norm_rope,
    "attention": lambda *a: reference.attention(*a)[0],
    "linear": reference.linear,
    "sparse_linear": lambda *a: reference.linear(*a, False),
    "relu2": reference.relu2,
    "linear_cross_entropy": lambda *a: reference.linear_cross_entropy(*a)[0],
}


def outputs_and_gradients(function, arguments: tuple) -> list[Tensor]:
    """The results, and the gradient of a fixed weighted sum of them with respect to every input that wants one."""
    results = function(*arguments)
    results = [results] if isinstance(results, Tensor) else [t for t in results if t.requires_grad]
    total = sum((t * randn(*t.shape, seed=30 + i).to(t.dtype)).sum() for i, t in enumerate(results))
    wanted = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    return [*results, *torch.autograd.grad(total, wanted)]


def converted(arguments: tuple, dtype: torch.dtype) -> tuple:
    return tuple(
        a.detach().to(dtype).requires_grad_(a.requires_grad) if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in arguments
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_autograd_against_float64(name, dtype):
    """Values and gradients of each kernel, as accurate as those of the reference in the same dtype."""

    def kernel(*arguments):
        results = getattr(torch.ops.persimmon_ext, name)(*arguments)
        return results[0] if name in ("attention", "linear_cross_entropy") else results

    arguments = samples(dtype, grad=True)[name]
    ours = outputs_and_gradients(kernel, arguments)
    eager = outputs_and_gradients(REFERENCES[name], arguments)
    exact = outputs_and_gradients(REFERENCES[name], converted(arguments, torch.float64))
    for i, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
        assert_accurate(a, b, c, name=f"{name} {i}")


@pytest.mark.parametrize("name", ["linear_int8", "linear_int4", "sparse_linear_int8", "sparse_linear_int4"])
def test_gradients_around_quantised_weights(name):
    """With respect to everything but the codes: those of the same product with the dequantised weight."""
    x, codes, scale, bias, residual, *options = samples(torch.float32, False)[name]
    wanted = [t.clone().requires_grad_() for t in (x, bias, residual)]
    dense = {
        "linear_int8": lambda: reference.dequantize_int8(codes, scale, torch.float32),
        "linear_int4": lambda: reference.dequantize_int4(codes, scale, torch.float32),
        "sparse_linear_int8": lambda: (codes.float() * scale).T,
        "sparse_linear_int4": lambda: reference.dequantize_int4(codes, scale, torch.float32).T,
    }[name]()
    ours = getattr(torch.ops.persimmon_ext, name)(wanted[0], codes, scale, wanted[1], wanted[2], *options)
    theirs = reference.linear(wanted[0], dense, wanted[1], wanted[2], bool(options))
    weights = randn(*ours.shape, seed=9)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), wanted),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_gradients_of_empty_products(shape):
    x, weight = randn(2, shape[1]).requires_grad_(), randn(*shape, seed=1).requires_grad_()
    ops.linear(x, weight).sum().backward()
    assert x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape


def test_torch_func_transforms():
    x, w = randn(3, 8), randn(8, seed=1)
    value, tangent = torch.func.jvp(lambda t: ops.layer_norm(t, w, w, 1e-5), (x,), (torch.ones_like(x),))
    expected = torch.func.jvp(lambda t: reference.layer_norm(t, w, w, 1e-5), (x,), (torch.ones_like(x),))
    torch.testing.assert_close((value, tangent), expected)


@pytest.mark.parametrize("name", ["layer_norm", "relu2", "linear", "sparse_linear", "attention"])
def test_float64_runs_the_reference(name, caplog):
    """No kernel takes float64: the public functions are right all the same, and say so once at debug level."""
    x, w = randn(4, 16, dtype=torch.float64), randn(5, 16, dtype=torch.float64, seed=1)
    b = randn(16, dtype=torch.float64)
    q = randn(1, 2, 4, 16, dtype=torch.float64)
    with caplog.at_level("DEBUG", logger="persimmon_ext"):
        calls = {
            "layer_norm": (lambda: ops.layer_norm(x, b, b, 1e-5), lambda: reference.layer_norm(x, b, b, 1e-5)),
            "relu2": (lambda: ops.relu2(x, b), lambda: reference.relu2(x, b)),
            "linear": (lambda: ops.linear(x, w, relu2=True), lambda: reference.linear(x, w, None, None, True)),
            "sparse_linear": (lambda: ops.sparse_linear(x, w), lambda: reference.linear(x, w, None, None, False)),
            "attention": (
                lambda: ops.attention(q, q, q)[0],
                lambda: reference.attention(q, q, q, None, None, None, 0.25)[0],
            ),
        }
        ours, theirs = calls[name]
        torch.testing.assert_close(ours(), theirs(), rtol=0, atol=0)
    assert ours().dtype == torch.float64


RNG = torch.zeros(1, 2, dtype=torch.int64)
NORMS = norms(torch.float32, False)
COS = randn(1, 3, 4)


def second_derivative(function) -> None:
    x = randn(2, 8).requires_grad_()
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    first.square().sum().backward()


BAD_CALLS = {
    "weight of another width": (ValueError, "weight", lambda: ops.layer_norm(randn(2, 8), randn(7), randn(8), 1e-5)),
    "scalar": (ValueError, "x", lambda: torch.ops.persimmon_ext.layer_norm(randn(1)[0], randn(1), randn(1), 1e-5)),
    "residual of another shape": (
        ValueError,
        "residual",
        lambda: ops.add_layer_norm(randn(2, 8), randn(3, 8), randn(8), randn(8), 1e-5),
    ),
    "dtype without a kernel": (
        TypeError,
        "float32, bfloat16 or float16",
        lambda: torch.ops.persimmon_ext.relu2(torch.ones(3).long(), None),
    ),
    "bias of another dtype": (
        TypeError,
        "bias",
        lambda: torch.ops.persimmon_ext.relu2(randn(2, 4), randn(4).double()),
    ),
    "linear widths": (ValueError, "weight", lambda: ops.linear(randn(2, 8), randn(4, 7))),
    "sparse_linear widths": (ValueError, "weight", lambda: ops.sparse_linear(randn(2, 8), randn(4, 7))),
    "qkv rank": (
        ValueError,
        "qkv",
        lambda: ops.qk_norm_rope(randn(2, 3, 8), *NORMS, COS, COS, 1e-5),
    ),
    "slot beyond the cache": (
        IndexError,
        "9",
        lambda: ops.qk_norm_rope_append_(
            randn(1, 1, 1, 3, D),
            *NORMS,
            randn(1, 1, 4),
            randn(1, 1, 4),
            torch.zeros(1, 1, 4, D),
            torch.zeros(1, 1, 4, D),
            torch.tensor([[9]]),
            1e-5,
        ),
    ),
    "heads of k": (ValueError, "k", lambda: ops.attention(randn(1, 2, 3, D), randn(1, 3, 3, D), randn(1, 2, 3, D))),
    "nine decode tokens": (
        ValueError,
        "9",
        lambda: ops.decode_attention_(
            randn(1, 9, 1, 3, D),
            *NORMS,
            randn(1, 9, 4),
            randn(1, 9, 4),
            torch.zeros(1, 1, 16, D),
            torch.zeros(1, 1, 16, D),
            torch.arange(9)[None],
            eps=1e-5,
        ),
    ),
    "label outside the vocabulary": (
        IndexError,
        "6",
        lambda: ops.linear_cross_entropy(randn(1, 4), randn(6, 4), torch.tensor([6])),
    ),
    "negative temperature": (
        ValueError,
        "temperature",
        lambda: ops.sample(randn(1, 4), RNG, temperature=-1.0),
    ),
    "top_p of 0": (ValueError, "top_p", lambda: ops.sample(randn(1, 4), RNG, top_p=0.0)),
    "rng shape": (ValueError, "rng", lambda: ops.sample(randn(2, 4), RNG)),
    "one cache for keys and values": (
        ValueError,
        "share memory",
        lambda: ops.qk_norm_rope_append_(
            randn(1, 3, 1, 3, D), *NORMS, COS, COS, *[torch.zeros(1, 1, 4, D)] * 2, torch.arange(3)[None], 1e-5
        ),
    ),
    "norm of q alone": (
        ValueError,
        "2 are given",
        lambda: ops.qk_norm_rope(randn(1, 3, 1, 3, D), NORMS[0], NORMS[1], None, None, COS, COS, 1e-5),
    ),
    "gradient through an in-place op": (
        RuntimeError,
        "not differentiable",
        lambda: ops.qk_norm_rope_append_(
            randn(1, 3, 1, 3, D).requires_grad_(),
            *NORMS,
            COS,
            COS,
            torch.zeros(1, 1, 4, D),
            torch.zeros(1, 1, 4, D),
            torch.arange(3)[None],
            1e-5,
        ),
    ),
    "second derivative": (
        NotImplementedError,
        "layer_norm_backward",
        lambda: second_derivative(lambda x: ops.layer_norm(x, randn(8), randn(8), 1e-5)),
    ),
    "heads of k in float64": (
        ValueError,
        "k",
        lambda: ops.attention(*(randn(1, h, 3, D, dtype=torch.float64) for h in (2, 1, 1))),
    ),
    "negative temperature in float64": (
        ValueError,
        "temperature",
        lambda: ops.sample(randn(1, 4, dtype=torch.float64), RNG, temperature=-1.0),
    ),
    "residual shape in float64": (
        ValueError,
        "residual",
        lambda: ops.linear(*(randn(2, 8, dtype=torch.float64) for _ in range(2)), residual=torch.zeros(2, 1).double()),
    ),
    "NaN logits": (
        ValueError,
        "row 0",
        lambda: ops.sample(torch.full((1, 4), float("nan")), RNG),
    ),
    "int8 scale": (
        ValueError,
        "scale",
        lambda: ops.linear_int8(randn(1, 4), torch.zeros(3, 4, dtype=torch.int8), torch.ones(4)),
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_is_a_sentence(case):
    kind, named, call = BAD_CALLS[case]
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value).splitlines()[0]
    assert named in message, message
    assert message.rstrip().endswith("."), message
