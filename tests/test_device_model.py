"""The whole model on every device there is, in 16 bits with the kernels' head dim of 64: logits, cache, gradients and
generated tokens against transformers with the same weights on the same device."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_accurate, exact_twin, model_pair, random_ids
from test_device_ops import DEVICES, DTYPES

import persimmon_ext

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
    expected = model.generate(prompt, max_new_tokens=24)
    assert torch.equal(model.to(device).generate(prompt.to(device), max_new_tokens=24).cpu(), expected)
