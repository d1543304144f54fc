"""Cases of the gradients' kernels, against what autograd does for the eager op; its forward pass is not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention_cases import with_flash
from benchmarks.cases import EPS, Case, Shapes, accurate, size, tensors
from benchmarks.small_cases import Heads
from persimmon_ext import ops, reference
from persimmon_ext.ops.native import CUDA_HEAD_DIM

_ops = torch.ops.persimmon_ext


Gradients = Callable[[], tuple[Tensor, ...]]


def autograd(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> Gradients:
    """Returns what computes the gradients of `function` at `inputs`, for the gradients `grads` of its results."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        results = tensors(function(*leaves))

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(results, leaves, list(grads), retain_graph=True)

    return gradients


def _exact(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> Gradients:
    def exact() -> tuple[Tensor, ...]:
        return autograd(function, [t.float() for t in inputs], [g.float() for g in grads])()  # freed at once

    return exact


def _stacked(gradients: Gradients) -> Callable[[], Tensor]:
    """All in one, for a check against the largest of them: of a single visible key, dq and dk are zeros."""
    return lambda: torch.stack(gradients())


def _has_no_kernel(shapes: Shapes) -> bool:
    return shapes.device.type == "cuda" and shapes.head_dim != CUDA_HEAD_DIM


def layer_norm_backward(shapes: Shapes) -> Iterator[Case]:
    weight, bias = shapes.norm(shapes.hidden)

    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.layer_norm(x, weight, bias, EPS)

    for T in shapes.tokens:
        x, grad = shapes.normal(T, shapes.hidden), shapes.normal(T, shapes.hidden)

        def ours(x: Tensor = x, grad: Tensor = grad) -> tuple[Tensor, ...]:
            gradients: tuple[Tensor, ...] = _ops.layer_norm_backward(grad, x, weight, EPS)
            return gradients

        inputs = (x, weight, bias)
        eager, exact = autograd(forward, inputs, [grad]), _exact(forward, inputs, [grad])
        check = accurate("layer_norm_backward", ours, eager, exact)
        yield Case(f"{T}x{shapes.hidden}", ours, eager, check, 3 * size(x))


def qk_norm_rope_backward(shapes: Shapes) -> Iterator[Case]:
    if _has_no_kernel(shapes):
        return
    for T in shapes.tokens:
        heads = Heads(shapes, T)
        grads = [shapes.normal(1, shapes.heads, T, shapes.head_dim) for _ in range(3)]
        inputs = (heads.qkv, *heads.norms)

        def forward(*inputs: Tensor, heads: Heads = heads) -> tuple[Tensor, ...]:
            qkv, *norms = inputs
            return reference.qk_norm_rope(qkv, *norms, heads.cos, heads.sin, EPS)  # type: ignore[arg-type]

        def ours(heads: Heads = heads, grads: list[Tensor] = grads) -> tuple[Tensor, ...]:
            q_weight, _, k_weight, _ = heads.norms
            place = (heads.qkv, q_weight, k_weight, heads.cos, heads.sin, EPS)
            gradients: tuple[Tensor, ...] = _ops.qk_norm_rope_backward(*grads, *place)
            return gradients

        eager, exact = autograd(forward, inputs, grads), _exact(forward, inputs, grads)
        check = accurate("qk_norm_rope_backward", ours, eager, exact)
        yield Case(f"1x{T}x{shapes.heads}x3x{shapes.head_dim}", ours, eager, check, 3 * size(heads.qkv))


def attention_backward(shapes: Shapes) -> Iterator[Case]:
    if _has_no_kernel(shapes) or (shapes.device.type == "cuda" and shapes.dtype == torch.float32):
        return
    H, D = shapes.heads, shapes.head_dim

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    for T in shapes.tokens:
        inputs = [shapes.normal(1, H, T, D) for _ in range(3)]
        grad = shapes.normal(1, T, H, D)
        out, lse = ops.attention(*inputs)

        def ours(
            inputs: list[Tensor] = inputs, grad: Tensor = grad, out: Tensor = out, lse: Tensor = lse
        ) -> tuple[Tensor, ...]:
            gradients: tuple[Tensor, ...] = _ops.attention_backward(
                grad, *inputs, out, lse, None, None, None, inputs[0].shape[-1] ** -0.5
            )
            return gradients

        eager, exact = autograd(forward, inputs, [grad]), _exact(forward, inputs, [grad])
        check = accurate("attention_backward", *map(_stacked, (ours, eager, exact)))
        flash = with_flash(shapes, lambda i=inputs, g=grad: autograd(forward, i, [g]))  # type: ignore[misc]
        products = 10 * H * D * T * (T + 1) // 2  # five products over the visible keys
        yield Case(
            f"1x{H}x{T}x{D}",
            ours,
            eager,
            check,
            8 * size(grad),
            products,
            {name: make() for name, make in flash.items()},
        )


def relu2_backward(shapes: Shapes) -> Iterator[Case]:
    bias = shapes.normal(shapes.ffn)
    for T in shapes.tokens:
        x, grad = shapes.normal(T, shapes.ffn), shapes.normal(T, shapes.ffn)

        def forward(x: Tensor) -> Tensor:
            return reference.relu2(x, bias.to(x.dtype))

        def ours(x: Tensor = x, grad: Tensor = grad) -> Tensor:
            gradient: Tensor = _ops.relu2_backward(grad, x, bias)
            return gradient

        eager, exact = autograd(forward, [x], [grad]), _exact(forward, [x], [grad])
        check = accurate("relu2_backward", ours, eager, exact)
        yield Case(f"{T}x{shapes.ffn}", ours, eager, check, 3 * size(x))


def linear_cross_entropy_backward(shapes: Shapes) -> Iterator[Case]:
    weight = shapes.normal(shapes.vocab, shapes.hidden, spread=0.02)
    for T in shapes.tokens[:1]:
        hidden = shapes.normal(T, shapes.hidden)
        labels = torch.arange(T, device=shapes.device) * 7919 % shapes.vocab
        dloss = torch.full((T,), 1 / T, device=shapes.device)
        lse = _ops.linear_cross_entropy(hidden, weight, labels, -100)[1]

        def forward(hidden: Tensor, weight: Tensor, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy((hidden @ weight.T).float(), labels, reduction="none")

        def ours(
            hidden: Tensor = hidden, labels: Tensor = labels, dloss: Tensor = dloss, lse: Tensor = lse
        ) -> tuple[Tensor, ...]:
            gradients: tuple[Tensor, ...] = _ops.linear_cross_entropy_backward(dloss, hidden, weight, labels, lse, -100)
            return gradients

        inputs = (hidden, weight)
        eager, exact = autograd(forward, inputs, [dloss]), _exact(forward, inputs, [dloss])
        check = accurate("linear_cross_entropy_backward", ours, eager, exact)
        moved = 2 * size(hidden, weight)  # read, and the gradients written
        shape = f"{T} x [{shapes.vocab}, {shapes.hidden}]"
        yield Case(shape, ours, eager, check, moved, 6 * T * weight.numel())
