"""Where the tokens come from that speculative decoding checks: the text itself, or a smaller model."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from persimmon_ext.generation.loop import Task

#: Time of a step that checks few or many drafts over that of one without, at the least: that of the 8B shape.
_USUAL_COST = {"few": 1.15, "many": 1.7}


class Drafter(Protocol):
    """Guesses how a text goes on."""

    def propose(self, tokens: Tensor, length: int, most: int) -> list[int]:
        """At most `most` ids, 1 or more, that may follow the first `length` of tokens int64 [1, ...]."""


class Pace:
    """How many tokens to draft at a time, by how the latest drafts went and what the steps took.

    All of `most` as long as the tokens that a step gains by them are worth its time, and few otherwise; where those are
    not worth it either, a pause, twice as long each time. The tokens that come out don't depend on it.
    """

    _WEIGHT = 0.25  # of the latest step in the averages
    _FEW = 2
    _FIRST_PAUSE, _LONGEST_PAUSE = 2, 64  # steps

    def __init__(self, most: int) -> None:
        self._most = most
        self._gain = float(most)  # accepted tokens a drafting step
        self._seconds: dict[str, float] = {}  # of a step, by how many tokens it checks
        self._pause = self._left = 0

    def drafts(self) -> int:
        """Tokens to draft for the next step."""
        if self._left:
            self._left -= 1
            return 0
        return self._most if self._pays("many") else min(self._FEW, self._most)

    def learn(self, drafted: int, accepted: int, seconds: float) -> None:
        """Takes note of a step of so many `seconds` that checked `drafted` tokens."""
        kind = "none" if not drafted else "few" if drafted <= self._FEW else "many"
        before = self._seconds.get(kind, seconds)
        self._seconds[kind] = before + self._WEIGHT * (seconds - before)
        if not drafted:
            return
        gain = self._most if accepted == drafted else accepted  # more might have been accepted
        self._gain += self._WEIGHT * (gain - self._gain)
        if self._pays("few"):
            self._pause = 0
        else:
            self._pause = min(2 * self._pause or self._FIRST_PAUSE, self._LONGEST_PAUSE)
            self._left = self._pause

    def _pays(self, kind: str) -> bool:
        """Whether the tokens gained by checking so many drafts are worth the time of the step."""
        cost = _USUAL_COST[kind]
        if "none" in self._seconds and kind in self._seconds:
            cost = max(cost, self._seconds[kind] / self._seconds["none"])
        return 1 + self._gain > cost


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

    def propose(self, tokens: Tensor, length: int, most: int) -> list[int]:
        """See `Drafter`."""
        task, known = self._task, min(self._fed, length - 1)
        task.runner.truncate(known)
        ids = tokens[:, :length]
        pending = ids[:, known:]
        for draft in range(most):
            logits = task.runner.feed(pending, ids.shape[1] - pending.shape[1])[:, -1]
            place = torch.tensor([draft], device=tokens.device)
            pending = task.choose(task.process(ids, logits), place).tokens[:, None]
            ids = torch.cat([ids, pending], dim=1)
        self._fed = ids.shape[1] - 1
        guess: list[int] = ids[0, length:].tolist()
        return guess
