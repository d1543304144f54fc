"""Cases of the products with a weight: dense, sparse, quantised, and the fused cross entropy.

The eager side of all of them is torch's product with the 16-bit weight, row-major as in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.cases import Case, Shapes, accurate, size
from benchmarks.weights import copied
from persimmon_ext import ops, quantization, reference

ZEROS = (0.0, 0.5, 0.9, 0.97)
_CHECKED_FEATURES = 256  # output features that are computed in float32 too


def _thinned(features: int) -> slice:
    return slice(None, None, max(1, features // _CHECKED_FEATURES))


def _product_check(
    name: str,
    ours: Callable[[], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu2: bool,
) -> Callable[[], None]:
    """Compares every so manieth output feature with the reference on `weight` [N, K] in x's dtype and in float32.

    `weight` in float32 is what quantised codes stand for.
    """
    part = _thinned(weight.shape[0])
    b = None if bias is None else bias[part]
    r = None if residual is None else residual[..., part]

    def eager() -> Tensor:
        return reference.linear(x, weight[part].to(x.dtype), b, r, relu2)

    def exact() -> Tensor:
        wide = [None if t is None else t.float() for t in (b, r)]
        return reference.linear(x.float(), weight[part].float(), wide[0], wide[1], relu2)

    return accurate(name, lambda: ours()[..., part], eager, exact)


def _layer_products(shapes: Shapes) -> Iterator[tuple[str, int, int, bool, bool]]:
    """(name, N, K, squared ReLU, residual) of a layer's dense products and of the head."""
    C = shapes.hidden
    yield "qkv", 3 * C, C, False, False
    yield "attention out", C, C, False, True
    yield "mlp up", shapes.ffn, C, True, False
    yield "head", shapes.vocab, C, False, False


def linear(shapes: Shapes) -> Iterator[Case]:
    for name, N, K, relu2, has_residual in _layer_products(shapes):
        weight = shapes.normal(N, K, spread=0.02)
        bias = shapes.normal(N, spread=0.02) if name != "head" else None
        for rows in shapes.rows:
            x = shapes.normal(rows, K)
            residual = shapes.normal(rows, N) if has_residual else None

            def ours(
                x: Tensor = x,
                w: Tensor = weight,
                b: Tensor | None = bias,
                r: Tensor | None = residual,
                relu2: bool = relu2,
            ) -> Tensor:
                return ops.linear(x, w, b, relu2=relu2, residual=r)

            def eager(
                x: Tensor = x,
                w: Tensor = weight,
                b: Tensor | None = bias,
                r: Tensor | None = residual,
                relu2: bool = relu2,
            ) -> Tensor:
                return reference.linear(x, w, b, r, relu2)

            check = _product_check(f"linear, {name}", ours, x, weight, bias, residual, relu2)
            yield Case(f"{rows} x [{N}, {K}] {name}", ours, eager, check, size(weight), 2 * rows * N * K)


def _sparse_input(shapes: Shapes, rows: int, zeros: float) -> Tensor:
    """[rows, F] of positive numbers, each row with its own zeros: rows share fewer than in a real model."""
    x = shapes.normal(rows, shapes.ffn).abs() + 0.01
    keep = torch.rand(rows, shapes.ffn, generator=shapes.filler.generator) >= zeros
    return x * keep.to(x)


def _read_share(x: Tensor) -> float:
    """Share of the weight's rows that some row of x needs."""
    return float((x != 0).any(0).float().mean())


def sparse_linear(shapes: Shapes) -> Iterator[Case]:
    C, F = shapes.hidden, shapes.ffn
    weight = shapes.normal(F, C, spread=0.02).T  # hidden-major
    row_major = copied(weight)
    bias = shapes.normal(C, spread=0.02)
    for rows in shapes.rows:
        for zeros in ZEROS:
            x, residual = _sparse_input(shapes, rows, zeros), shapes.normal(rows, C)

            def ours(x: Tensor = x, residual: Tensor = residual) -> Tensor:
                return ops.sparse_linear(x, weight, bias, residual=residual)

            def eager(x: Tensor = x, residual: Tensor = residual) -> Tensor:
                return reference.linear(x, row_major, bias, residual, False)

            def dense(x: Tensor = x, residual: Tensor = residual) -> Tensor:
                return ops.linear(x, row_major, bias, residual=residual)

            def same_copy(x: Tensor = x, residual: Tensor = residual) -> Tensor:
                return ops.linear(x, weight, bias, residual=residual)

            check = _product_check("sparse_linear", ours, x, weight, bias, residual, False)
            peers = {"our dense": dense, "our dense, the same copy": same_copy}
            shape, share = f"{rows} x [{C}, {F}] {zeros:.0%} zeros", _read_share(x)
            flops = int(2 * rows * C * F * share)
            yield Case(shape, ours, eager, check, int(size(weight) * share), flops, peers)


Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]


def _quantized_linear(shapes: Shapes, bits: int) -> Iterator[Case]:
    quantize: Quantize = quantization.quantize_int8 if bits == 8 else quantization.quantize_int4
    dequantize = quantization.dequantize_int8 if bits == 8 else quantization.dequantize_int4
    product = ops.linear_int8 if bits == 8 else ops.linear_int4
    N, K = shapes.ffn, shapes.hidden
    codes, scale = quantize(shapes.normal(N, K, spread=0.02))
    weight = dequantize(codes, scale)  # float32
    rounded = weight.to(shapes.dtype)
    bias = shapes.normal(N, spread=0.02)
    for rows in shapes.rows:
        x = shapes.normal(rows, K)

        def ours(x: Tensor = x) -> Tensor:
            return product(x, codes, scale, bias, relu2=True)

        def eager(x: Tensor = x) -> Tensor:
            return reference.linear(x, rounded, bias, None, True)

        check = _product_check(f"linear_int{bits}", ours, x, weight, bias, None, True)
        yield Case(f"{rows} x [{N}, {K}] mlp up", ours, eager, check, size(codes, scale), 2 * rows * N * K)


def linear_int8(shapes: Shapes) -> Iterator[Case]:
    return _quantized_linear(shapes, 8)


def linear_int4(shapes: Shapes) -> Iterator[Case]:
    return _quantized_linear(shapes, 4)


def _quantized_sparse_linear(shapes: Shapes, bits: int) -> Iterator[Case]:
    C, F = shapes.hidden, shapes.ffn
    original = shapes.normal(C, F, spread=0.02)
    if bits == 8:
        codes, scale = quantization.quantize_hidden_major_int8(original)
        weight = codes.T.float() * scale[:, None]
    else:
        codes, scale = quantization.quantize_hidden_major_int4(original)
        weight = quantization.dequantize_int4(codes, scale).T.contiguous()
    product = ops.sparse_linear_int8 if bits == 8 else ops.sparse_linear_int4
    rounded = weight.to(shapes.dtype)
    bias = shapes.normal(C, spread=0.02)
    for rows in shapes.rows:
        for zeros in ZEROS:
            x = _sparse_input(shapes, rows, zeros)

            def ours(x: Tensor = x) -> Tensor:
                return product(x, codes, scale, bias)

            def eager(x: Tensor = x) -> Tensor:
                return reference.linear(x, rounded, bias, None, False)

            check = _product_check(f"sparse_linear_int{bits}", ours, x, weight, bias, None, False)
            shape, share = f"{rows} x [{C}, {F}] {zeros:.0%} zeros", _read_share(x)
            flops = int(2 * rows * C * F * share)
            yield Case(shape, ours, eager, check, int(size(codes, scale) * share), flops)


def sparse_linear_int8(shapes: Shapes) -> Iterator[Case]:
    return _quantized_sparse_linear(shapes, 8)


def sparse_linear_int4(shapes: Shapes) -> Iterator[Case]:
    return _quantized_sparse_linear(shapes, 4)


def linear_cross_entropy(shapes: Shapes) -> Iterator[Case]:
    C, V = shapes.hidden, shapes.vocab
    weight = shapes.normal(V, C, spread=0.02)
    for rows in shapes.tokens[:1]:
        hidden = shapes.normal(rows, C)
        labels = torch.randint(V, (rows,), generator=shapes.filler.generator).to(shapes.device)

        def ours(hidden: Tensor = hidden, labels: Tensor = labels) -> tuple[Tensor, ...]:
            return ops.linear_cross_entropy(hidden, weight, labels)

        def eager(hidden: Tensor = hidden, labels: Tensor = labels) -> tuple[Tensor, ...]:
            return reference.linear_cross_entropy(hidden, weight, labels, -100)

        def exact(hidden: Tensor = hidden, labels: Tensor = labels) -> tuple[Tensor, ...]:
            wide = hidden.float()
            pieces = [wide @ weight[i : i + 8192].float().T for i in range(0, V, 8192)]
            lse = torch.stack([piece.logsumexp(-1) for piece in pieces]).logsumexp(0)
            return lse - (wide * weight[labels].float()).sum(-1), lse

        check = accurate("linear_cross_entropy", ours, eager, exact)
        yield Case(f"{rows} x [{V}, {C}]", ours, eager, check, size(weight), 2 * rows * V * C)
