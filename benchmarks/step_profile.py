"""Where the time of a step goes: the share of each op, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

#: Ops that read weights or the cache; what they don't take is overhead.
READING = (
    "linear",
    "sparse_linear",
    "linear_int8",
    "linear_int4",
    "sparse_linear_int8",
    "sparse_linear_int4",
    "decode_attention_",
    "attention",
)


def shares(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Runs `step` so many times; returns each op's share of the time between the start of the first and the end of the
    last, and under "python and dispatch" what no op took. The profiler itself slows the latter down.

    An op's time is that of all it calls: a product that falls back to torch's counts as ours.
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    events = [event for event in profiler.events() if event.cpu_parent is None]
    begin = min(event.time_range.start for event in events)
    end = max(event.time_range.end for event in events)
    spent: dict[str, float] = {}
    for event in events:
        spent[event.name] = spent.get(event.name, 0.0) + event.time_range.elapsed_us()
    result = {name.replace("persimmon_ext::", ""): time / (end - begin) for name, time in spent.items()}
    result["python and dispatch"] = 1 - sum(result.values())
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def reading_share(found: dict[str, float]) -> float:
    """Share of the step's time in ops that read weights or the cache."""
    return sum(found.get(name, 0.0) for name in READING)


def text(found: dict[str, float]) -> str:
    """One line an op, those above a thousandth of the time; then the total of the reading ops."""
    lines = [f"{time:7.2%}  {name}" for name, time in found.items() if abs(time) >= 1e-3]
    return "\n".join([*lines, f"{reading_share(found):7.2%}  in all that read weights or the cache"])
