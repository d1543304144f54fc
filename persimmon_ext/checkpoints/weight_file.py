"""An open file whose tensors lie in it as they do in memory, each at a known place: read a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from persimmon_ext.checkpoints.checksums import Tally
from persimmon_ext.checkpoints.errors import CheckpointError
from persimmon_ext.checkpoints.region import Region

_PIECE = 2**22  # bytes


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


@dataclass(frozen=True)
class Place:
    """Where the values of one tensor lie in its file."""

    offset: int
    """Of element 0, in bytes."""
    strides: tuple[int, ...] | None = None
    """In elements; None is row-major."""
    negated: bool = False
    """Whether the tensor is the negative of what lies there (torch's lazy negation)."""
    checksum: int | None = None
    """CRC-32 of the bytes from the first element to the last, where the file has one of exactly these."""


class WeightFile(AbstractContextManager["WeightFile"]):
    """One open weight file; leaving its context closes it. Reading is safe from several threads.

    A tensor that has been read from its first byte to its last, whole or in pieces, is compared with its checksum.
    """

    def __init__(
        self,
        region: Region,
        infos: Mapping[str, TensorInfo],
        places: Mapping[str, Place],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Takes `region` over, and closes it."""
        self.infos = infos
        """Name -> what is known of each tensor without reading it."""
        self.metadata = metadata or {}
        """What the file says of itself."""
        self.name = region.name
        """What messages call it."""
        self._region = region
        self._places = places
        self._tallies = {
            name: Tally(_span(info, places[name]) * info.dtype.itemsize)
            for name, info in infos.items()
            if places[name].checksum is not None
        }

    def fill(self, name: str, first: int, target: Tensor) -> None:
        """Reads elements `first` and on of a row-major tensor into `target`, contiguous, on the CPU, of its dtype.

        Raises CheckpointError if the file ends before, or if the tensor's last piece is there and its checksum wrong.
        """
        place, offset = self._places[name], first * target.dtype.itemsize
        content = self._region.fill(target, place.offset + offset)
        if place.checksum is None:
            return
        found = self._tallies[name].add(offset, content)
        if found is not None and found != place.checksum:
            raise CheckpointError(
                f"Tensor {name} in {self.name} is damaged: its bytes have the CRC-32 {found:08x}, and were saved with "
                f"{place.checksum:08x} (verify=False loads it nevertheless)."
            )

    def read(self, name: str) -> Tensor:
        """Returns tensor `name` on the CPU. Raises CheckpointError as :meth:`fill` does."""
        info, place = self.infos[name], self._places[name]
        memory = torch.empty(_span(info, place), dtype=info.dtype)
        self.fill(name, 0, memory)
        if place.strides is None:
            return memory.view(info.shape)
        tensor = memory.as_strided(info.shape, place.strides)
        return tensor.neg() if place.negated else tensor

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The values of tensor `name` in row-major order, a few megabytes of whole rows at a time, each flat."""
        info = self.infos[name]
        if not info.row_major:
            yield self.read(name).contiguous().view(-1)
            return
        row = torch.Size(info.shape[1:]).numel()
        length = info.shape[0] if info.shape else 1
        step = max(1, _PIECE // max(1, row * info.dtype.itemsize))
        for first in range(0, length, step):
            piece = torch.empty(min(step, length - first) * row, dtype=info.dtype)
            self.fill(name, first * row, piece)
            yield piece

    @property
    def has_checksums(self) -> bool:
        """Whether all of its tensors are compared with checksums."""
        return len(self._tallies) == len(self.infos)

    def close(self) -> None:
        """Drops the file."""
        self._region.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _span(info: TensorInfo, place: Place) -> int:
    """Elements from the first to the last."""
    if place.strides is None or not info.numel:
        return info.numel
    return 1 + sum((size - 1) * stride for size, stride in zip(info.shape, place.strides, strict=True))
