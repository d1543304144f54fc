"""generate() continues from a cache, extends it in place, and leaves in it what transformers leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from generation_cases import left_padded, model_pair, prompt

from persimmon_ext.cache import DynamicCache, StaticCache


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair()


def test_content_is_transformers(models: tuple[Any, Any]) -> None:
    ids, mask = left_padded([3, 7])
    options = {"attention_mask": mask, "max_new_tokens": 5, "pad_token_id": 0, "return_dict_in_generate": True}
    expected = models[0].generate(ids, do_sample=False, **options).past_key_values
    result = models[1].generate(ids, **options).past_key_values
    assert result.get_seq_length() == expected.get_seq_length() == ids.shape[1] + 4
    is_token = torch.nn.functional.pad(mask, (0, 4), value=1).bool()
    for mine, their in zip(result.layers, expected.layers, strict=True):
        for name in ("keys", "values"):
            ours = getattr(mine, name).transpose(1, 2)[is_token]
            torch.testing.assert_close(ours, getattr(their, name).transpose(1, 2)[is_token], rtol=1e-4, atol=1e-4)


def test_continues_from_a_cache(models: tuple[Any, Any]) -> None:
    _, ours = models
    ids, mask = left_padded([3, 7])
    whole = ours.generate(ids, attention_mask=mask, max_new_tokens=12)
    begun = ours.generate(ids, attention_mask=mask, max_new_tokens=5, return_dict_in_generate=True)
    more = torch.nn.functional.pad(mask, (0, 5), value=1)
    continued = ours.generate(
        begun.sequences, attention_mask=more, past_key_values=begun.past_key_values, max_new_tokens=7
    )
    assert torch.equal(continued, whole)
    assert begun.past_key_values.get_seq_length() == whole.shape[1] - 1


def test_continues_from_a_cache_with_new_tokens_only(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids, mask = left_padded([5, 9])
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
    cache = DynamicCache(ours.config)
    with torch.no_grad():
        ours(ids[:, :6], attention_mask=mask[:, :6], past_key_values=cache, use_cache=True)
    result = ours.generate(ids[:, 6:], attention_mask=mask, past_key_values=cache, max_new_tokens=6)
    assert torch.equal(result, expected[:, 6:])


def fail_at_8(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    if ids.shape[1] == 8:
        raise RuntimeError("stopped")
    return scores


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_a_cache_of_transformers_does_too(models: tuple[Any, Any], settings: dict[str, Any]) -> None:
    theirs, ours = models
    expected = ours.generate(prompt(), max_new_tokens=30, **settings)
    cache = transformers.DynamicCache()
    assert torch.equal(ours.generate(prompt(), past_key_values=cache, max_new_tokens=30, **settings), expected)
    assert cache.get_seq_length() == (0 if "num_beams" in settings else expected.shape[1] - 1)
    for held in (0, 4):
        cache = transformers.DynamicCache()
        if held:
            with torch.no_grad():
                theirs(prompt()[:, :held], past_key_values=cache)
        with pytest.raises(RuntimeError, match="stopped"):
            ours.generate(prompt(), past_key_values=cache, max_new_tokens=9, logits_processor=[fail_at_8])
        assert cache.get_seq_length() == held


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(
    "settings", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True, "seed": 4}], ids=str
)
@pytest.mark.parametrize("kind", ["dynamic", "int8", "transformers"])
def test_copies_leave_a_given_cache_as_it_is(models: tuple[Any, Any], rows: int, settings: dict[str, Any], kind: str):
    _, ours = models
    ids = prompt(rows)
    cache = transformers.DynamicCache() if kind == "transformers" else ours.make_cache(rows, 20, kind)
    # A caller may have run the prefix with gradients; layers of transformers can't be copied with them.
    with torch.set_grad_enabled(kind == "dynamic"):
        ours(ids[:, :4], past_key_values=cache)
    before = [layer.keys.clone() for layer in cache.layers]
    options = {"max_new_tokens": 9, **settings}
    with pytest.raises(RuntimeError, match="stopped"):
        ours.generate(ids, past_key_values=cache, logits_processor=[fail_at_8], **options)
    result = ours.generate(ids, past_key_values=cache, return_dict_in_generate=True, **options)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
    assert len(result.past_key_values.layers[0].keys) == 3 * rows
    if kind != "int8":
        assert torch.equal(result.sequences, ours.generate(ids, **options))


def test_static_cache_is_used_in_place(models: tuple[Any, Any]) -> None:
    _, ours = models
    cache = StaticCache(ours.config, max_cache_len=prompt().shape[1] + 9)
    result = ours.generate(prompt(), max_new_tokens=10, past_key_values=cache, return_dict_in_generate=True)
    assert result.past_key_values is cache
    assert torch.equal(result.sequences, ours.generate(prompt(), max_new_tokens=10))


@pytest.mark.parametrize("held", [0, 4])
def test_an_error_leaves_transformers_static_cache_usable(models: tuple[Any, Any], held: int) -> None:
    theirs, ours = models
    cache = transformers.StaticCache(config=theirs.config, max_cache_len=40)
    if held:
        with torch.no_grad():
            theirs(prompt()[:, :held], past_key_values=cache, use_cache=True)
    with pytest.raises(RuntimeError, match="stopped"):
        ours.generate(prompt(), past_key_values=cache, max_new_tokens=8, logits_processor=[fail_at_8])
    assert int(cache.get_seq_length()) == held
    expected = ours.generate(prompt(), max_new_tokens=8)
    assert torch.equal(ours.generate(prompt(), past_key_values=cache, max_new_tokens=8), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_chunks_record_what_the_whole_prompt_does(models: tuple[Any, Any], padded: bool) -> None:
    ids, mask = left_padded([11, 7 if padded else 11])
    options = {"attention_mask": mask, "max_new_tokens": 3, "pad_token_id": 0, "return_dict_in_generate": True}
    options |= {"output_attentions": True, "output_hidden_states": True}
    whole = models[1].generate(ids, **options)
    result = models[1].generate(ids, prefill_chunk_size=4, **options)
    assert torch.equal(result.sequences, whole.sequences)
    for name, tokens in (("attentions", 2), ("hidden_states", 1)):
        for step, (mine, theirs) in enumerate(zip(getattr(result, name), getattr(whole, name), strict=True)):
            is_token = mask.bool() if step == 0 else torch.ones(2, 1, dtype=torch.bool)
            for a, b in zip(mine, theirs, strict=True):
                found, expected = (t.movedim(tokens, 1)[is_token] for t in (a, b))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
