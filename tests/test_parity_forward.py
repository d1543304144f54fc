"""Logits, hidden states, attentions and cache equal transformers' over random configurations."""

from __future__ import annotations

import pytest
import torch
import transformers
from helpers import DTYPES, assert_accurate, exact_twin, float64_mask, max_error, model_pair, random_ids
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import persimmon_ext

HIDDEN_ACTS = ("relu2", "gelu", "gelu_new", "silu", "relu", "tanh", "quick_gelu", "leaky_relu", "mish")

configurations = st.fixed_dictionaries(
    {
        "num_attention_heads": st.sampled_from([1, 2, 3]),
        "head_dim": st.sampled_from([8, 16, 32, 64, 80]),
        "intermediate_size": st.sampled_from([1, 31, 128]),
        "num_hidden_layers": st.integers(1, 3),
        "vocab_size": st.sampled_from([97, 128]),
        "qk_layernorm": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "hidden_act": st.sampled_from(HIDDEN_ACTS),
        "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
        "layer_norm_eps": st.sampled_from([1e-5, 1e-3]),
    }
)


def pair_for(configuration: dict, dtype: torch.dtype = torch.float32, seed: int = 0):
    settings = dict(configuration)
    heads, dim = settings["num_attention_heads"], settings.pop("head_dim")
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": settings.pop("partial_rotary_factor")}
    return model_pair(dtype=dtype, seed=seed, hidden_size=heads * dim, rope_parameters=rope, **settings)


def check_all_outputs(ours, theirs, ids, mask=None, rows=None) -> None:
    """Compares everything a forward call returns, against transformers in float64. `rows`: bool [B, T] to compare."""
    options = {"attention_mask": mask, "output_hidden_states": True, "output_attentions": True}
    eager = theirs(ids, **options)
    exact = exact_twin(theirs)(ids, **{**options, "attention_mask": float64_mask(mask, ids.shape[1])})
    with_attentions = ours(ids, **options)
    options["output_attentions"] = False
    with torch.no_grad():
        fused = ours(ids, **options)
    differentiable = ours(ids, **options)
    rows = torch.ones_like(ids, dtype=torch.bool) if rows is None else rows
    for kind, mine in {"explicit": with_attentions, "in place": fused, "differentiable": differentiable}.items():
        assert_accurate(mine.logits[rows], eager.logits[rows], exact.logits[rows], name=f"{kind} logits")
        assert len(mine.hidden_states) == len(eager.hidden_states)
        for i, (a, b, c) in enumerate(zip(mine.hidden_states, eager.hidden_states, exact.hidden_states, strict=True)):
            assert_accurate(a[rows], b[rows], c[rows], name=f"{kind} hidden state {i}")
        for layer, theirs_layer, exact_layer in zip(
            mine.past_key_values.layers, eager.past_key_values.layers, exact.past_key_values.layers, strict=True
        ):
            for part in ("keys", "values"):
                a, b, c = (getattr(x, part).transpose(1, 2)[rows] for x in (layer, theirs_layer, exact_layer))
                assert_accurate(a, b, c, name=f"{kind} cached {part}")
    for i, (a, b, c) in enumerate(zip(with_attentions.attentions, eager.attentions, exact.attentions, strict=True)):
        assert_accurate(*(x.transpose(1, 2)[rows] for x in (a, b, c)), name=f"attention {i}")


@hypothesis_settings(max_examples=25)
@given(configurations, st.integers(1, 3), st.integers(1, 40))
def test_random_configurations_float32(configuration, B, T):
    ours, theirs = pair_for(configuration, seed=T)
    check_all_outputs(ours, theirs, random_ids(B, T, V=configuration["vocab_size"], seed=B))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("T", [1, 8, 9, 33])
def test_every_dtype(dtype, T):
    ours, theirs = model_pair(dtype=dtype)
    check_all_outputs(ours, theirs, random_ids(2, T))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
def test_padding_masks(dtype, side, kind):
    ours, theirs = model_pair(dtype=dtype)
    ids, mask = random_ids(3, 13), torch.ones(3, 13)
    for row, padding in enumerate([0, 4, 12]):
        mask[row, slice(0, padding) if side == "left" else slice(13 - padding, 13)] = 0
    # Rows that see no key are garbage in both libraries: a left-padded position's output is not compared.
    rows = mask.bool() if side == "left" else torch.ones_like(mask, dtype=torch.bool)
    check_all_outputs(ours, theirs, ids, mask.to(kind), rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_left_padded_positions_too(dtype):
    """Against transformers' default attention every position agrees, also those that see no key."""
    ours, theirs = model_pair(dtype=dtype, attention="sdpa")
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :4] = 0
    exact, eager = (m(ids, attention_mask=mask).logits for m in (exact_twin(theirs), theirs))
    with torch.no_grad():
        assert_accurate(ours(ids, attention_mask=mask).logits, eager, exact, name="in place")
    assert_accurate(ours(ids, attention_mask=mask).logits, eager, exact, name="differentiable")


def test_mask_with_holes():
    ours, theirs = model_pair()
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, 3] = mask[1, 5] = mask[1, 6] = 0
    check_all_outputs(ours, theirs, random_ids(2, 9), mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_4d_additive_mask(dtype):
    ours, theirs = model_pair(dtype=dtype)
    visible = torch.rand(2, 1, 7, 7) > 0.4
    visible |= torch.eye(7, dtype=torch.bool)  # not causal on purpose, and every query sees one key
    mask = torch.zeros(2, 1, 7, 7, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    ids = random_ids(2, 7)
    exact = exact_twin(theirs)(ids, attention_mask=mask.double())
    eager = theirs(ids, attention_mask=mask)
    assert_accurate(ours(ids, attention_mask=mask).logits, eager.logits, exact.logits)
    assert_accurate(ours(ids, attention_mask=visible).logits, eager.logits, exact.logits, name="boolean")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunks", [[1] * 6, [5, 1, 1], [3, 9, 2], [12, 8, 1], [20, 17, 1]])
@pytest.mark.parametrize("cache", ["dynamic", "static", "transformers"])
def test_cached_steps(dtype, chunks, cache):
    """Feeding tokens in pieces, through any cache, equals transformers doing the same."""
    ours, theirs = model_pair(dtype=dtype)
    exact = exact_twin(theirs)
    ids = random_ids(2, sum(chunks))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    make = {
        "dynamic": persimmon_ext.DynamicCache,
        "static": lambda: persimmon_ext.StaticCache(ours.config, max_cache_len=len(ids[0]) + 3),
        "transformers": transformers.DynamicCache,
    }[cache]
    mine, eager_cache, exact_cache = make(), None, None
    done = 0
    with torch.no_grad():
        for T in chunks:
            piece, seen = ids[:, done : done + T], mask[:, : done + T]
            a = ours(piece, attention_mask=seen, past_key_values=mine)
            b = theirs(piece, attention_mask=seen, past_key_values=eager_cache)
            c = exact(piece, attention_mask=float64_mask(seen, T), past_key_values=exact_cache)
            eager_cache, exact_cache = b.past_key_values, c.past_key_values
            real = mask[:, done : done + T].bool()
            assert_accurate(a.logits[real], b.logits[real], c.logits[real], factor=3.0, name=f"after {done}")
            done += T
    assert a.past_key_values is mine
    assert mine.get_seq_length() == done


def test_position_ids_and_embeddings():
    ours, theirs = model_pair()
    ids = random_ids(2, 6)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [7, 8, 9, 20, 21, 22]])
    a, b = ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits
    assert max_error(a, b) < 1e-4
    embeds = ours.get_input_embeddings()(ids)
    torch.testing.assert_close(ours(inputs_embeds=embeds, position_ids=positions).logits, a)


def test_logits_to_keep():
    ours, theirs = model_pair()
    ids = random_ids(2, 6)
    full = ours(ids).logits
    torch.testing.assert_close(ours(ids, logits_to_keep=2).logits, full[:, -2:])
    index = torch.tensor([0, 3])
    torch.testing.assert_close(ours(ids, logits_to_keep=index).logits, full[:, index])
    assert max_error(ours(ids, logits_to_keep=index).logits, theirs(ids, logits_to_keep=index).logits) < 1e-4


def test_cache_position_rewinds():
    ours, _ = model_pair()
    ids = random_ids(2, 8)
    with torch.no_grad():
        full = ours(ids).logits
        for cache in (persimmon_ext.DynamicCache(), persimmon_ext.StaticCache(ours.config, 16)):
            ours(random_ids(2, 8, seed=5), past_key_values=cache)
            ours(ids[:, :3], past_key_values=cache, cache_position=torch.arange(3))
            again = ours(ids[:, 3:], past_key_values=cache, cache_position=torch.arange(3, 8))
            torch.testing.assert_close(again.logits, full[:, 3:], rtol=1e-4, atol=1e-4)


def test_outputs_unpack_as_transformers():
    ours, theirs = model_pair()
    ids = random_ids(1, 4)
    mine, other = ours(ids, labels=ids), theirs(ids, labels=ids)
    assert list(mine.keys()) == list(other.keys())
    assert torch.equal(mine[0], mine.loss)
    assert torch.equal(mine["logits"], mine.logits)
    loss, logits, *_ = ours(ids, labels=ids, return_dict=False)
    assert torch.equal(loss, mine.loss)
    assert torch.equal(logits, mine.logits)
    assert ours(ids, use_cache=False).past_key_values is None
