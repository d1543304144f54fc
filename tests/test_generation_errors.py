"""Bad input to generate() is a sentence that names the argument and the value, before anything is computed."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from generation_cases import VOCAB, model_pair, prompt

from persimmon_ext import generation
from persimmon_ext.cache import DynamicCache, StaticCache

NAN = float("nan")
STREAMER = transformers.TextStreamer(None)
IDS = torch.tensor([[5, 6, 7, 8]])
ONE = {"max_new_tokens": 1}
SAMPLE = {"max_new_tokens": 1, "do_sample": True}

CASES: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    # The prompt.
    ([[1, 2]], ONE, TypeError, "input_ids must be a tensor of shape [batch, tokens], got list"),
    (IDS.float(), ONE, TypeError, "input_ids must hold integers, got torch.float32"),
    (IDS.bool(), ONE, TypeError, "input_ids must hold integers, got torch.bool"),
    (IDS[0], ONE, ValueError, "shape [batch, tokens], got [4]"),
    (IDS[None], ONE, ValueError, "shape [batch, tokens], got [1, 1, 4]"),
    (IDS[:, :0], ONE, ValueError, "The prompt is empty: input_ids has the shape [1, 0]"),
    (IDS[:0], ONE, ValueError, "The prompt is empty: input_ids has the shape [0, 4]"),
    (IDS + VOCAB, ONE, ValueError, f"input_ids holds {5 + VOCAB}, outside the vocabulary of {VOCAB}"),
    (IDS - 6, ONE, ValueError, "input_ids holds -1, outside the vocabulary"),
    # The mask.
    (IDS, {**ONE, "attention_mask": [[1, 1, 1, 1]]}, TypeError, "attention_mask must be a tensor"),
    (IDS, {**ONE, "attention_mask": torch.ones(1, 3)}, ValueError, "must have the shape [1, 4], got [1, 3]"),
    (IDS, {**ONE, "attention_mask": torch.ones(1, 1, 4, 4)}, ValueError, "[1, 4], got [1, 1, 4, 4]"),
    (IDS, {**ONE, "attention_mask": IDS}, ValueError, "must hold 1 for a token and 0 for padding"),
    (IDS, {**ONE, "attention_mask": torch.tensor([[1.0, NAN, 1, 1]])}, ValueError, "must hold 1 for a token"),
    (IDS, {**ONE, "attention_mask": torch.tensor([[0, 1, 0, 1]])}, ValueError, "row 0 is not: [0, 1, 0, 1]"),
    (IDS, {**ONE, "attention_mask": torch.tensor([[1, 1, 1, 0]])}, ValueError, "must be left-padded"),
    (IDS, {**ONE, "attention_mask": torch.zeros(1, 4)}, ValueError, "row 0 is not: [0, 0, 0, 0]"),
    (IDS, {**ONE, "pad_token_id": 6}, ValueError, "inferred from pad_token_id=6"),
    (prompt(1, 40), {**ONE, "attention_mask": torch.eye(40)[:1]}, ValueError, "[1, 0, 0, 0, 0, 0, 0, 0, ..., 0"),
    # Lengths.
    (IDS, {"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
    (IDS, {"max_new_tokens": -3}, ValueError, "max_new_tokens must be at least 1, got -3"),
    (IDS, {"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be an integer, got 2.0"),
    (IDS, {"max_new_tokens": True}, TypeError, "max_new_tokens must be an integer, got True"),
    (IDS, {"max_length": "9"}, TypeError, "max_length must be an integer, got '9'"),
    (IDS, {"max_length": 4}, ValueError, "The prompt has 4 tokens and max_length is 4"),
    (IDS, {**ONE, "min_length": -1}, ValueError, "min_length must be at least 0, got -1"),
    (IDS, {**ONE, "min_new_tokens": 0.5}, TypeError, "min_new_tokens must be an integer, got 0.5"),
    # The distribution.
    (IDS, {**SAMPLE, "temperature": 0.0}, ValueError, "temperature must be above 0 when sampling, got 0.0"),
    (IDS, {**SAMPLE, "temperature": -1}, ValueError, "temperature must be above 0"),
    (IDS, {**SAMPLE, "temperature": NAN}, ValueError, "temperature must be finite, got nan"),
    (IDS, {**SAMPLE, "temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
    (IDS, {**SAMPLE, "top_k": -1}, ValueError, "top_k must be at least 0, got -1"),
    (IDS, {**SAMPLE, "top_k": 2.5}, TypeError, "top_k must be an integer, got 2.5"),
    (IDS, {**SAMPLE, "top_p": 0.0}, ValueError, "top_p must be above 0 and at most 1 (1 keeps every token), got 0.0"),
    (IDS, {**SAMPLE, "top_p": 1.5}, ValueError, "top_p must be above 0 and at most 1 (1 keeps every token), got 1.5"),
    (IDS, {**SAMPLE, "min_p": -0.1}, ValueError, "min_p must be from 0 (keeps every token) to 1, got -0.1"),
    (IDS, {**SAMPLE, "min_p": 2}, ValueError, "min_p must be from 0"),
    (IDS, {**ONE, "repetition_penalty": 0.0}, ValueError, "repetition_penalty must be above 0"),
    (IDS, {**ONE, "repetition_penalty": float("inf")}, ValueError, "repetition_penalty must be finite"),
    (IDS, {**SAMPLE, "seed": 1.5}, TypeError, "seed must be an integer, got 1.5"),
    (IDS, {**SAMPLE, "seed": "1"}, TypeError, "seed must be an integer, got '1'"),
    (IDS, {**SAMPLE, "seed": [1, 2]}, ValueError, "seed must be one integer or one a row, got 2 for 1 rows"),
    # Special tokens.
    (IDS, {**ONE, "eos_token_id": "</s>"}, TypeError, "eos_token_id must be an integer, a list of integers or None"),
    (IDS, {**ONE, "eos_token_id": [2, 2.5]}, TypeError, "eos_token_id must be an integer, got 2.5"),
    (IDS, {**ONE, "pad_token_id": VOCAB}, ValueError, f"pad_token_id is {VOCAB}, outside the vocabulary"),
    (IDS, {**ONE, "pad_token_id": -1}, ValueError, "pad_token_id must be at least 0, got -1"),
    # The cache.
    (IDS, {**ONE, "past_key_values": 3}, TypeError, "past_key_values must be a cache such as DynamicCache, got int"),
    (IDS, {**ONE, "past_key_values": DynamicCache(), "use_cache": False}, ValueError, "with use_cache=False"),
    (IDS, {**ONE, "cache_implementation": "paged"}, ValueError, "must be one of static, dynamic, int8, got 'paged'"),
    (
        IDS,
        {**ONE, "cache_implementation": "int8", "past_key_values": DynamicCache()},
        ValueError,
        "'int8' is for a cache that generate makes, and past_key_values was given",
    ),
    (IDS, {**ONE, "cache_implementation": "int8", "use_cache": False}, ValueError, "and use_cache=False was given"),
    (IDS, {**ONE, "num_assistant_tokens": 4}, ValueError, "num_assistant_tokens=4 has no effect without drafting"),
    (IDS, {**ONE, "max_matching_ngram_size": 2}, ValueError, "max_matching_ngram_size=2 has no effect without"),
    (IDS, {**ONE, "prefill_chunk_size": 0}, ValueError, "prefill_chunk_size must be at least 1, got 0"),
    # Penalties.
    (IDS, {**ONE, "no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be at least 0, got -1"),
    (IDS, {**ONE, "bad_words_ids": 7}, TypeError, "bad_words_ids must be a list of lists of token ids, got 7"),
    (IDS, {**ONE, "bad_words_ids": [7]}, TypeError, "bad_words_ids must be a list of token ids, got 7"),
    (IDS, {**ONE, "bad_words_ids": [[]]}, ValueError, "bad_words_ids holds an empty list"),
    (IDS, {**ONE, "bad_words_ids": [[VOCAB]]}, ValueError, f"bad_words_ids holds {VOCAB}, outside the vocabulary"),
    (IDS, {**ONE, "suppress_tokens": [-1]}, ValueError, "suppress_tokens holds -1, outside the vocabulary"),
    (IDS, {**ONE, "suppress_tokens": "ab"}, TypeError, "suppress_tokens must be a list of token ids, got 'ab'"),
    (IDS, {**SAMPLE, "typical_p": 1.5}, ValueError, "typical_p must be above 0 and at most 1"),
    # Beams and several results.
    (IDS, {**ONE, "num_beams": 0}, ValueError, "num_beams must be at least 1, got 0"),
    (IDS, {**ONE, "num_return_sequences": 3}, ValueError, "num_return_sequences=3 would be equal sequences"),
    (IDS, {**ONE, "num_beams": 2, "num_return_sequences": 3}, ValueError, "is 3, and num_beams=2 sequences"),
    (IDS, {**ONE, "num_beams": 2, "early_stopping": "soon"}, ValueError, "True, False or 'never', got 'soon'"),
    (IDS, {**ONE, "num_beams": 2, "length_penalty": NAN}, ValueError, "length_penalty must be finite, got nan"),
    (IDS, {**ONE, "num_beams": 2, "streamer": STREAMER}, ValueError, "A streamer can't follow num_beams=2"),
    (
        IDS,
        {**SAMPLE, "num_return_sequences": 2, "streamer": STREAMER},
        ValueError,
        "takes one row, and input_ids has 2",
    ),
    # Ends.
    (IDS, {**ONE, "stop_strings": "a"}, ValueError, "stop_strings needs the tokenizer"),
    (IDS, {**ONE, "stop_strings": ["a", ""]}, ValueError, "stop_strings holds an empty text"),
    (IDS, {**ONE, "stop_strings": [3]}, TypeError, "stop_strings must be a text or a list of texts, got 3"),
    (IDS, {**ONE, "max_time": 0}, ValueError, "max_time must be above 0 seconds, got 0"),
    (IDS, {**ONE, "max_time": "long"}, TypeError, "max_time must be a number, got 'long'"),
    # What is called.
    (IDS, {**ONE, "logits_processor": [3]}, TypeError, "logits_processor must hold functions, got 3"),
    (IDS, {**ONE, "stopping_criteria": 3}, TypeError, "stopping_criteria must hold functions, got 3"),
    (IDS, {**ONE, "assistant_model": "small"}, TypeError, "must be a causal language model, got str"),
    (IDS, {**ONE, "generation_config": 3}, TypeError, "must be a GenerationConfig or a dict, got int"),
    # What does not exist.
    (IDS, {"generation_config": {"max_tokens": 3}}, ValueError, "generation_config sets max_tokens=3, which"),
    (IDS, {**ONE, "penalty_alpha": 4}, TypeError, "generate() got an argument 'penalty_alpha', which persimmon_ext"),
    (IDS, {**ONE, "temprature": 1.0}, TypeError, "doesn't have; did you mean temperature?"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return model_pair()[1]


@pytest.mark.parametrize(("ids", "options", "kind", "words"), CASES, ids=[case[3][:50] for case in CASES])
def test_sentence(model: Any, ids: Any, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    state = torch.random.get_rng_state()
    calls: list[None] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        with pytest.raises(kind, match=re.escape(words)):
            model.generate(ids, **options)
    finally:
        handle.remove()
    assert not calls, "nothing may be computed before the arguments are checked"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_full_cache_without_a_new_token(model: Any) -> None:
    cache = model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True).past_key_values
    with pytest.raises(ValueError, match=re.escape("past_key_values holds 6 tokens and input_ids has 4")):
        model.generate(IDS, max_new_tokens=1, past_key_values=cache)
    with pytest.raises(ValueError, match=re.escape("must have the shape [1, 4] or [1, 10], got [1, 9]")):
        model.generate(IDS, max_new_tokens=1, past_key_values=cache, attention_mask=torch.ones(1, 9))


def test_a_static_cache_too_small(model: Any) -> None:
    cache = StaticCache(model.config, max_cache_len=8)
    with pytest.raises(ValueError, match="has room for 8 tokens and this generation needs 9"):
        model.generate(IDS, max_new_tokens=6, past_key_values=cache)
    assert cache.get_seq_length() == 0


def test_no_prompt_and_no_bos() -> None:
    _, model = model_pair(bos_token_id=None)
    with pytest.raises(ValueError, match="Pass input_ids: the model's config has no bos_token_id"):
        model.generate(max_new_tokens=1)


def test_a_prompt_that_fills_the_models_positions() -> None:
    _, model = model_pair(max_position_embeddings=4)
    with (
        pytest.warns(UserWarning, match="Neither"),
        pytest.raises(ValueError, match="4 tokens and the model's max_position_embeddings is 4"),
    ):
        model.generate(IDS)


@pytest.mark.parametrize("do_sample", [False, True])
def test_nan_logits(do_sample: bool) -> None:
    _, model = model_pair()
    with torch.no_grad():
        model.lm_head.weight[3] = NAN
    with pytest.raises(ValueError, match="logits of row 0 are NaN at token 4"):
        model.generate(IDS, max_new_tokens=2, do_sample=do_sample)


def test_numbers_of_numpy_are_numbers(model: Any) -> None:
    options = {"max_new_tokens": np.int64(3), "top_k": np.int32(9), "temperature": np.float32(0.5), "seed": np.int64(4)}
    expected = model.generate(IDS, do_sample=True, max_new_tokens=3, top_k=9, temperature=0.5, seed=4)
    assert torch.equal(model.generate(IDS, do_sample=True, **options), expected)


def test_sampling_arguments_without_sampling_are_a_warning(model: Any) -> None:
    with pytest.warns(
        UserWarning, match=re.escape("temperature=0.5, top_p=0.9 has no effect without do_sample")
    ) as record:
        model.generate(IDS, max_new_tokens=1, temperature=0.5, top_p=0.9)
    assert [warning.filename for warning in record] == [__file__]


def test_a_least_length_above_the_greatest_is_a_warning(model: Any) -> None:
    with pytest.warns(UserWarning, match="The least length is 9 tokens and the greatest 6"):
        model.generate(IDS, max_new_tokens=2, min_new_tokens=5)
    with pytest.warns(UserWarning, match="min_new_tokens=1 wins over min_length=9"):
        model.generate(IDS, max_new_tokens=2, min_new_tokens=1, min_length=9)


@pytest.mark.parametrize("described", [generation.generate, generation.GenerationConfig])
def test_every_argument_is_described(described: Any) -> None:
    names = list(inspect.signature(described).parameters)
    assert re.findall(r"^    (\w+):", inspect.getdoc(described) or "", flags=re.MULTILINE) == names


def test_nan_in_beams_and_drafts() -> None:
    """The token that breaks is made first, so that the error comes midway and says where."""
    _, model = model_pair()
    first = int(model.generate(IDS, max_new_tokens=1)[0, -1])
    with torch.no_grad():
        model.model.embed_tokens.weight[first] = NAN
    drawn = {"do_sample": True, "top_k": 1}
    for options in (
        {"num_beams": 2},
        {"num_beams": 2, **drawn},
        {"prompt_lookup_num_tokens": 2},
        {},
        drawn,
    ):
        with pytest.raises(ValueError, match=r"logits of row \d are NaN at token 5"):
            model.generate(IDS, max_new_tokens=3, **options)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}], ids=str)
def test_a_processor_must_keep_the_shape(settings: dict[str, Any]) -> None:
    _, ours = model_pair()
    rows = settings.get("num_beams", 1)
    with pytest.raises(ValueError, match=rf"scores of shape \[{rows}, {VOCAB}\], got \[{rows}, 5\]"):
        ours.generate(IDS, **ONE, **settings, logits_processor=[lambda ids, scores: scores[:, :5]])


@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"num_beams": 2}, {"do_sample": True}, {"num_beams": 2, "do_sample": True}),
        *({"prompt_lookup_num_tokens": 2}, {"prompt_lookup_num_tokens": 2, "do_sample": True}),
    ],
    ids=str,
)
def test_nan_of_a_processor_is_told_apart(model: Any, settings: dict[str, Any]) -> None:
    def late(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores * NAN if ids.shape[1] == 6 else scores

    with pytest.raises(ValueError, match="scores of row 0 are NaN at token 6 after a logits processor"):
        model.generate(IDS, max_new_tokens=4, **settings, logits_processor=[late])


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("answer", [None, 0.5, 2, [], torch.tensor([0.5]), torch.tensor([2])], ids=str)
def test_criteria_that_answer_otherwise(model: Any, answer: Any, beams: int) -> None:
    with pytest.raises(TypeError, match=rf"must return bool, or a bool a row, got {re.escape(repr(answer))} from"):
        model.generate(IDS, max_new_tokens=3, num_beams=beams, stopping_criteria=[lambda ids, scores: answer])


def test_answers_that_are_none(model: Any) -> None:
    with pytest.raises(TypeError, match="logits_processor must return scores, got None"):
        model.generate(IDS, **ONE, logits_processor=[lambda ids, scores: None])
    with pytest.raises(ValueError, match=r"must answer for 1 rows, got the shape \[2\]"):
        model.generate(IDS, **ONE, stopping_criteria=[lambda ids, scores: [True, False]])


def test_a_prompt_beyond_the_positions() -> None:
    _, model = model_pair(max_position_embeddings=8)
    cache = DynamicCache(model.config)
    with pytest.raises(ValueError, match=r"prompt has 9 tokens and the model was made for 8 .* shorten it"):
        model.generate(torch.full((2, 9), 5), past_key_values=cache, max_new_tokens=2)
    assert cache.get_seq_length() == 0
    padded = torch.tensor([[0] * 4 + [1] * 8])
    with pytest.warns(UserWarning, match="has 10 tokens and the model was made for 8"):
        assert model.generate(padded.long() + 4, attention_mask=padded, max_new_tokens=2).shape == (1, 14)
    parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "partial_rotary_factor": 0.5}
    _, scaled = model_pair(max_position_embeddings=8, rope_parameters=parameters)
    with pytest.warns(UserWarning, match="the model was made for 8"):
        assert scaled.generate(torch.full((1, 9), 5), max_new_tokens=2).shape == (1, 11)


def test_chunks_without_a_cache(model: Any) -> None:
    with pytest.raises(ValueError, match="prefill_chunk_size=3 has no effect with use_cache=False"):
        model.generate(IDS, max_new_tokens=2, prefill_chunk_size=3, use_cache=False)
