"""Replaces files of a folder so that each appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_STAGING_PREFIX = ".saving-"


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Makes `folder` if need be and yields an empty folder inside it to write to, removed at the end.

    It lies on the same file system, so that `publish` only renames. If writing fails, no file of `folder` has changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Moves the files `names` from `staging` into `folder`, in that order, over any of the same name."""
    # All bytes reach the disk before the first rename: a power cut leaves no file that is there but empty.
    for name in names:
        with (staging / name).open("rb") as file:
            os.fsync(file.fileno())
    for name in names:
        os.replace(staging / name, folder / name)
