"""A stretch of a file: all of it, or one member of a tar. Read straight into tensors, from several threads at once.

Reading is chosen over mapping: a page that was read lies in the page cache alone and never counts as memory of the
process, and a file that shrinks while it is read is an error, where a map of it would be a crash.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import torch
from torch import Tensor

from persimmon_ext.checkpoints.errors import CheckpointError


class Region:
    """`size` bytes of the file `path` from `start` on; None is to its end. A context that closes the file."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.path = path
        self.name = str(path) if name is None else name
        """What messages call it."""
        self._file = path.open("rb")
        self._start = start
        self.size = os.fstat(self._file.fileno()).st_size - start if size is None else size

    def __enter__(self) -> Region:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def fill(self, target: Tensor, offset: int) -> None:
        """Reads the contiguous CPU tensor `target` from `offset` on. Raises CheckpointError where the file ends."""
        flat = target.detach().view(-1).view(torch.uint8)
        self.read_into(memoryview(flat.numpy()), offset)  # type: ignore[arg-type]

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target` with the bytes from `offset` on. Raises CheckpointError where the file ends before."""
        if offset < 0 or offset + len(target) > self.size:
            raise CheckpointError(f"{self.name} ends before byte {offset + len(target)}: it has {self.size}.")
        done = 0
        while done < len(target):
            count = os.preadv(self._file.fileno(), [target[done:]], self._start + offset + done)
            if count == 0:
                raise CheckpointError(f"{self.name} became shorter while it was read.")
            done += count

    @contextmanager
    def stream(self) -> Iterator[BinaryIO]:
        """The same bytes as a seekable binary file, for libraries that want one."""
        with io.BufferedReader(_Stream(self)) as stream:
            yield cast(BinaryIO, stream)


class _Stream(io.RawIOBase):
    def __init__(self, region: Region) -> None:
        self._region = region
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._region.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._region.size - self._position))
        self._region.read_into(memoryview(buffer)[:count], self._position)
        self._position += count
        return count
