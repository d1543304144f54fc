"""Reads the tensors of one weight file: safetensors, or a pickle of tensors and nothing else."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from persimmon_ext.checkpoints.errors import CheckpointError, listing
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
# Pages once read stay resident, as a second copy of the model, until their map goes: it is renewed after so many bytes.
_MAPPED_BYTES = 2**26
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True)
class TensorInfo:
    """Shape, dtype and place of one stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def nbytes(self) -> int:
        """Size on disk in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class WeightFile(AbstractContextManager["WeightFile"], ABC):
    """One open weight file; leaving its context closes it."""

    infos: Mapping[str, TensorInfo]
    """Name -> what is known of each tensor without reading it."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Returns tensor `name` on the CPU; it may be a view of the file."""

    @abstractmethod
    def close(self) -> None:
        """Drops the file and its mapping."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_weights(path: Path) -> WeightFile:
    """Opens a weight file by the kind of its name: ``.bin`` is a pickle, anything else safetensors.

    Raises CheckpointError if it is damaged, holds anything but tensors, or one of another dtype than float32, bfloat16,
    float16, float64 and, in safetensors, int8 and uint8.
    """
    return _PickleFile(path) if path.suffix == ".bin" else _SafetensorsFile(path)


class _SafetensorsFile(WeightFile):
    """A safetensors file, mapped: tensors are views of it. https://github.com/huggingface/safetensors."""

    def __init__(self, path: Path) -> None:
        _check_header_length(path)
        self._path = path
        try:
            self._map()
            self.infos = {name: self._info(path, name) for name in self._names()}
        except (SafetensorError, OSError) as error:
            reason = str(error)
            if "IncompleteBuffer" in reason or "incomplete metadata" in reason:
                reason = "its header does not describe the bytes that follow (the file may be cut short)"
            raise CheckpointError(f"{path} is not a readable safetensors file: {reason}.") from error

    def _map(self) -> None:
        self._handle: Any = safe_open(self._path, framework="pt", device="cpu")
        self._bytes_read = 0

    def _names(self) -> list[str]:
        return list(self._handle.keys())

    def _info(self, path: Path, name: str) -> TensorInfo:
        part = self._handle.get_slice(name)
        stored = part.get_dtype()
        if stored not in _SAFETENSORS_DTYPES:
            raise CheckpointError(wrong_dtype(path, name, stored))
        return TensorInfo(tuple(part.get_shape()), _SAFETENSORS_DTYPES[stored], path)

    def read(self, name: str) -> Tensor:
        if self._bytes_read > _MAPPED_BYTES:
            self._map()
        self._bytes_read += self.infos[name].nbytes
        tensor: Tensor = self._handle.get_tensor(name)
        return tensor

    def close(self) -> None:
        del self._handle


class _PickleFile(WeightFile):
    """A file of torch.save, mapped where its format allows it. Nothing in it is executed."""

    def __init__(self, path: Path) -> None:
        try:
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            raise CheckpointError(_refusal(path, error)) from error
        # A damaged pickle can fail in any way that its opcodes and constructors can.
        except Exception as error:
            reason = str(error).split("\n", maxsplit=1)[0]
            raise CheckpointError(f"{path} is not a readable torch.save file: {reason}.") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} must hold a dictionary of tensors, but holds a {type(content).__name__}.")
        strange = [repr(name) for name, value in content.items() if not _is_plain_tensor(name, value)]
        if strange:
            raise CheckpointError(f"{path} must map names to dense tensors, which it does not at {listing(strange)}.")
        self._tensors: dict[str, Tensor] = content
        self.infos = {name: self._info(path, name, tensor) for name, tensor in content.items()}

    def _info(self, path: Path, name: str, tensor: Tensor) -> TensorInfo:
        if tensor.dtype not in WEIGHT_DTYPES.values():
            raise CheckpointError(wrong_dtype(path, name, tensor.dtype))
        return TensorInfo(tuple(tensor.shape), tensor.dtype, path)

    def read(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def close(self) -> None:
        del self._tensors


def _check_header_length(path: Path) -> None:
    # Checked here because the library's own message does not say how the two lengths differ.
    size = os.path.getsize(path)
    with path.open("rb") as file:
        start = file.read(_HEADER_LENGTH_BYTES)
    if len(start) < _HEADER_LENGTH_BYTES:
        raise CheckpointError(f"{path} is not a readable safetensors file: it has only {size} bytes.")
    (length,) = struct.unpack("<Q", start)
    if length > size - _HEADER_LENGTH_BYTES:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: its header claims {length} bytes, but only "
            f"{size - _HEADER_LENGTH_BYTES} follow (the file may be cut short)."
        )


def _is_plain_tensor(name: object, value: object) -> bool:
    return (
        isinstance(name, str)
        and type(value) in (Tensor, torch.nn.Parameter)
        and value.layout == torch.strided  # type: ignore[attr-defined]
        and value.device.type == "cpu"  # type: ignore[attr-defined]
    )


def wrong_dtype(path: Path, name: str, dtype: object) -> str:
    """The sentence that says so."""
    return f"Tensor {name} in {path} has dtype {dtype}; weights must be {', '.join(WEIGHT_DTYPES)}."


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    wanted = _REFUSED_GLOBAL.search(str(error))
    if wanted is None:
        return f"{path} is not a readable torch.save file: {str(error).splitlines()[-1]}"
    return f"{path} was refused: it asks for {wanted[1]}, and only tensors are read from a checkpoint. Nothing was run."
