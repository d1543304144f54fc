"""Rows of token ids made into a batch: truncation, padding, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

SIDES = ("left", "right")
_PADDING = {False: "no", None: "no", "do_not_pad": "no", True: "longest", "longest": "longest"}
_TRUNCATION = {False: False, None: False, "do_not_truncate": False}
_TRUNCATION |= {True: True, "longest_first": True, "only_first": True}


class BatchEncoding(dict[str, Any]):
    """What calling the tokenizer returns: a dict whose entries are also attributes, so ``model(**batch)`` works."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The batch has no entry {name!r}; it has {sorted(self)}.") from None

    def to(self, device: str | torch.device | int) -> BatchEncoding:
        """Moves its tensors to ``device``, in place, and returns itself; other entries stay as they are."""
        for key, value in self.items():
            if isinstance(value, torch.Tensor):
                self[key] = value.to(device)
        return self


def check_flag(name: str, value: bool) -> bool:
    """``value`` itself; ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {value!r}.")
    return value


def check_side(name: str, side: str) -> str:
    """``side`` itself; ValueError unless it is ``left`` or ``right``."""
    if side not in SIDES:
        raise ValueError(f"{name} must be 'left' or 'right', not {side!r}.")
    return side


def check_length(name: str, value: Any, minimum: int = 0) -> int:
    """``value`` as an int; TypeError for another type, ValueError below ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}.")
    return int(value)


def padding_mode(padding: bool | str | None) -> str:
    """``no``, ``longest`` or ``max_length``. Raises ValueError for anything else."""
    if padding == "max_length":
        return "max_length"
    if not isinstance(padding, (bool, str, type(None))) or padding not in _PADDING:
        raise ValueError(f"padding must be True, False, 'longest', 'max_length' or 'do_not_pad', not {padding!r}.")
    return _PADDING[padding]


def truncates(truncation: bool | str | None) -> bool:
    """Whether rows are cut. Raises ValueError for an unknown mode."""
    if not isinstance(truncation, (bool, str, type(None))) or truncation not in _TRUNCATION:
        choices = "True, False, 'longest_first', 'only_first' or 'do_not_truncate'"
        raise ValueError(f"truncation must be {choices}, not {truncation!r}; there are no pairs of texts here.")
    return _TRUNCATION[truncation]


def truncate(ids: list[int], length: int | None, side: str) -> list[int]:
    """At most ``length`` ids (None: all): the first ones where ``side`` is ``right``, the last where it is ``left``."""
    if length is None or len(ids) <= length:
        return ids
    return ids[:length] if side == "right" else ids[len(ids) - length :]


def pad(rows: Sequence[list[int]], length: int, value: int, side: str) -> list[list[int]]:
    """Every row brought to at least ``length`` with ``value`` on the given side."""
    padded = []
    for row in rows:
        filling = [value] * (length - len(row))
        padded.append(row + filling if side == "right" else filling + row)
    return padded


def collate(
    rows: list[list[int]],
    *,
    single: bool,
    padding: str,
    max_length: int | None,
    padding_side: str,
    multiple: int | None,
    pad_token_id: int | None,
    return_tensors: str | None,
    return_attention_mask: bool,
) -> BatchEncoding:
    """Pads the rows and makes them what the tokenizer returns: lists or tensors, ids and attention mask.

    ``padding`` is a mode of ``padding_mode``; ``single`` unpacks the one row where lists are returned.
    Raises ValueError where padding is asked for without a padding token or a length.
    """
    check_tensor_type(return_tensors)
    masks = [[1] * len(row) for row in rows]
    if padding != "no":
        if pad_token_id is None:
            raise ValueError(
                "Padding needs a padding token: set one, such as tokenizer.pad_token = tokenizer.eos_token."
            )
        length = _padded_length(rows, padding, max_length, multiple)
        rows = pad(rows, length, pad_token_id, padding_side)
        masks = pad(masks, length, 0, padding_side)
    columns = {"input_ids": rows, "attention_mask": masks}
    if not return_attention_mask:
        del columns["attention_mask"]
    if return_tensors is not None:
        return BatchEncoding({name: to_tensors(column, return_tensors) for name, column in columns.items()})
    return BatchEncoding({name: column[0] if single else column for name, column in columns.items()})


def _padded_length(rows: list[list[int]], padding: str, max_length: int | None, multiple: int | None) -> int:
    length = max(map(len, rows), default=0)
    if padding == "max_length":
        if max_length is None:
            raise ValueError("padding='max_length' needs max_length, or a tokenizer with model_max_length.")
        length = check_length("max_length", max_length)
    if multiple is not None:
        multiple = check_length("pad_to_multiple_of", multiple, minimum=1)
        length = -(-length // multiple) * multiple
    return length


def check_tensor_type(return_tensors: str | None) -> None:
    """Raises ValueError unless ``return_tensors`` is ``pt``, ``np`` or None."""
    if return_tensors not in (None, "pt", "np"):
        raise ValueError(f"return_tensors must be 'pt', 'np' or None, not {return_tensors!r}.")


def to_tensors(rows: list[list[int]], return_tensors: str) -> torch.Tensor | np.ndarray:
    """Rows of one length as an int64 tensor or array [B, T]. Raises ValueError for rows of several lengths."""
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"Texts of {min(lengths)} to {max(lengths)} tokens do not fit one tensor: "
            "pass padding=True, or leave out return_tensors."
        )
    array = np.array(rows, dtype=np.int64).reshape(len(rows), lengths.pop() if lengths else 0)
    return torch.from_numpy(array) if return_tensors == "pt" else array
