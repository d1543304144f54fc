"""Arguments that every operator takes."""

from __future__ import annotations

import torch
from helpers import randn
from torch import Tensor

from persimmon_ext import ops, quantization

B, T, H, D, R, S = 2, 3, 2, 16, 8, 6


def norms(dtype: torch.dtype, grad: bool) -> list[Tensor]:
    return [randn(D, dtype=dtype, seed=i).requires_grad_(grad) for i in range(4)]


def samples(dtype: torch.dtype, grad: bool) -> dict[str, tuple]:
    """Arguments of each operator; those that have autograd require gradients where `grad` is set."""

    def r(*shape: int, seed: int = 0) -> Tensor:
        return randn(*shape, dtype=dtype, seed=seed).requires_grad_(grad)

    cos, sin = randn(B, T, R // 2, seed=7), randn(B, T, R // 2, seed=8)
    plain = [n.detach() for n in norms(dtype, False)]
    slots = torch.tensor([[2, 3, 4], [0, 1, 2]])
    x, weight = r(4, 5), r(6, 5, seed=1)
    hidden_major = randn(5, 6, dtype=dtype, seed=2).T.detach().requires_grad_(grad)
    normed = (x.detach(), randn(5, dtype=dtype, seed=1), randn(5, dtype=dtype, seed=2), 1e-5)
    wide = randn(3, 128, dtype=dtype).detach()
    int8, int4 = quantization.quantize_int8(randn(6, 128)), quantization.quantize_int4(randn(6, 128))
    sparse8 = quantization.quantize_hidden_major_int8(randn(64, 128))
    sparse4 = quantization.quantize_hidden_major_int4(randn(64, 128))
    q, k, v = r(B, H, T, D), r(B, H, S, D, seed=1), r(B, H, S, D, seed=2)
    out, lse = (t.detach() for t in ops.attention(q, k, v))
    start, length, offset = torch.tensor([0, 1]), torch.tensor([S, 5]), torch.tensor([3, 2])
    qkv = r(B, T, H, 3, D)
    labels = torch.tensor([0, 5, -100, 2])
    caches = [torch.zeros(B, H, S, D, dtype=dtype) for _ in range(2)]
    code_caches = [torch.zeros(B, H, S, D, dtype=torch.int8) for _ in range(2)]
    scale_caches = [torch.zeros(B, H, S, 1) for _ in range(2)]
    return {
        "layer_norm": (x, r(5, seed=1), r(5, seed=2), 1e-5),
        "layer_norm_backward": (x.detach(), randn(4, 5, dtype=dtype, seed=3), randn(5, dtype=dtype), 1e-5),
        "add_layer_norm": (x, r(4, 5, seed=3), r(5, seed=1), r(5, seed=2), 1e-5),
        "qk_norm_rope": (qkv, *norms(dtype, grad), cos, sin, 1e-5),
        "qk_norm_rope_backward": (
            *(t.detach() for t in (q, r(B, H, T, D, seed=4), q)),
            qkv.detach(),
            plain[0],
            plain[2],
            cos,
            sin,
            1e-5,
        ),
        "qk_norm_rope_append_": (qkv.detach(), *plain, cos, sin, *caches, slots, 1e-5),
        "attention": (q, k, v, start, length, offset, 0.25),
        "attention_backward": (out, q.detach(), k.detach(), v.detach(), out, lse, start, length, offset, 0.25),
        "decode_attention_": (qkv.detach(), *plain, cos, sin, *caches, slots, start, 1e-5, 0.25),
        "decode_attention_int8_": (
            qkv.detach(),
            *plain,
            cos,
            sin,
            *code_caches,
            *scale_caches,
            slots,
            start,
            1e-5,
            0.25,
        ),
        "linear": (x, weight, r(6, seed=3), r(4, 6, seed=4), True),
        "sparse_linear": (r(4, 5).relu().detach().requires_grad_(grad), hidden_major, r(6, seed=3), r(4, 6, seed=4)),
        "relu2": (x, r(5, seed=5)),
        "relu2_backward": (x.detach(), x.detach(), randn(5, dtype=dtype)),
        "linear_cross_entropy": (x, weight, labels, -100),
        "linear_cross_entropy_backward": (
            randn(4),
            x.detach(),
            weight.detach(),
            labels,
            (x @ weight.T).detach().float().logsumexp(-1),
            -100,
        ),
        "sample": (x.detach(), torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]), 0.9, 3, 0.9, 0.01),
        "linear_int8": (wide, *int8, randn(6, dtype=dtype), randn(3, 6, dtype=dtype), True),
        "linear_int4": (wide, *int4, randn(6, dtype=dtype), randn(3, 6, dtype=dtype), True),
        "norm_linear": (*normed, weight.detach(), None, randn(6, dtype=dtype, seed=3)),
        "norm_mlp": (*normed, weight.detach(), None, randn(6, dtype=dtype, seed=3), weight.detach().T, None, None),
        "sparse_linear_int8": (wide, *sparse8, randn(64, dtype=dtype), randn(3, 64, dtype=dtype)),
        "sparse_linear_int4": (wide, *sparse4, randn(64, dtype=dtype), randn(3, 64, dtype=dtype)),
    }


NAMES = sorted(samples(torch.float32, False))
