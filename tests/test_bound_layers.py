"""Layers bound to their kernels against the modules that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import model_pair

from persimmon_ext import bound_layers


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float64], ids=["float32", "bfloat16", "no kernel"])
def layer(request: pytest.FixtureRequest) -> Any:
    return model_pair()[1].to(request.param).model.layers[0]


@torch.inference_mode()
def test_bound_functions_give_the_modules_results(layer: Any) -> None:
    norm, mlp, attention = layer.post_attention_layernorm, layer.mlp, layer.self_attn
    like = norm.weight
    torch.manual_seed(0)
    x, residual = torch.randn(2, 2, 3, like.shape[0]).to(like.dtype)

    assert torch.equal(bound_layers.bind_norm(norm, like)(x), norm(x))
    total, normed = bound_layers.bind_add_norm(norm, like)(x, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, norm(total))
    dense = bound_layers.bind_product(attention.dense, like)
    assert torch.equal(dense(x), attention.dense(x))
    hidden = bound_layers.bind_product(mlp.dense_h_to_4h, like, relu2=True)(x)
    assert torch.equal(hidden, mlp.dense_h_to_4h(x, relu2=True))
    down = bound_layers.bind_added_product(mlp.dense_4h_to_h, like)
    assert torch.equal(down(hidden, residual), mlp.dense_4h_to_h(hidden, residual=residual))
