"""Writes a model as a Hugging Face folder: config.json and safetensors, in the layout that other libraries read."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

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
from persimmon_ext.checkpoints.safetensors_writer import Source, source_of, write_safetensors
from persimmon_ext.checkpoints.targets import dtype_name, parse_size
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.quantized_layers import QuantizedLinear, quantized_format
from persimmon_ext.trimmed_vocabulary import TRIMMED, DroppedRows, TrimmedHead, whole_rows


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
    the model. The files of a quantised model are called quantized….safetensors, and its config.json says the format. A
    trimmed vocabulary is written whole. `write_beside` writes further files to the folder it is given, and returns
    their names.

    Everything is written beside the old files first, a few megabytes of a tensor at a time: if that fails, or the
    process is killed, the folder is as before. Weight files of an earlier save that no longer belong are removed at the
    end.

    Raises ValueError if `safe_serialization` is False, the size makes no sense or a tensor has no values or, of a
    trimmed vocabulary, another shape, TypeError for something that is not a tensor, NotADirectoryError if `folder` is a
    file, BlockingIOError if another process is saving there, OSError if the disk is full.
    """
    if not safe_serialization:
        raise ValueError("safe_serialization=False is not available: only safetensors files are written.")
    limit = parse_size(max_shard_size)
    target = Path(folder)
    if os.path.lexists(target) and not target.is_dir():
        raise NotADirectoryError(f"A checkpoint is saved to a folder, but {target} is a file.")
    tensors = _tensors_to_save(model, model.state_dict() if state_dict is None else state_dict)
    config = _config_to_save(model, tensors)
    sources = _sources(model, tensors)
    quantized = QUANTIZATION_FIELD in config.extra
    shards = split(sources, limit)
    contents = dict(zip(shard_names(len(shards), quantized=quantized), shards, strict=True))
    with staged(target) as staging:
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


def _tensors_to_save(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(tensor).__name__} for {name!r}.")
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise ValueError(f"Tensors on the meta device have no values to save: {listing(empty)}.")
    repeated = {alias for name, (_, *others) in parameter_aliases(model).items() if name in state for alias in others}
    return {name: tensor.detach() for name, tensor in state.items() if name not in repeated}


def _sources(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Source]:
    """What is written of each tensor: of a trimmed vocabulary all rows, under the names that a whole one has."""
    sources = {}
    trimmed = {name: module for name, module in model.named_modules() if isinstance(module, TRIMMED)}
    for name, tensor in tensors.items():
        source = source_of(tensor)
        owner, _, leaf = name.rpartition(".")
        owner = owner.removesuffix(f".{TrimmedHead.ROWS}")
        module = trimmed.get(owner)
        if module is None or leaf not in module.dropped:
            sources[name] = source
        else:
            sources[f"{owner}.{leaf}"] = _whole_source(name, tensor, source, module.dropped[leaf], module.is_kept)
    return sources


def _whole_source(name: str, tensor: Tensor, source: Source, dropped: DroppedRows, is_kept: Tensor) -> Source:
    """`tensor`, of the vocabulary's kept rows or, as a `state_dict` of before it was trimmed has it, of all."""
    kept, whole = (int(is_kept.sum()), *dropped.row_shape), (len(is_kept), *dropped.row_shape)
    if source.shape == whole:
        return source
    if source.shape != kept:
        raise ValueError(
            f"{name} has the shape {list(source.shape)}; of the trimmed vocabulary it must be {list(kept)}, or "
            f"{list(whole)} with all rows."
        )
    return Source(whole, source.dtype, partial(whole_rows, tensor, dropped, is_kept))


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


def shard_names(count: int, *, quantized: bool = False) -> list[str]:
    """The names of the files of a checkpoint in `count` shards."""
    name = QUANTIZED_NAME if quantized else SAFETENSORS_NAME
    if count == 1:
        return [name]
    stem = name.removesuffix(".safetensors")
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
