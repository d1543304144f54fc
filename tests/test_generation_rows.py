"""A row's tokens don't depend on its neighbours, and the plan of kernel calls gives what the modules give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import left_padded, model_pair, prompt

from persimmon_ext import DynamicCache
from persimmon_ext.decode_plan import DecodePlan

LENGTHS = [3, 17, 1, 9]


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


def logits_of(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens [B, 12] and the logits [B, 12, V] that they were chosen by."""
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 12, "pad_token_id": 0}
    result = model.generate(ids, attention_mask=mask, **options)
    return result.sequences[:, -12:], torch.stack(result.logits, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    """Equal tokens; equal logits up to the order of sums.

    Not bit for bit: the products, ours and torch's, split their sums by the number of rows and tokens of a call.
    """
    model = model_pair()[1].to(dtype)
    ids, mask = left_padded(LENGTHS)
    tokens, logits = logits_of(model, ids, mask)
    for row, length in enumerate(LENGTHS):
        alone, alone_logits = logits_of(model, ids[row : row + 1, -length:])
        if dtype == torch.float32:
            assert torch.equal(alone[0], tokens[row])
        same = int((alone[0] == tokens[row]).cumprod(0).sum())  # in 16 bits the rounding of a prompt may tip a choice
        limit = torch.finfo(dtype).eps * float(logits.abs().max()) * 8
        assert (alone_logits[0, : same or 1] - logits[row, : same or 1]).abs().max() <= limit


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_the_plan_is_the_model(quantization: str | None, tokens: int, padded: bool, rope: str) -> None:
    parameters = {"rope_type": rope, "rope_theta": 25000.0, "partial_rotary_factor": 0.5}
    if rope == "dynamic":
        parameters["factor"] = 2.0
    fields = {"rope_parameters": parameters, "intermediate_size": 128, "max_position_embeddings": 12}
    _, model = model_pair(vocab_size=192, **fields)
    if quantization:
        model.quantize(quantization)
    ids, mask = left_padded([9, 4])
    mask = torch.nn.functional.pad(mask, (0, tokens), value=1)
    new = prompt(2, tokens, seed=3)
    with torch.no_grad():
        caches = [DynamicCache(model.config), DynamicCache(model.config)]
        for cache in caches:
            model(ids, attention_mask=mask[:, :9] if padded else None, past_key_values=cache, use_cache=True)
        positions = (torch.arange(9, 9 + tokens) - (mask == 0).sum(1, keepdim=True)).clamp(min=0)
        options = {"attention_mask": mask, "position_ids": positions} if padded else {}
        expected = model(new, past_key_values=caches[0], **options).logits
        assert DecodePlan.fits(model)
        found = DecodePlan(model, 10)(new, 9, torch.tensor([0, 5]) if padded else None, caches[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert caches[1].get_seq_length() == caches[0].get_seq_length() == 9 + tokens


def test_where_a_plan_does_not_fit(model: Any) -> None:
    assert DecodePlan.fits(model)
    handle = model.model.layers[1].mlp.dense_h_to_4h.register_forward_hook(lambda *_: None)
    assert not DecodePlan.fits(model)
    handle.remove()
    assert not DecodePlan.fits(model_pair(hidden_act="gelu")[1])
    training = model_pair(attention_dropout=0.5)[1]
    assert DecodePlan.fits(training)
    assert not DecodePlan.fits(training.train())
    with torch.autocast("cpu", torch.bfloat16):
        assert not DecodePlan.fits(model)

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    other = model_pair()[1]
    other.model.layers[0].self_attn.dense.__class__ = Doubled
    assert not DecodePlan.fits(other)


def test_a_replaced_module_counts(model: Any) -> None:
    """What a plan would leave out is in the result."""
    other = model_pair()[1]
    seen: list[int] = []
    other.model.layers[0].mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[1]))
    assert torch.equal(other.generate(prompt(), max_new_tokens=4), model.generate(prompt(), max_new_tokens=4))
    assert seen == [6, 1, 1, 1]


def test_an_error_midway_leaves_the_cache_as_it_was(model: Any) -> None:
    ids = prompt(1, 5)
    begun = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True)

    def fail(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == 11:
            raise KeyboardInterrupt
        return scores

    cache = begun.past_key_values
    with pytest.raises(KeyboardInterrupt):
        model.generate(begun.sequences, past_key_values=cache, max_new_tokens=9, logits_processor=[fail])
    assert cache.get_seq_length() == 7
    continued = model.generate(begun.sequences, past_key_values=cache, max_new_tokens=5)
    assert torch.equal(continued, model.generate(ids, max_new_tokens=8))


def test_results_can_be_trained_on(model: Any) -> None:
    """Nothing that generate returns is an inference tensor."""
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    for more in ({}, {"do_sample": True}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        result = model.generate(prompt(), max_new_tokens=3, **options, **more)
        tensors = [result.sequences, *result.scores, *result.logits, result.past_key_values.layers[0].keys]
        assert not any(tensor.is_inference() for tensor in tensors)
