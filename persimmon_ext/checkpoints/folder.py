"""Which files of a folder hold the weights.

A checkpoint comes from someone else: neither its index nor a link in it may make a reader open files that lie
elsewhere, see :mod:`persimmon_ext.links`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.config import CONFIG_NAME, GENERATION_CONFIG_NAME
from persimmon_ext.links import check_links, lies_inside
from persimmon_ext.tokenizer_files import TOKENIZER_FILES

SAFETENSORS_NAME = "model.safetensors"
SAFETENSORS_INDEX_NAME = "model.safetensors.index.json"
QUANTIZED_NAME = "quantized.safetensors"
QUANTIZED_INDEX_NAME = "quantized.safetensors.index.json"
PICKLE_NAME = "pytorch_model.bin"
PICKLE_INDEX_NAME = "pytorch_model.bin.index.json"

# In the order in which transformers looks for them.
WEIGHT_NAMES = (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, PICKLE_NAME, PICKLE_INDEX_NAME)
QUANTIZED_NAMES = (QUANTIZED_NAME, QUANTIZED_INDEX_NAME)


@dataclass(frozen=True)
class WeightFiles:
    """The files that together hold one checkpoint's tensors, and what its index, if it has one, says of them."""

    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: dict[str, Path] | None = None
    """Tensor name -> the file in which the index places it."""


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """Returns `path` as a Path, having checked that it is a folder with a config.json.

    Raises FileNotFoundError if it, or its config.json, is missing, NotADirectoryError if it is a file, CheckpointError
    if that, the generation config or a file of the tokenizer is a link to elsewhere.
    """
    folder = Path(path)
    if not os.path.lexists(folder):
        raise FileNotFoundError(f"There is no checkpoint folder {str(path)!r}.")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"A checkpoint is a folder with a {CONFIG_NAME} and weights, but {folder} is a file.")
    if not os.path.isfile(folder / CONFIG_NAME):
        raise FileNotFoundError(f"There is no {CONFIG_NAME} in {folder}.")
    _check_links(folder, [CONFIG_NAME, GENERATION_CONFIG_NAME, *TOKENIZER_FILES])
    return folder


def _check_links(folder: Path, names: Iterable[str]) -> None:
    try:
        check_links(folder, names)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def find_weights(folder: Path, *, quantized: bool = False) -> WeightFiles:
    """Returns the weight files of `folder`: safetensors before pickled ones, one file before an index with shards.

    Those of a `quantized` checkpoint have names of their own.

    Raises FileNotFoundError if there are none, or if the index names one that is not there; CheckpointError if the
    index is damaged or names a file outside `folder`.
    """
    names = QUANTIZED_NAMES if quantized else WEIGHT_NAMES
    for name in names:
        path = folder / name
        if os.path.isfile(path):
            _check_links(folder, [name])
            return _indexed(path) if name.endswith(".json") else WeightFiles((path,))
    raise FileNotFoundError(f"There are no weights in {folder}: none of {', '.join(names)} is there.")


def read_index(index: Path) -> dict[str, str]:
    """Returns tensor name -> file name, as the index file `index` has them.

    Raises CheckpointError if it is damaged or names a file outside its folder.
    """
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    # RecursionError: thousands of nested brackets.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not valid JSON: {error}.") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names.")
    for name in names.values():
        if not isinstance(name, str):
            raise CheckpointError(f"{index} names the file {name!r}, which is not inside {index.parent}.")
    for name in set(names.values()):
        _check_inside(index, name)
    return names


def _check_inside(index: Path, name: str) -> None:
    """Raises CheckpointError unless `name` is that of a file in the folder, whatever links are on the way."""
    folder = index.parent
    parts = Path(name).parts
    outside = not parts or "\0" in name or os.path.isabs(name) or ".." in parts
    if outside or not lies_inside(folder / name, folder):
        raise CheckpointError(f"{index} names the file {name!r}, which is not inside {folder}.")


def _indexed(index: Path) -> WeightFiles:
    names = read_index(index)
    shards = {name: index.parent / name for name in dict.fromkeys(names.values())}
    missing = [name for name, path in shards.items() if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(f"{index} names {listing(missing)}, which {index.parent} does not have.")
    return WeightFiles(tuple(shards.values()), index, {tensor: shards[name] for tensor, name in names.items()})
