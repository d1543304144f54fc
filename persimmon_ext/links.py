"""Links in a folder that comes from someone else: none may make a reader open files that lie elsewhere.

The one exception is the Hugging Face cache: its ``snapshots`` are links to the ``blobs`` of the same model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def check_links(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError if one of the files `names` of `folder` is a link that leads out of it."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not lies_inside(path, folder):
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}, outside its folder; files that lie elsewhere aren't read."
            )


def lies_inside(path: Path, folder: Path) -> bool:
    """Whether `path` is in `folder` when all links are followed, or what it is there is a link of the Hub's cache."""
    try:
        os.fsencode(path)
        found, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, a lone surrogate
        return False
    blobs = _blobs(home)
    return found.is_relative_to(home) or (blobs is not None and found.parent == blobs)


def _blobs(home: Path) -> Path | None:
    """Where the files of ``models--OWNER--NAME/snapshots/COMMIT`` in the Hub's cache lie; None for any other folder."""
    model = home.parent.parent
    is_snapshot = home.parent.name == "snapshots" and model.name.startswith("models--")
    return model / "blobs" if is_snapshot else None
