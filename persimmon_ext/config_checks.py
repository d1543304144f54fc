"""The checks of a config's fields. Each error names the field and its value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from persimmon_ext.rope_parameters import check_rope_parameters

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Each has a name in memory and a row in the head: a file that asks for more is damaged.
_MOST_LABELS = 2**20
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
_FLAGS = (
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "tie_word_embeddings",
    "qk_layernorm",
)


def check_config(config: PersimmonConfig) -> None:
    """Raises ValueError or TypeError, naming the field and its value, unless every field of `config` makes sense."""
    for name in _SIZES:
        check_integer(name, getattr(config, name), 1)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, got {config.hidden_size!r} and "
            f"{config.num_attention_heads!r}."
        )
    for name in _FLAGS:
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be true or false, got {getattr(config, name)!r}.")
    if not isinstance(config.hidden_act, str) or not config.hidden_act:
        raise TypeError(f"hidden_act must be the name of an activation, got {config.hidden_act!r}.")
    _check_numbers(config)
    _check_token_ids(config)
    _check_labels(config)
    check_rope_parameters(config.rope_parameters, config.head_dim)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer (no bool, no float) of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}.")


def check_num_labels(number: object) -> None:
    """Raises ValueError unless `number` is one of labels that can each be given a name."""
    check_integer("num_labels", number, 1, _MOST_LABELS)


def _check_numbers(config: PersimmonConfig) -> None:
    if not _is_number(config.initializer_range) or config.initializer_range < 0:
        raise ValueError(f"initializer_range must be a number of at least 0, got {config.initializer_range!r}.")
    if not _is_number(config.layer_norm_eps) or config.layer_norm_eps <= 0:
        raise ValueError(f"layer_norm_eps must be a number above 0, got {config.layer_norm_eps!r}.")
    for name in ("hidden_dropout", "attention_dropout"):
        value = getattr(config, name)
        if not _is_number(value) or not 0 <= value < 1:
            raise ValueError(f"{name} must be a probability in [0, 1), got {value!r}.")


def _check_token_ids(config: PersimmonConfig) -> None:
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    named = [("pad_token_id", config.pad_token_id), ("bos_token_id", config.bos_token_id)]
    for name, token in named + [("eos_token_id", token) for token in ends]:
        if token is None:
            continue
        # Published checkpoints write -1 for "no such token".
        check_integer(name, token, -1)
        if token >= config.vocab_size:
            raise ValueError(f"{name} must be below vocab_size ({config.vocab_size}), got {token!r}.")


def _check_labels(config: PersimmonConfig) -> None:
    problem = config.problem_type
    if problem is not None and problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be None or one of {', '.join(PROBLEM_TYPES)}, got {problem!r}.")
    check_num_labels(config.num_labels)
    if problem == "single_label_classification" and config.num_labels == 1:
        raise ValueError("problem_type 'single_label_classification' needs num_labels of at least 2, got 1.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
