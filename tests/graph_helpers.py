"""A stand-in for CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Replays:
    """Runs a captured step again into the same memory, as the replay of a graph does, and counts."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.captures += 1
        result = step().clone()

        def replay() -> None:
            self.replays += 1
            result.copy_(step())

        return result, replay
