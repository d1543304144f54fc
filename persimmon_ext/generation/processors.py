"""Logits processors: callables that take token ids [B, S] and scores fp32 [B, V], and return new scores.

The signature is transformers', so its processors and these are exchangeable. A removed token has the score -inf.
None of them waits for the device. Dims: B batch, S tokens so far, V vocab, N tokens of an n-gram, E a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from persimmon_ext.generation.settings import Penalties

Processor = Callable[[Tensor, Tensor], Tensor]

_REMOVED = float("-inf")


@dataclass(frozen=True)
class RepetitionPenalty:
    """Divides the positive and multiplies the negative scores of tokens that occurred by `penalty` (above 0).

    Source: Keskar et al., "CTRL", arXiv:1909.05858, section 4.1. `padding` int64 [B] leading ids of a row don't count.
    """

    penalty: float
    padding: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the penalised scores [B, V]."""
        if self.padding is not None:
            is_padding = torch.arange(ids.shape[1], device=ids.device) < self.padding[:, None]
            # The last id is never padding, and penalising it twice is penalising it once.
            ids = torch.where(is_padding, ids[:, -1:], ids)
        occurred = scores.gather(1, ids)
        penalised = torch.where(occurred < 0, occurred * self.penalty, occurred / self.penalty)
        return scores.scatter(1, ids, penalised)


@dataclass(frozen=True)
class NoRepeatNGram:
    """Removes tokens that would complete an n-gram of `size` ids that the row has already.

    `padding` int64 [B] leading ids of a row belong to no n-gram.
    """

    size: int
    padding: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [B, V]."""
        if ids.shape[1] < self.size:
            return scores
        ngrams = ids.unfold(1, self.size, 1)  # [B, S - N + 1, N]
        begun = (ngrams[:, :, :-1] == ids[:, None, ids.shape[1] - self.size + 1 :]).all(dim=-1)
        if self.padding is not None:
            begun &= torch.arange(ngrams.shape[1], device=ids.device) >= self.padding[:, None]
        completing = ngrams[:, :, -1]
        # Several n-grams may end in one token, so removals add up instead of overwriting each other.
        removals = torch.where(begun, _REMOVED, 0.0).to(scores.dtype)
        return scores.scatter_reduce(1, completing, removals + scores.gather(1, completing), "amin")


class BadWords:
    """Removes tokens that would complete one of `words`, lists of ids. A word of one token that ends rows stays."""

    def __init__(self, words: Sequence[Sequence[int]], ends: Tensor) -> None:
        device, kept = ends.device, [list(word) for word in words if list(word) not in [[end] for end in ends.tolist()]]
        self._single = torch.tensor([word[0] for word in kept if len(word) == 1], dtype=torch.int64, device=device)
        self._longer = [(torch.tensor(word[:-1], device=device), word[-1]) for word in kept if len(word) > 1]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [B, V]."""
        scores = scores.index_fill(1, self._single, _REMOVED)
        for beginning, last in self._longer:
            if len(beginning) <= ids.shape[1]:
                begun = (ids[:, -len(beginning) :] == beginning).all(dim=1)
                scores[:, last] = scores[:, last].masked_fill(begun, _REMOVED)
        return scores


@dataclass(frozen=True)
class MinLength:
    """Removes the end tokens `ends` int64 [E] as long as a sequence has fewer than `length` ids, prompt included."""

    length: int
    ends: Tensor

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [B, V]."""
        return scores.index_fill(1, self.ends, _REMOVED) if ids.shape[1] < self.length else scores


@dataclass(frozen=True)
class Suppress:
    """Removes `tokens` int64 [E]."""

    tokens: Tensor

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [B, V]."""
        return scores.index_fill(1, self.tokens, _REMOVED)


def penalties(
    asked: Penalties, shortest: int, ends: Tensor, padding: Tensor | None, own: Sequence[Processor]
) -> list[Processor]:
    """The processors that come before greedy search, beam search and sampling alike, in transformers' order.

    `shortest`: the least length, prompt included. `ends` int64 [E]: end tokens. `padding`: as in `RepetitionPenalty`.
    `own`: the caller's, which come last.
    """
    processors: list[Processor] = []
    if asked.repetition_penalty != 1:
        processors.append(RepetitionPenalty(asked.repetition_penalty, padding))
    if asked.no_repeat_ngram_size:
        processors.append(NoRepeatNGram(asked.no_repeat_ngram_size, padding))
    if asked.bad_words:
        processors.append(BadWords(asked.bad_words, ends))
    if shortest > 0 and ends.numel():
        processors.append(MinLength(shortest, ends))
    if asked.suppressed:
        processors.append(Suppress(torch.tensor(asked.suppressed, dtype=torch.int64, device=ends.device)))
    return [*processors, *own]
