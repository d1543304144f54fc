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

    projected = bound_layers.bind_norm_product(norm, attention.query_key_value, like)(x)
    assert torch.equal(projected, attention.query_key_value(norm(x)))
    dense = bound_layers.bind_added_product(attention.dense, like)
    assert torch.equal(dense(x, residual), attention.dense(x, residual=residual))
    found = bound_layers.bind_norm_mlp(norm, mlp, like)(x)
    assert torch.equal(found, mlp.dense_4h_to_h(mlp.dense_h_to_4h(norm(x), relu2=True), residual=x))
