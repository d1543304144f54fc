"""Memory of a generation."""

from __future__ import annotations

from typing import Any

from persimmon_ext.cache import DynamicCache
from persimmon_ext.config import PersimmonConfig


def make_cache(model: Any, implementation: str | None, batch: int, slots: int) -> Any:
    """A cache."""
    if not isinstance(model.config, PersimmonConfig):
        return None
    return DynamicCache(model.config, reserve=0 if implementation == "dynamic" else slots)
