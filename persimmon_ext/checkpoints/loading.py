"""Builds a model from a Hugging Face folder without ever holding its weights twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from persimmon_ext.checkpoints.configs import check_overrides, read_config
from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.filling import Filler
from persimmon_ext.checkpoints.folder import WeightFiles, checkpoint_folder, find_weights
from persimmon_ext.checkpoints.hub import find_checkpoint
from persimmon_ext.checkpoints.names import Assignment, assign, tensor_aliases, tensor_at
from persimmon_ext.checkpoints.placement import DeviceMap, block_of, connect, place
from persimmon_ext.checkpoints.quantized import QUANTIZATION_FIELD, check_request, stored_format
from persimmon_ext.checkpoints.reading import open_weights
from persimmon_ext.checkpoints.replacing import settle, unchanged
from persimmon_ext.checkpoints.targets import dtype_name, parse_device, parse_dtype
from persimmon_ext.checkpoints.weight_file import TensorInfo, WeightFile
from persimmon_ext.config import PersimmonConfig
from persimmon_ext.hub_files import HubRequest
from persimmon_ext.huge_pages import on_huge_pages
from persimmon_ext.meta_models import without_memory
from persimmon_ext.quantized_layers import QuantizedLinear, empty_quantized
from persimmon_ext.tokenizer import PersimmonTokenizer
from persimmon_ext.tokenizer_files import MODEL_FILE
from persimmon_ext.vocabulary import check_fits

Model = TypeVar("Model", bound=nn.Module)

_SILENT_SECONDS = 2.0  # a load that is done by then shows no progress bar


@dataclass(frozen=True)
class Target:
    """What the loaded tensors shall be."""

    dtype: torch.dtype
    devices: Mapping[str, torch.device]
    """Block of the model -> its device."""

    def device(self, name: str) -> torch.device:
        """Where the tensor `name` goes."""
        return self.devices[block_of(name)]


def load_pretrained(
    model_class: type[Model],
    path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | int | torch.device | None = None,
    config: PersimmonConfig | None = None,
    quantization: str | None = None,
    device_map: str | int | torch.device | DeviceMap | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    hub: HubRequest | None = None,
    verify: bool = True,
    progress: bool = True,
    read_beside: Callable[[Model, Path], None] | None = None,
    **overrides: Any,
) -> Model:
    """Loads a `model_class` from the Hugging Face folder `path`, in eval mode.

    The folder has a config.json and model.safetensors, pytorch_model.bin, or either as shards with an index. `dtype`,
    a torch.dtype or its name, becomes that of all parameters; None or "auto" takes config.dtype, and where that is None
    the dtype of the first tensor loaded. `device` defaults to torch's default device; `device_map` and `max_memory`
    place the model by layers instead, see :func:`placement.place`. `config` is used in place of the folder's, which is
    then not read; `overrides` replace fields of either. The parameters keep the memory layout that the constructor
    gives them. A classification head that the checkpoint lacks is initialised, with a warning. `progress` shows a bar
    where loading takes more than two seconds.

    A name such as "adept/persimmon-8b-base" that is no folder is looked for on the Hugging Face Hub, as `hub` says.
    Of a Fuyu model's folder, the language model is loaded, with a warning that names what was left.

    `quantization`, "int8" or "int4", quantises the weights of the linear layers as they are read, from the values in
    the file (not rounded to `dtype` first). A folder whose config.json says that it is quantised loads as such.

    `verify` compares the tensors with the checksums that their files have, if any, as they are read.

    `read_beside` is given the model, before it has weights, and the folder: for what else lies there.

    Raises FileNotFoundError or NotADirectoryError if the folder or a file is not there, CheckpointError if a file is
    damaged, does not fit the model or is replaced meanwhile, ValueError or TypeError for an unusable `dtype`, `device`,
    map or config, or a tokenizer in the folder that has more tokens than the vocabulary.
    """
    check_overrides(overrides)
    if device is not None and device_map is not None:
        raise ValueError(f"device={device!r} and device_map={device_map!r} both say where to load; pass one of them.")
    where = parse_device(device) if device_map is None else device_map
    requested = None if dtype is None or dtype == "auto" else parse_dtype(dtype)
    found = find_checkpoint(path, hub or HubRequest())
    settle(found)
    folder = checkpoint_folder(found)
    with unchanged(folder):
        stored = stored_format(folder)
        check_request(quantization, stored, folder)
        if config is None:
            config = read_config(folder, overrides)
        else:
            config = PersimmonConfig.from_dict(config.to_dict(), **overrides)
        config.extra.pop(QUANTIZATION_FIELD, None)  # the layers say it from here on
        files = find_weights(folder, quantized=stored is not None)
        infos = stored_tensors(files, verify=verify)
        _check_sizes(config, infos, folder)
        _check_tokenizer(config, folder)
        with without_memory():
            model = model_class(config)
        if read_beside is not None:
            read_beside(model, folder)
        if stored is not None:
            empty_quantized(model, stored)
        aliases = tensor_aliases(model)
        assignment = assign(model, infos, folder)
        if quantization is not None and stored is None:
            empty_quantized(model, quantization)
        target_dtype = requested or _default_dtype(config, assignment, infos)
        config.dtype = dtype_name(target_dtype)  # the model holds this very config
        sizes = {name: _size(tensor, target_dtype) for name, tensor in model.state_dict(keep_vars=True).items()}
        target = Target(target_dtype, place(model, where, max_memory, sizes))
        with torch.no_grad():
            _fill(model, assignment, infos, aliases, target, partial(open_weights, verify=verify), progress)
            for name in assignment.initialised:
                parameter = _materialise(model, (name,), target)
                if name.endswith("bias"):
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, config.initializer_range)
    if device_map is not None:
        connect(model, target.devices)
    return model.eval()


def stored_tensors(files: WeightFiles, *, verify: bool = True) -> dict[str, TensorInfo]:
    """Returns every tensor of `files`, having checked that each is stored once and where the index says."""
    infos: dict[str, TensorInfo] = {}
    for path in files.files:
        with open_weights(path, verify=verify) as weights:
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


def _check_sizes(config: PersimmonConfig, infos: Mapping[str, TensorInfo], folder: Path) -> None:
    """Raises CheckpointError for a size that the stored tensors can't bear out, before a model of it is made: that
    could take for ever, or more numbers than torch counts."""
    largest = max(info.numel * (2 if info.dtype == torch.uint8 else 1) for info in infos.values())
    most = {
        "num_hidden_layers": len(infos),
        **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), largest),
    }
    for name, limit in most.items():
        if getattr(config, name) > limit:
            raise CheckpointError(
                f"The config says {name} {getattr(config, name)}, but the checkpoint {folder} has {len(infos)} "
                f"tensor(s) of at most {largest} values."
            )


def _check_tokenizer(config: PersimmonConfig, folder: Path) -> None:
    """Raises ValueError if the folder's tokenizer gives ids that the embedding has no rows for. Fewer tokens than rows
    are usual: vocabularies are padded."""
    if not (folder / MODEL_FILE).is_file():
        return
    try:
        tokens = len(PersimmonTokenizer.from_pretrained(folder))
    except ValueError:
        return  # who wants the tokenizer is told what is wrong with it; the weights don't need it
    check_fits(tokens, config.vocab_size, f"The tokenizer in {folder}")


def _default_dtype(config: PersimmonConfig, assignment: Assignment, infos: Mapping[str, TensorInfo]) -> torch.dtype:
    if config.dtype is not None:
        return parse_dtype(config.dtype)
    return infos[next(iter(assignment.sources.values()))].dtype  # the embedding's, which is never quantised


def _size(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype.itemsize if isinstance(tensor, nn.Parameter) else tensor.dtype.itemsize)


def _fill(
    model: nn.Module,
    assignment: Assignment,
    infos: Mapping[str, TensorInfo],
    aliases: Mapping[str, tuple[str, ...]],
    target: Target,
    opened: Callable[[Path], WeightFile],
    progress: bool,
) -> None:
    """Copies the tensors into place, file by file."""
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name, stored in assignment.sources.items():
        by_file.setdefault(infos[stored].file, []).append((name, stored))
    total = sum(infos[stored].nbytes * _readings(model, aliases[name]) for name, stored in assignment.sources.items())
    bar = tqdm(
        desc="Loading weights", total=total, unit="B", unit_scale=True, delay=_SILENT_SECONDS, disable=not progress
    )
    with bar, Filler(bar) as filler:
        for path, names in by_file.items():
            with opened(path) as weights:
                for name, stored in names:
                    _place(model, aliases[name], weights, stored, target, filler)
                filler.wait()
        for name, stored in assignment.repeats.items():
            with opened(infos[stored].file) as weights:
                if not filler.equals(weights, stored, model.get_parameter(name)):
                    raise CheckpointError(
                        f"The config ties {assignment.sources[name]} and {stored} (tie_word_embeddings), but the "
                        "checkpoint holds different values for them; load it with tie_word_embeddings=False."
                    )


def _place(
    model: nn.Module, names: tuple[str, ...], weights: WeightFile, stored: str, target: Target, filler: Filler
) -> None:
    """Gives `model` the stored tensor that it knows by all `names`, quantised where the layer is."""
    quantized = _quantized(model, names)
    for name, layer in quantized.items():
        filler.quantize(weights, stored, layer, target.device(name))
    plain = [name for name in names if name not in quantized]
    if plain:
        if quantized:
            filler.wait()  # a tied head: its checksum is put together from one reading at a time
        filler.fill(weights, stored, _materialise(model, tuple(plain), target))


def _quantized(model: nn.Module, names: tuple[str, ...]) -> dict[str, QuantizedLinear]:
    """Those of `names` that are the weight of a quantised layer, and the layer."""
    owners = {name: model.get_submodule(name.rpartition(".")[0]) for name in names if name.endswith(".weight")}
    return {name: module for name, module in owners.items() if isinstance(module, QuantizedLinear)}


def _readings(model: nn.Module, names: tuple[str, ...]) -> int:
    """How often `_place` reads a tensor that `model` knows by `names`: for each quantised layer, and for the others."""
    quantized = len(_quantized(model, names))
    return quantized + (quantized < len(names))


def _materialise(model: nn.Module, names: tuple[str, ...], target: Target) -> Tensor:
    """Gives the meta tensor that `model` knows by all `names` memory of its own shape and strides. A parameter gets
    the target's dtype; codes and scales, which are buffers, keep theirs."""
    meta = tensor_at(model, names[0])
    is_parameter = isinstance(meta, nn.Parameter)
    dtype = target.dtype if is_parameter else meta.dtype
    memory = on_huge_pages(torch.empty_strided(meta.shape, meta.stride(), dtype=dtype, device=target.device(names[0])))
    tensor = nn.Parameter(memory, requires_grad=meta.requires_grad) if is_parameter else memory
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, tensor)
    return tensor
