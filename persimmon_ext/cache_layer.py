"""K and V of one layer, in storages of shape [B, H, capacity, D] whose first S slots are valid.

Dims: B batch, H heads, S cached length, T new tokens, D head dim.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from persimmon_ext.huge_pages import on_huge_pages

_ROUND = 64  # a growing storage is a whole number of this many slots


class CacheLayer:
    """K and V of one layer. `max_length` is its fixed number of slots, or None if it grows, from `reserve` slots on."""

    def __init__(self, max_length: int | None = None, reserve: int = 0) -> None:
        self.max_length = max_length
        self.reserve = reserve
        self._length = 0
        self._storage: tuple[Tensor, Tensor] | None = None
        # False once autograd may hold the storage: it is then replaced rather than written to.
        self._writable = True

    @property
    def is_initialized(self) -> bool:
        """Whether K and V have a shape, dtype and device yet."""
        return self._storage is not None

    @property
    def storage(self) -> tuple[Tensor, ...] | None:
        """K and V [B, H, capacity, D], the same objects as long as they are where they were; None before the first
        use."""
        return self._storage

    @property
    def keys(self) -> Tensor | None:
        """The valid K, a view [B, H, S, D] that holds until the cache next changes, or None before the first use."""
        return None if self._storage is None else self._storage[0][:, :, : self._length]

    @property
    def values(self) -> Tensor | None:
        """The valid V, as `keys`."""
        return None if self._storage is None else self._storage[1][:, :, : self._length]

    @property
    def batch_size(self) -> int | None:
        """B, or None before the first use."""
        return None if self._storage is None else self._storage[0].shape[0]

    @property
    def capacity(self) -> int:
        """Number of slots allocated."""
        return 0 if self._storage is None else self._storage[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots, valid or not."""
        return 0 if self._storage is None else sum(storage.nbytes for storage in self._storage)

    def get_seq_length(self) -> int:
        """Number of valid slots, S."""
        return self._length

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `keys` and `values` [B, H, T, D] and returns all valid ones [B, H, S + T, D]."""
        if keys.ndim != 4 or keys.shape != values.shape or keys.dtype != values.dtype or keys.device != values.device:
            raise ValueError(
                "Keys and values must both be [B, H, T, D] of one dtype on one device, got "
                f"{list(keys.shape)} {keys.dtype} on {keys.device} and "
                f"{list(values.shape)} {values.dtype} on {values.device}."
            )
        tokens = keys.shape[2]
        if self._must_concatenate(keys, values):
            k_storage, v_storage = self._concatenate(keys, values)
        else:
            k_storage, v_storage = self.buffers(keys.shape, keys.dtype, keys.device)
            k_storage[:, :, self._length : self._length + tokens].copy_(keys)
            v_storage[:, :, self._length : self._length + tokens].copy_(values)
        self._length += tokens
        return k_storage[:, :, : self._length], v_storage[:, :, : self._length]

    def buffers(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Returns the storages [B, H, capacity, D], writable in place, with room for the T more of `shape`."""
        self._check(shape, dtype, device)
        batch, heads, tokens, dim = shape
        needed = self._length + tokens
        if self._storage is None or needed > self.capacity or not self._writable:
            fresh = self._allocate((batch, heads, self._capacity_for(needed), dim), dtype, device)
            if self._storage is not None:
                for new, old in zip(fresh, self._storage, strict=True):
                    new[:, :, : self._length].copy_(old.detach()[:, :, : self._length])
            self._storage, self._writable = fresh, True
        return self._storage

    def advance(self, tokens: int) -> None:
        """Marks `tokens` more slots as valid; they were written through `buffers`."""
        if tokens < 0 or self._length + tokens > self.capacity:
            raise ValueError(
                f"advance({tokens}) at cached length {self._length} leaves the {self.capacity} slots allocated."
            )
        self._length += tokens

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to the stored K and V."""
        return self._length > 0 and self._storage is not None and any(tensor.requires_grad for tensor in self._storage)

    def truncate(self, length: int) -> None:
        """Keeps the first `length` tokens, which may be 0."""
        self._length = min(self._length, length)

    def crop(self, max_length: int) -> None:
        """Keeps the first `max_length` tokens, or drops the last ``-max_length``; 0 drops nothing."""
        if max_length > 0:
            self._length = min(self._length, max_length)
        else:
            self._length = max(self._length + max_length, 0)

    def select_rows(self, rows: Tensor) -> None:
        """Makes row i of the batch the present row ``rows[i]`` (int64 [B'], checked by the cache)."""
        if self._storage is None:
            return
        rows = rows.to(self._storage[0].device)
        if not self._writable or (torch.is_grad_enabled() and any(s.requires_grad for s in self._storage)):
            self._storage = (self._storage[0].index_select(0, rows), self._storage[1].index_select(0, rows))
            self._writable = False
            return
        chosen = [storage[:, :, : self._length].index_select(0, rows) for storage in self._storage]
        if rows.numel() != self.batch_size:
            _, heads, capacity, dim = self._storage[0].shape
            shape = (rows.numel(), heads, capacity, dim)
            self._storage = self._allocate(shape, self._storage[0].dtype, self._storage[0].device)
        for storage, content in zip(self._storage, chosen, strict=True):
            storage[:, :, : self._length].copy_(content)

    def broadcast(self, batch: int, reserve: int) -> CacheLayer:
        """A copy of `batch` rows that are the one row of this layer, with at least `reserve` slots if it grows."""
        twin = copy.copy(self)
        if self._storage is None:
            return twin
        _, heads, capacity, dim = self._storage[0].shape
        slots = capacity if self.max_length is not None else max(capacity, reserve)
        twin._storage = self._allocate((batch, heads, slots, dim), self._storage[0].dtype, self._storage[0].device)
        twin._writable = True
        for storage, row in zip(twin._storage, self._storage, strict=True):
            storage[:, :, : self._length].copy_(row.detach()[:, :, : self._length].expand(batch, -1, -1, -1))
        return twin

    def reset(self) -> None:
        """Forgets all tokens. A fixed storage stays where it is; a growing one is freed."""
        self._length = 0
        if self.max_length is None or not self._writable:
            self._storage, self._writable = None, True

    def _must_concatenate(self, keys: Tensor, values: Tensor) -> bool:
        if not torch.is_grad_enabled():
            return False
        # A backward pass may need what earlier calls returned, even where K and V themselves need no gradient.
        # A fixed storage keeps its address as long as none does.
        stored = self._storage or ()
        return self.max_length is None or any(tensor.requires_grad for tensor in (keys, values, *stored))

    def _concatenate(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self._check(keys.shape, keys.dtype, keys.device)
        start, end = self._length, self._length + keys.shape[2]
        stored = self._storage
        if stored is None:
            shape = (*keys.shape[:2], self.max_length or 0, keys.shape[3])
            stored = self._allocate(shape, keys.dtype, keys.device)

        def append(old: Tensor, new: Tensor) -> Tensor:
            tail = [] if self.max_length is None else [old[:, :, end:]]  # a fixed storage keeps its number of slots
            return torch.cat([old[:, :, :start], new, *tail], dim=2)

        self._storage, self._writable = (append(stored[0], keys), append(stored[1], values)), False
        return self._storage

    def _check(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        batch, heads, tokens, dim = shape
        if self.max_length is not None and self._length + tokens > self.max_length:
            raise ValueError(
                f"The static cache is full: {tokens} more tokens after {self._length} need {self._length + tokens} "
                f"slots, and it has {self.max_length}."
            )
        if self._storage is None:
            return
        stored = self._storage[0]
        have, got = (stored.shape[0], stored.shape[1], stored.shape[3]), (batch, heads, dim)
        # "cuda" names the current CUDA device, whose tensors say "cuda:0".
        same_device = stored.device == device or (stored.device.type == device.type and device.index is None)
        if have != got or stored.dtype != dtype or not same_device:
            raise ValueError(
                f"The cache holds (batch, heads, head dim) {have} in {stored.dtype} on {stored.device}, and cannot "
                f"append {got} in {dtype} on {device}."
            )

    def _capacity_for(self, needed: int) -> int:
        if self.max_length is not None:
            return self.max_length
        if needed <= self.reserve:
            return self.reserve
        # A little room after a prefill, then growth by a quarter: few copies, and little memory unused.
        room = needed + (max(needed // 4, 1) if self.is_initialized else 1)
        return -(-room // _ROUND) * _ROUND

    @staticmethod
    def _allocate(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        # Outside inference mode, so that the storage can be written to in any mode later.
        with torch.inference_mode(False):
            k, v = (on_huge_pages(torch.empty(shape, dtype=dtype, device=device)).zero_() for _ in range(2))
            return k, v
