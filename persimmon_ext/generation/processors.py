"""Logits processors: callables that take token ids [B, S] and scores fp32 [B, V], and return new scores.

The signature is transformers', so its processors and these are exchangeable. A removed token has the score -inf.
Dims: B batch, S tokens so far, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from persimmon_ext.generation.settings import Distribution

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
class MinLength:
    """Removes the end tokens `ends` int64 [E] as long as a sequence has fewer than `length` ids, prompt included."""

    length: int
    ends: Tensor

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Returns scores [B, V]."""
        return scores.index_fill(1, self.ends, _REMOVED) if ids.shape[1] < self.length else scores


def penalties(distribution: Distribution, shortest: int, ends: Tensor, padding: Tensor | None) -> list[Processor]:
    """The processors that come before greedy search and sampling alike, in transformers' order.

    `shortest`: the least length, prompt included. `ends` int64 [E]: end tokens. `padding`: as in `RepetitionPenalty`.
    """
    processors: list[Processor] = []
    if distribution.repetition_penalty != 1:
        processors.append(RepetitionPenalty(distribution.repetition_penalty, padding))
    if shortest > 0 and ends.numel():
        processors.append(MinLength(shortest, ends))
    return processors
