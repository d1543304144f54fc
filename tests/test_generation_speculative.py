"""Speculative decoding gives the plain loop's tokens, drawn or not, whatever is drafted; and its distribution."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from generation_cases import VOCAB, left_padded, model_pair, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from persimmon_ext.generation.drafts import PromptLookup
from persimmon_ext.generation.pace import Pace, draft_cost
from persimmon_ext.outputs import SpeculativeGenerateOutput

COST = 0.25  # of a drafted token, in steps
REPEATING = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]])


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


@pytest.fixture(scope="module")
def assistant() -> Any:
    return model_pair(1, num_hidden_layers=1, hidden_size=64, num_attention_heads=1)[1]


def always(drafts: int) -> Any:
    """Inside it, so many tokens are drafted at each step."""
    return mock.patch.object(Pace, "drafts", return_value=drafts)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    drafts=st.integers(1, 12),
    sizes=st.integers(1, 4),
    sampling=st.sampled_from([{}, {"do_sample": True, "temperature": 1.3}, {"do_sample": True, "top_p": 0.9}]),
    others=st.sampled_from(
        [
            {},
            {"repetition_penalty": 1.2},
            {"no_repeat_ngram_size": 4},
            {"min_new_tokens": 5},
            {"bad_words_ids": [[7, 8]]},
        ]
    ),
    ends=st.lists(st.integers(3, 96), min_size=1, max_size=9),
    most=st.integers(1, 25),
    seed=st.integers(0, 99),
    uses_model=st.booleans(),
)
def test_tokens_are_the_plain_loops(
    *,
    model: Any,
    assistant: Any,
    drafts: int,
    sizes: int,
    sampling: dict[str, Any],
    others: dict[str, Any],
    ends: list[int],
    most: int,
    seed: int,
    uses_model: bool,
) -> None:
    ids = torch.cat([prompt(1, 5, seed), REPEATING], dim=1)
    options = {"max_new_tokens": most, "eos_token_id": ends, "pad_token_id": 0, "seed": seed, **sampling, **others}
    if "min_new_tokens" in others:
        options["min_new_tokens"] = min(5, most)
    expected = model.generate(ids, **options)
    if uses_model:
        drafting: dict[str, Any] = {"assistant_model": assistant, "num_assistant_tokens": drafts}
    else:
        drafting = {"prompt_lookup_num_tokens": drafts, "max_matching_ngram_size": sizes}
    with always(drafts):  # the pace would soon give up on a random model
        result = model.generate(ids, return_dict_in_generate=True, **options, **drafting)
    assert torch.equal(result.sequences, expected)
    assert result.past_key_values.get_seq_length() == expected.shape[1] - 1


def test_scores_are_the_plain_loops(model: Any) -> None:
    options = {
        **{"max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        **{"do_sample": True, "top_p": 0.9, "seed": 3},
    }
    expected = model.generate(REPEATING, **options)
    result = model.generate(REPEATING, prompt_lookup_num_tokens=4, **options)
    assert isinstance(result, SpeculativeGenerateOutput)
    for name in ("scores", "logits"):
        for mine, plain in zip(getattr(result, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_the_model_as_its_own_assistant_is_always_right(model: Any) -> None:
    for sampling in ({}, {"do_sample": True, "temperature": 1.5, "seed": 1}):
        options = {"max_new_tokens": 21, "return_dict_in_generate": True, **sampling}
        with always(4):
            result = model.generate(prompt(), assistant_model=model, num_assistant_tokens=4, **options)
        report = result.speculation
        assert report.acceptance_rate == 1
        # The prompt's step gives one token, each further one the 4 drafts and one of its own.
        assert (report.steps, report.drafted, report.accepted) == (5, 16, 16)


def test_repetition_is_found(model: Any) -> None:
    """A model that loops: prompt lookup takes far fewer steps than tokens."""
    loop = model.generate(prompt(), max_new_tokens=100)
    result = model.generate(loop, max_new_tokens=60, prompt_lookup_num_tokens=6, return_dict_in_generate=True)
    assert torch.equal(result.sequences, model.generate(loop, max_new_tokens=60))
    assert result.speculation.steps < 30
    assert result.speculation.accepted + result.speculation.steps == 60


def test_draws_follow_the_distribution() -> None:
    """Chi-square over a vocabulary of 12 and two tokens, with a draft model that is often wrong."""
    _, ours = model_pair(initializer_range=0.1, vocab_size=12, bos_token_id=None)
    _, drafts = model_pair(7, initializer_range=0.1, vocab_size=12, bos_token_id=None)
    ids = prompt(1, 3) % 12
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 2}
    exact = torch.zeros(12, 12, dtype=torch.float64)
    with torch.no_grad():
        first = ours(ids).logits[0, -1].double().softmax(0)
        for token in range(12):
            following = ours(torch.cat([ids, torch.tensor([[token]])], 1)).logits[0, -1].double().softmax(0)
            exact[token] = first[token] * following
    draws, rejected = 1500, 0
    counts = torch.zeros(144, dtype=torch.float64)
    for seed in range(draws):
        result = ours.generate(
            ids, seed=seed, assistant_model=drafts, num_assistant_tokens=1, return_dict_in_generate=True, **options
        )
        a, b = result.sequences[0, -2:].tolist()
        counts[12 * a + b] += 1
        rejected += result.speculation.drafted - result.speculation.accepted
    expected = exact.flatten() * draws
    kept = expected >= 5
    observed = torch.cat([counts[kept], counts[~kept].sum(0, keepdim=True)])
    wanted = torch.cat([expected[kept], expected[~kept].sum(0, keepdim=True)])
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = float(len(wanted) - 1)
    assert freedom > 20
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_lookup_finds_the_latest_longest_ngram() -> None:
    ids = torch.tensor([[1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2, 3]])
    assert PromptLookup(sizes=3).propose(ids, 12, 4) == [4, 9, 2, 3]
    assert PromptLookup(sizes=2).propose(ids, 12, 4) == [5, 6, 1, 2]
    assert PromptLookup(sizes=2).propose(ids, 12, 3) == [5, 6, 1]
    assert PromptLookup(sizes=3).propose(ids, 4, 4) == []
    assert PromptLookup(sizes=1).propose(torch.tensor([[7, 7]]), 2, 9) == [7]


def simulate(pace: Pace, rate: Callable[[int], int], steps: int) -> tuple[list[int], float]:
    """Drafts of each of so many steps, of which `rate` says how many are right; and tokens made for a step's time."""
    counts, tokens, seconds = [], 0, 0.0
    for _ in range(steps):
        count = pace.drafts()
        right = rate(count)
        pace.learn(count, right)
        counts.append(count)
        tokens += 1 + right
        seconds += 1 + COST * count
    return counts, tokens / max(seconds, 1)


def test_pace_drafts_all_while_they_are_right() -> None:
    counts, speed = simulate(Pace(7, COST), lambda count: count, 50)
    assert counts[5:] == [7] * 45
    assert speed > 0.9 * 8 / (1 + 7 * COST)


@pytest.mark.parametrize("right_before", [0, 100])
def test_pace_loses_next_to_nothing_on_wrong_drafts(right_before: int) -> None:
    pace = Pace(7, COST)
    simulate(pace, lambda count: count, right_before)
    counts, speed = simulate(pace, lambda count: 0, 500)
    assert speed > 1 - Pace.EARNED - 5 / 500
    assert 0 < counts[-100:].count(1) == sum(counts[-100:]) < 10  # and tries one again now and then
    counts, _ = simulate(pace, lambda count: count, 100)
    assert counts[-1] == 7


@pytest.mark.parametrize(("rate", "least", "most"), [(0.2, 0.95, 1.0), (0.5, 1.1, 1.5), (0.8, 1.5, 3.0)])
def test_pace_at_any_rate(rate: float, least: float, most: float) -> None:
    draws = random.Random(0)

    def right(count: int) -> int:
        return next((place for place in range(count) if draws.random() > rate), count)

    assert least < simulate(Pace(7, COST), right, 2000)[1] < most


def test_the_cost_of_a_draft(model: Any, assistant: Any) -> None:
    alone, by_model = draft_cost(model), draft_cost(model, assistant)
    assert 0 < alone < by_model
    assert draft_cost(model, model) == alone + 1
    assert draft_cost(copy.deepcopy(model).quantize("int4")) > alone


def test_a_call_is_divided_into_the_same_steps_each_time(model: Any) -> None:
    """However slow the machine is at some of them: products round by the number of tokens of a step."""
    calls: list[int] = []

    def dawdle(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        calls.append(ids.shape[1])
        time.sleep(0.002 * (len(calls) % 3))
        return scores

    options = {"max_new_tokens": 40, "do_sample": True, "seed": 5, "temperature": 0.3, "prompt_lookup_num_tokens": 5}
    options |= {"return_dict_in_generate": True}
    expected = model.generate(REPEATING, **options)
    for _ in range(2):
        result = model.generate(REPEATING, logits_processor=[dawdle], **options)
        assert torch.equal(result.sequences, expected.sequences)
        assert result.speculation == expected.speculation
    assert expected.speculation.accepted > 0


def test_useless_drafts_are_soon_given_up(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptLookup, "propose", lambda self, tokens, length, most: [VOCAB - 1] * most)
    options = {"max_new_tokens": 100, "suppress_tokens": [VOCAB - 1]}
    expected = model.generate(prompt(), **options)
    result = model.generate(prompt(), prompt_lookup_num_tokens=7, return_dict_in_generate=True, **options)
    assert torch.equal(result.sequences, expected)
    assert result.speculation.accepted == 0
    assert result.speculation.drafted < 90


def test_padding_and_caches(model: Any, assistant: Any) -> None:
    ids, mask = left_padded([5, 9])
    ids, mask = ids[:1], mask[:1]
    expected = model.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=0)
    for drafting in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 3}):
        result = model.generate(ids, attention_mask=mask, max_new_tokens=12, pad_token_id=0, **drafting)
        assert torch.equal(result, expected)
        begun = model.generate(
            ids, attention_mask=mask, max_new_tokens=5, pad_token_id=0, return_dict_in_generate=True, **drafting
        )
        more = torch.nn.functional.pad(mask, (0, 5), value=1)
        continued = model.generate(
            begun.sequences, attention_mask=more, past_key_values=begun.past_key_values, max_new_tokens=7, **drafting
        )
        assert torch.equal(continued, expected)


class Recorder:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_streams(model: Any) -> None:
    recorder = Recorder()
    end = int(model.generate(REPEATING, max_new_tokens=9)[0, -1])
    result = model.generate(
        REPEATING, max_new_tokens=30, prompt_lookup_num_tokens=5, streamer=recorder, eos_token_id=end
    )
    assert recorder.ids == result[0].tolist()
    assert recorder.ended


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        (prompt(2), {"prompt_lookup_num_tokens": 3}, "takes one row, and there are 2"),
        (prompt(), {"prompt_lookup_num_tokens": 3, "num_beams": 2}, "follows one sequence, and num_beams is 2"),
        (prompt(), {"prompt_lookup_num_tokens": 3, "use_cache": False}, "needs the cache"),
        (prompt(), {"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens must be at least 1, got 0"),
        (prompt(), {"prompt_lookup_num_tokens": 3, "assistant_model": "itself"}, "both draft tokens"),
        (
            prompt(),
            {"prompt_lookup_num_tokens": 3, "return_dict_in_generate": True, "output_attentions": True},
            "can't be had from speculative decoding",
        ),
    ],
)
def test_errors(model: Any, ids: torch.Tensor, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model.generate(ids, max_new_tokens=3, **options)


def test_an_assistant_with_another_vocabulary(model: Any) -> None:
    other = model_pair(vocab_size=50)[1]
    with pytest.raises(ValueError, match="vocabulary of 50 tokens, the model 97"):
        model.generate(prompt(), max_new_tokens=3, assistant_model=other)
