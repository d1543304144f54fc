"""The checkpoint that comes with the package: a small Persimmon trained on Python source code."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def embedded_checkpoint() -> Path:
    """Returns the folder of the embedded checkpoint and its tokenizer, for ``from_pretrained``.

    Raises FileNotFoundError if the package was installed without it.
    """
    folder = Path(str(files(__name__) / "tiny"))
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"The embedded checkpoint is missing: there is no {folder / 'config.json'}. Install the package again, or "
            "name a checkpoint's folder."
        )
    return folder
