"""The next token of each row of a batch, each by its own settings and its own random stream.

Dims: B batch, S tokens so far, V vocab, N rows of a part of the batch, K likeliest tokens told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from persimmon_ext import ops
from persimmon_ext.serving.row import Row


class Note(NamedTuple):
    """Log-probabilities of one step for the rows that asked: of the tokens fp32 [N], and of the likeliest [N, K]."""

    chosen: Tensor
    top: Tensor
    top_tokens: Tensor


class RowSampler:
    """A logits processor that chooses the tokens itself: it leaves only the chosen one possible in each row.

    Rows with equal settings are drawn together, by the op and the random stream that `generate` uses: a row gets the
    tokens that it would get alone, as far as its logits are the same.
    """

    def __init__(self, rows: Sequence[Row], vocab_size: int, device: torch.device) -> None:
        settings = [row.order.sampling for row in rows]
        self._rng = torch.tensor([[asked.seed, row.length] for asked, row in zip(settings, rows, strict=True)])
        self._rng = self._rng.to(device)
        groups: dict[tuple[float, int, float, float], list[int]] = {}
        for index, asked in enumerate(settings):
            if asked.temperature > 0:
                shape = (asked.temperature, min(asked.top_k, vocab_size), asked.top_p, asked.min_p)
                groups.setdefault(shape, []).append(index)
        self._groups: list[tuple[dict[str, Any], Tensor]] = [
            (dict(zip(("temperature", "top_k", "top_p", "min_p"), shape, strict=True)), _indices(members, device))
            for shape, members in groups.items()
        ]
        penalised = [index for index, asked in enumerate(settings) if asked.penalises]
        self._penalties = Penalties([rows[index] for index in penalised], penalised, vocab_size, device)
        self.watched = [index for index, row in enumerate(rows) if row.order.top is not None]
        self._watched = _indices(self.watched, device)
        self._top = min(max((rows[index].order.top or 0 for index in self.watched), default=0), vocab_size)
        #: One a step, if any row asks for log-probabilities.
        self.notes: list[Note] = []

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """ids int64 [B, S] and logits fp32 [B, V] -> scores fp32 [B, V] whose highest is the chosen token's."""
        scores = self._penalties(ids, logits)
        if not self._groups and not self.watched:
            return scores
        chosen = self._choose(scores)
        self._rng[:, 1] += 1
        if self.watched:
            logprobs = logits[self._watched].log_softmax(dim=-1)
            top, top_tokens = logprobs.topk(self._top, dim=-1)
            self.notes.append(Note(logprobs.gather(1, chosen[self._watched, None])[:, 0], top, top_tokens))
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)

    def _choose(self, scores: Tensor) -> Tensor:
        if len(self._groups) == 1 and len(self._groups[0][1]) == len(scores):
            return ops.sample(scores, self._rng, **self._groups[0][0])
        chosen = scores.argmax(dim=-1)
        for shape, members in self._groups:
            chosen[members] = ops.sample(scores[members], self._rng[members], **shape)
        return chosen


class Penalties:
    """Penalties and biases of `rows`, which are the rows `places` of the batch."""

    def __init__(self, rows: Sequence[Row], places: Sequence[int], vocab_size: int, device: torch.device) -> None:
        self._places = _indices(places, device)
        if not rows:
            return
        asked = [row.order.sampling for row in rows]
        self._presence, self._frequency, self._repetition = (
            torch.tensor([[getattr(one, name)] for one in asked], dtype=torch.float32, device=device)
            for name in ("presence_penalty", "frequency_penalty", "repetition_penalty")
        )
        self._bias, self._counts = torch.zeros(2, len(rows), vocab_size, device=device)
        self._seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
        for index, row in enumerate(rows):
            for token, value in asked[index].bias.items():
                self._bias[index, token] = value
            new = _indices(row.tokens, device)
            self._counts[index].index_add_(0, new, torch.ones_like(new, dtype=torch.float32))
            self._seen[index, _indices(row.order.prompt, device)] = True
        self._begun = False

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Returns logits fp32 [B, V], those of the penalised rows changed; `ids` int64 [B, S] ends in the new token."""
        if not len(self._places):
            return logits
        if self._begun:  # the tokens before the first call were counted when this was made
            last = ids[self._places, -1:]
            self._counts.scatter_add_(1, last, torch.ones_like(last, dtype=torch.float32))
        self._begun = True
        mine = logits[self._places]
        repeated = self._seen | (self._counts > 0)
        penalised = torch.where(mine < 0, mine * self._repetition, mine / self._repetition)
        mine = torch.where(repeated, penalised, mine)
        mine = mine - self._frequency * self._counts - self._presence * (self._counts > 0) + self._bias
        # Large logits overflow under a small penalty, and a draw among infinite scores fails for the whole batch.
        largest = torch.finfo(mine.dtype).max
        return logits.index_copy(0, self._places, mine.clamp(-largest, largest))


def _indices(values: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64, device=device)
