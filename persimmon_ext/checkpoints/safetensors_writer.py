"""Writes safetensors files from tensors that come a piece at a time: https://github.com/huggingface/safetensors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
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
    """A tensor in memory, of any device and layout. Raises ValueError for a dtype that can't be written."""
    if tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"Tensors of dtype {tensor.dtype} can't be saved; it must be {', '.join(map(str, _DTYPE_NAMES))}."
        )

    def pieces() -> Iterator[Tensor]:
        rows = tensor.detach() if tensor.dim() else tensor.detach()[None]
        step = max(1, _PIECE // max(1, rows[:1].nbytes))
        for first in range(0, len(rows), step):
            yield rows[first : first + step].cpu().contiguous()

    return Source(tuple(tensor.shape), tensor.dtype, pieces)


def write_safetensors(path: Path, sources: Mapping[str, Source], progress: Any = None) -> None:
    """Writes `sources` to the new file `path`, in their order; `progress.update(bytes)` is called on the way.

    Raises OSError, naming the file, if the disk is full; ValueError if the pieces of a tensor are not as many bytes as
    its shape says.
    """
    header: dict[str, Any] = {"__metadata__": _METADATA}
    end = 0
    for name, source in sources.items():
        begin, end = end, end + source.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[source.dtype], "shape": list(source.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, source in sources.items():
                written = 0
                for piece in source.pieces():
                    file.write(memoryview(piece.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
                    written += piece.nbytes
                    if progress is not None:
                        progress.update(piece.nbytes)
                if written != source.nbytes:
                    raise ValueError(f"{name} came as {written} bytes; its shape and dtype ask for {source.nbytes}.")
    except OSError as error:
        if error.filename is None and error.errno is not None:  # of a write, which doesn't know its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
