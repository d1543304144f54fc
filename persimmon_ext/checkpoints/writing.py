"""Writes a model as a Hugging Face folder: config.json and safetensors, in the layout that other libraries read."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from persimmon_ext.checkpoints.errors import listing
from persimmon_ext.checkpoints.folder import (
    CONFIG_NAME,
    QUANTIZED_INDEX_NAME,
    QUANTIZED_NAME,
    SAFETENSORS_INDEX_NAME,
    SAFETENSORS_NAME,
)
from persimmon_ext.checkpoints.names import parameter_aliases
from persimmon_ext.checkpoints.quantized import QUANTIZATION_FIELD, record
from persimmon_ext.checkpoints.replacing import publish, staged
from persimmon_ext.checkpoints.targets import dtype_name
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.quantized_layers import QuantizedLinear, quantized_format

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]I?)B", re.IGNORECASE)
_SHARD = re.compile(r"(model|quantized)-\d{5}-of-\d{5}\.safetensors")
_METADATA = {"format": "pt"}  # transformers reads no file without it


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes `model` to `folder`: config.json, and model.safetensors or, above `max_shard_size`, shards with an index.

    Tensors are written row-major whatever their layout in memory, a tied head once. `max_shard_size` is in bytes, or a
    string such as "500MB" or "2GiB"; a tensor larger than that gets a file of its own. `state_dict` replaces that of
    the model. The files of a quantised model are called quantized….safetensors, and its config.json says the format.

    Everything is written under temporary names first: if that fails, the folder is as before. Weight files of an
    earlier save that no longer belong are removed at the end.

    Raises ValueError if `safe_serialization` is False, the size makes no sense or a tensor has no values, TypeError for
    something that is not a tensor, NotADirectoryError if `folder` is a file, OSError if the disk is full.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False is not available: only safetensors files are written.")
    limit = parse_size(max_shard_size)
    target = Path(folder)
    if os.path.lexists(target) and not target.is_dir():
        raise NotADirectoryError(f"A checkpoint is saved to a folder, but {target} is a file.")
    tensors = _tensors_to_save(model, model.state_dict() if state_dict is None else state_dict)
    config = _config_to_save(model, tensors)
    shards = _split(tensors, limit)
    quantized = QUANTIZATION_FIELD in config.extra
    name, index_name = (
        (QUANTIZED_NAME, QUANTIZED_INDEX_NAME) if quantized else (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME)
    )
    names = [name]
    if len(shards) > 1:
        stem = name.removesuffix(".safetensors")
        names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    with staged(target) as staging:
        config.save_pretrained(staging)
        for name, shard in zip(names, shards, strict=True):
            _write_shard(staging / name, {key: tensors[key] for key in shard})
            # safetensors makes files that only their owner may read; they get the rights that the umask asks for.
            shutil.copymode(staging / CONFIG_NAME, staging / name)
        published = [CONFIG_NAME, *names]
        if len(shards) > 1:
            _write_index(staging / index_name, tensors, dict(zip(names, shards, strict=True)))
            published.append(index_name)
        publish(staging, target, published)
    _remove_earlier(target, keep=set(published))


def parse_size(size: int | str) -> int:
    """Returns the number of bytes that `size` says: an int, or a string such as "5GB" (10^9) or "5GiB" (2^30).

    Raises ValueError if it is not above 0 or not understood, TypeError for another type.
    """
    if isinstance(size, bool) or not isinstance(size, (int, str)):
        raise TypeError(f"max_shard_size must be an int or a string, got {size!r}.")
    parsed = size if isinstance(size, int) else 0
    if isinstance(size, str) and (match := _SIZE.fullmatch(size.strip())):
        parsed = int(float(match[1]) * _UNITS[match[2].upper()])
    if parsed <= 0:
        raise ValueError(f"max_shard_size must be a number of bytes above 0, such as '5GB' or '500MiB', got {size!r}.")
    return parsed


def _tensors_to_save(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(tensor).__name__} for {name!r}.")
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise ValueError(f"Tensors on the meta device have no values to save: {listing(empty)}.")
    repeated = {alias for name, (_, *others) in parameter_aliases(model).items() if name in state for alias in others}
    return {name: tensor.detach() for name, tensor in state.items() if name not in repeated}


def _config_to_save(model: nn.Module, tensors: Mapping[str, Tensor]) -> PersimmonConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, PersimmonConfig):
        raise TypeError(f"{type(model).__name__}.config must be a PersimmonConfig, got {config!r}.")
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]
    config.extra.pop(QUANTIZATION_FIELD, None)  # of the folder that the config was read from
    chosen = quantized_format(model)
    if chosen is not None:
        _check_codes(model, tensors)
        config.extra[QUANTIZATION_FIELD] = record(chosen)
    config.dtype = next((dtype_name(t.dtype) for t in tensors.values() if t.is_floating_point()), config.dtype)
    return config


def _check_codes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    layers = (name for name, module in model.named_modules() if isinstance(module, QuantizedLinear))
    missing = [f"{name}.{leaf}" for name in layers for leaf in ("codes", "scale") if f"{name}.{leaf}" not in tensors]
    if missing:
        raise ValueError(f"The model is quantised, but state_dict lacks {listing(missing)}.")


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Fills one shard after the other, in order, with at most `limit` bytes (or one tensor) each."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += tensor.nbytes
    return shards


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    rows: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        row_major = tensor.cpu().contiguous()
        # safetensors writes no two views of one storage.
        rows[name] = row_major.clone() if row_major.untyped_storage().data_ptr() in storages else row_major
        storages.add(rows[name].untyped_storage().data_ptr())
    try:
        save_file(rows, path, metadata=_METADATA)
    except SafetensorError as error:  # its form of an I/O error, which does not name the file
        raise OSError(f"{path.parent.parent / path.name} could not be written: {error}.") from error


def _write_index(path: Path, tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]]) -> None:
    index = {
        "metadata": {
            "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "total_size": sum(tensor.nbytes for tensor in tensors.values()),
        },
        "weight_map": {tensor: name for name, shard in shards.items() for tensor in shard},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _remove_earlier(folder: Path, keep: set[str]) -> None:
    # The names that decide what is loaded go first: a reader finds the new weights as soon as they are gone.
    for name in (SAFETENSORS_NAME, SAFETENSORS_INDEX_NAME, QUANTIZED_NAME, QUANTIZED_INDEX_NAME):
        if name not in keep:
            (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name) and path.name not in keep:
            path.unlink()
