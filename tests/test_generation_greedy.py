"""Greedy generate() gives transformers' tokens and scores, whatever the lengths, ends, padding and penalties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import VOCAB, left_padded, model_pair, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from persimmon_ext import generation
from persimmon_ext.outputs import GenerateOutput


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair()


def token_at(models: tuple[Any, Any], ids: torch.Tensor, place: int, row: int = 0) -> int:
    """The token that greedy search puts at `place` of the new ones: a good end token for a test."""
    return int(models[0].generate(ids, max_new_tokens=place + 1, do_sample=False)[row, -1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layers", [1, 3])
def test_tokens_are_transformers(seed: int, layers: int) -> None:
    theirs, ours = model_pair(seed, num_hidden_layers=layers)
    ids = prompt(2, 5 + seed, seed)
    expected = theirs.generate(ids, max_new_tokens=24, do_sample=False)
    assert len(expected[:, -24:].unique()) > 4, "a test on a constant sequence shows nothing"
    assert torch.equal(ours.generate(ids, max_new_tokens=24), expected)


@pytest.mark.parametrize("options", [{"max_length": 15}, {"max_new_tokens": 1}, {"max_new_tokens": 30}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_lengths(models: tuple[Any, Any], options: dict[str, int], use_cache: bool) -> None:
    theirs, ours = models
    expected = theirs.generate(prompt(), do_sample=False, use_cache=use_cache, **options)
    assert torch.equal(ours.generate(prompt(), use_cache=use_cache, **options), expected)


def test_default_length_is_twenty_new_tokens_with_a_warning(models: tuple[Any, Any]) -> None:
    with pytest.warns(UserWarning, match="Neither max_new_tokens nor max_length"):
        result = models[1].generate(prompt(1, 4))
    assert result.shape == (1, 24)
    assert torch.equal(result, models[0].generate(prompt(1, 4)))


def test_default_length_stops_at_the_models_positions() -> None:
    _, ours = model_pair(max_position_embeddings=10)
    with pytest.warns(UserWarning, match="Neither"):
        assert ours.generate(prompt(1, 4)).shape == (1, 10)


def test_max_new_tokens_wins_over_max_length(models: tuple[Any, Any]) -> None:
    with pytest.warns(UserWarning, match="max_new_tokens=3 wins over max_length=50"):
        assert models[1].generate(prompt(1, 4), max_new_tokens=3, max_length=50).shape == (1, 7)


def test_past_the_models_positions_is_a_warning() -> None:
    theirs, ours = model_pair(max_position_embeddings=8)
    with pytest.warns(UserWarning, match="12 tokens and the model was made for 8"):
        result = ours.generate(prompt(), max_new_tokens=6)
    assert torch.equal(result, theirs.generate(prompt(), max_new_tokens=6, do_sample=False))


def test_rows_end_by_themselves_and_are_padded(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids = prompt(4)
    ends = [token_at(models, ids, 2, row=0), token_at(models, ids, 5, row=1)]
    for options in (
        {"eos_token_id": ends},
        {"eos_token_id": ends[0]},
        {"eos_token_id": ends, "pad_token_id": 0},
        {"eos_token_id": ends, "min_new_tokens": 4},
        {"eos_token_id": ends, "min_length": 10},
        {"eos_token_id": -1, "pad_token_id": 0},
        {"eos_token_id": None},
    ):
        expected = theirs.generate(ids, max_new_tokens=12, do_sample=False, **options)
        result = ours.generate(ids, max_new_tokens=12, **options)
        assert torch.equal(result, expected), options
        assert result.is_contiguous()


def test_stops_once_all_rows_have_ended(models: tuple[Any, Any]) -> None:
    end = token_at(models, prompt(), 3)
    result = models[1].generate(prompt(), max_new_tokens=50, eos_token_id=end)
    assert result.shape[1] <= prompt().shape[1] + 4
    assert result[0, -1] == end


def test_ends_may_be_tensors(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    end = token_at(models, prompt(), 3)
    for ends in (torch.tensor(end), torch.tensor([end, 5])):
        options = {"max_new_tokens": 9, "eos_token_id": ends, "pad_token_id": torch.tensor(0)}
        assert torch.equal(ours.generate(prompt(3), **options), theirs.generate(prompt(3), do_sample=False, **options))


def test_ends_come_from_the_config() -> None:
    theirs, ours = model_pair()
    end = token_at((theirs, ours), prompt(), 3)
    theirs, ours = model_pair(eos_token_id=end, pad_token_id=0)
    expected = theirs.generate(prompt(3), max_new_tokens=9, do_sample=False)
    assert torch.equal(ours.generate(prompt(3), max_new_tokens=9), expected)
    assert ours.generate(prompt(), max_new_tokens=9, eos_token_id=None).shape[1] == prompt().shape[1] + 9


@pytest.mark.parametrize("lengths", [[3, 7, 1], [1, 1, 6], [4, 9]])
@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padding(models: tuple[Any, Any], lengths: list[int], use_cache: bool) -> None:
    theirs, ours = models
    ids, mask = left_padded(lengths)
    options = {"max_new_tokens": 12, "use_cache": use_cache, "pad_token_id": 0}
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, **options)
    assert torch.equal(ours.generate(ids, attention_mask=mask, **options), expected)
    assert torch.equal(ours.generate(ids, attention_mask=mask.bool(), **options), expected)
    assert torch.equal(ours.generate(ids, **options), expected), "the mask follows from pad_token_id"
    for row, length in enumerate(lengths):
        alone = ours.generate(ids[row : row + 1, -length:], max_new_tokens=12)
        assert torch.equal(alone[0, -12:], expected[row, -12:])


def test_padding_that_also_ends_is_text_unless_masked(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids, _ = left_padded([3, 5], pad=2)
    options = {"max_new_tokens": 6, "eos_token_id": 2, "pad_token_id": 2}
    with pytest.warns(UserWarning, match="begins with token 2"):
        result = ours.generate(ids, **options)
    assert torch.equal(result, theirs.generate(ids, do_sample=False, **options))


@pytest.mark.parametrize("penalty", [1.3, 0.8, 2])
def test_repetition_penalty(models: tuple[Any, Any], penalty: float) -> None:
    theirs, ours = models
    ids, mask = left_padded([3, 7, 1], pad=5)
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=16, repetition_penalty=float(penalty), do_sample=False, pad_token_id=5
    )
    result = ours.generate(ids, attention_mask=mask, max_new_tokens=16, repetition_penalty=penalty, pad_token_id=5)
    assert torch.equal(result, expected)
    assert not torch.equal(result, ours.generate(ids, attention_mask=mask, max_new_tokens=16, pad_token_id=5))


def test_scores_and_logits_are_transformers(models: tuple[Any, Any]) -> None:
    theirs, ours = models
    ids, mask = left_padded([3, 7])
    options = {
        **{
            "attention_mask": mask,
            "max_new_tokens": 5,
            "repetition_penalty": 1.2,
            "eos_token_id": 7,
            "pad_token_id": 0,
        },
        **{"min_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    }
    expected, result = theirs.generate(ids, do_sample=False, **options), ours.generate(ids, **options)
    assert isinstance(result, GenerateOutput)
    assert torch.equal(result.sequences, expected.sequences)
    assert len(result.scores) == len(result.logits) == len(expected.scores)
    for mine, their in zip(result.scores + result.logits, expected.scores + expected.logits, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)
    assert result.past_key_values.get_seq_length() == expected.past_key_values.get_seq_length()
    assert list(result) == ["sequences", "scores", "logits", "past_key_values"]


def test_scores_without_a_dictionary_are_a_warning(models: tuple[Any, Any]) -> None:
    with pytest.warns(UserWarning, match="return_dict_in_generate"):
        result = models[1].generate(prompt(), max_new_tokens=1, output_scores=True)
    assert isinstance(result, torch.Tensor)


def test_without_a_prompt_starts_from_bos(models: tuple[Any, Any]) -> None:
    assert torch.equal(models[1].generate(max_new_tokens=4), models[1].generate(torch.tensor([[1]]), max_new_tokens=4))


def test_prefill_computes_only_the_last_logits(models: tuple[Any, Any]) -> None:
    _, ours = models
    shapes = []
    handle = ours.lm_head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    ours.generate(prompt(2, 9), max_new_tokens=3)
    handle.remove()
    assert shapes == [(2, 1, VOCAB)] * 3


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    ends=st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=30),
    penalty=st.sampled_from([1.0, 1.4]),
    least=st.integers(0, 8),
    most=st.integers(1, 14),
)
def test_any_combination_gives_transformers_tokens(
    *, models: tuple[Any, Any], lengths: list[int], seed: int, ends: list[int], penalty: float, least: int, most: int
) -> None:
    theirs, ours = models
    ids, mask = left_padded(lengths, seed=seed)
    options = {
        **{"attention_mask": mask, "eos_token_id": ends, "pad_token_id": 0, "repetition_penalty": penalty},
        **{"min_new_tokens": min(least, most), "max_new_tokens": most},
    }
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, do_sample=False, **options))


def test_training_mode_and_gradients_are_left_alone(models: tuple[Any, Any]) -> None:
    _, ours = models
    ours.train()
    result = ours.generate(prompt(), max_new_tokens=3)
    assert ours.training
    ours.eval()
    # The result can be trained on: it is no inference tensor.
    ours(result, labels=result).loss.backward()
    ours.zero_grad()
    assert torch.is_grad_enabled()


def test_other_integer_dtypes_give_the_same(models: tuple[Any, Any]) -> None:
    expected = models[1].generate(prompt(), max_new_tokens=4)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(models[1].generate(prompt().to(dtype), max_new_tokens=4), expected)


def test_any_model_of_transformers_signature_can_be_run(models: tuple[Any, Any]) -> None:
    theirs, _ = models
    ids, mask = left_padded([4, 6])
    expected = theirs.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(generation.generate(theirs, ids, attention_mask=mask, max_new_tokens=8), expected)
