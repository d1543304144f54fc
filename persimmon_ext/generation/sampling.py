"""Choosing the next token from its scores: the likeliest, or drawn with a random stream that belongs to its row.

Dims: B batch, S tokens so far, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from persimmon_ext import ops, reference
from persimmon_ext.generation.settings import Distribution, check_integer

_WORD = 1 << 64


class Chooser(Protocol):
    """Turns penalised scores into tokens."""

    def __call__(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """From ids [B, S] and scores fp32 [B, V]: the tokens int64 [B], and the scores that they were chosen by."""


class Greedy:
    """Takes the token with the highest score."""

    def __call__(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `Chooser`."""
        return scores.argmax(dim=-1), scores


class Sampler:
    """Draws tokens; each row has its own stream, so a row's draws don't depend on the rest of the batch.

    `seeds`: one a row. `counts` int64 [B]: tokens that each row has so far. The stream goes by the number of the token
    in its sequence, so that generation continued with the same seed draws as if it had not stopped.
    `expose_scores`: return the filtered scores, which the fused op never writes to memory.
    """

    def __init__(self, distribution: Distribution, seeds: Sequence[int], counts: Tensor, expose_scores: bool) -> None:
        self._shape: dict[str, Any] = {
            "temperature": distribution.temperature,
            "top_k": distribution.top_k,
            "top_p": distribution.top_p,
            "min_p": distribution.min_p,
        }
        self._expose_scores = expose_scores
        self._rng = torch.stack([torch.tensor(list(seeds), dtype=torch.int64, device=counts.device), counts], dim=1)

    def __call__(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """See `Chooser`."""
        if self._expose_scores:
            scores = reference.filter_logits(scores, **self._shape)
            # Drawn from what is returned: a chosen token never has the score -inf.
            tokens = ops.sample(scores, self._rng)
        else:
            tokens = ops.sample(scores, self._rng, **self._shape)
        self._rng[:, 1] += 1
        return tokens, scores


def row_seeds(seed: int | Sequence[int] | None, batch: int) -> list[int]:
    """Returns a seed for each row, in the range of int64.

    An integer gives row b a seed that depends on `seed` and b only; a sequence has a seed a row, each giving
    what it would give a batch of one. None draws the integer from torch's global generator, so `torch.manual_seed`
    decides. Raises TypeError for what is no integer, and ValueError for a sequence of another length than `batch`.
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != batch:
            raise ValueError(f"seed must be one integer or one a row, got {len(seed)} for {batch} rows.")
        return [row_seeds(one, 1)[0] for one in seed]
    if seed is None:
        seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
    check_integer("seed", seed)
    return [_mix(int(seed), row) for row in range(batch)]


def _mix(seed: int, row: int) -> int:
    # SplitMix64 (Steele, Lea, Flood, 2014): the row-th output of the generator seeded with `seed`.
    z = (seed + (row + 1) * 0x9E3779B97F4A7C15) % _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB % _WORD
    z ^= z >> 31
    return z - _WORD if z >= _WORD // 2 else z
