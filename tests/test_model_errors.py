"""Bad input to the models: each case is an exception whose message is a sentence with the offending value."""

from __future__ import annotations

import pytest
import torch
from helpers import SMALL, model_pair, random_ids

import persimmon_ext
from persimmon_ext import DynamicCache, PersimmonConfig, PersimmonForCausalLM, StaticCache

IDS = random_ids(2, 5)
C, V = SMALL["hidden_size"], SMALL["vocab_size"]


@pytest.fixture(scope="module")
def model():
    return model_pair()[0]


def filled(model, cache):
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    return cache


CASES = {
    "neither ids nor embeddings": (ValueError, "exactly one", lambda m: m()),
    "ids and embeddings": (ValueError, "exactly one", lambda m: m(IDS, inputs_embeds=torch.zeros(2, 5, C))),
    "1-D ids": (ValueError, "[5]", lambda m: m(IDS[0])),
    "no tokens": (ValueError, "[2, 0]", lambda m: m(IDS[:, :0])),
    "float ids": (ValueError, "float32", lambda m: m(IDS.float())),
    "id beyond the vocabulary": (IndexError, str(V), lambda m: m(torch.tensor([[1, V]]))),
    "negative id": (IndexError, "-1", lambda m: m(torch.tensor([[1, -1]]))),
    "embeddings of another width": (ValueError, "[2, 5, 7]", lambda m: m(inputs_embeds=torch.zeros(2, 5, 7))),
    "mask of another length": (ValueError, "[2, 4]", lambda m: m(IDS, attention_mask=torch.ones(2, 4))),
    "mask of another batch": (ValueError, "[3, 5]", lambda m: m(IDS, attention_mask=torch.ones(3, 5))),
    "mask with a 2": (ValueError, "2", lambda m: m(IDS, attention_mask=torch.full((2, 5), 2))),
    "mask with a NaN": (ValueError, "nan", lambda m: m(IDS, attention_mask=torch.full((2, 5), float("nan")))),
    "3-D mask": (ValueError, "[2, 5, 5]", lambda m: m(IDS, attention_mask=torch.ones(2, 5, 5))),
    "4-D mask of another shape": (
        ValueError,
        "[2, 1, 5, 4]",
        lambda m: m(IDS, attention_mask=torch.zeros(2, 1, 5, 4)),
    ),
    "4-D integer mask": (ValueError, "int64", lambda m: m(IDS, attention_mask=torch.zeros(2, 1, 5, 5).long())),
    "mask without the cached tokens": (
        ValueError,
        "[2, 10]",
        lambda m: m(IDS, attention_mask=torch.ones(2, 5), past_key_values=filled(m, DynamicCache())),
    ),
    "positions of another shape": (ValueError, "[2, 3]", lambda m: m(IDS, position_ids=torch.zeros(2, 3).long())),
    "float positions": (ValueError, "float32", lambda m: m(IDS, position_ids=torch.zeros(2, 5))),
    "cache positions with a gap": (
        ValueError,
        "[0, 2, 3, 4, 5]",
        lambda m: m(IDS, cache_position=torch.tensor([0, 2, 3, 4, 5]), past_key_values=DynamicCache()),
    ),
    "cache positions beyond the cache": (
        ValueError,
        "3",
        lambda m: m(IDS, cache_position=torch.arange(3, 8), past_key_values=DynamicCache()),
    ),
    "static cache too short": (ValueError, "4", lambda m: m(IDS, past_key_values=StaticCache(m.config, 4))),
    "cache of another batch": (
        ValueError,
        "batch",
        lambda m: m(IDS[:1], past_key_values=filled(m, DynamicCache())),
    ),
    "cache of another dtype": (
        ValueError,
        "bfloat16",
        lambda m: m(IDS, past_key_values=StaticCache(m.config, 9, max_batch_size=2, dtype=torch.bfloat16)),
    ),
    "labels of another shape": (ValueError, "[2, 4]", lambda m: m(IDS, labels=IDS[:, :4])),
    "label beyond the vocabulary": (
        IndexError,
        str(V),
        lambda m: m(IDS, labels=torch.full((2, 5), V), skip_logits=True),
    ),
    "negative logits_to_keep": (ValueError, "-1", lambda m: m(IDS, logits_to_keep=-1)),
    "2-D logits_to_keep": (ValueError, "[1, 1]", lambda m: m(IDS, logits_to_keep=torch.zeros(1, 1).long())),
    "skip_logits without labels": (ValueError, "labels", lambda m: m(IDS, skip_logits=True)),
    "unknown argument": (TypeError, "attention_masks", lambda m: m(IDS, attention_masks=torch.ones(2, 5))),
    "dtype and torch_dtype": (
        ValueError,
        "same argument",
        lambda m: PersimmonForCausalLM.from_pretrained("x", dtype="float32", torch_dtype="bfloat16"),
    ),
    "unknown hidden_act": (
        ValueError,
        "swiglu",
        lambda m: PersimmonForCausalLM(PersimmonConfig(**{**SMALL, "hidden_act": "swiglu"})),
    ),
    "config changed into nonsense": (
        ValueError,
        "hidden_size",
        lambda m: PersimmonForCausalLM(changed(PersimmonConfig(**SMALL), hidden_size=-4)),
    ),
}


def changed(config, **values):
    for name, value in values.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", CASES)
def test_bad_input(case, grad, model):
    kind, named, call = CASES[case]
    with torch.set_grad_enabled(grad), pytest.raises(kind) as caught:
        call(model)
    message = str(caught.value).splitlines()[0]
    assert named in message, message


def test_cache_survives_a_failed_call(model):
    cache = StaticCache(model.config, 8)
    filled(model, cache)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    with pytest.raises(ValueError, match="8"), torch.no_grad():
        model(IDS, past_key_values=cache)
    assert cache.get_seq_length() == 5
    for layer, (keys, values) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


def test_sequence_batch_without_a_padding_token():
    model = persimmon_ext.PersimmonForSequenceClassification(PersimmonConfig(**{**SMALL, "pad_token_id": None}))
    with pytest.raises(ValueError, match="batch of 2"):
        model(IDS)
    assert model(IDS[:1]).logits.shape == (1, 2)
