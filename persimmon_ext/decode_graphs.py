"""Decode steps as CUDA graphs: one launch instead of some hundred, captured once a batch size and kept across calls.

Written against PyTorch's documentation and tested on the CPU with a replay in its place; not verified on a GPU.

Dims: B batch, R rotary dim, V vocab, S slots of the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persimmon_ext.cache import Cache
from persimmon_ext.decode_plan import DecodePlan
from persimmon_ext.generation.memory import make_cache

logger = logging.getLogger("persimmon_ext")

_ROUND = 1024  # slots: calls of similar length share a cache, and so a graph
_WARM_UP = 2  # runs before the capture, in which libraries allocate what they keep

Capture = Callable[[Callable[[], Tensor]], tuple[Tensor, Callable[[], None]]]


def capture_on_cuda(step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
    """Captures `step`; returns its result, always in the same memory, and a function that computes it anew."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return result, graph.replay


@dataclass(frozen=True)
class _Captured:
    """A captured step: where it reads tokens, cos, sin, slots and padding, where its logits are, and how to run it."""

    inputs: list[Tensor]
    logits: Tensor
    replay: Callable[[], None]


class GraphedPlan:
    """A plan whose steps of one token a row are captured at the first one, and from then on replayed.

    The address of `cache` is part of the graph, so it must have its storage. :meth:`DecodePlan.can_be_captured` tells
    beforehand whether a capture makes sense; where it fails all the same, the plan itself goes on.
    """

    def __init__(self, plan: DecodePlan, cache: Cache, capture: Capture = capture_on_cuda) -> None:
        self._plan = plan
        self._cache = cache
        self._capacity = cache.capacity
        self._capture = capture
        self._captured: _Captured | None = None
        self._failed = False

    @property
    def is_intact(self) -> bool:
        """Whether the cache is where it was."""
        return self._cache.capacity == self._capacity

    @property
    def is_captured(self) -> bool:
        """Whether steps are replayed, from the first one on."""
        return self._captured is not None

    def __call__(self, tokens: Tensor, first: int, padding: Tensor | None, cache: Cache) -> Tensor:
        """As :meth:`DecodePlan.__call__`; the logits hold until the next call."""
        replayable = tokens.shape[1] == 1 and cache is self._cache and self.is_intact and first < self._capacity
        if not replayable or self._failed:
            return self._plan(tokens, first, padding, cache)
        slots = torch.full_like(tokens, first)
        start = torch.zeros_like(slots[:, 0]) if padding is None else padding
        cos, sin = self._plan.angles((slots - start[:, None]).clamp(min=0))
        inputs = [tokens, cos, sin, slots, start]
        captured = self._captured or self._try_to_capture(inputs)
        if captured is None:
            return self._plan(tokens, first, padding, cache)
        for kept, new in zip(captured.inputs, inputs, strict=True):
            kept.copy_(new)
        captured.replay()
        cache.advance_all(1)
        return captured.logits

    def _try_to_capture(self, inputs: list[Tensor]) -> _Captured | None:
        kept = [tensor.clone() for tensor in inputs]
        tokens, cos, sin, slots, start = kept
        try:
            # Runs of the step before its replay write the same keys and values into the same slots.
            logits, replay = self._capture(lambda: self._plan.run(tokens, cos, sin, slots, start, self._cache))
        except RuntimeError as error:
            logger.warning("The decode step can't be captured as a CUDA graph and runs as it is: %s", error)
            self._failed = True
            return None
        self._captured = _Captured(kept, logits, replay)
        return self._captured


@dataclass(frozen=True)
class _Entry:
    cache: Cache
    plan: GraphedPlan
    weights: tuple[int, ...]  # addresses


class DecodeGraphs:
    """The caches and graphs that a model keeps between calls: the latest of each batch size, of the `most` batch sizes
    that were used last. A cache takes as much memory as a generation of its size, which others may need."""

    def __init__(self, capture: Capture = capture_on_cuda, most: int = 4) -> None:
        self._capture = capture
        self._most = most
        self._free: dict[int, _Entry] = {}  # by batch size, the one used last at the end
        self._lent: dict[int, _Entry] = {}

    def take(self, model: Any, batch: int, slots: int, implementation: str | None = None) -> Cache:
        """An empty cache for `batch` rows of `slots` tokens; `plan` tells how to run steps over it.

        `implementation`: None, "static" or "int8", as in ``generate``.

        Raises MemoryError for one that doesn't fit.
        """
        weights = tuple(tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()))
        entry = self._free.pop(batch, None)
        slots = min(slots, model.config.max_position_embeddings)
        is_int8 = implementation == "int8"
        fits = entry is not None and entry.cache.capacity >= slots and entry.cache.is_int8 == is_int8
        if entry is None or not fits or entry.weights != weights:
            del entry  # frees its cache before another is allocated
            cache = self._allocate(model, implementation, batch, -(-slots // _ROUND) * _ROUND)
            shape = (batch, model.config.num_attention_heads, 0, model.config.head_dim)
            for layer in range(len(cache)):
                cache.buffers(layer, shape, model.dtype, model.device)
            plan = GraphedPlan(DecodePlan(model, cache.capacity, int8_cache=is_int8), cache, self._capture)
            entry = _Entry(cache, plan, weights)
        entry.cache.truncate(0)  # keeps the storage, which a reset would free
        self._lent[id(entry.cache)] = entry
        return entry.cache

    def _allocate(self, model: Any, implementation: str | None, batch: int, slots: int) -> Cache:
        """A new cache; gives up kept ones, those that were not used for longest first, until it fits."""
        while True:
            try:
                return make_cache(model, implementation, batch, slots)
            except MemoryError:
                if not self._free:
                    raise
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        del self._free[next(iter(self._free))]

    def plan(self, cache: Cache) -> GraphedPlan | None:
        """The plan of a cache that is lent, None for any other."""
        entry = self._lent.get(id(cache))
        return None if entry is None else entry.plan

    def give_back(self, cache: Any, *, keeps: bool) -> None:
        """Ends the use of a lent cache; nothing for any other. Without `keeps` it stays with the caller for good."""
        entry = self._lent.pop(id(cache), None)
        if entry is not None and keeps and entry.plan.is_intact and entry.cache.batch_size is not None:
            self._free[entry.cache.batch_size] = entry
            while len(self._free) > self._most:
                self._drop_oldest()

    def clear(self) -> None:
        """Frees what is kept."""
        self._free.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> DecodeGraphs:
        return DecodeGraphs(self._capture, self._most)  # a copied model has other weights

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodeGraphs, ()
