"""Checks of what a forward call is given, and the cache's state around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from persimmon_ext.cache import Cache


def check_embeds(inputs_embeds: Tensor | None, C: int) -> Tensor:
    if inputs_embeds is None or inputs_embeds.dim() != 3 or inputs_embeds.shape[1] == 0 or inputs_embeds.shape[2] != C:
        shape = None if inputs_embeds is None else list(inputs_embeds.shape)
        raise ValueError(f"inputs_embeds must have shape [B, T, {C}] with T at least 1, got {shape}.")
    return inputs_embeds


def check_tensor(value: object, name: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")


def cached_length(cache: Any, layers: int) -> int:
    """Tokens in the cache, 0 without one. Raises where it isn't a cache, or its layers disagree."""
    if cache is None:
        return 0
    if not (hasattr(cache, "update") and hasattr(cache, "get_seq_length")):
        raise TypeError(
            f"past_key_values must be a cache, with update and get_seq_length, got {type(cache).__name__}. "
            "persimmon_ext.DynamicCache is one."
        )
    if isinstance(cache, Cache):
        lengths = [cache.get_seq_length(i) for i in range(layers)]
        if len(set(lengths)) > 1:
            raise ValueError(f"past_key_values must hold equally many tokens in every layer, got {lengths}.")
    return int(cache.get_seq_length())  # a number, even where transformers keeps a tensor that counts on


def first_slot(cache_position: Tensor, past: int | None, T: int) -> int:
    """The slot of the first of T new tokens. `past`: the cached length, None without a cache."""
    check_tensor(cache_position, "cache_position")
    positions = cache_position.tolist()
    first = positions[0] if cache_position.dim() == 1 and positions else 0
    if positions != list(range(first, first + T)) or first < 0:
        raise ValueError(f"cache_position must be {T} consecutive slots, got {positions}.")
    if past is not None and first > past:
        raise ValueError(f"cache_position starts at {first}, and the cache holds only {past} tokens.")
    return int(first)


def drop_from(cache: Any, length: int) -> None:
    """Keeps the first `length` tokens of the cache."""
    if isinstance(cache, Cache):
        cache.truncate(length)
        return
    excess = int(cache.get_seq_length()) - length
    if excess <= 0:
        return
    layers: Any = getattr(cache, "layers", ())
    counts = [count for layer in layers if isinstance(count := getattr(layer, "cumulative_length", None), Tensor)]
    if length == 0:
        cache.reset()  # all that transformers' other caches of fixed size can
    elif counts and len(counts) == len(layers):
        for count in counts:  # its static cache, which can't be cropped, goes by these numbers
            count.fill_(length)
    else:
        cache.crop(-excess)  # how many to keep, a positive number, is refused since transformers 5


@contextlib.contextmanager
def restored_on_error(cache: Any) -> Iterator[None]:
    """An exception inside, Ctrl-C too, leaves one of our caches with the tokens that it had."""
    length = cache.get_seq_length() if isinstance(cache, Cache) else 0
    try:
        yield
    except BaseException:
        if isinstance(cache, Cache):
            cache.truncate(length)
        raise
