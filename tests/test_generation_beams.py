"""Beam search gives transformers' sequences, scores and beam indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from generation_cases import VOCAB, left_padded, model_pair, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from persimmon_ext.outputs import GenerateBeamOutput


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    beams=st.integers(2, 4),
    results=st.integers(1, 2),
    penalty=st.sampled_from([1.0, 0.0, 2.0, -1.0, 0.7]),
    early=st.sampled_from([True, False, "never"]),
    ends=st.lists(st.integers(3, VOCAB - 1), max_size=25),
    others=st.sampled_from([{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 4}]),
    most=st.integers(1, 12),
    pad=st.sampled_from([0, 1, None]),
    seed=st.integers(0, 99),
)
def test_any_combination(
    *,
    models: tuple[Any, Any],
    lengths: list[int],
    beams: int,
    results: int,
    penalty: float,
    early: Any,
    ends: list[int],
    others: dict[str, Any],
    most: int,
    pad: int | None,
    seed: int,
) -> None:
    ids, mask = left_padded(lengths, pad=0, seed=seed)
    options = {
        **{"attention_mask": mask, "num_beams": beams, "num_return_sequences": results, "length_penalty": penalty},
        **{"early_stopping": early, "eos_token_id": ends or None, "max_new_tokens": most, "pad_token_id": pad},
        **{"return_dict_in_generate": True, "output_scores": True, **others},
    }
    if "min_new_tokens" in others:
        options["min_new_tokens"] = min(4, most)
    expected, result = models[0].generate(ids, do_sample=False, **options), models[1].generate(ids, **options)
    assert isinstance(result, GenerateBeamOutput)
    assert torch.equal(result.sequences, expected.sequences)
    torch.testing.assert_close(result.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(result.beam_indices, expected.beam_indices.long())
    assert len(result.scores) == len(expected.scores)
    for mine, their in zip(result.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-3)


def test_fields_are_transformers(models: tuple[Any, Any]) -> None:
    options = {
        **{"num_beams": 3, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True},
        **{"output_logits": True, "output_attentions": True, "output_hidden_states": True},
    }
    result = models[1].generate(prompt(2), **options)
    expected = models[0].generate(prompt(2), do_sample=False, **options)
    assert list(result) == list(expected)
    for name in ("logits", "attentions", "hidden_states"):
        assert len(getattr(result, name)) == len(getattr(expected, name))
    assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()


@pytest.mark.parametrize("use_cache", [True, False])
def test_without_a_dictionary(models: tuple[Any, Any], use_cache: bool) -> None:
    expected = models[0].generate(prompt(3), do_sample=False, num_beams=3, max_new_tokens=9)
    assert torch.equal(models[1].generate(prompt(3), num_beams=3, max_new_tokens=9, use_cache=use_cache), expected)


def test_a_row_does_not_depend_on_its_neighbours(models: tuple[Any, Any]) -> None:
    ids, mask = left_padded([3, 7, 5])
    options = {"num_beams": 3, "max_new_tokens": 8, "eos_token_id": list(range(3, 30)), "pad_token_id": 1}
    batch = models[1].generate(ids, attention_mask=mask, **options)
    for row, length in enumerate([3, 7, 5]):
        alone = models[1].generate(ids[row : row + 1, -length:], **options)[0, length:]
        assert torch.equal(batch[row, 7 : 7 + len(alone)], alone)


def test_stopping_criteria(models: tuple[Any, Any]) -> None:
    def odd(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return ids[:, -1] % 7 == 0

    options = {"num_beams": 3, "max_new_tokens": 12, "pad_token_id": 1, "eos_token_id": 96}
    listed = transformers.StoppingCriteriaList([odd])
    expected = models[0].generate(prompt(2), do_sample=False, stopping_criteria=listed, **options)
    assert torch.equal(models[1].generate(prompt(2), stopping_criteria=listed, **options), expected)


def test_drawn_beams_follow_transformers_distribution() -> None:
    """The best of two beams of one token each, drawn without replacement, over many rows."""
    theirs, ours = model_pair(initializer_range=0.1, vocab_size=12, bos_token_id=None)
    rows = 6000
    ids = prompt(1, 3) % 12
    options = {"do_sample": True, "num_beams": 2, "max_new_tokens": 2, "temperature": 1.5, "top_k": 5}
    counts = []
    torch.manual_seed(0)
    for model, more in ((theirs, {}), (ours, {"seed": 4})):
        drawn = model.generate(ids.expand(rows, -1), **options, **more)[:, -2:]
        counts.append(torch.bincount(drawn[:, 0] * 12 + drawn[:, 1], minlength=144).double())
    # Two samples of one distribution: the difference of the counts over their sum is chi-square.
    total = counts[0] + counts[1]
    kept = total >= 10
    statistic = ((counts[0] - counts[1])[kept] ** 2 / total[kept]).sum()
    freedom = float(kept.sum() - 1)
    assert freedom > 8
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5
    again = ours.generate(ids.expand(4, -1), seed=4, **options)
    assert torch.equal(again, ours.generate(ids.expand(4, -1), seed=4, **options))
