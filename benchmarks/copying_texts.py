"""Texts whose continuation says again much of what stands before: an edit of code, and a summary that quotes.

Each is a prompt and the continuation that a model which can do the task would give. Random weights can't, and the
embedded model is too small for it, so the benchmark makes both sides write the continuation (see `Oracle`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_BEFORE = '''"""Reads and writes tables of readings."""

import csv
from pathlib import Path


class Readings:
    """Temperatures by station."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.values = {}

    def load(self, station):
        with open(self.folder / f"{station}.csv", newline="") as file:
            rows = list(csv.reader(file))
        self.values[station] = [float(row[1]) for row in rows[1:]]

    def mean(self, station):
        values = self.values[station]
        return sum(values) / len(values)

    def save(self, station):
        with open(self.folder / f"{station}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["hour", "temperature"])
            for hour, value in enumerate(self.values[station]):
                writer.writerow([hour, value])
'''
_AFTER = (
    _BEFORE.replace("import csv\n", "import csv\nimport statistics\n")
    .replace("def __init__(self, folder):", 'def __init__(self, folder, encoding="utf-8"):')
    .replace("        self.values = {}\n", "        self.encoding = encoding\n        self.values = {}\n")
    .replace('newline="") as', 'newline="", encoding=self.encoding) as')
    .replace("return sum(values) / len(values)", "return statistics.fmean(values)")
)
_ARTICLE = (
    "The old mill by the river was sold on Friday. Its owner, who had run it for forty years, said that the water "
    'no longer carried enough force in summer to turn the wheel. "We ground flour for three villages, and in the '
    'last dry year we ground none," she told the council. The buyer, a society of twelve families, wants to put a '
    "small turbine where the wheel was. The society's plan says that the turbine will light eighty houses in winter "
    "and thirty in summer. The council has asked for a ladder by which fish can pass, and for the wheel to be kept "
    "where visitors can see it. Work is to begin after the harvest, when the river is low. Not everybody is "
    "content: the anglers' club fears that the pool above the weir will silt up, and has asked the county for an "
    "inquiry. The county answers such requests within six weeks."
)
_SUMMARY = (
    "In short: the old mill by the river was sold on Friday to a society of twelve families, which wants to put a "
    'small turbine where the wheel was. Why now? "We ground flour for three villages, and in the last dry year we '
    "ground none,\" the owner told the council. According to the society's plan, the turbine will light eighty "
    "houses in winter and thirty in summer. The council has asked for a ladder by which fish can pass, and for the "
    "wheel to be kept where visitors can see it. The anglers' club fears that the pool above the weir will silt up, "
    "and has asked the county for an inquiry. Work is to begin after the harvest."
)

#: Name: prompt and continuation.
TEXTS = {
    "editing": (f"{_BEFORE}\n# The same with an encoding, and the mean from the statistics module:\n", _AFTER),
    "quoting": (f"{_ARTICLE}\n\nA summary that quotes:\n", _SUMMARY),
}


class Oracle:
    """A logits processor that lets through only the next id of ids int64 [1, S], whatever the model says.

    So every step costs what it would, and drafts are accepted exactly where they agree with the given text.
    """

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """ids int64 [1, T] and scores fp32 [1, V] -> scores fp32 [1, V]."""
        wanted = self._ids[:, ids.shape[1], None]
        return torch.full_like(scores, float("-inf")).scatter_(1, wanted, 0.0)


def encode(name: str, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """The prompt of one of `TEXTS` and the whole text, ids int64 [1, T] and [1, S]."""
    prompt, continuation = TEXTS[name]
    begin = tokenizer(prompt, return_tensors="pt")["input_ids"]
    rest = tokenizer(continuation, return_tensors="pt", add_special_tokens=False)["input_ids"]
    return begin, torch.cat([begin, rest], dim=1)
