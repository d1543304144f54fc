"""Writes a model as a Hugging Face folder: config.json and safetensors, in the layout that other libraries read."""

from __future__ import annotations

import copy
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from pathlib import Path

import torch
from torch import Tensor, nn

from persimmon_ext.checkpoints.errors import listing
from persimmon_ext.checkpoints.folder import (
    QUANTIZED_INDEX_NAME,
    QUANTIZED_NAME,
    SAFETENSORS_INDEX_NAME,
    SAFETENSORS_NAME,
)
from persimmon_ext.checkpoints.names import parameter_aliases
from persimmon_ext.checkpoints.quantized import QUANTIZATION_FIELD, record
from persimmon_ext.checkpoints.replacing import holds_weights, publish, staged
from persimmon_ext.checkpoints.safetensors_writer import Source, differences, source_of, write_safetensors
from persimmon_ext.checkpoints.targets import dtype_name, parse_size
from persimmon_ext.config import CONFIG_NAME, PersimmonConfig
from persimmon_ext.dropped_rows import whole_rows
from persimmon_ext.quantized_layers import quantized_format
from persimmon_ext.trimmed_vocabulary import Trimmed, standard_name

_MARK_BYTES = 4
_QUANTIZED = (".codes", ".scale")  # what a quantised layer keeps beside parameters, in dtypes of its own


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    write_beside: Callable[[Path], Sequence[str]] | None = None,
) -> None:
    """Writes `model` to `folder`: config.json, and model.safetensors or, above `max_shard_size`, shards with an index.

    Tensors are written row-major whatever their layout in memory, a tied head once. `max_shard_size` is in bytes, or a
    string such as "500MB" or "2GiB"; a tensor larger than that gets a file of its own. `state_dict` replaces that of
    the model, and must be as complete. The files of a quantised model are called quantized….safetensors, and its
    config.json says the format. A trimmed vocabulary is written whole. `write_beside` writes further files to the
    folder it is given, and returns their names.

    Everything is written beside the old files first, a few megabytes of a tensor at a time: if that fails, or the
    process is killed, the folder is as before. Weight files of an earlier save that no longer belong are removed at the
    end.

    Raises ValueError if `safe_serialization` is False, the size makes no sense, a tensor has no values or `state_dict`
    is not that of such a model, TypeError for something that is not a tensor, NotADirectoryError if `folder` is a
    file, BlockingIOError if another process is saving there, OSError if the disk is full.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False is not available: only safetensors files are written.")
    limit = parse_size(max_shard_size)
    target = Path(folder)
    if os.path.lexists(target) and not target.is_dir():
        raise NotADirectoryError(f"A checkpoint is saved to a folder, but {target} is a file.")
    config = _config_to_save(model)
    sources = _sources(model) if state_dict is None else _replaced(model, state_dict)
    config.dtype = _common_dtype(sources)
    quantized = QUANTIZATION_FIELD in config.extra
    shards = split(sources, limit)
    with staged(target) as staging:
        mark = secrets.token_hex(_MARK_BYTES) if holds_weights(target) else ""
        contents = dict(zip(shard_names(len(shards), quantized=quantized, mark=mark), shards, strict=True))
        config.save_pretrained(staging)
        published = [CONFIG_NAME, *contents]
        if write_beside is not None:
            published += write_beside(staging)
        for name, shard in contents.items():
            write_safetensors(staging / name, {key: sources[key] for key in shard})
        if len(shards) > 1:
            index_name = QUANTIZED_INDEX_NAME if quantized else SAFETENSORS_INDEX_NAME
            write_index(staging / index_name, sources, contents)
            published.append(index_name)
        publish(staging, target, published)


def _sources(model: nn.Module) -> dict[str, Source]:
    """What is written of `model`: each tensor once, by its first name; of a trimmed vocabulary all rows, by the names
    that a whole one has."""
    sources: dict[str, Source] = {}
    state = model.state_dict(keep_vars=True)
    _check_values(state)
    names = _first_names(model)
    trimmed = {name: module for name, module in model.named_modules() if isinstance(module, Trimmed)}
    for name, tensor in state.items():
        standard = standard_name(name)
        if names[standard] != standard:
            continue
        source = source_of(tensor)
        owner, _, leaf = standard.rpartition(".")
        if owner in trimmed and leaf in trimmed[owner].dropped:
            dropped, is_kept = trimmed[owner].dropped[leaf], trimmed[owner].is_kept
            whole = (len(is_kept), *dropped.row_shape)
            source = Source(whole, source.dtype, partial(whole_rows, tensor, dropped, is_kept))
        sources[standard] = source
    return sources


def _replaced(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Source]:
    """The tensors of `state`, in the place of those of `model`. Raises ValueError unless they are the same in number,
    names and shapes: a folder of anything else could not be loaded."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(tensor).__name__} for {name!r}.")
    _check_values(state)
    own, names = _sources(model), _first_names(model)
    given: dict[str, Source] = {}
    for name, tensor in state.items():
        given.setdefault(names.get(name, name), source_of(tensor))
    problems = []
    missing, unknown, wrong = differences(given, {name: source.shape for name, source in own.items()})
    if missing:
        problems.append(f"it lacks {listing(missing)}")
    if unknown:
        problems.append(f"it has {listing(unknown)}")
    if wrong:
        problems.append(f"it has other shapes: {listing(wrong)}")
    if problems:
        raise ValueError(f"state_dict does not fit {type(model).__name__}: {'; '.join(problems)}.")
    return {name: given[name] for name in own}


def _check_values(state: Mapping[str, Tensor]) -> None:
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise ValueError(f"Tensors on the meta device have no values to save: {listing(empty)}.")


def _first_names(model: nn.Module) -> dict[str, str]:
    """Every name that a state_dict of `model` has -> the first name of the same tensor."""
    first = {alias: names[0] for names in parameter_aliases(model).values() for alias in names}
    return {standard_name(name): standard_name(first.get(name, name)) for name in model.state_dict(keep_vars=True)}


def _config_to_save(model: nn.Module) -> PersimmonConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, PersimmonConfig):
        raise TypeError(f"{type(model).__name__}.config must be a PersimmonConfig, got {config!r}.")
    config = copy.deepcopy(config)
    config.architectures = [type(model).__name__]
    config.extra.pop(QUANTIZATION_FIELD, None)  # of the folder that the config was read from
    chosen = quantized_format(model)
    if chosen is not None:
        config.extra[QUANTIZATION_FIELD] = record(chosen)
    return config


def _common_dtype(sources: Mapping[str, Source]) -> str:
    """The dtype that all parameters fit into without loss. A model has one; in a mixture, loading loses nothing."""
    dtypes = {source.dtype for name, source in sources.items() if not name.endswith(_QUANTIZED)}
    return dtype_name(reduce(torch.promote_types, dtypes))


def split(sources: Mapping[str, Source], limit: int) -> list[list[str]]:
    """Fills one shard after the other, in order, with at most `limit` bytes (or one tensor) each."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, source in sources.items():
        if shards[-1] and used + source.nbytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += source.nbytes
    return shards


def shard_names(count: int, *, quantized: bool = False, mark: str = "") -> list[str]:
    """The names of the files of a checkpoint in `count` shards.

    mark: 8 hexadecimal digits that keep them apart from the shards that another save to the same folder wrote. Readers
    take the names from the index, and transformers clears such files away when it saves there.
    """
    name = QUANTIZED_NAME if quantized else SAFETENSORS_NAME
    if count == 1:
        return [name]
    stem = name.removesuffix(".safetensors") + (f"-{mark}" if mark else "")
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def write_index(path: Path, sources: Mapping[str, Source], shards: Mapping[str, Sequence[str]]) -> None:
    """Writes the index of `shards`, file name -> its tensors."""
    index = {
        "metadata": {
            "total_parameters": sum(source.numel for source in sources.values()),
            "total_size": sum(source.nbytes for source in sources.values()),
        },
        "weight_map": {tensor: name for name, shard in shards.items() for tensor in shard},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
