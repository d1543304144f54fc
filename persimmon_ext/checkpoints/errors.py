"""The exception that a damaged or unsuitable checkpoint raises."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model. The message names the file and the tensors."""

    def __init__(self, message: str) -> None:
        # A name in a checkpoint may hold lone surrogates, which no terminal and no log takes.
        super().__init__(message.encode("utf-8", "backslashreplace").decode("utf-8"))


def listing(items: Iterable[str]) -> str:
    """Joins `items` by commas: the first ten, and how many more there are."""
    everything = list(items)
    more = len(everything) - _SHOWN
    return ", ".join(everything[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
