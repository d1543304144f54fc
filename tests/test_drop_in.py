"""What users of transformers do beyond plain calls: other caches, packing, hooks, adapters, compile, errors midway."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from helpers import SMALL, max_error, model_pair, random_ids
from torch import nn

import persimmon_ext
from persimmon_ext import DynamicCache, PersimmonForCausalLM, StaticCache

IDS = random_ids(2, 10)


@pytest.fixture
def pair():
    return model_pair()


def test_transformers_static_cache(pair):
    ours, theirs = pair
    cache = transformers.StaticCache(config=theirs.config, max_cache_len=16)
    with torch.no_grad():
        first, second = (ours(piece, past_key_values=cache).logits for piece in (IDS[:, :6], IDS[:, 6:]))
        assert max_error(torch.cat([first, second], 1), theirs(IDS).logits) < 1e-4


def test_packed_documents(pair):
    ours, theirs = pair
    positions = torch.cat([torch.arange(4), torch.arange(6)])[None].expand(2, -1)
    options = {"position_ids": positions, "labels": IDS, "use_cache": False}
    assert max_error(ours(IDS, **options).loss, theirs(IDS, **options).loss) < 1e-5


@pytest.mark.parametrize("make", [DynamicCache, lambda: StaticCache(model_pair()[0].config, 12)])
def test_an_exception_midway_leaves_the_cache_as_it_was(pair, make):
    ours, _ = pair

    def fail(*_):
        raise KeyboardInterrupt

    with torch.no_grad():
        cache = make()
        ours(IDS[:, :6], past_key_values=cache)
        expected = ours(IDS[:, 6:8], past_key_values=copy.deepcopy(cache)).logits
        hook = ours.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            ours(IDS[:, 6:8], past_key_values=cache)
        hook.remove()
        assert [cache.get_seq_length(i) for i in range(2)] == [6, 6]
        assert torch.equal(ours(IDS[:, 6:8], past_key_values=cache).logits, expected)


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"labels": IDS[:, :1]}),
        (ValueError, {"logits_to_keep": -1}),
        (IndexError, {"logits_to_keep": torch.tensor([9])}),
        (ValueError, {"cache_position": torch.tensor([2, 3]), "attention_mask": torch.ones(2, 99)}),
    ],
)
def test_a_refused_call_leaves_the_cache_as_it_was(pair, error, options):
    ours, _ = pair
    with torch.no_grad():
        cache = ours(IDS[:, :6]).past_key_values
        with pytest.raises(error):
            ours(IDS[:, 6:8], past_key_values=cache, **options)
    assert cache.get_seq_length() == 6


def test_layers_that_disagree_are_refused(pair):
    ours, _ = pair
    with torch.no_grad():
        cache = ours(IDS).past_key_values
    cache.layers[1].crop(3)
    with pytest.raises(ValueError, match=r"\[10, 3\]"):
        ours(IDS, past_key_values=cache)


def test_gradient_reaches_a_given_cache(pair):
    """Prefix tuning: only the cached keys and values are trained."""
    gradients = []
    for model, cache in zip(pair, (DynamicCache(), transformers.DynamicCache()), strict=True):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        prefix = torch.ones(2, 2, 2, 3, 64, requires_grad=True)  # {k, v}, B, H, prefix, D
        for layer in range(2):
            cache.update(prefix[0] * 0.1, prefix[1] * 0.1, layer)
        model(IDS, past_key_values=cache, labels=IDS).loss.backward()
        gradients.append(prefix.grad)
    assert float(gradients[1].abs().max()) > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_only_the_norms_are_trained(pair):
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("k_layernorm" in name)
        model(IDS, labels=IDS).loss.backward()
    for (name, a), b in zip(pair[0].named_parameters(), pair[1].parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6, msg=name)


class Adapter(nn.Module):
    """As LoRA wraps a layer: called with x alone."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x):
        return 2 * self.base(x)


MODULES = [
    "self_attn.query_key_value", "self_attn.dense", "self_attn.q_layernorm", "self_attn.k_layernorm",
    "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "post_attention_layernorm", "input_layernorm", "mlp",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_any_module_can_be_replaced(pair, name):
    for model in pair:
        layer = model.model.layers[0]
        layer.set_submodule(name, Adapter(layer.get_submodule(name)))
    expected = pair[1](IDS).logits
    with torch.no_grad():
        assert max_error(pair[0](IDS).logits, expected) < 1e-4
    assert max_error(pair[0](IDS).logits, expected) < 1e-4


@pytest.mark.parametrize("name", MODULES)
def test_hooks_see_what_they_see_in_transformers(pair, name):
    seen: list[list[torch.Tensor]] = [[], []]
    for model, values in zip(pair, seen, strict=True):
        module = model.model.layers[0].get_submodule(name)
        module.register_forward_hook(lambda _, inputs, output, values=values: values.extend([inputs[0], output]))
        with torch.no_grad():
            model(IDS)
    assert len(seen[0]) == len(seen[1]) == 2
    for a, b in zip(*seen, strict=True):
        assert max_error(a.reshape(b.shape) if a.numel() == b.numel() else a, b) < 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(pair, masked):
    ours, _ = pair
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    options = {"attention_mask": mask} if masked else {}
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS, **options).logits, ours(IDS, **options).logits, rtol=1e-4, atol=1e-4)


def test_what_is_returned_is_the_configs_choice_where_the_call_has_none(pair):
    pair[1].set_attn_implementation("eager")  # the only one that returns probabilities there
    for model in pair:
        model.config.output_attentions = model.config.output_hidden_states = True
    with torch.no_grad():
        ours, theirs = (model(IDS) for model in pair)
        assert list(ours) == list(theirs)
        assert max_error(torch.stack(ours.attentions), torch.stack(theirs.attentions)) < 1e-5
        assert max_error(torch.stack(ours.hidden_states), torch.stack(theirs.hidden_states)) < 1e-4
        assert pair[0](IDS, output_attentions=False, output_hidden_states=False).keys() == {"logits", "past_key_values"}
        tokens = pair[0].generate(IDS, max_new_tokens=4)
        pair[0].config.return_dict = False  # transformers' head fails on it
        assert torch.equal(pair[0](IDS)[0], ours.logits)
        assert pair[0](IDS, return_dict=True).logits.shape == theirs.logits.shape
        assert torch.equal(pair[0].generate(IDS, max_new_tokens=4), tokens)


def test_a_transformers_config_will_do(pair):
    model = PersimmonForCausalLM(transformers.PersimmonConfig(**SMALL))
    assert isinstance(model.config, persimmon_ext.PersimmonConfig)
    assert model.config.rope_parameters["rope_theta"] == 25000.0


def test_autocast_caches_go_on_without_it(pair):
    ours, theirs = pair
    with torch.no_grad():
        results = []
        for model in (ours, theirs):
            with torch.autocast("cpu", torch.bfloat16):
                cache = model(IDS[:, :6]).past_key_values
            results.append(model(IDS[:, 6:], past_key_values=cache).logits)
    assert results[0].dtype == torch.float32
    assert max_error(*results) < 0.05


def test_assigned_weights_keep_the_layout(pair):
    ours, theirs = pair
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert ours.model.layers[0].mlp.dense_4h_to_h.weight.stride() == (1, SMALL["hidden_size"])
    with torch.no_grad():
        assert max_error(ours(IDS).logits, theirs(IDS).logits) < 1e-4


WRONG_TYPES = {
    "tuple of keys and values": ("past_key_values", (torch.zeros(1),)),
    "mask in a dictionary": ("attention_mask", {}),
    "list of positions": ("position_ids", [0, 1]),
    "list of cache positions": ("cache_position", [0, 1]),
    "list of ids": ("input_ids", [[1, 2]]),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_wrong_types(pair, case):
    name, value = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=f"{name} must be"):
        pair[0](**{"input_ids": IDS, name: value})
