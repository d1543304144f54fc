"""The thread that owns the model, and the queue in front of it."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from persimmon_ext.serving.batch import Batch
from persimmon_ext.serving.errors import RequestError
from persimmon_ext.serving.metrics import Metrics
from persimmon_ext.serving.row import Row

_log = logging.getLogger(__name__)

#: Prompts run together if the shortest has at least this share of the longest one's tokens: the rest is padding.
_LIKE_LENGTH = 0.5


@dataclass(frozen=True)
class Limits:
    """What the engine takes: rows at a time, rows that wait, and cache slots of all rows at a time together."""

    batch: int = 32
    queue: int = 256
    slots: int = 1 << 20


class Engine:
    """Serves rows in the order in which they came, as many at a time as the limits allow.

    A row waits until it fits with all that run, then joins between two of their tokens. All methods may be called in
    any thread; none waits for the model.
    """

    def __init__(self, model: Any, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self._metrics = metrics
        self._batch = Batch(model)
        self._counted_steps = 0
        self._running: list[Row] = []
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._work, name="persimmon-engine", daemon=True)
        metrics.watch("persimmon_waiting_rows", "Rows in the queue.", lambda: len(self._waiting))
        metrics.watch("persimmon_running_rows", "Rows under generation.", lambda: len(self._running))

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def is_serving(self) -> bool:
        """Whether new rows are taken."""
        return self._thread.is_alive() and self._deadline is None

    def submit(self, rows: Sequence[Row]) -> None:
        """Puts the rows of a request in the queue: all or none of them.

        Raises RequestError with status 429 if the queue is full, unless it is empty, and 503 during the shutdown.
        """
        with self._changed:
            if not self.is_serving:
                raise RequestError("The server is shutting down and takes no new requests.", status=503)
            waiting = len(self._waiting)
            if waiting and waiting + len(rows) > self.limits.queue:
                raise RequestError(
                    f"The queue is full: {waiting} texts wait, {len(rows)} more were asked for, and it has room for "
                    f"{self.limits.queue}. Try again later.",
                    status=429,
                    code="queue_full",
                )
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Gives up rows whose client has left: those in the queue now, those that run after their next token."""
        with self._changed:
            for row in rows:
                if not row.ended and not row.cancelled:
                    row.cancelled = True
                    self._metrics.cancelled.add()
            self._waiting = deque(row for row in self._waiting if not row.cancelled)

    def drain(self, seconds: float) -> None:
        """Takes no new rows from now on; the others have `seconds` to end, and fail then."""
        with self._changed:
            deadline = time.monotonic() + seconds
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._changed.notify()

    def join(self, seconds: float) -> bool:
        """Waits for the thread to end after `drain`; returns whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while self._has_work():
            if self._is_late():
                self._fail_all(RequestError("The server was shut down before the text was complete.", status=503))
            for group in _similar(self._admit()):
                self._attempt(group, functools.partial(self._add, group))
            self._attempt(self._running, functools.partial(self._batch.decode, self._should_pause))
            self._account()

    def _has_work(self) -> bool:
        """Waits for rows, or for the end of the service, which is when this returns False."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self._deadline is not None)
            return bool(self._waiting or self._running)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _should_pause(self) -> bool:
        return self._is_late() or self._next_fits()

    def _next_fits(self) -> bool:
        """Whether the first row of the queue can join those that run."""
        with self._changed:
            if not self._waiting:
                return False
            rows = [*(row for row in self._running if not row.ended), self._waiting[0]]
        # In a cache, each row has as many slots as the longest one.
        slots = len(rows) * max(row.order.slots for row in rows)
        return len(rows) == 1 or (len(rows) <= self.limits.batch and slots <= self.limits.slots)

    def _admit(self) -> list[Row]:
        """Takes from the queue what can join now."""
        admitted: list[Row] = []
        with self._changed:
            while self._next_fits():
                admitted.append(self._waiting.popleft())
                self._running.append(admitted[-1])
        return admitted

    def _add(self, group: list[Row]) -> None:
        new = sum(len(row.order.prompt) for row in group if not row.begun)
        if group[0].order.scores_prompt and not group[0].begun:
            self._batch.add_scored(group[0])
        else:
            self._batch.add(group)
        self._metrics.prompt_tokens.add(new)

    def _attempt(self, rows: Sequence[Row], work: Callable[[], None]) -> None:
        """Does the work; if that fails, goes on with each row alone, and fails those for which that fails too.

        So a request that the model can't serve costs the others time, and not their replies. The thread outlives any
        failure. Without memory all fail at once: each alone would need a new cache.
        """
        try:
            work()
        except Exception as error:
            out_of_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            going = [row for row in rows if not row.ended]
            if len(going) > 1 and not out_of_memory:
                _log.warning("%d texts could not be generated together (%s); each is tried alone", len(going), error)
                for row in going:
                    self._attempt([row], functools.partial(self._add, [row]))
                return
            _log.exception("%d texts could not be generated", len(rows))
            cause = "The server is out of memory" if out_of_memory else f"The model failed: {error}"
            failure = RequestError(cause.rstrip(".") + ".", status=503 if out_of_memory else 500)
            for row in rows:
                row.fail(failure)

    def _fail_all(self, error: RequestError) -> None:
        with self._changed:
            rows = [*self._running, *self._waiting]
            self._waiting.clear()
        for row in rows:
            row.fail(error)

    def _account(self) -> None:
        """Counts the rows that have ended, and forgets them."""
        ended = [row for row in self._running if row.ended]
        for row in ended:
            self._metrics.generated_tokens.add(len(row.tokens))
            self._metrics.row_seconds.observe(row.seconds)
            if row.first_token_seconds is not None:
                self._metrics.first_token.observe(row.first_token_seconds)
        self._running = [row for row in self._running if not row.ended]
        self._metrics.steps.add(self._batch.steps - self._counted_steps)
        self._counted_steps = self._batch.steps


def _similar(rows: Sequence[Row]) -> list[list[Row]]:
    """`rows` in groups of like length, for little padding; a row whose prompt is scored stands alone."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: (row.order.scores_prompt, -row.length)):
        fits = groups and not row.order.scores_prompt and row.length >= _LIKE_LENGTH * groups[-1][0].length
        if fits:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
