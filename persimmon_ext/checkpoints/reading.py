"""Reads the tensors of one weight file: safetensors, or a pickle of tensors and nothing else."""

from __future__ import annotations

import json
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from persimmon_ext.checkpoints import pickles
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.region import Region
from persimmon_ext.checkpoints.targets import WEIGHT_DTYPES

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,  # codes of quantised weights
    "U8": torch.uint8,
}
_HEADER_LENGTH_BYTES = 8


@dataclass(frozen=True)
class TensorInfo:
    """Shape, dtype and place of one stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    row_major: bool = True
    """Whether it can be read a part at a time, by :meth:`WeightFile.fill`."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return self.numel * self.dtype.itemsize


class WeightFile(AbstractContextManager["WeightFile"], ABC):
    """One open weight file; leaving its context closes it. Reading is safe from several threads."""

    infos: Mapping[str, TensorInfo]
    """Name -> what is known of each tensor without reading it."""
    metadata: Mapping[str, str]
    """What the file says of itself."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Returns tensor `name` on the CPU."""

    @abstractmethod
    def fill(self, name: str, first: int, target: Tensor) -> None:
        """Reads elements `first` and on of a row-major tensor into `target`, contiguous, on the CPU, of its dtype."""

    @abstractmethod
    def close(self) -> None:
        """Drops the file."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_weights(path: Path) -> WeightFile:
    """Opens a weight file by the kind of its name: ``.bin`` is a pickle, anything else safetensors.

    Raises CheckpointError if it is damaged, holds anything but tensors, or one of another dtype than float32, bfloat16,
    float16, float64 and, in safetensors, int8 and uint8.
    """
    if path.suffix != ".bin":
        return _safetensors_file(path)
    with Region(path) as region:
        zipped = pickles.is_zip(region)
    return _zipped_pickle(path) if zipped else _LegacyPickle(path)


class _PlacedTensors(WeightFile):
    """A file whose tensors lie in it as they do in memory, each at a known place."""

    def __init__(
        self,
        region: Region,
        infos: Mapping[str, TensorInfo],
        places: Mapping[str, pickles.Place],
        metadata: Mapping[str, str],
    ) -> None:
        self.infos = infos
        self.metadata = metadata
        self._region = region
        self._places = places

    def fill(self, name: str, first: int, target: Tensor) -> None:
        self._region.fill(target, self._places[name].offset + first * target.dtype.itemsize)

    def read(self, name: str) -> Tensor:
        info, strides = self.infos[name], self._places[name].strides
        if info.row_major:
            tensor = torch.empty(info.shape, dtype=info.dtype)
            self.fill(name, 0, tensor)
            return tensor
        length = 1 + sum((size - 1) * stride for size, stride in zip(info.shape, strides, strict=True))
        memory = torch.empty(length, dtype=info.dtype)
        self.fill(name, 0, memory)
        return memory.as_strided(info.shape, strides)

    def close(self) -> None:
        self._region.close()


class _LegacyPickle(WeightFile):
    """A file that torch before 1.6 wrote, which can only be read whole."""

    def __init__(self, path: Path) -> None:
        with Region(path) as region:
            self._tensors: dict[str, Tensor] = _checked_tensors(
                path, pickles.unpickle(region, map_location="cpu"), lambda tensor: _is_dense(tensor, "cpu")
            )
        self.infos = {
            name: TensorInfo(tuple(tensor.shape), tensor.dtype, path, row_major=False)
            for name, tensor in self._tensors.items()
        }
        self.metadata = {}

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def fill(self, name: str, first: int, target: Tensor) -> None:
        raise NotImplementedError("A file of torch before 1.6 is read whole.")

    def close(self) -> None:
        self._tensors.clear()


# ---- safetensors -----------------------------------------------------------------------------------------------------


def _safetensors_file(path: Path) -> WeightFile:
    """https://github.com/huggingface/safetensors: the library checks the header; the bytes are read from here."""
    length = _header_length(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as checked:
            stored = {name: checked.get_slice(name) for name in checked.keys()}  # noqa: SIM118, not a dict
            described = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in stored.items()}
            metadata = checked.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = str(error)
        if "IncompleteBuffer" in reason or "incomplete metadata" in reason:
            reason = "its header does not describe the bytes that follow (the file may be cut short)"
        raise CheckpointError(f"{path} is not a readable safetensors file: {reason}.") from error
    infos, places = {}, {}
    region = Region(path)
    try:
        header = _header(region, length)
        for name, (dtype, shape) in described.items():
            if dtype not in _SAFETENSORS_DTYPES:
                raise CheckpointError(wrong_dtype(path, name, dtype))
            infos[name] = TensorInfo(shape, _SAFETENSORS_DTYPES[dtype], path)
            offset = _HEADER_LENGTH_BYTES + length + header[name]["data_offsets"][0]
            places[name] = pickles.Place(offset, ())
    except BaseException:
        region.close()
        raise
    return _PlacedTensors(region, infos, places, metadata)


def _header_length(path: Path) -> int:
    # Checked here because the library's own message does not say how the two lengths differ.
    size = os.path.getsize(path)
    with path.open("rb") as file:
        start = file.read(_HEADER_LENGTH_BYTES)
    if len(start) < _HEADER_LENGTH_BYTES:
        raise CheckpointError(f"{path} is not a readable safetensors file: it has only {size} bytes.")
    length = int(struct.unpack("<Q", start)[0])
    if length > size - _HEADER_LENGTH_BYTES:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: its header claims {length} bytes, but only "
            f"{size - _HEADER_LENGTH_BYTES} follow (the file may be cut short)."
        )
    return length


def _header(region: Region, length: int) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
        if twice:
            raise CheckpointError(f"{region.name} is not a readable safetensors file: it has {listing(twice)} twice.")
        return dict(pairs)

    text = bytearray(length)
    region.read_into(memoryview(text), _HEADER_LENGTH_BYTES)
    header: dict[str, Any] = json.loads(text, object_pairs_hook=once)
    return header


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _zipped_pickle(path: Path) -> WeightFile:
    region = Region(path)
    try:
        sizes = pickles.records(region)
        tensors = _checked_tensors(
            path, pickles.unpickle(region), lambda tensor: pickles.place_of(tensor, sizes) is not None
        )
    except BaseException:
        region.close()
        raise
    infos = {
        name: TensorInfo(tuple(tensor.shape), tensor.dtype, path, row_major=tensor.is_contiguous())
        for name, tensor in tensors.items()
    }
    places = {name: place for name, tensor in tensors.items() if (place := pickles.place_of(tensor, sizes))}
    return _PlacedTensors(region, infos, places, {})


def _checked_tensors(path: Path, content: Any, is_readable: Callable[[Tensor], bool]) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, but holds a {type(content).__name__}.")
    strange = [
        repr(name)
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor) and is_readable(value))
    ]
    if strange:
        raise CheckpointError(f"{path} must map names to dense tensors, which it does not at {listing(strange)}.")
    for name, tensor in content.items():
        if tensor.dtype not in WEIGHT_DTYPES.values():
            raise CheckpointError(wrong_dtype(path, name, tensor.dtype))
    return content


def _is_dense(tensor: Tensor, device: str) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == device


def wrong_dtype(path: Path, name: str, dtype: object) -> str:
    """The sentence that says so."""
    return f"Tensor {name} in {path} has dtype {dtype}; weights must be {', '.join(WEIGHT_DTYPES)}."
