"""Times functions against each other in one run, alternating, so that a busy moment hits every side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sample:
    """Times of one function's runs, in seconds, sorted."""

    seconds: tuple[float, ...]

    @property
    def fastest(self) -> float:
        return self.seconds[0]

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def quantile(self, share: float) -> float:
        """The time that `share` of the runs stay at or below, interpolated."""
        place = share * (len(self.seconds) - 1)
        low = int(place)
        high = min(low + 1, len(self.seconds) - 1)
        return self.seconds[low] + (place - low) * (self.seconds[high] - self.seconds[low])

    def as_dict(self) -> dict[str, float]:
        """Median, 20th and 80th percentile in seconds, and the number of runs."""
        return {
            "median_s": self.median,
            "p20_s": self.quantile(0.2),
            "p80_s": self.quantile(0.8),
            "runs": len(self.seconds),
        }


def run_timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one run; on CUDA between two events on the current stream."""
    if device.type != "cuda":
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    function()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def measure(
    sides: Mapping[str, Callable[[], Any]],
    *,
    device: torch.device,
    repeats: int,
    flush: Callable[[], None] | None = None,
    budget_s: float = float("inf"),
    warmup: int = 1,
) -> dict[str, Sample]:
    """Runs all `sides` in turn, `repeats` times (at least 3 times, then until `budget_s` is spent).

    `flush` is called before every timed run, so that caches are as cold as in a model, whose weights don't fit into
    them; its own times are returned under "flush".
    """
    for function in sides.values():
        for _ in range(warmup):
            function()
    times: dict[str, list[float]] = {name: [] for name in sides}
    begin = time.perf_counter()
    order = list(sides)
    flushes: list[float] = []
    for done in range(max(repeats, 1)):
        if done >= 3 and time.perf_counter() - begin > budget_s:
            break
        for name in order:
            if flush is not None:
                flushes.append(run_timed(flush, device))
            times[name].append(run_timed(sides[name], device))
        order.reverse()  # no side always runs second
    if flushes:
        times["flush"] = flushes
    return {name: Sample(tuple(sorted(values))) for name, values in times.items()}
