"""What the caller of ``generate`` asks for, checked and with the defaults of transformers filled in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from persimmon_ext.generation.warning import warn

DEFAULT_TOP_K = 50
_DEFAULT_NEW_TOKENS = 20


@dataclass(frozen=True)
class Lengths:
    """Lengths of the returned sequences, prompt included, in tokens."""

    longest: int
    shortest: int = 0  # no end of sequence before


@dataclass(frozen=True)
class Distribution:
    """How logits become the distribution of the next token. The defaults change nothing."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that end a sequence, and the id that fills a sequence after its end."""

    ends: tuple[int, ...]
    pad: int | None


def resolve_lengths(
    prompt: int,
    max_positions: int,
    *,
    max_new_tokens: int | None,
    max_length: int | None,
    min_new_tokens: int | None,
    min_length: int | None,
) -> Lengths:
    """Turns the four arguments into lengths that include a prompt of `prompt` tokens.

    The ``new_tokens`` arguments win over the others, with a warning. With neither maximum: 20 new tokens, and a
    warning.
    Raises TypeError or ValueError for what is no length, or a prompt that leaves no room for a token.
    """
    check_integer("max_new_tokens", max_new_tokens, least=1)
    check_integer("max_length", max_length, least=1)
    check_integer("min_new_tokens", min_new_tokens, least=0)
    check_integer("min_length", min_length, least=0)
    if max_new_tokens is not None:
        if max_length is not None:
            warn(f"max_new_tokens={max_new_tokens} wins over max_length={max_length}; pass one of them.")
        longest = prompt + max_new_tokens
    elif max_length is not None:
        longest = max_length
    else:
        warn(f"Neither max_new_tokens nor max_length is given: generating {_DEFAULT_NEW_TOKENS} tokens at most.")
        longest = min(prompt + _DEFAULT_NEW_TOKENS, max_positions)
    if prompt >= longest:
        limit = "max_length" if max_length is not None else "the model's max_position_embeddings"
        raise ValueError(
            f"The prompt has {prompt} tokens and {limit} is {longest}, which leaves no room for a new token; "
            "raise max_length or pass max_new_tokens."
        )
    if min_new_tokens is not None:
        if min_length is not None:
            warn(f"min_new_tokens={min_new_tokens} wins over min_length={min_length}; pass one of them.")
        shortest = prompt + min_new_tokens
    else:
        shortest = min_length or 0
    if shortest > longest:
        warn(f"The least length is {shortest} tokens and the greatest {longest}: stopping at the greatest.")
    return Lengths(longest, shortest)


def resolve_distribution(
    vocab_size: int,
    *,
    do_sample: bool,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> Distribution:
    """Checks the arguments; None means no change of the distribution.

    Raises TypeError or ValueError for a value outside its range. Warns of a sampling argument without `do_sample`.
    """
    penalty = check_number("repetition_penalty", 1.0 if repetition_penalty is None else repetition_penalty)
    if penalty <= 0:
        raise ValueError(f"repetition_penalty must be above 0 (1 changes nothing), got {repetition_penalty}.")
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    temperature = check_number("temperature", 1.0 if temperature is None else temperature)
    top_p = check_number("top_p", 1.0 if top_p is None else top_p)
    min_p = check_number("min_p", 0.0 if min_p is None else min_p)
    top_k = 0 if top_k is None else top_k
    check_integer("top_k", top_k, least=0)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1 (1 keeps every token), got {top_p}.")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p must be from 0 (keeps every token) to 1, got {min_p}.")
    if not do_sample:
        neutral = {"temperature": (None, 1), "top_k": (None, 0, DEFAULT_TOP_K), "top_p": (None, 1), "min_p": (None, 0)}
        unused = [f"{name}={value}" for name, value in given.items() if value not in neutral[name]]
        if unused:
            warn(f"{', '.join(unused)} has no effect without do_sample=True.")
        return Distribution(repetition_penalty=penalty)
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0 when sampling, got {temperature}; do_sample=False takes the likeliest token."
        )
    return Distribution(True, temperature, min(int(top_k), vocab_size), top_p, min_p, penalty)


def resolve_special_tokens(
    config: Any,
    eos_token_id: int | Sequence[int] | Literal["config"] | None,
    pad_token_id: int | Literal["config"] | None,
) -> SpecialTokens:
    """Reads ``"config"`` from `config`. Without a padding token, the first end token pads, as in transformers.

    No end token, or only such as are outside the vocabulary (-1), means that no token ends a sequence. Raises TypeError
    for what is no integer, and ValueError for padding outside the vocabulary.
    """
    ends = config.eos_token_id if eos_token_id == "config" else eos_token_id
    if ends is None:
        ends = ()
    elif isinstance(ends, Integral):
        ends = (int(ends),)
    elif not isinstance(ends, Sequence) or isinstance(ends, str):
        raise TypeError(f"eos_token_id must be an integer, a list of integers or None, got {ends!r}.")
    for token in ends:
        check_integer("eos_token_id", token)
    ends = tuple(token for token in ends if 0 <= token < config.vocab_size)
    pad = config.pad_token_id if pad_token_id == "config" else pad_token_id
    check_integer("pad_token_id", pad, least=0)
    if pad is not None and pad >= config.vocab_size:
        raise ValueError(f"pad_token_id is {pad}, outside the vocabulary of {config.vocab_size} tokens.")
    if pad is None and ends:
        pad = ends[0]
    return SpecialTokens(ends, pad)


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
