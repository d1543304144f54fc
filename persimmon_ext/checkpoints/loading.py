"""Builds a model from a Hugging Face folder without ever holding its weights twice."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.folder import WeightFiles, checkpoint_folder, find_weights
from persimmon_ext.checkpoints.names import Assignment, assign, tensor_aliases, tensor_at
from persimmon_ext.checkpoints.quantized import QUANTIZATION_FIELD, check_request, stored_format
from persimmon_ext.checkpoints.reading import TensorInfo, open_weights
from persimmon_ext.checkpoints.targets import dtype_name, parse_device, parse_dtype
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.quantized_layers import QuantizedLinear, empty_quantized

Model = TypeVar("Model", bound=nn.Module)

_SILENT_SECONDS = 2.0  # a load that is done by then shows no progress bar


def load_pretrained(
    model_class: type[Model],
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    config: PersimmonConfig | None = None,
    quantization: str | None = None,
) -> Model:
    """Loads a `model_class` from the Hugging Face folder `path`, in eval mode.

    The folder has a config.json and model.safetensors, pytorch_model.bin, or either as shards with an index. `dtype`,
    a torch.dtype or its name, becomes that of all parameters; None or "auto" takes config.dtype, and where that is None
    the dtype of the first tensor loaded. `device` defaults to torch's default device. `config` is used in place of the
    folder's, which is then not read. The parameters keep the memory layout that the constructor gives them. A
    classification head that the checkpoint lacks is initialised, with a warning.

    `quantization`, "int8" or "int4", quantises the weights of the linear layers as they are read, from the values in
    the file (not rounded to `dtype` first). A folder whose config.json says that it is quantised loads as such.

    Raises FileNotFoundError or NotADirectoryError if the folder or a file is not there, CheckpointError if a file is
    damaged or does not fit the model, ValueError or TypeError for an unusable `dtype`, `device` or config.
    """
    target_device = parse_device(device)
    requested = None if dtype is None or dtype == "auto" else parse_dtype(dtype)
    folder = checkpoint_folder(path)
    stored = stored_format(folder)
    check_request(quantization, stored, folder)
    config = PersimmonConfig.from_pretrained(folder) if config is None else copy.deepcopy(config)
    config.extra.pop(QUANTIZATION_FIELD, None)  # the layers say it from here on
    files = find_weights(folder, quantized=stored is not None)
    infos = _stored_tensors(files)
    with torch.device("meta"):
        model = model_class(config)
    if stored is not None:
        empty_quantized(model, stored)
    aliases = tensor_aliases(model)
    assignment = assign(model, infos, folder)
    if quantization is not None and stored is None:
        empty_quantized(model, quantization)
    target_dtype = requested or _default_dtype(config, assignment, infos)
    config.dtype = dtype_name(target_dtype)  # the model holds this very config
    with torch.no_grad():
        _fill(model, assignment, infos, aliases, dtype=target_dtype, device=target_device)
        for name in assignment.initialised:
            parameter = _materialise(model, (name,), target_dtype, target_device)
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, config.initializer_range)
    return model.eval()


def _stored_tensors(files: WeightFiles) -> dict[str, TensorInfo]:
    """Returns every tensor of `files`, having checked that each is stored once and where the index says."""
    infos: dict[str, TensorInfo] = {}
    for path in files.files:
        with open_weights(path) as weights:
            twice = [name for name in weights.infos if name in infos]
            if twice:
                raise CheckpointError(f"{path} and {infos[twice[0]].file} both hold {listing(twice)}.")
            infos.update(weights.infos)
    if not infos:
        raise CheckpointError(f"{files.index or files.files[0]} holds no tensors.")
    for name, path in (files.weight_map or {}).items():
        if name not in infos:
            raise CheckpointError(f"{files.index} places tensor {name} in {path.name}, which does not hold it.")
        if infos[name].file != path:
            raise CheckpointError(
                f"{files.index} places tensor {name} in {path.name}, but {infos[name].file.name} holds it."
            )
    return infos


def _default_dtype(config: PersimmonConfig, assignment: Assignment, infos: Mapping[str, TensorInfo]) -> torch.dtype:
    if config.dtype is not None:
        return parse_dtype(config.dtype)
    return infos[next(iter(assignment.sources.values()))].dtype  # the embedding's, which is never quantised


def _fill(
    model: nn.Module,
    assignment: Assignment,
    infos: Mapping[str, TensorInfo],
    aliases: Mapping[str, tuple[str, ...]],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Copies the tensors into place one after the other, file by file, so that one file at a time is mapped."""
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name, stored in assignment.sources.items():
        by_file.setdefault(infos[stored].file, []).append((name, stored))
    total = sum(infos[stored].nbytes for stored in assignment.sources.values())
    with tqdm(desc="Loading weights", total=total, unit="B", unit_scale=True, delay=_SILENT_SECONDS) as progress:
        for path, names in by_file.items():
            with open_weights(path) as weights:
                for name, stored in names:
                    _place(model, aliases[name], weights.read(stored), dtype, device)
                    progress.update(infos[stored].nbytes)
    for name, stored in assignment.repeats.items():
        with open_weights(infos[stored].file) as weights:
            _check_repeat(model.get_parameter(name), weights.read(stored), assignment.sources[name], stored)


def _place(model: nn.Module, names: tuple[str, ...], tensor: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Gives `model` the stored tensor that it knows by all `names`, quantised where the layer is."""
    plain = []
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(module, QuantizedLinear) and leaf == "weight":
            try:
                module.set_weight(tensor, device)
            except ValueError as error:
                raise CheckpointError(f"{name} can't be quantised: {error}") from error
        else:
            plain.append(name)
    if plain:
        _materialise(model, tuple(plain), dtype, device).copy_(tensor)


def _materialise(model: nn.Module, names: tuple[str, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Gives the meta tensor that `model` knows by all `names` memory of its own shape and strides. A parameter gets
    `dtype`; codes and scales, which are buffers, keep theirs."""
    meta = tensor_at(model, names[0])
    is_parameter = isinstance(meta, nn.Parameter)
    memory = torch.empty_strided(meta.shape, meta.stride(), dtype=dtype if is_parameter else meta.dtype, device=device)
    tensor = nn.Parameter(memory, requires_grad=meta.requires_grad) if is_parameter else memory
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)
    return tensor


def _check_repeat(parameter: Tensor, other: Tensor, stored: str, repeat: str) -> None:
    if not torch.equal(parameter, other.to(parameter)):
        raise CheckpointError(
            f"The config ties {stored} and {repeat} (tie_word_embeddings), but the checkpoint holds different values "
            "for them; load it with a config whose tie_word_embeddings is False."
        )
