"""The whole model on every device there is, in 16 bits with the kernels' head dim of 64: logits, cache, gradients and
generated tokens against transformers with the same weights on the same device."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_accurate, exact_twin, model_pair, random_ids
from test_device_ops import DEVICES, DTYPES

import persimmon_ext
from persimmon_ext import ops

HEADS_OF_64 = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}


def pair_on(device: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    ours, theirs = model_pair(dtype=dtype, **HEADS_OF_64)
    return ours.to(device), theirs.to(device)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_prefill_and_decode(device: str, dtype: torch.dtype) -> None:
    ours, theirs = pair_on(device, dtype)
    exact = exact_twin(theirs)
    ids = random_ids(2, 70).to(device)
    caches = [None, None, None]
    for part in (ids[:, :65], *ids[:, 65:].split(1, dim=1)):
        outputs = [
            m(part, past_key_values=c, use_cache=True) for m, c in zip((ours, theirs, exact), caches, strict=True)
        ]
        assert_accurate(*(output.logits for output in outputs), factor=3.0)
        caches = [output.past_key_values for output in outputs]


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("device", DEVICES)
def test_int8_cache(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode steps run the kernel over the codes, and stay as near to exact logits as a cache of that error can."""
    calls = []
    kernel = ops.decode_attention_int8_
    monkeypatch.setattr(ops, "decode_attention_int8_", lambda *a, **b: calls.append(1) or kernel(*a, **b))
    ours, theirs = pair_on(device, dtype)
    exact = exact_twin(theirs)
    ids = random_ids(2, 70).to(device)
    cache, past = persimmon_ext.Int8Cache(ours.config), None
    for part in (ids[:, :60], ids[:, 60:65], *ids[:, 65:].split(1, dim=1)):
        found = ours(part, past_key_values=cache, use_cache=True).logits.double()
        output = exact(part, past_key_values=past, use_cache=True)
        past = output.past_key_values
        assert (found - output.logits).norm() <= 0.03 * output.logits.norm()
    assert len(calls) == 6 * ours.config.num_hidden_layers
    for mine, keys in zip((layer.keys for layer in cache.layers), (layer.keys for layer in past.layers), strict=True):
        assert (mine.double() - keys).norm() <= 0.03 * keys.norm()


@pytest.mark.parametrize("device", DEVICES)
def test_gradients(device: str) -> None:
    models = [*pair_on(device, torch.bfloat16)]
    models.append(exact_twin(models[1]))
    ids = random_ids(2, 33).to(device)
    losses = [model(ids, labels=ids).loss for model in models]
    for loss in losses:
        loss.backward()
    ours, theirs, exact = (loss.item() for loss in losses)
    assert abs(ours - exact) <= 2 * abs(theirs - exact) + 1e-3
    for (name, a), (_, b), (_, c) in zip(*(model.named_parameters() for model in models), strict=True):
        assert_accurate(a.grad, b.grad, c.grad, factor=3.0, name=name)


@pytest.mark.parametrize("device", DEVICES)
def test_generate(device: str) -> None:
    """The embedded model, greedily and in float32: the device's kernels choose the CPU's tokens."""
    model = persimmon_ext.PersimmonForCausalLM.from_pretrained(persimmon_ext.embedded_checkpoint()).float()
    prompt = random_ids(2, 9, V=model.config.vocab_size)
    for implementation in ("static", "int8"):
        options = {"max_new_tokens": 24, "cache_implementation": implementation}
        expected = model.to("cpu").generate(prompt, **options)
        assert torch.equal(model.to(device).generate(prompt.to(device), **options).cpu(), expected)
