"""What a generation takes of the device's memory, told before anything is allocated.

Dims: C hidden, F ffn, V vocab, L layers, H heads, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from persimmon_ext.cache import Cache, DynamicCache
from persimmon_ext.cache_int8 import Int8Cache
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.generation import cgroup
from persimmon_ext.generation.runner import CHUNK_TOKENS
from persimmon_ext.quantization import FORMATS

_SCALE_BYTES = 4
_ID_COPIES = 3  # ids, and the mask and positions of a padded batch
CACHES = ("static", "dynamic", "int8")
#: So many bytes are taken to be there: to ask the system takes longer than the prompt of a small model.
SMALL_BYTES = 1 << 24


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a generation of `batch` rows of at most `context` tokens, prompt included.

    `workspace`: activations of a chunk of the prompt, and logits. `available`: bytes of the device, None where it is
    not known. `longest_context` and `largest_batch`: what fits if only that one changes; None without `available`.
    """

    batch: int
    context: int
    weights: int
    cache: int
    workspace: int
    available: int | None
    longest_context: int | None
    largest_batch: int | None

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.workspace

    @property
    def fits(self) -> bool:
        """Whether it fits; True where the device's memory isn't known."""
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        parts = (
            f"{self.batch} x {self.context} tokens need {_gb(self.total)}: weights {_gb(self.weights)}, cache "
            f"{_gb(self.cache)}, workspace {_gb(self.workspace)}."
        )
        if self.available is None:
            return parts
        return (
            f"{parts} {'That fits into' if self.fits else 'That does not fit into'} {_gb(self.available)}: "
            f"{self.batch} rows could have {self.longest_context} tokens, or {self.largest_batch} rows "
            f"{self.context} tokens."
        )


def plan_memory(
    config: PersimmonConfig,
    *,
    batch: int = 1,
    context: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    quantization: str | None = None,
    cache_implementation: str = "static",
    memory_bytes: int | None = None,
) -> MemoryPlan:
    """Says what a generation takes, and what would fit into `memory_bytes` (None: not compared).

    Args:
        config: of the model.
        batch: rows, all beams and returned sequences counted.
        context: tokens a row, prompt included; None: the model's ``max_position_embeddings``.
        dtype: of the parameters and the cache.
        quantization: of the weights, "int8" or "int4".
        cache_implementation: "static", "dynamic" or "int8", as in ``generate``.
        memory_bytes: what the device has for all of it.
    Raises: ValueError naming a value out of range.
    """
    context = config.max_position_embeddings if context is None else context
    for name, value in (("batch", batch), ("context", context)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    weights = weight_bytes(config, dtype, quantization)
    token = cache_bytes_per_token(config, dtype, cache_implementation)

    def rest(rows: int, tokens: int) -> int:
        return rows * tokens * token + workspace_bytes(config, dtype, rows, tokens)

    longest = largest = None
    if memory_bytes is not None:
        free = memory_bytes - weights
        longest = _largest(lambda tokens: rest(batch, tokens) <= free)
        largest = _largest(lambda rows: rest(rows, context) <= free)
    return MemoryPlan(
        batch,
        context,
        weights,
        batch * context * token,
        workspace_bytes(config, dtype, batch, context),
        memory_bytes,
        longest,
        largest,
    )


def weight_bytes(config: PersimmonConfig, dtype: torch.dtype, quantization: str | None = None) -> int:
    """Bytes of all parameters, the embedding included."""
    C, F, V, L = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    tied = config.tie_word_embeddings and quantization is None
    products = [(3 * C, C), (C, C), (F, C), (C, F)] * L + ([] if tied else [(V, C)])
    qk_norms = 4 * config.head_dim if config.qk_layernorm else 0
    others = V * C + 2 * C + L * (3 * C + C + F + C + 4 * C + qk_norms)  # embedding, final norm, biases and norms
    if quantization is None:
        return (sum(rows * columns for rows, columns in products) + others) * dtype.itemsize
    form = FORMATS[quantization]
    codes = sum(rows * columns * form.bits // 8 for rows, columns in products)
    scales = sum(rows * (columns // form.group_size if form.group_size else 1) for rows, columns in products)
    return codes + scales * _SCALE_BYTES + others * dtype.itemsize


def cache_bytes_per_token(config: PersimmonConfig, dtype: torch.dtype, implementation: str | None = "static") -> int:
    """Bytes of K and V of one token of one row, in all layers."""
    head = config.head_dim + _SCALE_BYTES if implementation == "int8" else config.head_dim * dtype.itemsize
    return 2 * config.num_hidden_layers * config.num_attention_heads * head


def workspace_bytes(config: PersimmonConfig, dtype: torch.dtype, batch: int, context: int) -> int:
    """Bytes of the activations of the largest chunk of a prompt, and of the logits and their filtered copies."""
    tokens = min(batch * context, max(CHUNK_TOKENS, batch))
    # Alive at once in a layer: the residual, a norm's output, the fused projection and its heads, or the MLP's hidden.
    widest = max(8 * config.hidden_size, 3 * config.hidden_size + config.intermediate_size)
    return tokens * widest * dtype.itemsize + 3 * batch * config.vocab_size * torch.float32.itemsize


def available_bytes(device: torch.device) -> int | None:
    """Bytes of the device's memory that can still be allocated; None where that can't be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    information = Path("/proc/meminfo")
    if device.type != "cpu" or not information.exists():
        return None
    lines = (line.split() for line in information.read_text().splitlines())
    found = [int(line[1]) << 10 for line in lines if line[0] == "MemAvailable:"]
    limit = cgroup.unused_bytes()
    return min([*found, *([] if limit is None else [limit])], default=None)


def make_cache(model: Any, implementation: str | None, batch: int, slots: int) -> Cache:
    """The cache of one generation.

    It has room for `slots` tokens from the start, though not for more than the model has positions: beyond, and with
    "dynamic" from the first token on, it grows. Raises MemoryError, in a sentence, for one that would not fit.
    """
    config = model.config
    slots = min(slots, config.max_position_embeddings)
    if implementation != "dynamic":
        smaller = "" if implementation == "int8" else ", or pass cache_implementation='int8'"
        check_cache(model, batch, slots, implementation, advice=f"Lower max_new_tokens or the batch{smaller}.")
    reserve = 0 if implementation == "dynamic" else slots
    return Int8Cache(config, reserve) if implementation == "int8" else DynamicCache(config, reserve)


def check_cache(model: Any, batch: int, slots: int, implementation: str | None = None, *, advice: str) -> None:
    """Raises MemoryError, in a sentence that ends in `advice`, if a new cache of so many rows and slots doesn't fit."""
    needed = batch * slots * cache_bytes_per_token(model.config, model.dtype, implementation)
    available = available_bytes(model.device) if needed > SMALL_BYTES else None
    if available is not None and needed > available:
        raise MemoryError(
            f"A cache of {batch} x {slots} tokens needs {_gb(needed)}, and {_gb(available)} of {model.device} are "
            f"free: at most {available * slots // needed} tokens a row would fit. {advice}"
        )


def check_ids(device: torch.device, rows: int, tokens: int) -> None:
    """Raises MemoryError, in a sentence, if the ids alone of so many rows of `tokens` don't fit."""
    needed = _ID_COPIES * rows * tokens * torch.int64.itemsize
    available = available_bytes(device) if needed > SMALL_BYTES else None
    if available is not None and needed > available:
        raise MemoryError(
            f"The ids of {rows} x {tokens} tokens need {_gb(needed)}, and {_gb(available)} of {device} are free. Lower "
            "max_new_tokens (or max_length)."
        )


def _largest(fits: Any) -> int:
    """The largest number that fits, where less always fits if more does; 0 if none does."""
    high = 1
    while fits(high) and high < 1 << 40:
        high *= 2
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _gb(number: int) -> str:
    return f"{number / 1e9:.2f} GB"
