"""What the caller of ``generate`` asks for, checked, and in the form that the loops use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from persimmon_ext.generation.config import DEFAULT_TOP_K, GenerationConfig
from persimmon_ext.generation.warning import warn

_DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True)
class Lengths:
    """Lengths of the returned sequences, prompt included, in tokens."""

    longest: int
    shortest: int = 0  # no end of sequence before


@dataclass(frozen=True)
class Distribution:
    """How scores become the distribution of the next token. The defaults change nothing."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0


@dataclass(frozen=True)
class Penalties:
    """What changes scores whether tokens are drawn or not. The defaults change nothing."""

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    suppressed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Beams:
    """Beam search over `number` sequences a row; 1 is none. `results`: sequences that are returned a row."""

    number: int = 1
    results: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that end a sequence, and the id that fills a sequence after its end."""

    ends: tuple[int, ...]
    pad: int | None


def resolve_lengths(prompt: int, max_positions: int, config: GenerationConfig) -> Lengths:
    """The lengths that include a prompt of `prompt` tokens.

    The ``new_tokens`` settings win over the others, with a warning. With neither maximum: 20 new tokens, and a
    warning.
    Raises TypeError or ValueError for what is no length, or a prompt that leaves no room for a token.
    """
    most, least = config.max_new_tokens, config.min_new_tokens
    check_integer("max_new_tokens", most, least=1)
    check_integer("max_length", config.max_length, least=1)
    check_integer("min_new_tokens", least, least=0)
    check_integer("min_length", config.min_length, least=0)
    if most is not None:
        if config.max_length is not None:
            warn(f"max_new_tokens={most} wins over max_length={config.max_length}; pass one of them.")
        longest = prompt + most
    elif config.max_length is not None:
        longest = config.max_length
    else:
        warn(f"Neither max_new_tokens nor max_length is given: generating {_DEFAULT_NEW_TOKENS} tokens at most.")
        longest = min(prompt + _DEFAULT_NEW_TOKENS, max_positions)
    if prompt >= longest:
        limit = "max_length" if config.max_length is not None else "the model's max_position_embeddings"
        raise ValueError(
            f"The prompt has {prompt} tokens and {limit} is {longest}, which leaves no room for a new token; "
            "raise max_length or pass max_new_tokens."
        )
    if least is not None:
        if config.min_length is not None:
            warn(f"min_new_tokens={least} wins over min_length={config.min_length}; pass one of them.")
        shortest = prompt + least
    else:
        shortest = config.min_length or 0
    if shortest > longest:
        warn(f"The least length is {shortest} tokens and the greatest {longest}: stopping at the greatest.")
    return Lengths(longest, shortest)


def resolve_distribution(vocab_size: int, config: GenerationConfig) -> Distribution:
    """Checks the settings of sampling; None means no change of the distribution.

    Raises TypeError or ValueError for a value outside its range. Warns of a setting that needs `do_sample`.
    """
    names = ("temperature", "top_k", "top_p", "min_p", "typical_p")
    given = {name: getattr(config, name) for name in names}
    temperature = check_number("temperature", 1.0 if config.temperature is None else config.temperature)
    top_p = _check_mass("top_p", config.top_p)
    typical_p = _check_mass("typical_p", config.typical_p)
    min_p = check_number("min_p", 0.0 if config.min_p is None else config.min_p)
    top_k = 0 if config.top_k is None else config.top_k
    check_integer("top_k", top_k, least=0)
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be from 0 (keeps every token) to 1, got {min_p}.")
    if not config.do_sample:
        neutral = {"top_k": (None, 0, DEFAULT_TOP_K), "min_p": (None, 0)}
        unused = [f"{name}={value}" for name, value in given.items() if value not in neutral.get(name, (None, 1))]
        if unused:
            warn(f"{', '.join(unused)} has no effect without do_sample=True.")
        return Distribution()
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0 when sampling, got {temperature}; do_sample=False takes the likeliest token."
        )
    return Distribution(True, temperature, min(int(top_k), vocab_size), top_p, min_p, typical_p)


def resolve_penalties(vocab_size: int, config: GenerationConfig) -> Penalties:
    """Checks the settings that change scores in every kind of generation. Raises TypeError or ValueError."""
    given = config.repetition_penalty
    penalty = check_number("repetition_penalty", 1.0 if given is None else given)
    if penalty <= 0:
        raise ValueError(f"repetition_penalty must be above 0 (1 changes nothing), got {given}.")
    check_integer("no_repeat_ngram_size", config.no_repeat_ngram_size, least=0)
    words = _check_list("bad_words_ids", config.bad_words_ids, "lists of token ids")
    return Penalties(
        penalty,
        int(config.no_repeat_ngram_size or 0),
        tuple(_check_tokens("bad_words_ids", word, vocab_size, at_least_one=True) for word in words),
        _check_tokens("suppress_tokens", config.suppress_tokens, vocab_size),
    )


def resolve_beams(config: GenerationConfig) -> Beams:
    """Checks the settings of beam search and the number of results. Raises TypeError or ValueError."""
    check_integer("num_beams", config.num_beams, least=1)
    check_integer("num_return_sequences", config.num_return_sequences, least=1)
    number, results = int(config.num_beams or 1), int(config.num_return_sequences or 1)
    if number > 1 and results > number:
        raise ValueError(f"num_return_sequences is {results}, and num_beams={number} sequences are searched.")
    if number == 1 and results > 1 and not config.do_sample:
        raise ValueError(
            f"num_return_sequences={results} would be equal sequences: pass do_sample=True, or num_beams of as many."
        )
    early = False if config.early_stopping is None else config.early_stopping
    if not isinstance(early, bool) and early != "never":
        raise ValueError(f"early_stopping must be True, False or 'never', got {early!r}.")
    penalty = check_number("length_penalty", 1.0 if config.length_penalty is None else config.length_penalty)
    if number == 1 and (early or penalty != 1):
        warn("early_stopping and length_penalty have no effect without num_beams above 1.")
    return Beams(number, results, penalty, early)


def resolve_special_tokens(vocab_size: int, config: GenerationConfig) -> SpecialTokens:
    """The tokens that end and fill rows. Without a padding token, the first end token pads, as in transformers.

    No end token, or only such as are outside the vocabulary (-1), means that no token ends a sequence. Raises TypeError
    for what is no integer, and ValueError for padding outside the vocabulary.
    """
    ends, pad = _plain(config.eos_token_id), _plain(config.pad_token_id)
    if ends is None:
        ends = ()
    elif isinstance(ends, Integral):
        ends = (int(ends),)
    elif not isinstance(ends, Sequence) or isinstance(ends, str):
        raise TypeError(f"eos_token_id must be an integer, a list of integers or None, got {ends!r}.")
    for token in ends:
        check_integer("eos_token_id", token)
    ends = tuple(token for token in ends if 0 <= token < vocab_size)
    check_integer("pad_token_id", pad, least=0)
    if pad is not None and pad >= vocab_size:
        raise ValueError(f"pad_token_id is {pad}, outside the vocabulary of {vocab_size} tokens.")
    if pad is None and ends:
        pad = ends[0]
    return SpecialTokens(ends, pad)


def resolve_stop_strings(stop_strings: Any, tokenizer: Any) -> tuple[str, ...]:
    """The texts that end rows. Raises TypeError or ValueError for an empty one, or without a tokenizer to read them."""
    if stop_strings is None:
        return ()
    texts = (
        (stop_strings,) if isinstance(stop_strings, str) else tuple(_check_list("stop_strings", stop_strings, "texts"))
    )
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"stop_strings must be a text or a list of texts, got {text!r} in it.")
        if not text:
            raise ValueError("stop_strings holds an empty text, which every token would complete.")
    if texts and not callable(getattr(tokenizer, "decode", None)):
        raise ValueError("stop_strings needs the tokenizer: pass tokenizer=.")
    return texts


def check_integer(name: str, value: Any, least: int | None = None) -> None:
    """Raises TypeError if `value` is neither None nor an integer, and ValueError if it is below `least`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_number(name: str, value: Any) -> float:
    """Returns `value` as a float; raises TypeError for what is no number and ValueError for NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}.")
    return float(value)


def _plain(value: Any) -> Any:
    """`value`, or what a tensor or array holds."""
    return value.tolist() if hasattr(value, "tolist") else value


def _check_mass(name: str, value: Any) -> float:
    mass = check_number(name, 1.0 if value is None else value)
    if not 0 < mass <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1 (1 keeps every token), got {mass}.")
    return mass


def _check_list(name: str, value: Any, of: str) -> Sequence[Any]:
    if value is None:
        return ()
    value = _plain(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a list of {of}, got {value!r}.")
    return value


def _check_tokens(name: str, tokens: Any, vocab_size: int, *, at_least_one: bool = False) -> tuple[int, ...]:
    checked = _check_list(name, tokens, "token ids")
    if at_least_one and not checked:
        raise ValueError(f"{name} holds an empty list.")
    for token in checked:
        check_integer(name, token)
        if token is None or not 0 <= token < vocab_size:
            raise ValueError(f"{name} holds {token}, outside the vocabulary of {vocab_size} tokens.")
    return tuple(int(token) for token in checked)
