"""NaN among what tokens are chosen by: where it is, in a sentence, without a wait for the device at each token.

Dims: B batch, T tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

AFTER_PROCESSORS = "The scores of row {row} are NaN at token {token} after a logits processor."


def from_model(dtype: torch.dtype) -> str:
    """What is said of NaN in the logits of a model in `dtype`."""
    return (
        "The model's logits of row {row} are NaN at token {token}: its weights hold NaN, or values overflow in "
        f"{dtype}."
    )


def raise_for_nan(peaks: Tensor, first: int, sentence: str) -> None:
    """Raises ValueError if one of `peaks` is NaN: the highest scores fp32 [B] of the tokens in place `first`, or [B, T]
    of those in `first` and the places after it. `sentence`: with ``{row}`` and ``{token}``."""
    rows = peaks.tolist() if peaks.dim() == 2 else [[peak] for peak in peaks.tolist()]
    wrong = [(place, row) for row, values in enumerate(rows) for place, peak in enumerate(values) if math.isnan(peak)]
    if wrong:
        place, row = min(wrong)
        raise ValueError(sentence.format(row=row, token=first + place))


class NanWatch:
    """Collects the highest scores of tokens until `look`. `dtype`: the model's."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._sentence = from_model(dtype)
        self._logits: list[Tensor] = []
        self._scores: list[Tensor] = []

    def note(self, peak: Tensor, *, processed: bool = False) -> None:
        """Takes the highest logit of each row, fp32 [B], or the highest score after the processors."""
        (self._scores if processed else self._logits).append(peak)

    def look(self, first: int) -> None:
        """Raises ValueError if one of those noted since the last look is NaN; `first`: the place of the first."""
        if self._logits:
            _look(self._logits, first, self._sentence)
        if self._scores:
            _look(self._scores, first, AFTER_PROCESSORS)


def _look(noted: list[Tensor], first: int, sentence: str) -> None:
    raise_for_nan(torch.stack(noted, dim=1) if len(noted) > 1 else noted[0], first, sentence)
    noted.clear()
