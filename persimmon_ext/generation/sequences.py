"""What two sequences have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def common_beginning(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many elements both begin with."""
    shorter = min(len(a), len(b))
    return next((place for place in range(shorter) if a[place] != b[place]), shorter)
