"""Reads what torch before 1.6 saved: pickles one after the other, then the storages' bytes, without a zip around them.

    magic number, protocol version, system, the object, [storage keys]    five pickles
    for each key: number of elements, int64; the elements

torch.load reads such a file whole. Here the pickles alone are, by the same restricted unpickler and with tensors on the
meta device, and the places of the storages are noted: tensors can then be read one after the other, as from a zip file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import _weights_only_unpickler as weights_only
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.pickles import Record, as_checkpoint_errors, check_byte_order
from persimmon_ext.checkpoints.region import Region

_NUMEL = struct.Struct("<q")


def unpickle_legacy(region: Region) -> tuple[Any, dict[int, Record]]:
    """What torch.save was given, with tensors on the meta device, and the records of the storages, for
    :func:`pickles.place_of`.

    Raises CheckpointError if the file is damaged, or asks for a function or class beyond those of tensors: by its name,
    and nothing has run then.
    """
    with as_checkpoint_errors(region), region.stream() as stream:
        if _next(stream) != MAGIC_NUMBER or _next(stream) != PROTOCOL_VERSION:
            raise CheckpointError(f"{region.name} is not a readable torch.save file: it begins with something else.")
        system = _next(stream)
        check_byte_order(region, b"little" if system.get("little_endian", True) else b"big")
        storages = _Storages()
        content = _next(stream, storages.find)
        keys = _next(stream)
        return content, storages.locate(region, keys, stream.tell())


class _Storages:
    """The storages that a pickle names, on the meta device."""

    def __init__(self) -> None:
        self._by_key: dict[str, Any] = {}

    def find(self, named: tuple[Any, ...]) -> Any:
        """The storage that a persistent id stands for."""
        kind, storage_type, key, _, numel, view = named
        if kind != "storage" or view is not None:
            raise ValueError(f"it holds a {kind} of a kind that torch 1.x no longer wrote")
        if key not in self._by_key:
            size = numel * storage_type.dtype.itemsize
            self._by_key[key] = torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
                wrap_storage=torch.UntypedStorage(size, device="meta"),  # type: ignore[no-untyped-call]
                dtype=storage_type.dtype,
                _internal=True,
            )
        return self._by_key[key]

    def locate(self, region: Region, keys: list[str], first: int) -> dict[int, Record]:
        """Notes where each storage's bytes begin, the first one's number of elements being at `first`."""
        found = {}
        for key in keys:
            storage = self._by_key[key]
            size = storage._untyped_storage.nbytes()
            (numel,) = _NUMEL.unpack(region.read(first, _NUMEL.size))
            offset = first + _NUMEL.size
            if numel * storage.dtype.itemsize != size or offset + size > region.size:
                raise ValueError(f"storage {key} isn't as long as the pickle says (the file may be cut short)")
            storage._untyped_storage._checkpoint_offset = offset
            found[offset] = Record(size)
            first = offset + size
        return found


def _next(stream: BinaryIO, find_storage: Callable[[tuple[Any, ...]], Any] | None = None) -> Any:
    """The object of the next pickle."""
    unpickler: Any = weights_only.Unpickler(stream, encoding="utf-8")
    if find_storage is not None:
        unpickler.persistent_load = find_storage
    return unpickler.load()
