"""Sampling: transformers' distribution, seeds that reproduce, and rows whose random streams don't touch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generation_cases import VOCAB, left_padded, model_pair, prompt
from torch import Tensor

from persimmon_ext.generation.sampling import row_seeds

SHAPES: list[dict[str, Any]] = [
    {"top_k": 0},
    {},
    {"temperature": 0.6},
    {"temperature": 2.5, "top_k": 7},
    {"temperature": 3.0, "top_p": 0.8},
    {"temperature": 3.0, "top_k": 20, "top_p": 0.7, "min_p": 0.05},
    {"temperature": 4.0, "top_k": 0, "min_p": 0.2, "repetition_penalty": 1.5},
]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair(initializer_range=0.1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_are_transformers(models: tuple[Any, Any], shape: dict[str, Any]) -> None:
    theirs, ours = models
    ids, mask = left_padded([4, 6, 2])
    options = {
        **{"attention_mask": mask, "do_sample": True, "max_new_tokens": 1, "pad_token_id": 0},
        **{"return_dict_in_generate": True, "output_scores": True, "output_logits": True, **shape},
    }
    expected, result = theirs.generate(ids, **options), ours.generate(ids, **options)
    torch.testing.assert_close(result.scores[0], expected.scores[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.logits[0], expected.logits[0], rtol=1e-4, atol=1e-4)
    chosen = result.scores[0].gather(1, result.sequences[:, -1:])
    assert torch.isfinite(chosen).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_draws_follow_transformers_probabilities(models: tuple[Any, Any], shape: dict[str, Any]) -> None:
    theirs, ours = models
    rows = 4000
    options = {"do_sample": True, "max_new_tokens": 1, **shape}
    scores = theirs.generate(prompt(1, 2), return_dict_in_generate=True, output_scores=True, **options).scores[0]
    expected = scores[0].double().softmax(0) * rows
    drawn = ours.generate(prompt(1, 2).expand(rows, -1), seed=11, **options)[:, -1]
    counts = torch.bincount(drawn, minlength=VOCAB).double()
    assert counts[expected == 0].sum() == 0, "a token that was filtered out"
    # Tokens too rare for the chi-square approximation count as one.
    rare = expected < 8
    observed = torch.cat([counts[~rare], counts[rare].sum(0, keepdim=True)])
    wanted = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
    kept = wanted > 0
    statistic = ((observed - wanted)[kept] ** 2 / wanted[kept]).sum()
    freedom = float(kept.sum() - 1)
    # Five standard deviations of the chi-square distribution.
    assert statistic < freedom + 5 * (2 * max(freedom, 1)) ** 0.5


def draw(model: Any, ids: Tensor, **options: Any) -> Tensor:
    result: Tensor = model.generate(ids, do_sample=True, max_new_tokens=10, temperature=3.0, **options)
    return result


def test_a_seed_reproduces_and_another_differs(models: tuple[Any, Any]) -> None:
    ours = models[1]
    first = draw(ours, prompt(3), seed=5)
    torch.manual_seed(123)
    assert torch.equal(draw(ours, prompt(3), seed=5), first)
    assert not torch.equal(draw(ours, prompt(3), seed=6), first)
    assert torch.equal(draw(ours, prompt(3), seed=-(2**70)), draw(ours, prompt(3), seed=-(2**70)))


def test_without_a_seed_torchs_generator_decides(models: tuple[Any, Any]) -> None:
    ours = models[1]
    torch.manual_seed(0)
    first, second = draw(ours, prompt()), draw(ours, prompt())
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(draw(ours, prompt()), first)
    assert torch.equal(draw(ours, prompt()), second)


def test_equal_rows_draw_different_tokens(models: tuple[Any, Any]) -> None:
    result = draw(models[1], prompt().expand(4, -1), seed=0)
    assert len({tuple(row.tolist()) for row in result}) == 4


def test_a_row_does_not_depend_on_its_neighbours(models: tuple[Any, Any]) -> None:
    ours = models[1]
    ids, mask = left_padded([4, 6, 2])
    batch = draw(ours, ids, attention_mask=mask, seed=9)
    # Other neighbours, and fewer of them.
    others = ids.clone()
    others[1] = prompt(1, 6, seed=77)
    assert torch.equal(draw(ours, others, attention_mask=mask, seed=9)[[0, 2]], batch[[0, 2]])
    assert torch.equal(draw(ours, ids[:2], attention_mask=mask[:2], seed=9), batch[:2])
    # A seed a row gives each row what it gives alone, padded or not.
    batch = draw(ours, ids, attention_mask=mask, seed=[3, 4, 3])
    for row, (length, seed) in enumerate([(4, 3), (6, 4), (2, 3)]):
        alone = draw(ours, ids[row : row + 1, -length:], seed=seed)
        assert torch.equal(alone[0, -10:], batch[row, -10:])


def test_output_scores_does_not_change_the_tokens(models: tuple[Any, Any]) -> None:
    options = {"seed": 4, "top_p": 0.9, "min_p": 0.01}
    plain = draw(models[1], prompt(3), **options)
    scored = draw(models[1], prompt(3), return_dict_in_generate=True, output_scores=True, **options)
    assert torch.equal(scored.sequences, plain)


def test_continuing_draws_as_if_it_had_not_stopped(models: tuple[Any, Any]) -> None:
    ours = models[1]
    whole = draw(ours, prompt(2), seed=8)
    begun = ours.generate(prompt(2), do_sample=True, temperature=3.0, max_new_tokens=4, seed=8)
    continued = ours.generate(begun, do_sample=True, temperature=3.0, max_new_tokens=6, seed=8)
    assert torch.equal(continued, whole)


def test_ended_rows_are_padded(models: tuple[Any, Any]) -> None:
    result = draw(models[1], prompt(16), seed=1, eos_token_id=list(range(0, VOCAB, 4)), pad_token_id=1)
    for row in result[:, prompt().shape[1] :].tolist():
        ends = [place for place, token in enumerate(row) if token % 4 == 0]
        if ends:
            assert set(row[ends[0] + 1 :]) <= {1}


def test_the_sharpest_settings_are_greedy(models: tuple[Any, Any]) -> None:
    ours = models[1]
    greedy = ours.generate(prompt(), max_new_tokens=10)
    for cold in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert torch.equal(ours.generate(prompt(), max_new_tokens=10, do_sample=True, seed=0, **cold), greedy), cold


def test_top_k_beyond_the_vocabulary_keeps_all(models: tuple[Any, Any]) -> None:
    assert torch.equal(draw(models[1], prompt(), seed=0, top_k=10**9), draw(models[1], prompt(), seed=0, top_k=0))
    assert torch.equal(draw(models[1], prompt(), seed=0, top_k=None), draw(models[1], prompt(), seed=0, top_k=0))


def test_row_seeds_are_distinct_int64() -> None:
    seeds = {seed for base in range(50) for seed in row_seeds(base, 50)}
    assert len(seeds) == 2500
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_sample_in_float32(dtype: torch.dtype) -> None:
    _, ours = model_pair(initializer_range=0.1)
    result = ours.to(dtype).generate(
        prompt(2), do_sample=True, max_new_tokens=3, seed=0, return_dict_in_generate=True, output_scores=True
    )
    assert result.sequences.shape == (2, prompt().shape[1] + 3)
    assert {scores.dtype for scores in result.scores} == {torch.float32}
