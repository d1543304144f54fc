"""A stretch of a file: all of it, or one member of a tar. Read straight into tensors, from several threads at once.

Reading is chosen over mapping: a page that was read lies in the page cache alone and never counts as memory of the
process, and a file that shrinks while it is read is an error, where a map of it would be a crash.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import torch
from torch import Tensor

from persimmon_ext.checkpoints.errors import CheckpointError


class Region:
    """`size` bytes of the file `path` from `start` on; None is to its end. A context that closes the file.

    Raises CheckpointError for what is no file with contents of its own: a pipe or a device.
    """

    def __init__(self, path: Path, start: int = 0, size: int | None = None, name: str | None = None) -> None:
        self.path = path
        self.name = str(path) if name is None else name
        """What messages call it."""
        self._file = open(path, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115, lives as long as this
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            self._file.close()
            raise CheckpointError(f"{self.name} is no regular file, so no checkpoint.")
        self._start = start
        self.size = status.st_size - start if size is None else size

    def __enter__(self) -> Region:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def fill(self, target: Tensor, offset: int) -> memoryview:
        """Reads the contiguous CPU tensor `target` from `offset` on, and returns its bytes. Raises CheckpointError
        where the file ends."""
        content = memoryview(target.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        self.read_into(content, offset)
        return content

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on. Raises CheckpointError where the file ends."""
        content = bytearray(max(0, min(count, self.size)))  # a damaged file may claim any number
        self.read_into(memoryview(content), offset)
        if len(content) != count:
            raise CheckpointError(f"{self.name} ends before byte {offset + count}: it has {self.size}.")
        return bytes(content)

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


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # opening a pipe would wait for a writer


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
