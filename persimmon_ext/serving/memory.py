"""How many tokens of cache the service may keep."""

from __future__ import annotations

from typing import Any

from persimmon_ext.generation.memory import available_bytes, cache_bytes_per_token

#: What of the free memory caches may take: the rest is for activations, and for making a cache anew of old ones.
_CACHE_SHARE = 0.5


def slots_that_fit(model: Any) -> int:
    """Tokens, of all rows together, whose K and V fit in the share of the device's free memory that is for them.

    Raises RuntimeError where the device doesn't tell what is free.
    """
    free = available_bytes(model.device)
    if free is None:
        raise RuntimeError(f"{model.device} doesn't tell how much memory is free; pass --cache-tokens.")
    return max(int(free * _CACHE_SHARE) // cache_bytes_per_token(model.config, model.dtype), 1)
