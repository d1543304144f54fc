"""Which ops a decode step is made of: on a GPU each is a kernel, norm_mlp two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from generation_cases import model_pair, prompt
from torch.utils._python_dispatch import TorchDispatchMode

from persimmon_ext import DynamicCache
from persimmon_ext.decode_plan import DecodePlan

LAYER = ("norm_linear", "decode_attention_", "linear", "norm_mlp")
MODULES = [
    *("input_layernorm", "self_attn", "self_attn.query_key_value"),
    *("post_attention_layernorm", "mlp", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
]


class Ops(TorchDispatchMode):
    """Counts the calls of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if op.namespace == "persimmon_ext":
            self.calls[op.name().removeprefix("persimmon_ext::")] += 1
        return op(*arguments, **(options or {}))


def calls(step: Callable[[], Any]) -> dict[str, int]:
    with torch.no_grad(), Ops() as ops:
        step()
    return dict(ops.calls)


def filled(model: Any) -> DynamicCache:
    cache = DynamicCache(model.config)
    with torch.no_grad():
        model(prompt(2, 9), past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("tokens", [1, 8])
def test_a_layer_is_four_ops(tokens: int, quantization: str | None) -> None:
    model = model_pair()[1]
    if quantization is not None:
        model.quantize(quantization)
    layers, new = model.config.num_hidden_layers, prompt(2, tokens)
    dense = "linear" if quantization is None else f"linear_{quantization}"
    layer = {op if op != "linear" else dense: layers for op in LAYER}
    plan, cache = DecodePlan(model, 32), filled(model)
    assert calls(lambda: plan(new, 9, None, cache)) == {**layer, "norm_linear": layers + 1}
    cache = filled(model)
    found = calls(lambda: model(new, past_key_values=cache, use_cache=True))
    assert found == {**layer, dense: layers + 1, "layer_norm": 1}  # the head is a module of its own


def test_longer_inputs_and_gradients_take_the_parts_apart() -> None:
    model = model_pair()[1]
    assert "norm_mlp" not in calls(lambda: model(prompt(2, 9)))
    with Ops() as ops:
        model(prompt(2, 3))
    assert "norm_linear" not in ops.calls


@pytest.mark.parametrize("name", MODULES)
def test_a_hook_is_called(name: str) -> None:
    """A module that others look at is run as such, with the input that it has in a longer forward call."""
    model, seen = model_pair()[1], []
    ids = prompt(2, 12)
    hook = (
        model.model.layers[0]
        .get_submodule(name)
        .register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    )
    with torch.no_grad():
        expected = model(ids).logits[:, 9:]
        cache = DynamicCache(model.config)
        model(ids[:, :9], past_key_values=cache, use_cache=True)
        found = model(ids[:, 9:], past_key_values=cache, use_cache=True).logits
    hook.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[2], seen[0][:, 9:], rtol=1e-4, atol=1e-4)
