"""Key and value caches: one that grows and one of fixed size.

K is stored normed and rotated, so the content equals that of transformers' caches.
Dims: B batch, H heads, S cached length, T new tokens, D head dim.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persimmon_ext.cache_layer import CacheLayer

if TYPE_CHECKING:
    from persimmon_ext.config import PersimmonConfig


class Cache:
    """What all caches share: a list of layers, and the operations over all of them."""

    #: Whether `buffers` gives codes and scales, for ops.decode_attention_int8_, instead of K and V.
    is_int8 = False

    def __init__(self, layers: list[CacheLayer]) -> None:
        self.layers = layers

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def __iter__(self) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """Yields the valid (K, V) of each layer."""
        return iter((layer.keys, layer.values) for layer in self.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(layers={len(self)}, seq_length={self.get_seq_length()})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the cached length S of a layer, 0 for a layer not used yet."""
        return self.layers[layer_idx].get_seq_length() if layer_idx < len(self.layers) else 0

    @property
    def max_cache_len(self) -> int:
        """The fixed number of slots, or -1 for a cache that grows."""
        lengths = [layer.max_length for layer in self.layers if layer.max_length is not None]
        return max(lengths, default=-1)

    def get_max_cache_shape(self) -> int:
        """Returns `max_cache_len`, under the name that transformers used for it."""
        return self.max_cache_len

    @property
    def capacity(self) -> int:
        """Slots a row that are allocated; the fewest of the layers."""
        return min((layer.capacity for layer in self.layers), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that K and V occupy, slots without a token included."""
        return sum(layer.nbytes for layer in self.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: dict[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Appends K and V [B, H, T, D] to a layer and returns all of its valid ones [B, H, S + T, D].

        Written in place, except where a gradient may be needed. Raises ValueError if they do not fit what is stored or,
        for a static cache, its free slots, and leaves the cache as it was. `cache_kwargs` is accepted for the sake of
        transformers' callers and not used.
        """
        return self._layer(layer_idx).update(key_states, value_states)

    def buffers(
        self, layer_idx: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Returns the K and V storages [B, H, capacity, D] of a layer for a kernel to write in place.

        `shape` is that of the new tokens, [B, H, T, D]; slots S to S + T - 1 are free to write. Call `advance` when
        they are written. Not differentiable. Raises ValueError as `update` does.
        """
        return self._layer(layer_idx).buffers(shape, dtype, device)

    def advance(self, layer_idx: int, tokens: int) -> None:
        """Marks `tokens` more slots of a layer as valid, after a kernel wrote them. ValueError if they do not exist."""
        self._layer(layer_idx).advance(tokens)

    def advance_all(self, tokens: int) -> None:
        """`advance` of every layer."""
        for layer in self.layers:
            layer.advance(tokens)

    def crop(self, max_length: int) -> None:
        """Keeps the first `max_length` tokens of every layer; a negative number drops that many from the end.

        0 drops nothing, as in transformers; `reset` drops everything.
        """
        if isinstance(max_length, bool) or not isinstance(max_length, int):
            raise TypeError(f"crop takes a number of tokens (an integer), got {max_length!r}.")
        for layer in self.layers:
            layer.crop(max_length)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens of every layer, which may be 0; layers that hold fewer stay as they are."""
        for layer in self.layers:
            layer.truncate(length)

    def requires_grad(self, layer_idx: int) -> bool:
        """Whether a gradient flows to what a layer holds."""
        return layer_idx < len(self.layers) and self.layers[layer_idx].requires_grad

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i of the batch the present row ``beam_idx[i]`` ([B], integers), for beam search."""
        self._select(beam_idx, "beam_idx")

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices` of the batch: int64 [B'] (repeats allowed) or bool [B]."""
        self._select(indices, "indices")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch `repeats` times, copies side by side."""
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats must be a positive integer, got {repeats!r}.")
        batch = self.batch_size
        if batch is not None:
            self._select(torch.arange(batch).repeat_interleave(repeats), "repeats")

    def broadcast(self, batch: int, reserve: int = 0) -> Cache:
        """A copy whose `batch` rows are the one row of this cache, so that many texts can go on from one prefix, or
        its `batch` rows.

        `reserve`: slots that the copy has at least, if it grows. Carries no gradient. ValueError for other numbers of
        rows.
        """
        if self.batch_size not in (None, 1, batch):
            raise ValueError(
                f"Only a cache of one row can be broadcast to {batch}, and this one has {self.batch_size}."
            )
        twin = copy.copy(self)
        twin.layers = [layer.broadcast(batch, reserve) for layer in self.layers]
        return twin

    def reset(self) -> None:
        """Forgets all tokens of every layer."""
        for layer in self.layers:
            layer.reset()

    @property
    def batch_size(self) -> int | None:
        """B, or None before the first use. ValueError if layers differ."""
        sizes = {layer.batch_size for layer in self.layers if layer.is_initialized}
        if len(sizes) > 1:
            raise ValueError(f"The layers of the cache differ in batch size: {sizes}.")
        return next(iter(sizes), None)

    def _select(self, rows: Tensor, name: str) -> None:
        rows = torch.as_tensor(rows)
        batch = self.batch_size
        if batch is None:
            return
        if rows.dtype == torch.bool and rows.shape == (batch,):
            rows = rows.nonzero()[:, 0]
        if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(
                f"{name} must be integers of shape [B'] or booleans of shape [{batch}], got {rows.dtype} of shape "
                f"{list(rows.shape)}."
            )
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < batch:
            raise IndexError(f"{name} must lie in 0 .. {batch - 1} (the cached batch), got {rows.tolist()}.")
        for layer in self.layers:
            layer.select_rows(rows.long())

    def _layer(self, layer_idx: int) -> CacheLayer:
        if not 0 <= layer_idx < len(self.layers):
            raise ValueError(f"The cache has {len(self.layers)} layers and none numbered {layer_idx!r}.")
        return self.layers[layer_idx]


class DynamicCache(Cache):
    """A cache that grows with the tokens, in place and by a quarter at a time.

    With `config` it has that many layers from the start; without, layers appear as they are first used. `reserve`:
    slots that the first allocation has at least, so that no copy is made until there are more tokens.
    """

    def __init__(self, config: PersimmonConfig | None = None, reserve: int = 0) -> None:
        layers = config.num_hidden_layers if config is not None else 0
        super().__init__([CacheLayer(reserve=reserve) for _ in range(layers)])
        self._reserve = reserve
        self._fixed_layers = config is not None

    def _layer(self, layer_idx: int) -> CacheLayer:
        if self._fixed_layers or layer_idx < len(self.layers):
            return super()._layer(layer_idx)
        self.layers.extend(CacheLayer(reserve=self._reserve) for _ in range(layer_idx + 1 - len(self.layers)))
        return self.layers[layer_idx]


class StaticCache(Cache):
    """A cache of `max_cache_len` slots whose storage keeps its address, for CUDA graphs and a known memory use.

    Allocated at first use, or at once if `max_batch_size` is given (then for all heads of `config`, in `dtype`, else
    the config's, else torch's default). More tokens than slots are a ValueError. The address changes only where a
    gradient is needed or the number of rows of the batch changes.
    """

    def __init__(
        self,
        config: PersimmonConfig,
        max_cache_len: int,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in (("max_cache_len", max_cache_len), ("max_batch_size", max_batch_size)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"{name} must be a positive integer, got {size!r}.")
        super().__init__([CacheLayer(max_cache_len) for _ in range(config.num_hidden_layers)])
        if max_batch_size is None:
            return
        shape = (max_batch_size, config.num_attention_heads, 0, config.head_dim)
        if dtype is None:
            dtype = getattr(torch, config.dtype) if config.dtype is not None else torch.get_default_dtype()
        for layer in self.layers:
            layer.buffers(shape, dtype, torch.device(device) if device is not None else torch.get_default_device())
