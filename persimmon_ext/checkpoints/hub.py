"""Downloads a checkpoint from the Hugging Face Hub, where huggingface_hub is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persimmon_ext.checkpoints.folder import (
    QUANTIZED_NAMES,
    SAFETENSORS_INDEX_NAME,
    SAFETENSORS_NAME,
    WEIGHT_NAMES,
    read_index,
)
from persimmon_ext.config import CONFIG_NAME, GENERATION_CONFIG_NAME
from persimmon_ext.hub_files import HubRequest, find_or_download
from persimmon_ext.tokenizer_files import TOKENIZER_FILES

_BESIDE_WEIGHTS = (GENERATION_CONFIG_NAME, *TOKENIZER_FILES)


def find_checkpoint(path: str | os.PathLike[str], request: HubRequest) -> str | os.PathLike[str]:
    """Returns `path` if it exists or can't be a name on the Hub, else the folder that the repository of that name was
    downloaded to. Raises as :func:`persimmon_ext.hub_files.find_or_download`."""

    def download(fetch: Any, errors: Any) -> Path:
        folder: Path = fetch(CONFIG_NAME).parent
        _fetch_weights(fetch, errors)
        return folder

    return find_or_download(path, request, download, _is_whole)


def _is_whole(cached: Callable[[str], Path | None]) -> bool:
    """Whether the cache has a config and all of one form of safetensors, which come last of a download."""
    if cached(CONFIG_NAME) is None:
        return False
    for name in (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, *QUANTIZED_NAMES):
        file = cached(name)
        if file is not None and (not name.endswith(".json") or all(map(cached, set(read_index(file).values())))):
            return True
    return False


def _fetch_weights(fetch: Any, errors: Any) -> None:
    """The weights in the first of their forms that the repository has, and what lies beside them."""
    for name in _BESIDE_WEIGHTS:
        try:
            fetch(name)
        except errors.EntryNotFoundError:  # in the cache alone, it can't be told from one that was not downloaded
            continue
    missing: Exception | None = None
    for name in (*WEIGHT_NAMES, *QUANTIZED_NAMES):
        try:
            file = fetch(name)
        except errors.EntryNotFoundError as error:
            missing = error
            continue
        if name.endswith(".json"):
            for shard in dict.fromkeys(read_index(file).values()):
                fetch(shard)
        return
    if missing is not None:
        raise missing
