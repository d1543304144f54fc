"""Every operator on every device there is: accurate, the same bits every time, and on a GPU on any stream and inside a
CUDA graph. The CPU's turn keeps these tests right where there is no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Shapes, tensors
from benchmarks.kernels import CASES
from benchmarks.weights import Filler
from persimmon_ext import ops
from persimmon_ext.ops.native import has_kernels

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.bfloat16, torch.float16]


def cases(op: str, device: str, dtype: torch.dtype) -> list[Case]:
    """The benchmarks' inputs, at sizes that leave no tile, block or vector whole."""
    shapes = Shapes(
        hidden=256,
        ffn=576,
        heads=4,
        vocab=1031,
        dtype=dtype,
        device=torch.device(device),
        rows=(1, 3, 8, 16, 17),
        tokens=(1, 63, 130),
        contexts=(1, 65, 1000),
        filler=Filler(0, torch.device(device)),
    )
    return list(CASES[op](shapes))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", CASES)
def test_accurate(op: str, device: str, dtype: torch.dtype) -> None:
    for case in cases(op, device, dtype):
        case.check()


def copies(result: Any) -> list[Tensor]:
    return [t.clone() for t in tensors(result)]


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", CASES)
def test_same_bits_every_time(op: str, device: str) -> None:
    for case in cases(op, device, torch.bfloat16):
        first = copies(case.ours())
        for again in (copies(case.ours()) for _ in range(3)):
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), case.shape


def scalar_calls(
    eps: float, scale: float, dtype: torch.dtype, device: str
) -> dict[str, tuple[Callable[[], Any], list[Tensor]]]:
    """What each op with an eps or a scale does with these, and the caches that it would write."""
    B, T, H, S, D = 1, 2, 2, 4, 64
    x, w = torch.ones(3, D, dtype=dtype, device=device), torch.ones(D, dtype=dtype, device=device)
    qkv = torch.ones(B, T, H, 3, D, dtype=dtype, device=device)
    angles = torch.ones(1, T, D // 4, device=device)
    parameters = (qkv, w, w, w, w, angles, angles)
    q = qkv[:, :, :, 0].transpose(1, 2)
    caches = [torch.zeros(B, H, S, D, dtype=dtype, device=device) for _ in range(2)]
    codes = [torch.zeros(B, H, S, D, dtype=torch.int8, device=device) for _ in range(2)]
    scales = [torch.zeros(B, H, S, 1, device=device) for _ in range(2)]
    slots = torch.tensor([[1, 2]], device=device)
    int8 = [*codes, *scales]
    return {
        "layer_norm": (lambda: ops.layer_norm(x, w, w, eps), []),
        "add_layer_norm": (lambda: ops.add_layer_norm(x, x, w, w, eps), []),
        "norm_linear": (lambda: ops.norm_linear(x, w, w, eps, x), []),
        "norm_mlp": (lambda: ops.norm_mlp(x, w, w, eps, x, None, None, x.T, None, None), []),
        "qk_norm_rope": (lambda: ops.qk_norm_rope(*parameters, eps), []),
        "qk_norm_rope_append_": (lambda: ops.qk_norm_rope_append_(*parameters, *caches, slots, eps), caches),
        "attention": (lambda: ops.attention(q, q, q, scale=scale), []),
        "decode_attention_": (
            lambda: ops.decode_attention_(*parameters, *caches, slots, eps=eps, scale=scale),
            caches,
        ),
        "decode_attention_int8_": (
            lambda: ops.decode_attention_int8_(*parameters, *int8, slots, eps=eps, scale=scale),
            int8,
        ),
    }


WITH_EPS = [op for op in scalar_calls(0.0, 1.0, torch.float32, "cpu") if op != "attention"]
WITH_SCALE = ("attention", "decode_attention_", "decode_attention_int8_")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("op", "eps", "scale", "message"),
    [
        *((op, -1e-3, 0.5, "eps must be finite and not negative, got -0.001.") for op in WITH_EPS),
        *((op, float("nan"), 0.5, "eps must be finite and not negative, got nan.") for op in WITH_EPS),
        *((op, 1e-5, float("inf"), "scale must be finite, got inf.") for op in WITH_SCALE),
        *((op, 1e-5, float("nan"), "scale must be finite, got nan.") for op in WITH_SCALE),
    ],
)
def test_bad_scalars_raise_before_anything_is_written(
    op: str, eps: float, scale: float, message: str, device: str, dtype: torch.dtype
) -> None:
    call, written = scalar_calls(eps, scale, dtype, device)[op]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()
    assert not any(cache.any() for cache in written)


def on_side_stream(call: Callable[[], Any]) -> Any:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = call()
    torch.cuda.current_stream().wait_stream(stream)
    return result


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("op", CASES)
def test_any_stream(op: str) -> None:
    for case in cases(op, "cuda", torch.bfloat16):
        expected = copies(case.ours())
        found = copies(on_side_stream(case.ours))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), case.shape


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("op", [op for op in CASES if has_kernels(torch.device("cuda"), op)])
def test_graph_replay(op: str) -> None:
    """Capture fails where a kernel synchronises or reads the device from the host."""
    for case in cases(op, "cuda", torch.bfloat16):
        expected = copies(case.ours())
        on_side_stream(case.ours)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = tensors(case.ours())
        for result in captured:
            result.zero_()  # what the replay must overwrite
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(expected, captured, strict=True)), case.shape
