"""Counts and times of the service, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metric(Protocol):
    """Something that `Metrics` shows."""

    def lines(self) -> list[str]:
        """Its lines, the description first."""


class Counter:
    """A number that only grows, for each combination of the labels' values."""

    def __init__(self, name: str, description: str, labels: Sequence[str] = ()) -> None:
        self._name, self._head = name, _head(name, description, "counter")
        self._labels = tuple(labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}
        self._lock = threading.Lock()

    def add(self, amount: float = 1, *values: str) -> None:
        """Adds `amount` where the labels have `values`."""
        with self._lock:
            self._values[values] = self._values.get(values, 0) + amount

    def lines(self) -> list[str]:
        """See `Metric`."""
        with self._lock:
            values = sorted(self._values.items())
        return [*self._head, *(f"{self._name}{_shown(self._labels, key)} {value:g}" for key, value in values)]


class Gauge:
    """A number that is looked up when it is shown."""

    def __init__(self, name: str, description: str, read: Callable[[], float]) -> None:
        self._name, self._head, self._read = name, _head(name, description, "gauge"), read

    def lines(self) -> list[str]:
        """See `Metric`."""
        return [*self._head, f"{self._name} {self._read():g}"]


class Histogram:
    """How many values were at most so large; seconds."""

    def __init__(self, name: str, description: str, bounds: Sequence[float] = _SECONDS) -> None:
        self._name, self._head = name, _head(name, description, "histogram")
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Counts `value`."""
        with self._lock:
            self._counts[sum(value > bound for bound in self._bounds)] += 1
            self._sum += value

    def lines(self) -> list[str]:
        """See `Metric`."""
        with self._lock:
            counts, total = list(self._counts), self._sum
        shown, below = list(self._head), 0
        for bound, count in zip((*(f"{bound:g}" for bound in self._bounds), "+Inf"), counts, strict=True):
            below += count
            shown.append(f'{self._name}_bucket{{le="{bound}"}} {below}')
        return [*shown, f"{self._name}_sum {total:g}", f"{self._name}_count {below}"]


class Metrics:
    """All that the service counts; `watch` adds what is looked up."""

    def __init__(self) -> None:
        self.requests = Counter("persimmon_requests_total", "Requests answered.", ("path", "status"))
        self.prompt_tokens = Counter("persimmon_prompt_tokens_total", "Tokens of prompts that were run.")
        self.generated_tokens = Counter("persimmon_generated_tokens_total", "Tokens delivered to clients.")
        self.steps = Counter("persimmon_steps_total", "Tokens chosen for all rows of a batch together.")
        self.cancelled = Counter("persimmon_cancelled_rows_total", "Rows whose client left before their end.")
        self.first_token = Histogram("persimmon_first_token_seconds", "From the request to a row's first token.")
        self.row_seconds = Histogram("persimmon_row_seconds", "From the request to a row's last token.")
        self._metrics: list[Metric] = [
            self.requests,
            self.prompt_tokens,
            self.generated_tokens,
            self.steps,
            self.cancelled,
            self.first_token,
            self.row_seconds,
        ]

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Adds a gauge."""
        self._metrics.append(Gauge(name, description, read))

    def render(self) -> str:
        """Everything, in Prometheus' text format."""
        return "\n".join([line for metric in self._metrics for line in metric.lines()] + [""])


def _head(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP {name} {description}", f"# TYPE {name} {kind}"]


def _shown(labels: Sequence[str], values: Sequence[str]) -> str:
    if not labels:
        return ""
    escaped = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values)
    return "{" + ",".join(f'{label}="{value}"' for label, value in zip(labels, escaped, strict=True)) + "}"
