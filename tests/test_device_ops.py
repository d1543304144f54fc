"""Every operator on every device there is: accurate, the same bits every time, and on a GPU on any stream and inside a
CUDA graph. The CPU's turn keeps these tests right where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Shapes, tensors
from benchmarks.kernels import CASES
from benchmarks.weights import Filler
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
