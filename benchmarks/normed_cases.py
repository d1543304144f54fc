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


def _kinds(shapes: Shapes) -> Iterator[tuple[str, int]]:
    """Kinds of weights, each with the numbers of rows of x."""
    for kind in ("elements", "int8", "int4"):
        for rows in shapes.rows:
            yield kind, rows


def norm_linear(shapes: Shapes) -> Iterator[Case]:
    C, N = shapes.hidden, 3 * shapes.hidden
    norm = (*shapes.norm(C), EPS)
    weights = {kind: _weight(shapes, kind, N, C) for kind, _ in _kinds(shapes)}
    bias = shapes.normal(N, spread=_SPREAD)
    for kind, rows in _kinds(shapes):
        x, weight = shapes.normal(rows, C), weights[kind]

        def ours(x: Tensor = x, w: _Weight = weight) -> Tensor:
            return ops.norm_linear(x, *norm, w.operand, w.scale, bias)

        def eager(x: Tensor = x, w: _Weight = weight) -> Tensor:
            return reference.norm_linear(x, *norm, w.rounded, bias)

        def exact(x: Tensor = x, w: _Weight = weight) -> Tensor:
            return reference.norm_linear(x.float(), norm[0].float(), norm[1].float(), EPS, w.exact, bias.float())

        check = accurate(f"norm_linear, {kind}", ours, eager, exact)
        yield Case(f"{rows} x [{N}, {C}] qkv {kind}", ours, eager, check, weight.nbytes, 2 * rows * N * C)


def norm_mlp(shapes: Shapes) -> Iterator[Case]:
    """With 90% zeros, each row its own."""
    C, F = shapes.hidden, shapes.ffn
    norm = (*shapes.norm(C), EPS)
    ups = {kind: _weight(shapes, kind, F, C) for kind, _ in _kinds(shapes)}
    downs = {kind: _weight(shapes, kind, C, F, hidden_major=True) for kind, _ in _kinds(shapes)}
    up_bias = shapes.normal(F, spread=_SPREAD) + _QUANTILE * _SPREAD * C**0.5
    down_bias = shapes.normal(C, spread=_SPREAD)
    for kind, rows in _kinds(shapes):
        x, up, down = shapes.normal(rows, C), ups[kind], downs[kind]

        def ours(x: Tensor = x, up: _Weight = up, down: _Weight = down) -> Tensor:
            operands = (up.operand, up.scale, up_bias, down.operand, down.scale, down_bias)
            return ops.norm_mlp(x, *norm, *operands)

        def eager(x: Tensor = x, up: _Weight = up, down: _Weight = down) -> Tensor:
            return reference.norm_mlp(x, *norm, up.rounded, up_bias, down.rounded, down_bias)

        def exact(x: Tensor = x, up: _Weight = up, down: _Weight = down) -> Tensor:
            wide = [t.float() for t in (x, norm[0], norm[1], up_bias, down_bias)]
            return reference.norm_mlp(*wide[:3], EPS, up.exact, wide[3], down.exact, wide[4])

        hidden = reference.norm_linear(x, *norm, up.rounded, up_bias)
        share = float((hidden > 0).any(0).float().mean())
        check = accurate(f"norm_mlp, {kind}", ours, eager, exact)
        bytes_read, flops = up.nbytes + int(down.nbytes * share), int(2 * rows * C * F * (1 + share))
        yield Case(f"{rows} x [{F}, {C}] {kind}", ours, eager, check, bytes_read, flops)
