"""Reads what torch.save wrote without running anything in it, and without reading its tensors' values.

A zip file of torch 1.6 and later holds each tensor's bytes as they lie in memory, in a record of their own: it is
enough to unpickle the structure with tensors on the meta device, and to note where each one's bytes begin.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.region import Region
from persimmon_ext.checkpoints.weight_file import Place

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record; the two are the lengths of what follows it
_BYTE_ORDER = "byteorder"  # the record that names it
_VALUES = "/data/"  # in the name of every storage's record
_PIECE = 2**22
_SHOWN = 20  # characters of what a file says
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Record:
    """A stretch of the file that holds the values of one storage, or of several views of it."""

    size: int
    """In bytes."""
    checksum: int | None = None
    """CRC-32."""


def is_zip(region: Region) -> bool:
    """Whether the file has the zip format that torch 1.6 and later write."""
    with region.stream() as stream:
        return stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def unpickle(region: Region, classes: Sequence[tuple[Any, str]] = (), *, purpose: str = "tensors") -> Any:
    """What torch.save wrote to a zip file, with tensors on the meta device.

    Args:
        classes: stand-ins for classes that the pickle may name, each with the full name that it has there.
        purpose: what is read from such a file, for the message.
    Raises: CheckpointError if the file is damaged, or asks for a function or class beyond those: by its name, and
        nothing has run then.
    """
    with (
        as_checkpoint_errors(region, purpose),
        region.stream() as stream,
        torch.serialization.safe_globals(list(classes)),
    ):
        return torch.load(stream, map_location="meta", weights_only=True)


class _NoNegativeStrides(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what torch refuses with values, but on the meta device takes for strides that it may choose."""

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        if operator is torch.ops.aten.set_.source_Storage_storage_offset:
            strides = arguments[4] if len(arguments) > 4 else ()
            if any(stride < 0 for stride in strides):
                raise ValueError(f"it has a tensor with the strides {list(strides)}")
        return operator(*arguments, **(options or {}))


@contextmanager
def as_checkpoint_errors(region: Region, purpose: str = "tensors") -> Iterator[None]:
    """A context for unpickling `region`: whatever goes wrong becomes a CheckpointError."""
    try:
        with _NoNegativeStrides():  # type: ignore[no-untyped-call]
            yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(region.name, error, purpose)) from error
    # A damaged pickle can fail in any way that its opcodes and constructors can.
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise CheckpointError(f"{region.name} is not a readable torch.save file: {reason}.") from error


def records(region: Region) -> dict[int, Record]:
    """Every record of the zip file by the offset of its first byte; to be had before :func:`unpickle`.

    Raises CheckpointError if it is damaged or compressed, or holds values in the other byte order."""
    found: dict[int, Record] = {}
    try:
        with region.stream() as stream, zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{region.name} is compressed, as no file of torch.save is.")
                offset = _data_offset(stream, entry.header_offset)
                # 0 where torch.save was told to leave checksums out.
                found[offset] = record = Record(entry.file_size, entry.CRC or None)
                if _VALUES not in entry.filename:
                    _check_small(region, entry.filename, offset, record)
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{region.name} is not a readable torch.save file: {error}.") from error
    return found


def place_of(tensor: Tensor, stored: Mapping[int, Record]) -> Place | None:
    """Where the values of a dense `tensor` on the meta device lie; None where they don't lie in one of the records
    `stored`, of which the tensor's storage says the offset."""
    if tensor.layout != torch.strided or tensor.is_conj():
        return None
    storage = tensor.untyped_storage()
    start = -1 if storage._checkpoint_offset is None else storage._checkpoint_offset
    record = stored.get(start)
    if record is None or record.size != storage.nbytes():
        return None
    begin, length = int(tensor.storage_offset()) * tensor.dtype.itemsize, 0
    if tensor.numel():
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        length = (last + 1) * tensor.dtype.itemsize
    if begin + length > record.size:
        return None
    plain = tensor.is_contiguous() and not tensor.is_neg()
    return Place(
        offset=start + begin,
        strides=None if plain else tensor.stride(),
        negated=tensor.is_neg(),
        checksum=record.checksum if length == record.size else None,
    )


def _check_small(region: Region, name: str, offset: int, record: Record) -> None:
    """Raises CheckpointError if a record that is no storage is damaged, or says that the values have the other byte
    order: torch.load would swap the bytes of storages on the meta device, which have none, and crash the process."""
    found = 0
    for first in range(0, record.size, _PIECE):
        found = zlib.crc32(region.read(offset + first, min(_PIECE, record.size - first)), found)
    if record.checksum is not None and found != record.checksum:
        raise CheckpointError(f"{region.name} is damaged: the checksum of its record {name} is wrong.")
    # Without regard to case, as torch looks it up.
    if name.lower().rpartition("/")[2] == _BYTE_ORDER:
        check_byte_order(region, region.read(offset, record.size))


def check_byte_order(region: Region, order: bytes) -> None:
    """Raises CheckpointError if `order`, "little" or "big", isn't this machine's."""
    if order != sys.byteorder.encode():
        raise CheckpointError(
            f"{region.name} holds values in the byte order {order[:_SHOWN].decode('ascii', 'replace')!r}, but this "
            f"machine's is {sys.byteorder!r}; load and save it with torch first."
        )


def _data_offset(stream: BinaryIO, header: int) -> int:
    stream.seek(header)
    lengths = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    return header + _LOCAL_HEADER.size + sum(lengths)


def _refusal(name: str, error: pickle.UnpicklingError, purpose: str) -> str:
    wanted = _REFUSED_GLOBAL.search(str(error))
    if wanted is None:
        return f"{name} is not a readable torch.save file: {str(error).splitlines()[-1]}"
    return f"{name} was refused: it asks for {wanted[1]}; only {purpose} are read from a checkpoint. Nothing was run."
