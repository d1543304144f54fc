"""Cases of the products that take a LayerNorm along, on elements and on quantised weights.

The eager side is torch's norm and products with 16-bit weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from benchmarks.cases import EPS, Case, Shapes, accurate, size
from persimmon_ext import ops, quantization, reference

_SPREAD = 0.02  # of weights
_KINDS = ("elements", "int8", "int4")
_QUANTILE = -1.2816  # of a normal distribution, below which are 10%: the others are zeros behind the squared ReLU


@dataclass(frozen=True)
class _Weight:
    """A weight as the op takes it, and what it stands for: [N, K], float32 and 16-bit."""

    operand: Tensor
    scale: Tensor | None
    exact: Tensor
    rounded: Tensor

    @property
    def nbytes(self) -> int:
        return size(self.operand) + (0 if self.scale is None else size(self.scale))


def _weight(shapes: Shapes, kind: str, N: int, K: int, *, hidden_major: bool = False) -> _Weight:
    """`kind` is elements, int8 or int4."""
    matrix = shapes.normal(N, K, spread=_SPREAD)
    if kind == "elements":
        return _Weight(matrix.T.contiguous().T if hidden_major else matrix, None, matrix.float(), matrix)
    if kind == "int8":
        quantize = quantization.quantize_hidden_major_int8 if hidden_major else quantization.quantize_int8
        codes, scale = quantize(matrix)
        exact = (codes.float() * scale).T if hidden_major else quantization.dequantize_int8(codes, scale)
    else:
        quantize = quantization.quantize_hidden_major_int4 if hidden_major else quantization.quantize_int4
        codes, scale = quantize(matrix)
        exact = quantization.dequantize_int4(codes, scale)
        exact = exact.T if hidden_major else exact
    return _Weight(codes, scale, exact, exact.to(shapes.dtype).contiguous())


def norm_linear(shapes: Shapes) -> Iterator[Case]:
    C, N = shapes.hidden, 3 * shapes.hidden
    norm = (*shapes.norm(C), EPS)
    bias = shapes.normal(N, spread=_SPREAD)
    for kind in _KINDS:
        weight = _weight(shapes, kind, N, C)
        for rows in shapes.rows:
            yield _norm_linear(kind, shapes.normal(rows, C), norm, weight, bias)


def _norm_linear(kind: str, x: Tensor, norm: tuple[Tensor, Tensor, float], weight: _Weight, bias: Tensor) -> Case:
    N, C = weight.exact.shape

    def ours() -> Tensor:
        return ops.norm_linear(x, *norm, weight.operand, weight.scale, bias)

    def eager() -> Tensor:
        return reference.norm_linear(x, *norm, weight.rounded, bias)

    def exact() -> Tensor:
        return reference.norm_linear(x.float(), norm[0].float(), norm[1].float(), EPS, weight.exact, bias.float())

    check = accurate(f"norm_linear, {kind}", ours, eager, exact)
    return Case(f"{len(x)} x [{N}, {C}] qkv {kind}", ours, eager, check, weight.nbytes, 2 * len(x) * N * C)


def norm_mlp(shapes: Shapes) -> Iterator[Case]:
    """With 90% zeros, each row its own."""
    C, F = shapes.hidden, shapes.ffn
    norm = (*shapes.norm(C), EPS)
    biases = shapes.normal(F, spread=_SPREAD) + _QUANTILE * _SPREAD * C**0.5, shapes.normal(C, spread=_SPREAD)
    for kind in _KINDS:
        up, down = _weight(shapes, kind, F, C), _weight(shapes, kind, C, F, hidden_major=True)
        for rows in shapes.rows:
            yield _norm_mlp(kind, shapes.normal(rows, C), norm, up, down, biases)


def _norm_mlp(
    kind: str,
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    up: _Weight,
    down: _Weight,
    biases: tuple[Tensor, Tensor],
) -> Case:
    F, C = up.exact.shape

    def ours() -> Tensor:
        return ops.norm_mlp(x, *norm, up.operand, up.scale, biases[0], down.operand, down.scale, biases[1])

    def eager() -> Tensor:
        return reference.norm_mlp(x, *norm, up.rounded, biases[0], down.rounded, biases[1])

    def exact() -> Tensor:
        wide = [t.float() for t in (x, norm[0], norm[1], *biases)]
        return reference.norm_mlp(*wide[:3], EPS, up.exact, wide[3], down.exact, wide[4])

    hidden = reference.norm_linear(x, *norm, up.rounded, biases[0])
    share = float((hidden > 0).any(0).float().mean())  # of the second weight that must be read
    check = accurate(f"norm_mlp, {kind}", ours, eager, exact)
    bytes_read, flops = up.nbytes + int(down.nbytes * share), int(2 * len(x) * C * F * (1 + share))
    return Case(f"{len(x)} x [{F}, {C}] {kind}", ours, eager, check, bytes_read, flops)
