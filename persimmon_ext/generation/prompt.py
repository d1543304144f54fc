"""The tokens that generation starts from: checks, padding, positions, and what a given cache already holds.

Dims: B batch, T tokens of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.generation.settings import SpecialTokens
from persimmon_ext.generation.warning import warn


@dataclass
class Prompt:
    """A checked prompt on the model's device.

    `ids` int64 [B, T]. `mask` int64 [B, earlier + T], 1 for a token and 0 for left padding; None if nothing is padded.
    `earlier`: tokens that the cache holds before `ids`. `skip`: leading tokens of `ids` that the cache holds as well.
    `cache`: the one that was given.
    """

    ids: Tensor
    mask: Tensor | None
    earlier: int = 0
    skip: int = 0
    cache: Any = None

    def padding(self) -> Tensor | None:
        """Number of padding tokens at the left of each row of `ids`, int64 [B], or None if there are none."""
        if self.mask is None:
            return None
        padding = (self.mask == 0).sum(dim=1) - self.earlier
        return padding.clamp(min=0)

    def token_counts(self) -> Tensor:
        """Number of tokens of each row, those in the cache included and padding not, int64 [B]."""
        if self.mask is not None:
            return self.mask.sum(dim=1)
        return torch.full((len(self.ids),), self.earlier + self.ids.shape[1], device=self.ids.device)

    def slot_padding(self) -> Tensor | None:
        """Number of padding tokens at the left of each row, those in the cache included, int64 [B], or None."""
        return None if self.mask is None else (self.mask == 0).sum(dim=1)


def prepare_prompt(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    past_key_values: Any,
    *,
    bos: int | None,
    vocab_size: int,
    device: torch.device,
    special: SpecialTokens,
) -> Prompt:
    """Checks `input_ids` [B, T] and `attention_mask` [B, T or cached + T], and moves them to `device`.

    Without `input_ids` the prompt is `bos`. Without a mask, the padding token marks
    padding unless it also ends sequences. Raises TypeError or ValueError with the offending value.
    """
    if input_ids is None:
        if bos is None:
            raise ValueError("Pass input_ids: the model's config has no bos_token_id to start from.")
        input_ids = torch.tensor([[bos]])
    ids = _checked_ids(input_ids, vocab_size).to(device)
    cached = _cached_length(past_key_values)
    earlier = 0
    if attention_mask is None:
        mask = _infer_mask(ids, special)
    else:
        mask = _checked_mask(attention_mask, ids, cached).to(device)
        earlier = mask.shape[1] - ids.shape[1]
    if earlier == 0 and cached >= ids.shape[1]:
        raise ValueError(
            f"past_key_values holds {cached} tokens and input_ids has {ids.shape[1]}. Pass the whole sequence, or "
            f"the new tokens with an attention_mask of {cached} + {ids.shape[1]} columns."
        )
    _check_left_padded(mask, inferred_from=special.pad if attention_mask is None else None)
    return Prompt(ids, None if bool(mask.all()) else mask, earlier, 0 if earlier else cached, past_key_values)


def _checked_ids(input_ids: Any, vocab_size: int) -> Tensor:
    if not isinstance(input_ids, Tensor):
        raise TypeError(f"input_ids must be a tensor of shape [batch, tokens], got {type(input_ids).__name__}.")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise TypeError(f"input_ids must hold integers, got {input_ids.dtype}.")
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must have the shape [batch, tokens], got {list(input_ids.shape)}.")
    if input_ids.numel() == 0:
        raise ValueError(f"The prompt is empty: input_ids has the shape {list(input_ids.shape)}.")
    for extreme in (input_ids.min(), input_ids.max()):
        if not 0 <= int(extreme) < vocab_size:
            raise ValueError(f"input_ids holds {int(extreme)}, outside the vocabulary of {vocab_size} tokens.")
    return input_ids.to(torch.int64)


def _cached_length(past_key_values: Any) -> int:
    if past_key_values is None:
        return 0
    if not hasattr(past_key_values, "get_seq_length"):
        raise TypeError(f"past_key_values must be a cache such as DynamicCache, got {type(past_key_values).__name__}.")
    return int(past_key_values.get_seq_length())


def _checked_mask(mask: Any, ids: Tensor, cached: int) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask must be a tensor of shape [batch, tokens], got {type(mask).__name__}.")
    batch, tokens = ids.shape
    allowed = [(batch, tokens), (batch, cached + tokens)]
    if tuple(mask.shape) not in allowed:
        wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(allowed))
        raise ValueError(f"attention_mask must have the shape {wanted}, got {list(mask.shape)}.")
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("attention_mask must hold 1 for a token and 0 for padding, and nothing else.")
    return mask.to(torch.int64)


def _infer_mask(ids: Tensor, special: SpecialTokens) -> Tensor:
    if special.pad is None:
        return torch.ones_like(ids)
    is_token = ids != special.pad
    if special.pad not in special.ends:
        return is_token.to(torch.int64)
    if len(ids) > 1 and not bool(is_token[:, 0].all()):
        warn(
            f"A row begins with token {special.pad}, which both pads and ends sequences, so it is taken for text. "
            "Pass attention_mask if it is padding."
        )
    return torch.ones_like(ids)


def _check_left_padded(mask: Tensor, inferred_from: int | None) -> None:
    # A left-padded row never steps down, and ends with a token.
    wrong = ((mask[:, 1:] < mask[:, :-1]).any(dim=1) | (mask[:, -1] == 0)).nonzero().flatten()
    if wrong.numel():
        row = int(wrong[0])
        origin = "attention_mask" if inferred_from is None else f"The mask inferred from pad_token_id={inferred_from}"
        advice = "" if inferred_from is None else " Pass attention_mask if that token is text."
        raise ValueError(
            f"{origin} must be left-padded, all 0s before all 1s and at least one 1, and row {row} is not: "
            f"{_shown(mask[row].tolist())}.{advice}"
        )


def _shown(row: list[int]) -> str:
    return str(row) if len(row) <= 16 else f"[{str(row[:8])[1:-1]}, ..., {str(row[-8:])[1:-1]}]"
