"""The arguments of transformers' generate have its meaning: tokens, scores and results are its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from generation_cases import VOCAB, left_padded, model_pair, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from persimmon_ext import PersimmonForCausalLM
from persimmon_ext.generation import GenerationConfig

LENGTH = prompt().shape[1]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model_pair()


def both(models: tuple[Any, Any], ids: torch.Tensor, **options: Any) -> tuple[Any, Any]:
    """(transformers' result, ours)."""
    return models[0].generate(ids, **{"do_sample": False, **options}), models[1].generate(ids, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"no_repeat_ngram_size": 40},
        {"suppress_tokens": list(range(0, VOCAB, 2))},
        {"bad_words_ids": [[token] for token in range(0, VOCAB, 3)]},
        {"bad_words_ids": [[first, second] for first in range(0, VOCAB, 2) for second in range(0, VOCAB, 5)]},
        {"bad_words_ids": [[7], [7, 8], [9, 10, 11], list(range(20))], "eos_token_id": 7},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[5], [6, 7]], "suppress_tokens": [8]},
    ],
    ids=lambda options: str(options)[:60],
)
def test_penalties(models: tuple[Any, Any], options: dict[str, Any]) -> None:
    ids = prompt(3, 9)
    expected, result = both(models, ids, max_new_tokens=20, pad_token_id=0, **options)
    assert torch.equal(result, expected)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    words=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3), min_size=1, max_size=40),
    ngram=st.integers(0, 3),
    suppressed=st.lists(st.integers(0, VOCAB - 1), max_size=30),
    ends=st.lists(st.integers(3, VOCAB - 1), min_size=1, max_size=9),
    least=st.integers(0, 6),
    seed=st.integers(0, 99),
)
def test_any_combination_of_penalties(
    *,
    models: tuple[Any, Any],
    words: list[list[int]],
    ngram: int,
    suppressed: list[int],
    ends: list[int],
    least: int,
    seed: int,
) -> None:
    options = {
        **{"bad_words_ids": words, "no_repeat_ngram_size": ngram, "suppress_tokens": suppressed or None},
        **{"eos_token_id": ends, "pad_token_id": 0, "min_new_tokens": least, "max_new_tokens": 12},
    }
    expected, result = both(models, prompt(2, 4, seed), **options)
    assert torch.equal(result, expected)


def test_padding_belongs_to_no_ngram(models: tuple[Any, Any]) -> None:
    ids, mask = left_padded([2, 9])
    alone = models[1].generate(ids[:1, -2:], max_new_tokens=12, no_repeat_ngram_size=1)
    batch = models[1].generate(ids, attention_mask=mask, max_new_tokens=12, no_repeat_ngram_size=1, pad_token_id=0)
    assert torch.equal(batch[0, -12:], alone[0, -12:])


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("others", [{}, {"top_k": 9}, {"top_k": 0, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7}])
def test_typical_p(mass: float, others: dict[str, Any]) -> None:
    models = model_pair(initializer_range=0.1)
    options = {
        **{"do_sample": True, "max_new_tokens": 1, "typical_p": mass, **others},
        **{"return_dict_in_generate": True, "output_scores": True},
    }
    expected, result = both(models, prompt(3), **options)
    torch.testing.assert_close(result.scores[0], expected.scores[0], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(result.scores[0].gather(1, result.sequences[:, -1:])).all()


def test_processors_of_transformers_and_functions(models: tuple[Any, Any]) -> None:
    def later_ids_are_likelier(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert ids.shape[0] == scores.shape[0] == 2
        scores += torch.arange(VOCAB) * 0.01 * ids.shape[1]  # in place, as some do
        return scores

    processors = [transformers.TopKLogitsWarper(5), later_ids_are_likelier]
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    ours = models[1].generate(prompt(2), logits_processor=processors, **options)
    listed = transformers.LogitsProcessorList(processors)
    assert torch.equal(ours.sequences, models[1].generate(prompt(2), max_new_tokens=8, logits_processor=listed))
    expected = models[0].generate(prompt(2), do_sample=False, logits_processor=listed, **options)
    assert torch.equal(ours.sequences, expected.sequences)
    for mine, their in zip(ours.scores, expected.scores, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-4)
    plain = models[1](ours.sequences[:, :LENGTH]).logits[:, -1]
    torch.testing.assert_close(ours.logits[0], plain, rtol=1e-4, atol=1e-4)


def test_stopping_criteria_of_transformers_and_functions(models: tuple[Any, Any]) -> None:
    seen: list[int] = []

    def second_row_at_nine(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        seen.append(ids.shape[1])
        return torch.tensor([False, ids.shape[1] >= LENGTH + 3, False])

    criteria = [second_row_at_nine, transformers.MaxLengthCriteria(LENGTH + 7)]
    options = {"max_new_tokens": 30, "eos_token_id": 96, "pad_token_id": 0}
    expected = models[0].generate(
        prompt(3), do_sample=False, stopping_criteria=transformers.StoppingCriteriaList(criteria), **options
    )
    seen.clear()
    result = models[1].generate(prompt(3), stopping_criteria=criteria, **options)
    assert torch.equal(result, expected)
    assert seen == list(range(LENGTH + 1, LENGTH + 8))
    assert result[1, LENGTH + 3 :].eq(0).all()


def test_a_criterion_may_answer_for_all_rows(models: tuple[Any, Any]) -> None:
    result = models[1].generate(
        prompt(2), max_new_tokens=9, stopping_criteria=[lambda ids, _: ids.shape[1] == LENGTH + 2]
    )
    assert result.shape[1] == LENGTH + 2


def test_inputs_is_input_ids(models: tuple[Any, Any]) -> None:
    expected, result = (model.generate(inputs=prompt(), max_new_tokens=5, do_sample=False) for model in models)
    assert torch.equal(result, expected)
    with pytest.raises(ValueError, match="inputs and input_ids are the same argument"):
        models[1].generate(prompt(), inputs=prompt(), max_new_tokens=5)


def test_max_time(models: tuple[Any, Any]) -> None:
    result = models[1].generate(prompt(), max_new_tokens=2000, max_time=1e-6)
    assert result.shape[1] == LENGTH + 1
    assert models[1].generate(prompt(), max_new_tokens=3, max_time=1000.0).shape[1] == LENGTH + 3


class Letters:
    """A tokenizer of one or two letters a token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + token % 26) * (1 + token % 2) for token in ids)


@pytest.mark.parametrize("texts", ["zz", "q", ["bb", "ee"], ["abcdefgh", "l"]])
def test_stop_strings(models: tuple[Any, Any], texts: Any) -> None:
    plain = models[1].generate(prompt(4), max_new_tokens=40)
    result = models[1].generate(prompt(4), max_new_tokens=40, stop_strings=texts, tokenizer=Letters(), pad_token_id=0)
    for row, expected in zip(result.tolist(), plain.tolist(), strict=True):
        lengths = range(LENGTH + 1, len(expected) + 1)
        sought = [texts] if isinstance(texts, str) else texts

        def completes(length: int, ids: list[int] = expected, sought: list[str] = sought) -> bool:
            before, text = (Letters().decode(ids[:end]) for end in (length - 1, length))
            return any(text.count(stop, max(len(before) - len(stop) + 1, 0)) for stop in sought)

        end = next((length for length in lengths if completes(length)), len(expected))
        assert row[:end] == expected[:end]
        assert not any(row[end:])


def test_several_results_a_row(models: tuple[Any, Any]) -> None:
    ids, mask = left_padded([3, 6])
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 6, "seed": 3}
    result = models[1].generate(ids, attention_mask=mask, num_return_sequences=3, **options)
    expanded, masks = ids.repeat_interleave(3, 0), mask.repeat_interleave(3, 0)
    assert torch.equal(result, models[1].generate(expanded, attention_mask=masks, **options))
    assert len({tuple(row) for row in result.tolist()}) == 6
    without = models[1].generate(ids, attention_mask=mask, num_return_sequences=3, use_cache=False, **options)
    assert torch.equal(result, without)


def test_attentions_and_hidden_states(models: tuple[Any, Any]) -> None:
    ids, mask = left_padded([3, 6])
    options = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    models[0].set_attn_implementation("eager")
    expected, result = both(models, ids, attention_mask=mask, max_new_tokens=4, pad_token_id=0, **options)
    models[0].set_attn_implementation("sdpa")
    assert torch.equal(result.sequences, expected.sequences)
    for name in ("attentions", "hidden_states"):
        steps = list(zip(getattr(result, name), getattr(expected, name), strict=True))
        for step, (mine, their) in enumerate(steps):
            for a, b in zip(mine, their, strict=True):
                # Queries at padding see nothing, which each library fills in its own way.
                real = (slice(1, None) if step == 0 else slice(None),)
                torch.testing.assert_close(a[real], b[real], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_prompt_in_chunks(models: tuple[Any, Any], size: int) -> None:
    ids, mask = left_padded([13, 4, 1])
    whole = models[1].generate(ids, attention_mask=mask, max_new_tokens=10, pad_token_id=0)
    parts = models[1].generate(ids, attention_mask=mask, max_new_tokens=10, pad_token_id=0, prefill_chunk_size=size)
    assert torch.equal(parts, whole)


def test_sources_of_settings() -> None:
    theirs, ours = model_pair(eos_token_id=2, pad_token_id=0)
    for model, kind in ((theirs, transformers.GenerationConfig), (ours, GenerationConfig)):
        model.generation_config.max_new_tokens = 5
        config = kind(max_new_tokens=7)
        assert model.generate(prompt()).shape[1] == LENGTH + 5
        assert model.generate(prompt(), generation_config=config).shape[1] == LENGTH + 7
        assert model.generate(prompt(), generation_config=config, max_new_tokens=2).shape[1] == LENGTH + 2
    assert ours.generate(prompt(), generation_config={"max_new_tokens": 3}).shape[1] == LENGTH + 3
    theirs_config = transformers.GenerationConfig(max_new_tokens=4, repetition_penalty=1.5)
    expected = theirs.generate(prompt(), generation_config=theirs_config)
    assert torch.equal(ours.generate(prompt(), generation_config=theirs_config), expected)
    # Set by the model's config, and unset by the call.
    end = int(ours.generate(prompt(), max_new_tokens=1)[0, -1])
    ours.generation_config.eos_token_id = end
    assert ours.generate(prompt()).shape[1] == LENGTH + 1
    assert ours.generate(prompt(), eos_token_id=None).shape[1] == LENGTH + 5
    assert ours.generate(prompt(), generation_config=GenerationConfig(max_new_tokens=3)).shape[1] == LENGTH + 1


def test_generation_config_json(tmp_path: Any) -> None:
    theirs, ours = model_pair(eos_token_id=2, pad_token_id=0)
    theirs.generation_config.update(max_new_tokens=6, eos_token_id=[5, 6], repetition_penalty=1.2)
    theirs.save_pretrained(tmp_path / "theirs")
    read = PersimmonForCausalLM.from_pretrained(tmp_path / "theirs")
    assert read.generation_config.to_dict() == {
        **{"max_new_tokens": 6, "eos_token_id": [5, 6], "repetition_penalty": 1.2},
        **{"bos_token_id": 1, "pad_token_id": 0, "use_cache": True},
        **{"output_attentions": False, "output_hidden_states": False},
    }
    assert torch.equal(read.generate(prompt(3)), theirs.generate(prompt(3)))
    read.save_pretrained(tmp_path / "ours")
    again = transformers.PersimmonForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.generate(prompt(3)), theirs.generate(prompt(3)))
    # A setting that we don't have is said when the checkpoint brings it, and refused when the caller does.
    (tmp_path / "ours" / "generation_config.json").write_text('{"guidance_scale": 2.0, "epsilon_cutoff": 0.0}')
    with pytest.warns(UserWarning, match=r"guidance_scale=2\.0, which persimmon_ext doesn't have"):
        PersimmonForCausalLM.from_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"generation_config sets guidance_scale=2\.0"):
        ours.generate(prompt(), generation_config=transformers.GenerationConfig(guidance_scale=2.0))


def test_one_prefix_for_many_texts(models: tuple[Any, Any]) -> None:
    shared, texts = prompt(1, 7, seed=5), prompt(3, 4, seed=6)
    prefix = models[1](shared, use_cache=True).past_key_values
    whole = torch.cat([shared.expand(3, -1), texts], dim=1)
    result = models[1].generate(whole, past_key_values=prefix, max_new_tokens=8)
    assert torch.equal(result, models[1].generate(whole, max_new_tokens=8))
    assert (prefix.get_seq_length(), prefix.batch_size) == (7, 1), "the shared prefix is copied, not extended"


def test_settings_that_ask_for_nothing_are_accepted() -> None:
    _, ours = model_pair()
    config = transformers.GenerationConfig(disable_compile=False, penalty_alpha=0.0, max_new_tokens=3)
    assert torch.equal(ours.generate(prompt(), generation_config=config), ours.generate(prompt(), max_new_tokens=3))
