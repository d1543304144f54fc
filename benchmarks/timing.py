"""Times functions against each other in one run, alternating, so that a busy moment hits every side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Sample:
    """Times of one function's runs, in seconds, sorted.

    `queued` is False where the device was to be timed alone and the host's part is in some of the times all the same.
    """

    seconds: tuple[float, ...]
    queued: bool = True

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
        """Median, 20th and 80th percentile in seconds, and the number of runs; "queued" only where that is False."""
        times = {
            "median_s": self.median,
            "p20_s": self.quantile(0.2),
            "p80_s": self.quantile(0.8),
            "runs": len(self.seconds),
        }
        return times if self.queued else times | {"queued": False}


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


class DeviceQueue:
    """Times work on a CUDA device without the host's part in it.

    A kernel of 20 µs has ended before the host launches the next one, so that events around a few of them tell how fast
    the host is. Here the device spins until all of them are in its queue, longer from the next time on where that was
    too short.
    """

    _FIRST_DELAY, _LONGEST_DELAY = 1 << 18, 1 << 27  # in the device's cycles: about 0.15 and 80 ms

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._delay = self._FIRST_DELAY
        self.was_enough = True  # so far: False once the longest delay was too short

    def seconds(self, *stages: Callable[[], Any]) -> list[float]:
        """Device seconds of each of `stages`, which run one after the other on the current stream.

        One that waits for the device can't be queued and is timed with the host's part after all: see `was_enough`.
        """
        while True:
            events = [self._cuda.Event(enable_timing=True) for _ in range(len(stages) + 1)]
            self._cuda._sleep(self._delay)
            events[0].record()
            for stage, event in zip(stages, events[1:], strict=True):
                stage()
                event.record()
            was_late = events[-2].query()  # the device got to the last stage before all of it was queued
            events[-1].synchronize()
            if not was_late or self._delay >= self._LONGEST_DELAY:
                self.was_enough &= not was_late
                return [float(a.elapsed_time(b)) / 1e3 for a, b in pairwise(events)]
            self._delay *= 2


def measure(
    sides: Mapping[str, Callable[[], Any]],
    *,
    device: torch.device,
    repeats: int,
    flush: Callable[[], None] | None = None,
    rest: Callable[[], None] | None = None,
    budget_s: float = float("inf"),
    warmup: int = 1,
    queued: bool = False,
) -> dict[str, Sample]:
    """Runs all `sides` in turn, `repeats` times (at least 3 times, then until `budget_s` is spent).

    `flush` is called before every timed run, so that caches are as cold as in a model, whose weights don't fit into
    them; its own times are returned under "flush". `rest` is called between the two, untimed. `queued`: on CUDA, time
    the device alone (:class:`DeviceQueue`), as is right for kernels; `Sample.queued` tells where that failed. Whole
    models are timed with the host's part, which their users wait for too.
    """
    before = [stage for stage in (flush, rest) if stage is not None]
    queues = {name: DeviceQueue() for name in sides} if queued and device.type == "cuda" else {}
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
            stages = (*before, sides[name])
            seconds = queues[name].seconds(*stages) if queues else [run_timed(stage, device) for stage in stages]
            times[name].append(seconds[-1])
            if flush is not None:
                flushes.append(seconds[0])
        order.append(order.pop(0))  # no side always runs behind the same one first
    late = {name for name, queue in queues.items() if not queue.was_enough}
    if flushes:
        times["flush"] = flushes
    return {name: Sample(tuple(sorted(values)), queued=name not in late) for name, values in times.items()}
