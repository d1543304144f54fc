"""When rows end: end tokens, texts, time, and whatever the caller brings.

A criterion takes ids [B, S] and scores, as transformers' do, and says which rows end with their last id, bool [B].
"""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.generation.sequences import common_beginning

Criterion = Callable[..., Any]


class EndTokens:
    """Ends rows whose last id is one of `ends` int64 [E]."""

    def __init__(self, ends: Tensor) -> None:
        self._ends = ends

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Returns bool [B]."""
        return (ids[:, -1:] == self._ends).any(dim=1)


class MaxTime:
    """Ends all rows `seconds` after it was made."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Returns bool [B]."""
        return torch.full((len(ids),), time.monotonic() > self._deadline, device=ids.device)


class StopStrings:
    """Ends rows whose last id completes one of `texts`, which may begin in the prompt.

    Decodes the ends of rows on the host, so a GPU is waited for wherever this is asked.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = tuple(texts)
        # A character takes at most 4 tokens (of a byte each), and one token more keeps the first one's leading space.
        self._tail = max(len(text.encode()) for text in texts) + 2

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Returns bool [B]."""
        return torch.tensor([self._completes(row) for row in ids[:, -self._tail :].tolist()], device=ids.device)

    def _completes(self, tail: list[int]) -> bool:
        text, before = self._tokenizer.decode(tail), self._tokenizer.decode(tail[:-1])
        # A last token may change what comes before it, as a byte that completes a character does.
        settled = common_beginning(text, before)
        return any(text.find(stop, max(settled - len(stop) + 1, 0)) >= 0 for stop in self._texts)


class Ending:
    """Follows which rows have ended, by one of the ids `ends` or one of `criteria`, and at which length."""

    def __init__(self, ends: Iterable[int], criteria: Sequence[Criterion], pad: int | None, batch: int) -> None:
        self._ends = frozenset(ends)
        self._criteria = list(criteria)
        self._pad = pad
        self._lengths: list[int | None] = [None] * batch
        self._filled: Tensor | None = None

    @property
    def all_ended(self) -> bool:
        """Whether no row goes on."""
        return all(length is not None for length in self._lengths)

    def fill(self, chosen: Tensor) -> Tensor:
        """New tokens [B], those of ended rows replaced by padding."""
        return chosen if self._filled is None or self._pad is None else chosen.masked_fill(self._filled, self._pad)

    def look(self, tokens: Tensor, first: int, last: int, scores: Any) -> None:
        """Asks about each length from `first` + 1 to `last` of tokens int64 [B, ...], and fills rows that ended on the
        way with padding. A wait for the device, or with criteria two, however many lengths."""
        if not (self._ends or self._criteria):
            return
        flags = [[token in self._ends for token in row] for row in tokens[:, first:last].tolist()]
        if self._criteria:
            asked = [ended_rows(self._criteria, tokens[:, :length], scores) for length in range(first + 1, last + 1)]
            answers = torch.stack(asked, dim=1).tolist()
            flags = [list(map(operator.or_, *both)) for both in zip(flags, answers, strict=True)]
        changed = False
        for row, ended in enumerate(flags):
            if self._lengths[row] is None and True in ended:
                length = self._lengths[row] = first + 1 + ended.index(True)
                changed = True
                if self._pad is not None:
                    tokens[row, length:last] = self._pad
        if changed:
            self._filled = torch.tensor([length is not None for length in self._lengths], device=tokens.device)

    def longest(self, length: int) -> int:
        """The length of the longest row, where rows that go on have `length`."""
        return max(length if ended is None else ended for ended in self._lengths)


def ended_rows(criteria: Sequence[Criterion], ids: Tensor, scores: Any) -> Tensor:
    """Which rows of ids [B, S] some criterion ends, bool [B]; a criterion may answer for all rows by one value.

    Raises TypeError for an answer that isn't bool (numbers too: of them transformers takes some, and not in a beam
    search), ValueError for one of another shape.
    """
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for criterion in criteria:
        answers = _as_bool(criterion(ids, scores), criterion).to(ids.device)
        if answers.shape not in ((), ended.shape):
            raise ValueError(
                f"A stopping_criteria function must answer for {len(ids)} rows, got the shape {list(answers.shape)} "
                f"from {criterion!r}."
            )
        ended = ended | answers
    return ended


def _as_bool(answer: Any, criterion: Criterion) -> Tensor:
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # what no tensor can be made of
        answers = torch.as_tensor(answer)  # where it is: what another device raises isn't about the answer
        if answers.dtype == torch.bool:
            return answers
    raise TypeError(
        f"A stopping_criteria function must return bool, or a bool a row, got {answer!r} from {criterion!r}."
    )
