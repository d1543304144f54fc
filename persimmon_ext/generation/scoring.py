"""Log-probabilities of given texts, in batches, without all logits ever being in memory.

Dims: B rows of a batch, T tokens of a row, N scored tokens, C hidden, V vocab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.cache import Cache
from persimmon_ext.generation.memory import check_cache
from persimmon_ext.generation.sequences import common_beginning
from persimmon_ext.generation.settings import check_integer

_BATCH_TOKENS = 8192  # of all rows of a batch: bounds the memory of activations
_HEAD_ROWS = 64  # positions whose logits are in memory at once

Ids = Sequence[int] | Tensor


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: `tokens`, and the log-probability of each given all before it, fp32 [N].

    `is_greedy`: whether each is the likeliest at its place.
    """

    tokens: tuple[int, ...]
    logprobs: Tensor
    is_greedy: bool

    @property
    def total(self) -> float:
        """The log-probability of the whole continuation."""
        return float(self.logprobs.double().sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token."""
        return float((-self.logprobs.double().mean()).exp())


@dataclass(frozen=True)
class _Row:
    """Ids of prompt and continuation, and how many of them are the prompt's."""

    ids: list[int]
    prompt: int


@torch.no_grad()
def score(
    model: Any,
    continuations: Sequence[str] | Sequence[Ids],
    *,
    prompts: str | Ids | Sequence[str] | Sequence[Ids] | None = None,
    tokenizer: Any = None,
    past_key_values: Any = None,
    batch_size: int = 16,
) -> list[Score]:
    """Scores each of `continuations` after its prompt.

    Args:
        model: a causal language model of this library.
        continuations: texts (then `tokenizer` is needed), or ids.
        prompts: one for all, which is then computed only once, or one each. None: the begin-of-sequence token. A text
            is encoded together with its continuation; tokens from where that differs from the prompt alone are scored.
        tokenizer: turns texts into ids.
        past_key_values: a cache of one row that holds the beginning of the one prompt for all. It stays as it is.
        batch_size: rows of a forward call at most.
    Returns: a `Score` each, in order.
    Raises: TypeError, ValueError for what can't be scored.
    """
    check_integer("batch_size", batch_size, least=1)
    if isinstance(continuations, str) or not isinstance(continuations, Sequence):
        raise TypeError(f"continuations must be a list of texts or of ids, got {type(continuations).__name__}.")
    shared = _is_one(prompts)
    if past_key_values is not None and not (shared and prompts is not None):
        raise ValueError(
            "past_key_values holds the beginning of one prompt: pass that prompt, one for all, as prompts."
        )
    if past_key_values is not None and not isinstance(past_key_values, Cache):
        raise TypeError(f"past_key_values must be a cache such as DynamicCache, got {type(past_key_values).__name__}.")
    if not shared and len(prompts or ()) != len(continuations):
        raise ValueError(f"There are {len(prompts or ())} prompts for {len(continuations)} continuations.")
    rows = [
        _encode(model, tokenizer, prompts if shared else (prompts or ())[index], continuation, index)
        for index, continuation in enumerate(continuations)
    ]
    if not rows:
        return []
    common = 0
    if shared:  # but for the prompt's last token, which gives the first logits
        common = min(min(row.prompt - 1, common_beginning(rows[0].ids, row.ids)) for row in rows)
    prefix = prefix_cache(model, rows[0].ids[:common], past_key_values)
    results: dict[int, Score] = {}
    for batch in _batches(rows, common, batch_size):
        results |= _score_batch(model, {index: rows[index] for index in batch}, common, prefix)
    return [results[index] for index in range(len(rows))]


def _is_one(prompts: Any) -> bool:
    if prompts is None or isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.dim() == 1):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)


def _encode(model: Any, tokenizer: Any, prompt: Any, continuation: Any, index: int) -> _Row:
    if isinstance(continuation, str):
        if tokenizer is None:
            raise ValueError("Texts need the tokenizer: pass tokenizer=, or ids.")
        if not isinstance(prompt, str) and prompt is not None:
            raise TypeError(f"The prompt of a text must be a text, got {type(prompt).__name__}.")
        alone = list(tokenizer(prompt or "")["input_ids"])
        whole = list(tokenizer((prompt or "") + continuation)["input_ids"])
        begin = common_beginning(alone, whole)
        row = _Row(whole, begin)
    else:
        first, second = (_as_list(ids) for ids in (prompt, continuation))
        if not first:
            bos = model.generation_config.bos_token_id
            first = [] if bos is None else [bos]
        row = _Row(first + second, len(first))
    if row.prompt == 0:
        raise ValueError("The first token has nothing before it: pass prompts, as there is no bos_token_id.")
    if row.prompt == len(row.ids):
        raise ValueError(f"Continuation {index} is empty.")
    wrong = [token for token in row.ids if not 0 <= token < model.config.vocab_size]
    if wrong:
        raise ValueError(f"Row {index} holds {wrong[0]}, outside the vocabulary of {model.config.vocab_size} tokens.")
    return row


def _as_list(ids: Any) -> list[int]:
    if ids is None:
        return []
    values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    for value in values:
        check_integer("ids", value)
    return values


@torch.no_grad()
def prefix_cache(model: Any, ids: Sequence[int], cache: Any = None) -> Any:
    """A cache of one row with exactly `ids`; None for no ids. A given cache is copied."""
    if not ids:
        return None
    known = 0 if cache is None else min(cache.get_seq_length(), len(ids))
    if cache is None:
        cache = model.make_cache(1, len(ids))
    else:
        cache = cache.broadcast(1, reserve=len(ids))
        cache.truncate(known)
    while known < len(ids):
        piece = torch.tensor([list(ids[known : known + _BATCH_TOKENS])], device=model.device)
        model.model(piece, past_key_values=cache, use_cache=True)
        known += piece.shape[1]
    return cache


def _batches(rows: list[_Row], common: int, batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, as many as the batch size and the bound of tokens allow."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index].ids), reverse=True):
        longest = len(rows[batch[0] if batch else index].ids) - common
        if batch and (len(batch) == batch_size or (len(batch) + 1) * longest > _BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    yield batch


def _score_batch(model: Any, rows: dict[int, _Row], common: int, prefix: Any) -> dict[int, Score]:
    # The last token predicts nothing that is asked for. Right padding comes after all that is scored.
    fed = [row.ids[common:-1] for row in rows.values()]
    longest = max(map(len, fed))
    filler = max(fed, key=len)[:1]  # an id that is fed anyway: a trimmed vocabulary may lack any other
    ids = torch.tensor([one + filler * (longest - len(one)) for one in fed], device=model.device)
    cache = None
    if prefix is not None:
        check_cache(model, len(fed), common + longest, advice="Lower batch_size.")
        cache = prefix.broadcast(len(fed), reserve=common + longest)
    hidden = model.model(ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
    places = [(b, row.prompt - common - 1, len(fed[b])) for b, row in enumerate(rows.values())]
    chosen = torch.cat([hidden[b, begin:end] for b, begin, end in places])  # [N, C]
    labels = torch.tensor([token for row in rows.values() for token in row.ids[row.prompt :]], device=model.device)
    logprobs, likeliest = _token_logprobs(model.lm_head, chosen, labels)
    scores, done = {}, 0
    for (index, row), (_, begin, end) in zip(rows.items(), places, strict=True):
        part = slice(done, done + end - begin)
        scores[index] = Score(tuple(row.ids[row.prompt :]), logprobs[part].clone(), bool(likeliest[part].all()))
        done = part.stop
    return scores


def _token_logprobs(head: Any, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """hidden [N, C], labels int64 [N] -> their log-probabilities fp32 [N], and whether each is the likeliest."""
    logprobs, likeliest = [], []
    for rows, wanted in zip(torch.split(hidden, _HEAD_ROWS), torch.split(labels, _HEAD_ROWS), strict=True):
        logits = head(rows).float()
        picked = logits.gather(1, wanted[:, None])[:, 0]
        logprobs.append(picked - logits.logsumexp(dim=-1))
        likeliest.append(picked == logits.amax(dim=-1))
    found = torch.cat(logprobs)
    if bool(found.isnan().any()):
        raise ValueError(f"The logits of scored token {int(found.isnan().nonzero()[0])} of a batch are NaN.")
    return found, torch.cat(likeliest)
