"""Writes safetensors files from tensors that come a piece at a time: https://github.com/huggingface/safetensors."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from persimmon_ext.checkpoints.checksums import as_metadata

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_METADATA_NAME = "__metadata__"
_METADATA = {"format": "pt"}  # transformers reads no file without it
_ALIGNMENT = 8
_PIECE = 2**22


@dataclass(frozen=True)
class Source:
    """A tensor to be written, and how to get at its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]
    """Contiguous CPU tensors of the dtype whose elements, one after the other, are the tensor's in row-major order.
    Each may be overwritten when the next is asked for."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return self.numel * self.dtype.itemsize


def source_of(tensor: Tensor) -> Source:
    """A tensor in memory, of any device and layout. Raises ValueError for a dtype that can't be written, or one that is
    not dense."""
    if tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"Tensors of dtype {tensor.dtype} can't be saved; it must be {', '.join(map(str, _DTYPE_NAMES))}."
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"Only dense tensors can be saved, got one of layout {tensor.layout}.")

    def pieces() -> Iterator[Tensor]:
        rows = tensor.detach() if tensor.dim() else tensor.detach()[None]
        step = max(1, _PIECE // max(1, rows[:1].nbytes))
        for first in range(0, len(rows), step):
            yield rows[first : first + step].cpu().resolve_neg().contiguous()

    return Source(tuple(tensor.shape), tensor.dtype, pieces)


def write_safetensors(path: Path, sources: Mapping[str, Source], progress: Any = None) -> None:
    """Writes `sources` to the new file `path`, in their order, with their checksums (see :mod:`checksums`) in its
    metadata; `progress.update(bytes)` is called on the way.

    Raises OSError, naming the file, if the disk is full; ValueError if the pieces of a tensor are not as many bytes as
    its shape says, or for a tensor of the name that safetensors keeps for itself.
    """
    if _METADATA_NAME in sources:
        raise ValueError(
            f"A tensor can't be saved under the name {_METADATA_NAME}, which safetensors keeps for itself."
        )
    try:
        with path.open("wb") as file:
            file.write(_header(sources, dict.fromkeys(sources, 0)))
            checksums = {name: _write(file, name, source, progress) for name, source in sources.items()}
            file.seek(0)
            file.write(_header(sources, checksums))  # as long as the first
    except OSError as error:
        if error.filename is None and error.errno is not None:  # of a write, which doesn't know its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _header(sources: Mapping[str, Source], checksums: Mapping[str, int]) -> bytes:
    header: dict[str, Any] = {_METADATA_NAME: {**_METADATA, **as_metadata(checksums)}}
    end = 0
    for name, source in sources.items():
        begin, end = end, end + source.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[source.dtype], "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _write(file: BinaryIO, name: str, source: Source, progress: Any) -> int:
    """Writes the values of one tensor; returns their checksum."""
    written = checksum = 0
    for piece in source.pieces():
        content = memoryview(piece.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        file.write(content)
        checksum = zlib.crc32(content, checksum)
        written += piece.nbytes
        if progress is not None:
            progress.update(piece.nbytes)
    if written != source.nbytes:
        raise ValueError(f"{name} came as {written} bytes; its shape and dtype ask for {source.nbytes}.")
    return checksum


def differences(
    sources: Mapping[str, Source], expected: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str], list[str]]:
    """Names that `sources` lack, names that are not expected, and names and shapes of those with another shape."""
    missing = [name for name in expected if name not in sources]
    unknown = [name for name in sources if name not in expected]
    wrong = [
        f"{name} {list(source.shape)} instead of {list(expected[name])}"
        for name, source in sources.items()
        if name in expected and source.shape != expected[name]
    ]
    return missing, unknown, wrong
