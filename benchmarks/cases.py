"""What a kernel benchmark is made of: inputs, the two sides, the check, and the bytes and operations that count.

Dimensions: B batch, T new tokens, S cached length, H heads, D head dim, R rotary dim, C hidden, F ffn, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.checks import check_accurate
from benchmarks.weights import Filler

EPS = 1e-5


@dataclass(frozen=True)
class Shapes:
    """The model shape that cases are made for."""

    hidden: int
    ffn: int
    heads: int
    vocab: int
    dtype: torch.dtype
    device: torch.device
    rows: tuple[int, ...]  # of the products that stream a weight
    tokens: tuple[int, ...]  # of what runs over a prompt
    contexts: tuple[int, ...]  # cached lengths of decode attention
    filler: Filler

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        return self.filler.normal(*shape, dtype=self.dtype, spread=spread)

    def norm(self, size: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of a LayerNorm."""
        return 1 + self.normal(size, spread=0.1), self.normal(size, spread=0.1)


@dataclass(frozen=True)
class Case:
    """One row of the table. `check` raises MismatchError; `peers` are further sides to beat."""

    shape: str
    ours: Callable[[], Any]
    eager: Callable[[], Any]
    check: Callable[[], None]
    bytes: int  # that must be read or written once
    flops: int = 0  # 0: bounded by memory
    peers: dict[str, Callable[[], Any]] = field(default_factory=dict)


def accurate(
    name: str,
    ours: Callable[[], Any],
    eager: Callable[[], Any],
    exact: Callable[[], Any],
    select: Callable[[Tensor], Tensor] = lambda y: y,
) -> Callable[[], None]:
    """A check of all results of `ours` against `eager` and `exact`, in float32; `select` picks the part compared of the
    first two (`exact` computes only that)."""

    def check() -> None:
        results = (tensors(ours()), tensors(eager()), tensors(exact()))
        for i, (a, b, c) in enumerate(zip(*results, strict=True)):
            check_accurate(f"{name}, result {i}", select(a), select(b), c)

    return check


def tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def size(*values: Tensor) -> int:
    """Bytes of all tensors."""
    return sum(value.nbytes for value in values)
