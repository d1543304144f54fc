"""Matches the names in a checkpoint with the parameters of a model, whichever of the four classes saved it.

A head model calls its tensors ``model.layers.0…`` and its own ``lm_head.weight`` or ``score.…``; the base model saves
``layers.0…`` without the prefix. A Fuyu model keeps a Persimmon under ``language_model.`` beside its image tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from persimmon_ext.checkpoints.errors import CheckpointError, listing
from persimmon_ext.checkpoints.reading import wrong_dtype
from persimmon_ext.checkpoints.targets import dtype_name
from persimmon_ext.checkpoints.weight_file import TensorInfo

HEADS = ("lm_head", "score")
"""The submodules that a head model may have beside its base model."""

_NEW_HEAD = "score."
_HEAD_WEIGHT = "lm_head.weight"
_LEGACY_BUFFER = "rotary_emb.inv_freq"
_FUYU_PREFIX = "language_model."


@dataclass(frozen=True)
class Assignment:
    """Which stored tensor fills which parameter of the model."""

    sources: dict[str, str]
    """Parameter name -> stored name."""
    repeats: dict[str, str]
    """Parameter name -> the stored name of a second copy, which must be equal (both ends of a tied head were saved)."""
    initialised: tuple[str, ...]
    """Parameters that the checkpoint lacks and may lack: those of a classification head that is still to be trained."""


def parameter_aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns each parameter's first name -> all its names; a tied head is one parameter with two."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return {names[0]: tuple(names) for names in groups.values()}


def tensor_aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """:func:`parameter_aliases` and the buffers that are saved: the codes and scales of quantised layers."""
    saved = model.state_dict(keep_vars=True).keys()
    buffers = {name: (name,) for name, _ in model.named_buffers() if name in saved}
    return {**parameter_aliases(model), **buffers}


def tensor_at(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that name."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


def assign(model: nn.Module, infos: Mapping[str, TensorInfo], folder: Path) -> Assignment:
    """Decides where each stored tensor goes. Warns if a classification head is left to be initialised.

    Raises CheckpointError, naming the tensors, if the model needs one that is missing, if one has nowhere to go, or if
    a shape or the kind of dtype differs.
    """
    language, left = _language_part(infos)
    if left:
        warnings.warn(
            f"The checkpoint {folder} has more than a language model; left unread: {listing(left)}.", stacklevel=4
        )
    stored = _stored_names(model, language)
    sources: dict[str, str] = {}
    repeats: dict[str, str] = {}
    absent: list[str] = []
    for name, aliases in tensor_aliases(model).items():
        present = [stored.pop(alias) for alias in aliases if alias in stored]
        if present:
            sources[name] = present[0]
            repeats.update((name, other) for other in present[1:])
        else:
            absent.append(name)
    initialised = tuple(name for name in absent if name.startswith(_NEW_HEAD))
    problems = _misshapen(model, infos, sources, repeats)
    missing = [name for name in absent if name not in initialised]
    if missing:
        hint = " (tie_word_embeddings=True uses the embedding's)" if missing == [_HEAD_WEIGHT] else ""
        problems.insert(0, f"{_count(missing, 'tensor')} missing: {listing(_with_shapes(model, missing))}{hint}")
    if stored:
        problems.append(f"{_count(stored, 'unexpected tensor')}: {listing(stored.values())}")
    if problems:
        raise CheckpointError(f"The checkpoint {folder} does not fit {type(model).__name__}. {'; '.join(problems)}.")
    _check_dtypes(model, infos, sources)
    if initialised:
        warnings.warn(
            f"The checkpoint {folder} has no {listing(initialised)}: newly initialised, to be trained before use.",
            stacklevel=4,
        )
    return Assignment(sources, repeats, initialised)


def _language_part(infos: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The name that each tensor of the language model has in a Persimmon checkpoint -> its stored name, and the names
    of the other tensors: none, unless a Fuyu model saved them."""
    stored = list(infos)
    if not any(name.startswith(_FUYU_PREFIX) for name in stored):
        return {name: name for name in stored}, []
    language = {name.removeprefix(_FUYU_PREFIX): name for name in stored if name.startswith(_FUYU_PREFIX)}
    return language, [name for name in stored if not name.startswith(_FUYU_PREFIX)]


def _stored_names(model: nn.Module, language: Mapping[str, str]) -> dict[str, str]:
    """Returns the name that each stored tensor has in `model` -> its stored name, without those it has no use for."""
    prefix = f"{getattr(model, 'base_model_prefix', 'model')}."
    model_is_head = hasattr(model, prefix[:-1])
    saved_by_head = any(name.startswith(prefix) for name in language)
    names: dict[str, str] = {}
    for saved, stored in language.items():
        head = saved.split(".", maxsplit=1)[0]
        if saved.endswith(_LEGACY_BUFFER) or (head in HEADS and not hasattr(model, head)):
            continue
        name = saved
        if head not in HEADS and saved_by_head and not model_is_head:
            # What a head model keeps outside its base model gets a name that the base model does not know either.
            name = saved.removeprefix(prefix) if saved.startswith(prefix) else f"{prefix}{saved}"
        elif head not in HEADS and model_is_head and not saved_by_head:
            name = prefix + saved
        names[name] = stored
    return names


def _misshapen(
    model: nn.Module, infos: Mapping[str, TensorInfo], sources: Mapping[str, str], repeats: Mapping[str, str]
) -> list[str]:
    wrong = []
    for name, stored in [*sources.items(), *repeats.items()]:
        expected, found = tuple(tensor_at(model, name).shape), infos[stored].shape
        if expected != found:
            wrong.append(f"{stored} {list(found)} instead of {list(expected)}")
    return [f"{_count(wrong, 'tensor')} of another shape: {listing(wrong)}"] if wrong else []


def _check_dtypes(model: nn.Module, infos: Mapping[str, TensorInfo], sources: Mapping[str, str]) -> None:
    """Raises CheckpointError unless parameters are of a floating dtype, and codes and scales of their own."""
    for name, stored in sources.items():
        tensor, info = tensor_at(model, name), infos[stored]
        if isinstance(tensor, nn.Parameter):
            if not info.dtype.is_floating_point:
                raise CheckpointError(wrong_dtype(info.file, stored, dtype_name(info.dtype)))
        elif info.dtype != tensor.dtype:
            raise CheckpointError(
                f"Tensor {stored} in {info.file} has dtype {dtype_name(info.dtype)}; it must be "
                f"{dtype_name(tensor.dtype)}."
            )


def _with_shapes(model: nn.Module, names: Iterable[str]) -> list[str]:
    return [f"{name} {list(tensor_at(model, name).shape)}" for name in names]


def _count(items: Mapping[str, str] | list[str], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"
