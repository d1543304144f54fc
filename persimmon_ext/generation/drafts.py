"""Where the tokens come from that speculative decoding checks: the text itself, or a smaller model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from persimmon_ext.generation.loop import Task
from persimmon_ext.generation.sequences import common_beginning


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def propose(self, tokens: Tensor, length: int, most: int) -> list[int]:
        """At most `most` ids, 1 or more, that may follow the first `length` of tokens int64 [1, ...]."""


class PromptLookup:
    """What followed the latest n-gram the last time that it occurred. Source: Saxena, "Prompt lookup decoding", 2023.

    `sizes`: the longest n-gram that is looked for; shorter ones follow where it has not occurred.
    """

    def __init__(self, sizes: int) -> None:
        self._ids: list[int] = []
        #: Of each size: where the token after the latest n-gram stands. An n-gram is entered once a token follows it.
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in range(sizes)]

    def propose(self, tokens: Tensor, length: int, most: int) -> list[int]:
        """See `Drafter`."""
        for token in tokens[0, len(self._ids) : length].tolist():
            self._enter(token)
        for size in range(len(self._after), 0, -1):
            place = self._after[size - 1].get(tuple(self._ids[-size:]))
            if place is not None:
                return self._ids[place : place + most]
        return []

    def _enter(self, token: int) -> None:
        place = len(self._ids)
        for size, after in enumerate(self._after, start=1):
            if place >= size:
                after[tuple(self._ids[place - size :])] = place
        self._ids.append(token)


class DraftModel:
    """The next tokens of a smaller model with the same vocabulary, chosen as the large one's are.

    Both draw with the same noise, so where their distributions agree their tokens do; the result is the large model's
    alone. Source: Daliri et al., "Coupling without communication and drafter-invariant speculative decoding",
    arXiv:2408.07978. `task`: as the large model's, but for its runner, which has yet to see the prompt.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._fed = 0
        self._length = 0  # of the text at the latest call, which gave this guess
        self._guess: list[int] = []

    def propose(self, tokens: Tensor, length: int, most: int) -> list[int]:
        """See `Drafter`."""
        task = self._task
        # Not every step asks: the tokens since the latest call may be others than it guessed, and more of them.
        right = common_beginning(tokens[0, self._length : length].tolist(), self._guess)
        known = min(self._fed, self._length + right, length - 1)
        task.runner.truncate(known)
        ids = tokens[:, :length]
        pending = ids[:, known:]
        for draft in range(most):
            logits = task.runner.feed(pending, ids.shape[1] - pending.shape[1])[:, -1]
            place = torch.tensor([draft], device=tokens.device)
            pending = task.choose(task.process(ids, logits), place).tokens[:, None]
            ids = torch.cat([ids, pending], dim=1)
        self._fed = ids.shape[1] - 1
        self._length, self._guess = length, ids[0, length:].tolist()
        return self._guess
