"""The rows that are being generated, with their cache: rows join between two tokens and leave when they end.

`generate` does the work, a stretch of tokens at a time: a stretch ends when a row waits that could join, when a client
has left, or when half of the rows have ended. The cache is then made anew of the rows that go on and those that join.
Dims: B batch, H heads, S cached length, T tokens of a prompt, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.cache import Cache, DynamicCache
from persimmon_ext.generation.config import GenerationConfig
from persimmon_ext.generation.scoring import prefix_cache
from persimmon_ext.serving.row import Row, Top
from persimmon_ext.serving.sampling import RowSampler
from persimmon_ext.serving.scoring import score_prompt

# What a checkpoint's generation_config.json says is for callers of `generate`; here, each row has its own settings.
_UNSET: dict[str, Any] = dict.fromkeys(field.name for field in fields(GenerationConfig))


@dataclass
class Part:
    """Rows with a cache of their own, right-aligned: row b has its last token but one in the last slot."""

    rows: list[Row]
    cache: Cache


class Batch:
    """The rows under generation. Used by one thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._parts: list[Part] = []
        #: Tokens chosen for all rows together, one a step.
        self.steps = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Runs the texts of `rows` together, prompts and what they have already: gives each its next token. A prompt
        that several have runs once."""
        alike: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            alike.setdefault(tuple(row.last_tokens(row.length)), []).append(row)
        alone = [group[0] for group in alike.values() if len(group) == 1]
        parts = [Part(alone, DynamicCache(self._model.config))] if alone else []
        for ids, group in alike.items():
            if len(group) > 1:
                begun = prefix_cache(self._model, ids[:-1])
                cache = DynamicCache(self._model.config) if begun is None else begun.broadcast(len(group))
                parts.append(Part(group, cache))
        for part in parts:
            self._run(part, 1, lambda: False)
        for part in parts:  # after a failure none: its rows are run anew
            self._keep(part)

    def add_scored(self, row: Row) -> None:
        """Runs the prompt of a row that asks for its log-probabilities; its first token comes with `decode`."""
        part = Part([row], DynamicCache(self._model.config))
        row.take_prompt_scores(score_prompt(self._model, row.order.prompt, row.order.top or 0, part.cache))
        if part.cache.get_seq_length():
            self._keep(part)
        elif not row.ended:  # the prompt is one token, which has no score
            self.add([row])

    def decode(self, pause: Callable[[], bool]) -> None:
        """Makes tokens for all rows until half of them have ended, a client has left, or `pause` says so."""
        parts, self._parts = self._parts, []  # whatever happens now, no row is left in two parts
        part = self._joined(parts)
        if part.rows:
            longest = max(row.order.max_new_tokens - len(row.tokens) for row in part.rows)
            self._run(part, longest, pause)
            self._keep(part)

    def _keep(self, part: Part) -> None:
        """Keeps a part for the next stretch, unless all of its rows have ended: nothing holds their cache then."""
        if not all(row.ended for row in part.rows):
            self._parts.append(part)

    def _run(self, part: Part, most: int, pause: Callable[[], bool]) -> None:
        stretch = Stretch(part.rows, self._model.config.vocab_size, self._model.device, pause)
        cached = part.cache.get_seq_length()
        new = 1 if cached else max(row.length for row in part.rows)
        ids, mask = _left_padded(part.rows, new, cached)
        self._model.generate(
            ids,
            attention_mask=mask,
            past_key_values=part.cache,
            logits_processor=[stretch.sampler],
            stopping_criteria=[stretch],
            **_UNSET | {"max_new_tokens": most, "do_sample": False},
        )
        self.steps += stretch.steps

    def _joined(self, parts: Sequence[Part]) -> Part:
        """One part of all rows of `parts` that have not ended."""
        if len(parts) == 1 and not any(row.ended for row in parts[0].rows):
            return parts[0]
        kept = [[index for index, row in enumerate(part.rows) if not row.ended] for part in parts]
        rows = [part.rows[index] for part, indices in zip(parts, kept, strict=True) for index in indices]
        if not rows:
            return Part([], DynamicCache(self._model.config))
        return Part(rows, join_caches([part.cache for part in parts], kept, max(row.length for row in rows) - 1))


class Stretch:
    """Follows one call of `generate` as its stopping criterion: hands out tokens, and says which rows end.

    The criterion may be asked about several steps at once, after they are done; it is asked about each in order.
    """

    def __init__(self, rows: Sequence[Row], vocab_size: int, device: torch.device, pause: Callable[[], bool]) -> None:
        self._rows = rows
        self._pause = pause
        self._over = False
        self.sampler = RowSampler(rows, vocab_size, device)
        self.steps = 0

    def __call__(self, ids: Tensor, scores: Any) -> Tensor:
        """Takes the last of ids int64 [B, S]; returns the rows that end, bool [B]: all of them at a pause."""
        if not self._over:
            self._hand_out(ids[:, -1].tolist())
            self.steps += 1
            going = sum(not row.ended for row in self._rows)
            # Computing ended rows too is cheaper than copying the cache for each that ends; up to half of them. But
            # a row whose client left may have had long to go, and nobody asked for what it costs.
            left = any(row.cancelled for row in self._rows)
            self._over = left or going <= len(self._rows) // 2 or self._pause()
        ended = [self._over or row.ended for row in self._rows]
        return torch.tensor(ended, device=ids.device)

    def _hand_out(self, tokens: list[int]) -> None:
        scored = self._scored()
        for index, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            if row.cancelled:
                row.drop()
            if not row.ended:
                row.take(token, *scored.get(index, ()))

    def _scored(self) -> dict[int, tuple[float, Top]]:
        """The log-probability of the token, and the likeliest ones, of each row that asked."""
        if not self.sampler.watched:
            return {}
        note = self.sampler.notes[self.steps]
        columns = (self.sampler.watched, note.chosen.tolist(), note.top_tokens.tolist(), note.top.tolist())
        return {
            index: (logprob, tuple(zip(tokens, values, strict=True))[: self._rows[index].order.top])
            for index, logprob, tokens, values in zip(*columns, strict=True)
        }


def join_caches(caches: Sequence[Cache], kept: Sequence[Sequence[int]], length: int) -> DynamicCache:
    """A cache of the rows `kept` of each of `caches`, with their last `length` slots, and 0 before a shorter cache's.

    Frees the given caches layer by layer, so that little more than one of them is in memory at a time.
    """
    result = DynamicCache()
    batch = sum(map(len, kept))
    for layer in range(len(caches[0])):
        keys = caches[0].layers[layer].keys
        if keys is None:
            raise ValueError(f"Layer {layer} of a cache holds nothing, so there are no rows to join.")
        _, H, _, D = keys.shape
        storages = result.buffers(layer, (batch, H, length, D), keys.dtype, keys.device)
        first = 0
        for cache, rows in zip(caches, kept, strict=True):
            held = cache.layers[layer]
            wanted = torch.tensor(list(rows), dtype=torch.int64, device=keys.device)
            for storage, content in zip(storages, (held.keys, held.values), strict=True):
                if content is not None and len(rows):
                    slots = min(content.shape[2], length)
                    chosen = content[:, :, content.shape[2] - slots :].index_select(0, wanted)
                    storage[first : first + len(rows), :, length - slots : length] = chosen
            held.reset()
            first += len(rows)
        result.advance(layer, length)
    return result


def _left_padded(rows: Sequence[Row], new: int, cached: int) -> tuple[Tensor, Tensor]:
    """The last `new` ids of each row [B, new], and the mask [B, cached + new] of the slots that hold its tokens."""
    ids = torch.zeros(len(rows), new, dtype=torch.int64)
    mask = torch.zeros(len(rows), cached + new, dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens = row.last_tokens(new)
        ids[index, new - len(tokens) :] = torch.tensor(tokens)
        mask[index, cached + new - row.length :] = 1
    return ids, mask
