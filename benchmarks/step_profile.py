"""Where the time of a step goes: the share of each of our ops, from a clock read before and after every call.

torch's profiler isn't used: what it does at every op and event of a step is a few percent of the step itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from persimmon_ext.ops.native import KERNELS

#: Ops that read weights or the cache; what they don't take is overhead.
READING = (
    "linear",
    "sparse_linear",
    "linear_int8",
    "linear_int4",
    "sparse_linear_int8",
    "sparse_linear_int4",
    "norm_linear",
    "norm_mlp",
    "decode_attention_",
    "attention",
)
REST = "Python and torch's ops"


class TimedOp:
    """An op of ``torch.ops``, or its only overload, with a clock around it; adds the seconds up in ``spent[name]``."""

    def __init__(self, name: str, op: Callable[..., Any], spent: dict[str, float]) -> None:
        self._name, self._op, self._spent = name, op, spent
        self.default = self

    def __call__(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._op(*arguments)
        self._spent[self._name] = self._spent.get(self._name, 0.0) + time.perf_counter() - begin
        return result


@contextmanager
def timed_ops() -> Iterator[dict[str, float]]:
    """Within it, the seconds that calls of each of our ops take are added up in the dict yielded; not those of calls
    through an overload that was looked up before.

    An op's time is that of all it does, from its call on: a product that falls back to torch's counts as ours.
    """
    spent: dict[str, float] = {}
    namespace: Any = torch.ops.persimmon_ext
    names = sorted({name for name, _ in KERNELS})
    packets = {name: getattr(namespace, name) for name in names}

    try:
        for name, packet in packets.items():
            setattr(namespace, name, TimedOp(name, packet, spent))
        yield spent
    finally:
        for name, packet in packets.items():
            setattr(namespace, name, packet)


def shares(prepare: Callable[[], Callable[[], Any]], steps: int) -> dict[str, float]:
    """Runs the step that `prepare` makes so many times, and once before; returns each op's share of the whole time, and
    under REST what none of ours took."""
    with timed_ops() as spent:
        step = prepare()
        step()
        spent.clear()
        begin = time.perf_counter()
        for _ in range(steps):
            step()
        whole = time.perf_counter() - begin
    result = {name: seconds / whole for name, seconds in spent.items()}
    result[REST] = 1 - sum(result.values())
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def reading_share(found: dict[str, float]) -> float:
    """Share of the step's time in ops that read weights or the cache."""
    return sum(found.get(name, 0.0) for name in READING)


def text(found: dict[str, float]) -> str:
    """One line an op, those above a thousandth of the time; then the total of the reading ops."""
    lines = [f"{time:7.2%}  {name}" for name, time in found.items() if abs(time) >= 1e-3]
    return "\n".join([*lines, f"{reading_share(found):7.2%}  in all that read weights or the cache"])
