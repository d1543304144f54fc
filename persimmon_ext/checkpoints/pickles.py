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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.region import Region

_ZIP_MAGIC = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip record; the two are the lengths of what follows it
_BYTE_ORDER = "byteorder"  # the record that names it
_SHOWN = 20  # characters of what a file says
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class Place:
    """Where the values of one tensor lie in its file."""

    offset: int
    """Of element 0, in bytes."""
    strides: tuple[int, ...]


def is_zip(region: Region) -> bool:
    """Whether the file has the zip format that torch 1.6 and later write."""
    with region.stream() as stream:
        return stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def unpickle(
    region: Region, classes: Sequence[tuple[Any, str]] = (), *, map_location: str = "meta", purpose: str = "tensors"
) -> Any:
    """What torch.save was given, with tensors on the meta device (or on `map_location`, with their values).

    Args:
        classes: stand-ins for classes that the pickle may name, each with the full name that it has there.
        purpose: what is read from such a file, for the message.
    Raises: CheckpointError if the file is damaged, or asks for a function or class beyond those: by its name, and
        nothing has run then.
    """
    try:
        with region.stream() as stream, torch.serialization.safe_globals(list(classes)):
            return torch.load(stream, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(region.name, error, purpose)) from error
    # A damaged pickle can fail in any way that its opcodes and constructors can.
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise CheckpointError(f"{region.name} is not a readable torch.save file: {reason}.") from error


def records(region: Region) -> dict[int, int]:
    """Offset of the first byte -> number of bytes, of every record of the zip file; to be had before :func:`unpickle`.

    Raises CheckpointError if it is damaged or compressed, or holds values in the other byte order."""
    found: dict[int, int] = {}
    try:
        with region.stream() as stream, zipfile.ZipFile(stream) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{region.name} is compressed, as no file of torch.save is.")
                _check_byte_order(region, archive, record)
                found[_data_offset(stream, record.header_offset)] = record.file_size
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{region.name} is not a readable torch.save file: {error}.") from error
    return found


def place_of(tensor: Tensor, sizes: Mapping[int, int]) -> Place | None:
    """Where the values of a dense `tensor` that :func:`unpickle` returned lie; None where they don't lie in one record
    of :func:`records`."""
    if tensor.layout != torch.strided:
        return None
    storage = tensor.untyped_storage()
    start = storage._checkpoint_offset
    if start is None or sizes.get(start) != storage.nbytes():
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.dtype.itemsize
    if tensor.numel() and end > storage.nbytes():
        return None
    return Place(start + int(tensor.storage_offset()) * tensor.dtype.itemsize, tensor.stride())


def _check_byte_order(region: Region, archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Raises CheckpointError if `record` says that the values have the other byte order: torch.load would swap the
    bytes of storages on the meta device, which have none, and crash the process."""
    # Without regard to case, as torch looks it up.
    if record.filename.lower().rpartition("/")[2] != _BYTE_ORDER:
        return
    order = archive.read(record)
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
