"""What the parts of ``benchmarks.generate`` share: two or more ways to make the same tokens, compared and timed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

import persimmon_ext
from benchmarks.checks import MismatchError
from benchmarks.timing import measure

# Code that repeats itself: what speculation by looking up is for.
CODE = """class Reader:
    def __init__(self, path, encoding=None, errors=None):
        self.path = path
        self.encoding = encoding
        self.errors = errors

    def read(self):
        with open(self.path, encoding=self.encoding, errors=self.errors) as file:
            return file.read()


class Writer:
    def __init__(self, path, encoding=None, errors=None):
        self.path = path
"""
#: No token ends a text, so that all sides make equally many.
QUIET = {"eos_token_id": None, "pad_token_id": 0}


def same_tokens(name: str, sides: dict[str, Callable[[], Tensor]]) -> None:
    """Raises MismatchError unless all sides give the same tokens."""
    results = {side: run() for side, run in sides.items()}
    first, *others = results
    for side in others:
        if not torch.equal(results[side], results[first]):
            raise MismatchError(f"{name}: {side} gives other tokens than {first}.")


def compare(
    name: str, sides: dict[str, Callable[[], Tensor]], tokens: int, chosen: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Times the sides; the ratio is the first side's speed over the last's."""
    samples = measure(sides, device=device, repeats=chosen.repeats)
    first, *_, last = sides
    return {
        "part": name,
        "tokens": tokens,
        "sides": {
            side: sample.as_dict() | {"tokens_per_s": tokens / sample.median} for side, sample in samples.items()
        },
        "ratio": samples[last].median / samples[first].median,
    }


def embedded_models(device: torch.device) -> tuple[Any, Any, Tensor]:
    folder = persimmon_ext.embedded_checkpoint()
    ours = persimmon_ext.PersimmonForCausalLM.from_pretrained(folder, device=device)
    theirs = transformers.PersimmonForCausalLM.from_pretrained(folder).to(device)
    tokenizer = persimmon_ext.PersimmonTokenizer.from_pretrained(folder)
    return ours, theirs, tokenizer(CODE, return_tensors="pt")["input_ids"].to(device)
