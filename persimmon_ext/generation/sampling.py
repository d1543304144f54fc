"""Choosing the next token from its scores: the likeliest, or drawn with a random stream that belongs to its row.

Dims: B batch, S tokens so far, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from persimmon_ext import ops, reference
from persimmon_ext.generation.settings import Distribution, check_integer

_WORD = 1 << 64


class Choice(NamedTuple):
    """Tokens int64 [B], and the scores fp32 [B, V] that they were chosen by. `peak` fp32 [B]: the highest score of each
    row, NaN where one is NaN; None where the chooser has raised for that."""

    tokens: Tensor
    scores: Tensor
    peak: Tensor | None


class Chooser(Protocol):
    """Turns penalised scores into tokens."""

    def __call__(self, scores: Tensor, places: Tensor | None = None) -> Choice:
        """From scores fp32 [B, V]. Raises ValueError where tokens are drawn on the CPU and a score is NaN.

        None as `places`: the next token of each row. Else int64 [B]: the tokens are all of one row, so many places
        after its next one, and `advance` says how many of them are kept.
        """

    def advance(self, tokens: int) -> None:
        """Moves on by so many tokens, which were chosen with `places`."""


class Greedy:
    """Takes the token with the highest score."""

    def __call__(self, scores: Tensor, places: Tensor | None = None) -> Choice:
        """See `Chooser`."""
        peak, tokens = scores.max(dim=-1)
        return Choice(tokens, scores, peak)

    def advance(self, tokens: int) -> None:
        """Nothing goes by the place here."""


class Sampler:
    """Draws tokens; each row has its own stream, so a row's draws don't depend on the rest of the batch.

    `seeds`: one a row. `counts` int64 [B]: tokens that each row has so far. The noise goes by the number of the token
    in its sequence: generation continued with the same seed draws as if it had not stopped, and a token that was
    drafted is checked with the noise that it would have been drawn with.
    `expose_scores`: return the filtered scores, which the fused op never writes to memory.
    """

    def __init__(self, distribution: Distribution, seeds: Sequence[int], counts: Tensor, expose_scores: bool) -> None:
        self._distribution = distribution
        self._filters_apart = expose_scores or distribution.typical_p < 1
        self._rng = torch.stack([torch.tensor(list(seeds), dtype=torch.int64, device=counts.device), counts], dim=1)
        self._counts = self._rng[:, 1]

    def __call__(self, scores: Tensor, places: Tensor | None = None) -> Choice:
        """See `Chooser`."""
        rng = self._rng
        if places is not None:
            rng = torch.stack([rng[:, 0].expand(len(places)), rng[:, 1] + places], dim=1)
        asked = self._distribution
        if self._filters_apart:
            scores = filter_scores(scores, asked)
            # Drawn from what is returned: a chosen token never has the score -inf.
            tokens = ops.sample(scores, rng)
        else:
            tokens = ops.sample(
                scores, rng, temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p, min_p=asked.min_p
            )
        if places is None:
            self._counts.add_(1)
        if tokens.is_cpu:
            return Choice(tokens, scores, None)
        return Choice(tokens.clamp(min=0), scores, scores.amax(dim=-1))  # -1 where a score is NaN: no id to go on with

    def advance(self, tokens: int) -> None:
        """See `Chooser`."""
        self._counts.add_(tokens)


def filter_scores(scores: Tensor, asked: Distribution, keep: int = 1) -> Tensor:
    """scores fp32 [B, V] over the temperature, with -inf where top-k, top-p, min-p or typical-p, in this order, removes
    a token; each leaves the `keep` first ones."""
    scores = scores / asked.temperature
    none: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name in ("top_k", "top_p", "min_p"):
        filtered = reference.filter_logits(scores, **{**none, name: getattr(asked, name)})
        scores = filtered if keep == 1 else _restore(filtered, scores, scores, keep)
    return scores if asked.typical_p == 1 else _filter_typical(scores, asked.typical_p, keep)


def _filter_typical(scores: Tensor, mass: float, keep: int) -> Tensor:
    information = -scores.log_softmax(dim=-1)
    probabilities = scores.softmax(dim=-1)
    entropy = (probabilities * information).nansum(dim=-1, keepdim=True)  # a removed token has 0 times infinity
    distance, order = (information - entropy).abs().sort(dim=-1)
    before = probabilities.gather(1, order).cumsum(dim=-1) < mass  # this token and the more typical ones are too few
    last = before.sum(dim=-1, keepdim=True).clamp(max=scores.shape[1] - 1)
    removed = (information - entropy).abs() > distance.gather(1, last)
    filtered = scores.masked_fill(removed, float("-inf"))
    return _restore(filtered, scores, entropy - (information - entropy).abs(), keep)


def _restore(filtered: Tensor, scores: Tensor, rank: Tensor, keep: int) -> Tensor:
    """`filtered` with the `scores` of the `keep` tokens whose `rank` is highest, all fp32 [B, V]."""
    best = rank.topk(min(keep, scores.shape[1]), dim=-1).indices
    return filtered.scatter(1, best, scores.gather(1, best))


def sample_distinct(scores: Tensor, rng: Tensor, number: int) -> Tensor:
    """`number` different indices a row of scores fp32 [B, N], drawn one after the other by softmax, int64 [B, number].

    rng int64 [B, 2]: as in `ops.sample`. Source: Gumbel-top-k, Kool et al., arXiv:1903.06059.
    """
    noise = -torch.log(-torch.log(reference.philox_uniform(rng, scores.shape[1])))
    return (scores.double() + noise).topk(number, dim=-1).indices


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
